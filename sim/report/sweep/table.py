"""A sweep's points with their axes: which axis is the load, which points may win, what they are called.

It draws nothing and knows no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.report.compare.winners import BEHIND
from sim.report.measures import LatencyUnits, Measure, latency
from sim.report.sweep.points import SWEPT_LATENCIES, Bools, Points, points_of, value_text
from sim.results.percentiles import Floats
from sim.results.units import NONE, percent
from traces.late import pd

# Axes that say how much traffic comes, the likeliest first; else the numeric axis with the most values is the load.
LOADS = ("workload.rate", "workload.rate_scale", "workload.concurrency")
# Of these 0 says "not set": the trace's own times, which are no load of 0.
UNSET_AT_0 = ("workload.rate", "workload.concurrency")


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies: `key` as the scenario writes it, `label` short, `values` in the order asked for."""

    key: str
    label: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in self.values)

    def named(self, value: Any) -> str:
        """The value as it stands in the name of a line: words speak for themselves, numbers need their key."""
        text = value_text(value)
        if text == NONE:
            return f"{self.label} not set"
        return text if isinstance(value, str) and text not in {"on", "off", "auto"} else f"{self.label} {text}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's points with their axes, of which `load` says how much traffic comes; `rows` is the whole table."""

    axes: tuple[Axis, ...]
    load: Axis | None
    points: Points
    seeds: int
    rows: pd.DataFrame
    units: LatencyUnits

    @classmethod
    def of(cls, table: pd.DataFrame, axes: Mapping[str, Sequence[Any]]) -> Sweep:
        """The points of a table as `sim sweep` writes it; axes by dotted key, `seed` not among them."""
        known = {key: _unset(key, values) for key, values in axes.items() if key != "seed" and key in table}
        varied = _axes(known)
        settings = {key: _unset(key, table[key].tolist()) for key in UNSET_AT_0 if key in known}
        points = points_of(table.reset_index(drop=True).assign(**settings), [axis.key for axis in varied])
        seeds = int(table["seed"].nunique()) if len(table) else 0
        sweep = cls(varied, _load(varied), points, seeds, table, LatencyUnits.of([]))
        return replace(sweep, units=_units(sweep))

    @property
    def others(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis != self.load)

    @property
    def good(self) -> Bools:
        """Which points may be offered as best: every run of theirs ended, with a stable queue."""
        fine: Bools = (self.points.failed == 0) & self.points.stable
        return fine

    @property
    def unstable(self) -> int:
        """How many points ran with a queue that grew."""
        return int(((self.points.failed == 0) & ~self.points.stable).sum())

    @property
    def winners(self) -> Bools:
        """Which points may win: of the good ones those that meet the SLO in every run, or all where none was asked."""
        fine: Bools = self.good & ~(self.points.of_limit > 1)
        return fine

    @property
    def asked(self) -> bool:
        """Was an SLO asked?"""
        return not bool(np.isnan(self.points.of_limit).all())

    def nearest(self) -> int | None:
        """Where no good point meets the SLO, the row of the one that comes nearest; None otherwise."""
        if not self.asked or self.winners.any() or not self.good.any():
            return None
        return int(np.nanargmin(np.where(self.good, self.points.of_limit, np.nan)))

    def nearest_words(self) -> str:
        """`nearest: NAME misses ttft_p99 by 40 %`, or nothing where some point meets the SLO or none is stable."""
        row = self.nearest()
        if row is None:
            return ""
        by = percent(float(self.points.of_limit[row]) - 1)
        return f"No stable point meets the SLO; nearest: {self.name(row)} misses {self.points.clause[row]} by {by}."

    def unlike_clients(self) -> str:
        """That some points are behind a front end and others are not, or nothing."""
        if "front_end.busy_s" not in self.rows:
            return ""
        fine = self.rows[self.rows["status"] == "ok"]
        behind = fine["front_end.busy_s"].notna()
        if behind.all():
            return ""
        return f"{int(behind.sum()):,} of {len(fine):,} runs are {BEHIND}"

    def ties(self, measure: Measure, row: int) -> list[int]:
        """Other winners that are not to be told from this one: they read the same, or their seeds' ranges overlap."""
        points, key = self.points, measure.key
        low, high = points.low[key], points.high[key]
        words = self.words(measure, row)
        return [
            other
            for other in np.flatnonzero(self.winners & ~np.isnan(points.mean[key])).tolist()
            if other != row
            and (
                self.words(measure, other) == words
                or (self.seeds > 1 and low[other] <= high[row] and low[row] <= high[other])
            )
        ]

    @property
    def loads(self) -> Floats:
        """The load of each point, NaN where it has no place on an axis (not set, or all at once); there must be one."""
        assert self.load is not None
        loads = np.array(self.points.settings[self.load.key], dtype=np.float64)
        return np.where(np.isinf(loads), np.nan, loads)

    @property
    def varies(self) -> bool:
        points = self.points
        return any(bool((points.high[name] > points.low[name]).any()) for name in points.mean)

    def has(self, measure: Measure) -> bool:
        return bool((~np.isnan(self.points.mean[measure.key])).any())

    def differs(self, measure: Measure) -> bool:
        values = self.points.mean[measure.key]
        return len(np.unique(values[~np.isnan(values)])) > 1

    def known(self, measures: Sequence[Measure]) -> list[Measure]:
        return [measure for measure in measures if self.has(measure)]

    def value(self, measure: Measure, row: int) -> float:
        return float(self.points.mean[measure.key][row])

    def words(self, measure: Measure, row: int) -> str:
        return self.units.words(measure, self.value(measure, row))

    def setting(self, axis: Axis, row: int) -> str:
        return value_text(self.points.settings[axis.key][row])

    def name(self, row: int, axes: Sequence[Axis] | None = None) -> str:
        """What a point is called by its values of the axes (all of them if not given)."""
        chosen = self.axes if axes is None else axes
        return ", ".join(axis.named(self.points.settings[axis.key][row]) for axis in chosen) or "run"

    def best(self, measure: Measure) -> int | None:
        """The row of the best point that may win; None where there is none."""
        values = np.where(self.winners, self.points.mean[measure.key], np.nan)
        if not measure.better or np.isnan(values).all():
            return None
        return int(np.nanargmax(measure.better * values))

    def combinations(self) -> dict[str, list[int]]:
        """The rows of each combination of the axes but the load, by name, in the order of the load."""
        rows_of: dict[str, list[int]] = {}
        for row in range(len(self.points)):
            rows_of.setdefault(self.name(row, self.others), []).append(row)
        if self.load is not None:
            at = self.loads
            order = np.argsort(np.argsort(at, kind="stable"), kind="stable").tolist()  # NaN (not set) comes last
            rows_of = {name: sorted(rows, key=order.__getitem__) for name, rows in rows_of.items()}
        return rows_of


