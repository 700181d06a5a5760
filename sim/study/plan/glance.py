"""One replication of a fleet at a rate, boiled down to the few numbers that a plan keeps of it, on disk too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sim.results import metrics
from sim.results.tables import flat
from sim.scenario import as_tables
from sim.study.identity import Made
from sim.study.plan.observation import SHOWN, Window, excesses, latencies
from sim.study.plan.replication import Replication, measure

KEPT = ("bill", "band", "cost_sources", "inputs", "waiting", "kv", "kv_limits")
"""Of the facts of a run."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What a replication showed. One that was ended early has its clause in `stopped`, and nothing else."""

    stopped: str = ""
    excess: tuple[float, ...] = ()
    """Of each clause and of the stability, as `excesses` has them."""
    grew: bool = False
    values: Mapping[str, float | None] = field(default_factory=dict)
    """By clause its own statistic: seconds, or the share of requests that meet every limit."""
    latencies: Mapping[str, Mapping[str, float] | None] = field(default_factory=dict)
    good: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        return bool(self.stopped) or any(excess > 0 for excess in self.excess)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What to simulate, by whatever process; `whole` is never ended early."""

    replication: Replication
    window: Window
    whole: bool


def glimpse(asked: Glimpse) -> Glance:
    """Raises InputError where the scenario cannot be run."""
    point = replace(asked.replication, window=None if asked.whole else asked.window)
    observation = measure(point)
    if observation.stopped:
        return Glance(observation.stopped)
    window, clauses = asked.window, point.clauses
    plain: Any = metrics.plain(observation.facts)
    return Glance(
        "",
        tuple(float(excess) for excess in excesses(observation, clauses, window)),
        observation.growth(window).unstable,
        {clause.name: observation.statistic(clause, window) for clause in clauses},
        {column: latencies(observation.counted(column, window)) for column in SHOWN},
        observation.good_share(clauses, window),
        {name: plain[name] for name in KEPT if name in plain},
    )


def to_line(key: str, glance: Glance) -> bytes:
    return (json.dumps({"key": key, **asdict(glance)}, allow_nan=False) + "\n").encode()


def of_line(entry: dict[str, Any]) -> Glance:
    """Raises TypeError or KeyError for what is no glance."""
    return Glance(**{**entry, "excess": tuple(entry["excess"])})


def key_of(asked: Glimpse, made: Made) -> str:
    """The identity of what a glance is made of: settings, files, code, and which replication.

    That it may be ended early is no part of it: one that was not ended is the same as a whole one.
    """
    point = asked.replication
    told: Sequence[Any] = (
        made,
        sorted((name, repr(value)) for name, value in flat(as_tables(point.base)).items()),
        [point.rate_per_s, point.replication, point.sessions],
        [(clause.name, clause.statistic, clause.share, repr(clause.limits)) for clause in point.clauses],
        [asked.window.skip, asked.window.drop],
    )
    return hashlib.sha256(json.dumps(told, allow_nan=False).encode()).hexdigest()
