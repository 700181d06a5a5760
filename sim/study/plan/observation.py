"""What one replication showed, request by request, and by how much it misses each clause of an SLO. It runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.metrics import REQUEST_COLUMNS, Limit
from sim.study.statistics import GROWTH_ALLOWED, Estimate, Growth, growth
from traces.schema import InputError

Floats = npt.NDArray[np.float64]
STABILITY = "stability"
SHOWN = ("ttft_s", "tpot_s", "e2e_s")
"""Latencies that a plan's tables show."""
PERCENTS = (("p50", 50), ("p90", 90), ("p99", 99))
FEWEST_BEYOND = 10
"""A percentile is asked only of a trace that has so many requests beyond it."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which requests count, in order of arrival: neither the first `skip` (warm-up) nor the last `drop` (the end of
    the run, where the load falls while they are served)."""

    skip: int
    drop: int = 0

    def slice(self, count: int) -> slice:
        """Of so many requests, those that count."""
        return slice(min(self.skip, count - 1), max(count - self.drop, min(self.skip, count - 1) + 1))


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition: `share` of the requests (or of all gaps between tokens) may be over all `limits`' seconds.

    A `statistic` of mean or max asks for these instead. The name `goodput` stands for several limits together, each on
    the request's own value.
    """

    name: str
    limits: tuple[Limit, ...]
    statistic: str
    share: float = 0.0

    @property
    def limit_s(self) -> float:
        """The limit in seconds, where there is one only."""
        return self.limits[0].limit_s


def clauses_of(slo: Sequence[Limit], attainment: float | None = None) -> tuple[Clause, ...]:
    """The conditions of an SLO; with an attainment one: so many of the requests meet all limits by their own values.

    Raises InputError for an attainment that is no share, or an SLO without a limit.
    """
    if not slo:
        raise InputError("a plan needs an SLO, such as --slo ttft_p99=0.5,tpot_p99=0.05")
    if attainment is not None:
        if not 0 < attainment < 1:
            raise InputError(f"attainment is {attainment}; it must lie between 0 and 1, such as 0.99")
        return (Clause("goodput", tuple(slo), "share", round(1 - attainment, 12)),)
    return tuple(
        Clause(limit.name, (limit,), limit.statistic, 1 - float(limit.statistic[1:]) / 100)
        if limit.statistic.startswith("p")
        else Clause(limit.name, (limit,), limit.statistic)
        for limit in slo
    )


def conditions(clauses: Iterable[Clause]) -> list[str]:
    """What `excesses` tells of, by name: the clauses, and the queue's stability last."""
    return [*(clause.name for clause in clauses), STABILITY]


def requests_needed(clauses: Sequence[Clause]) -> int:
    """The fewest requests that can show these percentiles: ten beyond the rarest."""
    shares = [clause.share for clause in clauses if clause.share > 0]
    return math.ceil(FEWEST_BEYOND / min(shares) - 1e-9) if shares else 2 * FEWEST_BEYOND


