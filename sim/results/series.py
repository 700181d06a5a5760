"""Quantities over time and distributions, thinned to what a page can hold. It does not know what they mean.

Thinning is stated and honest: a bucket keeps the time-weighted mean, the smallest and the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.results.percentiles import Floats, Ints, weighted_percentiles
from traces.late import pd

MOST_BUCKETS, FEWEST_BUCKETS = 4000, 400
CDF_PERCENTS = np.unique(
    np.concatenate([np.linspace(0, 100, 801), 100 - np.logspace(-4, 1, 201), np.logspace(-2, 0, 41)])
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A quantity of one replica over time: from start_s to end_s it goes straight from `first` to `last`.

    Rows are in time order and do not overlap; between them the quantity is not defined (idle).
    """

    start_s: Floats
    end_s: Floats
    first: Floats
    last: Floats

    @classmethod
    def constant(cls, start_s: Floats, end_s: Floats, value: Floats) -> Pieces:
        """Pieces that keep one value each."""
        return cls(start_s, end_s, value, value)

    def integral(self, edges_s: Floats) -> Floats:
        """The integral from the beginning up to each edge; idle time adds nothing."""
        if not len(self.start_s):
            return np.zeros(len(edges_s))
        length = self.end_s - self.start_s
        before = np.concatenate([[0.0], np.cumsum(length * (self.first + self.last) / 2)])
        row = np.searchsorted(self.start_s, edges_s, side="right") - 1
        inside = np.maximum(row, 0)
        passed = np.clip(edges_s - self.start_s[inside], 0.0, length[inside])
        slope = (self.last - self.first)[inside] / np.where(length[inside] > 0, length[inside], 1.0)
        result: Floats = before[inside] + passed * (self.first[inside] + slope * passed / 2)
        return np.where(row < 0, 0.0, result)

    def extremes(self, edges_s: Floats) -> tuple[Floats, Floats]:
        """(smallest, largest) end value of the pieces that touch each bucket; NaN where there is none."""
        begin = np.searchsorted(self.end_s, edges_s[:-1], side="right")
        end = np.searchsorted(self.start_s, edges_s[1:], side="left")
        low = _reduce_ranges(np.minimum, np.minimum(self.first, self.last), begin, end)
        return low, _reduce_ranges(np.maximum, np.maximum(self.first, self.last), begin, end)


