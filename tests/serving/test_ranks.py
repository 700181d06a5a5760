"""Data-parallel ranks: who gets a request, and that ranks of a model with experts take every step together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drafting_kit import Drafts, drafting, run_drafts
from engine_kit import Setup, Watch, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import Case, cases, laws

from sim import api, scenario
from sim.cost.fixed import FixedCost
from sim.engine.batch import Outcome, Shape
from sim.engine.drafting import DraftingEngine
from sim.engine.engine import Engine
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.serving.assemble import assemble
from sim.serving.clock import Clock
from sim.serving.executor import Accepting, Executor, Predicted
from sim.serving.ranks import EachRank, Rank, RankEngines, SharedDoor, Together, least_busy
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload
from sim.speculation.acceptance import Acceptance
from traces.schema import InputError

LOAD: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 40, "workload.rate": 30.0}
MOE: dict[str, Any] = {"model": "qwen3-30b-a3b", "dp": 4, "ep": 4}

_BOTH_WAYS = (((6, 1), (2, 1)), ((2, 1), (6, 1)))
"""(prompt, output) of the first rank's request and of the second's."""


class Served:
    """A workload, served by ranks that step together."""

    def __init__(self, setup: Setup, ranks: int, work: Workload) -> None:
        clock, self.watch = Clock(), Watch(ranks, [])
        engines = [setup.engine() for _ in range(ranks)]
        group = RankEngines(engines)
        each = EachRank(self.watch)
        self.rank_of: dict[int, int] = {}
        done: dict[int, Request] = {}

        def finished(req: Request) -> None:
            assert req.id not in done, f"{req} was answered twice"
            done[req.id], self.rank_of[req.id] = req, group.rank_of.pop(req.id)
            source.finished(req)

        replica = Replica(
            clock,
            group,
            Together([price(setup, engine) for engine in engines]),
            depth=setup.depth,
            on_finish=finished,
            observer=each,
        )
        each.ranks = [Rank(replica, engine, index) for index, engine in enumerate(engines)]
        source = RequestSource(clock, work, SharedDoor(each.ranks).submit, concurrency=setup.concurrency)
        source.start()
        clock.run_out()
        assert sorted(done) == list(range(len(work))), "somebody was never answered"
        for engine in engines:
            assert not engine.busy
            assert engine.allocator.free_blocks == engine.allocator.pool.blocks
        self.requests = [done[at] for at in sorted(done)]

    def times(self) -> list[tuple[float, float]]:
        return [(req.first_token_s, req.finish_s) for req in self.requests]


def price(setup: Setup, engine: Engine) -> Executor:
    predicted = Predicted(setup.cost, overlap_host=setup.depth == 2)
    if not isinstance(setup, Drafts):
        return predicted
    luck = Acceptance(setup.rates, setup.seed)
    if setup.ahead:
        assert isinstance(engine, DraftingEngine)
        engine.foresight = luck
    return Accepting(predicted, luck)


def naive(case: Case, ranks: int) -> list[tuple[float, float]]:
    """(first token, end) of each request by a loop that knows nothing of events, spans or observers."""
    setup, rows = replace(case.setup, spans=False), case.requests()
    engines = [setup.engine() for _ in range(ranks)]
    now_s, coming, done = 0.0, list(rows), 0
    luck = Acceptance(setup.rates, setup.seed) if isinstance(setup, Drafts) else None

    def come() -> None:
        while coming and coming[0].arrival_s <= now_s:
            engines[least_busy(engines)].add(coming.pop(0))

    come()
    while done < len(rows):
        plans = [(engine, engine.plan(now_s)) for engine in engines if engine.busy]
        plans = [(engine, batch) for engine, batch in plans if not batch.empty]
        if not plans:
            if not any(engine.busy for engine in engines):
                now_s = coming[0].arrival_s
                come()
            continue
        now_s += max(setup.cost.span_s(batch.shape, 1)[0][0] for _, batch in plans)
        for engine, batch in plans:
            engine.seal(batch, 1)
        come()  # which drafts of the step were right, and so who has ended, is not known yet
        for engine, batch in plans:
            right = [luck(each.request, each.drafts) if each.real else 0 for each in batch.sampled] if luck else None
            done += len(engine.commit(batch, Outcome([0.0], [0.0], 0.0, right), now_s).finished)
    return [(req.first_token_s, req.finish_s) for req in rows]


@laws
@given(cases("chunked", "paged"))
def test_ranks_do_what_a_plain_loop_does(case: Case) -> None:
    setup = replace(case.setup, depth=1, concurrency=0, host_blocks=0)
    rows = [row._replace(session=-1) for row in case.rows]
    case = replace(case, setup=setup, rows=rows).admissible()
    if case.rows:
        np.testing.assert_allclose(Served(case.setup, 2, case.workload()).times(), naive(case, 2), rtol=1e-9)


@laws
@given(cases("chunked", "prefix"))
def test_spans_change_nothing_between_ranks(case: Case) -> None:
    case = case.admissible()
    if case.rows:
        with_spans, without = (Served(each.setup, 3, each.workload()) for each in (case, case.without_spans()))
        assert with_spans.times() == without.times()
        assert with_spans.rank_of == without.rank_of
        assert with_spans.watch.steps == without.watch.steps


@laws
@given(cases("chunked", "paged"), st.booleans())
def test_ranks_that_draft_do_what_a_plain_loop_does(case: Case, ahead: bool) -> None:
    setup = replace(case.setup, depth=1, concurrency=0, host_blocks=0)
    rows = [row._replace(session=-1, samples=1, beams=False) for row in case.rows]
    case = drafting(replace(case, setup=setup, rows=rows), ahead=ahead)
    if case.rows:
        np.testing.assert_allclose(Served(case.setup, 2, case.workload()).times(), naive(case, 2), rtol=1e-9)


@laws
@given(cases("chunked", "paged"), st.booleans())
def test_one_rank_that_drafts_is_no_rank(case: Case, ahead: bool) -> None:
    case = drafting(case, ahead=ahead)
    assert isinstance(case.setup, Drafts)
    if case.rows:
        alone = run_drafts(case.setup, case.workload()).requests
        assert Served(case.setup, 1, case.workload()).times() == [(req.first_token_s, req.finish_s) for req in alone]


def test_a_schedule_by_hand() -> None:
    """A (4 prompt tokens, 3 to give) and B (2, 2) come at 0, C (1, 2) at 5 s; a token takes a second, a step half."""
    setup = Setup(cost=FixedCost(0.5, 1.0))
    served = Served(setup, 2, workload([(0.0, 4, 3), (0.0, 2, 2), (5.0, 1, 2)]))
    # 0 to 4.5: A's prompt on the first rank, B's on the second. To 6: A and B a token each, and B ends.
    # C has come at 5, when each rank ran one, so that it went to the first: to 8.5 A's last token and C's first, two
    # tokens; to 10 C's last.
    assert served.times() == [(4.5, 8.5), (4.5, 6.0), (8.5, 10.0)]
    assert served.rank_of == {0: 0, 1: 1, 2: 0}
    assert [list(ends) for ends in served.watch.step_end_s] == [[4.5, 6.0, 8.5, 10.0], [4.5, 6.0]]


def test_the_slowest_rank_says_how_long_a_step_lasts_whichever_it_is() -> None:
    setup = Setup(cost=FixedCost(0.5, 1.0))
    ends = [Served(setup, 2, workload([(0.0, *rows[0]), (0.0, *rows[1])])).times() for rows in _BOTH_WAYS]
    assert ends == [[(6.5, 6.5), (6.5, 6.5)]] * 2


def test_a_request_goes_where_four_times_those_waiting_and_those_running_are_fewest() -> None:
    engines = [Setup().engine() for _ in range(3)]
    for rank, running, waiting in ((0, 0, 1), (1, 3, 0), (2, 4, 0)):
        for at in range(running):
            engines[rank].add(Request(at, 0.0, 1, 9))
        engines[rank].plan(0.0)
        for at in range(waiting):
            engines[rank].add(Request(9 + at, 0.0, 1, 9))
    assert least_busy(engines) == 1


def test_ranks_that_draft_accept_what_one_engine_accepts_and_spans_change_nothing() -> None:
    drafts = {"policy.name": "speculative", "speculation.drafter": "eagle", "engine.async_scheduling": False}
    ranks, one = (api.run(**LOAD, **{**MOE, **drafts, **more}) for more in ({}, {"dp": 1, "ep": 1}))
    columns = ["status", "output_tokens", "draft_tokens", "accepted_tokens"]
    pd.testing.assert_frame_equal(ranks.requests[columns], one.requests[columns])
    stepwise = api.simulate(ranks.scenario, hooks=api.Hooks(spans=False))
    pd.testing.assert_frame_equal(ranks.requests, stepwise.requests)
    steps = [each.steps.sort_values(["replica", "step"], ignore_index=True) for each in (ranks, stepwise)]
    pd.testing.assert_frame_equal(*steps)


class Told:
    """Costs what it is told, and keeps the shapes that it was asked for."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self._fixed = FixedCost(0.5, 1.0)

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        self.shapes.append(shape)
        return self._fixed.span_s(shape, repeats)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fixed, name)


