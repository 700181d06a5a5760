"""The numbers of a candidate's line, as means over its whole replications; None where there are none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sim.study.plan.glance import PERCENTS, SHOWN, Glance
from sim.study.plan.observation import STABILITY, Clause
from sim.study.plan.ranges import nearest_limit
from sim.study.plan.refine import estimates, met_by
from sim.study.statistics import CONFIDENCE

Document = dict[str, Any]


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def money(glances: Sequence[Glance], usd_per_hour: float | None, replicas: int) -> Document:
    """Dollars and joules as means over replications; `usd_per_hour` is that of one replica."""
    bills = [glance.facts.get("bill", {}) for glance in glances]
    first = bills[0] if bills else {}
    return {
        "usd_per_hour": None if usd_per_hour is None else usd_per_hour * replicas,
        "usd_per_million_tokens": mean(bill.get("usd_per_million_tokens") for bill in bills),
        "joules_per_million_tokens": mean(bill.get("joules_per_million_tokens") for bill in bills),
        "joules_upper_bound": first.get("joules_upper_bound"),
        "price_source": first.get("price_source"),
        "power_source": first.get("power_source"),
    }


def shown(glances: Sequence[Glance], clauses: Sequence[Clause]) -> Document:
    """Latencies at the rate, the SLO's own metrics with the one that is nearest to its limit, and the queue."""
    if not glances:
        nothing: Document = dict.fromkeys((*SHOWN, "goodput", "stable", "slo_values", "slo_nearest"))
        return {**nothing, "replications": 0}
    stable = 2 * sum(glance.grew for glance in glances) <= len(glances)
    return {
        **{column: _latencies(glances, column) if stable else None for column in SHOWN},
        "goodput": {"fraction": mean(glance.good for glance in glances)},
        "stable": stable,
        "slo_values": {clause.name: mean(glance.values.get(clause.name) for glance in glances) for clause in clauses},
        "slo_nearest": nearest_limit(glances, clauses),
        "replications": len(glances),
    }


def _latencies(glances: Sequence[Glance], column: str) -> dict[str, float | None] | None:
    known = [some for glance in glances if (some := glance.latencies.get(column)) is not None]
    return {name: mean(some[name] for some in known) for name, _ in PERCENTS} if known else None


def rate_row(rate: float, glances: Sequence[Glance], clauses: Sequence[Clause]) -> Document:
    """What the replications at one rate gave, in the form of the rows of a capacity's plan."""
    row = shown(glances, clauses)
    share = row["goodput"]["fraction"]
    names = [*(clause.name for clause in clauses), STABILITY]
    return {
        **row,
        "requests_per_s": rate,
        "met": met_by(glances),
        "goodput": {"requests_per_s": share * rate, "fraction": share},
        "excess": {
            name: {"mean": excess.mean, "ci95": [excess.low, excess.high]}
            for name, excess in zip(names, estimates(glances, CONFIDENCE), strict=True)
        },
    }
