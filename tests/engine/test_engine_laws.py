"""Laws that hold for every policy with every allocator, on random workloads that run short of everything.

The random workloads are in `law_cases.py`, what is recomputed beside every run in `law_watchers.py`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from engine_kit import Setup, run, workload
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import Case, Chaos, Row, cases, chained, laws, pressed
from law_watchers import same_decisions, watched

from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.engine import Engine
from sim.engine.flight import Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.step import Step
from sim.load import names
from sim.serving.progress import NoProgressError
from sim.serving.replica import Replica
from sim.serving.source import Workload

POLICIES = names("sim.policies")
# Those that keep less than what was computed have laws of their own: test_windowed.py, test_no_cache.py.
ALLOCATORS = [name for name in names("sim.allocators") if name not in ("windowed", "no-cache")]

# ---- the laws -------------------------------------------------------------------------------------------------------

PAIRS = list(product(POLICIES, ALLOCATORS))


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_every_policy_with_every_allocator_keeps_the_laws(policy: str, allocator: str) -> None:
    @laws
    @given(cases(policy, allocator))
    def keeps(case: Case) -> None:
        case = case.admissible()
        if not case.rows:
            return
        spans = watched(case)
        single = watched(case.without_spans())
        assert (single.table["repeats"] == 1).all()
        same_decisions(spans, single)

    keeps()


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_the_laws_hold_under_pressure(policy: str, allocator: str) -> None:
    preemptions = 0
    for seed in range(4):
        case = pressed(seed, policy, allocator).admissible()
        spans = watched(case)
        same_decisions(spans, watched(case.without_spans()))
        preemptions += spans.engine.preemptions
        assert len(case.rows) == 24
    assert preemptions >= (2 if allocator in ("paged", "prefix") else 0), "there was no pressure"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_allocator_that_knows_no_spans_decides_alike(policy: str) -> None:
    for seed in range(4):
        case = pressed(seed, policy, "paged")
        grouped = replace(case, setup=replace(case.setup, allocator_parameters={}))
        plain = replace(case, setup=replace(case.setup, allocator="engine_kit:PlainPaged", allocator_parameters={}))
        same_decisions(watched(grouped), watched(plain))


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("every_step", [True, False])
def test_a_chaotic_policy_breaks_no_law(allocator: str, every_step: bool) -> None:
    @laws
    @given(cases(None, allocator), st.integers(0, 2**32), st.booleans())
    def keeps(case: Case, seed: int, holds: bool) -> None:
        case = case.admissible()
        chaos = Chaos(seed, every_step=every_step, holds_finished=holds)
        case = replace(case, setup=replace(case.setup, policy=chaos))
        if case.rows:
            watched(case)

    keeps()


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle", "contiguous-pow2"])
@laws
@given(prompt=st.integers(1, 50), output=st.integers(1, 50), blocks=st.integers(1, 12))
def test_who_is_refused_could_never_finish_even_alone(allocator: str, prompt: int, output: int, blocks: int) -> None:
    setup = Setup(allocator=allocator, pool=KvPool(blocks, 4))
    req = Request(0, 0.0, prompt, output)
    refused = setup.engine().refusal(req)
    if refused is None:
        run(setup, Workload([0.0], [prompt], [output]))
        return
    assert f"{blocks}" in refused
    unguarded = setup.engine()
    unguarded.add(req)
    with pytest.raises(NoProgressError):
        _drive(unguarded)


def _drive(engine: Engine) -> None:
    """An executor without a clock: plan, seal, commit, until nothing is left or nothing moves."""
    while engine.busy:
        batch = engine.plan(0.0)
        if batch.empty:
            raise NoProgressError
        engine.seal(batch, batch.repeats)
        engine.commit(batch, Outcome([0.0] * batch.repeats, [0.0] * batch.repeats, 0.0), 0.0)


# ---- who sends the requests -----------------------------------------------------------------------------------------


class Population(Observer):
    """The most requests that were in the system at any planning."""

    def __init__(self) -> None:
        self.most = 0

    def planned(self, replica: Replica, batch: Batch) -> None:
        self.most = max(self.most, replica.outstanding)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("users", [1, 3, 100])
def test_a_closed_loop_keeps_all_its_users_busy(users: int, depth: int) -> None:
    population = Population()
    work = Workload([0.0] * 40, [5 + at % 7 for at in range(40)], [1 + at % 5 for at in range(40)])
    done = run(Setup(concurrency=users, depth=depth), work, [population])
    assert population.most == min(users, 40)
    arrivals, ends = np.sort(done.column("arrival_s")), np.sort(done.column("finish_s"))
    # Request n comes just after the (n - users)th of all has finished.
    assert arrivals[users:].tolist() == np.nextafter(ends[: max(0, 40 - users)], np.inf).tolist()


@pytest.mark.parametrize("concurrency", [0, 1, 2])
def test_a_turn_starts_when_its_user_has_read_the_answer(concurrency: int) -> None:
    # Rows 0-2-4 and 1-3 are sessions; a follower's own arrival time is not used.
    work = Workload(
        [0.0, 0.001, 0.002, 0.002, 0.002],
        [4, 5, 6, 7, 8],
        [3, 9, 2, 2, 2],
        after=[-1, -1, 0, 1, 2],
        think_s=[0.0, 0.0, 0.5, 0.25, 0.0],
    )
    done = run(Setup(concurrency=concurrency), work)
    arrived, ended = done.column("arrival_s"), done.column("finish_s")
    assert arrived[2] == ended[0] + 0.5
    assert arrived[3] == ended[1] + 0.25
    assert arrived[4] == np.nextafter(ended[2], 1)
    # With one user the second session starts when the first has ended for good.
    assert arrived[1] == {0: 0.001, 1: np.nextafter(ended[4], 1), 2: 0.0}[concurrency]


@pytest.mark.parametrize("spans", [True, False])
@pytest.mark.parametrize("sessions", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_nobody_answers_within_the_step_boundary_that_ends_the_last_answer(
    spans: bool, sessions: bool, depth: int
) -> None:
    """vLLM schedules as soon as it has taken in a step's output, before any client can have seen it.

    Steps last 1 s. The short request's last token comes at 4 s, where the next step starts; the one that follows
    is seen by the planning after that, which is at 5 s, and under asynchronous scheduling plans what starts at 6 s.
    """
    short, long = (16, 4), (16, 30)
    rows = [(0.0, *short), (0.0, *long), (0.0, *short), (0.0, *short)]
    if sessions:
        work = workload(rows, after=[-1, -1, 0, 2], think_s=[0.0] * 4)
        setup = Setup(cost=FixedCost(1.0), depth=depth, spans=spans)
    else:
        work, setup = workload(rows), Setup(cost=FixedCost(1.0), depth=depth, spans=spans, concurrency=2)
    done = run(setup, work)
    ttft_s = done.column("first_token_s") - done.column("arrival_s")
    assert ttft_s == pytest.approx([1.0, 1.0, 1.0 + depth, 1.0 + depth])


# ---- what the laws once caught, in small ----------------------------------------------------------------------------


def small(setup: Setup, *rows: tuple[float, int, int, int, tuple[int, ...]]) -> Case:
    return Case(setup, [Row(*row) for row in rows], 4)


@pytest.mark.parametrize("spans", [True, False])
def test_a_step_that_only_preempts_is_not_the_end(spans: bool) -> None:
    """The first of the running list asks for a block and is itself the victim: nobody computes in that step.

    The other can go on as soon as planning is tried again, as vLLM does (an empty step that takes no time).
    """
    setup = Setup("priority", pool=KvPool(4, 4), spans=spans)
    done = watched(small(setup, (0.0, 4, 9, 1, ()), (0.0005, 4, 9, 0, ())))
    assert done.column("preemptions").tolist() == [1, 0]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_no_token_is_lost_beside_a_step_that_computes_nothing(depth: int, allocator: str) -> None:
    setup = Setup("priority", allocator, pool=KvPool(25, 1), limits=Limits(3, 16), depth=depth)
    watched(small(setup, (0.0, 1, 1, 0, ()), (0.0, 12, 3, 0, ()), (0.0, 12, 2, 0, ())))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_static_batch_whose_last_member_is_preempted_gives_back_all_its_memory(depth: int) -> None:
    setup = Setup("static", pool=KvPool(3, 16), limits=Limits(3, 8), depth=depth)
    watched(small(setup, (0.0, 1, 1, 0, ()), (0.0, 1, 1, 0, ()), (0.0, 1, 17, 0, ())))


def test_a_static_batch_is_as_long_as_who_still_computes() -> None:
    """Planned ahead, with a budget of one token: 1 starts when 0 has had its last, which then counts no more."""
    setup = Setup(
        "static", pool=KvPool(16, 4), limits=Limits(2, 1), cost=FixedCost(1.0, per_context_token_s=0.25), depth=2
    )
    case = Case(setup, [Row(0.0, 1, 3, samples=2)], 4)
    same_decisions(watched(case), watched(case.without_spans()))


class Undecided:
    """Admits and evicts the same request in each step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: Step) -> None:
        self.calls += 1
        assert self.calls < 1000, "the replica asks for ever"
        for req in step.waiting:
            step.grant(req)
            step.evict(req)
            break


