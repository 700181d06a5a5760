"""Adapters in an engine: who may run together, what has a slot, what is loaded, and that nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from engine_kit import Run, Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import EXAMPLES, Case, cases, laws

from sim.engine.adapters import Adapters
from sim.engine.batch import Batch, Limits
from sim.engine.flight import ObservedReplica, Observer
from sim.engine.memory import KvPool
from sim.engine.request import Adapter, Request
from sim.engine.rules import OF_VLLM_0_33
from sim.serving.source import Workload

NAMED = [None, *(Adapter(number, f"adapter-{number}", 8) for number in range(1, 7))]
COLUMNS = ("first_scheduled_s", "first_token_s", "finish_s", "preemptions", "prefix_hit_tokens")


class Slots(Observer):
    """Gives each engine its slots before it plans, and holds every plan to what they allow."""

    def __init__(self, slots: int, kept: int) -> None:
        self._sizes = slots, kept
        self.loads = 0
        self.deferred = 0

    def before_plan(self, replica: ObservedReplica) -> None:
        if replica.engine.adapters is None:
            replica.engine.adapt(*self._sizes)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        engine, (slots, kept) = replica.engine, self._sizes
        adapters: Adapters = engine.adapters
        runs = {req.adapter for req in engine.running if req.adapter is not None}
        rows = [(entry.request.adapter, entry.tokens) for entry in batch.rows]
        busy = {adapter for adapter, _ in rows if adapter is not None}
        assert busy <= runs | {req.adapter for req in batch.evicted}
        assert len(runs) <= slots
        assert len(adapters.resident) <= slots
        assert set(adapters.resident) <= set(adapters._kept)
        assert len(adapters._kept) <= kept
        assert adapters.deferred <= set(engine.waiting)
        if not batch.empty:
            assert runs <= set(adapters.resident)
            assert not {load.evicted for load in batch.loads} & runs
            work = batch.shape.adapters
            assert (work.adapters, work.tokens) == (len(busy), sum(tokens for one, tokens in rows if one is not None))
            assert work.loads == tuple((load.adapter.rank, load.disk) for load in batch.loads)
            assert batch.repeats == 1 or not batch.loads
        self.loads += len(batch.loads)
        self.deferred += batch.deferred


def same(one: Run, other: Run) -> None:
    for name in COLUMNS:
        assert one.column(name).tolist() == other.column(name).tolist(), name


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
@pytest.mark.parametrize("policy", ["chunked", "continuous", "priority", "sjf"])
def test_slots_are_never_exceeded_and_all_are_answered(policy: str, allocator: str) -> None:
    deferred = 0

    @laws
    @given(cases(policy, allocator), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2**32))
    def keeps(case: Case, slots: int, more: int, seed: int) -> None:
        nonlocal deferred
        case = case.admissible()
        if not case.rows:
            return
        rng = random.Random(seed)
        asked = [rng.choice(NAMED) for _ in case.rows]
        done = []
        for spans in (True, False):
            setup = replace(case.setup, spans=spans)
            watch = Slots(slots, slots + more)
            done.append(run(setup, replace(case.workload(), adapters=asked), [watch]))
            engine = done[-1].engine
            deferred += watch.deferred
            admissions = sum(1 + req.preemptions for req in done[-1].requests if req.adapter is not None)
            assert len({one for one in asked if one is not None}) <= watch.loads <= admissions
            assert engine.adapters.evictions == max(0, watch.loads - len(engine.adapters.resident))
            assert not engine.adapters.deferred
        same(*done)

    keeps()
    assert deferred > 20 or 0 < EXAMPLES < 20, "nobody waited for a slot"


@laws
@given(cases("chunked", "paged"), st.integers(0, 2**32))
def test_with_a_slot_for_each_nothing_changes(case: Case, seed: int) -> None:
    case = case.admissible()
    if case.rows:
        rng = random.Random(seed)
        asked = [rng.choice(NAMED) for _ in case.rows]
        with_slots = run(case.setup, replace(case.workload(), adapters=asked), [Slots(6, 6)])
        same(run(case.setup, case.workload()), with_slots)


@laws
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**32))
def test_what_was_used_last_stays(slots: int, more: int, seed: int) -> None:
    rng = random.Random(seed)
    running: list[Request] = []
    adapters, kept = Adapters(slots, slots + more, running), slots + more
    recent: list[Adapter] = []  # the one that was used last is last
    for _ in range(60):
        used = rng.sample([one for one in NAMED if one is not None], rng.randint(1, slots))
        running[:] = [Request(0, 0.0, 1, 1) for _ in used]
        for req, one in zip(running, used, strict=True):
            req.adapter = one
        in_slots, in_host = recent[-slots:], recent[-kept:]
        adapters.changed()
        loads = adapters.serve()
        found = [one for one in used if one in in_slots]
        recent = [one for one in recent if one not in used] + found + [one for one in used if one not in found]
        assert [load.adapter for load in loads] == [one for one in used if one not in in_slots]
        assert [load.disk for load in loads] == [load.adapter not in in_host for load in loads]
        assert set(adapters.resident) == set(recent[-slots:])


def asking(numbers: Sequence[int], rows: Sequence[tuple[float, int, int]], **more: object) -> Workload:
    return workload(rows, adapters=[NAMED[number] for number in numbers], **more)


def test_who_has_no_slot_lets_others_pass_and_keeps_its_place() -> None:
    # One slot: 1 runs, 2 waits for its end; 1 again and no adapter at all pass it, and 2 runs before the third 1.
    rows = [(0.0, 4, 4), (0.0, 4, 2), (0.0, 4, 2), (0.0, 4, 9), (0.0045, 4, 2)]
    watch = Slots(1, 1)
    done = run(Setup(limits=Limits(8, 64)), asking([1, 2, 1, 0, 1], rows), [watch])
    assert done.column("first_scheduled_s").round(6).tolist() == [0.0, 0.004, 0.0, 0.0, 0.006]
    assert watch.loads == 3


def test_a_full_step_passes_nobody() -> None:
    """Who was not reached is no one who waits for a slot: a backlog of prompts ends the holding of prefills."""
    rows = [(0.0, 4, 30), (0.0, 4, 30), (0.001, 4, 2)]
    setup = Setup(
        limits=Limits(2, 64), policy_parameters={"prefill_schedule_interval": 3}, rules=OF_VLLM_0_33, spans=False
    )
    watch = Slots(1, 1)
    run(setup, asking([1, 1, 2], rows), [watch])
    assert watch.deferred == 0


def test_a_prefix_is_shared_under_one_adapter_alone() -> None:
    rows = [(at * 0.1, 33, 2) for at in range(6)]
    setup = Setup(allocator="prefix", pool=KvPool(400, 16, 64))
    prefix = {"prefix_ids": [[7, 8]] * 6, "prefix_unit_tokens": 16}
    done = run(setup, asking([0, 1, 2, 1, 0, 2], rows, **prefix), [Slots(2, 2)])
    assert done.column("prefix_hit_tokens").tolist() == [0, 0, 0, 32, 32, 32]
