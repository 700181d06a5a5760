"""The words and numbers of a plan's answer, as a document that JSON can hold; docs/plan.md explains them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sim.results import metrics
from sim.scenario import Scenario
from sim.serving.fleet import shared
from sim.study.plan.observation import SHOWN, Clause, Window, conditions, latencies
from sim.study.plan.rates import AtRate
from sim.study.plan.replication import source
from sim.study.plan.search import Capacity, UnmetError
from sim.study.statistics import Estimate
from traces.version import product_version

Document = dict[str, Any]


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

    def shown(column: str) -> dict[str, float] | None:
        counted = [observation.counted(column, window) for observation in at.observations]
        return None if at.unstable else latencies(np.concatenate(counted))

    share = float(np.mean([observation.good_share(clauses, window) for observation in at.observations]))
    return {
        "requests_per_s": at.rate_per_s,
        "replications": len(at.observations),
        "met": at.met,
        "stable": not at.unstable,
        **{column: shown(column) for column in SHOWN},
        "goodput": {"requests_per_s": share * at.rate_per_s, "fraction": share},
        "excess": excess_row(clauses, at.excess),
    }


def excess_row(clauses: Sequence[Clause], excess: Sequence[Estimate]) -> Document:
    """The mean excess of each condition with its interval, by name."""
    return {
        name: {"mean": estimate.mean, "ci95": [estimate.low, estimate.high]}
        for name, estimate in zip(conditions(clauses), excess, strict=True)
    }


def row_of(scenario: Scenario, capacity: Capacity) -> Document:
    """The configuration with its price, at its capacity: means over the replications at the rate nearest below it."""
    facts = [observation.facts for observation in nearest_below(capacity).observations]
    bill = facts[0].get("bill", {})
    usd_per_hour = None if bill.get("usd_per_gpu_hour") is None else bill["usd_per_gpu_hour"] * bill["gpus"]
    replicas, gpus = replicas_of(scenario), gpus_of(scenario)
    return {
        **configuration(scenario),
        "replicas": replicas,
        "gpus": dict.fromkeys(("low", "likely", "high"), gpus),
        "gpu_count": gpus,
        "capacity_per_replica": capacity.interval.mean / replicas,
        "ci95_per_replica": [capacity.interval.low / replicas, capacity.interval.high / replicas],
        **money(facts, usd_per_hour),
    }


def nearest_below(capacity: Capacity) -> AtRate:
    """The highest rate that was tried and is not above the capacity."""
    below = [at for at in capacity.rates if at.rate_per_s <= capacity.interval.mean]
    return below[-1] if below else capacity.rates[0]


def replicas_of(scenario: Scenario) -> int:
    """Of all its pools."""
    return sum(kind.replicas for kind in scenario.kinds)


def gpus_of(scenario: Scenario) -> int:
    return sum(kind.replicas * kind.parallel.gpus for kind in scenario.kinds)


def configuration(scenario: Scenario) -> Document:
    """What was chosen; of unlike pools the numbers are None and the names "mixed", and
    `replicas_by_pool` has how many of each there are."""
    kinds = scenario.kinds
    told: Document = {
        "model": shared(kind.model for kind in kinds),
        "gpu": shared(kind.gpu for kind in kinds),
        "tp": shared(kind.tp for kind in kinds),
        "policy": shared(kind.policy.name for kind in kinds),
        "allocator": shared(kind.allocator.name for kind in kinds),
        "kv_dtype": shared(kind.kv.dtype for kind in kinds),
        "weights": shared(kind.weights for kind in kinds),
    }
    if scenario.pools:
        told["replicas_by_pool"] = {name: pool.count for name, pool in scenario.pools.items()}
    return told


def money(facts: Sequence[Mapping[str, Any]], usd_per_hour: float | None) -> Document:
    """Dollars and joules as means over runs; None where no price or no power is known, or there is no run."""
    bills = [each.get("bill", {}) for each in facts]
    first = bills[0] if bills else {}
    return {
        "usd_per_hour": usd_per_hour,
        "usd_per_million_tokens": mean(bill.get("usd_per_million_tokens") for bill in bills),
        "joules_per_million_tokens": mean(bill.get("joules_per_million_tokens") for bill in bills),
        "joules_upper_bound": first.get("joules_upper_bound"),
        "price_source": first.get("price_source"),
        "power_source": first.get("power_source"),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def unmet_words(unmet: UnmetError, clauses: Sequence[Clause]) -> Document:
    """The best that could be had: the missed clause at the lowest load."""
    observation, window = unmet.observation, Window(len(unmet.observation) // 10)
    clause = next((clause for clause in clauses if clause.name == unmet.clause), clauses[0])
    rate = f"{observation.rate_per_s:.3g} requests/s"
    best = {clause.name: observation.statistic(clause, window)}
    if clause.statistic == "share":
        shortfall = f"{best[clause.name]:.2%} of the requests meet every limit, not {1 - clause.share:.2%}"
    else:
        shortfall = f"{clause.name} is {best[clause.name]:.3g} s, above {clause.limit_s:g} s"
    return {
        "capacity": None,
        "best": None,
        "candidates": [],
        "rates": [],
        "at_lowest_load": {"requests_per_s": observation.rate_per_s, **best},
        "reason": f"No load meets the SLO: at the lowest load tried, {rate}, {shortfall}.",
        "notes": [],
    }


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
        "engine": facts.get("engine", scenario.engine.preset),
        **configuration(scenario),
        **({"pools": facts["pools"]} if "pools" in facts else {}),
        "seed": scenario.seed,
        "cost_sources": known.get("cost_sources"),
        "band": known.get("band"),
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