def test_a_policy_that_never_computes_is_an_error_and_no_endless_run() -> None:
    with pytest.raises(NoProgressError, match="computes nothing"):
        run(Setup(Undecided()), Workload([0.0], [3], [3]))


class EvictOnce:
    """Grants all, and evicts the given request, when it has made so many tokens, after all grants of that step."""

    every_step = True

    def __init__(self, victim: int, generated: int) -> None:
        self._victim, self._generated = victim, generated

    def __call__(self, step: Step) -> None:
        step.advance_running()
        for req in step.waiting:
            step.grant(req)
        for req in list(step.running):
            if req.id == self._victim and req.generated == self._generated and not req.preemptions:
                step.evict(req)


@pytest.mark.parametrize("host_blocks", [0, 8])
@pytest.mark.parametrize("allocator", ["paged", "contiguous-oracle"])
def test_a_request_may_be_evicted_while_its_last_token_is_in_flight(allocator: str, host_blocks: int) -> None:
    # Planned ahead: at the second planning request 0 has been given its only token, and runs.
    setup = Setup(EvictOnce(0, generated=1), allocator, depth=2, host_blocks=host_blocks)
    done = watched(small(setup, (0.0, 5, 1, 0, ()), (0.0, 5, 3, 0, ())))
    assert done.column("preemptions").tolist() == [1, 0]


def test_nobody_keeps_a_hit_on_kv_that_an_eviction_took_out_of_the_step() -> None:
    # 2 shares the prompt of 1 and is admitted in the same step, in which 1 is then evicted.
    setup = Setup(EvictOnce(1, generated=0), "prefix", pool=KvPool(64, 4))
    shared = chained((0, 0))
    done = watched(small(setup, (0.0, 5, 3, 0, ()), (0.0, 9, 3, 0, shared), (0.0, 9, 3, 0, shared)))
    assert done.column("preemptions").tolist() == [0, 1, 1]


@pytest.mark.parametrize("policy", POLICIES)
def test_same_case_same_bytes(policy: str) -> None:
    @settings(laws, max_examples=5)
    @given(cases(policy, "prefix"))
    def repeats(case: Case) -> None:
        case = case.admissible()
        if not case.rows:
            return
        one, other = (run(case.setup, case.workload()) for _ in range(2))
        assert one.table.to_csv().encode() == other.table.to_csv().encode()
        assert one.ends_s.tobytes() == other.ends_s.tobytes()
        for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s"):
            assert one.column(name).tobytes() == other.column(name).tobytes()
        assert one.steps == other.steps

    repeats()
