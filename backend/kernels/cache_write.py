# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Writing new keys and values into the paged cache, quantised as its storage type asks. It knows no attention.

One program writes one token: all its heads, keys and values. Products and sums are not fused, so that a GPU stores the
bits that `backend.torch_ops.cache` stores. Slots are `block * block_tokens + offset`; a slot of the
null block, or a negative one (-1 by convention), writes nothing, so that padding rows of a captured graph are harmless.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._common import (
    INTERPRETED,
    TRITON_NAMES,
    KernelVariant,
    capability,
    check_device,
    next_power_of_two,
)
from backend.kernels._form import lacks_fp8
from traces.schema import InputError

NO_SCALE, SCALAR_SCALE, HEAD_SCALE = 0, 1, 2
_NO_SCALE, _SCALAR_SCALE, _HEAD_SCALE = tl.constexpr(NO_SCALE), tl.constexpr(SCALAR_SCALE), tl.constexpr(HEAD_SCALE)
_E4M3_MAX = tl.constexpr(448.0)
_INT8_SCALE_MIN = tl.constexpr(2.0**-14)
_FP16_MAX = tl.constexpr(65504.0)
# Adding and subtracting 1.5 * 2^(23 + p) rounds an fp32 to a multiple of 2^p, ties to even: 3.6 has no tl.rint.
_ROUND_TO_ONE = tl.constexpr(1.5 * 2.0**23)
_ROUND_TO_E4M3_SUBNORMAL = tl.constexpr(1.5 * 2.0**14)


@triton.jit
def _on_grid(x, DROPPED: tl.constexpr, SUBNORMAL_BELOW: tl.constexpr):
    """fp32 `x` with the lowest DROPPED mantissa bits rounded to even; below SUBNORMAL_BELOW, to e4m3's last step."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) & -(1 << DROPPED)
    magnitude = tl.abs(x)
    small = (magnitude + _ROUND_TO_E4M3_SUBNORMAL) - _ROUND_TO_E4M3_SUBNORMAL
    small = tl.where(bits < 0, small * -1.0, small)  # 3.6 makes -x of 0 - x, which has no negative zero
    return tl.where(magnitude < SUBNORMAL_BELOW, small, rounded.to(tl.float32, bitcast=True))


@triton.jit
def narrow(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 `x` in DTYPE, to nearest even; e4m3 saturates at 448 and keeps NaN.

    The interpreter (up to 3.9 at least) cuts bits off where devices round, and loses e4m3's subnormals and NaN: there
    `x` is moved to DTYPE's grid first, which makes its cast exact.
    """
    if tl.float8e4nv == DTYPE:
        x = tl.minimum(x, _E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)
        x = tl.maximum(x, -_E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)
        if INTERPRETED:
            code = _on_grid(x, 20, 2.0**-6).to(DTYPE).to(tl.uint8, bitcast=True)
            return tl.where(x == x, code, 0x7F).to(tl.uint8).to(DTYPE, bitcast=True)  # noqa: PLR0124  (false for NaN)
    elif INTERPRETED and tl.bfloat16 == DTYPE:
        x = _on_grid(x, 16, 0.0)
    return x.to(DTYPE)


