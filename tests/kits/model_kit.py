"""Tiny checkpoints of every family, and requests that a model computes step by step over a cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.model.model import DecodePart, ForwardBatch, Model, PrefillPart

BLOCK_TOKENS = 4

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 4.0, "beta_slow": 0.5}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "head_dim": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_theta": 10000.0},
    "llama3": {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **_LLAMA3}},
    "llama-biased-tied": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "llama-yarn": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **_YARN}},
    "mistral": {"model_type": "mistral", "sliding_window": 7, "head_dim": 32, "rope_theta": 10000.0},
    "mixtral": {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "rope_theta": 1e6,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6, "use_sliding_window": False},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
        "rope_theta": 1e6,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "rope_theta": 1e6},
    "qwen3-window": {
        "model_type": "qwen3",
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 1e6,
    },
    "qwen3-moe": {"model_type": "qwen3_moe", "norm_topk_prob": True, "rope_theta": 1e6, **_EXPERTS},
    "qwen3-moe-unnormalised": {"model_type": "qwen3_moe", "norm_topk_prob": False, "rope_theta": 1e6, **_EXPERTS},
}


def config_of(family: str) -> dict[str, Any]:
    """The config.json of a tiny model."""
    return {**_COMMON, **FAMILIES[family]}


def head_dim_of(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def tensors_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names that transformers saves them by: none is zero or one, so none can be left out."""
    made = torch.Generator().manual_seed(seed)
    hidden, vocab, width = config["hidden_size"], config["vocab_size"], head_dim_of(config)
    found: dict[str, Tensor] = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = False) -> None:
        found[f"{name}.weight"] = torch.randn(rows, columns, generator=made) * columns**-0.5
        if bias:
            found[f"{name}.bias"] = torch.randn(rows, generator=made) * 0.2

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=made)

    found["model.embed_tokens.weight"] = torch.randn(vocab, hidden, generator=made) * 0.5
    kind, bias = config["model_type"], bool(config.get("attention_bias"))
    for at in range(config["num_hidden_layers"]):
        layer = f"model.layers.{at}"
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
            matrix(f"{layer}.self_attn.{name}_proj", config[heads] * width, hidden, bias or kind == "qwen2")
        matrix(f"{layer}.self_attn.o_proj", hidden, config["num_attention_heads"] * width, bias)
        if kind.startswith("qwen3"):
            norm(f"{layer}.self_attn.q_norm", width)
            norm(f"{layer}.self_attn.k_norm", width)
        if kind in ("mixtral", "qwen3_moe"):
            block, names, count, ffn = expert_names(config)
            matrix(f"{layer}.{block}.gate", count, hidden)
            for expert in range(count):
                for name, (rows, columns) in zip(names, ((ffn, hidden), (ffn, hidden), (hidden, ffn)), strict=True):
                    matrix(f"{layer}.{block}.experts.{expert}.{name}", rows, columns)
        else:
            ffn, biased = config["intermediate_size"], bool(config.get("mlp_bias"))
            matrix(f"{layer}.mlp.gate_proj", ffn, hidden, biased)
            matrix(f"{layer}.mlp.up_proj", ffn, hidden, biased)
            matrix(f"{layer}.mlp.down_proj", hidden, ffn, biased)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", vocab, hidden)
        found["lm_head.weight"] *= 3
    return found


def expert_names(config: Mapping[str, Any]) -> tuple[str, tuple[str, str, str], int, int]:
    if config["model_type"] == "mixtral":
        return "block_sparse_moe", ("w1", "w3", "w2"), config["num_local_experts"], config["intermediate_size"]
    return "mlp", ("gate_proj", "up_proj", "down_proj"), config["num_experts"], config["moe_intermediate_size"]


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint as transformers writes it: config.json and one safetensors file, or several and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file({name: tensors[name] for name in names}, folder / "model.safetensors")
        return folder
    index = {}
    for at in range(shards):
        file = f"model-{at + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[at::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        index.update(dict.fromkeys(mine, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@dataclass
