"""A ModelSpec from a Hugging Face config.json. It reads that one file only: no weights, no network, no code.

Key names and defaults are those of the configuration classes of transformers (4.40 to 5.x).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sim.specs import ModelSpec
from traces.schema import InputError

_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "half": "fp16", "float": "fp32"}
_REQUIRED = object()


class _Config:
    """The JSON object, with lookups that name the file and the key that is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a JSON file: {error}") from None
        if not isinstance(table, dict):
            raise InputError(f"{path}: must hold a JSON object")
        self.table: dict[str, Any] = table

    def count(self, key: str, default: object = _REQUIRED) -> int:
        """The whole number at `key`; a null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{self.path}: {key} = {value!r} must be a whole number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The truth value at `key`; a null counts as absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.path}: {key} = {value!r} must be true or false")
        return value

    def demand(self, key: str, expected: object, meaning: str) -> None:
        """Refuse a variant that the arithmetic would get wrong."""
        if self._get(key, expected) != expected:
            raise InputError(f"{self.path}: {key} = {self.table[key]!r} is not supported ({meaning})")

    def _get(self, key: str, default: object) -> object:
        value = self.table.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise InputError(f"{self.path}: key {key!r} is missing")
        return default


def from_hf_config(path: str | Path) -> ModelSpec:
    """The model that a Hugging Face `config.json` describes, named after its folder.

    Raises InputError naming the file and the key when the architecture is unknown, a key is missing or of the wrong
    type, or the file asks for what is not modelled (quantised weights).
    """
    config = _Config(Path(path))
    kind = config.table.get("model_type")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        raise InputError(
            f"{config.path}: model_type = {kind!r} is not supported; supported are {', '.join(_ARCHITECTURES)}"
        )
    if config.table.get("quantization_config") is not None:
        raise InputError(f"{config.path}: quantization_config is not supported; weights are fp16, bf16 or fp32")
    dtype = _dtype(config)
    keys = {**_common(config), **_ARCHITECTURES[kind](config)}
    try:
        return ModelSpec(
            name=config.path.resolve().parent.name, source=str(config.path), dtype=dtype, kv_dtype=dtype, **keys
        )
    except InputError as error:
        raise InputError(f"{config.path}: {error}") from None


def _dtype(config: _Config) -> str:
    """`dtype` since transformers 4.56, `torch_dtype` before."""
    text = config.table.get("dtype") or config.table.get("torch_dtype") or "float32"
    if not isinstance(text, str) or text not in _DTYPES:
        raise InputError(f"{config.path}: dtype = {text!r} is none of {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _common(config: _Config) -> dict[str, Any]:
    heads = config.count("num_attention_heads")
    hidden = config.count("hidden_size")
    head_dim = hidden // heads if heads > 0 else 0
    if "head_dim" not in config.table and heads > 0 and hidden % heads:
        raise InputError(f"{config.path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return {
        "layers": config.count("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "head_dim": config.count("head_dim", head_dim),
        "vocab": config.count("vocab_size"),
        "max_context_tokens": _context_tokens(config),
    }


def _context_tokens(config: _Config) -> int:
    """`max_position_embeddings`, stretched by a rope rule that says so, as vLLM derives max_model_len.

    Rope settings are `rope_scaling` (null or absent without one) up to transformers 4, `rope_parameters` (always there)
    since 5. llama3 scaling is already in `max_position_embeddings`; linear, dynamic and yarn multiply the length
    that they start from.
    """
    positions = config.count("max_position_embeddings")
    key = "rope_parameters" if config.table.get("rope_parameters") is not None else "rope_scaling"
    rope = config.table.get(key)
    if rope is None:
        return positions
    if not isinstance(rope, dict):
        raise InputError(f"{config.path}: {key} must be an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in {"default", "llama3", "longrope", "su"}:
        return positions
    if kind not in {"linear", "dynamic", "yarn"}:
        raise InputError(f"{config.path}: {key}.rope_type = {kind!r} is not supported")
    factor = rope.get("factor", 1.0)
    original = rope.get("original_max_position_embeddings") or positions
    numbers = (factor, original)
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e9 for x in numbers):
        raise InputError(f"{config.path}: {key}.factor and .original_max_position_embeddings must be positive")
    return max(positions, int(original * factor))


def _llama(config: _Config) -> dict[str, Any]:
    attention_bias = config.flag("attention_bias", False)
    return {
        **_gated(config),
        "kv_heads": config.count("num_key_value_heads", config.count("num_attention_heads")),
        "qkv_bias": attention_bias,
        "attention_output_bias": attention_bias,
        "mlp_bias": config.flag("mlp_bias", False),
    }


def _gated(config: _Config) -> dict[str, Any]:
    return {"ffn": config.count("intermediate_size"), "tied_embeddings": config.flag("tie_word_embeddings", False)}


def _mistral(config: _Config) -> dict[str, Any]:
    return {
        **_gated(config),
        "kv_heads": config.count("num_key_value_heads", 8),
        "sliding_window_tokens": config.count("sliding_window", 0),
    }


def _mixtral(config: _Config) -> dict[str, Any]:
    return {
        **_mistral(config),
        "ffn": 0,
        "experts": config.count("num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": config.count("intermediate_size"),
    }


def _qwen2(config: _Config) -> dict[str, Any]:
    windowed = config.flag("use_sliding_window", False)
    return {
        **_gated(config),
        "kv_heads": config.count("num_key_value_heads", 32),
        "qkv_bias": True,
        "sliding_window_tokens": config.count("sliding_window", 0) if windowed else 0,
    }


def _qwen3(config: _Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    return {**_qwen2(config), "qk_norm": True, "qkv_bias": bias, "attention_output_bias": bias}


def _qwen3_moe(config: _Config) -> dict[str, Any]:
    config.demand("decoder_sparse_step", 1, "every layer must have experts")
    config.demand("mlp_only_layers", [], "every layer must have experts")
    return {
        **_qwen3(config),
        "ffn": 0,
        "experts": config.count("num_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_ffn": config.count("moe_intermediate_size"),
    }


def _opt(config: _Config) -> dict[str, Any]:
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


_ARCHITECTURES: Mapping[str, Callable[[_Config], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "opt": _opt,
}
