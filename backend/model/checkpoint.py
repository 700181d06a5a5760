"""What a checkpoint's config.json says beyond `ModelSpec`: rotary rule, norms, windows, routing, end tokens.

It reads JSON files and no weights. It also says which models `backend.model.model` can run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.model.rope import ROPE_KINDS, RopeSpec, yarn_attention_factor
from sim.specs.model import ModelSpec
from traces import documents
from traces.schema import InputError

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
"""The `model_type`s that can be run."""

_KNOWN = ", ".join(FAMILIES)
_DEFAULT_THETA = {"mixtral": 1_000_000.0}
_DEFAULT_EPS = {"mixtral": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """The part of a config.json that the arithmetic of a forward pass needs and a cost model does not.

    `windows` holds one number per layer, 0 for full attention. `renormalise_experts` divides the chosen experts'
    probabilities by their sum. `eos_tokens` end a generation; there may be none. With `byte_level`, our own key of
    config.json, ids below 256 are the bytes of a text.
    """

    family: str
    windows: tuple[int, ...]
    rope: RopeSpec = field(default_factory=RopeSpec)
    norm_eps: float = 1e-5
    renormalise_experts: bool = True
    eos_tokens: tuple[int, ...] = ()
    byte_level: bool = False


def check_supported(spec: ModelSpec) -> None:
    """Raises InputError, naming the families that can be run, for a model of another kind."""
    other = {
        "layers of several kinds": bool(spec.blocks),
        "latent attention (MLA)": spec.is_latent,
        "norms other than RMSNorm": spec.norm != "rms",
        "four norms a layer": spec.post_norms,
        "learned positions": spec.learned_positions > 0,
        "an MLP without a gate": not spec.gated_mlp,
        "sink logits of heads": spec.head_sinks,
        "a bias of the router": spec.router_bias,
        "shared experts": spec.shared_expert_ffn > 0,
        "experts in some layers only": spec.leading_dense_layers > 0,
        "biases of experts": spec.experts > 0 and spec.mlp_bias,
    }
    for what, present in other.items():
        if present:
            raise InputError(f"model {spec.name!r} has {what}, which no live model here has; known are {_KNOWN}")
    if spec.head_dim not in (16, 32, 64, 128, 256):
        raise InputError(f"model {spec.name!r}: head_dim {spec.head_dim} is none of 16, 32, 64, 128, 256")


def without_checkpoint(spec: ModelSpec) -> CheckpointConfig:
    """What is assumed of a model that has no config.json: the published settings of the catalog's, else Llama's.

    They change no shape and no cost. Raises InputError for a model that cannot be run, and where only some layers have
    a window (a ModelSpec does not say which).
    """
    check_supported(spec)
    if spec.sliding_layers not in (0, spec.layers):
        raise InputError(
            f"model {spec.name!r}: {spec.sliding_layers} of {spec.layers} layers have a window, but not which; "
            "give the folder of a checkpoint"
        )
    family, rope, eps = "llama", RopeSpec(), 1e-5
    for prefix, settings in _CATALOG.items():
        if spec.name.startswith(prefix):
            family, rope, eps = settings
    return CheckpointConfig(family=family, windows=(spec.sliding_window_tokens,) * spec.layers, rope=rope, norm_eps=eps)


_LLAMA31 = RopeSpec(
    kind="llama3", theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_tokens=8192
)
_MILLION = RopeSpec(theta=1_000_000.0)
# config.json of each model's repository on huggingface.co (the sources that the catalog names).
_CATALOG: Mapping[str, tuple[str, RopeSpec, float]] = {
    "llama-3.1": ("llama", _LLAMA31, 1e-5),
    "mistral-7b": ("mistral", _MILLION, 1e-5),
    "mixtral": ("mixtral", _MILLION, 1e-5),
    "qwen3": ("qwen3", _MILLION, 1e-6),
    "qwen3-30b": ("qwen3_moe", _MILLION, 1e-6),
}


def read_config(folder: Path, spec: ModelSpec) -> CheckpointConfig:
    """The rest of `folder`/config.json, whose sizes `spec` has, and generation_config.json's end tokens.

    Raises InputError naming the file and the key for a family or a setting that cannot be run.
    """
    path = folder / "config.json"
    table = _read(path)
    family = table.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{path}: model_type = {family!r} cannot be run; known are {_KNOWN}")
    check_supported(spec)
    activation = table.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InputError(f"{path}: hidden_act = {activation!r} cannot be run; known is silu")
    generation = folder / "generation_config.json"
    ends = _read(generation).get("eos_token_id") if generation.is_file() else None
    return CheckpointConfig(
        family=family,
        windows=_windows(path, table, spec),
        rope=_rope(path, table, family),
        norm_eps=_number(path, table, "rms_norm_eps", _DEFAULT_EPS.get(family, 1e-6)),
        renormalise_experts=family != "qwen3_moe" or table.get("norm_topk_prob") is True,
        eos_tokens=_tokens(path, table.get("eos_token_id") if ends is None else ends),
        byte_level=_byte_level(path, table, spec),
    )


def _read(path: Path) -> dict[str, Any]:
    table = documents.json_file(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return table


def _number(path: Path, table: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = table.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise InputError(f"{path}: {key} = {value!r} must be a positive number")
    return float(value)


def _tokens(path: Path, value: object) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise InputError(f"{path}: eos_token_id = {value!r} must be a token or a list of them")
    return tuple(ids)


def _byte_level(path: Path, table: Mapping[str, Any], spec: ModelSpec) -> bool:
    value = table.get("byte_level", False)
    if not isinstance(value, bool) or (value and spec.vocab < 256):
        raise InputError(f"{path}: byte_level = {value!r} must be true, for a vocabulary of 256 or more, or false")
    return value


def _windows(path: Path, table: Mapping[str, Any], spec: ModelSpec) -> tuple[int, ...]:
    """Each layer's window: as `layer_types` says, else (Qwen) from layer `max_window_layers` on, else everywhere."""
    if not spec.sliding_window_tokens:
        return (0,) * spec.layers
    kinds = table.get("layer_types")
    if kinds is None:
        first = table.get("max_window_layers", 28) if table["model_type"] in ("qwen2", "qwen3") else 0
        sliding = [at >= first for at in range(spec.layers)]
    elif isinstance(kinds, list) and len(kinds) == spec.layers and set(kinds) <= _LAYER_TYPES.keys():
        sliding = [_LAYER_TYPES[kind] for kind in kinds]
    else:
        raise InputError(f"{path}: layer_types must name {spec.layers} layers, each one of {', '.join(_LAYER_TYPES)}")
    return tuple(spec.sliding_window_tokens if here else 0 for here in sliding)


