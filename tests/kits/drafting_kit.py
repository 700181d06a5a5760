"""Builds and runs simulations with drafts, and follows the content of every KV slot through them.

`Slots` knows which tokens a step computes and which drafts were right, nothing of how the engine counts: it writes
each token's KV where the block table says, wrong drafts included, and demands that whatever is attended is right.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine_kit import Run, Setup, Watch, check_littles_law
from law_cases import Case
from law_watchers import on_host

from sim import catalog
from sim.allocators.windowed import Windowed
from sim.engine.batch import Batch, Swap
from sim.engine.drafting import DraftingEngine
from sim.engine.flight import Flight, Observer
from sim.engine.foreseeing import Proposer
from sim.engine.memory import NULL_BLOCK
from sim.engine.request import Request
from sim.engine.wiring import wire
from sim.load import build
from sim.routers.round_robin import RoundRobin
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster
from sim.serving.executor import Accepting, Predicted
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload
from sim.specs.tree import DraftTree
from sim.speculation.acceptance import Acceptance
from sim.speculation.adaptive import Adaptive
from sim.speculation.drafters import Drafter, FixedDrafts
from sim.speculation.settings import SpeculationSettings

DRAFTERS: dict[str, dict[str, Any]] = {
    "ngram": {},
    "eagle": {},
    "medusa": {},
    "draft-model": {"draft_model": "llama-3.2-1b"},
}
"""Settings of each kind of drafter, beside how many it makes."""


@dataclass
class Drafts(Setup):
    """A replica that drafts: k drafts by position right with `rates`, on top of the policy `base`."""

    base: str = "chunked"
    k: int = 3
    rates: Sequence[float] = (0.7,)
    seed: int = 0
    adaptive: bool = False
    lookahead: bool = False
    tree: DraftTree | None = None
    draw: Callable[[Request, int], int] | None = None
    ahead: bool = False
    """The engine knows which drafts will be right, and plans many steps at once."""

    def engine(self) -> DraftingEngine:
        policy = build("sim.policies", "speculative", {"base": self.base, **self.policy_parameters})
        allocator = build("sim.allocators", self.allocator, self.allocator_parameters, self.pool)
        most = self.tree.drafts if self.tree else self.k
        proposer: Proposer = Adaptive(self.k, self.cost) if self.adaptive else FixedDrafts(most)
        engine = wire(
            policy,
            allocator,
            self.limits,
            ahead=self.depth == 2,
            proposer=proposer,
            tree=self.tree,
            lookahead_tokens=most if self.lookahead else 0,
            host_blocks=self.host_blocks,
            needs_last_hit=self.lookahead,
            rules=self.rules,
        )
        assert isinstance(engine, DraftingEngine)
        return engine


def drafting(case: Case, **drafts: Any) -> Case:
    """The case with drafts, and without the requests that are then refused."""
    return Case(Drafts(**{**vars(case.setup), **drafts}), case.rows, case.unit_tokens, case.churn).admissible()


def run_drafts(setup: Drafts, workload: Workload, watchers: Sequence[Observer] = ()) -> Run:
    """Run a workload to its end on one replica; every request is checked to have finished."""
    clock, finished = Clock(), dict[int, Request]()
    watch = Watch(1, watchers)

    def take(req: Request) -> None:
        assert req.id not in finished, f"{req} finished twice"
        finished[req.id] = req
        watch.tick(replica, -1)
        source.finished(req)

    engine = setup.engine()
    luck = Acceptance(setup.rates, setup.seed, tree=setup.tree)
    draw = setup.draw or luck
    if setup.ahead:
        engine.foresight = luck
    executor = Accepting(Predicted(setup.cost, overlap_host=setup.depth == 2), draw)
    replica = Replica(clock, engine, executor, depth=setup.depth, on_finish=take, observer=watch)
    cluster = Cluster([replica], RoundRobin())

    def submit(req: Request) -> None:
        assert engine.refusal(req) is None, f"{req} should not have been sent"
        watch.tick(replica, 1)
        cluster.submit(req)

    source = RequestSource(clock, workload, submit, concurrency=setup.concurrency)
    source.start()
    clock.run()
    done = Run([finished[at] for at in sorted(finished)], [engine], dict.fromkeys(finished, 0), watch, clock)
    assert len(finished) == len(workload), f"{len(workload) - len(finished)} requests never finished"
    check_littles_law(done)
    return done


class Row(NamedTuple):
    """A request's share of a batch in flight: `life` counts its preemptions, `fresh` is the first share of a life."""

    request: Request
    tokens: int
    past: int
    life: int
    fresh: bool
    table: list[int]


