"""Requests for several sequences: parallel samples and beam searches, with every policy and every allocator.

The laws are those of `test_engine_laws.py`, and they hold for each sequence: it gets its tokens, none is computed
twice but after a preemption, and none ever writes where another reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_kit import Run, Setup, run
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, Case, Chaos, Row, cases, laws, pressed
from law_watchers import same_decisions, watched

from sim import api, scenario
from sim.engine.batch import Batch, Limits
from sim.engine.flight import Observer
from sim.engine.memory import KvPool
from sim.engine.request import SAMPLE_BITS, Request, index_of
from sim.engine.step import Step
from sim.load import names
from sim.serving.replica import Replica
from sim.serving.source import Workload
from traces.rows import from_frame
from traces.schema import InputError

few = settings(laws, max_examples=EXAMPLES or 10)
# What drafts has laws of its own.
POLICIES = [name for name in names("sim.policies") if name != "speculative"]
ALLOCATORS = [name for name in names("sim.allocators") if name not in ("windowed", "no-cache")]
PAIRS = list(product(POLICIES, ALLOCATORS))


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_sequences_keep_the_laws(policy: str, allocator: str) -> None:
    @few
    @given(cases(policy, allocator, most_samples=5))
    def keeps(case: Case) -> None:
        case = case.admissible()
        if not case.rows:
            return
        spans = watched(case)
        single = watched(case.without_spans())
        assert (single.table["repeats"] == 1).all()
        same_decisions(spans, single)

    keeps()


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("every_step", [True, False])
def test_sequences_survive_a_chaotic_policy(allocator: str, every_step: bool) -> None:
    @few
    @given(cases(None, allocator, most_samples=5), st.integers(0, 2**32), st.booleans())
    def keeps(case: Case, seed: int, holds: bool) -> None:
        case = case.admissible()
        chaos = Chaos(seed, every_step=every_step, holds_finished=holds)
        if case.rows:
            watched(replace(case, setup=replace(case.setup, policy=chaos)))

    keeps()


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_sequences_keep_the_laws_under_pressure(policy: str, allocator: str) -> None:
    preemptions = searches = 0
    for seed in range(3):
        case = pressed(seed, policy, allocator, most_samples=3).admissible()
        spans = watched(case)
        same_decisions(spans, watched(case.without_spans()))
        preemptions += spans.engine.preemptions
        searches += sum(req.preemptions for req in spans.requests if req.group and req.group.draw_beams)
        assert len(case.rows) == 24
    if allocator in ("paged", "prefix"):
        assert preemptions >= 6, "there was no pressure"
        assert searches >= 1


# ---- small facts ----------------------------------------------------------------------------------------------------


def one_request(prompt: int, output: int, samples: int, *, beams: bool = False, **how: object) -> Case:
    setup = Setup(pool=KvPool(64, 4, 64), **how)  # type: ignore[arg-type]
    return Case(setup, [Row(0.0, prompt, output, samples=samples, beams=beams)], 4)


def copies(done: Run) -> list[int]:
    """How many blocks each batch copies, those that copy none left out."""
    return [len(pairs) for _, pairs, _ in done.watch.moves[0]]


@pytest.mark.parametrize(("prompt", "expected"), [(6, [3]), (8, [])])
@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_of_a_shared_block_each_writer_but_the_last_gets_a_copy(
    allocator: str, prompt: int, expected: list[int]
) -> None:
    # The block that the prompt ends in is shared by four and written by four; a full one is never written.
    assert copies(watched(one_request(prompt, 5, 4, allocator=allocator))) == expected


def test_without_sharing_each_sequence_gets_a_copy_of_the_whole_prompt() -> None:
    assert copies(watched(one_request(6, 5, 4, allocator="contiguous-oracle"))) == [6]


def test_the_full_blocks_of_the_prompt_are_held_once() -> None:
    done = watched(one_request(20, 3, 4, spans=False))
    # After the first step all four hold the five blocks of the prompt; then each has a block of its own.
    assert done.table["kv_shared_tokens"].tolist()[:2] == [20, 20]
    assert done.table["kv_saved_tokens"].tolist()[:2] == [60, 60]
    assert done.table["kv_used_tokens"].tolist()[:3] == [0, 4, 8]


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle"])
def test_a_search_in_which_no_beam_falls_out_is_parallel_sampling(allocator: str) -> None:
    case = replace(one_request(7, 9, 3, beams=True, allocator=allocator), churn=0.0)
    search = watched(case)
    samples = watched(replace(case, rows=[case.rows[0]._replace(beams=False)]))
    assert search.steps == samples.steps
    assert search.watch.moves == samples.watch.moves
    assert search.table["kv_saved_tokens"].tolist()[-1] == samples.table["kv_saved_tokens"].tolist()[-1]


@dataclass(frozen=True)
class Split(Workload):
    """Every request is a group of one."""

    def request(self, index: int, arrival_s: float) -> Request:
        return Workload.request(self, index, arrival_s).split(1)


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-pow2"])
def test_one_sample_is_as_no_samples(allocator: str) -> None:
    case = replace(pressed(1, "chunked", allocator), churn=0.0).admissible()
    plain = case.workload()
    lone = Split(*(getattr(plain, name) for name in Workload.__dataclass_fields__))
    one, other = run(case.setup, plain), run(case.setup, lone)
    assert one.steps == other.steps
    assert one.watch.moves == other.watch.moves
    assert one.ends_s.tobytes() == other.ends_s.tobytes()
    for name in ("first_scheduled_s", "first_token_s", "finish_s", "preemptions"):
        assert one.column(name).tobytes() == other.column(name).tobytes()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("beams", [False, True])
def test_a_request_ends_with_its_last_sequence(beams: bool, depth: int) -> None:
    # Samples that find no budget lag behind; beams step together or not at all.
    case = one_request(3, 6, 3, beams=beams, limits=Limits(8, 3 if beams else 2), depth=depth)
    done = watched(case)
    last = {id: steps[-1] for id, steps in done.token_steps().items()}
    assert (len(set(last.values())) == 1) == beams
    assert done.requests[0].finish_s == done.ends_s[max(last.values())]


class Pauses:
    """The chunked policy, which takes a break of one step after every other."""

    every_step = True

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, step: Step) -> None:
        self._calls += 1
        if self._calls % 2 == 0:
            step.wake_at(step.now_s + 0.001)
            return
        step.advance_running()
        for req in step.waiting:
            step.grant(req)


@pytest.mark.parametrize("allocator", ["paged", "contiguous-oracle"])
@pytest.mark.parametrize("beams", [False, True])
def test_no_copy_is_lost_in_a_step_that_computes_nothing(allocator: str, beams: bool) -> None:
    watched(one_request(6, 5, 3, beams=beams, policy=Pauses(), allocator=allocator))


class EvictAt:
    """The chunked policy, which evicts a given sequence before granting in the given step."""

    every_step = True

    def __init__(self, id: int, step: int) -> None:
        self._id, self._step, self._calls = id, step, 0

    def __call__(self, step: Step) -> None:
        self._calls += 1
        if self._calls == self._step:
            for req in list(step.running):
                if req.id == self._id and req in step.running:
                    step.evict(req)
        step.advance_running()
        if not step.evicted:
            for req in step.waiting:
                step.grant(req)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("allocator", "host_blocks"),
    [("paged", 0), ("paged", 50), ("prefix", 0), ("contiguous-oracle", 0), ("contiguous-oracle", 50)],
)
@pytest.mark.parametrize("beams", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_a_sequence_may_be_evicted_in_any_step(
    number: int, beams: bool, allocator: str, host_blocks: int, depth: int
) -> None:
    """Before its prompt is computed, right after the fork, while its copy is pending, at its last token."""
    for at in range(2, 9):
        policy = EvictAt(number << SAMPLE_BITS, at)
        how = {"allocator": allocator, "host_blocks": host_blocks, "depth": depth}
        limits = Limits(8, 4)
        case = one_request(6, 4, 3, beams=beams, policy=policy, limits=limits, **how)
        other = Row(0.0, 9, 12)
        watched(replace(case, rows=[*case.rows, other]))


class Admissions(Observer):
    """In which step each request computes its first token."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}

    def planned(self, replica: Replica, batch: Batch) -> None:
        for entry in batch.entries:
            self.first.setdefault(index_of(entry.request.id), batch.first_step)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_search_keeps_no_prompt_waiting(samples: int) -> None:
    """Prefill-first batching admits a newcomer in the very next step, whoever decodes."""
    seen = Admissions()
    work = Workload(
        [0.0, 0.0055], [5, 5], [30, 2], samples=[samples, 1], draw_beams=lambda index: lambda beams: [1] * beams
    )
    run(Setup("continuous"), work, [seen])
    assert seen.first == {0: 0, 1: 6}


