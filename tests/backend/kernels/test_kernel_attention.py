"""Attention over the paged cache, Triton and torch: float64 oracles, laws, and poison where nothing may be read.

Without a GPU numpy interprets the kernels, so their cases are small (under about 100 tile visits); with one the same
cases are compiled, and those of real shapes join them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from attention_kit import BF16, FP8, FP16, INT8, Case, Inputs, Runner, build, check, queries_of, runner
from ops_kit import IMPLEMENTATIONS

from backend.kernels._common import INTERPRETED
from backend.kernels.decode_attention import decode_reference
from backend.kernels.prefill_attention import attention_reference

PREFILLS = {
    "whole prompts, an empty one, a single token": Case((20, 0, 1, 7), (0, 33, 0, 0)),
    "chunks at block and tile borders": Case((16, 17, 1), (16, 31, 32)),
    "one head, blocks of an odd size": Case((19, 2), (5, 40), heads=1, kv_heads=1, block_tokens=3),
    "seven queries to a KV head": Case((9, 3), (0, 21), heads=7, kv_heads=1),
    "as many KV heads, blocks of two tiles": Case((18,), (25,), heads=3, kv_heads=3, block_tokens=32),
    "a window shorter than a tile": Case((20, 5), (0, 60), window=5),
    "a window and sinks": Case((20, 1), (47, 30), window=20, sinks=6),
    "sinks within the window": Case((12,), (9,), window=16, sinks=8),
    "sinks over several tiles": Case((6,), (90,), window=9, sinks=37),
    "a soft cap": Case((20, 3), (4, 30), soft_cap=2.0),
    "a soft cap, window and sinks": Case((11,), (50,), soft_cap=1.0, window=18, sinks=2),
    "fp16": Case((20, 3), (4, 30), q_type=FP16, storage=FP16),
    "bf16": Case((20, 3), (4, 30), q_type=BF16, storage=BF16),
    "bf16 over fp8": Case((20, 3), (4, 30), q_type=BF16, storage=FP8, soft_cap=2.0),
    "fp32 over fp8": Case((20, 3), (4, 30), storage=FP8),
    "fp16 over int8": Case((20, 3), (4, 30), q_type=FP16, storage=INT8, window=17, sinks=2),
    "fp32 over int8": Case((20, 3), (4, 30), storage=INT8),
}

DECODES = {
    "ragged, a first token": Case((1, 1, 1), (69, 0, 15)),
    "one long context, split": Case((1,), (211,)),
    "one long among short ones": Case((1, 1, 1, 1), (3, 180, 16, 7)),
    "seven queries to a KV head": Case((1, 1), (40, 3), heads=7, kv_heads=1, block_tokens=3),
    "three drafts, split": Case((3,), (150,)),
    "eight drafts, more rows than a tile": Case((8,), (20,), heads=9, kv_heads=1),
    "drafts in a window that ends in a tile": Case((4, 4), (60, 28), window=7, sinks=3),
    "a window and sinks, split": Case((1,), (200,), window=120, sinks=20),
    "a soft cap": Case((2, 2), (40, 0), soft_cap=2.0),
    "fp16": Case((1, 1), (100, 7), q_type=FP16, storage=FP16),
    "bf16": Case((1, 1), (100, 7), q_type=BF16, storage=BF16, block_tokens=16),
    "bf16 over fp8": Case((1, 1), (100, 7), q_type=BF16, storage=FP8),
    "bf16 over int8": Case((2, 2), (100, 7), q_type=BF16, storage=INT8, window=50, sinks=4),
    "fp32 over int8": Case((1, 1), (100, 7), storage=INT8, soft_cap=3.0),
    "pairs of fp8": Case((1, 1, 1), (100, 7, 0), head_dim=32, q_type=BF16, storage=FP8),
    "pairs of fp8, drafts, a soft cap": Case((3, 3), (41, 0), head_dim=32, q_type=FP16, storage=FP8, soft_cap=2.0),
    "pairs of int8": Case((1, 1, 1), (100, 7, 0), head_dim=32, q_type=FP16, storage=INT8),
    "pairs of int8, blocks of two tiles": Case((1,), (75,), head_dim=32, block_tokens=32, q_type=BF16, storage=INT8),
    "pairs of int8, drafts in a window": Case((4, 4), (60, 28), head_dim=32, q_type=BF16, storage=INT8, window=19),
    "pairs of int8, window, sinks, cap": Case(
        (1, 1), (90, 30), head_dim=32, q_type=FP16, storage=INT8, window=37, sinks=6, soft_cap=2.0
    ),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def run(request: pytest.FixtureRequest) -> Runner:
    return runner(str(request.param))


@pytest.mark.parametrize("name", PREFILLS)
def test_prefill_is_float64s(run: Runner, name: str) -> None:
    case = PREFILLS[name]
    inputs = build(case)
    check(run.prefill(case, inputs), wanted_prefill(case, inputs), case.q_type)


@pytest.mark.parametrize("name", DECODES)
def test_decode_is_float64s(run: Runner, name: str) -> None:
    case = DECODES[name]
    inputs = build(case)
    check(run.decode(case, inputs), wanted_decode(case, inputs), case.q_type)


def wanted_prefill(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    return attention_reference(inputs.q, inputs.keys, inputs.values, inputs.q_starts.tolist(), **case.scoring)


def wanted_decode(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    return decode_reference(queries_of(case, inputs), inputs.keys, inputs.values, **case.scoring)


def test_rows_without_keys_are_zero_and_minus_infinity(run: Runner) -> None:
    """A padding row (length 0), and the queries before the first token of a sequence shorter than its drafts."""
    case = Case((4, 4, 4), (0, 40, 0))
    inputs = build(case)
    inputs.tables[0] = 0  # as an executor pads: the null block, which is poison
    short = replace(inputs, kv_lens=torch.tensor([0, 44, 2], dtype=torch.int32))
    out, lse = run.decode(case, short)
    for rows in ((0, slice(0, 4)), (2, slice(0, 2))):
        assert (out[rows] == 0).all()
        assert (lse[rows] == float("-inf")).all()
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse[1]).all()
    assert torch.isfinite(lse[2, 2:]).all()


@st.composite
def cases(draw: st.DrawFn, equal: bool) -> Case:
    """Any batch; with `equal`, of sequences with equally many new tokens."""
    count = draw(st.integers(1, 5))
    several = st.lists(st.integers(0, 20), min_size=count, max_size=count)
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 5), (2, 3)]))
    types = [(torch.float32, torch.float32), (BF16, BF16), (torch.float32, FP8), (FP16, INT8)]
    q_type, storage = draw(st.sampled_from(types))
    return Case(
        news=(draw(st.integers(1, 8)),) * count if equal else tuple(draw(several)),
        pasts=tuple(2 * past for past in draw(several)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        block_tokens=draw(st.integers(1, 9)),
        q_type=q_type,
        storage=storage,
        window=draw(st.sampled_from([0, 0, 1, 3, 17])),
        sinks=draw(st.sampled_from([0, 2, 11])),
        soft_cap=draw(st.sampled_from([0.0, 1.5])),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=25)
@given(case=cases(equal=False))
def test_torch_prefill_is_float64s_on_any_batch(case: Case) -> None:
    inputs = build(case)
    check(runner("cpu").prefill(case, inputs), wanted_prefill(case, inputs), case.q_type)


@settings(max_examples=25)
@given(case=cases(equal=True))
def test_torch_decode_is_float64s_on_any_batch(case: Case) -> None:
    inputs = build(case)
    check(runner("cpu").decode(case, inputs), wanted_decode(case, inputs), case.q_type)


@settings(max_examples=3)
@given(prefill=cases(equal=False), decode=cases(equal=True))
def test_kernels_are_torchs_on_any_batch(prefill: Case, decode: Case) -> None:
    """The twins: the kernels of this process, interpreted or compiled, against the torch path."""
    kernels = runner("interpret" if INTERPRETED else "cuda")
    inputs = build(prefill)
    wanted = runner("cpu").prefill(prefill, inputs)
    check(kernels.prefill(prefill, inputs), (wanted[0].double(), wanted[1].double()), prefill.q_type)
    inputs = build(decode)
    wanted = runner("cpu").decode(decode, inputs)
    check(kernels.decode(decode, inputs), (wanted[0].double(), wanted[1].double()), decode.q_type)


@pytest.mark.gpu
@pytest.mark.parametrize("storage", [BF16, FP16, FP8, INT8])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("block_tokens", [16, 128])
def test_real_shapes_on_a_gpu_are_torchs(head_dim: int, storage: torch.dtype, block_tokens: int) -> None:
    """Compiled tiles at the sizes they are for; the torch path, held to float64 above, is the oracle."""
    kernels = runner("cuda")
    shape = Case(
        (700, 1, 129), (2000, 37, 0), 32, 8, head_dim, block_tokens, FP16 if storage == FP16 else BF16, storage
    )
    for window, sinks, soft_cap in ((0, 0, 0.0), (300, 70, 5.0)):
        case = replace(shape, window=window, sinks=sinks, soft_cap=soft_cap)
        inputs = build(case)
        out, lse = runner("cpu").prefill(case, inputs)
        check(kernels.prefill(case, inputs), (out.double(), lse.double()), case.q_type)
        for queries in (1, 8):
            case = replace(case, news=(queries,) * 4, pasts=(5000, 0, 129, 63))
            inputs = build(case)
            out, lse = runner("cpu").decode(case, inputs)
            check(kernels.decode(case, inputs), (out.double(), lse.double()), case.q_type)


@pytest.mark.gpu
def test_a_captured_decode_serves_other_lengths() -> None:
    """The grid depends on no length: one CUDA graph, replayed after lengths and tables changed."""
    kernels = runner("cuda")
    case = Case((1, 1, 1), (4000, 80, 9), 32, 8, 128, 64, BF16, BF16)
    inputs = build(case).to(kernels.device)
    q = queries_of(case, inputs)
    lengths = inputs.kv_lens.clone()
    kernels.ops.decode_attention(q, inputs.cache, inputs.tables, lengths, **case.scoring)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = kernels.ops.decode_attention(q, inputs.cache, inputs.tables, lengths, **case.scoring)
    for shorter in ((4001, 81, 10), (17, 81, 0), (3000, 1, 5)):
        lengths.copy_(torch.tensor(shorter))
        graph.replay()
        changed = replace(inputs, kv_lens=lengths).to(torch.device("cpu"))
        wanted = runner("cpu").decode(case, changed)
        torch.testing.assert_close(lse.cpu(), wanted[1], atol=3e-5, rtol=0.0)
        torch.testing.assert_close(out.cpu().float(), wanted[0].float(), atol=2e-2, rtol=0.0)
