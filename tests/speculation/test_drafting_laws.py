"""Laws of drafting: whoever drafts what, every answer is whole, every slot that is attended is right, nothing leaks."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from drafting_kit import Drafts, drafting, run_drafts, watched
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import Case, Row, cases, laws, pressed

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.request import Request, SharedPrefix
from sim.serving.source import Workload
from sim.specs.tree import DraftTree
from sim.speculation.acceptance import Acceptance

BASES = ["chunked", "continuous", "priority", "sjf"]
ALLOCATORS = ["paged", "prefix", "contiguous-oracle", "contiguous-max", "contiguous-pow2", "windowed"]
RATES = [(0.0,), (1.0,), (0.7,), (0.9, 0.5, 0.2)]


@st.composite
def draft_cases(draw: st.DrawFn) -> Case:
    """Random workloads that run short of everything, and drafts of all kinds on top."""
    allocator = draw(st.sampled_from(ALLOCATORS))
    base = draw(st.sampled_from(BASES))
    case = draw(cases("speculative", allocator))
    k = draw(st.integers(0, 5))
    pool = replace(case.setup.pool, blocks=case.setup.pool.blocks + draw(st.integers(0, 2 * k + 1)))
    limits = case.setup.limits
    if draw(st.booleans()):
        limits = replace(limits, max_model_len=max(row.prompt_tokens + row.output_tokens for row in case.rows))
    changes: dict[str, Any] = {"base": base, "k": k, "pool": pool, "limits": limits}
    if allocator == "windowed":
        window = draw(st.integers(pool.block_tokens, pool.block_tokens + 9))
        changes["allocator_parameters"] = {"window_tokens": window, "sink_tokens": draw(st.integers(0, 3))}
    return drafting(
        case,
        **changes,
        rates=draw(st.sampled_from(RATES)),
        seed=draw(st.integers(0, 99)),
        adaptive=draw(st.booleans()),
        lookahead=draw(st.booleans()),
    )


@laws
@given(draft_cases())
def test_every_law_in_small_cases(case: Case) -> None:
    if case.rows:
        watched(case)


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("depth", [1, 2])
def test_every_law_under_pressure(base: str, allocator: str, depth: int) -> None:
    """Two dozen requests of which about three fit at a time: they are preempted, swapped and come back."""
    preempted = 0
    for seed in range(2):
        rng = random.Random(f"{base}{allocator}{depth}{seed}")
        case = pressed(seed, "speculative", allocator)
        changes: dict[str, Any] = {"depth": depth, "host_blocks": rng.choice((0, 6)) * (allocator in ("paged",))}
        if allocator == "windowed":
            changes["allocator_parameters"] = {"window_tokens": 3 + 3 * seed, "sink_tokens": rng.choice((0, 2))}
        done, slots = watched(
            drafting(
                case,
                **changes,
                base=base,
                k=rng.choice((1, 2, 4)),
                rates=rng.choice(RATES[2:]),
                seed=seed,
                pool=KvPool(18 if allocator in ("paged", "prefix") else 24, 3, 60),
                lookahead=rng.random() < 0.3,
            )
        )
        preempted += done.engine.preemptions
        assert slots.by_position[0, True]
        assert slots.by_position[0, False]
    if allocator in ("paged", "prefix"):
        assert preempted > 3


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("widths", [(2, 2, 1), (3,), (1, 1, 2)])
@pytest.mark.parametrize("depth", [1, 2])
def test_every_law_with_trees(allocator: str, widths: tuple[int, ...], depth: int) -> None:
    """All drafts of a tree take budget and blocks; one path of them stays."""
    case = pressed(depth, "speculative", allocator)
    more = {"allocator_parameters": {"window_tokens": 6, "sink_tokens": 2}} if allocator == "windowed" else {}
    tree = DraftTree(widths)
    done, slots = watched(
        drafting(
            case,
            **more,
            depth=depth,
            tree=tree,
            rates=(0.6, 0.4),
            seed=4,
            pool=KvPool(26, 3, 60),
            limits=Limits(5, 24),
        )
    )
    found = done.engine.tally  # type: ignore[attr-defined]
    assert len(found.drafted) == len(widths)
    assert found.tokens == found.rows + sum(found.accepted)
    assert all(not right for at, right in slots.by_position if at >= len(widths))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle"])
def test_no_drafts_are_the_base_policy(base: str, allocator: str) -> None:
    """With k = 0 every decision and every time is that of the base policy, step by step."""
    for seed in range(4):
        case = pressed(seed, base, allocator)
        plain = replace(case.setup, depth=1, policy_parameters={})
        none = drafting(Case(plain, case.rows, 4), base=base, k=0)
        theirs = run(plain, case.workload())
        ours = run_drafts(none.setup, none.workload())  # type: ignore[arg-type]
        assert len(ours.requests) == len(theirs.requests)
        assert ours.steps == theirs.steps
        assert ours.watch.evicted == theirs.watch.evicted
        assert ours.watch.moves == theirs.watch.moves
        assert ours.token_steps() == theirs.token_steps()
        assert ours.ends_s.tolist() == pytest.approx(theirs.ends_s.tolist(), rel=1e-12)
        for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s"):
            assert ours.column(name).tolist() == pytest.approx(theirs.column(name).tolist(), rel=1e-12)
        for name in ("preemptions", "prefix_hit_tokens"):
            assert ours.column(name).tolist() == theirs.column(name).tolist()


def outcomes(case: Case) -> tuple[list[list[tuple[int, int]]], list[list[Any]], list[float]]:
    """(by request: drafts and right ones of each verification; the steps; their ends) of a run."""
    assert isinstance(case.setup, Drafts)
    rows: list[list[tuple[int, int]]] = [[] for _ in case.rows]
    luck = Acceptance(case.setup.rates, case.setup.seed)

    def noted(req: Request, drafts: int) -> int:
        right = luck(req, drafts)
        if drafts:
            rows[req.id].append((drafts, right))
        return right

    done = run_drafts(replace(case.setup, draw=noted), case.workload())
    return rows, [list(step) for step in done.steps], done.ends_s.tolist()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_same_scenario_gives_the_same_run(depth: int) -> None:
    case = drafting(pressed(5, "speculative", "paged"), depth=depth, pool=KvPool(26, 3, 60))
    assert outcomes(case) == outcomes(case)
    other = Case(replace(case.setup, seed=1), case.rows, 4)  # type: ignore[call-arg]
    assert outcomes(case) != outcomes(other)


def test_draws_do_not_depend_on_other_requests() -> None:
    """A request's drafts are right or wrong alike, alone and in a crowd that takes its budget and preempts it."""
    work = [(0.001 * at, 3 + at, 40) for at in range(8)]
    tight = Drafts(k=4, pool=KvPool(26, 4, 64), limits=Limits(8, 24))
    crowd, preemptions = looked_at(tight, work)
    assert preemptions > 0
    alone, _ = looked_at(replace(tight, pool=KvPool(400, 4, 64), limits=Limits(1, 64)), work)
    for one, other in zip(crowd, alone, strict=True):
        both = one.keys() & other.keys()
        assert len(both) > 15
        assert all(one[at] == other[at] for at in both)


