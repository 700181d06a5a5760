"""Everything of a forward pass but attention, as named seconds: by tokens computed, and by logits rows. No batches."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

import numpy as np

from sim.cost.experts import Routing
from sim.cost.kernels import Kernels
from sim.cost.placement import ExpertPlacement
from sim.specs.model import Gemm, ModelSpec
from sim.specs.parallel import SINGLE, Parallel

Terms = dict[str, float]


class Ranks(NamedTuple):
    """Tokens that the data-parallel ranks compute in one step, padding included: of the one with most, and of all."""

    most: int
    all: int


def added(seconds: Iterable[Any]) -> Any:
    """Numbers or arrays, one after the other: `sum` of numbers is rounded otherwise from Python 3.12 on."""
    total: Any = 0.0
    for more in seconds:
        total = total + more
    return total


def launches(model: ModelSpec, parallel: Parallel) -> int:
    """Kernels of all layers without attention: GEMMs, norms, rope, activation, KV write and what comes on top."""
    gemms, elementwise = len(model.attention_gemms(SINGLE)), (6 if model.post_norms else 4)
    elementwise += (0 if model.learned_positions else 1) + (2 if model.qk_norm or model.is_latent else 0)
    everywhere = gemms + elementwise + (2 if parallel.tp > 1 else 0)
    experts = len(model.shared_gemms(SINGLE)) + len(model.expert_gemms(SINGLE)) + 4 + exchanges(parallel)
    return model.layers * everywhere + model.dense_layers * len(model.mlp_gemms(SINGLE)) + model.expert_layers * experts


def exchanges(parallel: Parallel) -> int:
    """Kernels that exchange tokens between ranks in a layer with experts."""
    return 2 if parallel.dp > 1 else 0


def token_terms(
    model: ModelSpec,
    kernels: Kernels,
    parallel: Parallel,
    tokens: Any,
    routing: Routing,
    known: Container[str] = (),
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Seconds that depend on the number of tokens computed only, all layers together; of an array of numbers each one's
    to the bit, where there are no experts.

    `known` names terms whose seconds nobody will ask for: products among them are not priced, and take none. `tokens`
    are those of one rank; `ranks` says what all compute, where experts have several.
    """
    layers, element_bytes = model.layers, model.element_bytes
    hidden_bytes = tokens * model.hidden * element_bytes
    kv_bytes = tokens * model.layer_kv_bytes_per_token(parallel)
    linear_s = _linear(kernels, tokens)
    terms: dict[str, Any] = {"embedding": kernels.small_s(2.0 * hidden_bytes)} if model.has_embedding else {}
    for gemm in model.attention_gemms(parallel):
        terms[gemm.name] = 0.0 if gemm.name in known else layers * linear_s(tokens, gemm.k, gemm.n)
    if model.dense_layers:
        gemms, dense = model.mlp_gemms(parallel), model.dense_layers
        terms |= _mlp_terms(model, kernels, tokens, gemms, dense, "activation", known)
    if model.experts:
        shared = model.shared_gemms(parallel)
        terms |= _mlp_terms(model, kernels, tokens, shared, model.expert_layers, "shared expert activation", known)
        terms |= _expert_terms(model, kernels, parallel, tokens, routing, ranks or Ranks(tokens, tokens))
    norms = (4 if model.post_norms else 2) * layers + (1 if model.has_head else 0)
    terms["norms"] = norms * kernels.small_s(4.0 * hidden_bytes)
    terms |= _head_terms(model, kernels, parallel, tokens)
    terms["KV write"] = layers * kernels.small_s(2.0 * kv_bytes)
    if parallel.tp > 1:
        terms["all-reduce"] = 2 * layers * _all_reduce_s(kernels, hidden_bytes, parallel.tp)
    return terms


def _linear(kernels: Kernels, tokens: Any) -> Callable[[Any, int, int], Any]:
    return kernels.linear_each_s if isinstance(tokens, np.ndarray) else kernels.linear_s


def _all_reduce_s(kernels: Kernels, message_bytes: Any, gpus: int) -> Any:
    if not isinstance(message_bytes, np.ndarray):
        return kernels.all_reduce_s(message_bytes, gpus)
    return np.array([kernels.all_reduce_s(one, gpus) for one in message_bytes.tolist()])


