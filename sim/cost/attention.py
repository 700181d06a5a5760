"""Attention of all layers of a model on one GPU, full, windowed or latent, as seconds. It knows no other operation."""

from __future__ import annotations

from sim.cost.attend import Decode, Slices, Slicing
from sim.cost.interpolation import ROOFLINE, Line
from sim.cost.kernels import Kernels
from sim.cost.step import MEMO_SIZE
from sim.engine.batch import Verifies
from sim.specs.model import AttentionWindow, ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError


class Attention:
    """Prefill and decode attention on one of `tp` GPUs; layers outside the window attend everything.

    Of so many decode rows the price is straight pieces along the sum of their contexts, and along what of it lies
    within the window; `rank` says where it is from.
    """

    __slots__ = (
        "_decode",
        "_lines",
        "_prefill_floor_s",
        "_rank",
        "_slicing",
        "_span_tokens",
        "_window_layers",
        "full_layers",
    )

    def __init__(
        self,
        model: ModelSpec,
        kernels: Kernels,
        parallel: Parallel,
        window: AttentionWindow | None,
        rank: int = ROOFLINE,
    ) -> None:
        if window is not None and window.layers > model.layers:
            raise InputError(f"an attention window on {window.layers} layers: model {model.name!r} has {model.layers}")
        self._slicing, self._decode = _prices(model, kernels, parallel)
        self._window_layers = window.layers if window else 0
        self.full_layers = model.layers - self._window_layers
        self._span_tokens = window.span_tokens if window else 0
        self._prefill_floor_s = kernels.eff.prefill_attention_floor_s
        self._rank = rank
        self._lines: dict[int, tuple[Line | None, Line | None]] = {}

    def prefill_s(self, slices: Slices) -> float:
        """Seconds of all slices, which are one launch a layer."""
        if not slices:
            return 0.0
        seconds = 0.0
        if self.full_layers:
            seconds += self.full_layers * (self._prefill_floor_s + self._slicing.launch_s(slices))
        if self._window_layers:
            launch_s = self._slicing.launch_s(slices, self._span_tokens)
            seconds += self._window_layers * (self._prefill_floor_s + launch_s)
        return seconds

    def lines(self, decodes: int) -> tuple[Line | None, Line | None]:
        """Seconds of `decodes` rows, alike in length, by the sum of their contexts in all full layers, and by what of
        it lies within the window in those with one; None where there are no such layers."""
        lines = self._lines.get(decodes)
        if lines is None:
            counts = (self.full_layers, self._window_layers)
            full, within = (self._decode.line(decodes, layers, self._rank) if layers else None for layers in counts)
            lines = full, within
            if len(self._lines) < MEMO_SIZE:
                self._lines[decodes] = lines
        return lines

    def decode_s(self, decodes: int, context: int, within: int) -> float:
        """Seconds of `decodes` rows that attend `context` tokens, and `within` of them within the window."""
        if not decodes:
            return 0.0
        full, windowed = self.lines(decodes)
        return (full.at(context) if full else 0.0) + (windowed.at(within) if windowed else 0.0)

    def verify_s(self, verifies: Verifies) -> float:
        """Seconds of rows that verify drafts: the decode kernel with several queries a row, whose KV is read once."""
        return self.decode_s(*attended_rows(verifies, self._span_tokens))

    def moved_tokens(self, slices: Slices, verifies: Verifies, layers: int) -> int:
        """Tokens whose KV `layers` of the layers, full ones first, read or write for these slices and rows."""
        full = min(layers, self.full_layers)
        span = self._span_tokens
        _, context, within = attended_rows(verifies, span)
        whole = full * (context + sum(past + new for new, past in slices))
        return whole + (layers - full) * (within + sum(min(past, span) + new for new, past in slices))


def attended_rows(verifies: Verifies, span_tokens: int) -> tuple[int, int, int]:
    """(rows that verify drafts, KV tokens that they attend, of these within a window of `span_tokens`, if it is not 0).

    Raises ValueError for rows that do not tell what they attend within the window.
    """
    rows = context = within = 0
    for tokens, count, past, inside in verifies:
        if span_tokens and past and not inside:
            raise ValueError(
                f"{count} rows that verify drafts attend {inside} tokens within the window of {span_tokens}"
            )
        rows += count
        context += tokens * count + past
        within += tokens * count + inside
    return rows, context, within


def _prices(model: ModelSpec, kernels: Kernels, parallel: Parallel) -> tuple[Slicing, Decode]:
    """(prompts, decode rows) in one layer."""
    heads = model.heads // parallel.tp
    if not model.is_latent:
        kv_heads = model.gpu_kv_heads(parallel)
        decode = kernels.decode_attention(heads, kv_heads, model.head_dim)
        return kernels.prefill_attention(heads, kv_heads, model.head_dim), decode
    rank, width = model.kv_lora_rank, model.latent_width
    decode = kernels.latent_decode_attention(heads, rank, width)
    return kernels.latent_prefill_attention(heads, model.head_dim, model.v_head_dim, rank, width), decode
