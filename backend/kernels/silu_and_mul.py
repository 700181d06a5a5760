# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""The gated activation silu(gate) * up (SwiGLU: Shazeer, arXiv 2002.05202, equation 6). It knows no matrices."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._common import INTERPRETED, KernelVariant, check_device, next_power_of_two
from backend.kernels._launch import BoundKernel
from backend.kernels.cache_write import narrow
from traces.schema import InputError

BLOCK = 1024


@triton.jit
def _silu_and_mul_kernel(x, out, width, x_stride, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + at, mask=inside, other=0.0).to(tl.float32)
    # Of the two forms of the sigmoid, the one whose exponential cannot overflow.
    decay = tl.exp(-tl.abs(gate))
    activated = gate * tl.where(gate < 0, decay, 1.0) / (1.0 + decay) * up
    tl.store(out + row * width + at, narrow(activated, out.dtype.element_ty, INTERPRETED), mask=inside)


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2F] = (gate, up), as a dense [T, F] in x's type; fp32 inside. Rows may be strided.

    Raises InputError for an odd width.
    """
    check_device(x)
    if x.ndim != 2 or x.shape[1] % 2 or x.stride(-1) != 1:
        raise InputError(f"silu_and_mul wants x [T, 2F] with dense rows, not {tuple(x.shape)}")
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    if out.numel():
        block = min(BLOCK, next_power_of_two(width))
        _bound(block)((tokens, -(-width // block), 1), x, out, width, x.stride(0))
    return out


@cache
def _bound(block: int) -> BoundKernel:
    return BoundKernel(_silu_and_mul_kernel, BLOCK=block, INTERPRETED=INTERPRETED, num_warps=4, enable_fp_fusion=True)


def silu_and_mul_reference(x: Tensor) -> Tensor:
    """The same in float64."""
    gate, up = x.to(torch.float64).chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def variants() -> list[KernelVariant]:
    return [
        KernelVariant(
            name="silu_and_mul",
            kernel=f"{__name__}:_silu_and_mul_kernel",
            signature={"x": "*bf16", "out": "*bf16", "width": "i32", "x_stride": "i32"},
            constexprs={"BLOCK": BLOCK, "INTERPRETED": False},
            aligned=("width", "x_stride"),
        )
    ]
