"""What the ends of an estimated KV capacity do to a run's answer. It simulates at most twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim.results.binding import kv_limits
from sim.results.metrics import plain
from sim.scenario import Scenario
from sim.serving.run import Result, simulate
from traces.schema import InputError

ENDS = ("least", "most")
STATISTICS = {"ttft_s": ("p50", "p99"), "tpot_s": ("p50", "p99"), "e2e_s": ("p50", "p99")}


def with_ends(result: Result, scenario: Scenario, simulated: Callable[[Scenario], Result] = simulate) -> Result:
    """The result with `kv.ends` in its summary: the figures of the same run with the least and the most KV memory.

    `scenario` is that of the run, before what was derived was spelled out. Empty where the capacity is exact, or does
    not limit the run; an end that cannot run has its reason in place of figures.
    """
    ends = {}
    if kv_limits(result.summary) and scenario.kv.estimate == "expected":
        ends = {end: _figures(scenario, end, simulated) for end in ENDS}
    kv = {**result.summary["kv"], "ends": plain(ends)}
    return result.told({**result.summary, "kv": kv})


def at_end(scenario: Scenario, end: str) -> Scenario:
    """The scenario, and each of its pools, with the KV capacity at this end of the band."""
    pools = {
        name: replace(pool, scenario=replace(pool.scenario, kv=replace(pool.scenario.kv, estimate=end)))
        for name, pool in scenario.pools.items()
    }
    return replace(scenario, kv=replace(scenario.kv, estimate=end), pools=pools)


def _figures(scenario: Scenario, end: str, simulated: Callable[[Scenario], Result]) -> Mapping[str, Any]:
    try:
        summary = simulated(at_end(scenario, end)).summary
    except InputError as refusal:
        return {"cannot_run": str(refusal)}
    goodput = summary.get("goodput")
    return {
        "capacity_tokens": summary["kv"]["capacity_tokens"],
        "preemptions": summary["kv"]["preemptions"],
        "requests_per_s": summary["throughput"]["requests_per_s"],
        "output_tokens_per_s": summary["throughput"]["output_tokens_per_s"],
        **{key: {name: summary[key][name] for name in names} for key, names in STATISTICS.items()},
        "goodput_fraction": goodput["fraction"] if goodput else None,
    }
