"""Distributions of values that stand there many times each, such as the gaps between tokens. It knows no run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.sums import dot

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.signedinteger[Any]]
Itl = tuple[Floats, Ints]
Parts = Callable[[], Iterable[Itl]]
"""(values, how often) in parts, made anew at each call."""
Distribution = dict[str, float | None]
"""By name of `STATISTICS`."""

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
PERCENTS = (50.0, 90.0, 95.0, 99.0)
# More values than this are not sorted as a whole, and are counted so many at a time.
_SORTED_WHOLE = 1 << 20
_BUCKETS = 1 << 12


def percentiles(values: Floats, percents: Sequence[float]) -> Floats:
    """As np.percentile of values without NaN, which imports numpy's masked arrays: a twentieth of a small run."""
    return _interpolated(len(values), percents, np.sort(values).__getitem__)


def weighted_percentiles(values: Floats, weights: Ints, percents: Sequence[float]) -> Floats:
    """Percentiles of `values` repeated `weights` times, equal to np.percentile of the expanded array.

    values: (n,), no NaN; weights: (n,) counts >= 0 with a sum > 0; percents in 0..100. The expanded array is
    never made: time and memory depend on n alone.
    """
    total = int(weights.sum(dtype=np.int64))
    if not total:
        raise ValueError("no values to take percentiles of")
    if len(values) <= _SORTED_WHOLE:
        return _interpolated(total, percents, partial(_ranked, values, weights))
    bounds = float(values.min()), float(values.max())
    return _interpolated(total, percents, partial(_ranked_by_bucket, lambda: _chunks([(values, weights)]), bounds))


def _interpolated(total: int, percents: Sequence[float], ranked: Callable[[Ints], Floats]) -> Floats:
    """Percentiles of so many values, of which `ranked` gives those at places in their order."""
    position = (total - 1) * (np.asarray(percents, dtype=np.float64) / 100.0)
    below = np.floor(position).astype(np.int64)
    ranks = np.stack([below, np.minimum(below + 1, total - 1)])
    low, high = ranked(ranks)
    part, gap = position - below, high - low
    # The two-sided interpolation that numpy uses, so that the results agree in every bit.
    result: Floats = np.where(part >= 0.5, high - gap * (1.0 - part), low + gap * part)
    return result


def _ranked(values: Floats, weights: Ints, ranks: Ints) -> Floats:
    positive = weights > 0
    order = np.argsort(values[positive])  # not stably, which takes five times as long
    ends = np.cumsum(weights[positive][order], dtype=np.int64)
    ranked: Floats = values[positive][order][np.searchsorted(ends, ranks, side="right")]
    return ranked


def _ranked_by_bucket(parts: Parts, bounds: tuple[float, float], ranks: Ints) -> Floats:
    """The same in little memory, of parts that lie within bounds: values are counted in buckets, and only the buckets
    that hold a rank are sorted."""
    largest = max(bounds[1], 1e-300)
    edges = np.geomspace(max(bounds[0], 1e-12 * largest), largest, _BUCKETS)
    counts = np.zeros(_BUCKETS + 1)
    for part, some in parts():
        # Whole numbers, exact as floats up to 2**53.
        counts += np.bincount(np.searchsorted(edges, part, side="right"), some, minlength=_BUCKETS + 1)
    ends = np.cumsum(counts.astype(np.int64))
    holders = np.unique(np.searchsorted(ends, ranks, side="right"))
    kept_values, kept_weights = [], []
    for part, some in parts():
        held = np.isin(np.searchsorted(edges, part, side="right"), holders)
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


def _chunks(parts: Iterable[Itl]) -> Iterator[Itl]:
    """The same values in chunks of one size, but the last."""
    waiting: list[Itl] = []
    missing = _SORTED_WHOLE
    for values, weights in parts:
        at = 0
        while len(values) - at >= missing:
            waiting.append((values[at : at + missing], weights[at : at + missing]))
            yield merge_itl(waiting)
            at, waiting, missing = at + missing, [], _SORTED_WHOLE
        waiting.append((values[at:], weights[at:]))
        missing -= len(values) - at
    if missing < _SORTED_WHOLE:
        yield merge_itl(waiting)


def _weighted_sum(chunks: Iterable[Itl]) -> float:
    """The dot product of values and weights, without a copy of the weights as floats."""
    return sum(dot(values, weights) for values, weights in chunks)


def distribution(values: npt.ArrayLike, weights: Ints | None = None) -> Distribution:
    """Mean, percentiles and maximum of the values that are not NaN; None each where there is none."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    if not known.all():
        array, weights = array[known], weights if weights is None else weights[known]
    if not len(array) or (weights is not None and not weights.any()):
        return dict.fromkeys(STATISTICS)
    if weights is None:
        return _named(array.mean(), percentiles(array, PERCENTS), array.max())
    mean = _weighted_sum(_chunks([(array, weights)])) / weights.sum(dtype=np.int64)
    return _named(mean, weighted_percentiles(array, weights, PERCENTS), array.max(where=weights > 0, initial=0.0))


def distribution_in_parts(parts: Parts) -> Distribution:
    """As `distribution` of all the parts together, bit for bit, of which no more are held at once than a chunk.

    No value is NaN, and each is there once at least.
    """
    few, count = list[Itl](), 0
    for part in parts():
        few.append(part)
        count += len(part[0])
        if count > _SORTED_WHOLE:
            break
    else:
        return distribution(*merge_itl(few))
    few.clear()
    total, least, most = 0, np.inf, -np.inf

    def noted() -> Iterator[Itl]:
        nonlocal total, least, most
        for values, weights in _chunks(parts()):
            total += int(weights.sum(dtype=np.int64))
            least, most = min(least, float(values.min())), max(most, float(values.max()))
            yield values, weights

    weighted_sum = _weighted_sum(noted())
    percentiles = _interpolated(total, PERCENTS, partial(_ranked_by_bucket, parts, (least, most)))
    return _named(weighted_sum / total, percentiles, max(most, 0.0))


def _named(mean: float, percentiles: Floats, largest: float) -> Distribution:
    return dict(zip(STATISTICS, map(float, (mean, *percentiles, largest)), strict=True))


def itl_from_segments(step_end_s: Floats, first: Ints, last: Ints, joins: Floats) -> Itl:
    """All of `segment_gaps` together."""
    parts = list(segment_gaps(step_end_s, first, last, joins))
    return np.concatenate([gaps for gaps, _ in parts]), np.concatenate([weights for _, weights in parts])


def segment_gaps(step_end_s: Floats, first: Ints, last: Ints, joins: Floats) -> Iterator[Itl]:
    """(gaps_s, weights) between the tokens of one replica's requests, in O(steps + segments), and in parts.

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
    for begin in range(0, len(weights), _SORTED_WHOLE):
        some = weights[begin : begin + _SORTED_WHOLE]
        there = some > 0
        yield np.diff(step_end_s[begin : begin + _SORTED_WHOLE + 1])[there], some[there]
    yield joins, np.ones(len(joins), weights.dtype)


def merge_itl(parts: Iterable[Itl]) -> Itl:
    """The gaps of several replicas as one (gaps_s, weights); empty arrays where there are none."""
    filled = [part for part in parts if len(part[0])]
    if len(filled) == 1:
        return filled[0]
    if not filled:
        return np.empty(0), np.empty(0, dtype=np.int64)
    return np.concatenate([gaps for gaps, _ in filled]), np.concatenate([weights for _, weights in filled])
