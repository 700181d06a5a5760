"""The types that a checkpoint keeps its weights and its cache in, from what lies on disk beside or in its config.json.

Every common method: fp8, compressed-tensors, ModelOpt (`hf_quant_config.json`), MXFP4, NVFP4, AWQ, GPTQ, AutoRound,
Quark, bitsandbytes, HQQ. What cannot be modelled is refused as what it is. It knows no architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate

from sim.catalog.hf_config import Config
from traces import files
from traces.schema import InputError

SIBLING = "hf_quant_config.json"
_PREFIXES = (
    "model.", "", "model.language_model.", "language_model.model.", "backbone.", "language_model.", "transformer.",
)  # fmt: skip
_TWICE = re.compile(r"\)[*+{]")
_MOST_PATTERN = 500


class Patterns:
    """Names of modules as quantisers write them: whole names, parts of names, globs, and `re:` regular expressions."""

    def __init__(self, where: str, texts: Iterable[object]) -> None:
        self._parts: set[str] = set()
        expressions: list[str] = []
        for text in texts:
            if not isinstance(text, str) or len(text) > _MOST_PATTERN:
                raise InputError(f"{where} must be a list of names of modules of at most {_MOST_PATTERN} characters")
            if text.startswith("re:"):
                expressions.append(_expression(where, text[3:]))
            elif any(sign in text for sign in "*?["):
                expressions += [translate(text), translate(f"{text}.*")]
            else:
                self._parts.add(_within_layers(text))
        self._expressions = [re.compile("|".join(f"(?:{each})" for each in some)) for some in _chunks(expressions)]

    def __bool__(self) -> bool:
        return bool(self._parts or self._expressions)

    def match(self, layer: int, module: str) -> bool:
        """Does one of them name `module` of the so many-th layer, or something that it is part of?"""
        name = f"layers.{layer}.{module}"
        words = name.split(".")
        if any(
            ".".join(words[start:end]) in self._parts
            for start in range(len(words))
            for end in range(start + 1, len(words) + 1)
        ):
            return True
        return any(each.match(prefix + name) for each in self._expressions for prefix in _PREFIXES)


def _chunks(texts: list[str]) -> Iterable[list[str]]:
    return (texts[start : start + 200] for start in range(0, len(texts), 200))


def _within_layers(text: str) -> str:
    """A name without what stands before `layers.`, which every family calls otherwise."""
    _, found, rest = text.rpartition("layers.")
    return f"layers.{rest}".strip(".") if found else text.strip(".")


def _expression(where: str, text: str) -> str:
    """A regular expression that costs no more than its length; nested repeats could take for ever."""
    if _TWICE.search(text):
        raise InputError(f"{where} has the expression {text!r}, which repeats a group; that is not read")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise InputError(f"{where} has {text!r}, which is no regular expression") from None
    return text


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a checkpoint's quantisation says: the matrices' type, "auto" for the activations'; those of `plain` modules
    stay as they are, and modules of `own` have types of their own. `kv_dtype` is "" unless the checkpoint says it."""

    weights: str
    plain: Patterns
    own: tuple[tuple[Patterns, str], ...] = ()
    kv_dtype: str = ""

    def type_of(self, layer: int, modules: Iterable[str]) -> str:
        """The type of a matrix that is stored as these modules: "plain", "auto" for `weights`, or its own."""
        names = tuple(modules)
        if any(self.plain.match(layer, name) for name in names):
            return "plain"
        for patterns, kind in self.own:
            if any(patterns.match(layer, name) for name in names):
                return kind
        return "auto"


def scheme_of(config: Config, *outer: Config, beside: bool = True) -> Scheme | None:
    """The scheme that a config, the config around it, or (with `beside`) the file next to it tells, or None.

    Raises:
        InputError: a method, an algorithm or a number of bits that is not modelled, by its name.
    """
    for each in (*outer, config):
        for key in ("quantization_config", "compression_config"):
            if each.table.get(key) is not None:
                return _read(Config(each.path, each.section(key), f"{key}."), _sibling(each) if beside else None)
    table = _sibling(config) if beside else None
    return _modelopt(table) if table is not None else None