_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}


def _rope(path: Path, table: Mapping[str, Any], family: str) -> RopeSpec:
    """`rope_parameters` since transformers 5; `rope_scaling` (null without one) with `rope_theta` beside it before."""
    rules = table.get("rope_parameters") or table.get("rope_scaling") or {}
    if not isinstance(rules, dict) or any(isinstance(rule, dict) for rule in rules.values()):
        raise InputError(f"{path}: rope_parameters must be one rule for all layers")
    kind = rules.get("rope_type", rules.get("type", "default"))
    if kind not in ROPE_KINDS:
        why = " (it rotates cached keys anew as a sequence grows)" if kind == "dynamic" else ""
        raise InputError(f"{path}: rope type {kind!r} cannot be run{why}; known are {', '.join(ROPE_KINDS)}")
    if {**table, **rules}.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise InputError(f"{path}: partial_rotary_factor cannot be run; all dimensions of a head must rotate")
    theta = _number(path, {**table, **rules}, "rope_theta", _DEFAULT_THETA.get(family, 10_000.0))
    if kind == "default":
        return RopeSpec(theta=theta)
    factor = _number(path, rules, "factor")
    original = rules.get("original_max_position_embeddings") or table.get("max_position_embeddings")
    tokens = int(_number(path, {"original_max_position_embeddings": original}, "original_max_position_embeddings"))
    if kind == "llama3":
        low, high = _number(path, rules, "low_freq_factor"), _number(path, rules, "high_freq_factor")
        return RopeSpec(
            kind=kind, theta=theta, factor=factor, original_tokens=tokens, low_freq_factor=low, high_freq_factor=high
        )
    if kind == "yarn":
        return _yarn(path, rules, theta, factor, tokens)
    return RopeSpec(kind=kind, theta=theta, factor=factor)


def _yarn(path: Path, rules: Mapping[str, Any], theta: float, factor: float, tokens: int) -> RopeSpec:
    scale = rules.get("attention_factor")
    if scale is None:
        scale = yarn_attention_factor(factor, rules.get("mscale"), rules.get("mscale_all_dim"))
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_tokens=tokens,
        beta_fast=_number(path, rules, "beta_fast", 32.0),
        beta_slow=_number(path, rules, "beta_slow", 1.0),
        truncate=rules.get("truncate", True) is not False,
        attention_factor=_number(path, {"attention_factor": scale}, "attention_factor"),
    )
