"""Drafting changes no token: live runs answer as without drafts, whoever drafts, schedules, preempts or shares memory.

The answers without drafts are held to a float64 forward of the whole text; memory that nobody holds is NaN.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import torch
from drafting_kit import Drafts
from engine_kit import workload
from hypothesis import given, settings
from hypothesis import strategies as st
from live_drafting_kit import Drafting, drafts, truncated
from live_kit import MEMORY, POOL, ROWS, Deployment, check_all, check_greedy, reference_logits, setup, tiny, work
from test_live import shared_prompts
from test_live_memory import recomputed

from backend.cache.kvcache import KvCache
from backend.drafting.draft_model import DraftModel
from backend.drafting.ngram import looked_up
from backend.live.sampling import Sampling
from backend.model.model import ForwardBatch, Model
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.drafting import DraftingEngine
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.tally import Tally
from sim.serving.executor import Executor
from sim.speculation.drafters import FixedDrafts
from traces.schema import InputError

BASES = ["chunked", "continuous", "priority", "sjf"]
ALLOCATORS = ["paged", "prefix", "contiguous-oracle", "contiguous-max", "contiguous-pow2"]
TO_LENGTH = Limits(max_num_seqs=6, max_num_batched_tokens=48, max_model_len=40)
SHORT = KvPool(14, 4, 44)
HOT = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=5)
NOBODY, ITSELF, FIRST_LAYER = None, "itself", "first layer"
"""Who drafts: a look-up, the target, or a part of it."""


def model_of(drafter: str | None, *attention: int) -> Model | None:
    return {ITSELF: tiny, FIRST_LAYER: truncated}[drafter]("llama", *attention) if drafter else None


def tally(served: Any) -> Tally:
    assert isinstance(served.engine, DraftingEngine)
    return served.engine.tally


@pytest.fixture(scope="module")
def answers() -> dict[int, list[int]]:
    """What the model says to each of `ROWS` without drafts, held to the reference."""
    served = Deployment(setup(pool=KvPool(400, 4, 40))).serve(work())
    check_all(served, ROWS)
    return served.answers


@pytest.mark.parametrize(
    ("base", "allocator"), [*(("chunked", one) for one in ALLOCATORS), *((base, "prefix") for base in BASES[1:])]
)
@pytest.mark.parametrize("drafter", [NOBODY, FIRST_LAYER])
def test_answers_are_those_without_drafts(
    base: str, allocator: str, drafter: str | None, answers: dict[int, list[int]]
) -> None:
    chosen = drafts(base, allocator, limits=TO_LENGTH)
    served = Drafting(chosen, draft=model_of(drafter)).serve(work())
    assert served.answers == answers
    found = tally(served)
    assert 0 < sum(found.accepted) < sum(found.drafted)
    assert served.engine.allocator.free_blocks == POOL.blocks
    assert not served.engine.busy


@pytest.mark.parametrize("k", [1, 7, 11])
def test_a_model_that_drafts_for_itself_is_always_right(k: int, answers: dict[int, list[int]]) -> None:
    """Which needs a cache without a gap after each round; 11 drafts are more than one row of decode attention."""
    served = Drafting(drafts("chunked", "contiguous-oracle", k), draft=tiny()).serve(work())
    assert served.answers == answers
    found = tally(served)
    assert found.accepted == found.drafted
    assert found.found == found.asked
    assert found.tokens == (k + 1) * found.rows


@pytest.mark.parametrize(("allocator", "host_blocks"), MEMORY)
@pytest.mark.parametrize("drafter", [NOBODY, ITSELF])
def test_preempted_requests_go_on_as_if_nothing_had_been(
    drafter: str | None, allocator: str, host_blocks: int, answers: dict[int, list[int]]
) -> None:
    """By recomputation, by swapping both caches, and by both; the drafter too has what it had, so it stays right."""
    tight = drafts("continuous", allocator, pool=SHORT, host_blocks=host_blocks)
    served = Drafting(tight, draft=model_of(drafter)).serve(work())
    assert served.answers == answers
    assert served.engine.preemptions > 2
    assert bool(served.executor.swapped) == bool(host_blocks)
    assert served.engine.host.free_blocks == host_blocks
    if drafter is ITSELF:
        assert tally(served).accepted == tally(served).drafted


class Seldom(Drafts):
    """Whose requests draft now and then."""

    def engine(self) -> DraftingEngine:
        engine = super().engine()
        engine.proposer = Now(3)
        return engine


class Now(FixedDrafts):
    def propose(self, req: Request, running: int) -> int:
        return self.most if req.known // 7 % 2 else 0


def test_a_drafter_keeps_up_where_blocks_are_given_away() -> None:
    """Behind a window nothing could be computed later."""
    window = drafts(allocator="windowed", pool=KvPool(36, 4, 40), allocator_parameters={"window_tokens": 5})
    served = Drafting(Seldom(**vars(window)), model=tiny("llama", 5), draft=tiny("llama", 5)).serve(work())
    check_all(served, ROWS, window=5)
    assert tally(served).accepted == tally(served).drafted
    assert sum(tally(served).drafted) > 20


@pytest.mark.parametrize("allocator", ["prefix", "paged"])
def test_a_drafter_that_is_not_asked_falls_behind_and_catches_up(allocator: str, answers: dict[int, list[int]]) -> None:
    """Blocks that the target filled alone are found again by their names, and hold nothing of the drafter's."""
    some = Seldom(**vars(drafts(allocator=allocator, pool=SHORT, host_blocks=9 * (allocator == "paged"))))
    served = Drafting(some, draft=tiny()).serve(work())
    assert served.answers == answers
    assert served.engine.preemptions > 5
    assert tally(served).accepted == tally(served).drafted
    assert sum(tally(served).drafted) > 20


