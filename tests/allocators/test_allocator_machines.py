"""Paged, prefix, windowed and mixed memory under any order of admissions, forks, copies, joint decoding and releases.

A state machine does at random what an engine may do, and holds every allocator to an obvious model: a list of free
blocks, a list of block ids per sequence and group of layers, and a dict of what each block contains.
"""

from __future__ import annotations

from copy import copy
from itertools import chain
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from law_cases import EXAMPLES, chained
from naive_memory import STEP, Model, PrefixModel, Token

from sim.allocators.mixed.paged import MixedPaged
from sim.allocators.mixed.prefix import MixedPrefix
from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.allocators.windowed import Windowed
from sim.engine.memory import NULL_BLOCK, KvLayers, KvPool, Usage
from sim.engine.request import Request, Seat, SharedPrefix

flattened = chain.from_iterable
PICK = st.integers(0, 10_000)
UNITS = st.lists(st.integers(0, 1), max_size=5).map(tuple)
ROW = st.tuples(st.integers(1, 14), st.integers(1, 12), UNITS, st.sampled_from([1, 1, 2, 3]), st.booleans())
"""Prompt, output, units of three prompt tokens that others may have too, sequences, a beam search?"""
ROWS = st.lists(ROW, min_size=2, max_size=6)


def even(beams: int) -> list[int]:
    return [1] * beams


