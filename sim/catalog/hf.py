"""A ModelSpec from a Hugging Face checkpoint: its config.json, and beside it what quantisers and safetensors wrote.

No weights are read, no network is used, no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.assembly import typed, uniform
from sim.catalog.families import ALIASES, FAMILIES, REFUSED, STATEFUL, family_of, supported
from sim.catalog.hf_config import REQUIRED, Config, shown
from sim.catalog.layers import Anatomy
from sim.catalog.quantization import scheme_of
from sim.catalog.safetensors import checkpoint_bytes, has_weights
from sim.catalog.schemes import Scheme
from sim.catalog.spellings import CLASSES, SPELLINGS, TEXTS
from sim.catalog.towers import tower_of
from sim.specs.blocks import Block
from sim.specs.checks import MAX_COUNT
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE
from sim.specs.shape import LARGEST
from traces.schema import InputError

_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "half": "fp16", "float": "fp32"}
LOADED_AS = {"fp32": "bf16"}
"""What engines load a type as where nothing else is asked for: vLLM's `dtype=auto` makes float32, and an absent type,
bf16 (config/model.py, `_resolve_auto_dtype`)."""
_TEXTS = ("text_config", "llm_config", "language_config")


def from_hf_config(path: str | Path) -> ModelSpec:
    """The model that a Hugging Face `config.json` describes, named after its folder.

    Raises InputError naming the file and the key when the architecture is unknown, a key is missing or of the wrong
    type, or the file asks for what is not modelled.
    """
    whole = Config.read(Path(path))
    return from_table(whole, name=whole.path.resolve().parent.name, source=str(whole.path), beside=True)


def from_table(whole: Config, *, name: str, source: str, beside: bool = False) -> ModelSpec:
    """The same of a table that was read already; with `beside` what lies beside its file is read too."""
    if isinstance(whole.table.get("thinker_config"), dict):  # Qwen's Omni models speak with a part of their own
        whole = _inner(whole, "thinker_config")
    config = _text_model(whole)
    kind = config.table["model_type"]
    scheme = scheme_of(config, whole, beside=beside)
    stored = stored_dtype(config)
    # Weights that lie beside in fp32 are run as they are, live and simulated alike.
    dtype = stored if beside and has_weights(whole.path.parent) else LOADED_AS.get(stored, stored)
    common = _common(config)
    counted: list[str] = []
    tower = tower_of(whole, common["hidden"], counted)
    keys: dict[str, Any] = {
        "name": name,
        "source": source,
        "dtype": dtype,
        "kv_dtype": scheme.kv_dtype if scheme and scheme.kv_dtype else dtype,
        "weights": scheme.weights if scheme else "auto",
    }
    try:
        if kind in ARCHITECTURES:
            spec = ModelSpec(**keys, **{**common, **ARCHITECTURES[kind](config), "beside": tower})
            if scheme is not None:
                spec = _with_types(spec, uniform(spec), scheme)
        else:
            spec = _with_blocks(FAMILIES[kind](config), common, keys, scheme, tower)
        counted = [text for text in (spec.counted, *counted) if text]
        spec = replace(spec, counted="; ".join(counted))
        if beside:
            spec = replace(spec, checkpoint_bytes=checkpoint_bytes(whole.path.parent, spec))
    except InputError as error:
        sentence = str(error)
        raise InputError(sentence if str(whole.path.parent) in sentence else f"{whole.path}: {sentence}") from None
    return spec


def _with_types(spec: ModelSpec, layers: Sequence[Block], scheme: Scheme) -> ModelSpec:
    """The model with blocks where its matrices are of several types, and else as it is."""
    blocks = typed(layers, scheme)
    kinds = {
        matrix.weights for block in blocks for matrix in block.matrices if matrix.modules and matrix.name != "router"
    }
    if kinds == {"auto"}:
        return spec
    if kinds == {"plain"}:
        return replace(spec, weights="auto")
    return _main_type(replace(spec, **_uniform_as_blocks(spec), blocks=blocks))


def _uniform_as_blocks(spec: ModelSpec) -> dict[str, Any]:
    """Fields whose arithmetic the blocks have taken over."""
    return {"kv_lora_rank": 0, "q_lora_rank": 0, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0, "v_head_dim": 0}


def _main_type(spec: ModelSpec) -> ModelSpec:
    """Where the checkpoint names no type for all, the one that most of its quantised parameters have becomes it."""
    if spec.weights != "auto":
        return spec
    sizes: dict[str, int] = {}
    for block in spec.blocks:
        for matrix in block.matrices:
            k, n = matrix.sides(SINGLE)
            kind = matrix.weights if matrix.weights != "plain" else "auto"
            sizes[kind] = sizes.get(kind, 0) + block.layers * matrix.count * k * n
    kinds = {kind: size for kind, size in sizes.items() if kind != "auto"}
    if not kinds:
        return spec
    main = max(kinds, key=lambda kind: kinds[kind])
    swap = {"auto": "plain", main: "auto"}
    blocks = tuple(
        replace(
            block,
            matrices=tuple(replace(each, weights=swap.get(each.weights, each.weights)) for each in block.matrices),
        )
        for block in spec.blocks
    )
    return replace(spec, weights=main, blocks=blocks)


def _with_blocks(
    shape: Anatomy, common: dict[str, Any], keys: dict[str, Any], scheme: Scheme | None, tower: int
) -> ModelSpec:
    """A model of layers of several kinds; the fields that describe it are those of its largest kinds."""
    blocks = typed(shape.layers, scheme)
    caches = [block.cache for block in blocks if block.cache]
    attended = max(caches, key=lambda cache: (cache.window_tokens == 0, cache.heads), default=None)
    windowed = [block for block in blocks if block.window_tokens]
    fields: dict[str, Any] = {
        **common,
        "layers": len(shape.layers),
        "ffn": max((_width(block, "mlp down") for block in blocks), default=0),
        "experts": max(block.experts for block in blocks),
        "experts_per_token": max(block.visited for block in blocks),
        "expert_ffn": max(_width(block, "expert down") for block in blocks),
        "shared_expert_ffn": max(_width(block, "shared expert down") for block in blocks),
        "tied_embeddings": shape.tied,
        "norm": shape.norm,
        "sliding_window_tokens": max((block.window_tokens for block in windowed), default=0),
        "sliding_layers": sum(block.layers for block in windowed),
    }
    if fields["experts"]:
        fields["leading_dense_layers"] = sum(block.layers for block in blocks if not block.experts)
    if attended is not None:
        fields |= {
            "heads": attended.heads,
            "kv_heads": attended.kv_heads or attended.heads,
            "head_dim": attended.key_dim,
        }
    beside = shape.beside + tower
    spec = ModelSpec(
        **keys, **fields, blocks=blocks, beside=beside, counted=shape.counted, unpriced=shape.unpriced
    )  # fmt: skip
    return _main_type(spec)


def _width(block: Block, name: str) -> int:
    return next((matrix.sides(SINGLE)[0] for matrix in block.matrices if matrix.name == name), 0)


def _text_model(whole: Config) -> Config:
    """The language model of a checkpoint, with what its class has where a file leaves it out, and its family."""
    kind = whole.table.get("model_type")
    config = whole
    for key in _TEXTS:
        if isinstance(whole.table.get(key), dict) and whole.table[key]:
            config = _inner(whole, key)
            break
    else:
        if kind == "gemma3":
            whole.section("text_config")
    own = config.table.get("model_type")
    for name in (own, kind):
        family = family_of(name)
        if family == "deepseek_v2" and config.table.get("use_mla") is False:
            family = "deepseek"  # the first DeepSeek's attention under the second's name (DeepSeek-VL2-tiny, -OCR)
        if family is not None:
            return _completed(config, str(name), family, outer=str(kind) if config is not whole else "")
        if isinstance(name, str) and name in REFUSED:
            raise InputError(f"{whole.path}: model_type = {name!r} is not supported: {REFUSED[name]}")
    unknown = kind if own in (None, kind) else own
    raise InputError(
        f"{whole.path}: model_type = {shown(unknown)} is not supported; supported are {', '.join(supported())}"
    )


def _completed(config: Config, name: str, family: str, outer: str) -> Config:
    """The table with what its class has where the file leaves it out, and with the catalog's spellings."""
    defaults = {**CLASSES.get(outer, {}), **CLASSES.get(name, {}), **(TEXTS.get(family, {}) if outer else {})}
    there = {key: value for key, value in config.table.items() if value is not None or key not in defaults}
    return Config(
        config.path, {**defaults, **there, "model_type": family}, config.prefix, SPELLINGS.get(name, {})
    )  # fmt: skip


