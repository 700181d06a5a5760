"""The simulation against what a real server did with the same requests, as its benchmark tool wrote it down.

No step of the server is known, so there is no twin check and no split of the error; what the number of KV blocks and
the host's seconds are worth is told instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sim.cost.step import StepCost
from sim.results.metrics import plain
from sim.scenario import Scenario, with_front_end
from sim.serving import run as serving
from sim.serving.assemble import assemble
from sim.serving.hooks import Hooks
from sim.specs.front_end import OFF, FrontEndSettings
from sim.validate.against.tables import Served
from sim.validate.requests import Measures, beside, compare, paired
from sim.validate.retime import Latencies
from sim.validate.run import Validation, WithoutHost
from sim.validate.sent import Sent, sent
from sim.validate.verdict import Bounds, judge
from traces.late import pd
from traces.schema import InputError, Trace

NUDGE = 0.1


def against(scenario: Scenario, served: Served, bounds: Bounds) -> Validation:
    """Simulate the requests as they came, or as the tool was asked to send them, and compare.

    Where the scenario names a trace, its requests (which may share prefixes) are sent at the recorded times.

    Raises:
        InputError: no number of KV blocks; what `sent` raises.
    """
    if not scenario.kv.blocks:
        raise InputError(
            "the number of KV blocks decides when requests wait, so it is not guessed here: give --kv-blocks "
            '(vLLM logs it at its start as "GPU KV cache size", in tokens: divide by the block size)'
        )
    work = sent(scenario, served)
    scenario, trace = _placed(work.scenario, served), work.trace
    result = serving.simulate(scenario, trace=trace)
    predicted = _seen(served, result)
    live = served.measures()
    compared = beside(live, served.stated, predicted, complete=served.complete)
    verdict = judge(None, None, compared, {}, _judging(served, bounds))
    moved = _moved(scenario, trace, served, predicted.measures())
    notes = [
        *served.notes,
        *work.notes,
        _whose(served, work.scenario),
        *_most_at_once(work, result.requests),
        _settings(scenario),
    ]
    document = {
        "twin": {"identical": None, "steps": 0, "first_difference": None},
        "steps": {"model": scenario.cost.profile, "sources": result.summary["cost_sources"]},
        "requests": compared | _paired(served, predicted),
        "attribution": {
            "without_host": compare([live], _again(scenario, trace, served, WithoutHost(assemble(scenario).cost))),
            "kv_blocks": {"given": scenario.kv.blocks, "moved_by": moved},
        },
        "verdict": {"good": verdict.good, "reason": verdict.reason, "out": list(verdict.out)},
        "lives": 1,
        "died": [],
        "inputs": result.summary["inputs"]
        | {"notes": list(dict.fromkeys([*notes, *result.summary["inputs"]["notes"]]))},
    }
    live_runs = [served.latencies] if served.latencies is not None else []
    return Validation(plain(document), None, live_runs, predicted)


def _judging(served: Served, bounds: Bounds) -> Bounds:
    """The bounds; of a file of statistics every one that it states is judged, since it may have none of the usual."""
    if served.complete:
        return bounds
    most = max(bounds.requests.values())
    told = [key for key in served.stated if key[0] != "duration_s" and key[1] != "max"]
    return replace(bounds, requests=dict(bounds.requests) | dict.fromkeys(told, most))


def _placed(scenario: Scenario, served: Served) -> Scenario:
    """The scenario without a front end, where requests come at times that the engine wrote down: they are behind it."""
    behind = served.measured_at == "engine" and served.load is None
    return with_front_end(scenario, FrontEndSettings(OFF)) if behind else scenario


def _whose(served: Served, scenario: Scenario) -> str:
    """Whose latencies are compared, in a sentence."""
    front_end = scenario.front_end
    if served.measured_at == "engine":
        behind = ", and requests come to it when they did, behind any front end" if served.load is None else ""
        return f"The file has the engine's latencies: compared with the engine's{behind}."
    if front_end.on:
        return f"The file has a client's latencies: compared with a client's, behind the front end {front_end.name}."
    return (
        "The file has a client's latencies, and no front end is simulated, so that HTTP, tokenising and streaming take "
        "no time here (--front-end)."
    )


def _seen(served: Served, result: serving.Result) -> Latencies:
    """What the file measured, a client's latencies or the engine's, as predicted."""
    requests, itl = result.requests, result.itl
    if served.measured_at == "engine":
        own = {key: requests[f"engine_{key}"] for key in ("ttft_s", "tpot_s", "e2e_s")}
        requests, itl = requests.assign(**own), result.engine_itl
    return _like(served, Latencies(requests, result.steps, itl))


def _like(served: Served, predicted: Latencies) -> Latencies:
    """The prediction without the first tokens of requests whose own are not known, where each is known by itself."""
    if served.latencies is None or not served.complete:
        return predicted
    unknown = served.latencies.requests["ttft_s"].isna().to_numpy()
    requests = predicted.requests.assign(**{key: predicted.requests[key].mask(unknown) for key in ("ttft_s", "tpot_s")})
    return replace(predicted, requests=requests)


def _paired(served: Served, predicted: Latencies) -> dict[str, Any]:
    """Request by request, where each is known by itself."""
    if served.latencies is None or not served.complete:
        return {}
    return {"paired": paired(served.latencies.requests, predicted.requests)}


def _most_at_once(work: Sent, requests: pd.DataFrame) -> list[str]:
    """What a limit of requests under way beside a rate would have changed: here nothing holds requests back."""
    if not work.most:
        return []
    starts, ends = (np.sort(requests[name].dropna().to_numpy()) for name in ("arrival_s", "finish_s"))
    under_way = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    peak = int(under_way.max(initial=0))
    held = "so that it changed nothing" if peak <= work.most else "and here nothing holds requests back"
    return [f"The tool let at most {work.most:,} requests be under way; simulated were up to {peak:,}, {held}."]


def _settings(scenario: Scenario) -> str:
    engine, kv = scenario.engine, scenario.kv
    return (
        f"The server is taken to batch as {scenario.policy.name} / {scenario.allocator.name} does, with max_num_seqs "
        f"{engine.max_num_seqs:,}, max_num_batched_tokens {engine.max_num_batched_tokens:,} and {kv.blocks:,} blocks "
        f"of {kv.block_tokens} tokens: give what differs (--set engine.max_num_seqs=...)."
    )


def _again(scenario: Scenario, trace: Trace, served: Served, cost: StepCost | None = None) -> Measures:
    result = serving.simulate(scenario, trace=trace, hooks=Hooks(cost=cost))
    return _seen(served, result).measures()


def _moved(scenario: Scenario, trace: Trace, served: Served, base: Measures) -> dict[str, Any]:
    """What a tenth fewer and a tenth more KV blocks change, as relative changes of the prediction; None where the
    scenario cannot run with so few."""
    changes: dict[str, Any] = {}
    for label, factor in (("fewer", 1 - NUDGE), ("more", 1 + NUDGE)):
        blocks = max(1, round(scenario.kv.blocks * factor))
        try:
            other = _again(replace(scenario, kv=replace(scenario.kv, blocks=blocks)), trace, served)
        except InputError:
            changes[label] = None
            continue
        pairs = {key: (base[key]["mean"], other[key]["mean"]) for key in ("ttft_s", "tpot_s", "e2e_s")}
        changes[label] = {key: new / old - 1 if old and new is not None else None for key, (old, new) in pairs.items()}
    return changes