def looked_at(setup: Drafts, work: list[tuple[float, int, int]]) -> tuple[list[dict[int, bool]], int]:
    """(of each request: by place in its answer, whether the draft that was looked at was right; preemptions)."""
    luck = Acceptance(setup.rates, setup.seed)
    given = [0] * len(work)
    found: list[dict[int, bool]] = [{} for _ in work]

    def noted(req: Request, drafts: int) -> int:
        right = luck(req, drafts)
        for at in range(min(right + 1, drafts)):
            assert given[req.id] + at not in found[req.id], "a token's draft decides twice"
            found[req.id][given[req.id] + at] = at < right
        given[req.id] += right + 1
        return right

    return found, run_drafts(replace(setup, draw=noted), workload(work)).engine.preemptions


def test_a_request_swapped_out_with_drafts_under_way_comes_back() -> None:
    """The KV of drafts that prove wrong later is not kept on the host; the request goes on from what was right."""
    moved = 0
    for seed in range(6):
        case = pressed(seed, "speculative", "paged")
        case = drafting(case, depth=2, host_blocks=12, k=3, rates=(0.5,), seed=seed, pool=KvPool(20, 3, 60))
        done, _ = watched(case)
        moved += len(done.watch.moves[0])
    assert moved > 10


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-max", "contiguous-oracle", "contiguous-pow2"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("lookahead", [False, True])
def test_whoever_is_not_refused_can_be_served_alone(allocator: str, depth: int, lookahead: bool) -> None:
    """The smallest pool that refuses nobody is enough; one block less refuses."""
    setup = Drafts(allocator=allocator, depth=depth, k=5, rates=(1.0,), lookahead=lookahead)
    for output in (1, 2, 3, 8, 19, 20):
        work = workload([(0.0, 7, output)])
        req = Request(0, 0.0, 7, output)
        need = next(
            blocks
            for blocks in range(3, 60)
            if replace(setup, pool=KvPool(blocks, 2, 40)).engine().refusal(req) is None
        )
        done = run_drafts(replace(setup, pool=KvPool(need, 2, 40)), work)
        assert done.engine.preemptions == 0
        if allocator not in ("contiguous-max", "contiguous-pow2"):
            assert need <= -(-(7 + output - 1 + (2 if depth == 2 else 1) * 5 + 5 * lookahead) // 2)


@pytest.mark.parametrize("allocator", ["paged", "contiguous-max"])
@pytest.mark.parametrize("depth", [1, 2])
def test_no_draft_lies_beyond_the_longest_length(allocator: str, depth: int) -> None:
    """A request of full length is served, and computes no position that the model does not have."""
    limits = Limits(max_model_len=40)
    for output in (1, 2, 5, 20, 33):
        for rates in ((1.0,), (0.5,), (0.0,)):
            rows = [Row(0.0, 40 - output, output), Row(0.0, 3, 9)]
            setup = Setup("speculative", allocator, pool=KvPool(64, 4, 40), limits=limits, depth=depth)
            watched(drafting(Case(setup, rows, 4), k=6, rates=rates))


@pytest.mark.parametrize("output", [1, 2, 6])
def test_nothing_is_computed_for_who_ends_with_what_is_under_way(output: int) -> None:
    """Early plans leave out a request that one token under way will end (vLLM V1, `Scheduler.schedule`)."""
    setup = Drafts(depth=2, k=3, rates=(0.0,), cost=FixedCost(0.001))
    assert len(run_drafts(setup, workload([(0.0, 5, output)])).steps) == output


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("rates", [(0.0,), (0.6,), (1.0,)])
def test_only_what_surely_has_kv_is_found_by_the_next_turn(depth: int, rates: tuple[float, ...]) -> None:
    """An answer of which all is named: its last token need not have been fed back, whatever was drafted behind it.

    Planned early, a block is named when its tokens are known; else by the next allocation, so that what the last step
    found right stays unnamed (vLLM V1, `KVCacheManager.allocate_slots`).
    """
    for output in range(1, 14):
        text = 4 + output
        ids = tuple(range(10, 10 + text + 8))
        work = Workload([0.0], [4], [output], prefix_ids=[ids[:text]], known_tokens=[text])
        setup = Drafts(allocator="prefix", depth=depth, k=4, rates=rates, pool=KvPool(32, 4, 64))
        done = run_drafts(setup, work)
        follower = Request(1, 1.0, text + 8, 1, 0, SharedPrefix(ids, 1))
        ((_, _, past),) = done.steps[-1]
        named = text - 1 if depth == 2 else max(4, past + 1)  # what was known when memory was last given
        assert done.engine.allocator.match(follower) == named // 4 * 4


def test_what_is_computed_again_in_chunks_is_no_draft() -> None:
    """After a preemption chunks begin behind the prompt; they are prefills, with and without a drafting policy."""
    pool, limits, work = KvPool(12, 4, 64), Limits(4, 8), workload([(0.0, 4, 30)] * 2)
    plain = run(Setup(pool=pool, limits=limits), work)
    assert plain.engine.preemptions > 0
    assert not plain.table["draft_tokens"].any()
    assert (plain.table["prefill_past_tokens"] > 4).any()
    ours = run_drafts(Drafts(pool=pool, limits=limits, k=2, rates=(0.5,)), work)
    assert ours.engine.preemptions > 0
    assert ours.table["draft_tokens"].max() <= 4
    assert (ours.table["prefill_past_tokens"] > 4).any()


@pytest.mark.parametrize("base", BASES)
def test_a_budget_cuts_drafts_where_it_cuts_no_prompt(base: str) -> None:
    """Without chunked prefill the running list is still cut, as in vLLM V1, so that nobody waits for ever."""
    limits = Limits(4, 12, chunked_prefill=False)
    case = Case(Setup("speculative", limits=limits), [Row(0.0, 5, 6), Row(0.0, 4, 9), Row(0.0, 2, 7)], 4)
    done, slots = watched(drafting(case, base=base, k=15, rates=(0.5,)))
    assert slots.by_position[10, False]
    assert max(sum(tokens for _, tokens, _ in step) for step in done.steps) == 12
