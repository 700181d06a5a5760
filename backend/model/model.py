"""A decoder-only transformer over a paged KV cache: one forward for prefill, chunks, decode and drafts together.

It knows tokens, positions, cache slots and block tables; requests, schedules and sampling are the live executor's.
Nothing in `forward` waits for the device or reads from it, so that it can be captured in a CUDA graph whose inputs are
static buffers (`Model.graphable` says where that holds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from backend.cache.kvcache import KvCache, LayerCache
from backend.model.checkpoint import CheckpointConfig
from backend.model.layers import DenseMlp, ExpertMlp, Weights, experts_are_graphable, mlp
from backend.model.rope import angles
from backend.ops import Ops, Plan, for_device
from sim.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """Sequences of any number of new tokens: whole prompts, or chunks on top of what the cache has.

    `q_starts` [S + 1] are the offsets of their tokens among the batch's (0 first), `kv_lens` [S] past and new tokens,
    `block_tables` [S, M] their blocks in token order padded with 0, all int32; `max_q` is the most new tokens of one.
    """

    q_starts: Tensor
    kv_lens: Tensor
    block_tables: Tensor
    max_q: int


@dataclass(frozen=True, slots=True)
class DecodePart:
    """Sequences of `width` new tokens each (1; more where drafts are verified), behind the prefill part's tokens.

    `kv_lens` [S] (past and new; 0 marks a padding row) and `block_tables` [S, M] are int32. Where some have fewer than
    `width`, `spread` [S x width] int32 says which of the part's tokens stands for each query, the last ones being the
    sequence's own, and `kept` [tokens] which queries those are.
    """

    width: int
    kv_lens: Tensor
    block_tables: Tensor
    spread: Tensor | None = None
    kept: Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.kv_lens) * self.width if self.kept is None else len(self.kept)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """What one step computes; all tensors on the model's device, int32 or (tokens, positions, rows) int64.

    `tokens`, `positions` and `slots` are [T], the prefill part's tokens first, then the decode part's, sequence by
    sequence, then those of `verify`: another such part, of wider rows.
    A slot is block * block_tokens + offset, -1 for a token whose KV is not kept (padding).
    `logits_rows` [R] says of which tokens logits are wanted; None means of all.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    logits_rows: Tensor | None
    prefill: PrefillPart | None
    decode: DecodePart | None
    verify: DecodePart | None = None

    @property
    def decodes(self) -> tuple[DecodePart, ...]:
        """The decode part and that of wider rows, where there are such."""
        return tuple(part for part in (self.decode, self.verify) if part is not None)


Plans = Mapping[int, Sequence[Plan]]
"""By window, what was found out of the contexts of each of a batch's `decodes`."""


class Activations(NamedTuple):
    """What goes from layer to layer of T tokens: hidden states and residual [T, C], and the rotation's [T, D/2]."""

    hidden: Tensor
    residual: Tensor | None
    cos: Tensor
    sin: Tensor


