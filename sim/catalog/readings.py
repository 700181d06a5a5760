"""What several families read alike from a config.json: layers' numbers, heads, windows, experts. It knows no family.

Key names and defaults are those of the configuration classes of transformers (5.x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.catalog.hf_config import Config, shown
from sim.catalog.layers import Anatomy, LayerPart, experts
from traces.schema import InputError

Family = Callable[[Config], Anatomy]
MAX_LAYERS = 10_000
FULL, WINDOWED, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def layers_of(config: Config, key: str = "num_hidden_layers") -> int:
    """The number of layers, which is bounded before anything is made for each."""
    layers = config.count(key)
    if not 1 <= layers <= MAX_LAYERS:
        raise InputError(f"{config.path}: {config.prefix}{key} = {layers} must lie between 1 and {MAX_LAYERS}")
    return layers


def head_dim(config: Config, default: int | None = None) -> int:
    """`head_dim`, or the even share of a head."""
    heads = max(1, config.count("num_attention_heads"))
    return config.count("head_dim", default or config.count("hidden_size") // heads)


def state_type(config: Config, key: str) -> str:
    """The type that a recurrent state is kept in: what the file says, else that of the activations (vLLM, "auto")."""
    kinds = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "auto": "auto"}
    value = config.table.get(key) or "auto"
    if not isinstance(value, str) or value not in kinds:
        raise InputError(f"{config.path}: {config.prefix}{key} = {shown(value)} is none of {', '.join(kinds)}")
    return kinds[value]


def mtp_left_out(config: Config) -> str:
    """What the count says of layers that predict further tokens."""
    keys = ("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_modules")
    if any(config.table.get(key) for key in keys):
        return "layers that predict further tokens (MTP) are left out"
    return ""


def sparse_layers(config: Config, layers: int) -> list[bool]:
    """Which layers have experts: as listed in one of the ways that files have, else all after the first ones."""
    listed = config.kinds("mlp_layer_types", ("sparse", "dense"), layers)
    if listed:
        return [kind == "sparse" for kind in listed]
    frequency = config.table.get("moe_layer_freq")
    if isinstance(frequency, list):
        chosen = config.counts("moe_layer_freq") or []
        if len(chosen) != layers:
            raise InputError(
                f"{config.path}: {config.prefix}moe_layer_freq has {len(chosen)} entries, one for each of {layers} "
                "layers is needed"
            )
        return [value > 0 for value in chosen]
    named = ("first_k_dense_replace", "first_dense_layers", "num_dense_layers")
    first = config.optional(next((key for key in named if key in config.table), named[0]), 0)
    every = max(1, config.count("moe_layer_freq", 1))
    return [index >= first and index % every == 0 for index in range(layers)]


def overridden(config: Config, index: int) -> dict[str, int]:
    """What transformers' `per_layer_config` says of the so many-th layer alone."""
    table = config.table.get("per_layer_config")
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise InputError(f"{config.path}: {config.prefix}per_layer_config must be an object")
    entry = next((each for key, each in table.items() if key.isdecimal() and key.lstrip("0") == str(index or "")), None)
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise InputError(f"{config.path}: {config.prefix}per_layer_config.{index} must be an object")
    inner = Config(config.path, entry, f"{config.prefix}per_layer_config.{index}.")
    keys = ("head_dim", "num_attention_heads", "num_key_value_heads")
    return {key: inner.count(key) for key in keys if entry.get(key) is not None}


def windows_of(config: Config, layers: int, pattern: int, default: int) -> list[int]:
    """The window of each layer, 0 where it attends everything: as `layer_types` lists it, else by the family's rule."""
    tokens = config.optional("sliding_window", default)
    if tokens < 0:
        raise InputError(f"{config.path}: {config.prefix}sliding_window = {tokens} must be at least 0")
    listed = config.kinds("layer_types", (FULL, WINDOWED), layers)
    if listed is not None:
        if not tokens and WINDOWED in listed:
            raise InputError(f"{config.path}: layer_types has {WINDOWED}, and there is no sliding_window")
        return [tokens if kind == WINDOWED else 0 for kind in listed]
    own = config.table.get("sliding_window_pattern")
    if isinstance(own, str):
        if not own or set(own) - set("LG"):
            raise InputError(f"{config.path}: {config.prefix}sliding_window_pattern = {shown(own)} must be of L and G")
        return [tokens if own[index % len(own)] == "L" else 0 for index in range(layers)]
    every = config.count("sliding_window_pattern", pattern) if pattern != 1 else 1
    if every < 0:
        raise InputError(f"{config.path}: {config.prefix}sliding_window_pattern = {every} must be at least 1")
    return [tokens if every == 0 or (index + 1) % every else 0 for index in range(layers)]


def deepseek_experts(config: Config, hidden: int, **more: Any) -> LayerPart:
    """Routed experts of width `moe_intermediate_size` and shared ones that many times as wide."""
    width = config.count("moe_intermediate_size")
    count = config.either("n_routed_experts", "num_routed_experts", "num_local_experts", "num_experts")
    shared = config.either("n_shared_experts", "num_shared_experts", default=0) * width
    visited = config.count("num_experts_per_tok")
    return experts(hidden, count, visited, width, shared=shared, router_bias=more.pop("router_bias", count), **more)
