"""The host memory that preempted requests are moved to. It knows no clock and no link."""

from __future__ import annotations

from sim.engine.memory import KvPool
from sim.engine.request import Handover, Request

DEVICE, HOST = "device", "host"


class HostMemory:
    """Room of `blocks` blocks outside the device for preempted requests' KV (swapping: vLLM paper, section 4.5)."""

    def __init__(self, pool: KvPool, blocks: int) -> None:
        self._pool = pool
        self.free_blocks = blocks

    def take(self, req: Request) -> int:
        """Blocks of a request that move to the host, all that it has computed; 0 where there is no room or nothing."""
        blocks = self._pool.blocks_for(req.computed)
        if not 0 < blocks <= self.free_blocks:
            return 0
        self._hold(req, req.computed, blocks)
        return blocks

    def give_back(self, req: Request) -> int:
        """Blocks of a request that are on the host, and are free there from now on."""
        if req.handover is None or req.handover.target != HOST:
            return 0
        blocks = self._pool.blocks_for(req.handover.tokens)
        self.free_blocks += blocks
        req.handover = None
        return blocks

    def keep(self, req: Request, tokens: int) -> None:
        """Keep no more than `tokens` tokens of a request that is on the host."""
        self.give_back(req)
        self._hold(req, tokens, self._pool.blocks_for(tokens))

    def _hold(self, req: Request, tokens: int, blocks: int) -> None:
        self.free_blocks -= blocks
        req.handover = Handover(tokens, blocks * self._pool.block_bytes, DEVICE, HOST)
