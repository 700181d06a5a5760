"""The paged cache's operations in plain torch: write, rotate and write, copy, swap. It knows no attention.

The contracts are those of `backend.kernels.{cache_write,rope,copy_blocks,swap_blocks}`; arithmetic is the same fp32, so
that both paths store the same bits wherever rounding agrees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache

INT8_SCALE_MIN, FP16_MAX, E4M3_MAX = 2.0**-14, 65504.0, 448.0


def cache_write(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Writes k and v [T, G, D] to `slots` [T], rounding to nearest even; slots of the null block, and -1, are skipped.

    int8: scale = amax / 127 of the token and head in fp16, at least 2^-14; NaN where a value is not finite. fp8:
    value / scale, saturating at 448.
    """
    rows, kept = slots.long(), slots >= cache.block_tokens
    if not kept.all():
        written = kept.nonzero().flatten()
        rows, k, v = rows[written], k[written], v[written]
    _store(k.float(), cache.k, cache.k_scale, rows)
    _store(v.float(), cache.v, cache.v_scale, rows)


def _store(x: Tensor, data: Tensor, scales: Tensor | None, rows: Tensor) -> None:
    flat = data.view(-1, *data.shape[2:])
    if data.dtype == torch.int8:
        assert scales is not None, "an int8 cache has scales"
        steps, scale = int8_steps(x)
        flat[rows] = steps
        scales.view(-1, data.shape[2])[rows] = scale
    elif data.dtype == torch.float8_e4m3fn:
        # Indexed assignment of fp8 goes through bytes: not every torch build has it for the type itself.
        flat.view(torch.uint8)[rows] = to_e4m3(x if scales is None else x / scales).view(torch.uint8)
    else:
        flat[rows] = x.to(data.dtype)


def int8_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 steps of fp32 x [..., D], fp16 scale [...]): symmetric, a step is half a scale off at most."""
    amax = x.abs().amax(-1)
    scale = (amax / 127.0).clamp(INT8_SCALE_MIN, FP16_MAX).half()
    steps = (x / scale.float()[..., None]).clamp(-127.0, 127.0).nan_to_num(0.0).round().to(torch.int8)
    return steps, torch.where(amax.isfinite(), scale, torch.nan)


def to_e4m3(x: Tensor) -> Tensor:
    """x as float8_e4m3fn, saturating at 448 (not every torch does so in its cast) and keeping NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def rope_cache_write(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
) -> Tensor:
    """Rotates q [T, H, D] and k [T, G, D] by cos and sin [T, D/2] in NeoX halves, writes k and v; returns q rotated."""
    cache_write(_rotate(k, cos, sin), v, cache, slots)
    return _rotate(q, cos, sin).to(q.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = cos.float()[:, None, :], sin.float()[:, None, :]
    turned = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    half = first.shape[-1]
    torch.mul(first, cosine, out=turned[..., :half]).addcmul_(second, sine, value=-1.0)
    torch.mul(second, cosine, out=turned[..., half:]).addcmul_(first, sine)
    return turned


def copy_blocks(cache: LayerCache, sources: Tensor, targets: Tensor) -> None:
    """Copies block sources[i] to targets[i], keys, values and scales; a target 0 (the null block) writes nothing."""
    _copy(cache, cache, sources, targets)


def swap_out(cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
    """Copies device_blocks[i] of the cache to host_blocks[i] of its twin, bit for bit; a target 0 writes nothing."""
    _copy(cache, host, device_blocks, host_blocks)


def swap_in(cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
    """Copies host_blocks[i] of the twin to device_blocks[i] of the cache; otherwise as `swap_out`."""
    _copy(host, cache, host_blocks, device_blocks)


def _copy(origin: LayerCache, goal: LayerCache, sources: Tensor, targets: Tensor) -> None:
    kept = targets > 0
    read, written = sources[kept].long(), targets[kept].long()
    for before, changed in zip(origin.tensors(), goal.tensors(), strict=True):
        if changed.ndim:  # fp8's one scale belongs to the layer, not to a block
            _raw(changed)[written] = _raw(before)[read]


def _raw(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
