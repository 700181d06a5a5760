# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Multiplication by a weight matrix: as it is, in fp8 or in int8. It knows no layers.

- A tensor is multiplied by torch (cuBLAS).
- fp8: activations are quantised too, one scale per token (`_quantise_rows_kernel`, one launch), and torch's scaled
  product multiplies in fp8 with both rows of scales. It needs compute capability 9.0 and widths that 16 divides:
  elsewhere the weight is dequantised.
- int8: only the weight is quantised, read as int8 and widened in registers (int8 is exact in bf16): half the bytes of
  bf16, which is what decoding waits for. Scales are applied to the sums.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels._common import INTERPRETED, KernelVariant, capability, check_device, next_power_of_two
from backend.kernels._launch import BoundKernel
from backend.kernels.cache_write import narrow
from backend.model.weights import QuantWeight, Weight
from backend.torch_ops.linear import linear as dequantised_linear
from traces.schema import InputError

QUANTISE_BLOCK = 4096


@triton.jit
def _quantise_rows_kernel(x, data, scales, width, x_stride, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    amax = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        amax = tl.maximum(amax, tl.abs(tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)))
    most = tl.max(amax, 0)
    scale = tl.where(most > 0, tl.div_rn(most, 448.0), 1.0)
    tl.store(scales + row, scale)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        steps = narrow(tl.div_rn(values, scale + tl.zeros_like(values)), data.dtype.element_ty, INTERPRETED)
        tl.store(data + row * width + at, steps, mask=at < width)


@triton.jit(do_not_specialize=["rows"])
def _int8_matmul_kernel(
    x,
    data,
    scales,
    out,
    rows,
    outputs,
    inputs,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Tiles of one weight stripe are neighbours in the grid: the stripe is read from memory once and then from L2.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    weight_rows = data + column.to(tl.int64)[:, None] * inputs
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        left = tl.load(x_rows + at[None, :], mask=(row < rows)[:, None] & (at < inputs)[None, :], other=0.0)
        right = tl.load(weight_rows + at[None, :], mask=(column < outputs)[:, None] & (at < inputs)[None, :], other=0)
        if UPCAST:
            sums = tl.dot(left.to(tl.float32), tl.trans(right.to(tl.float32)), sums, input_precision="ieee")
        else:
            sums = tl.dot(left, tl.trans(right.to(left.dtype)), sums, input_precision="ieee")
    scale = tl.load(scales + column, mask=column < outputs, other=0.0)
    at = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    inside = (row < rows)[:, None] & (column < outputs)[None, :]
    tl.store(at, narrow(sums * scale[None, :], out.dtype.element_ty, UPCAST), mask=inside)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] times weight [N, K] transposed, [T, N] in x's type; sums are fp32.

    Raises InputError for widths that do not fit and for tensors elsewhere.
    """
    if isinstance(weight, Tensor):
        check_device(x, weight)
        return dequantised_linear(x, weight)
    check_device(x, weight.data, weight.scale)
    if x.ndim != 2 or weight.data.ndim != 2 or x.shape[1] != weight.data.shape[1] or x.stride(-1) != 1:
        raise InputError(f"x {tuple(x.shape)} and a quantised weight {tuple(weight.shape)} cannot be multiplied")
    if not x.shape[0]:
        return torch.empty((0, weight.shape[0]), dtype=x.dtype, device=x.device)
    if weight.data.dtype == torch.int8:
        return _int8_linear(x, weight)
    # torch has a product of fp8 matrices scaled by rows from 9.0 on, and (slowly) on the CPU.
    if capability(x.device) >= 90 and not any(size % 16 for size in weight.shape):
        return _fp8_linear(x, weight)
    return dequantised_linear(x, weight)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(float8_e4m3fn [T, K], fp32 scales [T, 1]): each row over its largest magnitude / 448; a row of zeros over 1."""
    rows, width = x.shape
    data = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    block = min(QUANTISE_BLOCK, next_power_of_two(width))
    _quantise_bound(block)((rows, 1, 1), x, data, scales, width, x.stride(0))
    return data, scales


@functools.cache
def _quantise_bound(block: int) -> BoundKernel:
    return BoundKernel(_quantise_rows_kernel, BLOCK=block, INTERPRETED=INTERPRETED, num_warps=8, enable_fp_fusion=False)


def _fp8_linear(x: Tensor, weight: QuantWeight) -> Tensor:
    data, scales = quantise_rows(x)
    # By rows, torch's product writes bf16 only.
    out = torch._scaled_mm(
        data, weight.data.t(), scale_a=scales, scale_b=weight.scale[None, :], out_dtype=torch.bfloat16
    )
    return out.to(x.dtype)


def _int8_linear(x: Tensor, weight: QuantWeight) -> Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    tile = int8_tile(rows, x.dtype)
    grid = (triton.cdiv(rows, tile[0]), triton.cdiv(outputs, tile[1]), 1)
    _int8_bound(tile)(grid, x, weight.data, weight.scale, out, rows, outputs, inputs, x.stride(0))
    return out


@functools.cache
def _int8_bound(tile: tuple[int, int, int, int, int]) -> BoundKernel:
    block_m, block_n, block_k, warps, stages = tile
    return BoundKernel(
        _int8_matmul_kernel,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        UPCAST=INTERPRETED,
        num_warps=warps,
        num_stages=stages,
        enable_fp_fusion=True,
    )


def int8_tile(rows: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """(BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) by the number of rows; not measured.

    Few rows wait for memory: narrow stripes give every multiprocessor one, deep ones keep many bytes in flight.
    """
    if dtype == torch.float32:
        return 32, 64, 32, 4, 2
    if rows <= 16:
        return 16, 32, 256, 4, 4
    return (64, 64, 128, 4, 3) if rows <= 64 else (128, 128, 64, 8, 3)


def linear_reference(x: Tensor, weight: Weight) -> Tensor:
    """The same in float64, output by output."""
    if isinstance(weight, QuantWeight):
        matrix = torch.stack([row.to(torch.float64) * scale.to(torch.float64) for row, scale in _rows(weight)])
    else:
        matrix = weight.to(torch.float64)
    return x.to(torch.float64) @ matrix.T


def _rows(weight: QuantWeight) -> zip[tuple[Tensor, Tensor]]:
    return zip(weight.data, weight.scale, strict=True)


def variants() -> list[KernelVariant]:
    """The compiled forms for bf16 activations: quantising rows, and int8 products for few, some and many rows."""
    made = [
        KernelVariant(
            name="quantise_rows",
            kernel=f"{__name__}:_quantise_rows_kernel",
            signature={"x": "*bf16", "data": "*fp8e4nv", "scales": "*fp32", "width": "i32", "x_stride": "i32"},
            constexprs={"BLOCK": QUANTISE_BLOCK, "INTERPRETED": False},
            aligned=("width", "x_stride"),
            num_warps=8,
        )
    ]
    for rows in (16, 64, 256):
        block_m, block_n, block_k, warps, stages = int8_tile(rows, torch.bfloat16)
        made.append(
            KernelVariant(
                name=f"int8_matmul {rows} rows",
                kernel=f"{__name__}:_int8_matmul_kernel",
                signature={"x": "*bf16", "data": "*i8", "scales": "*fp32", "out": "*bf16"}
                | dict.fromkeys(("rows", "outputs", "inputs", "x_stride"), "i32"),
                constexprs={"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "UPCAST": False},
                aligned=("outputs", "inputs", "x_stride"),
                num_warps=warps,
                num_stages=stages,
            )
        )
    return made
