"""What the tiny checkpoints of `model_kit` should give: one plain float64 forward with no code of the backend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from model_kit import expert_names, head_dim_of
from torch import Tensor


def reference_logits(config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: Sequence[int]) -> Tensor:
    """Logits [T, vocab] of one sequence in float64: no cache, no batch, no fused matrix, no code of the backend."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    width, eps = head_dim_of(config), config["rms_norm_eps"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    cos, sin = _reference_rope(config, len(tokens))

    def norm(x: Tensor, name: str) -> Tensor:
        size: Tensor = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x / size * w[f"{name}.weight"]

    def project(x: Tensor, name: str) -> Tensor:
        out = x @ w[f"{name}.weight"].T
        return out + w[f"{name}.bias"] if f"{name}.bias" in w else out

    def turn(x: Tensor) -> Tensor:
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = w["model.embed_tokens.weight"][list(tokens)]
    for at in range(config["num_hidden_layers"]):
        layer = f"model.layers.{at}"
        h = norm(x, f"{layer}.input_layernorm")
        q = project(h, f"{layer}.self_attn.q_proj").view(-1, heads, width)
        k = project(h, f"{layer}.self_attn.k_proj").view(-1, groups, width)
        v = project(h, f"{layer}.self_attn.v_proj").view(-1, groups, width)
        if config["model_type"].startswith("qwen3"):
            q, k = norm(q, f"{layer}.self_attn.q_norm"), norm(k, f"{layer}.self_attn.k_norm")
        q, k = turn(q), turn(k)
        window = _reference_window(config, at)
        rows = []
        for i in range(len(tokens)):
            since = max(0, i + 1 - window) if window else 0
            for head in range(heads):
                group = head * groups // heads
                shares = (k[since : i + 1, group] @ q[i, head] / math.sqrt(width)).softmax(0)
                rows.append(shares @ v[since : i + 1, group])
        x = x + project(torch.stack(rows).view(len(tokens), -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        if config["model_type"] in ("mixtral", "qwen3_moe"):
            x = x + _reference_experts(config, h, w, layer)
        else:
            gate, up = project(h, f"{layer}.mlp.gate_proj"), project(h, f"{layer}.mlp.up_proj")
            x = x + project(gate * gate.sigmoid() * up, f"{layer}.mlp.down_proj")
    table = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.norm") @ table.T


def _reference_window(config: Mapping[str, Any], layer: int) -> int:
    if config.get("layer_types"):
        return int(config["sliding_window"]) if config["layer_types"][layer] == "sliding_attention" else 0
    everywhere = config["model_type"] in ("mistral", "mixtral")
    here = everywhere or (config.get("use_sliding_window") and layer >= config["max_window_layers"])
    return int(config.get("sliding_window") or 0) if here else 0


def _reference_experts(config: Mapping[str, Any], h: Tensor, w: Mapping[str, Tensor], layer: str) -> Tensor:
    block, (gate, up, down), _, _ = expert_names(config)
    out = torch.zeros_like(h)
    for i, x in enumerate(h):
        shares = (w[f"{layer}.{block}.gate.weight"] @ x).softmax(0)
        best = shares.argsort(descending=True)[: config["num_experts_per_tok"]].tolist()
        divide = config["model_type"] == "mixtral" or config["norm_topk_prob"]
        total = sum(shares[e] for e in best) if divide else 1.0
        for expert in best:
            mine = f"{layer}.{block}.experts.{expert}"
            a, b = w[f"{mine}.{gate}.weight"] @ x, w[f"{mine}.{up}.weight"] @ x
            out[i] += shares[expert] / total * (w[f"{mine}.{down}.weight"] @ (a * a.sigmoid() * b))
    return out


def _reference_rope(config: Mapping[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, D/2], pair by pair as the papers write them."""
    rule = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config["rope_theta"]}
    width, theta, scale, turns = head_dim_of(config), rule["rope_theta"], 1.0, []
    for pair in range(width // 2):
        turn = theta ** (-2 * pair / width)
        kind, factor = rule["rope_type"], rule.get("factor", 1.0)
        # How often the pair turns within the original context.
        rotations = rule.get("original_max_position_embeddings", 1) * turn / (2 * math.pi)
        if kind == "linear":
            turn /= factor
        elif kind == "llama3":
            low, high = rule["low_freq_factor"], rule["high_freq_factor"]
            kept = min(1.0, max(0.0, (rotations - low) / (high - low)))
            turn = kept * turn + (1 - kept) * turn / factor
        elif kind == "yarn":

            def pair_of(rotations: float) -> float:
                original = rule["original_max_position_embeddings"]
                return width * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

            low = max(0, math.floor(pair_of(rule["beta_fast"])))
            high = min(width - 1, math.ceil(pair_of(rule["beta_slow"])))
            slowed = min(1.0, max(0.0, (pair - low) / (high - low)))
            turn = (1 - slowed) * turn + slowed * turn / factor
            scale = 0.1 * math.log(factor) + 1
        turns.append(turn)
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * torch.tensor(turns, dtype=torch.float64)
    return angles.cos() * scale, angles.sin() * scale
