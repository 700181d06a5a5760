"""Paged blocks for layers of several kinds: a table for each kind, blocks of one size for all, from one pool.

As vLLM V1's hybrid KV cache manager (docs, "Hybrid KV Cache Manager"; `kv_cache_coordinator.py`,
`single_type_kv_cache_manager.py`). How layers become groups: `sim.engine.pages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from sim.allocators.paged import Holding, Paged, Sharing
from sim.engine.memory import MAX_POOL_TOKENS, NULL_BLOCK, Drift, Ids, KvPool, Layout, Usage, ids_of
from sim.engine.pages import in_groups
from sim.engine.request import Request


class MixedHolding(Holding):
    """What a sequence holds: of each kind of layers a table of rows, each told by the first of its blocks."""

    def __init__(self, req: Request, order: int, tables: list[Ids], dropped: list[int]) -> None:
        super().__init__(req, order)
        self.tables = tables
        self.dropped = dropped
        """By kind: the first row that is still held, sinks aside."""
        self.blocks = tables[-1]
        self.states: list[int] = []
        """Its own constant state, then those of sequences that it will fork."""
        self.row_cost = 0
        """In lockstep: the most blocks that a row takes more than it gives back."""
        self.steady: list[bool] = []
        """In lockstep, by kind: does each row from now on give one back?"""


class MixedPaged(Paged):
    """A row of `pool.block_tokens` tokens takes a block for each group of layers, and what leaves a window is free.

    Blocks outside a window are given back when the next tokens are allocated (vLLM V1, `remove_skipped_blocks`), here
    only where these need a new row. A constant state (Mamba, linear attention) takes its blocks when a request is
    admitted, one state for each of its sequences, and gives them back when a sequence ends or is preempted; nothing is
    set aside for empty seats.

    Args:
        pool: with `layers`, unless `layout` says what is made of it.
        layout: the blocks, the groups (those without a window first), a state's blocks, and the sinks of windows.
        watermark, reserve_full_prompt: as of `paged`; a full prompt counts what it holds at most at one time.
    """

    appends: ClassVar[bool] = False
    takes_ahead: ClassVar[bool] = False  # what leaves a window comes back step by step
    no_swap: ClassVar[str] = "layers that do not keep the same tokens are not modelled on the host"
    drafting = False
    """Set where a step's tokens are certain only after it."""

    def __init__(
        self,
        pool: KvPool,
        laid_out: Layout | None = None,
        *,
        watermark: float = 0.0,
        reserve_full_prompt: bool = True,
    ) -> None:
        layout = self._layout = laid_out or in_groups(pool)
        self.groups = layout.groups
        super().__init__(layout.pool, watermark=watermark, reserve_full_prompt=reserve_full_prompt)
        size = self.pool.block_tokens
        self._sink_blocks = self.pool.blocks_for(layout.sink_tokens)
        self._weights = [group.blocks for group in layout.groups]
        self._windows = [(kind, group) for kind, group in enumerate(layout.groups) if group.window_tokens]
        self._groups = layout.row_blocks
        self._state_blocks = layout.state_blocks
        self._sharings = [Sharing(size) for _ in layout.groups]
        self._sharing = self._sharings[-1]
        self._members: dict[int, list[int]] = {}
        """Of rows and states of several blocks, by the first of them, all."""
        self._costs = [0] * size
        self._gains: dict[Holding, int] = {}
        self._dropped_blocks = 0

    @staticmethod
    def layout(pool: KvPool, **others: Any) -> Layout:
        """The smaller blocks and the groups that it makes of a pool with `layers`."""
        return in_groups(pool)

    # ---- asked ----------------------------------------------------------------------------------------------------

    def tables(self, req: Request) -> list[list[int]]:
        """A table for each group of layers, those without a window first: null where a window has passed."""
        return [
            [self._blocks(row)[at] if row else NULL_BLOCK for row in table]
            for table, weight in zip(self._of(req).tables, self._weights, strict=True)
            for at in range(weight)
        ]

    def table(self, req: Request) -> Sequence[int]:
        """The first blocks of the rows, of the layers that keep most."""
        return self._of(req).tables[0] if req in self._holdings else ()

    def states(self, req: Request) -> list[int]:
        """The blocks of its constant state, and of those of sequences that it will fork."""
        return [block for state in self._of(req).states for block in self._blocks(state)]

    def usage(self, computed_tokens: int) -> Usage:
        """The pool by class; a slot is a token in one group of layers, and a state's slots are all used."""
        size, groups = self.pool.block_tokens, self._groups
        shared = saved = 0
        for sharing, weight in zip(self._sharings, self._weights, strict=True):
            shared += weight * sharing.shared_tokens
            saved += weight * sharing.saved_tokens
        data = computed_tokens * groups - self._dropped_blocks * size - saved
        data += self._state_blocks * len(self._holdings) * size
        free = self.free_blocks * size
        internal = self._overhang_tokens * groups
        reserved = self.pool.tokens - free - data - internal
        return Usage(data - shared, shared, reserved, internal, 0, free, saved)

    # ---- one request ----------------------------------------------------------------------------------------------

    def admit(self, req: Request, tokens: int) -> bool:
        need = self._most_blocks(self._asked_blocks(req, tokens)) + (req.seats - 1) * self._state_blocks
        if need > self._free_for_admission():
            return False
        return self._admitted(req, tokens)

    def grow(self, req: Request, tokens: int) -> bool:
        holding = self._holdings.get(req)
        opened = holding if isinstance(holding, MixedHolding) else None
        slots = req.computed + tokens
        if opened is not None and opened.ahead_tokens and self._looks_ahead:
            most = self.pool.max_request_tokens or MAX_POOL_TOKENS
            slots = max(slots, min(slots + opened.ahead_tokens, most))
        rows = max(0, self.pool.blocks_for(slots) - (len(opened.blocks) if opened else 0))
        copies = bool(self._sharing.holders) and not self.owns_tail(req)
        if not rows and not copies:
            return True
        certain = self._certain(req)
        need = (rows + copies) * self._groups
        if opened is None:
            need += self._state_blocks * req.seats
        elif need > self.free_blocks:
            need -= self._freed(opened, certain)
        if need > self.free_blocks:
            return False
        if opened is None:
            opened = self._open_with(req, req.seats)
        self._drop(opened, certain)
        if copies:
            self._copy_tail(req, opened)
        for _ in range(rows):
            self._add_row(opened)
        return True

    def fork(self, parent: Request, child: Request) -> None:
        forked = child in self._holdings
        if forked:
            self.release(child)
        giving = self._of(parent)
        for table, sharing in zip(giving.tables, self._sharings, strict=True):
            kept = [row for row in table if row != NULL_BLOCK]
            sharing.share(kept, parent.computed - (len(table) - len(kept)) * self.pool.block_tokens)
        own = self._open_with(child, 1 if forked else 0, [table[:] for table in giving.tables], giving.dropped)
        if self._state_blocks:
            if not forked:
                own.states.append(giving.states.pop())
            self.copies += zip(self._blocks(giving.states[0]), self._blocks(own.states[0]), strict=True)

    def release(self, req: Request) -> None:
        if req not in self._holdings:
            return
        holding = self._of(req)
        del self._holdings[req]
        self._forget_overhang(holding)
        for kind, table in enumerate(holding.tables):
            self._give_back(kind, [row for row in reversed(table) if row != NULL_BLOCK])
            self._dropped_blocks -= (holding.dropped[kind] - self._first_kept(kind)) * self._weights[kind]
        self._put(holding.states)

    # ---- many requests at once ------------------------------------------------------------------------------------

    def join(self, req: Request, tick: int) -> None:
        self._join(req, tick)
        holding = self._of(req)
        crossing = len(holding.blocks) * self.pool.block_tokens
        stale = [0] * len(self._weights)
        for kind, group in self._windows:
            stale[kind] = self._first_needed(group.window_tokens, crossing) - holding.dropped[kind]
        holding.steady = [rows > 0 for rows in stale]
        holding.row_cost = sum(w for w, steady in zip(self._weights, holding.steady, strict=True) if not steady)
        self._costs[holding.phase] += holding.row_cost
        if sum(w * rows for w, rows in zip(self._weights, stale, strict=True)) > self._groups:
            self._gains[holding] = crossing - holding.base

    def leave(self, req: Request) -> None:
        super().leave(req)
        holding = self._of(req)
        self._costs[holding.phase] -= holding.row_cost
        self._gains.pop(holding, None)

    def headroom(self, tick: int, limit: int) -> int:
        # A row that a window leaves and another one shares comes back to nobody.
        lost = sum(self._weights[kind] * sum(self._sharings[kind].holders.values()) for kind, _ in self._windows)
        steps = self._affordable(tick, limit, self.free_blocks - lost, self._costs)
        if lost and steps < limit:
            rows = self.free_blocks // self._groups
            steps = max(steps, self._until_full(tick, limit, rows) if self._joined else limit)
        if self._gains:
            # A step that gives back more than it takes may let somebody in, so no other is repeated into it.
            steps = min(steps, min(self._gains.values()) - tick)
            if not steps:
                return 0
        if steps or not limit:
            return steps
        # What falls out of the window may pay for one step where the free blocks alone do not.
        left = self.free_blocks
        for member in self._phases[tick % self.pool.block_tokens]:
            assert isinstance(member, MixedHolding)
            left += self._freed(member, member.base + tick) - self._groups
            if left < 0:
                return 0
        return 1

    def _affordable(self, tick: int, limit: int, left: int, costs: list[int]) -> int:
        """Steps, at most `limit`, for which `left` blocks are enough; `costs` are those of a tick, by its phase."""
        size, total = self.pool.block_tokens, sum(costs)
        if left < 0:
            return 0
        if left >= total * (limit // size + 1):
            return limit
        rounds = left // total
        left -= rounds * total
        turned = costs[tick % size :] + costs[: tick % size]
        return min(limit, rounds * size + sum(spent <= left for spent in accumulate(turned)))

    def step(self, tick: int) -> None:
        size = self.pool.block_tokens
        phase = tick % size
        for member in self._phases[phase]:
            assert isinstance(member, MixedHolding)
            computed = member.base + tick
            self._gains.pop(member, None)
            self._drop(member, computed)
            self._add_row(member)
            for kind, group in self._windows:
                if not member.steady[kind]:
                    if self._first_needed(group.window_tokens, computed + size) <= member.dropped[kind]:
                        continue
                    member.steady[kind] = True
                    member.row_cost -= self._weights[kind]
                    self._costs[phase] -= self._weights[kind]

    def advance(self, tick: int, steps: int) -> Drift:
        size, groups = self.pool.block_tokens, self._groups
        free = dropped = internal = saved = 0
        for passed, at in enumerate(range(tick, tick + steps), 1):
            if not self._phases[at % size]:
                continue
            before = (self.free_blocks, self._dropped_blocks, self._overhang_tokens, self._saved())
            self.step(at)
            free += passed * (before[0] - self.free_blocks)
            dropped += passed * (self._dropped_blocks - before[1])
            internal += passed * (before[2] - self._overhang_tokens)
            saved += passed * (before[3] - self._saved())
        free *= size
        internal *= groups
        used = dropped * size - saved - groups * self._joined * (steps * (steps + 1) // 2)
        return Drift(used, -used - internal - free, internal, free)

    # ---- inside ---------------------------------------------------------------------------------------------------

    _looks_ahead = True
    """Are slots taken for a drafter's own KV?"""

    def _of(self, req: Request) -> MixedHolding:
        holding = self._holdings[req]
        assert isinstance(holding, MixedHolding)
        return holding

    def _blocks(self, row: int) -> list[int]:
        """The blocks of a row, or of a state."""
        return self._members.get(row) or [row]

    def _saved(self) -> int:
        return sum(w * each.saved_tokens for each, w in zip(self._sharings, self._weights, strict=True))

    def _most_blocks(self, rows: int) -> int:
        # Drafts of one step more may be under way.
        return self._layout.most_blocks(rows, 2 if self.drafting else 1)

    def _certain(self, req: Request) -> int:
        """Tokens computed that no wrong draft under way can take back: the window moves no further."""
        return min(req.computed, req.prompt_tokens + req.confirmed) if self.drafting else req.computed

    def _first_kept(self, kind: int) -> int:
        """The row behind the sinks, before which nothing of a window is given back; 0 without a window."""
        return self._sink_blocks if self.groups[kind].window_tokens else 0

    def _first_needed(self, window_tokens: int, computed: int) -> int:
        """Row of the first token, sinks aside, that the next token attends."""
        return max(self._sink_blocks, max(0, computed - window_tokens + 1) // self.pool.block_tokens)

    def _freed(self, holding: MixedHolding, computed: int) -> int:
        """Blocks that come back with the rows that no token from the `computed`-th on attends."""
        freed = 0
        for kind, group in self._windows:
            start, end = holding.dropped[kind], self._first_needed(group.window_tokens, computed)
            if end > start:
                holders = self._sharings[kind].holders
                freed += self._weights[kind] * sum(row not in holders for row in holding.tables[kind][start:end])
        return freed

    def _drop(self, holding: MixedHolding, computed: int) -> None:
        """Give back the rows that no token from the `computed`-th on attends."""
        for kind, group in self._windows:
            start, end = holding.dropped[kind], self._first_needed(group.window_tokens, computed)
            if end > start:
                table = holding.tables[kind]
                stale = table[start:end]
                table[start:end] = ids_of([NULL_BLOCK]) * (end - start)
                holding.dropped[kind] = end
                self._dropped_blocks += (end - start) * self._weights[kind]
                self._give_back(kind, stale)

    def _add_row(self, holding: MixedHolding) -> None:
        for table, weight in zip(holding.tables, self._weights, strict=True):
            table.append(self._take_together(weight))
        over = len(holding.blocks) * self.pool.block_tokens - holding.final_kv_tokens
        if over > 0:
            self._overhang_tokens += min(over, self.pool.block_tokens)

    def _open(self, req: Request) -> MixedHolding:
        return self._open_with(req, req.seats)

    def _open_with(
        self, req: Request, states: int, tables: list[Ids] | None = None, dropped: Iterable[int] = ()
    ) -> MixedHolding:
        """What a sequence holds from now on, its tables and so many states, one more than it forks, included."""
        kept = [self._first_kept(kind) for kind in range(len(self._weights))]
        start = list(dropped) or kept
        self._opened += 1
        holding = MixedHolding(req, self._opened, tables or [ids_of(()) for _ in self._weights], start)
        self._holdings[req] = holding
        for weight, first, row in zip(self._weights, kept, start, strict=True):
            self._dropped_blocks += (row - first) * weight
        if self._state_blocks:
            holding.states = [self._take_together(self._state_blocks) for _ in range(states)]
        return holding

    def _copy_tail(self, req: Request, holding: Holding) -> None:
        assert isinstance(holding, MixedHolding)
        at = req.computed // self.pool.block_tokens
        for kind, table in enumerate(holding.tables):
            copy = self._take_together(self._weights[kind])
            self.copies += zip(self._blocks(table[at]), self._blocks(copy), strict=True)
            self._sharings[kind].drop([table[at]])
            table[at] = copy
        self._overhang_tokens += self._overhang(holding)

    def _take_together(self, count: int) -> int:
        """So many blocks that come and go together; the first of them tells them."""
        blocks = list(self._take(count))
        if count > 1:
            self._members[blocks[0]] = blocks
        return blocks[0]

    def _give_back(self, kind: int, rows: Sequence[int]) -> None:
        """Give back one holder's share of these rows, in this order."""
        if self._sharings[kind].holders:
            rows = self._sharings[kind].drop(rows)
        self._put(rows)

    def _put(self, rows: Sequence[int]) -> None:
        """Rows or states that nobody holds any more."""
        for row in rows:
            blocks = self._members.pop(row, None) or [row]
            (self._free.put_first if self.unhashed_blocks_first else self._free.put)(blocks)
            self.free_blocks += len(blocks)
