"""A pool for layers of several kinds: what each kind keeps, and groups of equal bytes that share one pool.

vLLM V1's hybrid KV cache (`kv_cache_utils.py`, `_get_kv_cache_groups_uniform_page_size`): layers are grouped by kind,
all groups have blocks of one size, and each takes them from one pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim.engine.memory import KvGroups, KvLayers, KvPool, Layout
from sim.specs.blocks import KvKind

_NEARLY = 1.25
"""Where the most bytes of a kind are less than so many times the fewest, each kind is one group (vLLM)."""


def mixed_layers(kinds: Sequence[KvKind], drafter_bytes: int = 0) -> tuple[tuple[KvLayers, ...], int]:
    """(layers by what they keep of a token, bytes of a sequence's state), from what each kind of layer keeps.

    A drafter's own layers keep `drafter_bytes` of every token. Nothing and 0 where every layer keeps every token: such
    a pool needs no groups.
    """
    state_bytes = sum(kind.layers * kind.sequence_bytes for kind in kinds)
    if not state_bytes and not any(kind.window_tokens for kind in kinds if kind.token_bytes):
        return (), 0
    kept = {0: drafter_bytes}
    for kind in kinds:
        kept[kind.window_tokens] = kept.get(kind.window_tokens, 0) + kind.layers * kind.token_bytes
    # Full attention first: its table is complete.
    layers = tuple(KvLayers(kept[window], window) for window in sorted(kept) if kept[window])
    return (layers, state_bytes) if layers else ((), 0)


def in_groups(pool: KvPool) -> Layout:
    """The smaller blocks that a paged allocator makes of a pool whose layers are told (`KvPool.layers`).

    A group has the bytes per token of the kind that keeps fewest, or of the one that keeps most where both are nearly
    alike, and each kind as many groups as it needs. What does not divide leaves the last group of a kind partly empty,
    as vLLM pads it. Where vLLM asks for whole layers in each group, and for a block size of its own where one kind's
    layers have larger keys than another's, a group here is so many bytes. A state takes as many whole blocks as its
    bytes need; vLLM makes attention's blocks so large instead that a layer's state fits in one.
    """
    sizes = [layers.token_bytes for layers in pool.layers]
    group_bytes = max(sizes) if max(sizes) < _NEARLY * min(sizes) else min(sizes)
    block_bytes = group_bytes * pool.block_tokens
    groups = tuple(KvGroups(-(-layers.token_bytes // group_bytes), layers.window_tokens) for layers in pool.layers)
    smaller = replace(pool, blocks=pool.blocks * pool.block_bytes // block_bytes, block_bytes=block_bytes)
    return Layout(smaller, groups=groups, state_blocks=-(-pool.state_bytes // block_bytes))
