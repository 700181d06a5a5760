"""What binds: against constructed runs whose limit is known, against the engine's own refusals, and as laws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import api, scenario
from sim.cost.terms import PRODUCTS, kind_of
from sim.engine.batch import Shape
from sim.engine.engine import Engine
from sim.engine.request import Request
from sim.engine.step import Step
from sim.results.binding import (
    BUDGET,
    FRONT_END,
    IDLE,
    KV,
    LIMITS,
    NOTHING,
    POLICY,
    SEATS,
    STATES,
    StepLimits,
    limits_of,
    states,
)
from sim.results.levers import LEVERS, NARROW, lever
from sim.results.resources import COMPUTE, DEVICE, HOST, LINK, MEMORY, RESOURCES, Resources, resource_of
from sim.scenario import SETTINGS, Scenario
from sim.serving.assemble import assemble

SLO = "ttft_p99=0.5,tpot_p99=0.05"
LOADED: dict[str, Any] = {
    "trace": "chatbot_arena.jsonl", "workload.sessions": False, "rate": 25.0, "limit": 300, "slo": SLO,
}  # fmt: skip
PROMPTS = {
    "engine.preset": "foretoken",
    "rate": 2000.0,
    "limit": 1000,
    "engine.max_num_seqs": 10_000,
    "engine.max_num_batched_tokens": 2048,
}
SLOW_HOST = {"cost.efficiency.host_step_s": 0.1}
SHORT = {"kv.allow_short": True}
HUGE = {"engine.max_num_seqs": 10_000, "engine.max_num_batched_tokens": 100_000}


def bound_by(**own: Any) -> dict[str, Any]:
    binding: dict[str, Any] = api.run(**{**LOADED, **own}).summary["binding"]
    return binding


@pytest.mark.parametrize(
    ("own", "by", "setting"),
    [
        ({**HUGE}, NOTHING, ""),
        ({"engine.max_num_seqs": 1}, SEATS, "engine.max_num_seqs"),
        ({"engine.max_num_batched_tokens": 48}, BUDGET, "engine.max_num_batched_tokens"),
        ({"kv_blocks": 300}, KV, "kv.blocks"),
        ({"kv_blocks": 300, "policy": "continuous", "allocator": "contiguous-oracle"}, KV, "kv.blocks"),
        ({"policy": "static", "policy.batch_size": 2}, POLICY, "policy.name"),
        ({**HUGE, **SLOW_HOST}, HOST, "replicas"),
        ({**HUGE, **SLOW_HOST, "engine.async_scheduling": False}, HOST, "engine.async_scheduling"),
        ({**HUGE, **SHORT, "tp": 4, "gpu": "l40s", "cost.efficiency.all_reduce_link": 0.005}, LINK, "tp"),
        ({**HUGE, "slo": "tpot_p99=0.004"}, MEMORY, "weights"),
        ({**HUGE, "slo": "", "rate": 0.0, "concurrency": 8}, MEMORY, "weights"),
        ({**HUGE, "rate": 2000.0, "front_end.request_s": 0.05}, FRONT_END, "front_end.processes"),
        ({**HUGE, "slo": "", "rate": float("inf"), "limit": 50}, MEMORY, "weights"),
    ],
)  # fmt: skip
def test_the_limit_of_a_constructed_run_is_found(own: dict[str, Any], by: str, setting: str) -> None:
    binding = bound_by(**own)
    assert (binding["by"], binding["setting"]) == (by, setting)


def test_prompts_that_fill_the_arithmetic_bind_on_compute_and_not_on_the_budget() -> None:
    """A larger budget would make the step longer by as much."""
    binding = bound_by(**PROMPTS, slo="ttft_p99=0.01")
    assert binding["limits"]["budget_is"] == COMPUTE
    assert binding["waiting"][COMPUTE] > 0
    assert binding["by"] == COMPUTE


@pytest.mark.parametrize("own", [{}, {"kv_blocks": 300}, {"replicas": 3, "rate": 90.0}, {"policy": "static"}])
def test_shares_add_up_and_waits_are_of_requests(own: dict[str, Any]) -> None:
    result = api.run(**{**LOADED, **own})
    binding = result.summary["binding"]
    assert sum(binding["shares"].values()) == pytest.approx(1.0)
    assert sum(binding["step"].values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in binding["shares"].values())
    told_s = sum(binding["wait_s_by_reason"].values())
    queued_s = float(result.requests["queue_s"].sum())
    resumed = result.preempted["end_s"] - result.preempted["start_s"]
    assert told_s == pytest.approx(queued_s + float(resumed.sum()), rel=0.02)


class Refusals:
    """Says of every planned step what the engine refused a waiting request for, last of all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of_step: dict[int, str] = {}
        self.reason = ""
        admit, plan = Step._admit, Engine.plan

        def admitted(step: Step, req: Request, most: int, whole: bool) -> int:
            tokens_left, seats_left = step.tokens_left, step.seats_left
            granted = admit(step, req, most, whole)
            if not granted:
                cut = tokens_left <= 0 or (whole and req.known > tokens_left)
                self.reason = SEATS if seats_left < req.seats else BUDGET if cut else KV
            return granted

        def planned(engine: Engine, *arguments: Any) -> Any:
            self.reason = ""
            batch = plan(engine, *arguments)
            if batch is not None and not batch.empty:
                self.of_step[batch.first_step] = KV if batch.evicted else self.reason
            return batch

        monkeypatch.setattr(Step, "_admit", admitted)
        monkeypatch.setattr(Engine, "plan", planned)