def _units(sweep: Sweep) -> LatencyUnits:
    """The unit of each latency: of the largest p99 of the points that may win; else of the stable ones, else of all."""
    whole = np.ones(len(sweep.points), bool)
    chosen = next((rows for rows in (sweep.winners, sweep.good) if rows.any()), whole)
    tails = {key: sweep.points.mean[latency(key, "p99").key] for key in SWEPT_LATENCIES}
    return LatencyUnits.of({key: {"p99": float(tails[key][row])} for key in tails} for row in np.flatnonzero(chosen))


def _unset(key: str, values: Sequence[Any]) -> Sequence[Any]:
    """The values with NaN where they leave the setting to the trace."""
    return [np.nan if value == 0 else value for value in values] if key in UNSET_AT_0 else values


def _axes(axes: Mapping[str, Sequence[Any]]) -> tuple[Axis, ...]:
    """The axes with labels as short as they can be told apart by."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in axes}
    twice = {label for label, uses in Counter(short.values()).items() if uses > 1}
    return tuple(
        Axis(key, key if label in twice else label, tuple({value_text(value): value for value in axes[key]}.values()))
        for key, label in short.items()
    )


def _load(axes: Sequence[Axis]) -> Axis | None:
    numeric = {axis.key: axis for axis in axes if axis.numeric and len(axis.values) > 1}
    for key in LOADS:
        if key in numeric:
            return numeric[key]
    return max(numeric.values(), key=lambda axis: len(axis.values), default=None)