def _reduce_ranges(reduce: np.ufunc, values: Floats, begin: Ints, end: Ints) -> Floats:
    """reduce(values[begin:end]) for each pair; NaN for an empty one."""
    if not len(values):
        return np.full(len(begin), np.nan)
    pairs = np.stack([np.minimum(begin, len(values)), np.minimum(np.maximum(end, begin), len(values))], axis=1)
    reduced = reduce.reduceat(np.append(values, np.nan), pairs.ravel())[::2]
    return np.where(end > begin, reduced, np.nan)


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of one replica in time order; none starts before the last one ended. `columns` by name."""

    start_s: Floats
    end_s: Floats
    columns: dict[str, Floats]

    def constant(self, values: Floats) -> Pieces:
        """Pieces that keep one value over each span."""
        return Pieces.constant(self.start_s, self.end_s, values)


def by_replica(steps: pd.DataFrame, *columns: str) -> list[Spans]:
    replica, parts = steps["replica"].to_numpy(), []
    for index in np.unique(replica):
        mine = replica == index
        start_s, end_s, *rest = (steps[name].to_numpy(np.float64)[mine] for name in ("start_s", "end_s", *columns))
        start_s = np.minimum(np.maximum(start_s, np.concatenate([start_s[:1], end_s[:-1]])), end_s)
        parts.append(Spans(start_s, end_s, dict(zip(columns, rest, strict=True))))
    return parts


def grid(start_s: float, end_s: float, values: int) -> Floats:
    """Edges of equal buckets for that many values: about four buckets per value, at most 4,000 in all."""
    buckets = min(MOST_BUCKETS, max(FEWEST_BUCKETS, 4 * values))
    return np.linspace(start_s, end_s if end_s > start_s else start_s + 1.0, buckets + 1)


def busy_means(parts: Sequence[Pieces], edges_s: Floats) -> dict[str, Floats]:
    """Mean over the busy time, smallest and largest value per bucket, of all parts; NaN where all idle."""
    total, busy = np.zeros(len(edges_s) - 1), np.zeros(len(edges_s) - 1)
    low, high = np.full(len(total), np.nan), np.full(len(total), np.nan)
    for part in parts:
        ones = np.ones(len(part.start_s))
        total += np.diff(part.integral(edges_s))
        busy += np.diff(Pieces.constant(part.start_s, part.end_s, ones).integral(edges_s))
        part_low, part_high = part.extremes(edges_s)
        low, high = np.fmin(low, part_low), np.fmax(high, part_high)
    known = busy > 1e-9 * (edges_s[1] - edges_s[0])
    mean = np.where(known, total / np.where(known, busy, 1.0), np.nan)
    return _within(mean, np.where(known, low, np.nan), np.where(known, high, np.nan))


def _within(mean: Floats, low: Floats, high: Floats) -> dict[str, Floats]:
    """The three as a band; the mean, a difference of running sums, is freed of rounding beyond the others."""
    return {"mean": np.clip(mean, low, high), "min": low, "max": high}


def sum_of_means(parts: Sequence[Pieces], edges_s: Floats) -> Floats:
    """Sum over the parts of the time-weighted mean in each bucket; idle time counts as zero."""
    total = np.zeros(len(edges_s) - 1)
    for part in parts:
        total += np.diff(part.integral(edges_s)) / (edges_s[1] - edges_s[0])
    return total


def level(up_s: Floats, down_s: Floats, end_s: float) -> Pieces:
    """How many intervals [up, down) are open at each moment; a `down` of NaN never comes. Ends at end_s."""
    down_s = down_s[~np.isnan(down_s)]
    times = np.concatenate([up_s, down_s])
    order = np.argsort(times, kind="stable")
    change = np.concatenate([np.ones(len(up_s)), -np.ones(len(down_s))])[order]
    times = times[order]
    stop = np.append(times[1:], max(end_s, times[-1])) if len(times) else times
    lasting = stop > times
    return Pieces.constant(times[lasting], stop[lasting], np.cumsum(change)[lasting])


def point_buckets(at_s: Floats, values: Floats, edges_s: Floats) -> dict[str, Floats]:
    """Plain mean, smallest and largest of the values whose time (sorted) falls into each bucket."""
    place = np.searchsorted(at_s, edges_s, side="left")
    place[-1] = len(at_s)
    sums = np.diff(np.concatenate([[0.0], np.cumsum(values)])[place])
    counts = np.diff(place)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    low = _reduce_ranges(np.minimum, values, place[:-1], place[1:])
    return _within(mean, low, _reduce_ranges(np.maximum, values, place[:-1], place[1:]))


def cdf(values: Floats, weights: Ints) -> tuple[Floats, Floats]:
    """(values, percents) of a distribution: every value where they are few, else about 1,000 percentiles.

    The percentiles are denser in the tail, where the questions are.
    """
    if not len(values) or not weights.any():
        return np.empty(0), np.empty(0)
    total = int(weights.sum())
    percents = CDF_PERCENTS if total > len(CDF_PERCENTS) else np.linspace(0, 100, max(total, 2))
    return weighted_percentiles(values, weights, [float(p) for p in percents]), percents


def compact(values: Floats) -> list[float | int | None]:
    """Four significant digits, whole numbers as such, None for NaN: what a page needs and no more."""
    rounded = (None if math.isnan(value) else float(f"{value:.4g}") for value in values.tolist())
    return [int(value) if value is not None and value == int(value) else value for value in rounded]


def banded(name: str, band: dict[str, Floats]) -> dict[str, Any]:
    """One line of a chart: name, mean and, where they differ from it, min and max."""
    line = {"name": name, "mean": compact(band["mean"])}
    if np.nanmax(np.abs(band["max"] - band["min"]), initial=0.0) > 0:
        line |= {"min": compact(band["min"]), "max": compact(band["max"])}
    return line
