"""What an allocator says that members will need is what they would ask for step by step."""

from __future__ import annotations

import random
from collections.abc import Sequence

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


def joined(pool: KvPool, order: Sequence[int]) -> tuple[Paged, Verifying, BlocksAhead, list[Request]]:
    """Members with a prompt of 4 tokens, admitted one after the other, that join in some order and give a token a step
    for 8 steps, each of two tokens: blocks of 4 are taken in the first, the fourth and the last."""
    allocator = Paged(pool)
    members = Verifying(2, 0, lambda req: ([0] * 8, list(range(4, 12))), lambda req, right: None)
    blocks = BlocksAhead(checked(allocator), members)
    requests = []
    for seq in range(len(order)):
        req = Request(seq, 0.0, 4, 9)
        req.computed, req.known, req.confirmed, req.final_kv_tokens, req.seat = 4, 5, 1, 13, Seat()
        req.seat.seq, req.seat.drafts = seq, 1
        assert allocator.admit(req, 0)
        requests.append(req)
    for seq in order:
        members.join(requests[seq])
        blocks.join(requests[seq], 0)
    return allocator, members, blocks, requests


@pytest.mark.parametrize("steps", [1, 8])
def test_members_take_blocks_in_the_order_of_admission(steps: int) -> None:
    """Whoever of them joined first, step by step or in a span."""
    allocator, _, blocks, requests = joined(KvPool(64, 4, 0), (1, 2, 0))
    for tick in range(8) if steps == 1 else ():
        assert blocks.step(tick) is None
    if steps > 1:
        blocks.advance(0, steps)
    assert [list(allocator.table(req)) for req in requests] == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]


def test_headroom_is_what_all_members_can_take() -> None:
    _, members, blocks, requests = joined(KvPool(4, 4, 0), (0, 1))
    assert (blocks.headroom(0, 8), blocks.headroom(0, 2), blocks.headroom(0, 1)) == (3, 2, 1)
    members.leave(requests[1])
    blocks.leave(requests[1])
    assert blocks.headroom(0, 8) == 7


def test_whoever_finds_too_few_asks_again() -> None:
    allocator, members, blocks, requests = joined(KvPool(4, 4, 0), (0, 1, 2))
    assert blocks.step(0) is requests[1]
    assert list(allocator.table(requests[0])) == [1, 4]
    members.leave(requests[2])
    blocks.leave(requests[2])
    allocator.release(requests[2])
    assert blocks.step(0) is None
    assert [list(allocator.table(req)) for req in requests[:2]] == [[1, 4], [2, 3]]