@pytest.mark.usefixtures("pure")
@pytest.mark.parametrize("policy", ["chunked", "sjf", "continuous"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "own",
    [
        {"engine.max_num_seqs": 6},
        {"engine.max_num_batched_tokens": 96},
        {"kv_blocks": 320},
        {"engine.max_num_seqs": 12, "engine.max_num_batched_tokens": 384, "kv_blocks": 420},
    ],
)
def test_the_states_are_the_engines_own_refusals(
    policy: str, seed: int, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Refusals(monkeypatch)
    result = api.run(**{**LOADED, **own, "policy": policy, "seed": seed, "limit": 120, "workload.arrivals": "poisson"})
    steps = result.steps
    code = states(steps, limits_of(result.summary["binding"]["limits"]))
    waits = (steps["waiting"] > 0).to_numpy()
    names = [STATES[one] for one in code[waits].tolist()]
    refused = [told.of_step[step] for step in steps["step"].to_numpy()[waits].tolist()]
    wrong = Counter((name, reason) for name, reason in zip(names, refused, strict=True) if reason and name != reason)
    allowed = 0.0 if policy != "continuous" else 0.1  # whole prompts: where room and budget are both short
    assert wrong.total() <= allowed * len(names), wrong
    assert set(names) <= set(LIMITS)


COLUMNS = ("running", "waiting", "preempted", "prefill_requests", "prefill_tokens", "decode_requests", "draft_tokens",
           "padding_tokens", "kv_free_tokens")  # fmt: skip
FEW = {"preempted": st.sampled_from([0, 0, 0, 2]), "running": st.integers(0, 8), "draft_tokens": st.integers(0, 2),
       "prefill_tokens": st.integers(0, 3), "decode_requests": st.integers(0, 3)}  # fmt: skip
VALUES = {**{name: st.integers(0, 9) for name in COLUMNS}, **FEW}
ROWS = st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=20)


@settings(max_examples=200)
@given(ROWS, st.integers(2, 8), st.integers(1, 8), st.integers(0, 9), st.booleans(), st.sampled_from([0, 0, 0, 4]))
def test_every_state_agrees_with_its_row(
    rows: list[dict[str, int]], seats: int, budget: int, need: int, whole: bool, batch: int
) -> None:
    steps = pd.DataFrame(rows).assign(replica=0)
    code = states(steps, StepLimits(seats, budget, need, whole_prompts=whole, batch=batch))
    assert ((code == 0) == (steps["waiting"] == 0)).all()
    for row, name in zip(rows, (STATES[one] for one in code.tolist()), strict=True):
        if not row["waiting"] or batch:
            continue
        tokens = row["prefill_tokens"] + row["decode_requests"] + row["draft_tokens"]
        if row["preempted"]:
            assert name == KV
        elif row["running"] >= seats:
            assert name == SEATS
        elif name == BUDGET:
            assert tokens >= budget or (whole and row["prefill_tokens"] and row["kv_free_tokens"] >= need)
        elif name == KV:
            assert tokens < budget
            assert row["kv_free_tokens"] < need
        else:
            assert name == POLICY
            assert tokens < budget
            assert row["kv_free_tokens"] >= need


def test_a_static_batch_keeps_the_reason_for_which_it_was_closed() -> None:
    row = dict.fromkeys(COLUMNS, 0) | {"waiting": 3, "running": 2, "kv_free_tokens": 5, "decode_requests": 2}
    formed = row | {"prefill_requests": 2, "prefill_tokens": 8, "decode_requests": 0}
    steps = pd.DataFrame([formed, row, row | {"running": 1}]).assign(replica=0)
    for batch, budget, need, name in ((2, 100, 9, POLICY), (4, 100, 9, KV), (4, 9, 1, BUDGET), (4, 100, 1, POLICY)):
        code = states(steps, StepLimits(50, budget, need, batch=batch))
        assert [STATES[one] for one in code.tolist()] == [name] * 3


def test_a_contiguous_allocator_is_roomy_only_where_some_hole_must_be_large() -> None:
    row = dict.fromkeys(COLUMNS, 0) | {"waiting": 1, "running": 3, "kv_free_tokens": 39}
    steps = pd.DataFrame([row, row | {"kv_free_tokens": 40}]).assign(replica=0)
    code = states(steps, StepLimits(50, 100, 10, in_pieces=False))
    assert [STATES[one] for one in code.tolist()] == [KV, POLICY]


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"model": "mixtral-8x7b", "tp": 2},
        {"model": "deepseek-v3", "gpu": "h200", "tp": 8},
        {"model": "nemotron-3-nano-30b-a3b", "gpu": "h200"},
    ],
)
def test_every_term_of_a_step_has_a_resource(own: dict[str, Any]) -> None:
    cost = assemble(scenario.build(own)).cost
    shape = Shape(((512, 0),), 4, 4000, 4096, 4096, verifies=((3, 1, 100, 100),))
    assert DEVICE not in {resource_of(name) for name in cost.explain(shape) if kind_of(name) != PRODUCTS}


