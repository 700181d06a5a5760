"""Distributions of values that stand there many times each, such as the gaps between tokens. It knows no run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.signedinteger[Any]]
Itl = tuple[Floats, Ints]

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
PERCENTS = (50.0, 90.0, 95.0, 99.0)
# More values than this are not sorted as a whole, and are counted so many at a time.
_SORTED_WHOLE = 1 << 20
_BUCKETS = 1 << 12


def weighted_percentiles(values: Floats, weights: Ints, percents: Sequence[float]) -> Floats:
    """Percentiles of `values` repeated `weights` times, equal to np.percentile of the expanded array.

    values: (n,), no NaN; weights: (n,) counts >= 0 with a sum > 0; percents in 0..100. The expanded array is
    never made: time and memory depend on n alone.
    """
    total = int(weights.sum(dtype=np.int64))
    if not total:
        raise ValueError("no values to take percentiles of")
    position = (total - 1) * (np.asarray(percents, dtype=np.float64) / 100.0)
    below = np.floor(position).astype(np.int64)
    ranks = np.stack([below, np.minimum(below + 1, total - 1)])
    low, high = (_ranked if len(values) <= _SORTED_WHOLE else _ranked_by_bucket)(values, weights, ranks)
    part, gap = position - below, high - low
    # The two-sided interpolation that numpy uses, so that the results agree in every bit.
    result: Floats = np.where(part >= 0.5, high - gap * (1.0 - part), low + gap * part)
    return result


def _ranked(values: Floats, weights: Ints, ranks: Ints) -> Floats:
    positive = weights > 0
    order = np.argsort(values[positive], kind="stable")
    ends = np.cumsum(weights[positive][order], dtype=np.int64)
    ranked: Floats = values[positive][order][np.searchsorted(ends, ranks, side="right")]
    return ranked


def _ranked_by_bucket(values: Floats, weights: Ints, ranks: Ints) -> Floats:
    """The same in little memory: values are counted in buckets, and only the buckets that hold a rank are sorted."""
    largest = max(float(values.max()), 1e-300)
    edges = np.geomspace(max(float(values.min()), 1e-12 * largest), largest, _BUCKETS)

    def chunks() -> Iterator[tuple[Floats, Ints, Ints]]:
        for at in range(0, len(values), _SORTED_WHOLE):
            part = values[at : at + _SORTED_WHOLE]
            yield part, weights[at : at + _SORTED_WHOLE], np.searchsorted(edges, part, side="right")

    counts = np.zeros(_BUCKETS + 1)
    for _, some, bucket in chunks():
        counts += np.bincount(bucket, some, minlength=_BUCKETS + 1)  # whole numbers, exact as floats up to 2**53
    ends = np.cumsum(counts.astype(np.int64))
    holders = np.unique(np.searchsorted(ends, ranks, side="right"))
    kept_values, kept_weights = [], []
    for part, some, bucket in chunks():
        held = np.isin(bucket, holders)
        kept_values.append(part[held])
        kept_weights.append(some[held])
    # A bucket that was left out stands at its lower edge with all its weight, so that ranks stay what they were.
    lumps = np.setdiff1d(np.flatnonzero(counts), holders)
    lower_edges = np.concatenate([[-np.inf], edges])
    return _ranked(
        np.concatenate([*kept_values, lower_edges[lumps]]),
        np.concatenate([*kept_weights, counts[lumps].astype(np.int64)]),
        ranks,
    )


def _weighted_sum(values: Floats, weights: Ints) -> float:
    """Their dot product, without a copy of the weights as floats."""
    starts = range(0, len(values), _SORTED_WHOLE)
    return sum(float(np.dot(values[at : at + _SORTED_WHOLE], weights[at : at + _SORTED_WHOLE])) for at in starts)


def distribution(values: npt.ArrayLike, weights: Ints | None = None) -> dict[str, float | None]:
    """Mean, percentiles and maximum of the values that are not NaN; None each where there is none."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    if not known.all():
        array, weights = array[known], weights if weights is None else weights[known]
    if not len(array) or (weights is not None and not weights.any()):
        return dict.fromkeys(STATISTICS)
    if weights is None:
        mean, percentiles, largest = array.mean(), np.percentile(array, PERCENTS), array.max()
    else:
        mean = _weighted_sum(array, weights) / weights.sum(dtype=np.int64)
        percentiles, largest = weighted_percentiles(array, weights, PERCENTS), array.max(where=weights > 0, initial=0.0)
    return dict(zip(STATISTICS, map(float, (mean, *percentiles, largest)), strict=True))


def itl_from_segments(step_end_s: Floats, first: Ints, last: Ints, joins: Floats) -> Itl:
    """(gaps_s, weights) between the tokens of one replica's requests, in O(steps + segments).

    step_end_s: end time of every step of the replica. first, last: per segment, the steps (both included) in
    each of which one request received one token; the gaps of a segment are the differences of step_end_s from
    `first` to `last`. joins: gaps in seconds between two segments of one request, one each. The weights have the
    smallest type that holds them.
    """
    steps = len(step_end_s)
    if len(first) != len(last) or (len(first) and (first.min() < 0 or last.max() >= steps)):
        raise ValueError(f"segments do not lie within the {steps} steps of the clock")
    if (last < first).any():
        raise ValueError("a segment ends before it begins")
    # Difference array: gap k lies between steps k and k + 1, and segment (f, l) covers the gaps f .. l - 1.
    weights = np.zeros(steps + 1, np.int32)
    np.add.at(weights, first, 1)
    np.subtract.at(weights, last, 1)
    weights = np.cumsum(weights, out=weights)[: max(steps - 1, 0)]
    weights = weights.astype(np.min_scalar_type(-int(weights.max(initial=1)) - 1))
    gaps, at = np.empty(np.count_nonzero(weights) + len(joins)), 0
    for begin in range(0, len(weights), _SORTED_WHOLE):
        end = begin + _SORTED_WHOLE
        some = np.diff(step_end_s[begin : end + 1])[weights[begin:end] > 0]
        gaps[at : at + len(some)] = some
        at += len(some)
    gaps[at:] = joins
    return gaps, np.concatenate([weights[weights > 0], np.ones(len(joins), weights.dtype)])


def merge_itl(parts: Iterable[Itl]) -> Itl:
    """The gaps of several replicas as one (gaps_s, weights); empty arrays where there are none."""
    filled = [part for part in parts if len(part[0])]
    if len(filled) == 1:
        return filled[0]
    if not filled:
        return np.empty(0), np.empty(0, dtype=np.int64)
    return np.concatenate([gaps for gaps, _ in filled]), np.concatenate([weights for _, weights in filled])
