"""What an allocator says that members will need is what they would ask for step by step."""

from __future__ import annotations

import random

import pytest

from sim.allocators.paged import Paged
from sim.engine.ahead import BlocksAhead, checked
from sim.engine.memory import KvPool
from sim.engine.request import Request, Seat
from sim.engine.verifying import Verifying


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


@pytest.mark.parametrize("steps", [1, 8])
def test_members_take_blocks_in_the_order_of_admission(steps: int) -> None:
    """Whoever of them joined first, step by step or in a span."""
    allocator = Paged(KvPool(64, 4, 0))
    members = Verifying(2, 0, lambda req: ([0] * 8, list(range(4, 12))), lambda req, right: None)
    blocks = BlocksAhead(checked(allocator), members)
    requests = []
    for seq in range(3):
        req = Request(seq, 0.0, 4, 9)
        req.computed, req.known, req.confirmed, req.final_kv_tokens, req.seat = 4, 5, 1, 13, Seat()
        req.seat.seq, req.seat.drafts = seq, 1
        assert allocator.admit(req, 0)
        requests.append(req)
    for seq in (1, 2, 0):
        members.join(requests[seq])
        blocks.join(requests[seq], 0)
    for tick in range(8) if steps == 1 else ():
        assert blocks.step(tick) is None
    if steps > 1:
        blocks.advance(0, steps)
    assert [list(allocator.table(req)) for req in requests] == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]