@dataclass
class Planned:
    """A batch in flight, with the tables as they were when it was planned."""

    rows: list[Row]
    swaps: list[Swap] = field(default_factory=list)


class Slots(Observer):
    """The KV slots themselves: what is written where, and whether it is right when it is attended."""

    def __init__(self, case: Case) -> None:
        self.setup = case.setup
        self.slots: dict[int, object] = {}
        self.on_host: dict[int, list[object]] = {}
        self.life: Counter[int] = Counter()
        self.computed: dict[tuple[int, int], int] = {}
        self.given: Counter[int] = Counter()
        self.by_position: Counter[tuple[int, bool]] = Counter()
        self._begun: set[int] = set()
        self._flights: deque[Planned] = deque()
        self._wrong = 0

    def planned(self, replica: Replica, batch: Batch) -> None:
        engine, limits = replica.engine, self.setup.limits
        for req in batch.evicted:
            self.life[req.id] += 1
            self._begun.discard(req.id)
        assert batch.tokens <= limits.max_num_batched_tokens
        assert len(engine.running) <= limits.max_num_seqs
        assert len({entry.request.id for entry in batch.entries}) == len(batch.entries)
        if batch.empty:
            return
        rows = []
        for req, tokens, past in batch.entries:
            if limits.max_model_len:
                assert past + tokens < limits.max_model_len
            table = list(engine.allocator.table(req))
            rows.append(Row(req, tokens, past, self.life[req.id], req.id not in self._begun, table))
            self._begun.add(req.id)
        self._flights.append(Planned(rows, batch.swaps))

    def sealed(self, replica: Replica, flight: Flight) -> None:
        self._check_usage(replica)

    def committed(self, replica: Replica, flight: Flight) -> None:
        planned, batch = self._flights.popleft(), flight.batch
        for swap in planned.swaps:
            self._swap(swap)
        accepted = {
            one.request: (one.drafts, right)
            for one, right in zip(batch.sampled, flight.outcome.accepted or [], strict=True)
        }
        ends = {}
        for row in planned.rows:
            drafts, right = accepted.get(row.request, (0, 0))
            ends[row.request] = self._write(row, drafts, right)
        for row in planned.rows:
            self._read(row, ends[row.request])
        for req, (drafts, right) in accepted.items():
            for at in range(drafts):
                self.by_position[at, at < right] += 1
            self.given[req.id] = min(self.given[req.id] + right + 1, req.output_tokens)
        self._check_counters(replica)
        self._check_usage(replica)

    def _write(self, row: Row, drafts: int, right: int) -> int:
        """Write what the step computed; returns how many tokens of the request then have the right KV."""
        req = row.request
        first = row.past if row.fresh else self.computed[req.id, row.life]
        certain = first + row.tokens - drafts + right
        for at in range(first, first + row.tokens):
            self._wrong += 1
            self.slots[self._slot(row.table, at)] = _token(req, at) if at < certain else self._wrong
        self.computed[req.id, row.life] = certain
        return certain

    def _read(self, row: Row, certain: int) -> None:
        for at in self._attended(certain - 1):
            found = self.slots.get(self._slot(row.table, at))
            assert found == _token(row.request, at), f"{row.request} attends foreign or wrong KV at {at}"

    def _attended(self, at: int) -> Sequence[int]:
        if self.setup.allocator != "windowed":
            return range(at + 1)
        told = self.setup.allocator_parameters
        recent, sinks = told["window_tokens"], told.get("sink_tokens", 0)
        return [*range(min(sinks, at + 1)), *range(max(sinks, at - recent + 1), at + 1)]

    def _slot(self, table: list[int], at: int) -> int:
        size = self.setup.pool.block_tokens
        assert table[at // size] != NULL_BLOCK, "a block outside the window is written or attended"
        return table[at // size] * size + at % size

    def _swap(self, swap: Swap) -> None:
        size = self.setup.pool.block_tokens
        places = [block * size + at for block in swap.blocks for at in range(size)]
        if swap.out:
            self.on_host[swap.request.id] = [self.slots.get(place) for place in places]
        else:
            self.slots.update(zip(places, self.on_host.pop(swap.request.id), strict=False))

    def _check_counters(self, replica: Replica) -> None:
        """What a request has computed is what it keeps, and what is under way."""
        under_way: Counter[int] = Counter()
        for planned in self._flights:
            for row in planned.rows:
                if row.life == self.life[row.request.id]:
                    under_way[row.request.id] += row.tokens
                    if row.fresh:
                        under_way[row.request.id] += row.past
        for req in replica.engine.running:
            assert req.confirmed == self.given[req.id]
            known = self.computed.get((req.id, self.life[req.id]), 0)
            assert req.computed == known + under_way[req.id]
        moved = sum(self.setup.pool.blocks_for(on_host(req)) for req in replica.engine.waiting)
        assert replica.engine.host.free_blocks == self.setup.host_blocks - moved

    def _check_usage(self, replica: Replica) -> None:
        engine, usage = replica.engine, replica.engine.usage()
        allocator = engine.allocator
        assert sum(usage[:-1]) == allocator.pool.tokens
        assert min(usage) >= 0
        assert usage.free + usage.external == allocator.free_blocks * allocator.pool.block_tokens
        held = {block for req in engine.running for block in allocator.table(req)} - {NULL_BLOCK}
        assert len(held) == allocator.pool.blocks - allocator.free_blocks
        if not isinstance(allocator, Windowed):
            assert usage.used + usage.shared + usage.saved == sum(req.computed for req in engine.running)


def _token(req: Request, at: int) -> object:
    """The token at a place, told by what its KV depends on: equal only where all tokens before are equal too."""
    ids, unit = (req.prefix or ((), 1))[:2]
    shared = min(req.prompt_tokens, len(ids) * unit)
    return (-1, ids[at // unit], at) if at < shared else (req.id, at)


def watched(case: Case) -> tuple[Run, Slots]:
    """Run a case with every law checked at every event."""
    slots = Slots(case)
    assert isinstance(case.setup, Drafts)
    done = run_drafts(case.setup, case.workload(), [slots])
    engine = done.engine
    runs = engine.tokens
    for req in done.requests:
        assert slots.given[req.id] == req.confirmed == req.output_tokens
        assert req.arrival_s <= req.first_scheduled_s < req.first_token_s <= req.finish_s
    steps = sum(last - first + 1 for first, last in zip(runs.first_step, runs.last_step, strict=True))
    assert steps + runs.same_step == sum(req.output_tokens for req in done.requests)
    assert engine.allocator.free_blocks == engine.allocator.pool.blocks
    assert engine.host.free_blocks == case.setup.host_blocks
    assert not engine.busy
    assert not engine.roster.draining
    assert not engine.roster.loose
    return done, slots


def drafter(kind: str, k: int = 4) -> Drafter:
    """A drafter of Llama-3.1-8B."""
    settings = SpeculationSettings(drafter=kind, k=k, **DRAFTERS[kind])
    own = catalog.load_model(settings.draft_model) if settings.draft_model else None
    return Drafter.of(settings, catalog.load_model("llama-3.1-8b"), own)
