"""Which tensors a model is made of: shapes after fusing, where each checkpoint tensor lands, how random ones spread.

It allocates nothing and reads no files; `backend.model.loader` fills what is listed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from backend.model.checkpoint import CheckpointConfig
from backend.model.layers import DenseMlp, ExpertMlp, Layer, Weights
from backend.model.weights import QuantWeight, Weight
from sim.specs.model import ModelSpec

LOGIT_SPREAD = 3.0
"""Standard deviation of random models' logits: peaked enough that a rounding error seldom changes the best token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A checkpoint's tensor and where it lands in a fused parameter: `rows` of it (of expert `expert`, if not None)."""

    name: str
    rows: slice
    shape: tuple[int, ...]
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: a name such as "3.qkv" (layer and field of `Layer`), its shape and what fills it.

    `matrix` marks those that are kept in the quantised type where one is asked for. Random values are normal around
    `mean` with standard deviation `spread`.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    spread: float
    mean: float = 0.0
    matrix: bool = False


def parameters(spec: ModelSpec, config: CheckpointConfig) -> Iterator[Parameter]:
    """All parameters, in the order in which random values are drawn."""
    table = (spec.vocab, spec.hidden)
    # Outputs of a unit-variance hidden state then have unit variance, whatever the width.
    narrow = spec.hidden**-0.5
    spread = LOGIT_SPREAD * narrow if spec.tied_embeddings else 1.0
    yield _whole("embedding", "model.embed_tokens.weight", table, spread)
    for at in range(spec.layers):
        yield from _attention(spec, at)
        yield from _expert_mlp(spec, config.family, at) if spec.experts else _dense_mlp(spec, at)
    yield _norm("final_norm", "model.norm.weight", spec.hidden)
    if not spec.tied_embeddings:
        yield _whole("lm_head", "lm_head.weight", table, LOGIT_SPREAD * narrow)


def assemble(spec: ModelSpec, config: CheckpointConfig, values: Mapping[str, Weight]) -> Weights:
    """The model's weights from one value per parameter, by name."""

    def plain(name: str) -> Tensor:
        value = values[name]
        assert not isinstance(value, QuantWeight)
        return value

    def optional(name: str) -> Tensor | None:
        return plain(name) if name in values else None

    def layer(at: int) -> Layer:
        mlp: DenseMlp | ExpertMlp
        gate_up, down = values[f"{at}.gate_up"], values[f"{at}.down"]
        if spec.experts:
            renormalise = config.renormalise_experts
            mlp = ExpertMlp(plain(f"{at}.router"), gate_up, down, spec.experts_per_token, renormalise)
        else:
            mlp = DenseMlp(gate_up, down, optional(f"{at}.gate_up_bias"), optional(f"{at}.down_bias"))
        return Layer(
            input_norm=plain(f"{at}.input_norm"),
            qkv=values[f"{at}.qkv"],
            output=values[f"{at}.output"],
            post_norm=plain(f"{at}.post_norm"),
            mlp=mlp,
            qkv_bias=optional(f"{at}.qkv_bias"),
            output_bias=optional(f"{at}.output_bias"),
            q_norm=optional(f"{at}.q_norm"),
            k_norm=optional(f"{at}.k_norm"),
        )

    embedding = plain("embedding")
    head = embedding if spec.tied_embeddings else plain("lm_head")
    return Weights(embedding, [layer(at) for at in range(spec.layers)], plain("final_norm"), head)


def _attention(spec: ModelSpec, at: int) -> Iterator[Parameter]:
    own = f"model.layers.{at}.self_attn"
    keys = spec.kv_heads * spec.head_dim
    widths = {f"{own}.q_proj": spec.query_width, f"{own}.k_proj": keys, f"{own}.v_proj": keys}
    yield _norm(f"{at}.input_norm", f"model.layers.{at}.input_layernorm.weight", spec.hidden)
    yield _stack(f"{at}.qkv", widths, spec.hidden)
    if spec.qkv_bias:
        yield _bias(f"{at}.qkv_bias", widths)
    if spec.qk_norm:
        yield _norm(f"{at}.q_norm", f"{own}.q_norm.weight", spec.head_dim)
        yield _norm(f"{at}.k_norm", f"{own}.k_norm.weight", spec.head_dim)
    yield _stack(f"{at}.output", {f"{own}.o_proj": spec.hidden}, spec.query_width)
    if spec.attention_output_bias:
        yield _bias(f"{at}.output_bias", {f"{own}.o_proj": spec.hidden})
    yield _norm(f"{at}.post_norm", f"model.layers.{at}.post_attention_layernorm.weight", spec.hidden)


def _dense_mlp(spec: ModelSpec, at: int) -> Iterator[Parameter]:
    own = f"model.layers.{at}.mlp"
    up, down = {f"{own}.gate_proj": spec.ffn, f"{own}.up_proj": spec.ffn}, {f"{own}.down_proj": spec.hidden}
    yield _stack(f"{at}.gate_up", up, spec.hidden)
    yield _stack(f"{at}.down", down, spec.ffn)
    if spec.mlp_bias:
        yield _bias(f"{at}.gate_up_bias", up)
        yield _bias(f"{at}.down_bias", down)


def _expert_mlp(spec: ModelSpec, family: str, at: int) -> Iterator[Parameter]:
    mixtral = family == "mixtral"
    own = f"model.layers.{at}.{'block_sparse_moe' if mixtral else 'mlp'}"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    width, spread = spec.expert_ffn, spec.hidden**-0.5
    yield _whole(f"{at}.router", f"{own}.gate.weight", (spec.experts, spec.hidden), spread)
    ups, downs = [], []
    for expert in range(spec.experts):
        mine = f"{own}.experts.{expert}"
        ups.append(Piece(f"{mine}.{gate}.weight", slice(0, width), (width, spec.hidden), expert))
        ups.append(Piece(f"{mine}.{up}.weight", slice(width, 2 * width), (width, spec.hidden), expert))
        downs.append(Piece(f"{mine}.{down}.weight", slice(0, spec.hidden), (spec.hidden, width), expert))
    shape = (spec.experts, 2 * width, spec.hidden)
    yield Parameter(f"{at}.gate_up", shape, tuple(ups), spread, matrix=True)
    yield Parameter(f"{at}.down", (spec.experts, spec.hidden, width), tuple(downs), width**-0.5, matrix=True)


def _stack(name: str, widths: Mapping[str, int], inputs: int) -> Parameter:
    """Matrices with the same inputs, one below the other."""
    pieces, start = [], 0
    for source, width in widths.items():
        pieces.append(Piece(f"{source}.weight", slice(start, start + width), (width, inputs)))
        start += width
    return Parameter(name, (start, inputs), tuple(pieces), inputs**-0.5, matrix=True)


def _bias(name: str, widths: Mapping[str, int]) -> Parameter:
    pieces, start = [], 0
    for source, width in widths.items():
        pieces.append(Piece(f"{source}.bias", slice(start, start + width), (width,)))
        start += width
    return Parameter(name, (start,), tuple(pieces), 0.1)


def _norm(name: str, source: str, width: int) -> Parameter:
    return Parameter(name, (width,), (Piece(source, slice(0, width), (width,)),), 0.1, mean=1.0)


def _whole(name: str, source: str, shape: tuple[int, ...], spread: float) -> Parameter:
    return Parameter(name, shape, (Piece(source, slice(0, shape[0]), shape),), spread)
