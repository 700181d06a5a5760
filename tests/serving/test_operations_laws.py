"""Laws of whole runs with everything at once: routers, pools, models, admission, retries, failures, scaling."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from law_cases import EXAMPLES

from sim.load import names
from sim.results.presence import ABSENT, DIES, DRAINS, ORDERED, SERVES, STOPS
from sim.scenario import build, dump
from sim.serving.hooks import Hooks
from sim.serving.run import Result, simulate
from traces.rows import from_frame
from traces.schema import Trace

TINY: dict[str, Any] = {"model": "tiny-llama", "kv.blocks": 40, "engine.max_num_seqs": 4, "engine.max_model_len": 256}
EXAMPLES_OF_RUNS = examples(max_examples=EXAMPLES or 6)
UNIT_S = 1e-4
"""Near the time of a step of such a model."""
AFTER = {DIES: {SERVES, ABSENT}, STOPS: {SERVES, ABSENT}, DRAINS: {STOPS, DIES}, ORDERED: {SERVES, ABSENT},
         ABSENT: {ORDERED}, SERVES: {DRAINS, DIES}}  # fmt: skip
"""What may become of a replica after each event."""


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {**TINY, "seed": draw(st.integers(0, 3)), "slo": "ttft=0.001"}
    found["router.name"] = draw(st.sampled_from(names("sim.routers")))
    found["allocator.name"] = "prefix"
    if found["router.name"] == "adapter-affinity" or draw(st.booleans()):
        found["lora.max_loras"] = draw(st.integers(1, 2))
    found["engine.async_scheduling"] = draw(st.booleans())
    if draw(st.booleans()):
        found["routing.poll_s"] = 20 * UNIT_S
    where = "" if draw(st.booleans()) else "pools.a."
    count = draw(st.integers(1, 3))
    found[f"{where}count" if where else "replicas"] = count
    if where:
        found["pools.b.count"] = draw(st.integers(1, 2))
        if draw(st.booleans()):
            found |= {"pools.a.serves": "x", "pools.b.serves": "y", "pools.b.model": "llama-3.2-1b"}
    if draw(st.booleans()):
        scale = {"metric": draw(st.sampled_from(["queue", "kv", "rate", "outstanding"])), "max": count + 2, "min": 1}
        scale["target"] = {"queue": 1.0, "kv": 0.2, "rate": 0.05 / UNIT_S, "outstanding": 3.0}[str(scale["metric"])]
        scale |= {"interval_s": 0.0015, "delay_s": 7 * UNIT_S, "cooldown_s": draw(st.sampled_from([0.0, 0.003]))}
        found |= {f"{where}autoscale.{key}": value for key, value in scale.items()}
    if where and "pools.a.serves" not in found and draw(st.booleans()):
        scales = {key.replace("pools.a", "pools.b"): value for key, value in found.items() if "autoscale" in key}
        found |= {"pools.a.role": "prefill", "pools.b.role": "decode", "transfer.gb_per_s": 0.05} | scales
    apart = "pools.a.role" in found
    if draw(st.booleans()):
        found |= {"failures.mtbf_s": 80 * UNIT_S, "failures.mttr_s": 20 * UNIT_S}
    if draw(st.booleans()):
        found |= {"failures.restart_at_s": 40 * UNIT_S, "failures.restart_s": 15 * UNIT_S}
        found["failures.restart_drains"] = draw(st.booleans())
    if draw(st.booleans()):
        below = "pools.a.tiers" if apart else "tiers"
        # Room for 21 blocks or 2, by model, and milliseconds for each of them or no time.
        for tier in draw(st.lists(st.sampled_from(["host", "disk", "store"]), min_size=1, unique=True)):
            found |= {
                "kv.blocks": 17,
                f"{below}.{tier}_gib": 1e-3,
                f"{below}.{tier}_gb_per_s": draw(st.sampled_from([0.01, math.inf])),
            }
    if draw(st.booleans()):
        found |= {"admission.max_outstanding": draw(st.integers(1, 9)), "admission.max_queued": draw(st.integers(0, 9))}
        found["admission.max_wait_s"] = draw(st.sampled_from([0.0, 30 * UNIT_S]))
    if draw(st.booleans()):
        found |= {"admission.requests_per_s": 0.2 / UNIT_S, "admission.burst_requests": 5}
    if any(key.startswith("admission") for key in found):
        found |= {"retry.attempts": draw(st.integers(1, 4))}
        if found["retry.attempts"] > 1:
            found |= {"retry.base_s": 11 * UNIT_S, "retry.max_s": 1.0}
    return found


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 150), st.integers(1, 80), st.integers(1, 30), st.integers(0, 2), st.booleans(),
                      st.sampled_from("xy")),
            min_size=1, max_size=40,
        )
    )  # fmt: skip
    rows = sorted(rows)
    table = pd.DataFrame(rows, columns=["at", "prompt_tokens", "output_tokens", "priority", "again", "model"])
    table["arrival_s"] = table.pop("at") * UNIT_S
    # A later turn of the session before, where there is one.
    again = table.pop("again").to_numpy()
    table["session"] = [f"s{number}" for number in np.cumsum(~again)]
    table["after"] = [at - 1 if again[at] and at else -1 for at in range(len(table))]
    table["model"] = table.groupby("session")["model"].transform("first")
    table["think_s"] = 3 * UNIT_S
    kinds = 100 * table["priority"] + 1000 * (table["model"] == "y")
    told = zip(table["prompt_tokens"], kinds, strict=True)
    table["prefix_blocks"] = [[7 + kind + at for at in range(prompt // 16)] for prompt, kind in told]
    table["prefix_block_tokens"] = 16
    return from_frame(table)


def check_run(ran: Result, asked: dict[str, Any]) -> None:
    requests, summary = ran.requests, ran.summary
    done, refused = requests["status"] == "completed", requests["status"] == "rejected"
    assert (done | refused).all()
    assert not refused.any() or any(key.startswith("admission") for key in asked)
    ended = requests[done]
    order = ended[["arrival_s", "engine_arrival_s", "first_scheduled_s", "first_token_s", "finish_s"]].to_numpy()
    assert (np.diff(order, axis=1) >= 0).all()
    seconds, counts = ran.itl
    assert counts.sum() == (ended["output_tokens"] - 1).sum()
    assert np.dot(seconds, counts) == pytest.approx((ended["finish_s"] - ended["first_token_s"]).sum(), abs=1e-9)
    assert summary["goodput"]["fraction"] <= done.mean()
    if "retry.attempts" in asked:
        most = asked["retry.attempts"]
        assert most == 1 or requests["sent"].between(1, most).all()
        assert most == 1 or (requests["sent"][refused] == most).all()
    if "admission" in summary:
        tries = requests["sent"].sum() if "sent" in requests else len(requests)
        assert sum(summary["admission"]["refused"].values()) == tries - done.sum()
    for pool in (summary.get("pools") or {}).values():
        assert pool["busy"] is None or pool["busy"] <= 1.0 + 1e-9
    assert summary["kv"]["mean_used"] is None or summary["kv"]["mean_used"] <= 1.0
    for index, ends_s in enumerate(ran.step_end_s):
        steps = ran.steps[ran.steps["replica"] == index]
        assert steps["repeats"].sum() == len(ends_s)
        assert (np.diff(ends_s) >= 0).all()
    if ran.events is not None:
        for _, own in ran.events.groupby("replica"):
            told = own["event"].tolist()
            assert all(after in AFTER[before] for before, after in pairwise(told)), told


@EXAMPLES_OF_RUNS
@given(settings(), traces())
def test_laws_hold_with_everything_at_once(asked: dict[str, Any], trace: Trace) -> None:
    scenario = build({}, asked)
    if "lora.max_loras" in asked:
        adapters = [("", "a", "b", "c")[row % 4] for row in trace.requests["source_row"]]
        trace = replace(trace, requests=trace.requests.assign(adapter=adapters))
    ran = simulate(scenario, trace=trace)
    check_run(ran, asked)
    for other in (
        simulate(scenario, trace=trace, hooks=Hooks(spans=False)),
        simulate(build(tomllib.loads(dump(ran.scenario))), trace=trace),
    ):
        pd.testing.assert_frame_equal(other.requests, ran.requests)
        assert ran.events is None or other.events is None or ran.events.equals(other.events)
        # What rests on the steps' own rows may differ in its last bits where spans are cut otherwise.
        timeless = (
            "simulator",
            "front_end",
            "verdict",
            "cost_sources",
            "cost_terms",
            "binding",
            "kv",
            "pools",
            "inputs",
            "bill",
            "band",
        )
        assert {key: value for key, value in other.summary.items() if key not in timeless} == {
            key: value for key, value in ran.summary.items() if key not in timeless
        }
