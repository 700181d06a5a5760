# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Root-mean-square norm with the residual's addition fused, and the same per head. It knows no layers.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467), equation 4. A program holds a
whole row (or a few heads) in registers and reads it once.
"""

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

MAX_WIDTH = 32768
"""Widest row that fits the registers of one program."""

HEAD_TILE_ELEMENTS = 2048


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    normed,
    total,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH_PADDED)
    inside = at < WIDTH
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + row * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
        # The norm is of the sum as the next layer will read it: rounded.
        rounded = narrow(values, total.dtype.element_ty, INTERPRETED)
        tl.store(total + row * WIDTH + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / WIDTH + eps)
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        normed + row * WIDTH + at, narrow(values * scale * weights, normed.dtype.element_ty, INTERPRETED), mask=inside
    )


@triton.jit
def _head_norm_kernel(
    x,
    weight,
    normed,
    heads,
    token_stride,
    head_stride,
    eps,
    HEAD_DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    dims = tl.arange(0, DIM_PADDED)
    inside = (rows < heads)[:, None] & (dims < HEAD_DIM)[None, :]
    at = x + token * token_stride + rows[:, None] * head_stride + dims[None, :]
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 1) / HEAD_DIM + eps)
    weights = tl.load(weight + dims, mask=dims < HEAD_DIM, other=0.0).to(tl.float32)
    out = narrow(values * scale[:, None] * weights[None, :], normed.dtype.element_ty, INTERPRETED)
    tl.store(normed + (token * heads + rows[:, None]) * HEAD_DIM + dims[None, :], out, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of x + residual times weight [C], x + residual), both [T, C] dense in x's type.

    The sum is rounded to x's type before it is normed; the norm's arithmetic is fp32 with one rounding at the end.
    Without a residual the second is x itself. Rows may be strided. Raises InputError for shapes that do not fit.
    """
    check_device(x, weight, residual)
    _check_rows(x, weight, residual)
    tokens, width = x.shape
    normed = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    if tokens:
        other, other_stride = (x, 0) if residual is None else (residual, residual.stride(0))
        launch = _rows_bound(width, residual is not None)
        launch((tokens, 1, 1), x, other, weight, normed, total, x.stride(0), other_stride, float(eps))
    return normed, total


@cache
def _rows_bound(width: int, fused: bool) -> BoundKernel:
    padded = next_power_of_two(width)
    return BoundKernel(
        _rms_norm_kernel,
        WIDTH=width,
        WIDTH_PADDED=padded,
        HAS_RESIDUAL=fused,
        INTERPRETED=INTERPRETED,
        num_warps=_warps(padded),
        enable_fp_fusion=True,
    )


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each head of x [T, H, D] normed by itself, times weight [D] (Qwen3's q_norm and k_norm); dense, in x's type.

    Tokens and heads may be strided. Raises InputError for shapes that do not fit.
    """
    check_device(x, weight)
    if x.ndim != 3 or weight.shape != x.shape[2:] or x.stride(-1) != 1:
        raise InputError(f"head_norm wants x [T, H, D] dense in D and weight [D], not {tuple(x.shape)}")
    tokens, heads, dim = x.shape
    normed = torch.empty((tokens, heads, dim), dtype=x.dtype, device=x.device)
    if tokens:
        tile = min(next_power_of_two(heads), max(HEAD_TILE_ELEMENTS // next_power_of_two(dim), 1))
        launch = _heads_bound(dim, tile)
        launch((tokens, -(-heads // tile), 1), x, weight, normed, heads, x.stride(0), x.stride(1), float(eps))
    return normed


@cache
def _heads_bound(dim: int, tile: int) -> BoundKernel:
    return BoundKernel(
        _head_norm_kernel,
        HEAD_DIM=dim,
        DIM_PADDED=next_power_of_two(dim),
        TILE=tile,
        INTERPRETED=INTERPRETED,
        num_warps=4,
        enable_fp_fusion=True,
    )


def _warps(padded: int) -> int:
    """Warps of a row: 8 to 32 elements a thread, so that the row stays in registers."""
    return min(max(padded // 512, 1), 16) if padded <= 16384 else 32


def _check_rows(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if x.ndim != 2 or weight.shape != x.shape[1:] or not 0 < x.shape[1] <= MAX_WIDTH:
        raise InputError(
            f"rms_norm wants x [T, C], weight [C], C up to {MAX_WIDTH}; not {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InputError(f"the residual is {tuple(residual.shape)} {residual.dtype}, x {tuple(x.shape)} {x.dtype}")
    if x.stride(-1) != 1 or (residual is not None and residual.stride(-1) != 1):
        raise InputError("rows to be normed have to be dense")


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both results in float64, nothing rounded in between."""
    total = x.to(torch.float64)
    if residual is not None:
        total = total + residual.to(torch.float64)
    mean_square = (total * total).sum(-1, keepdim=True) / total.shape[-1]
    return total / (mean_square + eps).sqrt() * weight.to(torch.float64), total


def head_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_reference`, along the last dimension."""
    return rms_norm_reference(x, weight, eps)[0]


WIDTHS = (4096, 5120, 16384)
"""Row widths to compile ahead of time."""


def variants() -> list[KernelVariant]:
    """The compiled forms in bf16: rows with and without a residual, and heads of 128 and 64."""
    rows = dict.fromkeys(("x", "residual", "weight", "normed", "total"), "*bf16")
    made = [
        KernelVariant(
            name=f"rms_norm {width}" + (" residual" if fused else ""),
            kernel=f"{__name__}:_rms_norm_kernel",
            signature=rows | {"x_stride": "i32", "residual_stride": "i32", "eps": "fp32"},
            constexprs={
                "WIDTH": width,
                "WIDTH_PADDED": next_power_of_two(width),
                "HAS_RESIDUAL": fused,
                "INTERPRETED": False,
            },
            aligned=("x_stride", "residual_stride"),
            num_warps=_warps(next_power_of_two(width)),
        )
        for width in WIDTHS
        for fused in (False, True)
    ]
    for dim in (64, 128):
        heads = dict.fromkeys(("x", "weight", "normed"), "*bf16")
        made.append(
            KernelVariant(
                name=f"head_norm {dim}",
                kernel=f"{__name__}:_head_norm_kernel",
                signature=heads | dict.fromkeys(("heads", "token_stride", "head_stride"), "i32") | {"eps": "fp32"},
                constexprs={
                    "HEAD_DIM": dim,
                    "DIM_PADDED": dim,
                    "TILE": HEAD_TILE_ELEMENTS // dim,
                    "INTERPRETED": False,
                },
                aligned=("token_stride", "head_stride"),
            )
        )
    return made