def _sibling(config: Config) -> Config | None:
    path = config.path.parent / SIBLING
    if not files.is_file(path):
        return None
    table = Config.read(path)
    return Config(path, table.section("quantization"), "quantization.")


def _read(table: Config, sibling: Config | None) -> Scheme:
    """By `quant_method`; ModelOpt's own tables may lack it."""
    method = table.table.get("quant_method")
    if method is None and table.table.get("quant_algo") is not None:
        method = "modelopt"
    if method is None:
        raise InputError(f"{table.path}: {table.prefix}quant_method is missing; known are {', '.join(_METHODS)}")
    if not isinstance(method, str) or method not in _METHODS:
        raise InputError(
            f"{table.path}: the weights are quantised by {method!r}, whose bytes are not modelled; known are "
            f"{', '.join(_METHODS)}"
        )
    if method.startswith("modelopt") and sibling is not None and "config_groups" not in table.table:
        return _modelopt(Config(sibling.path, {**table.table, **sibling.table}, sibling.prefix))
    return _METHODS[method](table)


def _plain(table: Config, *keys: str) -> Patterns:
    """The modules that these keys leave as they are."""
    texts: list[object] = []
    for key in keys:
        value = table.table.get(key)
        if value is not None and not isinstance(value, list):
            raise InputError(f"{table.path}: {table.prefix}{key} must be a list of names of modules")
        texts += value or []
    return Patterns(f"{table.path}: {table.prefix}{'/'.join(keys)}", texts)


def _integers(bits: int, group: int, symmetric: bool = False) -> str:
    """The name of an integer type; GPTQ and AWQ pack zero points even where they are symmetric."""
    if group == 128 and bits in (4, 8) and not symmetric:
        return f"int{bits}"
    columns = "channel" if group == -1 else f"g{group}"
    return f"int{bits}-{columns}{'-sym' if symmetric else ''}"


def _bits(table: Config, *keys: str, default: int | None = None) -> int:
    key = next((key for key in keys if table.table.get(key) is not None), keys[0])
    bits = table.count(key) if default is None else table.count(key, default)
    if not 2 <= bits <= 8:
        raise InputError(f"{table.path}: {table.prefix}{key} = {bits} must lie between 2 and 8")
    return bits


def _group(table: Config, *keys: str, default: int = 128) -> int:
    key = next((key for key in keys if table.table.get(key) is not None), keys[0])
    group = table.count(key, default)
    if group != -1 and not 1 <= group <= 10**6:
        raise InputError(f"{table.path}: {table.prefix}{key} = {group} must be -1 or lie between 1 and 1000000")
    return group


def _fp8(table: Config) -> Scheme:
    """DeepSeek's and transformers' fp8; with ModelOpt's `quantized_layers` some modules have types of their own."""
    own = tuple(_quantized_layers(table)) if isinstance(table.table.get("quantized_layers"), dict) else ()
    plain = _plain(table, "modules_to_not_convert", "ignored_layers", *(() if own else ("ignore",)))
    return Scheme("fp8", plain, own, _kv(table))


def _awq(table: Config) -> Scheme:
    kind = _integers(_bits(table, "bits", "w_bit", default=4), _group(table, "group_size", "q_group_size"))
    return Scheme(kind, _plain(table, "modules_to_not_convert"))


def _gptq(table: Config) -> Scheme:
    """Also AutoRound; `dynamic` of GPTQModel leaves modules out (-:) or gives them bits of their own (+:)."""
    bits, group = _bits(table, "bits"), _group(table, "group_size")
    table.demand("lm_head", False, "the LM head stays in the type of the activations")
    left: list[object] = []
    own: list[tuple[Patterns, str]] = []
    key = "dynamic" if table.table.get("dynamic") else "extra_config"
    where = f"{table.path}: {table.prefix}{key}"
    for text, changes in (table.section(key) if table.table.get(key) else {}).items():
        name = text.removeprefix("+:").removeprefix("-:")
        pattern = f"re:{name}" if key == "dynamic" else name
        inner = Config(table.path, changes if isinstance(changes, dict) else {}, f"{table.prefix}{key}.")
        if text.startswith("-:") or inner.table.get("bits") == 16:
            left.append(pattern)
        else:
            kind = _integers(_bits(inner, "bits", default=bits), _group(inner, "group_size", default=group))
            own.append((Patterns(where, [pattern]), kind))
    default = _integers(bits, group)
    chosen = table.table.get("modules_in_block_to_quantize")
    if chosen:
        if not isinstance(chosen, list) or not all(isinstance(names, list) for names in chosen):
            raise InputError(
                f"{table.path}: {table.prefix}modules_in_block_to_quantize must be a list of lists of names"
            )
        own.append((Patterns(where, [name for names in chosen for name in names]), default))
        default = "auto"
    return Scheme(default, Patterns(where, left), tuple(own))