@dataclass(frozen=True, slots=True)
class Gaps:
    """Of each request the gaps between its tokens: how many, their sum, and how many exceed each limit asked for."""

    count: Floats
    sum_s: Floats
    over: Mapping[float, Floats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """One replication: arrays by request, in the order in which they were due; NaN where a request has no value.

    `due_s` is when the trace has it arrive; `arrival_s` when it did, which differs for a turn that waited for an
    answer. `stopped` names the clause that was certain to be missed when the run was ended; the arrays are empty then.
    """

    rate_per_s: float
    replication: int
    due_s: Floats
    arrival_s: Floats
    finish_s: Floats
    work_tokens: Floats
    values: Mapping[str, Floats]
    """By column of docs/metrics.md: queue_s, ttft_s, tpot_s, e2e_s, max_itl_s."""
    gaps: Gaps | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Parts of the run's summary: the bill, KV memory, where the costs are from."""
    stopped: str = ""
    wall_s: float = 0.0

    def __len__(self) -> int:
        return len(self.due_s)

    def growth(self, window: Window) -> Growth:
        return grown(self.due_s, self.arrival_s, self.finish_s, self.work_tokens, window)

    def counted(self, column: str, window: Window) -> Floats:
        """The values of the requests that count, without those that have none."""
        values = self.values[column][window.slice(len(self))]
        known: Floats = values[~np.isnan(values)]
        return known

    def share_over(self, limits: Iterable[Limit], window: Window) -> float:
        """The share of requests that are over any of these limits by their own values."""
        over = [self.values[REQUEST_COLUMNS[limit.metric]] > limit.limit_s for limit in limits]
        return float(np.any(over, axis=0)[window.slice(len(self))].mean())

    def good_share(self, clauses: Iterable[Clause], window: Window) -> float:
        """The share of requests that meet every limit of these clauses by their own values (goodput)."""
        return 1 - self.share_over([limit for clause in clauses for limit in clause.limits], window)

    def statistic(self, clause: Clause, window: Window) -> float | None:
        """The clause's statistic over the requests that count (of gaps between tokens, each request's longest).

        In seconds, or the share that meets every limit; None where no request has a value.
        """
        if clause.statistic == "share":
            return self.good_share([clause], window)
        values = self.counted(REQUEST_COLUMNS[clause.limits[0].metric], window)
        if not len(values):
            return None
        if clause.statistic in ("mean", "max"):
            return float(getattr(values, clause.statistic)())
        return float(np.percentile(values, float(clause.statistic[1:])))


def grown(due_s: Floats, arrival_s: Floats, finish_s: Floats, work: Floats, window: Window) -> Growth:
    """The growth of the backlog between the first and the last time at which a request that counts is due."""
    part = due_s[window.slice(len(due_s))]
    return growth(arrival_s, finish_s, work, float(part[0]), float(part[-1]))


def excesses(observation: Observation, clauses: Sequence[Clause], window: Window) -> Floats:
    """By how much each clause is missed, and last the stability of the queue; 0 or less: it is met.

    Of a percentile, the share of requests over the limit less the share that may be: so "p99 <= limit" is "at most
    1 % are over it", which is unbiased in a finite run, as a percentile is not. Of mean and max, the ratio to the
    limit less 1. Of stability, the growth of the backlog as a share of the work that came, less what is allowed.
    """
    missed = [_excess(observation, clause, window) for clause in clauses]
    return np.array([*missed, observation.growth(window).share - GROWTH_ALLOWED])


def _excess(observation: Observation, clause: Clause, window: Window) -> float:
    if clause.statistic == "share":
        return observation.share_over(clause.limits, window) - clause.share
    limit = clause.limits[0]
    if limit.metric == "itl" and clause.statistic != "max" and observation.gaps is not None:
        return _gap_excess(observation.gaps, clause, window.slice(len(observation)))
    values = observation.counted(REQUEST_COLUMNS[limit.metric], window)
    if not len(values):
        return -clause.share
    if clause.statistic in ("mean", "max"):
        return float(getattr(values, clause.statistic)()) / limit.limit_s - 1
    return float((values > limit.limit_s).mean()) - clause.share


def _gap_excess(gaps: Gaps, clause: Clause, part: slice) -> float:
    """Of all gaps between tokens, as the summary's itl_s counts them."""
    count = float(gaps.count[part].sum())
    if not count:
        return -clause.share
    if clause.statistic == "mean":
        return float(gaps.sum_s[part].sum()) / count / clause.limit_s - 1
    return float(gaps.over[clause.limit_s][part].sum()) / count - clause.share


def verdict(excess: Floats, clauses: Sequence[Clause]) -> str:
    """The first clause that is missed ("stability" last), or nothing."""
    missed = np.flatnonzero(excess > 0)
    return conditions(clauses)[missed[0]] if len(missed) else ""


def decided(excess: Sequence[Estimate]) -> bool | None:
    """Is every condition met, by these intervals of its excess? None where they cannot say."""
    if all(estimate.high <= 0 for estimate in excess):
        return True
    return False if any(estimate.low > 0 for estimate in excess) else None


def latencies(values: Floats) -> dict[str, float] | None:
    """The percentiles that a plan's tables show; None of nothing."""
    return {name: float(np.percentile(values, percent)) for name, percent in PERCENTS} if len(values) else None
