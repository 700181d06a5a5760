"""Prefix caching for layers of several kinds: what a hit needs of each kind, and rows that stay findable.

As vLLM V1 does it (`kv_cache_coordinator.py`, `HybridKVCacheCoordinator.find_longest_cache_hit`;
`single_type_kv_cache_manager.py`, `SlidingWindowManager`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from sim.allocators.mixed.paged import MixedHolding, MixedPaged
from sim.allocators.paged import Holding
from sim.allocators.prefix import Prefix
from sim.engine.memory import NULL_BLOCK, Ids, KvPool, ids_of
from sim.engine.request import Request


class MixedPrefix(Prefix, MixedPaged):
    """A hit of n rows needs all n of layers without a window, and of the others those that the next token attends.

    What a window has passed stays findable until its blocks are taken: by others whose prompts part there. A row is
    found, and its blocks are taken again, as a whole, where vLLM looks at each block by itself. With a constant state
    nothing can hit: a state is of all tokens so far and has no earlier one in it (vLLM caches no prefix of such a model
    either, unless `mamba_cache_mode` says to keep states).

    Args: as of `prefix`.
    """

    no_swap: ClassVar[str] = "a dropped prefix stays findable"
    has_tiers: ClassVar[bool] = False

    def __init__(
        self,
        pool: KvPool,
        *,
        watermark: float = 0.0,
        reserve_full_prompt: bool = True,
        keep_uncomputed: bool = False,
    ) -> None:
        MixedPaged.__init__(self, pool, watermark=watermark, reserve_full_prompt=reserve_full_prompt)
        self._begin(keep_uncomputed=keep_uncomputed)
        self._idle_rows: OrderedDict[int, None] = OrderedDict()
        """Rows that nobody holds, in the order in which they will be taken."""
        self._key_of: dict[int, int] = {}
        self._found: dict[int, int] = {}
        # Content computed twice stands in two rows; look-ups find the one entered first, then the next.
        self._duplicates: dict[int, list[int]] = {}
        self._left: list[int] = []
        """Blocks of a row that was taken apart for a smaller one."""

    @property
    def findable(self) -> Collection[int]:
        return self._key_of.keys()

    def match(self, req: Request) -> int:
        if self._state_blocks:
            return 0
        size = self.pool.block_tokens
        keys = self._names(req).between(0, (req.known - 1) // size)
        hits = len(keys)
        for kind, group in enumerate(self.groups):
            if not group.window_tokens:
                hits = next((at for at, key in enumerate(keys[:hits]) if self._key(kind, key) not in self._found), hits)
        # A window may shorten what another has found; what is then left must hold for all again.
        before = -1
        while before != hits:
            before = hits
            for kind, group in self._windows:
                hits = self._hits_in_window(kind, group.window_tokens, keys, hits)
        return max(0, hits - self.drops_last_hit) * size

    def _hits_in_window(self, kind: int, window_tokens: int, keys: list[int], most: int) -> int:
        """Rows, at most `most`, up to which all that is still attended is cached; one more if the last is dropped."""
        need = -(-(window_tokens - 1) // self.pool.block_tokens) + self.drops_last_hit
        end, run = most, 0
        for at in range(most - 1, -1, -1):
            if run == need:
                break
            if self._key(kind, keys[at]) in self._found:
                run += 1
            else:
                end, run = at, 0
        return end

    def admit(self, req: Request, tokens: int) -> bool:
        size = self.pool.block_tokens
        hits = req.computed // size
        keys = self._names(req).between(0, hits)
        kinds = range(len(self.groups))
        starts = [self._first_held(kind, req.computed) for kind in kinds]
        found = [[self._found[self._key(kind, key)] for key in keys[starts[kind] :]] for kind in kinds]
        unheld = [[row for row in rows if row in self._idle_rows] for rows in found]
        # A row that is hit and that nobody holds leaves the free queue like a new one.
        idle_blocks = sum(w * len(rows) for w, rows in zip(self._weights, unheld, strict=True))
        asked = self._asked_blocks(req, tokens)
        now = self.pool.blocks_for(req.computed + tokens)
        need = req.seats * self._state_blocks + idle_blocks
        for group, start in zip(self.groups, starts, strict=True):
            most = max(self._layout.most_rows(group, asked - start, 2 if self.drafting else 1), now - start)
            need += group.blocks * max(0, most - (hits - start))
        if need > self._free_for_admission():
            return False
        for sharing, rows in zip(self._sharings, found, strict=True):
            held = [row for row in rows if row not in self._idle_rows]
            if held:
                sharing.share(held, len(held) * size)
        for rows in unheld:
            for row in rows:
                del self._idle_rows[row]
        self.free_blocks -= idle_blocks
        tables = [ids_of([NULL_BLOCK] * start + rows) for start, rows in zip(starts, found, strict=True)]
        holding = self._open_with(req, req.seats, tables, starts)
        holding.cached_blocks = hits
        holding.certain_tokens = req.known
        return self._admitted(req, tokens)

    def grow(self, req: Request, tokens: int) -> bool:
        if not MixedPaged.grow(self, req, tokens):
            return False
        self._enter_grown(req, tokens)
        return True

    def fork(self, parent: Request, child: Request) -> None:
        MixedPaged.fork(self, parent, child)
        self._share_names(parent, child)

    def release(self, req: Request) -> None:
        self._enter_last(req)
        MixedPaged.release(self, req)

    def undisturbed(self, tick: int, limit: int) -> int:
        """How many ticks from `tick` on take no row that can be found.

        With such a row a hit ends earlier, perhaps where others hold the window before it: who waits may need less.
        """
        costs = [self._groups * count for count in self._crossings]
        enough = sum(costs) * (limit // self.pool.block_tokens + 1)
        left = self.pool.blocks + 1 - self._fresh + len(self._left)
        for row in self._idle_rows:
            if left >= enough or row in self._key_of:
                break
            left += len(self._blocks(row))
        return self._affordable(tick, limit, left, costs)

    def _first_held(self, kind: int, computed: int) -> int:
        window_tokens = self.groups[kind].window_tokens
        return self._first_needed(window_tokens, computed) if window_tokens else 0

    def _key(self, kind: int, key: int) -> int:
        """The name of a row of these layers."""
        return key * len(self.groups) + kind

    def _name(self, req: Request, holding: Holding, first: int, last: int) -> None:
        assert isinstance(holding, MixedHolding)
        keys = self._names(req).between(first, last)
        for kind, table in enumerate(holding.tables):
            rows = zip(keys, table[first:last], strict=True)
            self._name_all((self._key(kind, key), row) for key, row in rows if row != NULL_BLOCK)

    def _name_all(self, named: Iterable[tuple[int, int]]) -> None:
        found, key_of = self._found, self._key_of
        for key, block in named:
            if key_of.get(block) == key:
                continue
            key_of[block] = key
            if key in found:
                self._duplicates.setdefault(key, []).append(block)
            else:
                found[key] = block

    def _unname(self, req: Request, holding: Holding, first: int, last: int) -> None:
        assert isinstance(holding, MixedHolding)
        for table in holding.tables:
            for row in table[first:last]:
                if row in self._key_of:
                    self._drop_key(row)

    def _drop_key(self, block: int) -> None:
        key = self._key_of.pop(block)
        duplicates = self._duplicates.get(key)
        if self._found[key] != block:
            self._duplicates[key].remove(block)
        elif duplicates:
            self._found[key] = duplicates.pop(0)
        else:
            del self._found[key]
        if duplicates is not None and not duplicates:
            del self._duplicates[key]

    def _take(self, count: int) -> Ids:
        self.free_blocks -= count
        fresh = self._fresh
        self._fresh = min(fresh + count, self.pool.blocks + 1)
        taken = list(range(fresh, self._fresh))
        if len(taken) < count and self._left:
            more = count - len(taken)
            taken += self._left[:more]
            del self._left[:more]
        while len(taken) < count:
            row = self._idle_rows.popitem(last=False)[0]
            if row in self._key_of:
                self._drop_key(row)
            blocks = self._members.pop(row, None) or [row]
            more = count - len(taken)
            taken += blocks[:more]
            self._left += blocks[more:]
        return ids_of(taken)

    def _put(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._idle_rows[row] = None
            self.free_blocks += len(self._blocks(row))
        if self.unhashed_blocks_first:
            for row in reversed(rows):
                if row not in self._key_of:
                    self._idle_rows.move_to_end(row, last=False)