def test_each_shape_tells_the_fullest_rank_and_the_sum_and_idle_ranks_compute_a_token() -> None:
    cost: Any = Told()
    Served(Setup(cost=cost), 3, workload([(0.0, 4, 2), (0.0, 2, 1)]))
    assert [(shape.prefills, shape.decodes, shape.ranks) for shape in cost.shapes] == [
        (((4, 0),), 0, (4, 7)),
        (((2, 0),), 0, (4, 7)),
        ((), 1, (1, 3)),
    ]


def test_each_shape_tells_the_rows_that_draft_on_the_fullest_rank_and_on_all() -> None:
    cost: Any = Told()
    setup = Drafts(cost=cost, k=2, rates=(0.0,))
    Served(setup, 3, workload([(0.0, 4, 3), (0.0, 2, 3), (0.0, 1, 1), (0.0, 1, 3)]))
    assert {shape.drafting_ranks for shape in cost.shapes[:3]} == {(2, 4)}
    assert all(shape.ranks[0] >= 3 for shape in cost.shapes[3:6]), "a row that verifies computes its drafts too"


def test_a_rank_that_drafts_pays_for_the_experts_of_all() -> None:
    cost = assemble(scenario.load(None, {**MOE, "policy.name": "speculative", "speculation.drafter": "eagle"})).cost
    shape = Shape(verifies=((5, 8, 4000, 0),), proposals=(8, 32, 4), proposal_context=4040)
    alike = shape._replace(ranks=(40, 160), drafting_ranks=(8, 32))
    busier = alike._replace(drafting_ranks=(64, 256))
    assert cost.span_s(shape, 1) == cost.span_s(alike, 1)
    terms, more = cost.explain(alike), cost.explain(busier)
    assert {name for name in terms if terms[name] != more[name]} == {"drafting"}
    assert more["drafting"].seconds > terms["drafting"].seconds