def test_products_are_arithmetic_in_long_prompts_and_memory_in_short_steps() -> None:
    small = api.run(**{**LOADED, "rate": 1.0, "limit": 20}).summary["binding"]["step"]
    large = bound_by(**PROMPTS)["step"]
    assert small[MEMORY] > 0.9
    assert large[COMPUTE] > small[COMPUTE] + 0.1


def test_a_live_runs_seconds_are_the_devices_and_the_hosts() -> None:
    steps = pd.DataFrame({"device_s": [0.03, 0.05], "host_s": [0.01, 0.01]})
    shares = Resources.measured(steps).shares()
    assert shares == pytest.approx({name: {HOST: 0.2, "device": 0.8}.get(name, 0.0) for name in RESOURCES})
    assert Resources.measured(steps).shares(np.array([False, False])) == {}


def test_a_lever_is_a_setting_of_the_scenario_and_not_one_that_is_taken_already() -> None:
    plain, own = Scenario(), scenario.build({"kv.dtype": "fp8", "kv.gpu_memory_utilization": 1.0, "weights": "fp8"})
    for by in (*LEVERS, "device"):
        for one in (plain, own):
            setting, words = lever(by, one)
            assert (setting in SETTINGS and words) or by == NOTHING
    assert not any(word in lever(by, own).words for by in (KV, MEMORY) for word in NARROW)
    assert "fp8" in lever(KV, plain).words
    assert lever(KV, own).setting == "replicas"


def test_an_idle_run_is_idle() -> None:
    shares = bound_by(rate=0.01, limit=20)["shares"]
    assert shares[IDLE] > 0.95