class Story:
    """A request as the cache sees it: what it says, where its blocks are, how much of it is computed."""

    tokens: list[int]
    table: list[int]
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)
    """One row [vocab] per token computed so far."""


def story(tokens: Sequence[int], free: list[int], more: int = 0) -> Story:
    """A request that takes the blocks for its tokens, and `more` to come, from the end of `free`."""
    blocks = -(-(len(tokens) + more) // BLOCK_TOKENS)
    return Story(list(tokens), [free.pop() for _ in range(blocks)])


def step(
    model: Model,
    cache: KvCache,
    prefill: Sequence[tuple[Story, int]] = (),
    decode: Sequence[Story] = (),
    *,
    width: int = 1,
    padding: int = 0,
) -> None:
    """One forward: the next n tokens of each of `prefill`, the next `width` of each of `decode`; keeps the logits.

    `padding` more decode rows are computed for nobody, as a captured graph has them.
    """
    jobs = [*prefill, *((item, width) for item in decode)]
    tokens, positions, slots = [], [], []
    for item, count in jobs:
        for at in range(item.computed, item.computed + count):
            tokens.append(item.tokens[at])
            positions.append(at)
            slots.append(item.table[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS)
    idle = padding * width
    place = model.device
    batch = ForwardBatch(
        tokens=_int32([*tokens, *[0] * idle], place),
        positions=_int32([*positions, *[0] * idle], place),
        slots=_int32([*slots, *[-1] * idle], place),
        logits_rows=_int32(range(len(tokens)), place),
        prefill=_prefill_part(prefill, place) if prefill else None,
        decode=_decode_part(decode, width, padding, place) if decode or padding else None,
    )
    logits = model.forward(batch, cache).cpu()
    start = 0
    for item, count in jobs:
        item.logits.extend(logits[start : start + count])
        item.computed += count
        start += count


def _prefill_part(jobs: Sequence[tuple[Story, int]], place: torch.device) -> PrefillPart:
    starts = [0]
    for _, count in jobs:
        starts.append(starts[-1] + count)
    lengths = [item.computed + count for item, count in jobs]
    most = max(count for _, count in jobs)
    tables = _tables([item for item, _ in jobs], place)
    return PrefillPart(_int32(starts, place), _int32(lengths, place), tables, most)


def _decode_part(jobs: Sequence[Story], width: int, padding: int, place: torch.device) -> DecodePart:
    lengths = [*(item.computed + width for item in jobs), *[0] * padding]
    return DecodePart(width, _int32(lengths, place), _tables([*jobs, *[Story([], [])] * padding], place))


def _tables(items: Sequence[Story], place: torch.device) -> Tensor:
    columns = max(1, *(len(item.table) for item in items))
    return _int32([[*item.table, *[0] * (columns - len(item.table))] for item in items], place)


def _int32(values: Any, place: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=place)


def greedy(model: Model, cache: KvCache, stories: Sequence[Story], new_tokens: int, chunk: int) -> list[list[int]]:
    """Each request's next tokens, the best every time; prompts in chunks, each decoding as soon as its own is in."""
    prompts = [len(item.tokens) for item in stories]
    while any(len(item.tokens) < prompt + new_tokens for item, prompt in zip(stories, prompts, strict=True)):
        going = [item for item, n in zip(stories, prompts, strict=True) if len(item.tokens) < n + new_tokens]
        decode = [item for item in going if item.computed and len(item.tokens) - item.computed == 1]
        prefill = [(it, min(chunk, len(it.tokens) - it.computed)) for it in going if it not in decode]
        step(model, cache, prefill, decode)
        for item in going:
            if item.computed == len(item.tokens):
                item.tokens.append(int(item.logits[-1].argmax()))
    return [item.tokens[prompt:] for item, prompt in zip(stories, prompts, strict=True)]
