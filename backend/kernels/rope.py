# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Rotary embedding of queries and keys, fused with writing the cache: rotated keys never visit memory unquantised.

Source: RoFormer (arXiv 2104.09864), section 3.4.2, in NeoX's pairing of dimension i with i + D/2 (HF Llama's
`rotate_half`). It knows no positions: cosines and sines come per token, so any scaling of them is the model's affair.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._common import INTERPRETED, TRITON_NAMES, KernelVariant, check_device, next_power_of_two
from backend.kernels._launch import BoundKernel
from backend.kernels.cache_write import STORAGE, cache_write_reference, check_layout, narrow, scaling_of, store_heads
from traces.schema import InputError

HEAD_TILE_ELEMENTS = 2048
"""Query elements of one program, 16 heads of 128: twice as many spill registers on sm_80."""


@triton.jit
def _rotated(x, cos, sin, row, head_stride, heads, dims, inside, HALF: tl.constexpr):
    """[heads, dims] of the row at `x`, rotated, in fp32: the first half is a*cos - b*sin, the second b*cos + a*sin."""
    first = dims < HALF
    partner = tl.where(first, dims + HALF, dims - HALF)
    angle = tl.where(first, dims, dims - HALF)
    at_row = row * HALF + angle
    cosine = tl.load(cos + at_row, mask=angle < HALF, other=0.0).to(tl.float32)
    sine = tl.load(sin + at_row, mask=angle < HALF, other=0.0).to(tl.float32)
    sine = tl.where(first, -sine, sine)
    own = tl.load(x + heads[:, None] * head_stride + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + heads[:, None] * head_stride + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    return own * cosine[None, :] + other * sine[None, :]


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _rope_cache_write_kernel(
    q,
    k,
    v,
    cos,
    sin,
    q_out,
    k_data,
    v_data,
    k_scale,
    v_scale,
    slots,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    block_tokens,
    Q_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    Q_TILE: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SCALING: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    dims = tl.arange(0, DIM_PADDED)
    if tile > 0:
        heads = (tile - 1) * Q_TILE + tl.arange(0, Q_TILE)
        inside = (heads < Q_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        x = _rotated(q + token * q_token_stride, cos, sin, token, q_head_stride, heads, dims, inside, HEAD_DIM // 2)
        at = q_out + token * (Q_HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(at, narrow(x, q_out.dtype.element_ty, INTERPRETED), mask=inside)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= block_tokens:
            heads = tl.arange(0, HEADS_PADDED)
            inside = (heads < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
            k_row = k + token * k_token_stride
            keys = _rotated(k_row, cos, sin, token, k_head_stride, heads, dims, inside, HEAD_DIM // 2)
            v_at = v + token * v_token_stride + heads[:, None] * v_head_stride + dims[None, :]
            values = tl.load(v_at, mask=inside, other=0.0).to(tl.float32)
            store_heads(keys, k_data, k_scale, slot, heads, dims, HEADS, HEAD_DIM, SCALING, INTERPRETED)
            store_heads(values, v_data, v_scale, slot, heads, dims, HEADS, HEAD_DIM, SCALING, INTERPRETED)


def rope_cache_write(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
) -> Tensor:
    """Rotates q [T, H, D] and k [T, G, D] by cos and sin [T, D/2], writes k and v [T, G, D] to `slots` [T].

    Returns q rotated, dense, in q's type. Arithmetic is fp32 whatever the types; quantisation and slots as in
    `cache_write`. Raises InputError for shapes that do not fit, and for an odd D.
    """
    check_device(q, k, v, cos, sin, slots, *cache.tensors())
    check_layout(k, v, cache, slots)
    check_rotation(q, k, cos, sin)
    tokens, q_heads, dim = q.shape
    rotated = torch.empty((tokens, q_heads, dim), dtype=q.dtype, device=q.device)
    if not tokens:
        return rotated
    scaling = scaling_of(cache)
    q_tile = q_tile_of(q_heads, next_power_of_two(dim))
    _bound(q_heads, k.shape[1], dim, q_tile, scaling)(
        (tokens, 1 - (-q_heads // q_tile), 1),
        q,
        k,
        v,
        cos,
        sin,
        rotated,
        cache.k,
        cache.v,
        cache.k_scale if scaling else cache.k,
        cache.v_scale if scaling else cache.v,
        slots,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        cache.block_tokens,
    )
    return rotated


@functools.cache
def _bound(q_heads: int, heads: int, dim: int, q_tile: int, scaling: int) -> BoundKernel:
    return BoundKernel(
        _rope_cache_write_kernel,
        Q_HEADS=q_heads,
        HEADS=heads,
        HEAD_DIM=dim,
        Q_TILE=q_tile,
        HEADS_PADDED=next_power_of_two(heads),
        DIM_PADDED=next_power_of_two(dim),
        SCALING=scaling,
        INTERPRETED=INTERPRETED,
        num_warps=4,
        enable_fp_fusion=False,
    )


def q_tile_of(q_heads: int, dim_padded: int) -> int:
    """Query heads of one program."""
    return min(next_power_of_two(q_heads), max(HEAD_TILE_ELEMENTS // dim_padded, 1))


def check_rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raises InputError unless q, k, cos and sin are of as many tokens and of one head dim that halves."""
    tokens, _, dim = k.shape
    if q.ndim != 3 or q.shape[0] != tokens or q.shape[2] != dim or q.stride(-1) != 1:
        raise InputError(f"q has shape {tuple(q.shape)}; k calls for ({tokens}, heads, {dim}), dense in the last")
    if dim % 2:
        raise InputError(f"head dim {dim} is odd: rotary embedding pairs dimensions")
    for name, angles in (("cos", cos), ("sin", sin)):
        if tuple(angles.shape) != (tokens, dim // 2) or not angles.is_contiguous():
            raise InputError(f"{name} has shape {tuple(angles.shape)}; k calls for a dense {(tokens, dim // 2)}")


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """float64 rotation of x [T, H, D] as complex numbers: x[i] + i x[i + D/2], times cos + i sin."""
    real, imaginary = x.to(torch.float64).chunk(2, dim=-1)
    angles = torch.complex(cos.to(torch.float64), sin.to(torch.float64))
    turned = torch.complex(real, imaginary) * angles[:, None, :]
    return torch.cat((turned.real, turned.imag), dim=-1)


def rope_cache_write_reference(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
) -> tuple[Tensor, LayerCache]:
    """(q rotated, the cache afterwards) in float64; the cache given stays as it is."""
    return rotate_reference(q, cos, sin), cache_write_reference(rotate_reference(k, cos, sin), v, cache, slots)


SHAPES = ((32, 8, 128), (28, 4, 128), (8, 1, 256), (16, 16, 64))
"""(query heads, kv heads, head dim) to compile ahead of time."""


def variants() -> list[KernelVariant]:
    """The compiled forms: bf16 into each storage type for the first shape, into bf16 for the others."""
    made = []
    for shape in SHAPES:
        for storage in STORAGE if shape == SHAPES[0] else (torch.bfloat16,):
            made.append(_variant(*shape, storage))
    return made


def _variant(q_heads: int, heads: int, dim: int, storage: torch.dtype) -> KernelVariant:
    scaling, scale_type = STORAGE[storage]
    name = TRITON_NAMES[storage]
    strides = [f"{tensor}_{axis}_stride" for tensor in ("q", "k", "v") for axis in ("token", "head")]
    signature = dict.fromkeys(("q", "k", "v", "q_out"), "*bf16") | dict.fromkeys(("cos", "sin"), "*fp32")
    signature |= {"k_data": f"*{name}", "v_data": f"*{name}", "k_scale": scale_type, "v_scale": scale_type}
    signature |= {"slots": "*i32"} | dict.fromkeys((*strides, "block_tokens"), "i32")
    return KernelVariant(
        name=f"rope_cache_write {name} {q_heads}/{heads}x{dim}",
        kernel=f"{__name__}:_rope_cache_write_kernel",
        signature=signature,
        constexprs={
            "Q_HEADS": q_heads,
            "HEADS": heads,
            "HEAD_DIM": dim,
            "Q_TILE": q_tile_of(q_heads, dim),
            "HEADS_PADDED": next_power_of_two(heads),
            "DIM_PADDED": dim,
            "SCALING": scaling,
            "INTERPRETED": False,
        },
        aligned=tuple(strides),
    )
