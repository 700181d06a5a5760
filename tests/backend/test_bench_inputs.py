"""What the benchmark runs on: scattered blocks, a reference that is attention, and the FLOPs and bytes of its cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.bench.attention import causal_flops
from backend.bench.inputs import CHUNK_TOKENS, BenchPool, BenchSequences, Heads
from backend.kernels.prefill_attention import attention_reference

CPU = torch.device("cpu")


@given(
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 3),
    st.sampled_from((16, 128)),
    st.sampled_from((None, CHUNK_TOKENS)),
)
def test_tables_permute_the_room_of_each_sequence(
    count: int, context: int, sets: int, block_tokens: int, grain: int | None
) -> None:
    pool = BenchPool(Heads(2, 1, 2), BenchSequences.room(count, context, sets), torch.float32, CPU)
    inputs = BenchSequences(pool, count, context, 1, sets, grain)
    everything: list[int] = []
    for turn, (table, memory) in enumerate(
        zip(inputs.tables(block_tokens), map(inputs.memory, range(sets)), strict=True)
    ):
        assert table.shape == (count, -(-context // block_tokens))
        for sequence in range(count):
            slots = inputs.slots(turn, sequence, block_tokens)
            there = pool.k[slots.sort().values]
            assert torch.equal(there, memory[0][sequence])  # the same tokens, in another order
            everything += slots.tolist()
    assert len(set(everything)) == len(everything)
    assert min(everything) >= CHUNK_TOKENS  # never the null block
    if grain is not None:
        orders = [inputs.in_order(0, size)[0] for size in (16, 128)]
        assert torch.equal(*orders)


def test_blocks_are_scattered() -> None:
    pool = BenchPool(Heads(2, 1, 2), 4096, torch.float32, CPU)
    table = BenchSequences(pool, 1, 4096, 1, 1).tables(16)[0][0].tolist()
    assert table != sorted(table)


@pytest.mark.parametrize("kind", [torch.float32, torch.float8_e4m3fn, torch.int8])
def test_the_reference_is_attention(kind: torch.dtype) -> None:
    pool = BenchPool(Heads(4, 2, 16), BenchSequences.room(1, 40, 1), kind, CPU)
    inputs = BenchSequences(pool, 1, 40, 5, 1, CHUNK_TOKENS)
    k, v = pool.exact(inputs.slots(0, 0, 16))
    whole, _ = attention_reference(inputs.q[0], [k], [v], [0, 5], scale=inputs.scale)
    torch.testing.assert_close(inputs.expected(3, 16), whole[-3:])


@given(st.integers(1, 40), st.integers(0, 40))
def test_flops_count_pairs(new: int, past: int) -> None:
    heads = Heads(3, 1, 8)
    pairs = sum(past + at for at in range(new)) + new / 2  # S^2 / 2 of a prompt, as published tables count
    assert causal_flops(heads, new, past) == pytest.approx(4 * 3 * 8 * pairs, abs=4 * 3 * 8)