class Machine(RuleBasedStateMachine):
    """Moves what an engine moves; the counters of those that decode together stand still, as an engine's do."""

    ours: Any
    model: Model

    def __init__(self) -> None:
        super().__init__()
        self.requests = self.admissions = self.tick = 0
        self.out: list[Request] = []
        self.held: list[Request] = []
        self.joined: dict[Request, int] = {}
        self.text: dict[Request, list[Token]] = {}
        self.tokens = 0
        self.pending: list[tuple[Request, int, int]] = []

    def start(self, ours: Any, model: Model, rows: list[Any]) -> None:
        self.ours, self.model = ours, model
        for row in rows:
            self.arrive(row)
        for _ in rows:
            self.admit(0, 20)

    # ---- bookkeeping ----------------------------------------------------------------------------------------------

    def computed(self, req: Request) -> int:
        return req.computed + self.tick - self.joined[req] if req in self.joined else req.computed

    def tables(self, req: Request) -> list[list[int]]:
        if isinstance(self.ours, MixedPaged):
            return [list(table) for table in self.ours.tables(req)]
        return [list(self.ours.table(req))]

    def sample(self, req: Request) -> None:
        req.known += 1
        self.text[req].append(self.new_token())

    def new_token(self) -> Token:
        self.tokens += 1
        return (-3, self.tokens)

    def compute(self, req: Request, tokens: int) -> None:
        self.pending.append((req, req.computed, tokens))
        req.computed += tokens
        if req.computed < req.known:
            return
        if req.seats > 1 and req.group is not None:
            self.run_step()
            req.seats = 1
            for child in req.group.fork():
                child.computed, child.known, child.seat = req.computed, req.known, Seat()
                child.seat.seq = self.admissions
                self.admissions += 1
                self.ours.fork(req, child)
                self.model.fork(req, child)
                self.text[child] = self.text[req].copy()
                self.held.append(child)
                self.sample(child)
        self.sample(req)

    def some(self, pick: int, of: list[Request]) -> Request | None:
        return of[pick % len(of)] if of else None

    def able(self) -> list[Request]:
        """Those that decode alone, have something to compute, and have not been granted any of it."""
        alone = [req for req in self.held if req not in self.joined and req.generated < req.output_tokens]
        return [req for req in alone if not self.uncomputed(req)]

    def uncomputed(self, req: Request) -> bool:
        return any(one is req for one, _, _ in self.pending)

    def let_go(self, req: Request) -> None:
        self.ours.release(req)
        self.model.release(req, req.computed)
        self.held.remove(req)
        self.pending = [one for one in self.pending if one[0] is not req]

    # ---- moves ----------------------------------------------------------------------------------------------------

    @rule(row=ROW)
    def arrive(self, row: tuple[int, int, tuple[int, ...], int, bool]) -> None:
        prompt, output, units, samples, beams = row
        req = Request(self.requests, 0.0, prompt, output, prefix=SharedPrefix(chained(units), 3))
        if samples > 1:
            req.split(samples, even if beams else None)
        if self.ours.refusal(req) is None:
            self.requests += 1
            self.out.append(req)
            ids, told = chained(units), min(prompt, 3 * len(units))
            self.text[req] = [(-1, ids[at // 3], at) if at < told else (req.id, at) for at in range(prompt)]

    @precondition(lambda self: self.out)
    @rule(pick=PICK, part=st.integers(1, 20))
    def admit(self, pick: int, part: int) -> None:
        req = self.some(pick, self.out)
        if req is None:
            return
        hit = self.ours.match(req)
        assert hit == self.model.match(req) < req.known
        req.computed, tokens = hit, min(part, req.known - hit)
        admitted = self.ours.admit(req, tokens)
        assert self.model.admit(req, tokens) == admitted
        if not admitted:
            req.computed = 0
            return
        req.seat = Seat()
        req.seat.seq = self.admissions
        self.admissions += 1
        self.out.remove(req)
        self.held.append(req)
        self.compute(req, tokens)

    @precondition(lambda self: self.able())
    @rule(pick=PICK, part=st.integers(1, 20), taken_back=st.sampled_from([False, False, False, True]))
    def grow(self, pick: int, part: int, taken_back: bool) -> None:
        req = self.some(pick, self.able())
        if req is None:
            return
        tokens = min(part, req.pending)
        grown = self.ours.grow(req, tokens)
        assert self.model.grow(req, req.computed, tokens) == grown
        if grown and taken_back:
            self.preempt(req)
        elif grown:
            self.compute(req, tokens)

    @precondition(lambda self: self.able())
    @rule(share=st.integers(1, 4))
    def serve(self, share: int) -> None:
        """A step of most of those that can compute, as far as memory goes."""
        for at, req in enumerate(self.able()):
            if at % 4 < share and req in self.held:
                grown = self.ours.grow(req, req.pending)
                assert self.model.grow(req, req.computed, req.pending) == grown
                if grown:
                    self.compute(req, req.pending)
        self.run_step()

    @precondition(lambda self: self.able())
    @rule(pick=PICK)
    def evict(self, pick: int) -> None:
        req = self.some(pick, self.able())
        if req is not None:
            self.preempt(req)

    def preempt(self, req: Request) -> None:
        """The beams of a search go together, and it begins again with its first."""
        group = req.group
        if group is None or group.draw_beams is None or req.seats > 1:
            going = [req]
        else:
            going = group.members
            if any(one not in self.held or self.uncomputed(one) for one in going):
                return
            req = going[0]
            req.seats = group.size
        for one in reversed(going):
            self.let_go(one)
            one.computed, one.seat.seq = 0, -1
        self.out.append(req)

    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        done = [req for req in self.held if req.generated == req.output_tokens and not self.uncomputed(req)]
        req = self.some(pick, [req for req in done if req.group is None or req.group.draw_beams is None])
        if req is None:
            groups = [req for req in done if req.group and all(one in done for one in req.group.members)]
            req = self.some(pick, groups)
        if req is None:
            return
        for one in req.group.members if req.group and req.group.draw_beams else [req]:
            one.finished = True
            self.let_go(one)

    @rule(pick=PICK, other=PICK)
    def choose_a_beam(self, pick: int, other: int) -> None:
        """One beam goes on in the place of another."""
        beams = [req for req in self.held if req.group and req.group.draw_beams and req.seats == 1]
        beams = [req for req in beams if req.pending == 1]
        parent = self.some(pick, beams)
        if parent is None:
            return
        rivals = [req for req in beams if req.group is parent.group and req.known == parent.known]
        child = self.some(other, [req for req in rivals if req is not parent and not self.uncomputed(req)])
        if child is None or self.uncomputed(parent):
            return
        self.ours.fork(parent, child)
        self.model.fork(parent, child)
        self.text[child] = [*self.text[parent][:-1], self.new_token()]

    @rule(pick=PICK)
    def join(self, pick: int) -> None:
        able = [req for req in self.able() if req.pending == 1 and req.generated and self.ours.owns_tail(req)]
        able = [req for req in able if not (req.group and req.group.draw_beams)]
        req = self.some(pick, able)
        if req is not None:
            self.ours.join(req, self.tick)
            self.joined[req] = self.tick

    @precondition(lambda self: self.joined)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        req = self.some(pick, list(self.joined))
        if req is not None:
            self.ours.leave(req)
            req.computed = self.computed(req)
            req.known = req.computed + 1
            del self.joined[req]

    @precondition(lambda self: self.joined)
    @rule(limit=st.integers(1, 20), part=st.integers(1, 20))
    def advance(self, limit: int, part: int) -> None:
        self.run_step()
        members = sorted(self.joined, key=lambda req: req.seat.seq)
        # A member stops with its last token, as an engine's span does.
        limit = min(limit, *(req.final_kv_tokens - self.computed(req) for req in members))
        steps, possible = self.ours.headroom(self.tick, limit), self.most_steps(members, limit)
        if isinstance(self.ours, MixedPaged):
            # On the safe side: what falls out of the window helps with the first step at most, and a step that gives
            # back more than it takes is none of a span's, since it may let somebody in.
            assert steps <= possible
        else:
            assert steps == possible
        taken = min(steps, part)
        if taken:
            self.ours.advance(self.tick, taken)
        for _ in range(taken):
            for req in members:
                assert self.model.grow(req, self.computed(req), 1)
                self.write(req, self.computed(req), 1)
                self.text[req].append(self.new_token())
            self.tick += 1

    def most_steps(self, members: list[Request], limit: int) -> int:
        """So many steps can all take in admission order, tried on a copy of the model."""
        trial = copy(self.model)
        trial.free = list(self.model.free)
        trial.states = dict(self.model.states)
        trial.tables = {req: [list(table) for table in tables] for req, tables in self.model.tables.items()}
        for step in range(limit):
            if not all(trial.grow(req, self.computed(req) + step, 1) for req in members):
                return step
        return limit

    @precondition(lambda self: self.pending)
    @rule()
    def run_step(self) -> None:
        """What was granted is computed: copies first, in their order; then everybody writes and reads."""
        assert self.ours.copies == self.model.copies
        for source, target in self.model.copies:
            for at in range(self.model.size):
                self.model.slots.pop((target, at), None)
                if (source, at) in self.model.slots:
                    self.model.slots[target, at] = self.model.slots[source, at]
        self.ours.copies, self.model.copies = [], []
        for req, past, tokens in self.pending:
            self.write(req, past, tokens)
        for req, past, tokens in self.pending:
            self.read(req, past, tokens)
        self.pending = []

    def write(self, req: Request, past: int, tokens: int) -> None:
        size = self.model.size
        for table in self.model.tables[req]:
            for position in range(past, past + tokens):
                block = table[position // size]
                assert block != NULL_BLOCK
                for other, tables in self.model.tables.items():
                    if other is not req and any(block in one for one in tables):
                        last = (position // size + 1) * size - 1
                        assert isinstance(self.ours, Prefix), "a shared block is written"
                        assert self.text[other][last] == self.text[req][last], "shared with another content"
                self.model.slots[block, position % size] = self.text[req][position]

    def read(self, req: Request, past: int, tokens: int) -> None:
        model = self.model
        for layers, table in enumerate(model.tables[req]):
            window = model.windows[layers]
            first = max(0, past - window + 1) if window else 0
            for position in {*range(min(first, model.sinks)), *range(first, past + tokens)}:
                assert model.slots[table[position // model.size], position % model.size] == self.text[req][position]

    # ---- what must hold after each --------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        model, ours = self.model, self.ours
        assert {req: self.tables(req) for req in self.held} == model.tables
        assert ours.free_blocks == model.free_blocks()
        if isinstance(ours, MixedPaged):
            assert all(ours.states(req) == list(flattened(model.states[req])) for req in self.held)
        assert ours.copies == model.copies
        for req in self.held:
            table, at = model.tables[req][-1], self.computed(req) // model.size
            assert ours.owns_tail(req) or req in self.joined or model.others(table[at]) > 0
        computed = {req: self.computed(req) for req in self.held}
        assert ours.usage(sum(computed.values())) == model.usage(computed)

    def teardown(self) -> None:
        if not hasattr(self, "ours"):
            return
        for req in list(self.joined):
            self.ours.leave(req)
            req.computed = self.computed(req)
            del self.joined[req]
        for req in list(self.held):
            self.let_go(req)
        assert self.ours.free_blocks == self.model.blocks
        assert not self.ours._sharing.holders
        assert not self.ours._sharing._filled
        assert self.ours.usage(0) == Usage(0, 0, 0, 0, 0, self.model.blocks * self.model.size)


class PagedMachine(Machine):
    @initialize(blocks=st.integers(4, 24), size=st.sampled_from([1, 2, 4]), rows=ROWS)
    def begin(self, blocks: int, size: int, rows: list[Any]) -> None:
        self.start(Paged(KvPool(blocks, size)), Model(blocks, size), rows)


class PrefixMachine(Machine):
    @initialize(blocks=st.integers(4, 24), size=st.sampled_from([1, 2, 4]), rows=ROWS)
    def begin(self, blocks: int, size: int, rows: list[Any]) -> None:
        self.start(Prefix(KvPool(blocks, size)), PrefixModel(blocks, size), rows)


class WindowedMachine(Machine):
    @initialize(
        blocks=st.integers(4, 24),
        size=st.sampled_from([1, 2, 4]),
        recent=st.integers(4, 9),
        sinks=st.sampled_from([0, 0, 1, 5]),
        layers=st.sampled_from([(1, 0), (1, 1), (1, 2)]),
        rows=ROWS,
    )
    def begin(self, blocks: int, size: int, recent: int, sinks: int, layers: tuple[int, int], rows: list[Any]) -> None:
        pool = KvPool(blocks, size, full_layers=layers[0], window_layers=layers[1], max_step_tokens=STEP)
        kinds = [(layers[0], 0), (layers[1], recent)] if layers[1] else [(1, recent)]
        model = Model(blocks * sum(count for count, _ in kinds), size, kinds, sinks=sinks)
        self.start(Windowed(pool, window_tokens=recent, sink_tokens=sinks), model, rows)


KINDS = st.sampled_from(
    [
        [(1, 0), (1, 5)],
        [(1, 0), (3, 6)],
        [(2, 0), (1, 9)],
        [(1, 7)],
        [(1, 0)],
        [(1, 0), (2, 3), (1, 8)],
    ]
)
"""Layers as (groups, window)."""


class MixedMachine(Machine):
    """`paged` or `prefix` for layers of several kinds, a constant state now and then."""

    @initialize(
        prefix=st.booleans(),
        blocks=st.integers(6, 60),
        size=st.sampled_from([1, 2, 4]),
        kinds=KINDS,
        states=st.sampled_from([0, 0, 0, 1, 3]),
        rows=ROWS,
    )
    def begin(
        self, prefix: bool, blocks: int, size: int, kinds: list[tuple[int, int]], states: int, rows: list[Any]
    ) -> None:
        layers = tuple(KvLayers(4 * count, window) for count, window in kinds)
        pool = KvPool(blocks, size, 0, 4 * size, STEP, layers=layers, state_bytes=4 * size * states)
        ours = MixedPrefix(pool) if prefix else MixedPaged(pool)
        assert ours.pool.blocks == blocks
        assert [tuple(group) for group in ours.groups] == kinds
        self.start(ours, (PrefixModel if prefix else Model)(blocks, size, kinds, states=states), rows)


often = settings(max_examples=EXAMPLES or 60, stateful_step_count=50)
TestPaged = PagedMachine.TestCase
TestPrefix = PrefixMachine.TestCase
TestWindowed = WindowedMachine.TestCase
TestMixed = MixedMachine.TestCase
TestPaged.settings = TestPrefix.settings = TestWindowed.settings = TestMixed.settings = often
