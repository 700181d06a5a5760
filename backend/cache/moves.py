"""Block copies and swaps as a batch lists them, done to the tensors in that order. It knows no requests' progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.live.packing import Stage
from backend.ops import Ops
from sim.engine.batch import Batch, Swap
from sim.engine.request import Request

Pairs = Sequence[tuple[int, int]]


class Move(NamedTuple):
    """One launch per layer: "copy" within the cache, or "out" of it or "in" from the host; (from, to) or, for swaps,
    (block of the device, block of the host)."""

    kind: str
    pairs: Pairs


class Mover:
    """Moves blocks within the cache, and between it and `host_blocks` blocks of host memory.

    Launches only: on CUDA nothing has moved yet when a method returns.
    """

    def __init__(self, ops: Ops, cache: KvCache, host_blocks: int) -> None:
        self._ops = ops
        self._cache = cache
        self._host = cache.host(host_blocks) if host_blocks else None
        self._free = list(range(host_blocks, 0, -1))
        self._held: dict[Request, list[int]] = {}
        self._stage = Stage(cache.device)

    @property
    def host_blocks_free(self) -> int:
        return len(self._free)

    def warm_up(self) -> None:
        """Build what moving takes, by moves to the null block; waits for them, so that moves may follow at once."""
        kinds = ("copy",) if self._host is None else ("copy", "out", "in")
        self._launch([Move(kind, [(0, 0)]) for kind in kinds])
        if self._cache.device.type == "cuda":
            torch.cuda.synchronize(self._cache.device)

    def move(self, batch: Batch) -> None:
        """Make the batch's copies and swaps, before it computes anything."""
        for req in [req for req in self._held if req.finished]:  # it ended while its KV was in the host's memory
            self._free += self._held.pop(req)
        if not batch.copies and not batch.swaps:
            return
        moves: list[Move] = []
        done = 0
        for swap in batch.swaps:
            moves += independent(batch.copies[done : swap.after])
            done = swap.after
            moves.append(self._swap(swap))
        moves += independent(batch.copies[done:])
        self._launch(moves)

    def _swap(self, swap: Swap) -> Move:
        if self._host is None:
            raise RuntimeError("the batch swaps, and this run has no host memory for it")
        if swap.out:
            host = self._held[swap.request] = [self._free.pop() for _ in swap.blocks]
        else:
            host = self._held.pop(swap.request)
            self._free += host
        return Move("out" if swap.out else "in", list(zip(swap.blocks, host, strict=True)))

    def _launch(self, moves: list[Move]) -> None:
        columns = [np.array(move.pairs, np.int32).T for move in moves]
        ids = self._stage.send([column for pair in columns for column in pair])
        for move, first, second in zip(moves, ids[::2], ids[1::2], strict=True):
            self._each_layer(move.kind)(first, second)

    def _each_layer(self, kind: str) -> Callable[[Tensor, Tensor], None]:
        def copy(sources: Tensor, targets: Tensor) -> None:
            for layer in self._cache.layers:
                self._ops.copy_blocks(layer, sources, targets)

        def swap(device_blocks: Tensor, host_blocks: Tensor) -> None:
            assert self._host is not None
            move = self._ops.swap_out if kind == "out" else self._ops.swap_in
            for layer, twin in zip(self._cache.layers, self._host.layers, strict=True):
                move(layer, twin, device_blocks, host_blocks)

        return copy if kind == "copy" else swap


def independent(pairs: Pairs) -> Iterator[Move]:
    """Copies in their order, in groups within which none touches what another reads or writes.

    A group may be made at once, in any order; the next one after it.
    """
    while pairs:
        read: set[int] = set()
        written: set[int] = set()
        for source, target in pairs:
            if source in written or target in written or target in read:
                break
            read.add(source)
            written.add(target)
        yield Move("copy", pairs[: len(written)])
        pairs = pairs[len(written) :]
