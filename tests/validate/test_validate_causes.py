"""Errors planted into a cost model or a scenario: the attribution names the right one; both clocks decide alike.

Nothing runs live here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim import api, scenario
from sim.cost.step import Constant, StepCost, Term, advanced, device_seconds, shape_tokens
from sim.engine.batch import Batch, Outcome, Shape
from sim.engine.engine import Engine
from sim.serving.assemble import assemble
from sim.serving.executor import Executor
from sim.validate.attribution import STAGES, largest
from sim.validate.live import LiveRuns
from sim.validate.record import Recorder
from sim.validate.run import ModelSession, Pricing, Validation, validate
from sim.validate.terms import Watched, by_term, term_of
from sim.validate.verdict import Bounds
from traces.rows import from_frame


@dataclass(frozen=True)
class Wrong:
    """A cost model some of whose terms are off by a factor."""

    inner: StepCost
    terms: Mapping[str, float] = field(default_factory=dict)
    host: float = 1.0

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        device = [device_seconds(self.explain(advanced(shape, step)).values()) for step in range(repeats)]
        return device, self.inner.span_s(shape, 1)[1] * self.host

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {
            name: one._replace(seconds=one.seconds * (self.host if one.on_host else self.terms.get(term_of(name), 1.0)))
            for name, one in self.inner.explain(shape).items()
        }

    def describe(self) -> list[Constant]:
        return self.inner.describe()


def _kept(blocks: int, rate: float, **settings: Any) -> LiveRuns:
    """A "live" run whose seconds are those of the roofline, on an H100 whose memory leaves room for some blocks."""
    rng = np.random.default_rng(3)
    count = 30
    requests = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, count)),
            "prompt_tokens": rng.integers(500, 6000, count),
            "output_tokens": rng.integers(20, 200, count),
        }
    )
    trace = from_frame(requests, name="made", kind="own")
    fixed = {
        "engine.preset": "foretoken",
        "executor": "live",
        "model": "llama-3.1-8b",
        "gpu": "h100",
        "kv_blocks": blocks,
    }
    plan = replace(scenario.build({}, fixed | settings), device="cuda:0")
    true = assemble(plan).cost
    recorder, watched = Recorder(trace.requests), []

    def wrap(executor: Executor) -> Executor:
        watched.append(Watched(executor))
        return watched[0]

    hooks = api.Hooks(session=ModelSession(true), wrap=wrap, observer=recorder, spans=False)
    about = api.simulate(plan, trace=trace, hooks=hooks).summary["inputs"]
    shapes = watched[0].shapes
    record = recorder.record(shapes, watched[0].results, terms=[by_term(true, shape) for shape in shapes])
    return LiveRuns(plan, trace, (record,), about)


@pytest.fixture(scope="module")
def kept() -> LiveRuns:
    return _kept(20_000, 5.0)


def _validated(kept: LiveRuns, own_capacity: bool = False, **wrong: Any) -> Validation:
    cost = Wrong(assemble(kept.scenario).cost, **wrong)
    return validate(kept, Bounds.all_within(0.005), Pricing(cost, "planted"), own_capacity=own_capacity)


def test_a_perfect_model_has_no_error(kept: LiveRuns) -> None:
    document = _validated(kept).document
    assert document["verdict"]["good"], document["verdict"]
    assert document["steps"]["all"]["mape"] < 1e-9
    for split in (one for one in document["attribution"].values() if "parts" in one):
        assert all(abs(part) < 1e-6 for part in split["parts"].values())


@pytest.mark.parametrize(
    ("wrong", "stage", "told"),
    [
        ({"terms": {"attention": 1.1}}, "kernels", "device seconds of its steps, most of it from attention (+10.0 %)"),
        ({"terms": {"matrices": 0.9}}, "kernels", "device seconds of its steps, most of it from matrices (-10.0 %)"),
        ({"host": 2.0}, "host", "the host seconds of its steps"),
    ],
)
def test_what_is_wrong_is_named(kept: LiveRuns, wrong: dict[str, Any], stage: str, told: str) -> None:
    document = _validated(kept, **wrong).document
    assert document["twin"]["identical"]
    assert not document["verdict"]["good"]
    assert document["verdict"]["reason"].endswith(told)
    for label in ("e2e_s.mean", "tpot_s.mean"):
        split = document["attribution"][label]
        assert largest(split["parts"]) == stage
        assert split["parts"][stage] == pytest.approx(split["error"], rel=0.1)
        assert sum(split["parts"].values()) == pytest.approx(split["error"], abs=1e-9)


def test_too_few_blocks_are_named() -> None:
    """The live device had half the blocks that the simulator derives from the data sheet of its GPU."""
    memory = {"kv.gpu_memory_utilization": 0.29, "kv.allow_short": True}
    derived = assemble(
        scenario.build({}, {"engine.preset": "foretoken", "model": "llama-3.1-8b", "gpu": "h100", **memory})
    ).pool.blocks
    made = _kept(derived // 2, 8.0, **memory)
    assert sum(len(one.evicted) for one in made.records[0].decisions) > 0
    found = _validated(made, own_capacity=True)
    split = found.document["attribution"]["e2e_s.mean"]
    assert split["error"] < 0  # with more memory than it had the run would have been faster
    assert largest(split["parts"]) == "capacity"
    assert "another number of KV blocks" in found.document["verdict"]["reason"]
    matched = _validated(made).document
    assert matched["verdict"]["good"]
    assert matched["attribution"]["kv_blocks"] == {"live": derived // 2, "matched": True}


def test_another_policy_is_no_twin(kept: LiveRuns) -> None:
    """The record is of chunked batches, and the prediction of whole prompts."""
    other = replace(kept, scenario=replace(kept.scenario, policy=scenario.Part("static")))
    document = _validated(other).document
    assert not document["twin"]["identical"]
    assert "no twin" in document["verdict"]["reason"]
    assert set(document["attribution"]["e2e_s.mean"]["parts"]) == set(STAGES)


class FakeTime:
    """Passes when somebody sleeps or works, and not otherwise."""

    def __init__(self) -> None:
        self.now_s, self.slept_s = 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


class Working:
    """Takes its time by the fake clock: a 64th of a second for a step, and as much for every 32 tokens."""

    device_name = "a fake device"

    def __init__(self, clock: FakeTime) -> None:
        self._clock = clock

    def executor(self, engine: Engine) -> Executor:
        return self

    def execute(self, batch: Batch) -> Outcome:
        seconds = (1 + shape_tokens(batch.shape) // 32) / 64
        self._clock.now_s += seconds
        return Outcome([seconds], [seconds], 0.0)

    def outputs(self) -> Iterator[tuple[int, int, Any]]:
        return iter(())


@pytest.mark.parametrize("policy", ["static", "continuous", "chunked"])
def test_both_clocks_take_the_same_decisions(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests come while others are served, and long after; every time is a multiple of 1/64 s, so exact."""
    arrivals = [0.0, 1 / 64, 5 / 64, 6 / 64, 30 / 64, 4.0]
    requests = pd.DataFrame({"arrival_s": arrivals, "prompt_tokens": 90, "output_tokens": [9, 5, 7, 3, 8, 4]})
    trace = from_frame(requests, name="made", kind="own")
    fixed = {
        "engine.preset": "foretoken",
        "executor": "live",
        "model": "tiny-llama",
        "kv_blocks": 30,
        "engine.max_num_batched_tokens": 128,
    }
    told, slept_s = [], []
    for clock in ("virtual", "wall"):
        plan = scenario.build({}, fixed | {"policy": policy, "live.clock": clock, "engine.max_model_len": 128})
        time, recorder = FakeTime(), Recorder(trace.requests)
        monkeypatch.setattr("sim.serving.clock.time", time)
        api.simulate(plan, trace=trace, hooks=api.Hooks(session=Working(time), observer=recorder))
        told.append(recorder.record())
        slept_s.append(time.slept_s)
    assert told[0].decisions == told[1].decisions
    assert told[0].step_end_s().tolist() == told[1].step_end_s().tolist()
    assert len(told[0].decisions) > 15
    assert slept_s[0] == 0.0 < slept_s[1]
