"""Layers put together: those of a model whose layers are alike, and the types that a checkpoint gives matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim.catalog.layers import attention, experts, latent, layer, mlp
from sim.catalog.schemes import Scheme
from sim.specs.blocks import Block, Matrix, grouped
from sim.specs.model import ModelSpec


def uniform(spec: ModelSpec) -> list[Block]:
    """The layers of a model whose layers are alike but for their windows and their MLP, one by one.

    Windowed layers stand first: a ModelSpec does not say where they are, and no number depends on it.
    """
    hidden = spec.hidden
    norms = (4 if spec.post_norms else 2) * hidden * (2 if spec.norm == "layer" else 1)
    vectors = (2 * spec.head_dim if spec.qk_norm else 0) + (spec.heads if spec.head_sinks else 0)

    def one(window: int, routed: bool) -> Block:
        if spec.is_latent:
            mixer = latent(
                hidden,
                spec.heads,
                rank=spec.kv_lora_rank,
                query_rank=spec.q_lora_rank,
                nope=spec.qk_nope_head_dim,
                rope=spec.qk_rope_head_dim,
                value_dim=spec.v_head_dim,
            )
        else:
            mixer = attention(
                hidden,
                spec.heads,
                spec.kv_heads,
                spec.head_dim,
                window=window,
                bias=spec.qkv_bias,
                output_bias=spec.attention_output_bias,
                vectors=vectors,
            )
        if routed:
            router_bias = spec.experts if spec.router_bias else 0
            shared, bias = spec.shared_expert_ffn, spec.mlp_bias
            ffn = experts(
                hidden, spec.experts, spec.experts_per_token, spec.expert_ffn, shared=shared, gated=spec.gated_mlp,
                bias=bias, router_bias=router_bias,
            )  # fmt: skip
        else:
            ffn = mlp(hidden, spec.ffn, gated=spec.gated_mlp, bias=spec.mlp_bias)
        return layer(mixer, ffn, vectors=norms, norms=4 if spec.post_norms else 2)

    kinds = [
        (
            spec.sliding_window_tokens if index < spec.sliding_layers else 0,
            spec.experts > 0 and index >= spec.leading_dense_layers,
        )
        for index in range(spec.layers)
    ]
    made = {kind: one(*kind) for kind in set(kinds)}
    return [made[kind] for kind in kinds]


def typed(layers: Sequence[Block], scheme: Scheme | None) -> tuple[Block, ...]:
    """The layers' kinds, with the types that a checkpoint gives their matrices."""
    if scheme is None:
        return grouped(layers)
    made: dict[tuple[int, tuple[str, ...]], Block] = {}
    result = []
    for index, each in enumerate(layers):
        kinds = tuple(_type_in(scheme, index, matrix) for matrix in each.matrices)
        key = (id(each), kinds)
        if key not in made:
            pairs = zip(each.matrices, kinds, strict=True)
            made[key] = replace(each, matrices=tuple(replace(matrix, weights=kind) for matrix, kind in pairs))
        result.append(made[key])
    return grouped(result)


def _type_in(scheme: Scheme, layer: int, matrix: Matrix) -> str:
    if matrix.weights == "plain" or not matrix.modules:
        return matrix.weights
    kind = scheme.type_of(layer, matrix.modules)
    return matrix.weights if kind == "auto" else kind
