"""progress, found by seed 4441: equals of the priority policy preempt one another for ever.

As vLLM's scheduler would: of equal (priority, arrival) it preempts the first of the running list, which is the furthest
one. A server's clock hardly ever gives two requests one time of arrival; a closed loop does.
"""

from __future__ import annotations

import pytest
from fuzz.case import Case, Row
from fuzz.check import broken, check

from traces.schema import InputError

CASE = Case(
    settings={
        "seed": 2,
        "model": "tiny-llama",
        "gpu": "a10g",
        "tp": 1,
        "replicas": 1,
        "policy": "speculative",
        "policy.base": "priority",
        "speculation.drafter": "medusa",
        "speculation.acceptance": 1.0,
        "speculation.k": 2,
        "speculation.tree": "2,1",
        "policy.long_prefill_token_threshold": 1,
        "engine.max_num_seqs": 256,
        "engine.max_num_batched_tokens": 8192,
        "engine.max_model_len": 21,
        "engine.async_scheduling": False,
        "allocator": "windowed",
        "allocator.reserve_full_prompt": False,
        "allocator.window_tokens": 16,
        "kv.block_tokens": 3,
        "kv.blocks": 12,
        "concurrency": 8,
        "workload.skip_bad": True,
    },
    rows=(
        Row(0.00048828125, 29, 3, prefix=(1, 4, 14, 44, 134, 404, 1214, 3643, 10930)),
        Row(0.00048828125, 15, 4),
        Row(0.0009765625, 6, 2, prefix=(2, 8)),
        Row(0.0009765625, 2, 2),
        Row(0.0009765625, 16, 5, prefix=(2, 8, 26, 80, 242, 727, 2182)),
        Row(0.0009765625, 22, 6, prefix=(2, 7)),
        Row(0.00146484375, 23, 3, prefix=(1, 5, 16, 50)),
        Row(0.00146484375, 13, 3),
        Row(0.001953125, 14, 6, prefix=(1, 4, 14, 43, 131, 395, 1187, 3563)),
        Row(0.001953125, 6, 4, prefix=(2, 8, 25)),
        Row(0.001953125, 16, 6, prefix=(2, 7, 22, 68, 205)),
        Row(0.001953125, 16, 2, prefix=(1, 5, 16, 50, 151, 455, 1366)),
        Row(0.001953125, 16, 6, prefix=(2,)),
    ),
    unit_tokens=1,
)


def test_it_ends_with_a_sentence() -> None:
    assert broken(CASE, "progress") == ""
    told = check(CASE, ("progress",)).refused
    assert told.startswith("the run cannot go on: at ")
    assert "preempt one another in turns, and in 6,400 batches none has got further" in told


def test_distinct_times_of_arrival_end_it() -> None:
    """Of which the least is never preempted."""
    with pytest.raises(InputError, match="in turns"):
        CASE.run()
    open_loop = {key: value for key, value in CASE.settings.items() if key != "concurrency"}
    rows = tuple(Row(0.001 + at / 2**20, row.prompt_tokens, row.output_tokens) for at, row in enumerate(CASE.rows))
    assert check(Case(settings=open_loop, rows=rows, unit_tokens=1), ("conservation",)).refused == ""
