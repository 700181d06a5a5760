"""Fixed-size blocks, taken when a token needs one (PagedAttention, Kwon et al. 2023, section 4).

Sequences of one request share blocks and copy them on write; requests among each other share nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import accumulate, chain
from typing import ClassVar

from mypy_extensions import mypyc_attr

from sim.engine.memory import MAX_POOL_TOKENS, Drift, Ids, KvPool, Usage, drift_of, ids_between, ids_of, usage_of
from sim.engine.request import Request
from sim.engine.runs import Piece
from traces.schema import InputError

flattened = chain.from_iterable
_append: Callable[[Ids, int], None] = array.append
"""Mapped over tables and blocks, it gives each table its block; `any` goes through all, since nothing is returned."""


class FreeQueue:
    """First in, first out: blocks leave at the front and return at the end, as in vLLM V1's free block queue.

    All of a pool are in it at first; those that were never taken are no list but a range.
    """

    __slots__ = ("_end", "_first", "_fresh", "_head", "_ids")

    def __init__(self, blocks: int) -> None:
        self._first = ids_of(())
        self._fresh = 1
        self._end = blocks + 1
        self._ids = ids_of(())
        self._head = 0

    def take(self, count: int) -> Ids:
        if self._first:
            taken = taken_from(self._first, count)
            return taken if len(taken) == count else taken + self.take(count - len(taken))
        fresh = self._fresh
        if fresh < self._end:
            self._fresh = end = min(fresh + count, self._end)
            taken = ids_between(fresh, end)
            return taken if end - fresh == count else taken + self.take(count - end + fresh)
        head = self._head
        taken = self._ids[head : head + count]
        self._head = head + count
        if self._head > 4096 and self._head * 2 > len(self._ids):
            del self._ids[: self._head]
            self._head = 0
        return taken

    def put(self, ids: Iterable[int]) -> None:
        self._ids.extend(ids)

    def put_first(self, ids: Sequence[int]) -> None:
        """These are the next to leave, in this order."""
        self._first.extend(ids[::-1])


def taken_from(stack: Ids, count: int) -> Ids:
    """Up to `count` ids off the end of a stack, the last one first."""
    taken = stack[: -count - 1 : -1]
    del stack[len(stack) - len(taken) :]
    return taken


class Sharing:
    """Who holds a block beside its first holder, and how many slots that saves."""

    __slots__ = ("_block_tokens", "_filled", "forked", "holders", "saved_tokens", "shared_tokens")

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._filled: dict[int, int] = {}
        self.holders: dict[int, int] = {}
        """Block -> holders beyond the first; a block with one holder is not listed."""
        self.forked = False
        """Set once sequences of one request share blocks: requests share full ones alone, into which nobody writes."""
        self.shared_tokens = 0
        self.saved_tokens = 0

    def share(self, blocks: Iterable[int], tokens: int) -> None:
        """One holder more for each of these blocks in token order, which hold `tokens` tokens."""
        size, holders, shared = self._block_tokens, self.holders, 0
        for block in blocks:
            filled = tokens if tokens < size else size
            tokens -= size
            self.saved_tokens += filled
            if block in holders:
                holders[block] += 1
            else:
                holders[block] = 1
                shared += filled
                if filled < size:
                    self._filled[block] = filled
        self.shared_tokens += shared

    def drop(self, blocks: Sequence[int]) -> Sequence[int]:
        """One holder less for each; returns those that nobody holds any more, in their order."""
        holders, partly, size = self.holders, self._filled, self._block_tokens
        if holders.keys().isdisjoint(blocks):
            return blocks
        free, saved, shared = list[int](), 0, 0
        for block in blocks:
            if block not in holders:
                free.append(block)
                continue
            filled = partly.get(block, size) if partly else size
            saved += filled
            more = holders[block]
            if more > 1:
                holders[block] = more - 1
            else:
                del holders[block]
                shared += filled
                partly.pop(block, None)
        self.saved_tokens -= saved
        self.shared_tokens -= shared
        return free


@mypyc_attr(allow_interpreted_subclasses=True)
class Holding:
    """What a sequence holds of a paged cache."""

    __slots__ = (
        "ahead_tokens", "base", "blocks", "cached_blocks", "certain_tokens", "final_kv_tokens", "last_tick", "order",
        "phase", "pieces",
    )  # fmt: skip

    base: int
    """In lockstep: its computed tokens less the tick."""
    phase: int
    """In lockstep: the ticks, modulo the block size, in which it takes a block."""

    def __init__(self, req: Request, order: int) -> None:
        self.blocks = ids_of(())
        self.final_kv_tokens = req.final_kv_tokens
        self.order = order
        """Its place in the order of admission."""
        self.ahead_tokens = 0
        """Slots that it gets beyond what it computes."""
        self.cached_blocks = 0
        """Of a prefix cache: its blocks that are entered."""
        self.certain_tokens = 0
        """Of a prefix cache: all that was known at its last admission; nobody is readmitted with a token in flight."""
        self.pieces: list[Piece] = []
        """Of a prefix cache: the runs that its blocks are in, in token order."""
        self.last_tick = -1
        """In lockstep: the tick in which it takes a block that it will not fill; -1 where there is none."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Paged:
    """Blocks of `pool.block_tokens` tokens, each request holding just those that its computed tokens need.

    Args:
        watermark: share of all blocks that an admission must leave free (vLLM V0 used 0.01; V1 has it since 0.33).
        reserve_full_prompt: admission asks that blocks for all known tokens be free, though only the first chunk's
            are taken (vLLM V1, `scheduler_reserve_full_isl`, `kv_cache_manager.allocate_slots`).
    """

    appends: ClassVar[bool] = True
    takes_ahead: ClassVar[bool] = True
    lookahead_tokens = 0
    """Slots that an admitted request gets beyond what it computes, as far as it may become so long at all: a drafter's
    own KV (vLLM V1, EAGLE)."""
    lookahead_at_admission = False
    unhashed_blocks_first = False
    watermark_beside_others = False
    """As `sim.engine.rules.Rules` has them."""

    def __init__(self, pool: KvPool, *, watermark: float = 0.0, reserve_full_prompt: bool = True) -> None:
        if not 0 <= watermark < 1:
            raise InputError(f"allocator.watermark is {watermark}; it must be at least 0 and below 1")
        self.pool = pool
        self._reserve_full_prompt = reserve_full_prompt
        self._watermark_blocks = int(watermark * pool.blocks)
        # vLLM V1 counts its null block too, which no pool of ours has.
        self._watermark_with_null = int(watermark * (pool.blocks + 1))
        self._free = FreeQueue(pool.blocks)
        self.free_blocks = pool.blocks
        self.copies: list[tuple[int, int]] = []
        self._sharing = Sharing(pool.block_tokens)
        self._overhang_tokens = 0
        self._joined = 0
        self._phases: list[list[Holding]] = [[] for _ in range(pool.block_tokens)]
        self._tables: list[list[Ids]] = [[] for _ in range(pool.block_tokens)]
        self._crossings = [0] * pool.block_tokens
        self._lasts: list[tuple[int, int, Holding]] = []
        self._holdings: dict[Request, Holding] = {}
        self._opened = 0

    def refusal(self, req: Request) -> str | None:
        # Sequences of one request share at least the full blocks of its prompt.
        each = self.pool.blocks_for(req.final_kv_tokens)
        shared = req.prompt_tokens // self.pool.block_tokens
        need = self._most_blocks(each) + (req.seats - 1) * self._most_blocks(each - shared)
        need += 0 if self.watermark_beside_others else self._watermark_blocks
        if need <= self.pool.blocks:
            return None
        who = f"with its {req.seats} sequences it" if req.seats > 1 else "it"
        return f"{who} needs {need} KV blocks at its longest and the cache has {self.pool.blocks}"

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        if self._most_blocks(self._asked_blocks(req, tokens)) > self._free_for_admission():
            return False
        return self._admitted(req, tokens)

    def _asked_blocks(self, req: Request, tokens: int) -> int:
        """Rows that have to be free, hits aside, for a request to be admitted with so many tokens."""
        asked = req.known if self._reserve_full_prompt else req.computed + tokens
        if self.lookahead_at_admission:
            slots = req.computed + tokens
            if self.lookahead_tokens:
                slots = self._with_lookahead(slots, self.lookahead_tokens)
            asked = max(asked, slots)
        return self.pool.blocks_for(asked)

    def _with_lookahead(self, slots: int, ahead_tokens: int) -> int:
        most = self.pool.max_request_tokens or MAX_POOL_TOKENS
        return max(slots, min(slots + ahead_tokens, most))

    def _free_for_admission(self) -> int:
        """Blocks that an admission may count on."""
        if not self.watermark_beside_others:
            return self.free_blocks - self._watermark_blocks
        return self.free_blocks - self._watermark_with_null if self._holdings else self.free_blocks

    def _admitted(self, req: Request, tokens: int) -> bool:
        """Room for the first tokens of a request; who gets none holds nothing."""
        ahead = self.lookahead_tokens
        if ahead and self.lookahead_at_admission:
            holding = self._holdings.get(req) or self._open(req)
            holding.ahead_tokens = ahead
        if not self.grow(req, tokens):
            return False
        if ahead:
            self._holdings[req].ahead_tokens = ahead
        return True

    def _open(self, req: Request) -> Holding:
        self._opened += 1
        holding = self._holdings[req] = Holding(req, self._opened)
        return holding

    def grow(self, req: Request, tokens: int) -> bool:
        holding = self._holdings.get(req)
        slots, size = req.computed + tokens, self.pool.block_tokens
        count = -(-slots // size)
        if holding is None:
            if count > self.free_blocks:
                return False
            holding = self._open(req)
        else:
            if holding.ahead_tokens:
                count = self.pool.blocks_for(self._with_lookahead(slots, holding.ahead_tokens))
            count -= len(holding.blocks)
            if self._sharing.forked and not self.owns_tail(req):
                if max(count, 0) + 1 > self.free_blocks:
                    return False
                self._copy_tail(req, holding)
            if count > self.free_blocks:
                return False
        if count > 0:
            holding.blocks += self._take(count)
            if len(holding.blocks) * size > holding.final_kv_tokens:
                self._count_overhang(holding, count)
        return True

    def _count_overhang(self, holding: Holding, count: int) -> int:
        """Slots never to be filled that came with the last so many blocks of a sequence, where there are any."""
        size = self.pool.block_tokens
        unfilled = min(len(holding.blocks) * size - holding.final_kv_tokens, count * size)
        self._overhang_tokens += unfilled
        return unfilled

    # As `sim.engine.ahead.ForeseeingAllocator` has them.

    def rows_ahead(self, req: Request, pasts: list[int], more: int) -> list[tuple[int, int]]:
        holding, size = self._holdings[req], self.pool.block_tokens
        ahead = holding.ahead_tokens
        most = self.pool.max_request_tokens or MAX_POOL_TOKENS
        grown: list[tuple[int, int]] = []
        room = len(holding.blocks) * size
        # Beyond the longest that a request may become nothing is taken ahead.
        enough = room - more - (ahead if room < most else 0)
        for at, past in enumerate(pasts):
            if past > enough:
                slots = past + more
                rows = -(-(self._with_lookahead(slots, ahead) if ahead else slots) // size)
                grown.append((at, rows))
                room = rows * size
                enough = room - more - (ahead if room < most else 0)
        return grown

    def names_ahead(self, req: Request, pasts: list[int]) -> list[tuple[int, int]] | None:
        return None

    def lengthen(self, shares: Sequence[tuple[Request, int]]) -> list[int]:
        unfilled: list[int] = []
        size, holdings = self.pool.block_tokens, self._holdings
        taken, at = self._take(sum([count for _, count in shares])), 0
        for place, (req, count) in enumerate(shares):
            holding = holdings[req]
            blocks = holding.blocks
            if count == 1:
                blocks.append(taken[at])
            else:
                blocks += taken[at : at + count]
            at += count
            if len(blocks) * size > holding.final_kv_tokens:
                unfilled = unfilled or [0] * len(shares)
                unfilled[place] = self._count_overhang(holding, count)
        return unfilled

    def name(self, req: Request, blocks: int) -> None:
        """Nothing here has a name."""

    def settle(self, req: Request, certain: int) -> None:
        """Nothing here has a name."""

    def fork(self, parent: Request, child: Request) -> None:
        if child in self._holdings:
            self.release(child)
        self._sharing.forked = True
        blocks = self._holdings[parent].blocks
        self._sharing.share(blocks, parent.computed)
        self._open(child).blocks = blocks[:]

    def owns_tail(self, req: Request) -> bool:
        holding = self._holdings.get(req)
        at = req.computed // self.pool.block_tokens
        return holding is None or at >= len(holding.blocks) or holding.blocks[at] not in self._sharing.holders

    def release(self, req: Request) -> None:
        holding = self._holdings.pop(req, None)
        if holding is not None:
            self._forget_overhang(holding)
            self._return(req, holding)

    def table(self, req: Request) -> Sequence[int]:
        holding = self._holdings.get(req)
        return holding.blocks if holding is not None else ()

    def usage(self, computed_tokens: int) -> Usage:
        pool, sharing, internal = self.pool, self._sharing, self._overhang_tokens
        free = self.free_blocks * pool.block_tokens
        shared, saved = sharing.shared_tokens, sharing.saved_tokens
        data = computed_tokens - saved
        reserved = pool.blocks * pool.block_tokens - free - data - internal
        return usage_of((data - shared, shared, reserved, internal, 0, free, saved))

    def _most_blocks(self, rows: int) -> int:
        """Blocks held at most by a sequence whose table has so many rows."""
        return rows

    def _take(self, count: int) -> Ids:
        self.free_blocks -= count
        return self._free.take(count)

    def _return(self, req: Request, holding: Holding) -> None:
        """Give back a request's share of its blocks, the last of them first."""
        blocks: Sequence[int] = holding.blocks[::-1]
        if self._sharing.holders:
            blocks = self._sharing.drop(blocks)
        (self._free.put_first if self.unhashed_blocks_first else self._free.put)(blocks)
        self.free_blocks += len(blocks)

    def _copy_tail(self, req: Request, holding: Holding) -> None:
        """Give the request a copy of its own of the block that it writes next (copy on write)."""
        at = req.computed // self.pool.block_tokens
        (copy,) = self._take(1)
        self.copies.append((holding.blocks[at], copy))
        self._sharing.drop([holding.blocks[at]])
        holding.blocks[at] = copy
        self._overhang_tokens += self._overhang(holding)

    def _overhang(self, holding: Holding) -> int:
        over = len(holding.blocks) * self.pool.block_tokens - holding.final_kv_tokens
        return over if over > 0 else 0

    def _forget_overhang(self, holding: Holding) -> None:
        """Slots never to be filled lie in the last block; while that is shared they go with its last holder."""
        if holding.blocks and holding.blocks[-1] not in self._sharing.holders:
            self._overhang_tokens -= self._overhang(holding)

    # Members that cross into a new block at the same tick (modulo the block size) share a list, so that a tick
    # touches only the requests that take a block in it, in admission order. Their tables stand in a list beside it, so
    # that blocks are handed out without a look at who gets them; who takes a block that it will not fill, and when, is
    # known when it joins.

    def join(self, req: Request, tick: int) -> None:
        holding = self._join(req, tick)
        size, last = self.pool.block_tokens, holding.final_kv_tokens
        if last % size and len(holding.blocks) <= last // size:
            holding.last_tick = last - last % size - holding.base
            heappush(self._lasts, (holding.last_tick, holding.order, holding))

    def _join(self, req: Request, tick: int) -> Holding:
        holding, size = self._holdings[req], self.pool.block_tokens
        holding.base = req.computed - tick
        at = holding.phase = (len(holding.blocks) * size - holding.base) % size
        phase = self._phases[at]
        if not phase or phase[-1].order < holding.order:
            phase.append(holding)
            self._tables[at].append(holding.blocks)
        else:
            place = bisect_left(phase, holding.order, key=_admission)
            phase.insert(place, holding)
            self._tables[at].insert(place, holding.blocks)
        self._crossings[at] += 1
        self._joined += 1
        return holding

    def leave(self, req: Request) -> None:
        holding = self._holdings[req]
        holding.last_tick = -1
        phase = self._phases[holding.phase]
        place = phase.index(holding)
        del phase[place], self._tables[holding.phase][place]
        self._crossings[holding.phase] -= 1
        self._joined -= 1
        if not self._joined:
            self._lasts.clear()

    def headroom(self, tick: int, limit: int) -> int:
        left = self.free_blocks
        if left >= self._joined * (limit // self.pool.block_tokens + 1):
            return limit
        return self._until_full(tick, limit, left)

    def _until_full(self, tick: int, limit: int, left: int) -> int:
        """Ticks, at most `limit`, for which so many rows are enough; somebody has joined."""
        counts, size = self._crossings, self.pool.block_tokens
        rounds = left // self._joined
        left -= rounds * self._joined
        steps = rounds * size
        while steps < limit:
            left -= counts[(tick + steps) % size]
            if left < 0:
                break
            steps += 1
        return min(steps, limit)

    def step(self, tick: int) -> None:
        crossing = self._tables[tick % self.pool.block_tokens]
        if crossing:
            any(map(_append, crossing, self._take(len(crossing))))
            if self._lasts and self._lasts[0][0] <= tick:
                self._take_last(tick, 1)

    def advance(self, tick: int, steps: int) -> Drift:
        size = self.pool.block_tokens
        first = tick % size
        last = first + steps
        tables, counts = self._tables, self._crossings
        if last > size:
            tables, counts = tables * (last // size + 1), counts * (last // size + 1)
        internal = late = 0
        # Blocks that are taken at a tick were free in all states before it: sum, over ticks, those to come.
        to_come = list(accumulate(counts[first:last][::-1], initial=0))
        if count := to_come[-1]:
            late = sum(to_come)
            # In most ticks nobody takes a block.
            any(map(_append, flattened(filter(None, tables[first:last])), self._take(count)))
            if self._lasts and self._lasts[0][0] < tick + steps:
                internal = self._take_last(tick, steps)
        used = -self._joined * (steps * (steps + 1) // 2)
        free = late * size
        return drift_of((used, -used - internal - free, internal, free))

    def _take_last(self, tick: int, steps: int) -> int:
        """Count the slots that will never be filled in the blocks of so many ticks; returns the drift of the class."""
        lasts, internal, size = self._lasts, 0, self.pool.block_tokens
        while lasts and lasts[0][0] < tick + steps:
            at, _, holding = heappop(lasts)
            if holding.last_tick == at:
                holding.last_tick = -1
                over = size - holding.final_kv_tokens % size
                self._overhang_tokens += over
                internal -= over * (at - tick + 1)
        return internal


def _admission(holding: Holding) -> int:
    return holding.order
