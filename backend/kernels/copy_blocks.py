# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803
"""Copying whole cache blocks, keys, values and scales, in one launch (copy-on-write). It knows no reference counts.

Bytes are moved as 32-bit words whatever the storage type, so a copy is bit-exact. Pairs whose target is block 0, the
null block, are skipped: lists may be padded with zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._common import KernelVariant, check_device, next_power_of_two
from traces.schema import InputError

WORDS = 4096
"""32-bit words of keys, and as many of values, that one program moves: 16 KiB each, 128 bytes a thread."""


@triton.jit(do_not_specialize_on_alignment=["sources", "targets"])
def copy_kernel(
    k_from,
    v_from,
    k_to,
    v_to,
    k_scale_from,
    v_scale_from,
    k_scale_to,
    v_scale_to,
    sources,
    targets,
    block_words,
    block_scales,
    WORDS: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Program (n, c): words c * WORDS and on of pair n. SCALES: a power of two of at least block_scales, 0 for none."""
    pair = tl.program_id(0)
    chunk = tl.program_id(1)
    source = tl.load(sources + pair).to(tl.int64)
    target = tl.load(targets + pair).to(tl.int64)
    if target > 0:
        words = chunk * WORDS + tl.arange(0, WORDS)
        inside = words < block_words
        keys = tl.load(k_from + source * block_words + words, mask=inside)
        values = tl.load(v_from + source * block_words + words, mask=inside)
        tl.store(k_to + target * block_words + words, keys, mask=inside)
        tl.store(v_to + target * block_words + words, values, mask=inside)
        if SCALES > 0:
            steps = tl.arange(0, SCALES)
            inside = steps < tl.where(chunk == 0, block_scales, 0)
            keys = tl.load(k_scale_from + source * block_scales + steps, mask=inside)
            values = tl.load(v_scale_from + source * block_scales + steps, mask=inside)
            tl.store(k_scale_to + target * block_scales + steps, keys, mask=inside)
            tl.store(v_scale_to + target * block_scales + steps, values, mask=inside)


def copy_blocks(cache: LayerCache, sources: Tensor, targets: Tensor) -> None:
    """Copies block sources[i] to targets[i], both [N] int32 on the cache's device; no block may be in both lists.

    A target 0 (the null block) writes nothing. Raises InputError for lists of different lengths or another device.
    """
    check_device(sources, targets, *cache.tensors())
    launch_copy(cache, cache, sources, targets)


def launch_copy(origin: LayerCache, goal: LayerCache, sources: Tensor, targets: Tensor) -> None:
    """`copy_kernel` from one cache into another of the same layout (or into itself)."""
    check_pairs(origin, goal, sources, targets)
    if not sources.shape[0]:
        return
    block_words = origin.k[0].nbytes // 4
    scales = _per_token(origin)
    block_scales = scales[0][0].numel() if scales else 0
    # Where there are no scales the kernel never reads these pointers.
    scale_pointers = (*scales, *_per_token(goal)) if scales else (sources,) * 4
    copy_kernel[(sources.shape[0], triton.cdiv(block_words, WORDS))](
        *(tensor.view(torch.int32) for tensor in (origin.k, origin.v, goal.k, goal.v)),
        *scale_pointers,
        sources,
        targets,
        block_words,
        block_scales,
        WORDS=min(WORDS, next_power_of_two(block_words)),
        SCALES=next_power_of_two(block_scales) if scales else 0,
        num_warps=4,
        enable_fp_fusion=True,
    )


def check_pairs(origin: LayerCache, goal: LayerCache, sources: Tensor, targets: Tensor) -> None:
    """Raises InputError unless both caches hold blocks of one layout and the lists pair up."""
    if sources.shape != targets.shape or sources.ndim != 1:
        raise InputError(f"sources {tuple(sources.shape)} and targets {tuple(targets.shape)} do not pair up")
    if origin.k.shape[1:] != goal.k.shape[1:] or origin.k.dtype != goal.k.dtype:
        raise InputError("blocks can only be copied between caches of one layout and storage type")
    if not all(tensor.is_contiguous() for cache in (origin, goal) for tensor in cache.tensors()):
        raise InputError("a layer's cache has to be contiguous")
    if origin.k.shape[-1] * origin.k.element_size() % 4:
        raise InputError("a head has to fill whole 32-bit words to be copied")


def _per_token(cache: LayerCache) -> tuple[Tensor, ...]:
    """Scales that belong to blocks; fp8's one scale belongs to the layer and stays."""
    return tuple(scale for scale in (cache.k_scale, cache.v_scale) if scale is not None and scale.ndim)


def copy_blocks_reference(cache: LayerCache, sources: Tensor, targets: Tensor) -> LayerCache:
    """The cache after `copy_blocks`, block by block; the argument stays as it is."""
    after = LayerCache(cache.k.clone(), cache.v.clone(), *(_copy(scale) for scale in (cache.k_scale, cache.v_scale)))
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        for before, changed in zip(cache.tensors(), after.tensors(), strict=True):
            if target and changed.ndim:
                changed[target] = before[source]
    return after


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def variants() -> list[KernelVariant]:
    """The compiled forms: without scales, and with those of int8 (16 tokens of 8 heads)."""
    pointers = dict.fromkeys(("k_from", "v_from", "k_to", "v_to", "sources", "targets"), "*i32")
    scales = ("k_scale_from", "v_scale_from", "k_scale_to", "v_scale_to")
    return [
        KernelVariant(
            name=f"copy_blocks {count} scales",
            kernel=f"{__name__}:copy_kernel",
            signature=pointers
            | dict.fromkeys(scales, "*fp16" if count else "*i32")
            | {"block_words": "i32", "block_scales": "i32"},
            constexprs={"WORDS": WORDS, "SCALES": count},
            aligned=("block_words", "block_scales"),
        )
        for count in (0, 128)
    ]
