"""What is particular to each Hugging Face architecture, as fields of ModelSpec. It reads no file.

Key names and defaults are those of the configuration classes of transformers (4.40 to 5.x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.catalog.hf_config import Config
from sim.catalog.readings import mtp_left_out
from traces.schema import InputError


def _llama(config: Config) -> dict[str, Any]:
    attention_bias = config.flag("attention_bias", False)
    return {
        **_gated(config),
        "kv_heads": config.count("num_key_value_heads", config.count("num_attention_heads")),
        "qkv_bias": attention_bias,
        "attention_output_bias": attention_bias,
        "mlp_bias": config.flag("mlp_bias", False),
    }


def _gated(config: Config, tied: bool = False) -> dict[str, Any]:
    return {"ffn": config.count("intermediate_size"), "tied_embeddings": config.flag("tie_word_embeddings", tied)}


def _window(config: Config, tokens: int, layers: int) -> dict[str, Any]:
    """A window of `tokens` (0: none) in `layers` layers, unless the file lists the layers' types."""
    types = config.table.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or any(kind not in known for kind in types):
            raise InputError(f"{config.path}: layer_types must be a list of {' and '.join(known)}")
        if len(types) != config.count("num_hidden_layers"):
            raise InputError(f"{config.path}: layer_types has {len(types)} entries, one for each layer is needed")
        layers = types.count("sliding_attention")
        if layers and not tokens:
            raise InputError(f"{config.path}: layer_types has sliding_attention, and there is no sliding_window")
    return {"sliding_window_tokens": tokens, "sliding_layers": layers} if tokens and layers > 0 else {}


def _mistral(config: Config) -> dict[str, Any]:
    return {
        **_gated(config),
        **_window(config, config.optional("sliding_window", 4096), config.count("num_hidden_layers")),
        "kv_heads": config.count("num_key_value_heads", 8),
    }


def _mixtral(config: Config) -> dict[str, Any]:
    return {
        **_window(config, config.optional("sliding_window", 0), config.count("num_hidden_layers")),
        "tied_embeddings": config.flag("tie_word_embeddings", False),
        "kv_heads": config.count("num_key_value_heads", 8),
        "ffn": 0,
        "experts": config.count("num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": config.count("intermediate_size"),
    }


def _qwen2(config: Config) -> dict[str, Any]:
    tokens = config.optional("sliding_window", 4096) if config.flag("use_sliding_window", False) else 0
    full_layers = config.count("max_window_layers", 28)
    return {
        **_gated(config),
        **_window(config, tokens, config.count("num_hidden_layers") - full_layers),
        "kv_heads": config.count("num_key_value_heads", 32),
        "qkv_bias": True,
    }


def _qwen3(config: Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    return {**_qwen2(config), "qk_norm": True, "qkv_bias": bias, "attention_output_bias": bias}


def _qwen3_moe(config: Config) -> dict[str, Any]:
    config.demand("decoder_sparse_step", 1, "every layer must have experts")
    config.demand("mlp_only_layers", [], "every layer must have experts")
    return {
        **_qwen3(config),
        "ffn": 0,
        "experts": config.either("num_experts", "num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": config.count("moe_intermediate_size"),
    }


def _opt(config: Config) -> dict[str, Any]:
    config.demand("word_embed_proj_dim", config.count("hidden_size"), "embeddings must be as wide as the layers")
    config.demand("do_layer_norm_before", True, "the norm must stand before each block")
    config.demand("layer_norm_elementwise_affine", True, "norms must have weights")
    bias = config.flag("enable_bias", True)
    return {
        "ffn": config.count("ffn_dim"),
        "kv_heads": config.count("num_attention_heads"),
        "gated_mlp": False,
        "tied_embeddings": config.flag("tie_word_embeddings", True),
        "norm": "layer",
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "learned_positions": config.count("max_position_embeddings") + 2,
    }


def _phi3(config: Config) -> dict[str, Any]:
    return {
        **_gated(config),
        **_window(config, config.optional("sliding_window", 0), config.count("num_hidden_layers")),
        "kv_heads": config.count("num_key_value_heads", config.count("num_attention_heads")),
    }


def _gemma(config: Config) -> dict[str, Any]:
    return {
        **_gated(config, tied=True),
        "kv_heads": config.count("num_key_value_heads", 16),
        "head_dim": config.count("head_dim", 256),
    }


def _gemma2(config: Config) -> dict[str, Any]:
    layers = config.count("num_hidden_layers")
    bias = config.flag("attention_bias", False)
    return {
        **_gated(config, tied=True),
        **_window(config, config.optional("sliding_window", 4096), (layers + 1) // 2),
        "kv_heads": config.count("num_key_value_heads", 4),
        "head_dim": config.count("head_dim", 256),
        "post_norms": True,
        "qkv_bias": bias,
        "attention_output_bias": bias,
    }


def _gemma3(config: Config) -> dict[str, Any]:
    """Every so many-th layer is full; the image encoder of the larger ones is left out."""
    layers, pattern = config.count("num_hidden_layers"), config.count("sliding_window_pattern", 6)
    if pattern < 1:
        raise InputError(f"{config.path}: sliding_window_pattern = {pattern} must be at least 1")
    window = _window(config, config.optional("sliding_window", 4096), layers - layers // pattern)
    unset = {"sliding_window_tokens": 0, "sliding_layers": 0}
    return {**_gemma2(config), **unset, **window, "qk_norm": True}


def _gpt_oss(config: Config) -> dict[str, Any]:
    layers = config.count("num_hidden_layers")
    bias = config.flag("attention_bias", True)
    return {
        **_window(config, config.optional("sliding_window", 128), (layers + 1) // 2),
        "tied_embeddings": config.flag("tie_word_embeddings", False),
        "ffn": 0,
        "kv_heads": config.count("num_key_value_heads", 8),
        "head_dim": config.count("head_dim", 64),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": True,
        "router_bias": True,
        "head_sinks": True,
        "experts": config.count("num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": config.count("intermediate_size"),
    }


def _deepseek_v2(config: Config) -> dict[str, Any]:
    """Its `head_dim`, where present, is that of the rotary part; prediction of further tokens (MTP) is left out."""
    config.demand("attention_bias", False, "projections must have no biases")
    config.demand("moe_layer_freq", 1, "every layer after the first ones must have experts")
    nope, rope = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    width = config.count("moe_intermediate_size")
    return {
        **_gated(config),
        "kv_heads": config.count("num_key_value_heads", config.count("num_attention_heads")),
        "head_dim": nope + rope,
        "experts": config.either("n_routed_experts", "num_routed_experts", "num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": width,
        "shared_expert_ffn": width * config.either("n_shared_experts", "num_shared_experts", default=0),
        "leading_dense_layers": config.count("first_k_dense_replace", 0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "q_lora_rank": config.optional("q_lora_rank", 1536),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": nope,
        "v_head_dim": config.count("v_head_dim"),
    }


def _deepseek_v3(config: Config) -> dict[str, Any]:
    return {**_deepseek_v2(config), "router_bias": True, "counted": mtp_left_out(config)}


ARCHITECTURES: Mapping[str, Callable[[Config], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "opt": _opt,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}
"""By `model_type`: what is particular to an architecture, as fields of ModelSpec."""
