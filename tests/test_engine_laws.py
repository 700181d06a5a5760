"""Laws that hold for every policy with every allocator, on random workloads that run short of everything.

The watchers recompute queues, counters and the content of every KV slot from the decisions alone. Set LAW_EXAMPLES
to a larger number for a longer, random search; by default the examples are the same in each run.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from engine_kit import Run, Setup, run, slivers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.allocators.prefix import Prefix
from sim.batch import Batch
from sim.cluster import Workload
from sim.cost.step import FixedCost
from sim.engine import Engine, Limits
from sim.load import names
from sim.memory import KvPool
from sim.replica import Flight, NoProgressError, Observer, Replica
from sim.request import Request
from sim.step import Step

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "0"))
laws = settings(
    max_examples=EXAMPLES or 20,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
POLICIES = names("sim.policies")
# Those that keep less than what was computed have laws of their own: test_windowed.py, test_no_cache.py.
ALLOCATORS = [name for name in names("sim.allocators") if name not in ("windowed", "no-cache")]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "static": [{}, {"batch_size": 3, "timeout_s": 0.002}],
    "continuous": [{"order": "prefill-first"}, {"order": "decode-first"}],
    "chunked": [{}, {"long_prefill_token_threshold": 5}],
    "sjf": [{}, {"by": "total", "long_prefill_token_threshold": 7}],
    "paged": [{}, {"watermark": 0.1}, {"reserve_full_prompt": False}],
    "prefix": [{}, {"reserve_full_prompt": False}],
    "contiguous-oracle": [{"fit": "first"}, {"fit": "best"}],
}
# Durations that floats hold exactly, so that arrivals fall on step boundaries, and some that they do not.
COSTS = (
    FixedCost(2.0**-10),
    FixedCost(2.0**-10, 2.0**-14, 2.0**-18),
    FixedCost(0.001, 0.0003, 1e-5),
)


# ---- random workloads -----------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One random scenario; `keep` leaves out what an engine refuses."""

    setup: Setup
    rows: list[tuple[float, int, int, int, tuple[int, ...]]]
    """arrival_s, prompt, output, priority, prefix ids"""
    unit_tokens: int

    def requests(self) -> list[Request]:
        work = self.workload()
        return [work.request(at, work.arrival_s[at]) for at in range(len(work))]

    def workload(self) -> Workload:
        arrival_s, prompt, output, priority, prefix = (list(column) for column in zip(*self.rows, strict=True))
        return Workload(arrival_s, prompt, output, priority, prefix, self.unit_tokens)

    def admissible(self) -> Case:
        engine = self.setup.engine()
        kept = [row for row, req in zip(self.rows, self.requests(), strict=True) if engine.refusal(req) is None]
        return replace(self, rows=kept)


def chained(units: tuple[int, ...]) -> tuple[int, ...]:
    """Names of units that each tell all units before them too: the path's number in a tree of three branches."""
    path, names_of = 0, []
    for unit in units:
        path = 3 * path + 1 + unit
        names_of.append(path)
    return tuple(names_of)