def test_a_swap_spares_the_drafters_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was moved to the host and back is not computed again: each prompt is fed once, with the first token."""
    draft, forward = truncated(), Model.forward
    fed = 0

    def watch(model: Model, batch: ForwardBatch, cache: KvCache) -> torch.Tensor:
        nonlocal fed
        fed += int(batch.prefill.q_starts[-1]) if model is draft and batch.prefill is not None else 0
        return forward(model, batch, cache)

    monkeypatch.setattr(Model, "forward", watch)
    swapping = drafts("continuous", pool=SHORT, host_blocks=90)
    served = Drafting(swapping, draft=draft).serve(work())
    assert served.executor.swapped > 10
    assert fed <= sum(prompt + 1 for _, prompt, _ in ROWS)


@pytest.mark.parametrize("tokens", [2, 7])
def test_drafts_may_be_cut_anywhere(tokens: int, answers: dict[int, list[int]]) -> None:
    """By a budget that prompts and drafts share."""
    small = drafts(limits=Limits(max_num_seqs=3, max_num_batched_tokens=tokens), host_blocks=5)
    for drafter in (NOBODY, ITSELF):
        served = Drafting(small, draft=model_of(drafter)).serve(work())
        assert served.answers == answers
    assert tally(served).accepted == tally(served).drafted


WINDOWS = [(8, 0), (5, 5)]


@pytest.mark.parametrize(("window", "sinks"), WINDOWS)
@pytest.mark.parametrize("drafter", [NOBODY, ITSELF])
def test_windows_and_sinks(window: int, sinks: int, drafter: str | None) -> None:
    """The drafter attends the same window; blocks behind it are others', or NaN."""
    parameters = {"window_tokens": window, "sink_tokens": sinks}
    short = drafts("chunked", "windowed", pool=KvPool(36, 4, 40), allocator_parameters=parameters)
    served = Drafting(short, model=tiny("llama", window, sinks), draft=model_of(drafter, window, sinks)).serve(work())
    check_all(served, ROWS, window=window, sinks=sinks)
    assert sum(tally(served).accepted) > 10
    if drafter is ITSELF:
        assert tally(served).accepted == tally(served).drafted


