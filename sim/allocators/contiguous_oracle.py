"""Contiguous memory, reserving exactly what the request will use (Orca (Oracle))."""

from __future__ import annotations

from sim.allocators.contiguous import Contiguous
from sim.engine.memory import KvPool


class ContiguousOracle(Contiguous):
    def __init__(self, pool: KvPool, *, fit: str = "first") -> None:
        super().__init__(pool, reserve="oracle", fit=fit)
