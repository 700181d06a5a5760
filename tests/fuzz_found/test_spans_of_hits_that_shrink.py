"""spans, found by seed 5065 of models with windows: a hit that shrinks within a span lets somebody in who waits.

A row that can be found was taken while a step repeated; a request that waited then had a shorter hit, asked for fewer
blocks, and would have been admitted.
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={
        "model": "llama-4-scout",
        "engine.max_num_batched_tokens": 2,
        "engine.async_scheduling": False,
        "allocator": "prefix",
        "allocator.reserve_full_prompt": False,
        "kv.block_tokens": 4,
        "kv.blocks": 10,
        "concurrency": 2,
    },
    rows=(Row(0.0, 2, 28), Row(0.0, 4, 6), Row(0.0, 1, 14)),
    cost=Steps(base_s=0.0009765625),
)


def test_who_waits_is_asked_again_when_a_row_that_can_be_found_is_taken() -> None:
    assert broken(CASE, "spans") == ""