# ---- who is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocator", "blocks", "fits"),
    # Prompt 10, output 7: 16 tokens of KV, 4 blocks each, of which the first 2 may be shared.
    [
        *[("paged", 8, True), ("paged", 7, False), ("prefix", 8, True), ("prefix", 7, False)],
        *[("contiguous-oracle", 12, True), ("contiguous-oracle", 11, False)],
    ],
)
@pytest.mark.parametrize("beams", [False, True])
def test_a_request_needs_room_for_all_its_sequences(allocator: str, blocks: int, fits: bool, beams: bool) -> None:
    case = one_request(10, 7, 3, beams=beams, allocator=allocator)
    case = replace(case, setup=replace(case.setup, pool=KvPool(blocks, 4, 16)))
    (req,) = case.requests()
    refusal = case.setup.engine().refusal(req)
    if fits:
        assert refusal is None
        done = watched(case)
        assert done.engine.preemptions == 0
    else:
        assert refusal is not None
        assert "3 sequences" in refusal
        assert str(blocks) in refusal


def test_more_sequences_than_seats_or_budget_are_refused() -> None:
    samples, beams = (one_request(10, 7, 5, beams=beams).requests()[0] for beams in (False, True))
    assert "5 sequences exceed max_num_seqs 4" in str(Setup(limits=Limits(4)).engine().refusal(samples))
    assert Setup(limits=Limits(8, 4)).engine().refusal(samples) is None
    assert "5 beams step together" in str(Setup(limits=Limits(8, 4)).engine().refusal(beams))
    plain = Setup(allocator="engine_kit:PlainPaged").engine()
    assert "no way to fork" in str(plain.refusal(samples))


