"""How many GPUs a plan's best may take, by sampling and by what cost models and prices are off; and what binds it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.results.resources import COMPUTE
from sim.study.plan import errors
from sim.study.plan.fleet import Fleet
from sim.study.plan.glance import Glance
from sim.study.plan.observation import Clause, conditions
from sim.study.plan.refine import Standing

WORTH_NAMING = 0.05
"""A limit at which requests wait for less of the time than so much does not bind."""


def range_of(
    fleet: Fleet,
    clauses: Sequence[Clause],
    band: Mapping[str, Any] | None,
    replicas: int,
    loads: tuple[float, float | None],
    *,
    known: bool,
) -> dict[str, int | None]:
    """GPUs {low, likely, high}; without a simulation that met the SLO (`known` is False) the bound's alone.

    loads: multiples of the rate that so many replicas are known to take, and known not to (None: not known). A
    replica's capacity is then between two values; the errors of step times (`band` of a run) shift the bound, and with
    it both.
    """
    faster, slower = fleet.gains(clauses, band)
    low, high = loads
    if fleet.sizes:
        return _of_layout(fleet, loads, faster, slower, known=known)
    if not known:
        return {"low": max(1, math.ceil(replicas / faster - 1e-9)) * fleet.gpus, "likely": None, "high": None}
    least = replicas if high is None else replicas / high
    fewest = max(1, math.ceil(least / faster - 1e-9))
    most = None if slower <= 0 else max(replicas, math.ceil(replicas / low / slower - 1e-9))
    return {
        "low": min(fewest, replicas) * fleet.gpus,
        "likely": replicas * fleet.gpus,
        "high": None if most is None else most * fleet.gpus,
    }


def _of_layout(
    fleet: Fleet, loads: tuple[float, float | None], faster: float, slower: float, *, known: bool
) -> dict[str, int | None]:
    """The same of a layout of pools, which grows and shrinks by a replica of its smallest kind."""
    step, (low, high) = fleet.least_gpus, loads

    def gpus(times: float) -> int:
        return max(step, math.ceil(fleet.gpus * times / step - 1e-9) * step)

    if not known:
        return {"low": min(fleet.gpus, gpus(1 / faster)), "likely": None, "high": None}
    fewest = gpus(1 / faster if high is None else 1 / high / faster)
    most = None if slower <= 0 else max(fleet.gpus, gpus(1 / low / slower))
    return {"low": min(fewest, fleet.gpus), "likely": fleet.gpus, "high": most}


def usd_range(row: Mapping[str, Any], fleet: Fleet) -> dict[str, float | None] | None:
    """Dollars an hour for the range of GPUs, its ends moved by what the price may be off; None without a price."""
    if fleet.usd_per_hour is None:
        return None
    each, error = fleet.usd_per_hour / fleet.gpus, errors.price(fleet.price_source).share
    gpus = row["gpus"]
    factors = {"low": 1 - error, "likely": 1.0, "high": 1 + error}
    return {name: None if gpus[name] is None else gpus[name] * each * factor for name, factor in factors.items()}


def binds(standing: Standing, fleet: Fleet, clauses: Sequence[Clause], replicas: int) -> dict[str, Any]:
    """What stands in the way of more: `slo`, the clause that is missed first with a little more load or a replica
    less (else the one nearest to its limit), and `limit`, at which requests waited (else what binds the bound)."""
    beyond = [
        glance
        for (number, load), glances in standing.glances.items()
        if (number, load) == (replicas - 1, 1.0) or (number == replicas and load > 1)
        for glance in glances.values()
        if glance.missed
    ]
    whole = standing.whole(replicas)
    names = Counter(_first_missed(glance, clauses) for glance in beyond)
    slo: str | None = None
    if names:
        slo = min(names, key=lambda name: (-names[name], name))
    elif whole:
        slo = nearest_limit(whole, clauses)
    waited = [glance.facts["waiting"] for glance in whole if "waiting" in glance.facts]
    names_waited = dict.fromkeys(name for share in waited for name in share)  # of pools, that of whichever binds
    means = {name: float(np.mean([share.get(name, 0.0) for share in waited])) for name in names_waited}
    limit = max(means, key=lambda name: means[name], default="")
    if means.get(limit, 0.0) < WORTH_NAMING:
        limit = COMPUTE if fleet.bound.binds in {clause.name for clause in clauses} else fleet.bound.binds
    return {"slo": slo, "limit": limit, "waiting": means or None}


def _first_missed(glance: Glance, clauses: Sequence[Clause]) -> str:
    if glance.stopped:
        return glance.stopped
    return conditions(clauses)[int(np.argmax(glance.excess))]


def nearest_limit(glances: Sequence[Glance], clauses: Sequence[Clause]) -> str | None:
    """Of these clauses the one whose own statistic comes nearest to its limit, or is most above it."""
    ratios = {}
    for clause in clauses:
        values = [value for glance in glances if (value := glance.values.get(clause.name)) is not None]
        if values:
            mean = float(np.mean(values))
            ratios[clause.name] = (1 - mean) / clause.share if clause.statistic == "share" else mean / clause.limit_s
    return max(ratios, key=lambda name: ratios[name]) if ratios else None
