"""Paged blocks that are given back once they lie outside the attention window (Mistral; StreamingLLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import Any

from sim.allocators.paged import Holding, Paged
from sim.engine.memory import NULL_BLOCK, Drift, KvPool, Layout, Usage
from sim.engine.request import Request
from traces.schema import InputError


class Windowed(Paged):
    """Holds the newest `window_tokens` tokens of a request and its first `sink_tokens`; the rest of its table is null.

    Jiang et al. 2023 (Mistral 7B), section 2; Xiao et al. 2023 (StreamingLLM), section 3.2: attention sinks. Blocks
    are given back when the next tokens are allocated (vLLM V1, `KVCacheManager.allocate_slots`,
    `remove_skipped_blocks`), here only where these need a new block.

    Where only some of a model's layers have a window, each block holds one group of layers, all of one size, and a
    request has a table for each group (vLLM V1, hybrid KV cache groups). `pool` then counts such smaller blocks.

    Args:
        window_tokens: 0 takes the model's own. Another window, or one for a model without, is a lossy approximation.
        sink_tokens: first tokens that stay.
    """

    appends = False
    no_swap = "what fell out of the window is gone"
    drafting = False
    """Set where a step's tokens are certain only after it."""

    def __init__(
        self,
        pool: KvPool,
        *,
        window_tokens: int = 0,
        sink_tokens: int = 0,
        watermark: float = 0.0,
        reserve_full_prompt: bool = True,
    ) -> None:
        layout = self.layout(pool, window_tokens=window_tokens, sink_tokens=sink_tokens)
        self.full_groups, self.window_groups = _groups(pool)
        super().__init__(layout.pool, watermark=watermark, reserve_full_prompt=reserve_full_prompt)
        self.recent_tokens = layout.recent_tokens
        self.sink_tokens = sink_tokens
        self._groups = self.full_groups + self.window_groups
        self._sink_blocks = pool.blocks_for(sink_tokens)
        self._tables: dict[Holding, list[list[int]]] = {}
        self._dropped: dict[Holding, int] = {}
        self._gains: dict[Holding, int] = {}
        self._dropped_blocks = 0

    @staticmethod
    def layout(pool: KvPool, *, window_tokens: int = 0, sink_tokens: int = 0, **others: Any) -> Layout:
        """The smaller blocks that it makes of the pool, and the window; InputError for none, or one too small."""
        recent = window_tokens or pool.window_tokens
        if window_tokens < 0 or sink_tokens < 0:
            raise InputError("allocator.window_tokens and allocator.sink_tokens must be at least 0")
        if not recent:
            raise InputError("the windowed allocator needs a window: this model has none; set allocator.window_tokens")
        if recent < pool.block_tokens:
            raise InputError(
                f"allocator.window_tokens is {recent}, less than a block of {pool.block_tokens} tokens; "
                "no block would ever be of use as a whole"
            )
        groups = sum(_groups(pool))
        smaller = replace(pool, blocks=pool.blocks * groups, block_bytes=pool.block_bytes // groups)
        return Layout(smaller, recent, sink_tokens)

    def grow(self, req: Request, tokens: int) -> bool:
        holding = self._holdings.get(req)
        rows = self.pool.blocks_for(req.computed + tokens) - (len(holding.blocks) if holding else 0)
        rows = max(0, rows)
        copies = bool(self._sharing.holders) and not self.owns_tail(req)
        if not rows and not copies:
            return True
        certain = self._certain(req)
        stale = self._stale(holding, certain) if holding else []
        freed = len(stale) - sum(block in self._sharing.holders for block in stale)
        if (rows + copies) * self._groups > self.free_blocks + freed:
            return False
        holding = holding or self._open(req)
        self._drop(holding, certain, stale)
        if copies:
            self._copy_tail(req, holding)
        for _ in range(rows):
            self._add_row(holding)
        return True

    def fork(self, parent: Request, child: Request) -> None:
        if child in self._holdings:
            self.release(child)
        tables = self._tables[self._holdings[parent]]
        for table in tables:
            kept = [block for block in table if block != NULL_BLOCK]
            self._sharing.share(kept, parent.computed - (len(table) - len(kept)) * self.pool.block_tokens)
        dropped = self._dropped[self._holdings[parent]]
        own = self._open(child, [table.copy() for table in tables])
        self._dropped[own] = dropped
        self._dropped_blocks += (dropped - self._sink_blocks) * self.window_groups

    def release(self, req: Request) -> None:
        holding = self._holdings.pop(req, None)
        if holding is None:
            return
        self._forget_overhang(holding)
        for table in self._tables.pop(holding):
            self._return([block for block in reversed(table) if block != NULL_BLOCK])
        self._dropped_blocks -= (self._dropped.pop(holding) - self._sink_blocks) * self.window_groups

    def tables(self, req: Request) -> Sequence[Sequence[int]]:
        """A table for each group of layers: those with full attention, then those with a window."""
        return self._tables[self._holdings[req]]

    def table(self, req: Request) -> Sequence[int]:
        return self.tables(req)[0] if req in self._holdings else ()

    def usage(self, computed_tokens: int) -> Usage:
        size, groups = self.pool.block_tokens, self._groups
        shared, saved = self._sharing.shared_tokens, self._sharing.saved_tokens
        data = computed_tokens * groups - self._dropped_blocks * size - saved
        free = self.free_blocks * size
        internal = self._overhang_tokens * groups
        reserved = self.pool.tokens - free - data - internal
        return Usage(data - shared, shared, reserved, internal, 0, free, saved)

    def join(self, req: Request, tick: int) -> None:
        super().join(req, tick)
        holding = self._holdings[req]
        crossing = len(holding.blocks) * self.pool.block_tokens - holding.base
        stale_rows = self._first_needed(holding.base + crossing) - self._dropped[holding]
        if stale_rows * self.window_groups > self._groups:
            self._gains[holding] = crossing

    def leave(self, req: Request) -> None:
        super().leave(req)
        self._gains.pop(self._holdings[req], None)

    def headroom(self, tick: int, limit: int) -> int:
        steps = super().headroom(tick, limit)
        if self._gains:
            # A step that gives back more than it takes may let somebody in, so no other is repeated into it.
            steps = min(steps, min(self._gains.values()) - tick)
            if not steps:
                return 0
        if steps or not limit:
            return steps
        # What falls out of the window may pay for one step where the free blocks alone do not.
        left = self.free_blocks
        for holding in self._phases[tick % self.pool.block_tokens]:
            stale = self._stale(holding, holding.base + tick)
            left += len(stale) - sum(block in self._sharing.holders for block in stale) - self._groups
            if left < 0:
                return 0
        return 1

    def step(self, tick: int) -> None:
        for holding in self._phases[tick % self.pool.block_tokens]:
            computed = holding.base + tick
            self._gains.pop(holding, None)
            self._drop(holding, computed, self._stale(holding, computed))
            self._add_row(holding)

    def advance(self, tick: int, steps: int) -> Drift:
        size, groups = self.pool.block_tokens, self._groups
        free = dropped = internal = saved = 0
        for passed, at in enumerate(range(tick, tick + steps), 1):
            before = (self.free_blocks, self._dropped_blocks, self._overhang_tokens, self._sharing.saved_tokens)
            self.step(at)
            free += passed * (before[0] - self.free_blocks)
            dropped += passed * (self._dropped_blocks - before[1])
            internal += passed * (before[2] - self._overhang_tokens)
            saved += passed * (before[3] - self._sharing.saved_tokens)
        free *= size
        internal *= groups
        used = dropped * size - saved - groups * self._joined * (steps * (steps + 1) // 2)
        return Drift(used, -used - internal - free, internal, free)

    def _most_blocks(self, rows: int) -> int:
        kept = rows
        if self.pool.max_step_tokens:
            # Drafts of one step more may be under way.
            step_tokens = (2 if self.drafting else 1) * self.pool.max_step_tokens
            kept = self._sink_blocks + self.pool.blocks_for(self.recent_tokens + step_tokens) + 1
        return self.full_groups * rows + self.window_groups * min(rows, kept)

    def _free_rows(self) -> int:
        return self.free_blocks // self._groups

    def _certain(self, req: Request) -> int:
        """Tokens computed that no wrong draft under way can take back: the window moves no further."""
        return min(req.computed, req.prompt_tokens + req.confirmed) if self.drafting else req.computed

    def _first_needed(self, computed: int) -> int:
        """Row of the first token, sinks aside, that the next token attends."""
        return max(self._sink_blocks, max(0, computed - self.recent_tokens + 1) // self.pool.block_tokens)

    def _stale(self, holding: Holding, computed: int) -> list[int]:
        """Blocks that no token from the `computed`-th on attends."""
        start, end = self._dropped[holding], self._first_needed(computed)
        return [block for table in self._tables[holding][self.full_groups :] for block in table[start:end]]

    def _drop(self, holding: Holding, computed: int, stale: list[int]) -> None:
        if not stale:
            return
        start, end = self._dropped[holding], self._first_needed(computed)
        for table in self._tables[holding][self.full_groups :]:
            table[start:end] = [NULL_BLOCK] * (end - start)
        self._dropped[holding] = end
        self._dropped_blocks += (end - start) * self.window_groups
        self._return(stale)

    def _add_row(self, holding: Holding) -> None:
        for table, block in zip(self._tables[holding], self._take(self._groups), strict=True):
            table.append(block)
        over = len(holding.blocks) * self.pool.block_tokens - holding.final_kv_tokens
        if over > 0:
            self._overhang_tokens += over

    def _open(self, req: Request, tables: list[list[int]] | None = None) -> Holding:
        holding = super()._open(req)
        self._tables[holding] = tables or [[] for _ in range(self._groups)]
        holding.blocks = self._tables[holding][-1]
        self._dropped[holding] = self._sink_blocks
        return holding

    def _copy_tail(self, req: Request, holding: Holding) -> None:
        at = req.computed // self.pool.block_tokens
        for table in self._tables[holding]:
            (copy,) = self._take(1)
            self.copies.append((table[at], copy))
            self._sharing.drop([table[at]])
            table[at] = copy
        self._overhang_tokens += self._overhang(holding)

    @property
    def window_span_tokens(self) -> int:
        """Tokens that one attends at most."""
        return self.recent_tokens + self.sink_tokens


def _groups(pool: KvPool) -> tuple[int, int]:
    """Groups of layers with full attention, and with a window, that share a block of the pool."""
    full, windowed = (pool.full_layers, pool.window_layers) if pool.window_layers else (0, 1)
    unit = gcd(full, windowed)
    return full // unit, windowed // unit
