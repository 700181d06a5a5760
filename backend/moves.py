"""Block copies and swaps as a batch lists them, done to the tensors in that order. It knows no requests' progress."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backend.kvcache import KvCache
from backend.ops import Ops
from sim.batch import Batch, Swap
from sim.request import Request


class Mover:
    """Moves blocks within the cache, and between it and `host_blocks` blocks of host memory."""

    def __init__(self, ops: Ops, cache: KvCache, host_blocks: int) -> None:
        self._ops = ops
        self._cache = cache
        self._host = cache.host(host_blocks) if host_blocks else None
        self._free = list(range(host_blocks, 0, -1))
        self._held: dict[Request, list[int]] = {}

    def move(self, batch: Batch) -> None:
        """Make the batch's copies and swaps, before it computes anything."""
        self.forget_finished()
        done = 0
        for swap in batch.swaps:
            self._copy(batch.copies[done : swap.after])
            done = max(done, swap.after)
            self._swap(swap)
        self._copy(batch.copies[done:])

    def forget_finished(self) -> None:
        """Free the host blocks of sequences that ended while their KV was there."""
        for req in [req for req in self._held if req.finished]:
            self._free += self._held.pop(req)

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """One launch per layer for copies that do not touch one another's blocks; in turn otherwise."""
        while pairs:
            read: set[int] = set()
            written: set[int] = set()
            for source, target in pairs:
                if source in written or target in written or target in read:
                    break
                read.add(source)
                written.add(target)
            count = len(written)
            sources, targets = zip(*pairs[:count], strict=True)
            for layer in self._cache.layers:
                self._ops.copy_blocks(layer, self._ids(sources), self._ids(targets))
            pairs = pairs[count:]

    def _swap(self, swap: Swap) -> None:
        if self._host is None:
            raise RuntimeError("the batch swaps, and this run has no host memory for it")
        if swap.out:
            host = [self._free.pop() for _ in swap.blocks]
            self._held[swap.request] = host
        else:
            host = self._held.pop(swap.request)
            self._free += host
        move = self._ops.swap_out if swap.out else self._ops.swap_in
        for layer, twin in zip(self._cache.layers, self._host.layers, strict=True):
            move(layer, twin, self._ids(swap.blocks), self._ids(host))

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(blocks), dtype=torch.int32, device=self._cache.device)
