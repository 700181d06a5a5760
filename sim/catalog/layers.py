"""What decoder layers are made of, as parts that a family puts together: attention, latents, states, MLPs, experts.

Names of modules are those of transformers' checkpoints, which quantisers name. It reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sim.specs.blocks import Block, Cache, Matrix, Span, State, whole


class LayerPart(NamedTuple):
    """One part of a layer."""

    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0
    cache: Cache | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What a family says of a model: its layers in order, and the fields of ModelSpec that are not in them.

    `beside` counts parameters outside of the layers; `counted` and `unpriced` are as those of ModelSpec.
    """

    layers: Sequence[Block]
    tied: bool
    beside: int = 0
    counted: str = ""
    unpriced: str = ""
    norm: str = "rms"
    learned_positions: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


def layer(*parts: LayerPart, vectors: int = 0, norms: int = 2) -> Block:
    """One layer of these parts, with `vectors` parameters of norms."""
    return Block(
        matrices=tuple(matrix for part in parts for matrix in part.matrices),
        vectors=vectors + sum(part.vectors for part in parts),
        cache=next((part.cache for part in parts if part.cache), None),
        state=next((part.state for part in parts if part.state), None),
        norms=norms,
        reductions=len(parts),
    )


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    value_dim: int = 0,
    window: int = 0,
    bias: bool = False,
    output_bias: bool = False,
    vectors: int = 0,
    gate: int = 0,
    keys_are_values: bool = False,
    kept: bool = True,
    module: str = "self_attn",
    output: str = "o_proj",
) -> LayerPart:
    """Softmax attention. `vectors` are parameters of its norms and sinks, `gate` outputs a head of a gate of the heads'
    outputs; `keys_are_values` has one projection for both; with `kept` False it attends an earlier layer's cache."""
    values = value_dim or dim
    queries = Span(heads, dim + gate)
    width = (dim if keys_are_values else dim + values) if kept else 0
    outputs = (queries, Span(kv_heads, width, "repeat")) if width else (queries,)
    names = tuple(f"{module}.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
    matrices = (
        Matrix("qkv", (whole(hidden),), outputs, names, bias=bias),
        Matrix("attention output", (Span(heads, values),), (whole(hidden),), (f"{module}.{output}",), bias=output_bias),
    )
    cache = Cache(
        heads=heads, kv_heads=kv_heads, key_dim=dim, value_dim=values, window_tokens=window, kept=kept
    )  # fmt: skip
    return LayerPart(matrices, vectors, cache)


def latent(
    hidden: int,
    heads: int,
    *,
    rank: int,
    query_rank: int,
    nope: int,
    rope: int,
    value_dim: int,
    bias: bool = False,
    index: tuple[int, int, int] | None = None,
    shares_index: bool = False,
    vectors: int = 0,
) -> LayerPart:
    """Latent attention (MLA), with an indexer of (heads, width, tokens that it chooses) if there is one (DSA).

    A layer that shares an earlier one's choice has no indexer of its own.
    """
    name = "self_attn."
    down = Matrix(
        "query and latent down",
        (whole(hidden),),
        (whole(query_rank + rank + rope),),
        (f"{name}q_a_proj", f"{name}kv_a_proj_with_mqa"),
        bias=bias,
    )
    queries = Span(heads, nope + rope)
    up = Matrix("query up", (whole(query_rank),), (queries,), (f"{name}q_b_proj",))
    if not query_rank:
        down = replace(down, name="latent down", outputs=(whole(rank + rope),), modules=down.modules[1:])
        up = Matrix("query", (whole(hidden),), (queries,), (f"{name}q_proj",))
    matrices = [
        down,
        up,
        Matrix("latent up", (whole(rank),), (Span(heads, nope + value_dim),), (f"{name}kv_b_proj",)),
        Matrix("attention output", (Span(heads, value_dim),), (whole(hidden),), (f"{name}o_proj",), bias=bias),
    ]
    total = vectors + rank + query_rank
    own = index is not None and not shares_index
    if index is not None and own:
        count, width, _ = index
        matrices += [
            Matrix("indexer query", (whole(query_rank),), (whole(count * width),), (f"{name}indexer.wq_b",)),
            Matrix("indexer key", (whole(hidden),), (whole(width),), (f"{name}indexer.wk",)),
            Matrix("indexer weight", (whole(hidden),), (whole(count),), (), weights="plain"),
        ]
        total += 2 * width
    cache = Cache(
        heads=heads,
        key_dim=nope + rope,
        value_dim=value_dim,
        rank=rank,
        rope_dim=rope,
        index_heads=index[0] if index and own else 0,
        index_dim=index[1] if index and own else 0,
        top_tokens=index[2] if index else 0,
    )
    return LayerPart(tuple(matrices), total, cache)


def mlp(
    hidden: int, ffn: int, *, gated: bool = True, bias: bool = False, module: str = "mlp", name: str = "mlp"
) -> LayerPart:
    """An MLP that every token visits."""
    if not ffn:
        return LayerPart()
    names = tuple(f"{module}.{each}" for each in ("gate_proj", "up_proj", "gate_up_proj", "fc1"))
    width = 2 if gated else 1
    return LayerPart(
        (
            Matrix(f"{name} up", (whole(hidden),), (Span(ffn, width),), names, bias=bias),
            Matrix(
                f"{name} down",
                (Span(ffn),),
                (whole(hidden),),
                (f"{module}.down_proj", f"{module}.fc2"),
                bias=bias,
                activation=width,
            ),
        )
    )


def experts(
    hidden: int,
    count: int,
    visited: int,
    ffn: int,
    *,
    shared: int = 0,
    shared_gate: bool = False,
    gated: bool = True,
    bias: bool = False,
    router_bias: int = 0,
    width: int = 0,
    module: str = "mlp",
    shared_module: str = "shared_experts",
    vectors: int = 0,
) -> LayerPart:
    """Routed experts, and with `shared` one of that width that every token visits. `router_bias` counts the router's
    parameters beside its matrix; `width` is that of the experts' inputs where they see a projection of the stream."""
    inner, up_width = width or hidden, 2 if gated else 1
    at = f"{module}." if module else ""
    matrices = [Matrix("router", (whole(hidden),), (whole(count),), (f"{at}gate",), weights="plain")]
    if width:
        matrices.append(Matrix("expert latent down", (whole(hidden),), (whole(width),), (f"{at}fc1_latent_proj",)))
    names = tuple(
        f"{at}{each}"
        for each in ("experts.0.gate_proj", "experts.0.up_proj", "experts.gate_up_proj", "experts.0.w1", "experts")
    )
    lower = tuple(f"{at}{each}" for each in ("experts.0.down_proj", "experts.down_proj", "experts.0.w2", "experts"))
    matrices += [
        Matrix("expert up", (whole(inner),), (Span(ffn, up_width),), names, count, visited, bias),
        Matrix("expert down", (Span(ffn),), (whole(inner),), lower, count, visited, bias, activation=up_width),
    ]
    if width:
        matrices.append(Matrix("expert latent up", (whole(width),), (whole(hidden),), (f"{at}fc2_latent_proj",)))
    part = mlp(hidden, shared, gated=gated, module=f"{at}{shared_module}", name="shared expert")
    gate = hidden if shared_gate else 0
    return LayerPart((*matrices, *part.matrices), vectors + router_bias + gate)