@st.composite
def cases(draw: st.DrawFn, policy: Any, allocator: str) -> Case:
    """Few seats, a small budget and a pool that holds little more than the longest request."""
    cost = draw(st.sampled_from(COSTS))
    horizon = draw(st.sampled_from([0, 6, 60]))
    row = st.tuples(
        st.integers(0, horizon).map(lambda steps: steps * cost.base_s / 2),
        st.integers(1, 30),
        st.integers(1, 24),
        st.integers(0, 2),
        st.lists(st.integers(0, 1), max_size=6).map(lambda units: chained(tuple(units))),
    )
    count = draw(st.sampled_from([1, 2, 3, 5, 7, 9]))
    rows = sorted(draw(st.lists(row, min_size=count, max_size=count)), key=lambda one: one[0])
    longest = max(prompt + output for _, prompt, output, _, _ in rows)
    block_tokens = draw(st.sampled_from([1, 2, 4, 8]))
    blocks = -(-(longest + draw(st.integers(0, longest))) // block_tokens)
    setup = Setup(
        policy,
        allocator,
        draw(st.sampled_from(VARIANTS.get(policy, [{}]))) if isinstance(policy, str) else {},
        draw(st.sampled_from(VARIANTS.get(allocator, [{}]))),
        KvPool(blocks, block_tokens, draw(st.sampled_from([longest, 40]))),
        Limits(
            max_num_seqs=draw(st.sampled_from([1, 2, 3, 4, 6])),
            max_num_batched_tokens=draw(st.sampled_from([1, 2, 5, 16, 64])),
            chunked_prefill=draw(st.sampled_from([True, True, False])),
        ),
        cost,
        depth=draw(st.integers(1, 2)),
        host_blocks=0 if allocator == "prefix" else draw(st.sampled_from([0, 0, 3, 100])),
    )
    return Case(setup, rows, draw(st.sampled_from([1, 3, 4, 8])))


class Chaos:
    """Grants and evicts at random, for so many calls; then like the chunked policy, so that the run ends.

    It never evicts the first of the running list, lest a step compute nothing.
    """

    def __init__(self, seed: int, *, every_step: bool, holds_finished: bool, calls: int = 120) -> None:
        self._rng = random.Random(seed)
        self._calls = calls
        self.every_step = every_step
        self.holds_finished = holds_finished

    def victim(self, running: Collection[Request]) -> Request:
        return self._rng.choice(list(running)) if self._calls > 0 else list(running)[-1]

    def __call__(self, step: Step) -> None:
        rng = self._rng
        self._calls -= 1
        for _ in range(rng.randrange(7) if self._calls > 0 else 0):
            verb = rng.choice(("advance", "advance", "grant", "grant", "admit", "admit", "evict"))
            some = list(step.waiting if verb == "admit" else step.running)
            if verb == "advance":
                step.advance_running(rng.choice((0, 0, 1, 4)))
            elif verb == "evict" and len(some) > 1:
                step.evict(rng.choice(some[1:]))
            elif some and verb != "evict":
                step.grant(rng.choice(some), rng.choice((0, 1, 3)), whole=rng.random() < 0.3)
        if not step.entries and not step.advanced:
            step.advance_running()
            for req in step.waiting:
                if not step.grant(req):
                    break


# ---- models of what must hold ---------------------------------------------------------------------------------------


class Counters(Observer):
    """Requests as two numbers: known and computed. It finds the token of each step from the decisions alone."""

    def __init__(self, case: Case) -> None:
        self.requests = case.requests()
        self.known = [req.prompt_tokens for req in self.requests]
        self.computed = [0] * len(self.requests)
        self.admitted: set[int] = set()
        self.preemptions = [0] * len(self.requests)
        self.hits: dict[int, int] = {}
        self.scheduled_s: dict[int, float] = {}
        self.token_steps: dict[int, list[int]] = {}
        self.limits = case.setup.limits
        self.finished: set[int] = set()
        self._repeating: list[int] = []

    def planned(self, replica: Replica, batch: Batch) -> None:
        for req in batch.evicted:
            if req.id not in self.admitted:
                # Admitted and evicted within this step: it was scheduled, though it computed nothing.
                self.scheduled_s.setdefault(req.id, batch.planned_s)
                self.hits.setdefault(req.id, req.prefix_hit_tokens)
            self.admitted.discard(req.id)
            self.computed[req.id] = 0
            self.preemptions[req.id] += 1
        share = slivers(replica.engine, batch)
        self._repeating = [id for id, _, _ in share]
        assert len(set(self._repeating)) == len(share), "a request stands twice in one step"
        assert sum(tokens for _, tokens, _ in share) == batch.tokens <= self.limits.max_num_batched_tokens
        for id, tokens, past in share:
            if id not in self.admitted:
                self.admitted.add(id)
                assert past < self.known[id]
                self.computed[id] = past
                if id not in self.hits:
                    self.hits[id] = past
                    self.scheduled_s[id] = batch.planned_s
            assert past == self.computed[id]
            assert tokens >= 1
            self._compute(id, tokens, batch.first_step)
        self._queues(replica, batch)

    def _compute(self, id: int, tokens: int, step: int) -> None:
        self.computed[id] += tokens
        assert self.computed[id] <= self.known[id]
        if self.computed[id] == self.known[id]:
            self.known[id] += 1
            self.token_steps.setdefault(id, []).append(step)

    def _queues(self, replica: Replica, batch: Batch) -> None:
        engine = replica.engine
        waiting, running = [req.id for req in engine.waiting], [req.id for req in engine.running]
        everybody = waiting + running
        assert len(set(everybody)) == len(everybody)
        arrived = {req.id for req in self.requests if req.arrival_s <= replica.clock.now}
        assert set(everybody) == arrived - self.finished
        assert len(running) + len(engine.held) <= self.limits.max_num_seqs
        assert (batch.running, batch.waiting) == (len(running), len(waiting))
        assert set(self._repeating) <= set(running)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        batch = flight.batch
        for repeat in range(1, batch.repeats):
            for id in self._repeating:
                self._compute(id, 1, batch.first_step + repeat)

    def committed(self, replica: Replica, flight: Flight) -> None:
        last = flight.batch.first_step + flight.batch.repeats - 1
        ended = {
            id
            for id, steps in self.token_steps.items()
            if len(steps) == self.requests[id].output_tokens and steps[-1] == last
        }
        assert {req.id for req in flight.batch.finishing} == ended
        self.finished |= ended

    def check_end(self, done: Run) -> None:
        ends_s = done.ends_s
        assert done.token_steps() == self.token_steps
        runs = done.engine.runs
        assert all(first <= last for first, last in zip(runs.first_step, runs.last_step, strict=True))
        for req in done.requests:
            steps = self.token_steps[req.id]
            assert len(steps) == req.output_tokens
            assert req.first_token_s == ends_s[steps[0]]
            assert req.finish_s == ends_s[steps[-1]]
            assert req.arrival_s <= req.first_scheduled_s == self.scheduled_s[req.id] < req.first_token_s
            assert req.preemptions == self.preemptions[req.id]
            assert req.prefix_hit_tokens == self.hits[req.id]
        assert done.engine.preemptions == sum(self.preemptions)


class Contents(Observer):
    """The KV slots themselves: each step writes its tokens' KV and must find that of all tokens before them."""

    def __init__(self, case: Case) -> None:
        self.pool = case.setup.pool
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.on_host: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        self.host_blocks = case.setup.host_blocks
        self._share: list[tuple[Request, int, int]] = []

    def token(self, req: Request, position: int) -> tuple[int, int, int]:
        """What the KV of one token depends on; equal for equal tokens after equal tokens."""
        ids, unit = (req.prefix or ((), 1))[:2]
        if position < min(req.prompt_tokens, len(ids) * unit):
            return (-1, ids[position // unit], position)
        return (req.id, 0, position)

    def planned(self, replica: Replica, batch: Batch) -> None:
        engine = replica.engine
        by_id = {req.id: req for req in engine.running}
        self._share = [(by_id[id], tokens, past) for id, tokens, past in slivers(engine, batch)]
        self._swap(engine, batch)
        self._run(engine)
        self._blocks(engine)
        self._usage(engine)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        more = flight.batch.repeats - 1
        if more:
            self._share = [(req, more, past + tokens) for req, tokens, past in self._share]
            self._run(replica.engine)
        self._blocks(replica.engine)
        self._usage(replica.engine)

    def committed(self, replica: Replica, flight: Flight) -> None:
        self._blocks(replica.engine)
        self._usage(replica.engine)

    def _swap(self, engine: Engine, batch: Batch) -> None:
        for req in batch.evicted:
            self.on_host[req.id] = req.swapped_tokens
            assert req.swapped_tokens in (0, self.computed.get(req.id, 0)), "more came to the host than was computed"
        for req, _, past in self._share:
            swapped = self.on_host.pop(req.id, 0)
            if swapped:
                assert past == swapped
                self._write(engine, req, 0, past)
        on_host = sum(self.pool.blocks_for(req.swapped_tokens) for req in engine.waiting)
        assert 0 <= engine.host_blocks_free == self.host_blocks - on_host

    def _write(self, engine: Engine, req: Request, start: int, end: int) -> None:
        size, table = self.pool.block_tokens, engine.allocator.table(req)
        for position in range(start, end):
            self.slots[table[position // size] * size + position % size] = self.token(req, position)

    def _run(self, engine: Engine) -> None:
        size = self.pool.block_tokens
        for req, tokens, past in self._share:
            self.computed[req.id] = past + tokens
            self._write(engine, req, past, past + tokens)
        for req, tokens, past in self._share:
            table = engine.allocator.table(req)
            for position in range(past + tokens):
                slot = table[position // size] * size + position % size
                assert self.slots.get(slot) == self.token(req, position), f"{req} would read foreign KV at {position}"

    def holders(self, engine: Engine) -> list[tuple[Request, list[int]]]:
        return [(req, list(engine.allocator.table(req))) for req in (*engine.running, *engine.held)]

    def _blocks(self, engine: Engine) -> None:
        size = self.pool.block_tokens
        owner: dict[int, tuple[int, int, int]] = {}
        for req, table in self.holders(engine):
            assert len(set(table)) == len(table)
            assert all(1 <= block <= self.pool.blocks for block in table)
            for at, block in enumerate(table):
                last = self.token(req, (at + 1) * size - 1)
                if block in owner:
                    assert isinstance(engine.allocator, Prefix)
                    assert owner[block] == last, "a block is shared by different contents"
                owner[block] = last
        assert engine.allocator.free_blocks == self.pool.blocks - len(owner)

    def _usage(self, engine: Engine) -> None:
        size, lockstep, unfillable = self.pool.block_tokens, engine.lockstep, 0
        filled: Counter[tuple[int, int]] = Counter()
        for req, table in self.holders(engine):
            computed = lockstep.computed(req) if req in lockstep else req.computed
            filled.update((table[at // size], at % size) for at in range(computed))
            unfillable += max(0, len(table) * size - req.final_kv_tokens)
        usage = engine.usage()
        assert sum(usage[:-1]) == self.pool.tokens
        assert min(usage) >= 0
        assert usage.used + usage.shared == len(filled)
        assert usage.shared == sum(count > 1 for count in filled.values())
        assert usage.saved == filled.total() - len(filled)
        assert usage.internal == unfillable
        assert usage.free + usage.external == engine.allocator.free_blocks * size


def watched(case: Case) -> Run:
    """Run a case with every law checked at every event."""
    counters, contents = Counters(case), Contents(case)
    done = run(case.setup, case.workload(), [counters, contents])
    counters.check_end(done)
    assert done.engine.allocator.free_blocks == case.setup.pool.blocks
    assert done.engine.host_blocks_free == case.setup.host_blocks
    usage = done.engine.usage()
    assert usage.free + usage.external == sum(usage) == case.setup.pool.tokens
    assert not done.engine.busy
    assert not done.engine.held
    return done


# ---- the laws -------------------------------------------------------------------------------------------------------

PAIRS = list(product(POLICIES, ALLOCATORS))


def same_decisions(one: Run, other: Run) -> None:
    assert one.steps == other.steps
    assert one.watch.evicted == other.watch.evicted
    assert one.token_steps() == other.token_steps()
    np.testing.assert_allclose(one.ends_s, other.ends_s, rtol=0, atol=1e-9)
    for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(one.column(name), other.column(name), rtol=0, atol=1e-9)
    for name in ("id", "preemptions", "prefix_hit_tokens"):
        assert one.column(name).tolist() == other.column(name).tolist()


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_every_policy_with_every_allocator_keeps_the_laws(policy: str, allocator: str) -> None:
    @laws
    @given(cases(policy, allocator))
    def keeps(case: Case) -> None:
        case = case.admissible()
        if not case.rows:
            return
        spans = watched(case)
        single = watched(replace(case, setup=replace(case.setup, spans=False)))
        assert single.table["repeats"].eq(1).all()
        same_decisions(spans, single)

    keeps()


def pressed(seed: int, policy: str, allocator: str) -> Case:
    """Two dozen requests of which about three fit at a time, coming in clumps."""
    rng = random.Random(seed)
    rows = [
        (
            rng.randrange(12) * 0.004,
            rng.choice((1, 3, 9, 14, 22)),
            rng.choice((1, 4, 11, 19)),
            rng.randrange(3),
            chained(tuple(rng.randrange(2) for _ in range(rng.randrange(6)))),
        )
        for _ in range(24)
    ]
    setup = Setup(
        policy,
        allocator,
        rng.choice(VARIANTS.get(policy, [{}])),
        rng.choice(VARIANTS.get(allocator, [{}])),
        KvPool(22, 3, 45),
        Limits(rng.choice((4, 6)), 200 if policy == "static" else rng.choice((4, 24))),
        COSTS[seed % 3],
        depth=1 + seed % 2,
        host_blocks=0 if allocator == "prefix" else rng.choice((0, 2, 6)),
    )
    return Case(setup, sorted(rows, key=lambda row: row[0]), 4)


@pytest.mark.parametrize(("policy", "allocator"), PAIRS)
def test_the_laws_hold_under_pressure(policy: str, allocator: str) -> None:
    preemptions = 0
    for seed in range(4):
        case = pressed(seed, policy, allocator).admissible()
        spans = watched(case)
        same_decisions(spans, watched(replace(case, setup=replace(case.setup, spans=False))))
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
        engine.commit(batch, 0.0)


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
    # Request n comes when the (n - users)th of all has finished.
    assert arrivals[users:].tolist() == ends[: max(0, 40 - users)].tolist()


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
    assert arrived[4] == ended[2]
    # With one user the second session starts when the first has ended for good.
    assert arrived[1] == {0: 0.001, 1: ended[4], 2: 0.0}[concurrency]


# ---- what the laws once caught, in small ----------------------------------------------------------------------------


def small(setup: Setup, *rows: tuple[float, int, int, int, tuple[int, ...]]) -> Case:
    return Case(setup, list(rows), 4)


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