def _mxfp4(table: Config) -> Scheme:
    """Experts alone, as gpt-oss: transformers' and vLLM's MXFP4 replace no other matrices."""
    patterns = Patterns(f"{table.path}: {table.prefix}", ["experts"])
    return Scheme("auto", _plain(table, "modules_to_not_convert"), ((patterns, "mxfp4"),))


def _bitsandbytes(table: Config) -> Scheme:
    plain = _plain(table, "llm_int8_skip_modules")
    if table.flag("load_in_8bit", False) or table.flag("_load_in_8bit", False):
        return Scheme("int8-channel-sym", plain)
    if not (table.flag("load_in_4bit", False) or table.flag("_load_in_4bit", False)):
        raise InputError(f"{table.path}: {table.prefix}load_in_4bit and load_in_8bit are both false")
    return Scheme("nf4-double" if table.flag("bnb_4bit_use_double_quant", False) else "nf4", plain)


def _hqq(table: Config) -> Scheme:
    inner = Config(table.path, table.section("quant_config"), f"{table.prefix}quant_config.")
    weights = Config(table.path, inner.section("weight_quant_params"), f"{inner.prefix}weight_quant_params.")
    return Scheme(
        _integers(_bits(weights, "nbits"), _group(weights, "group_size", default=64)), _plain(table, "skip_modules")
    )


def _compressed_tensors(table: Config) -> Scheme:
    """llm-compressor: groups of modules, each with a scheme of its weights."""
    sparsity = table.table.get("sparsity_config") or {}
    pattern = sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity
    packing = table.table.get("format")
    if pattern not in ("dense", None) or (isinstance(packing, str) and "24" in packing):
        raise InputError(f"{table.path}: the weights are 2:4 sparse ({packing or pattern}), which is not modelled")
    groups = table.section("config_groups")
    default, own, where = "auto", [], f"{table.path}: {table.prefix}config_groups"
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise InputError(f"{where}.{name} must be an object")
        inner = Config(table.path, group, f"{table.prefix}config_groups.{name}.")
        if group.get("weights") is None:
            continue
        kind = _compressed(Config(table.path, inner.section("weights"), f"{inner.prefix}weights."))
        targets = group.get("targets", ["Linear"])
        if not isinstance(targets, list):
            raise InputError(f"{where}.{name}.targets must be a list of names of modules")
        if {"Linear", "FusedMoE", "LinearBase"} & {target for target in targets if isinstance(target, str)}:
            default = kind
        else:
            own.append((Patterns(f"{where}.{name}.targets", targets), kind))
    if default == "auto" and not own:
        raise InputError(f"{where} has no group with weights")
    return Scheme(default, _plain(table, "ignore"), tuple(own), _kv(table))


def _compressed(weights: Config) -> str:
    """The type of one scheme: bits, kind of numbers, strategy and group."""
    bits, kind = weights.count("num_bits"), weights.table.get("type", "int")
    strategy, symmetric = weights.table.get("strategy"), weights.flag("symmetric", True)
    group = weights.table.get("group_size")
    if kind == "float" and bits == 8:
        return "mxfp8" if group == 32 else "fp8"
    if kind == "float" and bits == 4 and group in (16, 32):
        return "nvfp4" if group == 16 else "mxfp4"
    if kind == "int" and 2 <= bits <= 8:
        if strategy in ("channel", "tensor", None) and group in (None, -1, 0):
            return _integers(bits, -1, symmetric)
        return _integers(bits, _group(weights, "group_size"), symmetric)
    raise InputError(
        f"{weights.path}: {weights.prefix}num_bits = {bits!r}, type = {kind!r}, group_size = {group!r} is not "
        "modelled; known are float with 8 bits, or 4 bits in groups of 16 (NVFP4) or 32 (MXFP4), int with 2 to 8 bits"
    )