def test_a_prefix_hit_spares_the_drafters_prefill_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, draft = shared_prompts(), truncated()
    fed: list[int] = []
    forward = Model.forward

    def watch(model: Model, batch: ForwardBatch, cache: KvCache) -> torch.Tensor:
        if model is draft and batch.prefill is not None:
            fed.append(int(batch.prefill.q_starts[-1]))
        return forward(model, batch, cache)

    monkeypatch.setattr(Model, "forward", watch)
    computed = []
    for allocator in ("paged", "prefix"):
        fed.clear()
        served = Drafting(drafts(allocator=allocator), draft=draft).serve(sent)
        check_all(served, list(zip(sent.arrival_s, sent.prompt_tokens, sent.output_tokens, strict=True)))
        computed.append(sum(fed))
    hits = sum(req.prefix_hit_tokens for req in served.requests.values())
    assert hits >= 40
    assert computed[0] - computed[1] >= hits - 8


@pytest.mark.parametrize(
    ("allocator", "drafter"), [("paged", ITSELF), ("prefix", FIRST_LAYER), ("contiguous-oracle", FIRST_LAYER)]
)
def test_both_caches_hold_what_the_tables_say(allocator: str, drafter: str) -> None:
    """After every fourth step, what the drafter counts as its own is the KV of the sequence's tokens."""
    own = model_of(drafter) or tiny()
    some = drafts(allocator=allocator, host_blocks=6 * (allocator == "paged"), pool=KvPool(20, 4, 44))
    run = Drafting(some, draft=own)
    checked = 0

    class Looking:
        def __init__(self, inner: Executor) -> None:
            self.inner: Any = inner

        def execute(self, batch: Batch) -> Outcome:
            nonlocal checked
            result = self.inner.execute(batch)
            if batch.first_step % 4 == 0:
                checked += sum(map(self.check, self.inner._engine.running))
            return result  # type: ignore[no-any-return]

        def check(self, req: Any) -> bool:
            drafter, live = run.drafter, self.inner._live
            assert isinstance(drafter, DraftModel)
            held = drafter._held[req]
            if held.seq != req.seat.seq or not held.valid:
                return False
            sequence = live.sequences.of(req)
            tokens = live.sequences.tokens(slice(sequence.start, sequence.start + held.valid)).tolist()
            alone = recomputed(own, tokens, 4)
            blocks = list(self.inner._engine.allocator.table(req))[: alone.blocks]
            for mine, fresh in zip(drafter._cache.layers, alone.layers, strict=True):
                for kept, expected in zip(mine.tensors(), fresh.tensors(), strict=True):
                    difference = kept[blocks].flatten(0, 1)[: held.valid] - expected[1:].flatten(0, 1)[: held.valid]
                    assert difference.abs().max() < 2e-5
            return True

    run.serve(work(), Looking)
    assert checked > 15


