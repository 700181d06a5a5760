"""What an allocator says that members will need is what they would ask for step by step."""

from __future__ import annotations

import random

import pytest

from sim.allocators.paged import Paged
from sim.engine.memory import KvPool
from sim.engine.request import Request, Seat


@pytest.mark.parametrize("longest", [0, 90, 97, 112, 200])
@pytest.mark.parametrize("ahead", [0, 4, 9])
def test_tables_grow_where_they_would_step_by_step(longest: int, ahead: int) -> None:
    rng = random.Random(longest + ahead)
    for size in (1, 4, 16):
        allocator, req = Paged(KvPool(512, size, longest)), Request(0, 0.0, 20, 80)
        req.seat, req.final_kv_tokens = Seat(), 120
        allocator.lookahead_tokens = ahead
        assert allocator.admit(req, 20)
        pasts = [20]
        while pasts[-1] < 96:
            pasts.append(pasts[-1] + rng.randrange(1, 6))
        grown = []
        told = allocator.rows_ahead(req, pasts, 5)
        for place, past in enumerate(pasts):
            held, req.computed = len(allocator.table(req)), past
            assert allocator.grow(req, 5)
            if len(allocator.table(req)) > held:
                grown.append((place, len(allocator.table(req))))
        assert told == grown