def test_who_waits_for_memory_is_asked_again_in_every_step() -> None:
    """The second rank's request waits for the memory of one that ends in a step; others would have gone on for long."""
    setup = Setup(pool=KvPool(4, 4, 16), cost=FixedCost(1.0), depth=2)
    rows = [(0.0, 1, 14), (0.0, 9, 3), (0.1, 1, 1), (0.1, 9, 3)]
    both = [Served(replace(setup, spans=spans), 2, workload(rows)).times() for spans in (True, False)]
    assert both[0] == both[1]


def test_ranks_of_a_model_without_experts_are_replicas_that_share_a_door() -> None:
    load = {key: value for key, value in LOAD.items() if key != "workload.rate"}
    ranks, replicas = (
        api.run(**load, **{"workload.rate": 1e6}, **more)
        for more in ({"dp": 4}, {"replicas": 4, "router.name": "round-robin", "front_end.name": "off"})
    )
    assert ranks.summary["bill"]["gpus"] == replicas.summary["bill"]["gpus"] == 4
    assert ranks.summary["kv"] == replicas.summary["kv"]
    pd.testing.assert_frame_equal(ranks.steps, replicas.steps)
    pd.testing.assert_frame_equal(ranks.requests, replicas.requests)


def test_ranks_with_experts_start_and_end_their_steps_together() -> None:
    result = api.run(**LOAD, **MOE)
    requests, steps, summary = result.requests, result.steps, result.summary
    assert set(requests["replica"]) == set(steps["replica"]) == {0, 1, 2, 3}
    assert summary["bill"]["gpus"] == 4
    assert (summary["inputs"]["dp"], summary["inputs"]["ep"], summary["inputs"]["replicas"]) == (4, 4, 1)
    stepwise = api.simulate(result.scenario, hooks=api.Hooks(spans=False))
    single = stepwise.steps
    ends = single.groupby("start_s")["end_s"].nunique()
    assert (ends == 1).all(), "ranks that began a step together ended it apart"
    starts = np.sort(single["start_s"].unique())
    assert (np.diff(starts) > 0).all()
    together = single.groupby("start_s").size()
    assert together.max() == 4
    pd.testing.assert_frame_equal(requests, stepwise.requests)


