"""The words and numbers of a plan's answer, as a document that JSON can hold; docs/plan.md explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.results import metrics
from sim.results.percentiles import Floats
from sim.scenario import Scenario
from sim.study.plan.observation import STABILITY, Clause, Observation, Window
from sim.study.plan.rates import AtRate
from sim.study.plan.replication import source
from sim.study.plan.search import Capacity, UnmetError
from traces.version import product_version

Document = dict[str, Any]
SHOWN = ("ttft_s", "tpot_s", "e2e_s")
PERCENTS = (("p50", 50), ("p90", 90), ("p99", 99))


def slo_of(scenario: Scenario, attainment: float | None) -> Document:
    limits: Document = {limit.name: limit.limit_s for limit in metrics.parse_slo(scenario.slo)}
    return limits if attainment is None else {**limits, "attainment": attainment}


def capacity_words(capacity: Capacity, replicas: int) -> Document:
    interval = capacity.interval
    return {
        "requests_per_s": interval.mean,
        "ci95": [interval.low, interval.high],
        "half_width": interval.half_width,
        "relative": interval.relative,
        "narrow": capacity.narrow,
        "bound_by": capacity.bound_by,
        "replicas": replicas,
    }


def warm_up_words(capacity: Capacity) -> Document:
    return {
        "rule": "MSER-5 of the mean over replications; at least a tenth and the 90th percentile of E2E",
        "settled": capacity.settled,
        "requests_cut": capacity.window.skip,
        "requests_cut_at_end": capacity.window.drop,
    }


def rate_row(at: AtRate, clauses: Sequence[Clause], window: Window) -> Document:
    """What the replications at one rate gave; latencies only of a queue that does not grow."""
    values = {column: _counted(at, window, column) for column in SHOWN}
    latencies = {
        column: {name: float(np.percentile(some, percent)) for name, percent in PERCENTS}
        if len(some) and not at.unstable
        else None
        for column, some in values.items()
    }
    met = [good_share(observation, clauses, window) for observation in at.observations]
    share = float(np.mean(met))
    names = [*(clause.name for clause in clauses), STABILITY]
    return {
        "requests_per_s": at.rate_per_s,
        "replications": len(at.observations),
        "met": at.met,
        "stable": not at.unstable,
        **latencies,
        "goodput": {"requests_per_s": share * at.rate_per_s, "fraction": share},
        "excess": {
            name: {"mean": excess.mean, "ci95": [excess.low, excess.high]}
            for name, excess in zip(names, at.excess, strict=True)
        },
    }


def _counted(at: AtRate, window: Window, column: str) -> Floats:
    """One latency of the requests that count, of all replications; without NaN."""
    values = np.concatenate(
        [observation.values[column][window.slice(len(observation))] for observation in at.observations]
    )
    known: Floats = values[~np.isnan(values)]
    return known


def good_share(observation: Observation, clauses: Sequence[Clause], window: Window) -> float:
    """The share of requests that meet every limit by their own values (goodput)."""
    return 1 - observation.share_over([limit for clause in clauses for limit in clause.limits], window)


def row_of(scenario: Scenario, capacity: Capacity) -> Document:
    """The configuration with its price, at its capacity: means over the replications at the rate nearest below it."""
    below = [at for at in capacity.rates if at.rate_per_s <= capacity.interval.mean] or list(capacity.rates[:1])
    return {
        **configuration(scenario),
        "replicas": scenario.replicas,
        "gpus": dict.fromkeys(("low", "likely", "high"), scenario.replicas * scenario.tp),
        "gpu_count": scenario.replicas * scenario.tp,
        "capacity_per_replica": capacity.interval.mean / scenario.replicas,
        "ci95_per_replica": [capacity.interval.low / scenario.replicas, capacity.interval.high / scenario.replicas],
        **money(below[-1].observations),
    }


def configuration(scenario: Scenario) -> Document:
    return {
        "model": scenario.model,
        "gpu": scenario.gpu,
        "tp": scenario.tp,
        "policy": scenario.policy.name,
        "allocator": scenario.allocator.name,
        "kv_dtype": scenario.kv.dtype,
        "weights": scenario.weights,
    }


def money(observations: Sequence[Observation]) -> Document:
    """Dollars and joules as means over runs; None where no price or no power is known."""
    bills = [observation.facts.get("bill", {}) for observation in observations]
    first = bills[0] if bills else {}
    price = first.get("usd_per_gpu_hour")
    return {
        "usd_per_hour": None if price is None else price * first["gpus"],
        "usd_per_million_tokens": _mean([bill.get("usd_per_million_tokens") for bill in bills]),
        "joules_per_million_tokens": _mean([bill.get("joules_per_million_tokens") for bill in bills]),
        "joules_upper_bound": first.get("joules_upper_bound"),
        "price_source": first.get("price_source"),
        "power_source": first.get("power_source"),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def unmet_words(unmet: UnmetError, clauses: Sequence[Clause]) -> Document:
    """The best that could be had: the missed clause at the lowest load."""
    observation, window = unmet.observation, Window(len(unmet.observation) // 10)
    clause = next((clause for clause in clauses if clause.name == unmet.clause), clauses[0])
    rate = f"{observation.rate_per_s:.3g} requests/s"
    if clause.statistic == "share":
        share = good_share(observation, clauses, window)
        best = {"goodput": share}
        shortfall = f"{share:.2%} of the requests meet every limit, not {1 - clause.share:.2%}"
        reason = f"at the lowest load tried, {rate}, {shortfall}"
    else:
        value_s = lowest_s(observation, clause, window)
        best = {clause.name: value_s}
        reason = f"at the lowest load tried, {rate}, {clause.name} is {value_s:.3g} s, above {clause.limit_s:g} s"
    return {
        "capacity": None,
        "best": None,
        "candidates": [],
        "rates": [],
        "at_lowest_load": {"requests_per_s": observation.rate_per_s, **best},
        "reason": f"No load meets the SLO: {reason}.",
        "notes": [],
    }


def lowest_s(observation: Observation, clause: Clause, window: Window) -> float:
    """A clause's statistic in the requests that count (of gaps between tokens, each request's longest)."""
    limit = clause.limits[0]
    values = observation.values[metrics.REQUEST_COLUMNS[limit.metric]][window.slice(len(observation))]
    values = values[~np.isnan(values)]
    if clause.statistic in ("mean", "max"):
        return float(getattr(values, clause.statistic)())
    return float(np.percentile(values, float(clause.statistic[1:])))


def inputs_of(scenario: Scenario, known: Mapping[str, Any]) -> Document:
    """What was asked of what; `known` are facts of one of its runs, as an observation has them."""
    facts = known.get("inputs", {})
    arrivals = "poisson" if scenario.workload.arrivals == "trace" else scenario.workload.arrivals
    return {
        "trace": facts.get("trace", scenario.workload.trace),
        "trace_kind": facts.get("trace_kind"),
        "requests_in_trace": len(source(scenario.workload)),
        "arrivals": arrivals,
        "arrivals_cv": scenario.workload.arrivals_cv,
        "profile": scenario.cost.profile,
        "engine": scenario.engine.name,
        **configuration(scenario),
        "seed": scenario.seed,
        "cost_sources": known.get("cost_sources"),
        "version": product_version(),
    }


def cost_of(row: Document) -> tuple[float, float]:
    """What decides: money where it is known, else GPUs; then latency."""
    price = row["usd_per_hour"]
    return (row["gpu_count"] if price is None else price, (row["e2e_s"] or {}).get("p50", math.inf))


def mark_pareto(table: Sequence[Document]) -> None:
    """`pareto`: no other candidate that meets the SLO is both cheaper and faster (p99 of TTFT, median of E2E)."""

    def measures(row: Document) -> tuple[float, float, float]:
        return (cost_of(row)[0], row["ttft_s"]["p99"], row["e2e_s"]["p50"])

    meeting = [row for row in table if row["status"] in ("best", "meets") and row["ttft_s"] and row["e2e_s"]]
    for row in table:
        row["pareto"] = row in meeting and not any(
            measures(other) != measures(row)
            and all(a <= b for a, b in zip(measures(other), measures(row), strict=True))
            for other in meeting
        )