@pytest.mark.parametrize(
    "settings_", [{"engine.max_num_batched_tokens": 3}, {"allocator": "no-cache", "engine.max_num_batched_tokens": 120}]
)
def test_a_search_that_never_fits_is_refused_by_name(settings_: dict[str, Any]) -> None:
    columns = {"arrival_s": [0.0, 0.1], "prompt_tokens": [20, 40], "output_tokens": [20, 20]}
    plan = scenario.build(
        {},
        {
            "engine.preset": "foretoken",
            "workload.samples": 4,
            "workload.beam_search": True,
            "kv.blocks": 400,
            **settings_,
        },
    )
    with pytest.raises(InputError, match="its 4 beams step together"):
        api.simulate(plan, trace=from_frame(pd.DataFrame(columns), name="two", synthetic=True))


# ---- the summary's columns ------------------------------------------------------------------------------------------


def test_the_steps_table_adds_up_with_sharing() -> None:
    done = watched(pressed(2, "chunked", "prefix", most_samples=3).admissible())
    table = done.table
    classes = [f"kv_{name}_tokens" for name in ("used", "shared", "reserved", "internal", "external", "free")]
    assert table[classes].sum(axis=1).eq(done.engine.allocator.pool.tokens).all()
    assert (table["kv_saved_tokens"] >= table["kv_shared_tokens"]).all()
    assert np.any(table["kv_saved_tokens"] > 0)