class Model:
    """The weights of one model on one device, and its forward pass with the device's operations, or with `ops`.

    Args:
        windows: of each layer, how many tokens one attends, 0 for all; the checkpoint's own where None.
        sinks: first tokens that layers with a window attend besides (StreamingLLM, Xiao et al. 2023, section 3.2;
            there positions are counted within the cache, here they stay those of the text).
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: CheckpointConfig,
        weights: Weights,
        ops: Ops | None = None,
        *,
        windows: Sequence[int] | None = None,
        sinks: int = 0,
    ) -> None:
        self.spec = spec
        self.config = config
        self.weights = weights
        self.windows = tuple(config.windows if windows is None else windows)
        self.sinks = sinks
        self.device = weights.embedding.device
        self.ops = ops or for_device(self.device)
        self.mlp: Callable[[Ops, Tensor, DenseMlp | ExpertMlp], Tensor] = mlp
        self._frequencies = config.rope.frequencies(spec.head_dim, self.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    @property
    def graphable(self) -> bool:
        """Whether `forward` never waits for the device; experts do where no grouped matrix product is at hand."""
        return all(
            experts_are_graphable(layer.mlp) for layer in self.weights.layers if isinstance(layer.mlp, ExpertMlp)
        )

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KvCache) -> Tensor:
        """Logits [R, vocab] of `batch.logits_rows`, in the activations' type; writes the new tokens' KV to `cache`."""
        plans, stream = self.plans(batch, cache), self.embed(batch.tokens, batch.positions)
        for at in range(len(self.weights.layers)):
            q, stream = self.before_attention(at, stream, batch.slots, cache)
            attended = self.attend(at, q, batch, cache, plans)
            stream = self.after_attention(at, attended.reshape(len(q), -1), stream)
        return self.logits(stream.hidden, stream.residual, batch.logits_rows)

    def plans(self, batch: ForwardBatch, cache: KvCache) -> Plans:
        return {window: self._plans(batch, cache.layers[0], window) for window in set(self.windows)}

    def embed(self, tokens: Tensor, positions: Tensor) -> Activations:
        cos, sin = angles(positions, self._frequencies, self.config.rope.attention_factor)
        return Activations(F.embedding(tokens, self.weights.embedding), None, cos, sin)

    def logits(self, hidden: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        """[R, vocab] of the last layer's stream, of all tokens or of these rows."""
        if rows is not None:
            hidden = hidden.index_select(0, rows)
            residual = None if residual is None else residual.index_select(0, rows)
        normed, _ = self.ops.rms_norm(hidden, self.weights.final_norm, self.config.norm_eps, residual)
        return self.ops.linear(normed, self.weights.lm_head)

    def before_attention(
        self, at: int, stream: Activations, slots: Tensor, cache: KvCache
    ) -> tuple[Tensor, Activations]:
        """(rotated queries [T, H, D], the stream) of layer `at`; its keys and values are in the cache then."""
        spec, ops, layer = self.spec, self.ops, self.weights.layers[at]
        normed, residual = ops.rms_norm(stream.hidden, layer.input_norm, self.config.norm_eps, stream.residual)
        qkv = ops.linear(normed, layer.qkv)
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias
        heads = qkv.view(-1, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        keys = spec.heads + spec.kv_heads
        q, k, v = heads[:, : spec.heads], heads[:, spec.heads : keys], heads[:, keys:]
        if layer.q_norm is not None and layer.k_norm is not None:
            q = ops.head_norm(q, layer.q_norm, self.config.norm_eps)
            k = ops.head_norm(k, layer.k_norm, self.config.norm_eps)
        q = ops.rope_cache_write(q, k, v, stream.cos, stream.sin, cache.layers[at], slots)
        return q, stream._replace(residual=residual)

    def after_attention(self, at: int, attended: Tensor, stream: Activations) -> Activations:
        """The stream behind layer `at`, of what its queries attended [T, H x D]."""
        layer = self.weights.layers[at]
        out = self.ops.linear(attended, layer.output)
        if layer.output_bias is not None:
            out = out + layer.output_bias
        normed, residual = self.ops.rms_norm(out, layer.post_norm, self.config.norm_eps, stream.residual)
        return stream._replace(hidden=self.mlp(self.ops, normed, layer.mlp), residual=residual)

    def _plans(self, batch: ForwardBatch, cache: LayerCache, window: int) -> list[Plan]:
        """What every layer with this window has to know of the contexts of each of the batch's `decodes`."""
        return [
            self.ops.plan_decode(
                decode.kv_lens,
                queries=decode.width,
                heads=self.spec.heads,
                cache=cache,
                q_dtype=self.dtype,
                window=window,
                sinks=self.sinks,
            )
            for decode in batch.decodes
        ]

    def attend(self, at: int, q: Tensor, batch: ForwardBatch, kv: KvCache, plans: Plans) -> Tensor:
        """Attention [T, H, D] of layer `at`: one launch for each part, so that their costs add."""
        cache, window = kv.layers[at], self.windows[at]
        scale, parts = self.spec.head_dim**-0.5, list[Tensor]()
        decodes, prefill = batch.decodes, batch.prefill
        first = len(q) - sum(decode.tokens for decode in decodes)
        if prefill is not None:
            out, _ = self.ops.prefill_attention(
                q[:first],
                cache,
                prefill.block_tables,
                prefill.q_starts,
                prefill.kv_lens,
                max_q=prefill.max_q,
                scale=scale,
                window=window,
                sinks=self.sinks,
            )
            parts.append(out)
        for decode, plan in zip(decodes, plans[window], strict=True):
            last = first + decode.tokens
            rows = q[first:last] if decode.spread is None else q[first:last].index_select(0, decode.spread)
            out, _ = self.ops.decode_attention(
                rows.view(len(decode.kv_lens), decode.width, *q.shape[1:]),
                cache,
                decode.block_tables,
                decode.kv_lens,
                scale=scale,
                window=window,
                sinks=self.sinks,
                plan=plan,
            )
            out = out.view(-1, *q.shape[1:])
            parts.append(out if decode.kept is None else out.index_select(0, decode.kept))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)
