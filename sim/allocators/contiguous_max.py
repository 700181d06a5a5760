"""Contiguous memory, reserving the maximum length of a request, whatever it needs (Orca (Max))."""

from __future__ import annotations

from sim.allocators.contiguous import Contiguous
from sim.engine.memory import KvPool


class ContiguousMax(Contiguous):
    def __init__(self, pool: KvPool, *, fit: str = "first") -> None:
        super().__init__(pool, reserve="max", fit=fit)
