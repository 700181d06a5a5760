"""Attention of all layers of a model on one GPU, full, windowed or latent, as seconds. It knows no other operation."""

from __future__ import annotations

from sim.cost.kernels import Affine, Kernels
from sim.specs.model import AttentionWindow, ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

Slices = tuple[tuple[int, int], ...]


class Attention:
    """Prefill and decode attention on one of `tp` GPUs; layers outside the window attend everything.

    A token of a decode row's context costs `context_s` in all full layers and one within the window `window_s` in all
    window layers, so that decode attention is linear in both sums.
    """

    __slots__ = (
        "_decode_floor_s", "_prefill_floor_s", "_row_s", "_slice", "_span_tokens", "_window_layers", "context_s",
        "full_layers", "window_s",
    )  # fmt: skip

    def __init__(self, model: ModelSpec, kernels: Kernels, parallel: Parallel, window: AttentionWindow | None) -> None:
        if window is not None and window.layers > model.layers:
            raise InputError(f"an attention window on {window.layers} layers: model {model.name!r} has {model.layers}")
        self._slice, row_s, context_s = _prices(model, kernels, parallel)
        self._window_layers = window.layers if window else 0
        self.full_layers = model.layers - self._window_layers
        self._span_tokens = window.span_tokens if window else 0
        self._row_s = model.layers * row_s
        self._prefill_floor_s = kernels.eff.prefill_attention_floor_s
        self._decode_floor_s = model.layers * kernels.eff.decode_attention_floor_s
        self.context_s = self.full_layers * context_s
        self.window_s = self._window_layers * context_s

    def prefill_s(self, slices: Slices) -> float:
        """Seconds of all slices, which are one launch a layer."""
        if not slices:
            return 0.0
        seconds = 0.0
        if self.full_layers:
            one_layer_s = self._prefill_floor_s
            for new, past in slices:
                one_layer_s += self._slice.slice_s(new, past)
            seconds += self.full_layers * one_layer_s
        if self._window_layers:
            one_layer_s = self._prefill_floor_s
            for new, past in slices:
                one_layer_s += self._slice.window_s(new, past, self._span_tokens)
            seconds += self._window_layers * one_layer_s
        return seconds

    def decode_rows_s(self, decodes: int) -> float:
        """Seconds of `decodes` rows before the first token of their contexts."""
        return self._decode_floor_s + self._row_s * decodes if decodes else 0.0

    def verify_s(self, rows: Slices) -> float:
        """Seconds of rows that verify drafts: the decode kernel with several queries a row, whose KV is read once."""
        if not rows:
            return 0.0
        context = sum(map(sum, rows))
        within = sum(min(past, self._span_tokens) + new for new, past in rows) if self._window_layers else 0
        return self.decode_rows_s(len(rows)) + self.context_s * context + self.window_s * within

    def moved_tokens(self, slices: Slices, layers: int) -> int:
        """Tokens whose KV `layers` of the layers, full ones first, read or write for these slices."""
        full = min(layers, self.full_layers)
        span = self._span_tokens
        whole = full * sum(past + new for new, past in slices)
        return whole + (layers - full) * sum(min(past, span) + new for new, past in slices)


def _prices(model: ModelSpec, kernels: Kernels, parallel: Parallel) -> tuple[Affine, float, float]:
    """(a slice, a decode row, a token of a row's context) in one layer."""
    heads = model.heads // parallel.tp
    if not model.is_latent:
        kv_heads = model.gpu_kv_heads(parallel)
        decode = kernels.decode_attention(kv_heads, model.head_dim)
        return kernels.prefill_attention(heads, kv_heads, model.head_dim), *decode
    rank, width = model.kv_lora_rank, model.latent_width
    decode = kernels.latent_decode_attention(heads, rank, width)
    return kernels.latent_prefill_attention(heads, model.head_dim, model.v_head_dim, rank, width), *decode
