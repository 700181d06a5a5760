"""Paged blocks that are given back once they lie outside the attention window (Mistral; StreamingLLM)."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

from sim.allocators.mixed.paged import MixedPaged
from sim.engine.memory import KvGroups, KvPool, Layout
from traces.schema import InputError


class Windowed(MixedPaged):
    """Holds the newest `window_tokens` tokens of a request and its first `sink_tokens`; the rest of its table is null.

    Jiang et al. 2023 (Mistral 7B), section 2; Xiao et al. 2023 (StreamingLLM), section 3.2: attention sinks. Where only
    some of a model's layers have a window, each block holds one group of layers, all of one size, and a request has a
    table for each group. `pool` then counts such smaller blocks.

    Args:
        window_tokens: 0 takes the model's own. Another window, or one for a model without, is a lossy approximation.
        sink_tokens: first tokens that stay.
    """

    no_swap = "what fell out of the window is gone"
    _looks_ahead = False

    def __init__(
        self,
        pool: KvPool,
        *,
        window_tokens: int = 0,
        sink_tokens: int = 0,
        watermark: float = 0.0,
        reserve_full_prompt: bool = True,
    ) -> None:
        layout = self.layout(pool, window_tokens=window_tokens, sink_tokens=sink_tokens)
        super().__init__(pool, layout, watermark=watermark, reserve_full_prompt=reserve_full_prompt)
        self.recent_tokens = layout.recent_tokens
        self.sink_tokens = sink_tokens

    @staticmethod
    def layout(pool: KvPool, *, window_tokens: int = 0, sink_tokens: int = 0, **others: Any) -> Layout:
        """The smaller blocks that it makes of the pool, and the window; InputError for none, or one too small."""
        recent = window_tokens or pool.window_tokens
        if window_tokens < 0 or sink_tokens < 0:
            raise InputError("allocator.window_tokens and allocator.sink_tokens must be at least 0")
        if not recent:
            raise InputError("the windowed allocator needs a window: this model has none; set allocator.window_tokens")
        if recent < pool.block_tokens:
            raise InputError(
                f"allocator.window_tokens is {recent}, less than a block of {pool.block_tokens} tokens; "
                "no block would ever be of use as a whole"
            )
        full, windowed = _groups(pool)
        smaller = replace(
            pool, blocks=pool.blocks * (full + windowed), block_bytes=pool.block_bytes // (full + windowed)
        )
        groups = (*([KvGroups(full, 0)] if full else []), KvGroups(windowed, recent))
        return Layout(smaller, recent, sink_tokens, groups)

    @property
    def window_span_tokens(self) -> int:
        """Tokens that one attends at most."""
        return self.recent_tokens + self.sink_tokens


def _groups(pool: KvPool) -> tuple[int, int]:
    """Groups of layers with full attention, and with a window, that share a block of the pool."""
    full, windowed = (pool.full_layers, pool.window_layers) if pool.window_layers else (0, 1)
    unit = gcd(full, windowed)
    return full // unit, windowed // unit
