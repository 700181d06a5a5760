"""What decode batches of uneven contexts cost beyond even ones of their mean: part of the way to even ones as long as
the longest, by the number of rows. It knows no model and no step.

Few rows leave a kernel waiting for the longest, many fill the chip whatever their lengths: the share depends on their
number above all (LLMServingSim's skew profile is binned by it as well, `profiler/`, `skew_fit`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost.interpolate import Point
from sim.cost.tables import Picked, Table

MEAN, LONGEST = "mean_context_tokens", "max_context_tokens"


class Uneven(NamedTuple):
    """Shares from 0 (work is shared out evenly) to 1 (rows are padded to the longest), by rising numbers of rows."""

    rows: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def at(self, rows: float) -> float:
        """The share of a batch of so many rows: straight between those measured, the nearest's beyond; 0 of none."""
        if not self.rows:
            return 0.0
        above = bisect_left(self.rows, rows)
        if above in (0, len(self.rows)):
            return self.shares[min(above, len(self.rows) - 1)]
        left, right = self.rows[above - 1], self.rows[above]
        low, high = self.shares[above - 1], self.shares[above]
        return low + (high - low) * ((rows - left) / (right - left))


def even_rows(table: Table, picked: Picked) -> npt.NDArray[np.bool_]:
    """Of some rows of a table, which are not of decode rows whose contexts differ."""
    if LONGEST not in table.columns:
        return np.ones(len(picked), np.bool_)
    found: npt.NDArray[np.bool_] = table.numbers(LONGEST)[picked] == table.numbers(MEAN)[picked]
    return found


def measured(table: Table, picked: Picked, even_s: Callable[[Point], float]) -> Uneven:
    """The shares that the uneven ones of a kernel's rows tell; `even_s` prices even ones at a point of the table's
    axes, the first of which is the number of rows.

    Of batches with equally many rows it is the share with the least mean relative error: the median of their shares,
    each weighted by how much it matters.
    """
    rows = picked[~even_rows(table, picked)]
    if not len(rows):
        return Uneven()
    axes = [column.name for column in table.spec.axes]
    means = list(zip(*(table.numbers(axis)[rows].tolist() for axis in axes), strict=True))
    mosts = zip(*(table.numbers(LONGEST if axis == MEAN else axis)[rows].tolist() for axis in axes), strict=True)
    low_s = {point: even_s(point) for point in set(means)}
    told: dict[float, list[tuple[float, float]]] = {}
    for us, mean, most in zip(table.numbers("us")[rows].tolist(), means, mosts, strict=True):
        low, high = 1e6 * low_s[mean], 1e6 * even_s(most)
        if high > low:
            told.setdefault(mean[0], []).append(((us - low) / (high - low), (high - low) / us))
    found = {count: round(min(max(_weighted_median(pairs), 0.0), 1.0), 4) for count, pairs in told.items()}
    return Uneven(tuple(sorted(found)), tuple(found[count] for count in sorted(found)))


def mixed(parts: Sequence[tuple[Uneven, float]]) -> Uneven:
    """Of a kernel priced from several, each of a weight: the mean of their shares."""
    counts = tuple(sorted({count for part, _ in parts for count in part.rows}))
    return Uneven(counts, tuple(sum(weight * part.at(count) for part, weight in parts) for count in counts))


def _weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    """The least value up to which half of the weight lies, of (value, weight)."""
    ranked = sorted(pairs)
    weights = np.cumsum([weight for _, weight in ranked])
    return ranked[int(np.searchsorted(weights, weights[-1] / 2))][0]
