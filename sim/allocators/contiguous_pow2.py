"""Contiguous memory, reserving the prompt and the output's length rounded up to a power of two (Orca (Pow2))."""

from __future__ import annotations

from sim.allocators.contiguous import Contiguous
from sim.engine.memory import KvPool


class ContiguousPow2(Contiguous):
    def __init__(self, pool: KvPool, *, fit: str = "first") -> None:
        super().__init__(pool, reserve="pow2", fit=fit)
