"""The weights of a transformer's layers, projections fused, and the MLPs on them. It knows no files and no cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from backend.model.weights import QuantWeight, Weight
from backend.ops import Ops


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """Gate and up in one matrix [2F, C], down [C, F]; biases where the checkpoint has them."""

    gate_up: Weight
    down: Weight
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ExpertMlp:
    """A router [E, C] and E experts: gate and up [E, 2F, C], down [E, C, F]; `top_k` of them see each token.

    `renormalise`: the chosen experts' probabilities are divided by their sum (Mixtral always; Qwen3 by its flag).
    """

    router: Tensor
    gate_up: Weight
    down: Weight
    top_k: int
    renormalise: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: queries, keys and values in one matrix [(H + 2G) D, C], attention's output [C, H D], and an MLP."""

    input_norm: Tensor
    qkv: Weight
    output: Weight
    post_norm: Tensor
    mlp: DenseMlp | ExpertMlp
    qkv_bias: Tensor | None = None
    output_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model; with tied embeddings `lm_head` is `embedding`, [vocab, C]."""

    embedding: Tensor
    layers: list[Layer]
    final_norm: Tensor
    lm_head: Tensor


def mlp(ops: Ops, hidden: Tensor, weights: DenseMlp | ExpertMlp) -> Tensor:
    if isinstance(weights, ExpertMlp):
        return experts(ops, hidden, weights, *route(hidden, weights))
    up = ops.linear(hidden, weights.gate_up)
    if weights.gate_up_bias is not None:
        up = up + weights.gate_up_bias
    down = ops.linear(ops.silu_and_mul(up), weights.down)
    return down if weights.down_bias is None else down + weights.down_bias


def route(hidden: Tensor, weights: ExpertMlp) -> tuple[Tensor, Tensor]:
    """Of each token, the experts it visits and their shares: ids [T, top_k] int64, shares [T, top_k] fp32.

    Softmax over all experts in fp32, then the `top_k`, then the division (transformers, MixtralTopKRouter,
    Qwen3MoeTopKRouter).
    """
    return choose(F.linear(hidden, weights.router), weights)


def choose(logits: Tensor, weights: ExpertMlp) -> tuple[Tensor, Tensor]:
    """`route` from the router's logits [T, E] on."""
    shares, ids = logits.softmax(dim=-1, dtype=torch.float32).topk(weights.top_k, dim=-1)
    return ids, shares / shares.sum(dim=-1, keepdim=True) if weights.renormalise else shares


def experts_are_graphable(weights: ExpertMlp) -> bool:
    """Whether the experts' products run as one grouped launch, with no count read from the device.

    torch has that for bf16 on Hopper and data-centre Blackwell (`torch.nn.functional.grouped_mm`, whose own fallback
    elsewhere reads the counts); otherwise experts are multiplied one by one.
    """
    plain = isinstance(weights.gate_up, Tensor) and isinstance(weights.down, Tensor)
    if not plain or weights.router.dtype != torch.bfloat16 or not weights.router.is_cuda:
        return False
    return hasattr(F, "grouped_mm") and torch.cuda.get_device_capability(weights.router.device)[0] in (9, 10)


def experts(ops: Ops, hidden: Tensor, weights: ExpertMlp, ids: Tensor, shares: Tensor) -> Tensor:
    """[T, C] of what each token's experts make of it, by its ids and shares [T, top_k].

    Rows are sorted by expert, multiplied, brought back and added up in a fixed order (no atomic adds).
    """
    sorted_ids, order = ids.flatten().sort(stable=True)
    rows = hidden.index_select(0, order // weights.top_k)
    # Searching rather than counting: torch's bincount reads its result's length from the device.
    ends = torch.searchsorted(sorted_ids, torch.arange(len(weights.router), device=ids.device), right=True)
    together = experts_are_graphable(weights)
    out = _grouped(ops, rows, weights, ends) if together else _one_by_one(ops, rows, weights, ends)
    out = torch.empty_like(out).index_copy_(0, order, out)
    return (out.view(*ids.shape, -1) * shares[..., None]).sum(dim=1).to(hidden.dtype)


def _grouped(ops: Ops, rows: Tensor, weights: ExpertMlp, ends: Tensor) -> Tensor:
    """One launch per matrix for all experts; rows [T top_k, C] stand in the experts' order, `ends` [E] cuts them."""
    assert not isinstance(weights.gate_up, QuantWeight)
    assert not isinstance(weights.down, QuantWeight)
    cuts = ends.int()
    up = F.grouped_mm(rows, weights.gate_up.transpose(1, 2), offs=cuts)
    return F.grouped_mm(ops.silu_and_mul(up), weights.down.transpose(1, 2), offs=cuts)


def _one_by_one(ops: Ops, rows: Tensor, weights: ExpertMlp, ends: Tensor) -> Tensor:
    """The same, expert by expert; reads how many rows each has, which waits for a GPU."""
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            up = ops.linear(rows[start:end], weights.gate_up[expert])
            parts.append(ops.linear(ops.silu_and_mul(up), weights.down[expert]))
        start = end
    return torch.cat(parts)
