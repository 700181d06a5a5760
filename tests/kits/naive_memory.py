"""KV memory as an obvious model: lists of free blocks and of block ids by sequence, a dict of what a block contains.

Allocators are held to it (`tests/allocators/test_allocator_machines.py`). It looks everything up anew each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain

from sim.engine.memory import NULL_BLOCK, Usage
from sim.engine.request import Request, index_of

Token = tuple[int, ...]
STEP = 20
"""The most tokens that one sequence computes in a step."""
flattened = chain.from_iterable


class Model:
    """Blocks in lists; a block is free if it is in no table. Windows drop what nobody attends when a row is added.

    `kinds` are layers that keep alike, as (groups, window): each group has a table, and a row's blocks of one kind come
    and go together. A sequence holds `states` blocks beside its tables, and those of sequences that it will fork.
    """

    def __init__(
        self, blocks: int, size: int, kinds: Sequence[tuple[int, int]] = ((1, 0),), *, sinks: int = 0, states: int = 0
    ):
        self.size, self.kinds, self.sinks, self.state_blocks = size, list(kinds), sinks, states
        self.groups = sum(count for count, _ in kinds)
        ends = list(accumulate(count for count, _ in kinds))
        self.places = [range(end - count, end) for (count, _), end in zip(kinds, ends, strict=True)]
        self.windows = [window for count, window in kinds for _ in range(count)]
        self.blocks = blocks
        self.free = [[block] for block in range(1, self.blocks + 1)]
        self.tables: dict[Request, list[list[int]]] = {}
        self.states: dict[Request, list[list[int]]] = {}
        self.copies: list[tuple[int, int]] = []
        self.slots: dict[tuple[int, int], Token] = {}

    def free_blocks(self) -> int:
        return sum(map(len, self.free))

    def others(self, block: int) -> int:
        """Holders of a block but one."""
        return sum(block in table for tables in self.tables.values() for table in tables) - 1

    def rows(self, tokens: int) -> int:
        return len(range(0, tokens, self.size))

    def take(self, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            blocks = self.pop()
            taken, rest = taken + blocks[: count - len(taken)], blocks[count - len(taken) :]
            if rest:
                self.free.insert(0, rest)
        return taken

    def pop(self) -> list[int]:
        return self.free.pop(0)

    def give_back(self, blocks: list[int]) -> None:
        """Call it when a row's blocks are in no table any more of him who held them."""
        if blocks[0] != NULL_BLOCK and self.others(blocks[0]) < 0:
            self.free.append(blocks)

    def first_needed(self, window: int, computed: int) -> int:
        return max(self.rows(self.sinks), max(0, computed - window + 1) // self.size) if window else 0

    def stale(self, req: Request, computed: int) -> list[tuple[range, int]]:
        """(tables, row) that no token from `computed` on attends, where there is a window."""
        found = []
        for places, (_, window) in zip(self.places, self.kinds, strict=True):
            if req in self.tables and window:
                table = self.tables[req][places[0]]
                rows = range(self.rows(self.sinks), min(self.first_needed(window, computed), len(table)))
                found += [(places, at) for at in rows if table[at] != NULL_BLOCK]
        return found

    def wants(self, req: Request, computed: int, tokens: int) -> tuple[int, bool]:
        """(rows to add, does the row that it writes first need a copy)."""
        table = self.tables.get(req, [[]] * self.groups)[-1]
        at = computed // self.size
        shared = at < len(table) and self.others(table[at]) > 0
        return max(0, self.rows(computed + tokens) - len(table)), shared

    def can_grow(self, req: Request, computed: int, tokens: int) -> bool:
        rows, shared = self.wants(req, computed, tokens)
        stale = self.stale(req, computed) if rows or shared else []
        dropped = [self.tables[req][place][at] for places, at in stale for place in places]
        need = (rows + shared) * self.groups + (0 if req in self.tables else req.seats * self.state_blocks)
        return need <= self.free_blocks() + sum(self.others(block) == 0 for block in dropped)

    def open(self, req: Request, tables: list[list[int]], states: int) -> None:
        self.tables[req] = tables
        self.states[req] = [self.take(self.state_blocks) for _ in range(states if self.state_blocks else 0)]

    def grow(self, req: Request, computed: int, tokens: int) -> bool:
        if not self.can_grow(req, computed, tokens):
            return False
        rows, shared = self.wants(req, computed, tokens)
        if req not in self.tables:
            self.open(req, [[] for _ in range(self.groups)], req.seats)
        tables = self.tables[req]
        for places, at in self.stale(req, computed) if rows or shared else []:
            blocks = [tables[place][at] for place in places]
            for place in places:
                tables[place][at] = NULL_BLOCK
            self.give_back(blocks)
        for places in self.places if shared else ():
            for place, block in zip(places, self.take(len(places)), strict=True):
                self.copies.append((tables[place][computed // self.size], block))
                tables[place][computed // self.size] = block
        for _ in range(rows):
            for places in self.places:
                for place, block in zip(places, self.take(len(places)), strict=True):
                    tables[place].append(block)
        return True

    def match(self, req: Request) -> int:
        return 0

    def most(self, rows: int) -> int:
        """Blocks of so many rows in all tables at one time, if no step computes more than `STEP` tokens."""
        kept = [self.rows(self.sinks) + self.rows(window + STEP) + 1 if window else rows for window in self.windows]
        return sum(min(rows, most) for most in kept)

    def admit(self, req: Request, tokens: int) -> bool:
        need = self.most(self.rows(req.known)) + req.seats * self.state_blocks
        return need <= self.free_blocks() and self.grow(req, req.computed, tokens)

    def fork(self, parent: Request, child: Request) -> None:
        begun = child in self.tables
        self.release(child, child.computed)
        self.open(child, [list(table) for table in self.tables[parent]], int(begun))
        if self.state_blocks:
            if not begun:
                self.states[child].append(self.states[parent].pop())
            self.copies += zip(self.states[parent][0], self.states[child][0], strict=True)

    def release(self, req: Request, computed: int) -> None:
        tables = self.tables.pop(req, [])
        for places in self.places if tables else ():
            for row in reversed(list(zip(*(tables[place] for place in places), strict=True))):
                self.give_back(list(row))
        self.free += self.states.pop(req, [])

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
        free = self.free_blocks() * size
        used = len(held) - shared + len(self.tables) * self.state_blocks * size
        reserved = self.blocks * size - used - shared - len(never) - free
        return Usage(used, shared, reserved, len(never), 0, free, held.total() - len(held))


class PrefixModel(Model):
    """Beside that, a list of (all tokens up to a row's end, kind of layers, the row's blocks), in order of entry."""

    def __init__(
        self, blocks: int, size: int, kinds: Sequence[tuple[int, int]] = ((1, 0),), *, states: int = 0
    ) -> None:
        super().__init__(blocks, size, kinds, states=states)
        self.cached: list[tuple[tuple[Token, ...], int, list[int]]] = []
        self.entered: dict[Request, int] = {}

    def text(self, req: Request, tokens: int) -> tuple[Token, ...]:
        ids, unit = (req.prefix or ((), 1))[:2]
        told = min(req.prompt_tokens, len(ids) * unit)
        own, prompt = index_of(req.id), req.prompt_tokens
        return tuple(
            (-1, ids[at // unit]) if at < told else (own, at) if at < prompt else (-2, req.id, at)
            for at in range(tokens)
        )

    def pop(self) -> list[int]:
        blocks = super().pop()
        self.cached = [entry for entry in self.cached if entry[2][0] != blocks[0]]
        return blocks

    def hit_rows(self, req: Request, rows: int) -> list[list[list[int]]] | None:
        """By kind, the blocks of the rows that a token behind so many rows attends; None where one is not cached."""
        found = []
        for kind, (_, window) in enumerate(self.kinds):
            hits = []
            for at in range(self.first_needed(window, rows * self.size), rows):
                wanted = self.text(req, (at + 1) * self.size)
                row = next((row for known, of, row in self.cached if known == wanted and of == kind), None)
                if row is None:
                    return None
                hits.append(row)
            found.append(hits)
        return found

    def match(self, req: Request) -> int:
        most = 0 if self.state_blocks else (req.known - 1) // self.size
        return self.size * next(rows for rows in range(most, -1, -1) if self.hit_rows(req, rows) is not None)

    def admit(self, req: Request, tokens: int) -> bool:
        rows = req.computed // self.size
        hits = self.hit_rows(req, rows)
        assert hits is not None
        idle = [row for kind in hits for row in kind if row in self.free]
        need = req.seats * self.state_blocks + sum(map(len, idle))
        for (count, window), kind in zip(self.kinds, hits, strict=True):
            held = self.rows(req.known) - rows + len(kind)
            if window:
                held = min(held, self.rows(window + STEP) + 1)
            need += count * max(0, held - len(kind))
        if need > self.free_blocks():
            return False
        self.free = [row for row in self.free if row not in idle]
        tables = []
        for places, kind in zip(self.places, hits, strict=True):
            nothing = [NULL_BLOCK] * (rows - len(kind))
            tables += [[*nothing, *(row[group] for row in kind)] for group in range(len(places))]
        self.open(req, tables, req.seats)
        return self.grow(req, req.computed, tokens)

    def grow(self, req: Request, computed: int, tokens: int) -> bool:
        if not super().grow(req, computed, tokens):
            return False
        if tokens > 1 or computed < req.prompt_tokens:
            self.enter(req, (computed + tokens) // self.size)
        return True

    def enter(self, req: Request, rows: int) -> None:
        self.entered[req] = max(rows, self.entered.get(req, 0))
        if req.group is not None and req.group.draw_beams:
            # What follows the prompt may be another beam's next time.
            rows = min(rows, req.prompt_tokens // self.size)
        for at in range(rows):
            for kind, places in enumerate(self.places):
                row = [self.tables[req][place][at] for place in places]
                entry = (self.text(req, (at + 1) * self.size), kind, row)
                if row[0] != NULL_BLOCK and entry not in self.cached:
                    self.cached.append(entry)

    def fork(self, parent: Request, child: Request) -> None:
        super().fork(parent, child)
        self.entered[child] = self.entered.get(parent, 0)

    def release(self, req: Request, computed: int) -> None:
        """A preempted sequence's blocks can be found by itself; what it never computed cannot."""
        if req in self.tables and not req.finished:
            tables = self.tables[req]
            lost = {block for table in tables for block in table[computed // self.size : self.entered.get(req, 0)]}
            self.cached = [entry for entry in self.cached if entry[2][0] not in lost]
            self.enter(req, computed // self.size)
        self.entered.pop(req, None)
        super().release(req, computed)