@settings(max_examples=8)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=8),
    base=st.sampled_from(BASES),
    allocator=st.sampled_from(["paged", "prefix", "contiguous-oracle", "contiguous-pow2"]),
    drafter=st.sampled_from([NOBODY, ITSELF, FIRST_LAYER]),
    blocks=st.integers(14, 30),
    block_tokens=st.sampled_from([1, 4, 5, 16]),
    budget=st.integers(1, 60),
    k=st.integers(1, 5),
    host_blocks=st.sampled_from([0, 8]),
    lookahead=st.booleans(),
    adaptive=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_workload_is_answered_as_the_reference_has_it(
    rows: list[tuple[int, int, int]],
    base: str,
    allocator: str,
    drafter: str | None,
    blocks: int,
    block_tokens: int,
    budget: int,
    k: int,
    host_blocks: int,
    lookahead: bool,
    adaptive: bool,
    seed: int,
) -> None:
    pool = KvPool(-(-4 * blocks // block_tokens), block_tokens, 48)
    limits = Limits(5, budget, max_model_len=48)
    host_blocks = host_blocks if allocator != "prefix" else 0
    some = drafts(base, allocator, k, pool=pool, limits=limits, host_blocks=host_blocks, lookahead=lookahead)
    timed = sorted((at / 1000, prompt, output) for at, prompt, output in rows)
    run = Drafting(replace(some, adaptive=adaptive), seed=seed, draft=model_of(drafter))
    served = run.serve(workload(timed))
    check_all(served, timed)
    assert served.engine.allocator.free_blocks == pool.blocks
    assert served.engine.host.free_blocks == host_blocks
    if drafter is ITSELF:
        assert tally(served).accepted == tally(served).drafted


# ---- at a temperature -----------------------------------------------------------------------------------------------


def test_what_is_looked_up_changes_no_token_at_any_temperature(answers: dict[int, list[int]]) -> None:
    plain = Deployment(setup(), sampling=HOT).serve(work()).answers
    assert plain != answers
    served = Drafting(drafts(allocator="prefix", pool=SHORT), sampling=HOT, lookup=(1, 1)).serve(work())
    assert served.answers == plain
    assert sum(tally(served).accepted) > 2


def test_drafts_drawn_by_the_target_itself_all_stay() -> None:
    served = Drafting(drafts(allocator="contiguous-oracle"), sampling=HOT, draft=tiny()).serve(work())
    assert tally(served).accepted == tally(served).drafted
    other = Drafting(drafts(allocator="contiguous-oracle"), sampling=replace(HOT, seed=6), draft=tiny()).serve(work())
    assert other.answers != served.answers


def test_drawn_tokens_do_not_depend_on_who_else_runs() -> None:
    """As long as nobody's drafts are cut: three at a time or all, in any order, with any memory that has room."""
    together = Drafting(drafts(allocator="contiguous-oracle"), sampling=HOT, draft=truncated()).serve(work()).answers
    few = drafts("sjf", "contiguous-oracle", limits=Limits(3, 48), pool=KvPool(33, 4, 44))
    assert Drafting(few, sampling=HOT, draft=truncated()).serve(work()).answers == together


# ---- looking up -----------------------------------------------------------------------------------------------------


def found_by_hand(tokens: list[int], drafts: int, shortest: int, longest: int) -> list[int]:
    for length in range(longest, shortest - 1, -1):
        for at in range(len(tokens) - length):
            if length < len(tokens) and tokens[at : at + length] == tokens[-length:]:
                return tokens[at + length :][:drafts]
    return []


@settings(max_examples=150)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=25),
    drafts=st.integers(1, 6),
    shortest=st.integers(1, 4),
    more=st.integers(0, 4),
)
def test_the_longest_end_that_stood_before_is_found_where_it_stood_first(
    tokens: list[int], drafts: int, shortest: int, more: int
) -> None:
    found = looked_up(np.array(tokens, np.int32), drafts, shortest, shortest + more)
    assert found.tolist() == found_by_hand(tokens, drafts, shortest, shortest + more)


def test_a_look_up_by_hand() -> None:
    """The longest match, its earliest place, an end that overlaps with itself, and a text that ends."""
    text = np.array([1, 2, 3, 4, 1, 2, 3], np.int32)
    assert looked_up(text, 2, 2, 2).tolist() == [4, 1]
    assert looked_up(text, 5, 3, 3).tolist() == [4, 1, 2, 3]
    assert looked_up(text, 2, 4, 4).tolist() == []
    assert looked_up(text, 2, 3, 4).tolist() == [4, 1]
    assert looked_up(np.array([3, 4, 5, 2, 3, 4, 1, 2, 3, 4], np.int32), 2, 2, 4).tolist() == [1, 2]
    assert looked_up(np.array([7, 7, 7], np.int32), 4, 1, 3).tolist() == [7]


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_a_drafter_whose_logits_are_not_finite_ends_the_run_in_a_sentence() -> None:
    model = truncated()
    broken = replace(model.weights, final_norm=model.weights.final_norm * float("nan"))
    for sampling in (Sampling(), HOT):
        run = Drafting(drafts(), sampling=sampling, draft=Model(model.spec, model.config, broken))
        with pytest.raises(InputError, match="logits of draft model 'first layer' are not finite"):
            run.serve(work())


def test_answers_of_a_window_model(answers: dict[int, list[int]]) -> None:
    """Mistral's window of 7, with all its KV held."""
    model = tiny("mistral")
    plain = Deployment(setup(), model=model).serve(work()).answers
    served = Drafting(drafts(), model=model, draft=model).serve(work())
    assert served.answers == plain
    check_greedy(served.prompts[0], served.answers[0], partial(reference_logits, "mistral", window=7))
