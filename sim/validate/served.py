"""The simulation against what a real server did with the same requests, as its benchmark tool wrote it down.

No step of the server is known, so there is no twin check and no split of the error; what the number of KV blocks and
the host's seconds are worth is told instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.cost.step import StepCost
from sim.results.metrics import plain
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.assemble import assemble
from sim.serving.workload import load_trace
from sim.validate.against import Served
from sim.validate.requests import Measures, compare, paired
from sim.validate.retime import Latencies
from sim.validate.run import Validation, WithoutHost
from sim.validate.verdict import Bounds, judge
from traces.schema import InputError, Trace

NUDGE = 0.1


def against(scenario: Scenario, served: Served, bounds: Bounds) -> Validation:
    """Simulate the requests as they came and compare.

    Where the scenario names a trace, its requests (which may share prefixes) are sent at the recorded times.

    Raises:
        InputError: no number of KV blocks; a trace of other requests.
    """
    if not scenario.kv.blocks:
        raise InputError(
            "the number of KV blocks decides when requests wait, so it is not guessed here: give --kv-blocks "
            '(vLLM logs it at its start as "GPU KV cache size", in tokens: divide by the block size)'
        )
    if scenario.workload.laid_anew or scenario.workload.concurrency:
        raise InputError("--against takes the arrivals as they were recorded: leave out rates, stages and users")
    trace = _timed(load_trace(scenario), served) if scenario.workload.trace else served.trace
    scenario = replace(scenario, workload=replace(scenario.workload, sessions=False))
    result = serving.simulate(scenario, trace=trace)
    predicted = Latencies(result.requests, result.steps, result.itl)
    live = served.latencies.measures()
    requests_part = compare([live], predicted.measures())
    verdict = judge(None, None, requests_part, {}, bounds)
    moved = _moved(scenario, trace, predicted.measures())
    document = {
        "twin": {"identical": None, "steps": 0, "first_difference": None},
        "steps": {"model": scenario.cost.profile, "sources": result.summary["cost_sources"]},
        "requests": requests_part | {"paired": paired(served.latencies.requests, result.requests)},
        "attribution": {
            "without_host": compare([live], _again(scenario, trace, WithoutHost(assemble(scenario).cost))),
            "kv_blocks": {"given": scenario.kv.blocks, "moved_by": moved},
        },
        "verdict": {"good": verdict.good, "reason": verdict.reason, "out": list(verdict.out)},
        "lives": 1,
        "died": [],
        "inputs": result.summary["inputs"]
        | {"notes": [*served.notes, _settings(scenario), *result.summary["inputs"]["notes"]]},
    }
    return Validation(plain(document), None, [served.latencies], predicted)


def _settings(scenario: Scenario) -> str:
    engine, kv = scenario.engine, scenario.kv
    return (
        f"The server is taken to batch as {scenario.policy.name} / {scenario.allocator.name} does, with max_num_seqs "
        f"{engine.max_num_seqs:,}, max_num_batched_tokens {engine.max_num_batched_tokens:,} and {kv.blocks:,} blocks "
        f"of {kv.block_tokens} tokens: give what differs (--set engine.max_num_seqs=...)."
    )


def _timed(trace: Trace, served: Served) -> Trace:
    """The trace's requests at the recorded times; both are in order of arrival."""
    ours, theirs = trace.requests, served.trace.requests
    if len(ours) != len(theirs):
        raise InputError(
            f"{trace.path or trace.name} has {len(ours)} requests, and {served.trace.name} results of {len(theirs)}: "
            "they must be of the same requests"
        )
    for name in ("prompt_tokens", "output_tokens"):
        differing = (ours[name].to_numpy() != theirs[name].to_numpy()).nonzero()[0]
        if len(differing):
            at = int(differing[0])
            raise InputError(
                f"{served.trace.name} is of another trace: request {at} has {theirs[name].iat[at]} {name}, and "
                f"{ours[name].iat[at]} in {trace.path or trace.name}"
            )
    return replace(trace, requests=ours.assign(arrival_s=theirs["arrival_s"].to_numpy()))


def _again(scenario: Scenario, trace: Trace, cost: StepCost | None = None) -> Measures:
    result = serving.simulate(scenario, trace=trace, hooks=serving.Hooks(cost=cost))
    return Latencies(result.requests, result.steps, result.itl).measures()


def _moved(scenario: Scenario, trace: Trace, base: Measures) -> dict[str, Any]:
    """What a tenth fewer and a tenth more KV blocks change, as relative changes of the prediction; None where the
    scenario cannot run with so few."""
    changes: dict[str, Any] = {}
    for label, factor in (("fewer", 1 - NUDGE), ("more", 1 + NUDGE)):
        blocks = max(1, round(scenario.kv.blocks * factor))
        try:
            other = _again(replace(scenario, kv=replace(scenario.kv, blocks=blocks)), trace)
        except InputError:
            changes[label] = None
            continue
        pairs = {key: (base[key]["mean"], other[key]["mean"]) for key in ("ttft_s", "tpot_s", "e2e_s")}
        changes[label] = {key: new / old - 1 if old and new is not None else None for key, (old, new) in pairs.items()}
    return changes