def row_terms(model: ModelSpec, kernels: Kernels, parallel: Parallel, rows: int, known: Container[str] = ()) -> Terms:
    """Seconds that depend on the number of logits rows only; `known` as of `token_terms`."""
    if not model.has_head:
        return {}
    head = "LM head"
    terms = {
        head: 0.0 if head in known else kernels.gemm_s(rows, model.hidden, -(-model.vocab // parallel.tp)),
        "sampling": kernels.sampling_s(rows, model.vocab),
    }
    if parallel.tp > 1:
        terms["logits gather"] = kernels.gather_s(rows * model.vocab * model.element_bytes, parallel.tp)
    return terms


def _head_terms(model: ModelSpec, kernels: Kernels, parallel: Parallel, tokens: Any) -> dict[str, Any]:
    """Norms and rotation of queries and keys, or of the latents that they are made from."""
    layers, heads, token_bytes = model.layers, model.heads // parallel.tp, tokens * model.element_bytes
    terms: dict[str, Any] = {}
    if model.is_latent:
        ranks = model.q_lora_rank + model.kv_lora_rank
        terms["latent norms"] = (2 if model.q_lora_rank else 1) * layers * kernels.small_s(2.0 * token_bytes * ranks)
        rotated = (heads + 1) * model.qk_rope_head_dim
    else:
        rotated = heads * model.head_dim + model.gpu_kv_heads(parallel) * model.head_dim
    if model.qk_norm:
        terms["query and key norms"] = 2 * layers * kernels.small_s(2.0 * token_bytes * rotated)
    if not model.learned_positions:
        terms["rope"] = layers * kernels.small_s(2.0 * token_bytes * rotated)
    return terms


def _mlp_terms(
    model: ModelSpec,
    kernels: Kernels,
    tokens: Any,
    gemms: tuple[Gemm, ...],
    layers: int,
    activation: str,
    known: Container[str],
) -> dict[str, Any]:
    """Both products of an MLP that every token visits, and what stands between them."""
    linear_s = _linear(kernels, tokens)
    terms: dict[str, Any] = {
        gemm.name: 0.0 if gemm.name in known else layers * linear_s(tokens, gemm.k, gemm.n) for gemm in gemms
    }
    if gemms:
        terms[activation] = layers * _activation_s(model, kernels, tokens, gemms[-1].k)
    return terms


def _expert_terms(
    model: ModelSpec, kernels: Kernels, parallel: Parallel, tokens: int, routing: Routing, ranks: Ranks
) -> Terms:
    """Routed experts of the busiest GPU, and what stands before, between and after their products."""
    placement = ExpertPlacement(model.experts, model.experts_per_token, parallel)
    load = placement.load(routing, ranks.all)
    assigned = load.rows
    up, down = model.expert_gemms(parallel)
    routing_s = kernels.gemm_s(tokens, model.hidden, model.experts) + 2 * kernels.small_s(4.0 * tokens * model.experts)
    combine_s = kernels.small_s((assigned + tokens) * model.hidden * model.element_bytes)
    layers = model.expert_layers
    return {
        "router": layers * routing_s,
        up.name: layers * kernels.expert_gemm_s(load, up.k, up.n),
        "expert activation": layers * _activation_s(model, kernels, assigned, down.k),
        down.name: layers * kernels.expert_gemm_s(load, down.k, down.n),
        "expert combine": layers * combine_s,
        **exchange_terms(model.hidden, layers, kernels, placement, routing, ranks),
    }


def exchange_terms(
    hidden: int, layers: int, kernels: Kernels, placement: ExpertPlacement, routing: Routing, ranks: Ranks
) -> Terms:
    """Tokens on their way between ranks and experts in so many layers; nothing where there is one rank.

    Of cut experts every GPU needs every token (an all-gather, and a reduce-scatter of what came out, which moves as
    much). Whole experts are sent the tokens that visit them, and return what they made in the activations' type; the
    fullest rank sends most, and the busiest GPU gets most. Where GPUs share a rank, each sends its part of the
    rank's tokens.
    """
    parallel = placement.parallel
    gpus = parallel.expert_gpus
    if parallel.dp == 1 or not layers:
        return {}
    names = ("expert dispatch", "expert return")
    if parallel.ep == 1:
        message_bytes = ranks.all * kernels.token_bytes(hidden, quantised=False)
        halves_s = kernels.gather_s(message_bytes, gpus), kernels.collectives.scatter_s(message_bytes, gpus)
        return {name: layers * half_s for name, half_s in zip(names, halves_s, strict=True)}
    fullest = ranks.most / parallel.tp
    busiest = ranks.all / gpus * placement.excess(routing, ranks.all)
    tokens = max(fullest, busiest)
    to_gpus, to_nodes = placement.reached(gpus), placement.reached(kernels.gpu.nodes(gpus))
    return {
        name: layers
        * kernels.collectives.all_to_all_s(
            tokens * kernels.token_bytes(hidden, quantised=quantised), gpus, to_gpus, to_nodes
        )
        for name, quantised in zip(names, (True, False), strict=True)
    }


def _activation_s(model: ModelSpec, kernels: Kernels, tokens: Any, width: int) -> Any:
    inputs = 2 if model.gated_mlp else 1
    return kernels.small_s(tokens * (inputs + 1) * width * model.element_bytes)
