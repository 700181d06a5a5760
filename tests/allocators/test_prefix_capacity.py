"""How the hit rate of prefix caching falls with capacity, against LRU stack distances computed on their own.

Mattson, Gecsei, Slutz and Traiger 1970: under LRU a block is found in a cache of C blocks if and only if fewer than C
others were used since its own last use, so one pass over a trace gives the hits at every capacity. The trace is
Mooncake's conversation trace, one request after another, answers left out. With them a user sees nearly the same:

    sim run --trace conversation_trace.jsonl.gz --allocator prefix --set kv.block_tokens=512 --kv-blocks 16000
        --concurrency 1

finds 27.0 % of all blocks, and 38.2 % with 400,000 blocks; 8.8 % with 4,000.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from sim.allocators.prefix import Prefix
from sim.engine.memory import KvPool
from sim.engine.request import Request, SharedPrefix

Row = tuple[int, list[int]]
"""Prompt tokens; an id for each 512 of them, the last perhaps of fewer."""
CAPACITIES = (300, 1_000, 4_000, 16_000, 64_000, 400_000)
REPLAYED = (300, 4_000, 16_000, 400_000)


class UseOrder:
    """Blocks by last use, the latest first; `depth` counts from 1. A Fenwick tree over the times of use."""

    def __init__(self, uses: int) -> None:
        self._tree = [0] * (uses + 1)
        self._last: dict[object, int] = {}
        self._now = 0

    def depth(self, block: object) -> int | None:
        """How many blocks were used no earlier than this one; None if it never was."""
        at = self._last.get(block)
        if at is None:
            return None
        tree, before = self._tree, 0
        at -= 1
        while at:
            before += tree[at]
            at &= at - 1
        return len(self._last) - before

    def use(self, block: object) -> None:
        if block in self._last:
            self._add(self._last[block], -1)
        self._now += 1
        self._last[block] = self._now
        self._add(self._now, 1)

    def _add(self, at: int, change: int) -> None:
        tree = self._tree
        while at < len(tree):
            tree[at] += change
            at += at & -at


def hits_at(requests: Sequence[Sequence[int]], scratch: Sequence[int]) -> dict[int, int]:
    """Blocks hit at each capacity; a request uses `scratch` blocks beside those that others can find.

    A request's blocks are freed last first, so that of its own blocks the first was used last. A block stands above
    all that follow it in any request, so what is found is always a leading run.
    """
    order = UseOrder(sum(map(len, requests)) + sum(scratch))
    depths: list[int] = []
    for number, (blocks, own) in enumerate(zip(requests, scratch, strict=True)):
        found = [order.depth(block) for block in blocks]
        seen = [depth for depth in found if depth is not None]
        assert seen == sorted(seen)
        assert None not in found[: len(seen)]
        depths += seen
        for at in range(own):
            order.use((number, at))
        for block in reversed(blocks):
            order.use(block)
    return {capacity: sum(depth <= capacity for depth in depths) for capacity in CAPACITIES}


def conversation(shared: Path) -> Iterator[Row]:
    with gzip.open(shared / "traces/mooncake-fast25/conversation_trace.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["input_length"], row["hash_ids"]


def replayed(rows: Sequence[Row], pool: KvPool, unit_tokens: int) -> int:
    """Blocks that the allocator finds, one request after another."""
    cache, hits = Prefix(pool), 0
    for number, (prompt_tokens, ids) in enumerate(rows):
        req = Request(number, 0.0, prompt_tokens, 1, prefix=SharedPrefix(ids, unit_tokens))
        req.computed = cache.match(req)
        hits += req.computed // pool.block_tokens
        assert cache.admit(req, req.known - req.computed)
        req.computed, req.finished = req.known, True
        cache.release(req)
    return hits


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    return list(conversation(shared))


@pytest.mark.shared
def test_hits_fall_with_capacity_as_stack_distances_say(rows: list[Row]) -> None:
    """An id counts as a block even if it is partly filled; one token more, which no id tells, is always computed.

    That token has a block of its own, which nobody finds again and which is evicted in its turn.
    """
    blocks = [ids for _, ids in rows]
    expected = hits_at(blocks, [1] * len(rows))
    assert sum(map(len, blocks)) == 288_500
    assert expected[400_000] == 105_710
    for capacity in REPLAYED:
        assert replayed([(len(ids) + 1, ids) for ids in blocks], KvPool(capacity, 1), 1) == expected[capacity]
    assert all(less < more for less, more in pairwise(expected.values()))


@pytest.mark.shared
def test_so_they_do_under_the_rules_of_vllm(rows: list[Row]) -> None:
    """Real blocks of 512 tokens: a partly filled last one is never found again, but takes its place in the order."""
    whole = [ids[: tokens // 512] for tokens, ids in rows]
    expected = hits_at(whole, [int(tokens % 512 > 0) for tokens, _ in rows])
    # No prompt is found whole, so that the token that is always computed takes no block from it.
    seen: set[int] = set()
    for (tokens, _), blocks in zip(rows, whole, strict=True):
        assert tokens % 512 or not seen.issuperset(blocks)
        seen.update(blocks)
    for capacity in (1_000, 16_000):
        assert replayed(rows, KvPool(capacity, 512), 512) == expected[capacity]
    # 118 prompts are covered whole, as the trace counts them, with their last, partly filled block.
    assert expected[400_000] == 105_710 - 118
