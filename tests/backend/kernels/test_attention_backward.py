"""Attention's gradients by recomputation: float64 autograd, ragged lengths, memory that grows with N and not N x N."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from attention_kit import BF16, off_by

from backend.cache.kvcache import LayerCache
from backend.kernels import attention_backward as module
from backend.kernels._common import DEVICE
from backend.kernels.aot import build
from backend.kernels.attention_backward import attention_backward, backward_reference
from backend.kernels.prefill_attention import prefill_attention
from backend.kernels.standard_attention import standard_attention
from traces.schema import InputError


def inputs(tokens: int, heads: int, kv_heads: int, dim: int, kind: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v, what prefill attention makes of them (out, lse), and a gradient that arrives."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, d_out = (
        torch.randn(tokens, count, dim, generator=generator).to(kind).to(DEVICE)
        for count in (heads, kv_heads, kv_heads, heads)
    )
    cache = LayerCache(
        *(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -tokens % 8)).view(-1, 8, kv_heads, dim) for x in (k, v))
    )
    tables = torch.arange(cache.k.shape[0], dtype=torch.int32, device=DEVICE)[None]
    counts = torch.tensor([0, tokens], dtype=torch.int32, device=DEVICE)
    out, lse = prefill_attention(q, cache, tables, counts, counts[1:], max_q=tokens, scale=dim**-0.5)
    return q, k, v, out, lse, d_out


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "kind", "tolerance"),
    [
        (1, 2, 1, 16, torch.float32, 1e-5),
        (33, 4, 2, 16, torch.float32, 1e-5),
        (70, 3, 1, 32, torch.float32, 1e-5),
        (64, 2, 2, 16, torch.float32, 1e-5),
        (41, 2, 1, 16, BF16, 2e-2),
    ],
)
def test_gradients_are_float64s(
    tokens: int, heads: int, kv_heads: int, dim: int, kind: torch.dtype, tolerance: float
) -> None:
    q, k, v, out, lse, d_out = inputs(tokens, heads, kv_heads, dim, kind)
    found = attention_backward(q, k, v, out, lse, d_out)
    for name, mine, wanted in zip("qkv", found, backward_reference(q, k, v, d_out), strict=True):
        assert mine.dtype == kind
        if tokens == 1 and name != "v":  # one key has all the weight, whatever its score
            assert float(mine.abs().max()) < tolerance
        else:
            assert off_by(mine, wanted.cpu()) < tolerance, name


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that is made meanwhile."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [one.nbytes for one in tree_leaves(made) if isinstance(one, Tensor)]
        self.largest = max([self.largest, *sizes])
        return made


def largest(call: Any, *arguments: Tensor) -> int:
    with Allocations() as seen:
        call(*arguments)
    return seen.largest


def test_memory_grows_with_tokens_where_the_unfused_one_squares_them() -> None:
    fused, unfused = [], []
    for tokens in (32, 64):
        given = inputs(tokens, 2, 1, 16, torch.float32)
        fused.append(largest(attention_backward, *given))
        unfused.append(largest(standard_attention, *given[:3]))
    assert fused == [4 * 32 * 2 * 16, 4 * 64 * 2 * 16]
    assert unfused == [4 * 2 * 32 * 32, 4 * 2 * 64 * 64]


def test_the_same_inputs_give_the_same_bits() -> None:
    given = inputs(33, 4, 2, 16, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(attention_backward(*given), attention_backward(*given), strict=True))


def test_what_cannot_be_differentiated_is_refused() -> None:
    q, k, v, out, lse, d_out = inputs(3, 2, 1, 16, torch.float32)
    for changed, sentence in (
        ((q, k, v, out, lse[:2], d_out), "gradients need q, out and their gradient alike"),
        ((q, k, v, out, lse.double(), d_out), "lse must be fp32"),
        ((q, k.half(), v, out, lse, d_out), "contiguous tensors of one type"),
    ):
        with pytest.raises(InputError, match=sentence):
            attention_backward(*changed)


def test_both_kernels_build_for_hopper_without_spills() -> None:
    for one in build([(variant, 90) for variant in module.variants() if variant.name.endswith("d128")]):
        assert one.error == ""
        assert one.local_loads == one.local_stores == 0, one
        assert one.wgmma >= 8
