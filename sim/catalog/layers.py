"""What decoder layers are made of, as parts that a family puts together: attention, latents, states, MLPs, experts.

Names of modules are those of transformers' checkpoints, which quantisers name. It reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sim.catalog.quantization import Scheme
from sim.specs.blocks import Block, Cache, Matrix, Span, State, grouped, whole
from sim.specs.model import ModelSpec


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


def gated_delta(
    hidden: int, *, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int, dtype: str
) -> LayerPart:
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next has it: a matrix for each value head, and a short convolution."""
    queries = key_heads * key_dim
    channels = 2 * queries + value_heads * value_dim
    name = "linear_attn."
    matrices = (
        Matrix(
            "linear attention in",
            (whole(hidden),),
            (Span(key_heads, 2 * key_dim), Span(value_heads, 2 * value_dim)),
            (f"{name}in_proj_qkvz", f"{name}in_proj_qkv", f"{name}in_proj_z"),
        ),
        Matrix(
            "linear attention gates",
            (whole(hidden),),
            (Span(value_heads, 2),),
            (f"{name}in_proj_ba", f"{name}in_proj_b"),
            weights="plain",
        ),
        Matrix("linear attention out", (Span(value_heads, value_dim),), (whole(hidden),), (f"{name}out_proj",)),
    )
    state = State(
        heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_channels=channels,
        conv_tokens=kernel - 1,
        dtype=dtype,
    )
    return LayerPart(matrices, channels * kernel + 2 * value_heads + value_dim, None, state)


def mamba2(
    hidden: int,
    *,
    heads: int,
    dim: int,
    groups: int,
    state_size: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    dtype: str,
    norm: bool = True,
    module: str = "mixer",
) -> LayerPart:
    """Mamba-2 (arXiv 2405.21060): inputs, gate, B, C and time steps from one projection."""
    inner = heads * dim
    channels = inner + 2 * groups * state_size
    shared = Span(groups, 2 * state_size, "repeat") if groups else whole(0)
    matrices = (
        Matrix("mamba in", (whole(hidden),), (Span(heads, 2 * dim + 1), shared), (f"{module}.in_proj",), bias=bias),
        Matrix("mamba out", (Span(heads, dim),), (whole(hidden),), (f"{module}.out_proj",), bias=bias),
    )
    vectors = channels * (kernel + (1 if conv_bias else 0)) + 3 * heads + (inner if norm else 0)
    state = State(
        heads=heads, key_dim=state_size, value_dim=dim, conv_channels=channels, conv_tokens=kernel - 1, dtype=dtype
    )
    return LayerPart(matrices, vectors, None, state)


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
