"""The front end against laws, theory and a second, naive one: what clients see, and what it does to the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws
from queueing_kit import agree, md1_wait_at_most, poisson

from sim import scenario
from sim.cost.fixed import FixedCost
from sim.cost.step import Term
from sim.engine.batch import Batch, Shape
from sim.engine.flight import Audience, Flight, ObservedReplica, Observer, ear_of
from sim.report.run.sentences import notes_of
from sim.results.gaps import TokenGaps
from sim.serving.hooks import Hooks
from sim.serving.run import Result, simulate
from traces.rows import from_frame
from traces.schema import InputError


class Fixed(FixedCost):
    """Under a source that a summary knows."""

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {name: Term(term.seconds, "roofline") for name, term in super().explain(shape).items()}


COST = Fixed(base_s=0.01, per_token_s=0.0001, per_context_token_s=0.000001)
SETTINGS: dict[str, Any] = {
    "kv.blocks": 400,
    "engine.max_num_seqs": 8,
    "engine.max_num_batched_tokens": 256,
    "cost.efficiency.host_gap_s": 0.0,
    "cost.efficiency.host_gap_row_s": 0.0,
    "front_end.name": "off",
}
BUSY: dict[str, Any] = {
    "front_end.name": "custom",
    "front_end.request_s": 0.004,
    "front_end.prompt_token_s": 2e-5,
    "front_end.step_s": 0.001,
    "front_end.output_s": 0.001,
    "front_end.stream_s": 0.0015,
    "front_end.latency_s": 0.0007,
    "front_end.spread": 0.5,
}
"""So dear that eight outputs of a step keep the process longer than the step lasts."""
Row = tuple[float, int, int]
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0005, 0.03, 0.2]), st.integers(1, 200), st.integers(1, 25)),
    min_size=1,
    max_size=25,
)
LOADS = st.sampled_from([{}, {"workload.concurrency": 1}, {"workload.concurrency": 5}])
KINDS = st.sampled_from(
    [
        {},
        {"engine.async_scheduling": False},
        {"cost.noise": 0.5},
        {"front_end.processes": 3},
        {"replicas": 2, "router.name": "least-outstanding"},
        {"policy.name": "speculative", "speculation.drafter": "eagle", "speculation.k": 2, "allocator.name": "prefix"},
    ]
)


def placed(rows: Sequence[Row]) -> pd.DataFrame:
    gaps_s, prompt, output = zip(*rows, strict=True)
    return pd.DataFrame({"arrival_s": np.cumsum(gaps_s), "prompt_tokens": prompt, "output_tokens": output})


def serve(table: pd.DataFrame, hooks: Hooks | None = None, **settings: Any) -> Result:
    trace = from_frame(table, name="front-end", kind="test")
    return simulate(scenario.load(None, {**SETTINGS, **settings}), trace=trace, hooks=hooks or Hooks(cost=COST))


def check_same(one: Result, other: Result) -> None:
    pd.testing.assert_frame_equal(one.requests, other.requests, check_exact=True)
    for ours, theirs in (*zip(one.itl, other.itl, strict=True), *zip(one.engine_itl, other.engine_itl, strict=True)):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(one.step_end_s, other.step_end_s, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@laws
@given(ROWS, LOADS, KINDS)
def test_a_front_end_without_costs_changes_nothing(rows: list[Row], load: dict[str, Any], kind: dict[str, Any]) -> None:
    off = serve(placed(rows), **load, **{key: value for key, value in kind.items() if "front_end" not in key})
    free = serve(placed(rows), **load, **kind, **{"front_end.name": "custom"})
    # Of several processes each has gaps of its own: the same ones, in another order.
    np.testing.assert_array_equal(np.sort(np.repeat(*free.itl)), np.sort(np.repeat(*off.itl)))
    check_same(off, replace(free, gaps=off.gaps))
    requests = free.requests
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        pd.testing.assert_series_equal(requests[key], requests[f"engine_{key}"], check_names=False, check_exact=True)


@laws
@given(ROWS, LOADS, KINDS)
def test_spans_change_nothing_behind_a_front_end(rows: list[Row], load: dict[str, Any], kind: dict[str, Any]) -> None:
    table, settings = placed(rows), {**BUSY, **load, **kind}
    check_same(*(serve(table, Hooks(cost=COST, spans=spans), **settings) for spans in (True, False)))


@laws
@given(ROWS, LOADS, KINDS)
def test_a_client_sees_what_the_engine_does_later(rows: list[Row], load: dict[str, Any], kind: dict[str, Any]) -> None:
    kept: list[TokenGaps] = []
    done = serve(placed(rows), Hooks(cost=COST, gaps=kept.append), **BUSY, **load, **kind)
    requests = done.requests
    assert (requests["status"] == "completed").all()
    way_s = BUSY["front_end.latency_s"]
    assert (requests["engine_arrival_s"] > requests["arrival_s"]).all()
    for key in ("ttft_s", "e2e_s"):
        assert (requests[key] > requests[f"engine_{key}"] + way_s).all()
    assert (requests["first_token_s"] <= requests["finish_s"]).all()
    # Tokens keep their order, and every gap is there; those of a request add up to what lies between its ends.
    processes = done.scenario.front_end.processes
    for at, seen_s in enumerate(kept[0].step_end_s):
        assert (np.diff(seen_s) >= 0).all()
        assert (seen_s >= done.step_end_s[at // processes]).all()
    counted = requests["output_tokens"].sum() - len(requests)
    assert done.itl[1].sum() == done.engine_itl[1].sum() == counted
    between_s = requests["finish_s"] - requests["first_token_s"]
    assert float(done.itl[0] @ done.itl[1]) == pytest.approx(between_s.sum(), abs=1e-9)


class Work(Observer):
    """What comes to a front end of one process, in order: (when, 1 for a request or 0 for outputs, seconds, id)."""

    def __init__(self) -> None:
        self.outputs: list[tuple[float, int]] = []
        self._rows: list[int] = []

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        if not batch.empty:
            loose = sum(entry.request.seat.last_token_step == batch.first_step for entry in batch.entries)
            self._rows.append(batch.lockstep + loose)

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        rows = self._rows.pop(0)
        self.outputs += [(end_s, rows) for end_s in flight.ends_s()]


@laws
@given(ROWS, LOADS)
def test_one_process_works_as_a_naive_queue_does(rows: list[Row], load: dict[str, Any]) -> None:
    """All that came, sorted by when it came and worked through one after the other, gives the same times."""
    work, kept = Work(), list[TokenGaps]()
    settings = {**BUSY, **load, "front_end.spread": 0.0}
    hooks = Hooks(cost=COST, observer=work, gaps=kept.append)
    done = serve(placed(rows), hooks, **settings)
    costs, requests = done.scenario.front_end, done.requests
    jobs = [(end_s, 0, step, count) for step, (end_s, count) in enumerate(work.outputs)]
    jobs += [(row.arrival_s, 1, row.request, row.prompt_tokens) for row in requests.itertuples()]
    # Of what comes at one time outputs are first, and requests in their order.
    free_s, seen_s, ready_s = 0.0, np.empty(len(work.outputs)), np.empty(len(requests))
    for came_s, is_request, number, size in sorted(jobs):
        behind = free_s > came_s
        free_s = max(free_s, came_s)
        if is_request:
            free_s += costs.request_s + costs.prompt_token_s * size
            ready_s[number] = free_s + costs.latency_s
        elif size:
            free_s += costs.step_s + size * (costs.output_s + (0.0 if behind else costs.stream_s))
        seen_s[number : number + 1] = free_s if not is_request else seen_s[number : number + 1]
    np.testing.assert_allclose(kept[0].step_end_s[0], seen_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(requests["engine_arrival_s"], ready_s, rtol=0, atol=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_requests_wait_as_in_an_md1_queue(load: float) -> None:
    """Service times of 1 s, an engine in no time, outputs that cost nothing: Pollaczek and Khinchine, and Crommelin."""
    arrival_s = poisson(load, 10_000, seed=1)
    table = pd.DataFrame({"arrival_s": arrival_s, "prompt_tokens": 1, "output_tokens": 1})
    settings = {"front_end.name": "custom", "front_end.request_s": 1.0}
    done = serve(table, Hooks(cost=Fixed(base_s=0.0)), **settings).requests
    waited_s = (done["engine_arrival_s"] - done["arrival_s"] - 1.0).to_numpy()
    agree(waited_s, load / (2 * (1 - load)))
    for time_s in (0.0, 0.5, 1.0, 2.0, 3.5):
        agree(waited_s <= time_s + 1e-7, md1_wait_at_most(time_s, load))


def test_a_user_sends_again_when_the_answer_is_seen() -> None:
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [5] * 6, "output_tokens": [3] * 6})
    done = serve(table, **BUSY, **{"workload.concurrency": 1}).requests
    assert done["arrival_s"].tolist()[1:] == [math.nextafter(at, math.inf) for at in done["finish_s"].tolist()[:-1]]
    turns = table.assign(after=[-1, 0, 1, 2, 3, 4], think_s=0.25)
    done = serve(turns, **BUSY).requests
    np.testing.assert_allclose(np.diff(done["arrival_s"]), done["e2e_s"].to_numpy()[:-1] + 0.25)


def test_outputs_come_together_where_a_process_is_behind() -> None:
    """Steps of 10 ms, one request of five tokens: 4 ms of work and 8 ms to send; each second step finds it busy."""
    table = pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [5]})
    costs = {"front_end.name": "custom", "front_end.output_s": 0.004, "front_end.stream_s": 0.008}
    kept: list[TokenGaps] = []
    serve(table, Hooks(cost=Fixed(base_s=0.01), gaps=kept.append), **costs)
    np.testing.assert_allclose(kept[0].step_end_s[0], [0.022, 0.026, 0.042, 0.046, 0.062])


@laws
@given(ROWS, LOADS, st.integers(1, 6), st.integers(0, 400), st.sampled_from([1, 3]))
def test_what_is_refused_is_counted_and_nothing_is_lost(
    rows: list[Row], load: dict[str, Any], most: int, tokens: int, processes: int
) -> None:
    limits = {"front_end.max_num_queued_reqs": most, "front_end.max_num_queued_tokens": tokens}
    done = serve(placed(rows), **BUSY, **load, **limits, **{"front_end.processes": processes})
    requests, counts = done.requests, done.summary["requests"]
    refused = requests["status"] == "rejected"
    assert counts["completed"] + counts["rejected"] == counts["total"] == len(rows)
    assert sum(done.summary["front_end"]["refused"].values()) == counts["rejected"] == refused.sum()
    assert requests.loc[refused, "reason"].str.startswith("the front end refused it (503): max_num_queued_").all()
    assert requests.loc[refused, ["first_scheduled_s", "finish_s", "ttft_s"]].isna().all().all()
    # Those taken are never more than the limit at once, from when one is taken to when its last output is sent.
    taken = requests[~refused]
    starts_s = np.sort(taken["engine_arrival_s"])
    ends_s = np.sort(taken["finish_s"] - done.scenario.front_end.latency_s)
    under_way = np.arange(1, len(starts_s) + 1) - np.searchsorted(ends_s, starts_s - 1e-12, side="right")
    assert under_way.max(initial=0) <= most


def test_limits_are_those_of_vllm() -> None:
    """Ten at once, 3 ms each to take in, steps of 1 s: so many are taken until a limit is met."""
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [100] * 10, "output_tokens": [2] * 10})
    front_end = {"front_end.name": "custom", "front_end.request_s": 0.003}

    def taken(table: pd.DataFrame = table, **limit: int) -> list[int]:
        settings = {f"front_end.{key}": value for key, value in limit.items()}
        done = serve(table, Hooks(cost=Fixed(base_s=1.0)), **front_end, **settings)
        return np.flatnonzero(done.requests["status"] == "completed").tolist()

    assert taken(max_num_queued_reqs=4) == [0, 1, 2, 3]
    # The third request finds 200 tokens that wait, the fourth 300, which is what is allowed.
    assert taken(max_num_queued_tokens=300) == [0, 1, 2]
    assert taken(max_num_queued_tokens=301) == [0, 1, 2, 3]
    # Who has had a first output, or has ended, counts no more: a minute later it is all the same.
    again = pd.concat([table, table.assign(arrival_s=60.0)], ignore_index=True)
    assert taken(again, max_num_queued_reqs=4) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert taken(again, max_num_queued_tokens=300) == [0, 1, 2, 10, 11, 12]


def test_a_user_goes_on_after_a_refusal() -> None:
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [100] * 9, "output_tokens": [2] * 9})
    settings = {**BUSY, "front_end.max_num_queued_reqs": 1, "workload.concurrency": 3}
    done = serve(table, **settings).summary
    assert done["requests"]["unfinished"] == 0
    assert done["front_end"]["refused"] == {"max_num_queued_reqs": done["requests"]["rejected"]}
    assert 0 < done["requests"]["rejected"] < 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"front_end.name": "custom", "front_end.processes": 0}, "front_end.processes is 0; it must be at least 1"),
        ({"front_end.name": "orca"}, "an engine whose front end is not known; known: auto, off, custom, vllm-0.19"),
        ({"front_end.name": "nginx"}, "front_end.name is 'nginx'; known: auto, off, custom, vllm-0.19"),
        ({"front_end.name": "custom", "front_end.output_s": -1.0}, "front_end.output_s is -1.0; it must be at least 0"),
    ],
)
def test_bad_front_ends_are_told_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        serve(placed([(0.0, 1, 1)]), **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"front_end.name": "off", "front_end.request_s": 0.01}, {"front_end.name": "custom", "executor": "live"}],
    ids=["without one", "live"],
)
def test_what_no_front_end_reads_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="it is read only where"):
        scenario.refuse_unread([scenario.load(None, settings)])


def test_an_engine_s_front_end_is_spelled_out_and_settings_win() -> None:
    made = scenario.load(None, {"front_end.name": "vllm", "front_end.output_s": 1e-3}).front_end
    assert (made.name, made.output_s) == ("vllm-0.33", 1e-3)
    assert made.request_s > 0
    assert made.stream_s > 0
    again = scenario.load(scenario.load(None, {"front_end.name": "vllm-0.33"}), {"front_end.output_s": 1e-3})
    assert again.front_end == made


def test_an_engine_whose_front_end_is_known_has_it_unless_one_is_named() -> None:
    def named(**settings: Any) -> str:
        return scenario.load(None, settings).front_end.name

    assert named() == "vllm-0.33"
    assert named(**{"engine.preset": "vllm-0.19"}) == "vllm-0.19"
    assert named(**{"engine.preset": "sglang-0.5"}) == named(executor="live", device="cpu") == "off"
    assert named(**{"front_end.name": "off"}) == "off"
    assert named(**{"front_end.name": "custom"}) == "custom"
    scenario.refuse_unread([scenario.load(None, {"executor": "live", "device": "cpu"})])
    assert named(dp=2, model="qwen3-30b-a3b") == "off"
    assert named(replicas=2, **{"failures.mtbf_s": 50.0}) == "vllm-0.33"
    costs = scenario.load(None, {"front_end.output_s": 1e-3}).front_end
    assert (costs.name, costs.output_s) == ("vllm-0.33", 1e-3)


def test_pools_have_the_front_end_of_their_engines_where_it_is_one_and_can_be() -> None:
    def names(**pools: dict[str, Any]) -> set[str]:
        made = scenario.build({"pools": pools, "transfer": {"gb_per_s": 50.0}})
        assert scenario.build(scenario.as_tables(made)) == made
        return {made.front_end.name, *(pool.scenario.front_end.name for pool in made.pools.values())}

    assert names(one={"gpu": "h100"}, other={"gpu": "l40s"}) == {"vllm-0.33"}
    assert names(one={}, other={"engine": {"preset": "sglang-0.5"}}) == {"off"}
    assert names(one={"role": "prefill"}, other={"role": "decode"}) == {"off"}
    mixed = {"one": {}, "other": {"engine": {"preset": "sglang-0.5"}}}
    table = placed([(0.01, 50, 5)] * 4)
    done = simulate(scenario.build({"pools": mixed}), trace=from_frame(table, name="mixed", kind="test"))
    assert any("No front end is simulated before pools of several engines" in note for note in notes_of(done.summary))


def test_results_of_before_front_ends_are_read_without_one(tmp_path: Path) -> None:
    written = scenario.as_tables(scenario.load(None, {"front_end.name": "off"}))
    del written["front_end"]
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(written))
    assert scenario.load(path).front_end.name == "off"
    path.write_text('[engine]\npreset = "vllm-0.19"\n')
    assert scenario.load(path).front_end.name == "vllm-0.19"


class Deaf(Observer):
    """Hears nothing."""


class Ear(Observer):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self.heard.append((self, batch))


@pytest.mark.parametrize("ears", [0, 1, 2, 3])
def test_an_audience_is_told_in_turn_of_what_somebody_hears(ears: int) -> None:
    heard: list[Any] = []
    observers = [Ear(heard) for _ in range(ears)]
    audience = Audience([Deaf(), Audience(observers), Deaf()])
    assert len(audience.ears("planned")) == ears
    assert not audience.ears("committed")
    ear_of(audience, "planned")(None, "batch")
    ear_of(audience, "committed")(None, "flight")
    assert heard == [(one, "batch") for one in observers]
