"""The numbers of a candidate's line, as means over its whole replications; None where there are none."""

from __future__ import annotations

from collections.abc import Sequence

from sim.study.plan.document import Document, excess_row, mean
from sim.study.plan.glance import Glance
from sim.study.plan.observation import PERCENTS, SHOWN, Clause
from sim.study.plan.ranges import nearest_limit
from sim.study.plan.refine import estimates, met_by
from sim.study.statistics import CONFIDENCE


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
    return {
        **row,
        "requests_per_s": rate,
        "met": met_by(glances),
        "goodput": {"requests_per_s": share * rate, "fraction": share},
        "excess": excess_row(clauses, estimates(glances, CONFIDENCE)),
    }
