"""Prefix caching block by block, as plainly as it can be said: what the shipped allocator, by runs, is held to."""

from __future__ import annotations

from collections import OrderedDict

from sim.allocators.paged import Holding
from sim.allocators.prefix import Prefix
from sim.engine.memory import Ids, ids_of
from sim.engine.request import Request


class BlockwisePrefix(Prefix):
    """A dictionary from names to blocks and one back, and a queue of single blocks."""

    def __init__(self, *args: object, **parameters: object) -> None:
        super().__init__(*args, **parameters)  # type: ignore[arg-type]
        self._queue: OrderedDict[int, None] = OrderedDict((id, None) for id in range(1, self.pool.blocks + 1))
        self._key_of: dict[int, int] = {}
        self._blocks_of: dict[int, list[int]] = {}

    def match(self, req: Request) -> int:
        hits = 0
        for key in self._names(req).between(0, (req.known - 1) // self.pool.block_tokens):
            if key not in self._blocks_of:
                break
            hits += 1
        return max(0, hits - self.drops_last_hit) * self.pool.block_tokens

    def admit(self, req: Request, tokens: int) -> bool:
        hits = req.computed // self.pool.block_tokens
        shared = [self._blocks_of[key][0] for key in self._names(req).between(0, hits)]
        unheld = [block for block in shared if block in self._queue]
        if self._asked_blocks(req, tokens) - hits + len(unheld) > self._free_for_admission():
            return False
        held = [block for block in shared if block not in self._queue]
        self._sharing.share(held, len(held) * self.pool.block_tokens)
        for block in unheld:
            del self._queue[block]
        self.free_blocks -= len(unheld)
        holding = self._open(req)
        holding.blocks, holding.cached_blocks, holding.certain_tokens = ids_of(shared), hits, req.known
        return self._admitted(req, tokens)

    def _name(self, req: Request, holding: Holding, first: int, last: int) -> None:
        for key, block in zip(self._names(req).between(first, last), holding.blocks[first:last], strict=True):
            if self._key_of.get(block) != key:
                self._key_of[block] = key
                self._blocks_of.setdefault(key, []).append(block)

    def _unname(self, req: Request, holding: Holding, first: int, last: int) -> None:
        for block in holding.blocks[first:last]:
            self._drop(block)

    def _drop(self, block: int) -> None:
        if block in self._key_of:
            key = self._key_of.pop(block)
            self._blocks_of[key].remove(block)
            if not self._blocks_of[key]:
                del self._blocks_of[key]

    def _take(self, count: int) -> Ids:
        self.free_blocks -= count
        taken = [self._queue.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._drop(block)
        return ids_of(taken)

    def _return(self, req: Request, holding: Holding) -> None:
        blocks = self._sharing.drop(holding.blocks[::-1])
        for block in blocks:
            self._queue[block] = None
        if self.unhashed_blocks_first:
            loose = set(holding.blocks[holding.cached_blocks :])
            for block in reversed([block for block in blocks if block in loose]):
                self._queue.move_to_end(block, last=False)
        self.free_blocks += len(blocks)