@triton.jit
def store_heads(
    x,
    data,
    scales,
    slot,
    heads,
    dims,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALING: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Quantises fp32 `x` [heads, dims], zero outside HEADS x HEAD_DIM, into the row `slot` of `data`."""
    inside = (heads < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    if SCALING == _HEAD_SCALE:
        amax = tl.max(tl.abs(x), 1)
        broken = tl.sum((tl.abs(x) < float("inf")).to(tl.int32), 1) < x.shape[1]
        scale = tl.minimum(tl.maximum(tl.div_rn(amax, 127.0), _INT8_SCALE_MIN), _FP16_MAX).to(tl.float16)
        steps = tl.div_rn(x, scale.to(tl.float32)[:, None] + tl.zeros_like(x))
        steps = tl.minimum(tl.maximum(steps, -127.0), 127.0)
        stored = ((steps + _ROUND_TO_ONE) - _ROUND_TO_ONE).to(tl.int8)
        scale = tl.where(broken, float("nan"), scale.to(tl.float32)).to(tl.float16)
        tl.store(scales + slot * HEADS + heads, scale, mask=heads < HEADS)
    else:
        if SCALING == _SCALAR_SCALE:
            x = tl.div_rn(x, tl.load(scales) + tl.zeros_like(x))
        stored = narrow(x, data.dtype.element_ty, INTERPRETED)
    tl.store(data + slot * (HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + dims[None, :], stored, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _cache_write_kernel(
    k,
    v,
    k_data,
    v_data,
    k_scale,
    v_scale,
    slots,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    block_tokens,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SCALING: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= block_tokens:
        heads = tl.arange(0, HEADS_PADDED)
        dims = tl.arange(0, DIM_PADDED)
        inside = (heads < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        k_at = k + token * k_token_stride + heads[:, None] * k_head_stride + dims[None, :]
        v_at = v + token * v_token_stride + heads[:, None] * v_head_stride + dims[None, :]
        keys = tl.load(k_at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(v_at, mask=inside, other=0.0).to(tl.float32)
        store_heads(keys, k_data, k_scale, slot, heads, dims, HEADS, HEAD_DIM, SCALING, INTERPRETED)
        store_heads(values, v_data, v_scale, slot, heads, dims, HEADS, HEAD_DIM, SCALING, INTERPRETED)


def cache_write(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Writes k and v [T, G, D] to `slots` [T] of the cache, rounding to nearest even.

    int8: scale = amax / 127 of the token and head in fp16 (at least 2^-14, where fp16 is still exact to 11 bits); a
    value that is not finite makes its scale NaN. fp8: value / scale, saturating at 448. k and v may be strided views
    whose last dimension is dense. Raises InputError for tensors on another device, of other shapes, and for fp8 where
    the device has no fp8 conversion.
    """
    check_device(k, v, slots, *cache.tensors())
    check_layout(k, v, cache, slots)
    tokens, heads, dim = k.shape
    if not tokens:
        return
    scaling = scaling_of(cache)
    _cache_write_kernel[(tokens,)](
        k,
        v,
        cache.k,
        cache.v,
        cache.k_scale if scaling else cache.k,
        cache.v_scale if scaling else cache.v,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        cache.block_tokens,
        HEADS=heads,
        HEAD_DIM=dim,
        HEADS_PADDED=next_power_of_two(heads),
        DIM_PADDED=next_power_of_two(dim),
        SCALING=scaling,
        INTERPRETED=INTERPRETED,
        num_warps=warps_of(heads, dim),
        enable_fp_fusion=False,
    )


def warps_of(heads: int, dim: int) -> int:
    """Warps for a tile of [heads, dim]: 8 elements a thread, so that it moves 16 bytes at once."""
    return min(max(next_power_of_two(heads) * next_power_of_two(dim) // 256, 1), 4)


def scaling_of(cache: LayerCache) -> int:
    """Which scales a cache has: NO_SCALE, SCALAR_SCALE (fp8) or HEAD_SCALE (int8)."""
    if cache.k_scale is None:
        return NO_SCALE
    return HEAD_SCALE if cache.k_scale.ndim else SCALAR_SCALE


def check_layout(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Raises InputError unless k and v fit the cache, with dense last dimensions, and the device has its type."""
    wanted = (slots.shape[0], *cache.k.shape[2:])
    for name, new in (("k", k), ("v", v)):
        if tuple(new.shape) != wanted:
            raise InputError(f"{name} has shape {tuple(new.shape)}; slots and cache call for {wanted}")
        if new.stride(-1) != 1:
            raise InputError(f"{name} is strided in its last dimension; make it contiguous")
    if not all(tensor.is_contiguous() for tensor in cache.tensors()):
        raise InputError("a layer's cache has to be contiguous")
    if cache.k.dtype == torch.float8_e4m3fn and capability(cache.k.device) < 89:
        raise InputError(lacks_fp8(capability(cache.k.device)))


def nearest_e4m3(x: Tensor) -> Tensor:
    """float64 `x` as float8_e4m3fn by looking among all its values: ties to the even code, saturating, NaN kept."""
    codes = torch.arange(127, dtype=torch.uint8)
    grid = codes.view(torch.float8_e4m3fn).to(torch.float64)
    size = x.abs().clamp(max=448.0).nan_to_num(0.0)
    above = torch.searchsorted(grid, size).clamp(1, 126)
    low, high = size - grid[above - 1], grid[above] - size
    take_low = (low < high) | ((low == high) & (above % 2 == 1))
    code = torch.where(x.isnan(), 127, torch.where(take_low, above - 1, above))
    return torch.where(torch.signbit(x), code + 128, code).to(torch.uint8).view(torch.float8_e4m3fn)


def cache_write_reference(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> LayerCache:
    """What the cache holds after `cache_write`, computed token by token in float64; the argument stays as it is."""
    after = LayerCache(*(None if tensor is None else tensor.clone() for tensor in _fields(cache)))  # type: ignore[arg-type]
    for new, data, scales in ((k, after.k, after.k_scale), (v, after.v, after.v_scale)):
        for row, slot in zip(new.to(torch.float64), slots.tolist(), strict=True):
            block, offset = divmod(slot, cache.block_tokens)
            if block < 1:
                continue
            if data.dtype == torch.int8:
                assert scales is not None
                scale = (row.abs().amax(-1) / 127).clamp(2.0**-14, 65504.0).to(torch.float16)
                data[block, offset] = (row / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
                scales[block, offset] = scale
            elif data.dtype == torch.float8_e4m3fn:
                data[block, offset] = nearest_e4m3(row if scales is None else row / scales)
            else:
                data[block, offset] = row.to(data.dtype)
    return after


def _fields(cache: LayerCache) -> tuple[Tensor | None, ...]:
    return cache.k, cache.v, cache.k_scale, cache.v_scale


def stored_values(cache: LayerCache) -> tuple[Tensor, Tensor]:
    """Keys and values that a cache stands for, float64 [blocks + 1, block_tokens, G, D]."""
    values = []
    for data, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        value = data.to(torch.float64)
        if scales is not None:
            value = value * (scales.to(torch.float64)[..., None] if scales.ndim else scales.to(torch.float64))
        values.append(value)
    return values[0], values[1]


SHAPES = ((8, 128), (4, 64), (1, 256))
"""(kv heads, head dim) to compile ahead of time."""

STORAGE: Mapping[torch.dtype, tuple[int, str]] = {
    torch.float32: (NO_SCALE, "*fp32"),
    torch.float16: (NO_SCALE, "*fp16"),
    torch.bfloat16: (NO_SCALE, "*bf16"),
    torch.float8_e4m3fn: (SCALAR_SCALE, "*fp32"),
    torch.int8: (HEAD_SCALE, "*fp16"),
}
"""Storage type to its scaling and the type of its scale pointer (the data's own where there is none)."""


def variants() -> list[KernelVariant]:
    """The compiled forms: bf16 keys and values into each storage type, and of other shapes into bf16."""
    made = []
    for storage, (scaling, scale_type) in STORAGE.items():
        name = TRITON_NAMES[storage]
        pointers = {"k": "*bf16", "v": "*bf16", "k_data": f"*{name}", "v_data": f"*{name}"}
        pointers |= {"k_scale": scale_type, "v_scale": scale_type, "slots": "*i32"}
        strides = ("k_token_stride", "k_head_stride", "v_token_stride", "v_head_stride")
        for heads, dim in SHAPES if storage == torch.bfloat16 else SHAPES[:1]:
            sizes = {"HEADS": heads, "HEAD_DIM": dim, "HEADS_PADDED": heads, "DIM_PADDED": dim}
            made.append(
                KernelVariant(
                    name=f"cache_write {name} {heads}x{dim}",
                    kernel=f"{__name__}:_cache_write_kernel",
                    signature=pointers | dict.fromkeys((*strides, "block_tokens"), "i32"),
                    constexprs=sizes | {"SCALING": scaling, "INTERPRETED": False},
                    aligned=strides,
                    num_warps=warps_of(heads, dim),
                )
            )
    return made