def test_pools_of_ranks_hand_over_between_prompts_and_answers() -> None:
    pools = {
        "pools.prompts.role": "prefill", "pools.answers.role": "decode", "transfer.gb_per_s": 50.0,
        "pools.prompts.count": 2,
    }  # fmt: skip
    result = api.run(**LOAD, **MOE, **pools)
    assert (result.requests["status"] == "completed").all()
    assert set(result.requests["replica"]) == {8, 9, 10, 11}
    assert result.transfers is not None
    assert {place // 4 for place in result.transfers["source"]} == {0, 1}
    assert set(result.transfers["target"]) == {8, 9, 10, 11}
    assert result.summary["bill"]["gpus"] == 12


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dp": 4, "ep": 2}, r"^ep is 2; it is 1 \(each expert is cut over all GPUs\) or tp x dp = 4 \(whole experts"),
        ({"tp": 3, "dp": 1}, r"cannot be split over tp = 3 GPUs; possible are 1, 2, 4"),
        ({"dp": 5}, r"of width 768\) cannot be cut over tp x dp = 5 GPUs; ep = 5 places whole ones$"),
        ({"dp": 200, "ep": 200}, r"^ep is 200, and model 'qwen3-30b-a3b' has 128 experts in a layer: some GPU has"),
        ({"dp": 2, "ep": 2, "redundant_experts": 129}, r"^redundant_experts is 129, and model .* has 128 experts"),
        ({"dp": 2, "redundant_experts": 1}, r"^redundant_experts is 1, and it is read only where ep is above 1$"),
        ({"model": "llama-3.1-8b", "tp": 2, "ep": 2}, r"^ep is 2, and model 'llama-3.1-8b' has no experts to place$"),
        ({"dp": 2, "front_end.name": "vllm-0.33"}, r"^front_end.name is vllm-0.33 and dp is 2: a front end before"),
        ({"dp": 2, "offload.weight_layers": 2}, r"^offload.\* is set and dp is 2: layers in host memory"),
        ({"dp": 2, "gpu": "h200", "cost.profile": "h200-llama-3.1-8b"}, r"^cost.profile is .*; cost.profile=roofline"),
        ({"model": "deepseek-v3", "dp": 8, "ep": 8}, r"with tp = 1, dp = 8, ep = 8: .*fit are tp = 1, dp = 16, ep ="),
        ({"gpu": "rtx-4090", "dp": 16, "ep": 16}, r"\(16 GPUs\) needs 2 nodes, .* choose a replica of at most 8 GPUs"),
        (
            {"dp": 2, "failures.mtbf_s": 9.0, "failures.mttr_s": 1.0},
            r"^failures of replicas of several ranks",
        ),
        ({"ep": 0}, r"^ep is 0; it must be at least 1 and at most"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        api.run(**{**LOAD, "model": "qwen3-30b-a3b", **settings})