def _inner(whole: Config, key: str) -> Config:
    """The inner table, with what stands outside of it and holds for it as well."""
    inner = whole.section(key)
    outer = ("dtype", "torch_dtype", "quantization_config", "compression_config", "tie_word_embeddings")
    shared = {name: whole.table[name] for name in outer if whole.table.get(name) is not None}
    kind = ALIASES.get(str(whole.table.get("model_type")), whole.table.get("model_type"))
    return Config(
        whole.path,
        {"model_type": kind, **shared, **{k: v for k, v in inner.items() if v is not None or k not in shared}},
    )


def stored_dtype(config: Config) -> str:
    """The type that the file names; `dtype` since transformers 4.56, `torch_dtype` before."""
    text = config.table.get("dtype") or config.table.get("torch_dtype") or "float32"
    if isinstance(text, str) and text.startswith("torch."):
        text = text.removeprefix("torch.")
    if not isinstance(text, str) or text not in _DTYPES:
        raise InputError(f"{config.path}: dtype = {shown(text)} is none of {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _common(config: Config) -> dict[str, Any]:
    lacking = 1 if config.table["model_type"] in STATEFUL else REQUIRED
    heads = config.within("num_attention_heads", 1, LARGEST["heads"], lacking)
    hidden = config.within("hidden_size", 1, LARGEST["hidden"])
    head_dim = hidden // heads
    if config.table.get("head_dim") is None and hidden % heads and config.table["model_type"] in ARCHITECTURES:
        raise InputError(f"{config.path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return {
        "layers": config.within(
            "num_hidden_layers",
            1,
            LARGEST["layers"],
            1 if config.table["model_type"] == "nemotron_h" else REQUIRED,
        ),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": config.within("head_dim", 1, LARGEST["head_dim"], max(1, head_dim)),
        "vocab": config.within("vocab_size", 1, MAX_COUNT),
        "max_context_tokens": _context_tokens(config),
    }


def _context_tokens(config: Config) -> int:
    """`max_position_embeddings`, stretched by a rope rule that says so, as vLLM derives max_model_len.

    Rope settings are `rope_scaling` (null or absent without one) up to transformers 4, `rope_parameters` (always there)
    since 5. llama3 scaling, and that of Gemma 3, is already in `max_position_embeddings`; linear, dynamic and yarn
    multiply the length that they start from.
    """
    positions = config.within("max_position_embeddings", 1, MAX_COUNT, config.table.get("model_max_length") or REQUIRED)
    if config.table["model_type"] == "gemma3_text":
        return positions
    key = "rope_parameters" if config.table.get("rope_parameters") is not None else "rope_scaling"
    rope = config.table.get(key)
    if rope is None:
        return positions
    if not isinstance(rope, dict):
        raise InputError(f"{config.path}: {key} must be an object")
    if any(isinstance(each, dict) for each in rope.values()):  # rules by the kind of layer: the widest is the model's
        return positions
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3", "longrope", "su", "mrope", "proportional"):
        return positions
    if kind not in ("linear", "dynamic", "yarn", "deepseek_yarn"):
        raise InputError(f"{config.path}: {key}.rope_type = {shown(kind)} is not supported")
    factor = rope.get("factor", 1.0)
    original = rope.get("original_max_position_embeddings") or positions
    numbers = (factor, original)
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e9 for x in numbers):
        raise InputError(f"{config.path}: {key}.factor and .original_max_position_embeddings must be positive")
    return max(positions, int(original * factor))
