"""A ModelSpec from a Hugging Face config.json. It reads that one file only: no weights, no network, no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.hf_config import Config
from sim.specs.model import ModelSpec
from traces.schema import InputError

_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "half": "fp16", "float": "fp32"}
_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}
"""Defaults of transformers' Gemma3TextConfig."""


def from_hf_config(path: str | Path) -> ModelSpec:
    """The model that a Hugging Face `config.json` describes, named after its folder.

    Raises InputError naming the file and the key when the architecture is unknown, a key is missing or of the wrong
    type, or the file asks for what is not modelled (a quantisation other than fp8, AWQ and GPTQ).
    """
    config = _text_model(Config.read(Path(path)))
    kind = config.table.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InputError(
            f"{config.path}: model_type = {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}, gemma3"
        )
    dtype = _dtype(config)
    keys = {**_common(config), **ARCHITECTURES[kind](config)}
    try:
        return ModelSpec(
            name=config.path.resolve().parent.name,
            source=str(config.path),
            dtype=dtype,
            kv_dtype=dtype,
            weights=_weights(config),
            **keys,
        )
    except InputError as error:
        raise InputError(f"{config.path}: {error}") from None


def _text_model(config: Config) -> Config:
    """The language model of a Gemma 3 that sees images, whose file leaves out what is as in the class."""
    if config.table.get("model_type") != "gemma3":
        return config
    own: dict[str, Any] = {
        key: config.table[key] for key in ("dtype", "torch_dtype", "quantization_config") if key in config.table
    }
    return Config(config.path, {**_GEMMA3, **own, **config.section("text_config"), "model_type": "gemma3_text"})


def _weights(config: Config) -> str:
    """The type of the weights; of quantised ones, those whose bytes are known."""
    if config.table.get("quantization_config") is None:
        return "auto"
    table = config.section("quantization_config")
    method, bits, group = (table.get(key) for key in ("quant_method", "bits", "group_size"))
    if method == "fp8":
        return "fp8"
    if (method, bits) in (("awq", 4), ("gptq", 4), ("gptq", 8)) and group == 128:
        return f"int{bits}"
    raise InputError(
        f"{config.path}: quantization_config with quant_method = {method!r}, bits = {bits!r}, group_size = {group!r} "
        "is not supported; supported are fp8, and awq with 4 bits or gptq with 4 or 8 bits in groups of 128"
    )


def _dtype(config: Config) -> str:
    """`dtype` since transformers 4.56, `torch_dtype` before."""
    text = config.table.get("dtype") or config.table.get("torch_dtype") or "float32"
    if not isinstance(text, str) or text not in _DTYPES:
        raise InputError(f"{config.path}: dtype = {text!r} is none of {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _common(config: Config) -> dict[str, Any]:
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


def _context_tokens(config: Config) -> int:
    """`max_position_embeddings`, stretched by a rope rule that says so, as vLLM derives max_model_len.

    Rope settings are `rope_scaling` (null or absent without one) up to transformers 4, `rope_parameters` (always there)
    since 5. llama3 scaling, and that of Gemma 3, is already in `max_position_embeddings`; linear, dynamic and yarn
    multiply the length that they start from.
    """
    positions = config.count("max_position_embeddings")
    if config.table["model_type"] == "gemma3_text":
        return positions
    key = "rope_parameters" if config.table.get("rope_parameters") is not None else "rope_scaling"
    rope = config.table.get(key)
    if rope is None:
        return positions
    if not isinstance(rope, dict):
        raise InputError(f"{config.path}: {key} must be an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3", "longrope", "su"):
        return positions
    if kind not in ("linear", "dynamic", "yarn"):
        raise InputError(f"{config.path}: {key}.rope_type = {kind!r} is not supported")
    factor = rope.get("factor", 1.0)
    original = rope.get("original_max_position_embeddings") or positions
    numbers = (factor, original)
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e9 for x in numbers):
        raise InputError(f"{config.path}: {key}.factor and .original_max_position_embeddings must be positive")
    return max(positions, int(original * factor))