_ALGORITHMS: Mapping[str, str] = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_PB_REAL": "fp8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A8_NVFP4_FP8": "nvfp4",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "MXFP8": "mxfp8",
    "INT8_SQ": "int8-channel-sym",
    "W8A8_SQ_PER_CHANNEL": "int8-channel-sym",
    "W8A16": "int8-channel-sym",
}
_GROUPED = {"W4A16_AWQ": 4, "W4A8_AWQ": 4, "INT4_AWQ": 4, "W4A16": 4}


def _algorithm(table: Config) -> str:
    """The type of one of ModelOpt's algorithms."""
    name = table.table.get("quant_algo")
    if isinstance(name, str) and name.upper() in _ALGORITHMS:
        return _ALGORITHMS[name.upper()]
    if isinstance(name, str) and name.upper() in _GROUPED:
        return _integers(_GROUPED[name.upper()], _group(table, "group_size"), symmetric=True)
    known = (*_ALGORITHMS, *_GROUPED, "MIXED_PRECISION")
    raise InputError(f"{table.path}: {table.prefix}quant_algo = {name!r} is not modelled; known are {', '.join(known)}")


def _modelopt(table: Config) -> Scheme:
    plain = _plain(table, "exclude_modules", "ignore", "modules_to_not_convert")
    name = table.table.get("quant_algo")
    if name is None:
        return Scheme("auto", plain, (), _kv(table))
    if name == "MIXED_PRECISION":
        return Scheme("auto", plain, tuple(_quantized_layers(table)), _kv(table))
    return Scheme(_algorithm(table), plain, (), _kv(table))


def _quantized_layers(table: Config) -> Iterable[tuple[Patterns, str]]:
    """ModelOpt's list of modules, each with its algorithm: those of one type together."""
    by_type: dict[str, list[str]] = {}
    for name, entry in table.section("quantized_layers").items():
        if not isinstance(entry, dict):
            raise InputError(f"{table.path}: {table.prefix}quantized_layers[{name!r}] must be an object")
        by_type.setdefault(_algorithm(Config(table.path, entry, f"{table.prefix}quantized_layers.")), []).append(name)
    where = f"{table.path}: {table.prefix}quantized_layers"
    return [(Patterns(where, names), kind) for kind, names in by_type.items()]


def _quark(table: Config) -> Scheme:
    """AMD Quark: the scheme of all layers, and what is excluded."""
    inner = Config(table.path, table.section("global_quant_config"), f"{table.prefix}global_quant_config.")
    weight = Config(table.path, inner.section("weight"), f"{inner.prefix}weight.")
    kind, group = weight.table.get("dtype"), weight.table.get("group_size")
    plain = _plain(table, "exclude")
    if isinstance(kind, str) and kind.startswith("fp8"):
        return Scheme("fp8", plain)
    if kind == "fp4" and group in (32, None):
        return Scheme("mxfp4", plain)
    if isinstance(kind, str) and kind in ("int4", "uint4", "int8", "uint8"):
        return Scheme(_integers(int(kind[-1]), _group(weight, "group_size", default=-1)), plain)
    raise InputError(f"{table.path}: {weight.prefix}dtype = {kind!r} is not modelled; known are fp8, fp4, int4, int8")


def _kv(table: Config) -> str:
    """The cache's type where the checkpoint has scales for one; "" where it says nothing."""
    value = next(
        (table.table[key] for key in ("kv_cache_quant_algo", "kv_cache_scheme") if table.table.get(key) is not None),
        None,
    )
    if value is None:
        return ""
    if isinstance(value, dict):
        value = f"{value.get('type', 'int')}{value.get('num_bits', 8)}"
    kinds = {"FP8": "fp8", "FLOAT8": "fp8", "INT8": "int8"}
    if isinstance(value, str) and value.upper() in kinds:
        return kinds[value.upper()]
    raise InputError(
        f"{table.path}: the checkpoint's KV cache is {value!r}, which is not modelled; known are FP8, INT8"
    )


_METHODS: Mapping[str, Callable[[Config], Scheme]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _gptq,
    "intel/auto-round": _gptq,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "quark": _quark,
}
