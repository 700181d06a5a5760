"""The tables of a run, column by column, from what must add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_kit import Setup, run
from hypothesis import example, given
from hypothesis import strategies as st

from sim import api, scenario
from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.results import steps
from sim.results.gaps import TokenGaps
from sim.results.metrics import met_slo, parse_slo, verdicts
from sim.results.steps import STEP_COLUMNS
from sim.serving.source import Workload
from traces.rows import from_frame
from traces.table import smallest

COST = FixedCost(0.5, per_context_token_s=0.25)
WORK = Workload([0.0, 3.0, 4.0], [5, 9, 2], [20, 30, 11])


@pytest.mark.parametrize("depth", [1, 2])
def test_a_span_is_the_sum_of_its_steps(depth: int) -> None:
    whole, single = (run(Setup(cost=COST, depth=depth, spans=spans), WORK).watch for spans in (True, False))
    spans, steps = whole.table().frame(), single.table().frame()
    assert len(spans) < len(steps)
    number = np.repeat(np.arange(len(spans)), spans["repeats"])
    summed = steps.groupby(number)[["device_s", "host_s"]].sum()
    np.testing.assert_array_equal(spans[["device_s", "host_s"]].to_numpy(), summed.to_numpy())
    np.testing.assert_array_equal(whole.step_end_s, single.step_end_s)
    np.testing.assert_array_equal(steps["end_s"].to_numpy(), np.asarray(single.step_end_s[0]))


@pytest.mark.parametrize("tables", [{}, {"policy": "speculative", "speculation.drafter": "eagle", "speculation.k": 2}])
def test_a_log_that_is_folded_often_tells_the_same(monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any]) -> None:
    plan = scenario.build({"replicas": 2, "kv.blocks": 60, **tables})
    rows = pd.DataFrame({"arrival_s": np.arange(40) * 0.02, "prompt_tokens": 40, "output_tokens": 90})
    trace = from_frame(rows, name="forty")
    once = api.simulate(plan, trace=trace)
    monkeypatch.setattr(steps, "_CHUNK_BYTES", 700)
    often = api.simulate(plan, trace=trace)
    assert {name: kind.str[1:] for name, kind in often.steps.dtypes.items()} == STEP_COLUMNS
    pd.testing.assert_frame_equal(often.steps, once.steps, check_exact=True)
    for one, other in zip(often.step_end_s, once.step_end_s, strict=True):
        np.testing.assert_array_equal(one, other)
    assert once.steps["preempted"].any()
    assert (once.steps["repeats"] > 1).any() != bool(tables)


@example([128])
@example([-129])
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300), min_size=1))
def test_whole_numbers_are_folded_without_a_loss(values: list[int]) -> None:
    folded = smallest(np.array(values, np.int64))
    assert np.concatenate([folded], dtype="i8").tolist() == values
    assert folded.itemsize == 1 or np.iinfo(f"i{folded.itemsize // 2}").max < max(*values, -min(values) - 1)
    assert (folded.strides == (0,)) == (len({*values}) == 1)


def test_only_blocks_before_the_last_token_could_hit() -> None:
    """A token must be computed to sample the next, so that a prompt of two blocks can hit but one."""
    prompts = [1, 16, 17, 32, 33]
    rows = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": prompts, "output_tokens": 2})
    result = api.simulate(scenario.build({}, {"allocator": "prefix"}), trace=from_frame(rows, name="edges"))
    assert result.requests["prefix_blocks"].tolist() == [0, 0, 1, 1, 2]


def test_times_of_a_request_are_between_its_stamps() -> None:
    rows = pd.DataFrame({"arrival_s": [0.0, 0.001, 0.5], "prompt_tokens": [40, 7, 9], "output_tokens": [1, 2, 30]})
    table = api.simulate(scenario.build({}), trace=from_frame(rows, name="three")).requests
    assert (table["first_scheduled_s"] > table["engine_arrival_s"]).any()
    assert (table["engine_arrival_s"] > table["arrival_s"]).all()
    np.testing.assert_array_equal(table["queue_s"], table["first_scheduled_s"] - table["engine_arrival_s"])
    np.testing.assert_array_equal(table["ttft_s"], table["first_token_s"] - table["arrival_s"])
    np.testing.assert_array_equal(table["e2e_s"], table["finish_s"] - table["arrival_s"])
    between_s = (table["finish_s"] - table["first_token_s"]).tolist()
    assert np.isnan(table["tpot_s"][0])
    assert table["tpot_s"].tolist()[1:] == [between_s[1] / 1, between_s[2] / 29]


@pytest.mark.parametrize("blocks", [400, 7])
def test_the_longest_gap_of_a_request_is_that_of_its_tokens(blocks: int) -> None:
    done = run(Setup("priority", cost=COST, pool=KvPool(blocks, 8), limits=Limits(8, 16)), WORK)
    assert (done.engine.preemptions > 0) == (blocks == 7)
    end_s = np.asarray(done.watch.step_end_s[0])
    found = TokenGaps([done.engine.tokens], [end_s]).longest_s(len(WORK))
    steps = done.token_steps()
    assert found.tolist() == [np.diff(end_s[steps[number]]).max() for number in range(len(WORK))]


def test_a_limit_that_is_just_met_is_met() -> None:
    """A promise of 0.5 s is kept by 0.5 s: for each request, and for the run."""
    requests = pd.DataFrame({"status": ["completed"] * 2, "ttft_s": [0.5, np.nextafter(0.5, 1.0)]})
    assert met_slo(requests, parse_slo("ttft=0.5")).tolist() == [True, False]
    for measured_s, met in ((0.5, True), (np.nextafter(0.5, 1.0), False)):
        (verdict,) = verdicts({"goodput": {"slo": {"ttft_p99": 0.5}}, "ttft_s": {"p99": measured_s}})
        assert verdict.met == met


def test_a_share_of_memory_is_of_all_replicas() -> None:
    """Two replicas that do the same hold the same share as one: `mean_used` by hand from the steps."""
    rows = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [200, 200], "output_tokens": [1, 1]})
    alike = {"kv.blocks": 50, "engine.max_model_len": 800, "front_end.name": "off"}  # one draws its requests' work
    plan = scenario.build({}, {**alike, "replicas": 2})
    kv = api.simulate(plan, trace=from_frame(rows, name="twins")).summary["kv"]
    alone = scenario.build({}, alike)
    one = api.simulate(alone, trace=from_frame(rows.iloc[:1], name="one")).summary["kv"]
    assert kv["mean_used"] == pytest.approx(one["mean_used"])
    assert sum(share["mean"] for share in kv["classes"].values()) == pytest.approx(1.0)
