"""Paged, prefix and windowed memory under any order of admissions, forks, copies, decoding together and releases.

A state machine does at random what an engine may do, and holds every allocator to an obvious model: a list of free
blocks, a list of block ids per sequence and group of layers, and a dict of what each block contains.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from law_cases import EXAMPLES, chained

from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.allocators.windowed import Windowed
from sim.engine.memory import NULL_BLOCK, KvPool, Usage
from sim.engine.request import Request, Seat, SharedPrefix, index_of

Token = tuple[int, ...]
PICK = st.integers(0, 10_000)
UNITS = st.lists(st.integers(0, 1), max_size=5).map(tuple)
ROW = st.tuples(st.integers(1, 14), st.integers(1, 12), UNITS, st.sampled_from([1, 1, 2, 3]), st.booleans())
"""Prompt, output, units of three prompt tokens that others may have too, sequences, a beam search?"""
ROWS = st.lists(ROW, min_size=2, max_size=6)


class Model:
    """Blocks in lists; a block is free if it is in no table. Windows drop what nobody attends when a row is added."""

    def __init__(self, blocks: int, size: int, *, full: int = 1, windowed: int = 0, recent: int = 0, sinks: int = 0):
        self.size, self.full, self.groups = size, full, full + windowed
        self.recent, self.sinks = recent, sinks
        self.blocks = blocks * self.groups
        self.free = list(range(1, self.blocks + 1))
        self.tables: dict[Request, list[list[int]]] = {}
        self.copies: list[tuple[int, int]] = []
        self.slots: dict[tuple[int, int], Token] = {}

    def others(self, block: int) -> int:
        """Holders of a block but one."""
        return sum(block in table for tables in self.tables.values() for table in tables) - 1

    def rows(self, tokens: int) -> int:
        return len(range(0, tokens, self.size))

    def take(self) -> int:
        return self.free.pop(0)

    def give_back(self, block: int) -> None:
        """Call it when the block is in no table any more of him who held it."""
        if self.others(block) < 0:
            self.free.append(block)

    def stale(self, req: Request, computed: int) -> list[int]:
        """Rows that no token from `computed` on attends, where there is a window."""
        if req not in self.tables or self.groups == self.full:
            return []
        sink_rows, first = self.rows(self.sinks), max(0, computed - self.recent + 1) // self.size
        table = self.tables[req][-1]
        return [at for at in range(sink_rows, min(first, len(table))) if table[at] != NULL_BLOCK]

    def wants(self, req: Request, computed: int, tokens: int) -> tuple[int, bool]:
        """(rows to add, does the row that it writes first need a copy)."""
        table = self.tables.get(req, [[]] * self.groups)[-1]
        at = computed // self.size
        shared = at < len(table) and self.others(table[at]) > 0
        return max(0, self.rows(computed + tokens) - len(table)), shared

    def can_grow(self, req: Request, computed: int, tokens: int) -> bool:
        rows, shared = self.wants(req, computed, tokens)
        stale = self.stale(req, computed) if rows or shared else []
        dropped = [table[at] for table in self.tables.get(req, [])[self.full :] for at in stale]
        return (rows + shared) * self.groups <= len(self.free) + sum(self.others(block) == 0 for block in dropped)

    def grow(self, req: Request, computed: int, tokens: int) -> bool:
        if not self.can_grow(req, computed, tokens):
            return False
        rows, shared = self.wants(req, computed, tokens)
        tables = self.tables.setdefault(req, [[] for _ in range(self.groups)])
        stale = self.stale(req, computed) if rows or shared else []
        for table in tables[self.full :]:
            for at in stale:
                block, table[at] = table[at], NULL_BLOCK
                self.give_back(block)
        if shared:
            for table in tables:
                block = self.take()
                self.copies.append((table[computed // self.size], block))
                table[computed // self.size] = block
        for _ in range(rows):
            for table in tables:
                table.append(self.take())
        return True

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        return self.rows(req.known) * self.groups <= len(self.free) and self.grow(req, req.computed, tokens)

    def fork(self, parent: Request, child: Request) -> None:
        self.release(child, child.computed)
        self.tables[child] = [list(table) for table in self.tables[parent]]

    def release(self, req: Request, computed: int) -> None:
        for table in self.tables.pop(req, []):
            for block in reversed(table):
                if block != NULL_BLOCK:
                    self.give_back(block)

    def usage(self, computed: dict[Request, int]) -> Usage:
        held: Counter[tuple[int, int]] = Counter()
        never: set[tuple[int, int]] = set()
        size = self.size
        for req, tables in self.tables.items():
            for table in tables:
                for at, block in enumerate(table):
                    if block == NULL_BLOCK:
                        continue
                    slots = [(position, (block, position % size)) for position in range(at * size, (at + 1) * size)]
                    held.update(slot for position, slot in slots if position < computed[req])
                    never.update(slot for position, slot in slots if position >= req.final_kv_tokens)
        shared = sum(count > 1 for count in held.values())
        free = len(self.free) * size
        reserved = self.blocks * size - len(held) - len(never) - free
        return Usage(len(held) - shared, shared, reserved, len(never), 0, free, held.total() - len(held))


class PrefixModel(Model):
    """Beside that, a list of (all tokens up to a block's end, the block), in order of entry."""

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__(blocks, size)
        self.cached: list[tuple[tuple[Token, ...], int]] = []
        self.entered: dict[Request, int] = {}

    def text(self, req: Request, tokens: int) -> tuple[Token, ...]:
        ids, unit = (req.prefix or ((), 1))[:2]
        told = min(req.prompt_tokens, len(ids) * unit)
        own, prompt = index_of(req.id), req.prompt_tokens
        return tuple(
            (-1, ids[at // unit]) if at < told else (own, at) if at < prompt else (-2, req.id, at)
            for at in range(tokens)
        )

    def take(self) -> int:
        block = super().take()
        self.cached = [entry for entry in self.cached if entry[1] != block]
        return block

    def hits(self, req: Request, most: int) -> list[int]:
        found: list[int] = []
        while len(found) < most:
            wanted = self.text(req, (len(found) + 1) * self.size)
            block = next((block for known, block in self.cached if known == wanted), None)
            if block is None:
                break
            found.append(block)
        return found

    def match(self, req: Request) -> int:
        return self.size * len(self.hits(req, (req.known - 1) // self.size))

    def admit(self, req: Request, tokens: int) -> bool:
        hits = self.hits(req, req.computed // self.size)
        idle = [block for block in hits if block in self.free]
        if self.rows(req.known) - len(hits) + len(idle) > len(self.free):
            return False
        for block in idle:
            self.free.remove(block)
        self.tables[req] = [list(hits)]
        return self.grow(req, req.computed, tokens)

    def grow(self, req: Request, computed: int, tokens: int) -> bool:
        if not super().grow(req, computed, tokens):
            return False
        if tokens > 1 or computed < req.prompt_tokens:
            self.enter(req, (computed + tokens) // self.size)
        return True

    def enter(self, req: Request, blocks: int) -> None:
        self.entered[req] = max(blocks, self.entered.get(req, 0))
        if req.group is not None and req.group.draw_beams:
            # What follows the prompt may be another beam's next time.
            blocks = min(blocks, req.prompt_tokens // self.size)
        for at in range(blocks):
            entry = (self.text(req, (at + 1) * self.size), self.tables[req][0][at])
            if entry not in self.cached:
                self.cached.append(entry)

    def fork(self, parent: Request, child: Request) -> None:
        super().fork(parent, child)
        self.entered[child] = self.entered.get(parent, 0)

    def release(self, req: Request, computed: int) -> None:
        """A preempted sequence's blocks can be found by itself; what it never computed cannot."""
        if req in self.tables and not req.finished:
            lost = set(self.tables[req][0][computed // self.size : self.entered.get(req, 0)])
            self.cached = [entry for entry in self.cached if entry[1] not in lost]
            self.enter(req, computed // self.size)
        self.entered.pop(req, None)
        super().release(req, computed)


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
        if isinstance(self.ours, Windowed):
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
        if isinstance(self.ours, Windowed):
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
            first = 0 if layers < model.full else max(0, past - model.recent + 1)
            for position in {*range(min(first, model.sinks)), *range(first, past + tokens)}:
                assert model.slots[table[position // model.size], position % model.size] == self.text[req][position]

    # ---- what must hold after each --------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        model, ours = self.model, self.ours
        assert {req: self.tables(req) for req in self.held} == model.tables
        assert ours.free_blocks == len(model.free)
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
        pool = KvPool(blocks, size, full_layers=layers[0], window_layers=layers[1])
        full, windowed = layers if layers[1] else (0, 1)
        model = Model(blocks, size, full=full, windowed=windowed, recent=recent, sinks=sinks)
        self.start(Windowed(pool, window_tokens=recent, sink_tokens=sinks), model, rows)


often = settings(max_examples=EXAMPLES or 60, stateful_step_count=50)
TestPaged = PagedMachine.TestCase
TestPrefix = PrefixMachine.TestCase
TestWindowed = WindowedMachine.TestCase
TestPaged.settings = TestPrefix.settings = TestWindowed.settings = often
