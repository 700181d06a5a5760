"""One run among several to be compared, cut down to what a comparison shows: the tables need not stay in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.report.run.charts import LATENCY_TEXTS, population
from sim.report.run.sentences import warnings_of
from sim.report.run.timeline import TimeAxis, kv_stack, queue_levels
from sim.results import series
from sim.results.kv import KV_KINDS
from sim.results.paired import Paired, PerRequest, paired
from sim.results.percentiles import Floats
from sim.results.result import Run
from sim.results.stability import queue_warning
from sim.results.tables import flat
from sim.scenario import Scenario, as_tables, dump
from traces.schema import InputError

MOST_BUCKETS = 2048
QUEUE = ("waiting", "serving")


@dataclass(frozen=True, slots=True)
class Timeline:
    """Means of several quantities over time, in buckets of `width_s` from the first arrival on.

    The width is a power of two, so that the buckets of any two runs fall together: `coarser` is exact. After the
    last bucket the run has ended; within it, what is left of the bucket counts as idle.
    """

    width_s: float
    means: Mapping[str, Floats]

    @property
    def buckets(self) -> int:
        return len(next(iter(self.means.values())))

    @property
    def end_s(self) -> float:
        return self.buckets * self.width_s

    def coarser(self, width_s: float) -> Timeline:
        """The same in buckets that are as wide or wider by a power of two."""
        every = round(width_s / self.width_s)
        missing = -self.buckets % every
        # What follows the end is idle: nothing waits, nothing is held.
        idle = {"free": sum(float(self.means[kind][-1]) for kind in KV_KINDS)}
        means = {}
        for name, values in self.means.items():
            whole = np.append(values, np.full(missing, idle.get(name, 0.0)))
            means[name] = whole.reshape(-1, every).mean(axis=1)
        return Timeline(width_s, means)


@dataclass(frozen=True, slots=True)
class Variant:
    """What a comparison keeps of a run. `settings` are those of its scenario by dotted key, `scenario` is its TOML.

    `cdfs` holds (seconds, percent at or below) for each latency that has values; `timeline` is None without a step;
    `per_request` is what pairs it with other runs of the same requests.
    """

    name: str
    summary: Mapping[str, Any]
    cdfs: Mapping[str, tuple[Floats, Floats]]
    timeline: Timeline | None
    warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    scenario: str = ""
    per_request: PerRequest | None = None

    @classmethod
    def of(cls, name: str, run: Run) -> Variant:
        """The digest of a run; its scenario is kept where the run has one."""
        queue = queue_warning(run.requests)
        scenario = getattr(run, "scenario", None)
        known = [key for key in LATENCY_TEXTS if run.summary[key]["mean"] is not None]
        return cls(
            name,
            run.summary,
            {key: series.cdf(*population(run.requests, run.itl, key)) for key in known},
            _timeline(run),
            [*warnings_of(run.summary), *([queue] if queue else [])],
            flat(as_tables(scenario)) if isinstance(scenario, Scenario) else {},
            dump(scenario) if isinstance(scenario, Scenario) else "",
            PerRequest.of(run.requests),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    name: str
    reason: str


Row = Variant | Failure


def attempt(name: str, run: Callable[[], Run]) -> Row:
    """Run one variant and keep its digest; what the user can mend becomes the reason of a failure."""
    try:
        return Variant.of(name, run())
    except InputError as error:
        return Failure(name, str(error))


def differences(rows: Sequence[Row]) -> dict[str, Paired]:
    """By name each variant against the first that ran, paired by request; nothing for the first itself."""
    ran = {row.name: row.per_request for row in rows if isinstance(row, Variant) and row.per_request is not None}
    first, *others = ran or [""]
    return {name: paired(first, ran[first], ran[name]) for name in others}


def _timeline(run: Run) -> Timeline | None:
    """KV classes, waiting and served requests over the run, in at most `MOST_BUCKETS` buckets."""
    if not len(run.steps):
        return None
    clock = TimeAxis.of(run)
    length_s = max(clock.end_s - clock.start_s, 1e-6)
    width_s = 2.0 ** math.ceil(math.log2(length_s / MOST_BUCKETS))
    edges_s: Floats = clock.start_s + width_s * np.arange(math.ceil(length_s / width_s) + 1, dtype=np.float64)
    levels = zip(QUEUE, queue_levels(run.requests, clock.end_s), strict=True)
    counts = {name: series.sum_of_means([pieces], edges_s) for name, pieces in levels}
    return Timeline(width_s, {**kv_stack(run.steps, edges_s), **counts})
