"""The types that a checkpoint keeps its weights and its cache in, from what lies on disk beside or in its config.json.

Every common method: fp8, compressed-tensors, ModelOpt (`hf_quant_config.json`), MXFP4, NVFP4, AWQ, GPTQ, AutoRound,
Quark, bitsandbytes, HQQ. What cannot be modelled is refused as what it is. It knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.catalog.hf_config import Config, shown
from sim.catalog.modelopt import modelopt, quantized_layers
from sim.catalog.patterns import Patterns
from sim.catalog.schemes import Scheme, bits_of, group_of, integers, kv_type, plain_modules
from traces import files
from traces.schema import InputError

SIBLING = "hf_quant_config.json"


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
    return modelopt(table) if table is not None else None


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
            f"{table.path}: the weights are quantised by {shown(method)}, whose bytes are not modelled; known are "
            f"{', '.join(_METHODS)}"
        )
    if method.startswith("modelopt") and sibling is not None and "config_groups" not in table.table:
        return modelopt(Config(sibling.path, {**table.table, **sibling.table}, sibling.prefix))
    return _METHODS[method](table)


def _fp8(table: Config) -> Scheme:
    """DeepSeek's and transformers' fp8; with ModelOpt's `quantized_layers` some modules have types of their own."""
    own = tuple(quantized_layers(table)) if isinstance(table.table.get("quantized_layers"), dict) else ()
    plain = plain_modules(table, "modules_to_not_convert", "ignored_layers", *(() if own else ("ignore",)))
    return Scheme("fp8", plain, own, kv_type(table))


def _awq(table: Config) -> Scheme:
    kind = integers(bits_of(table, "bits", "w_bit", default=4), group_of(table, "group_size", "q_group_size"))
    return Scheme(kind, plain_modules(table, "modules_to_not_convert"))


def _gptq(table: Config) -> Scheme:
    """Also AutoRound; `dynamic` of GPTQModel leaves modules out (-:) or gives them bits of their own (+:)."""
    bits, group = bits_of(table, "bits"), group_of(table, "group_size")
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
            kind = integers(bits_of(inner, "bits", default=bits), group_of(inner, "group_size", default=group))
            own.append((Patterns(where, [pattern]), kind))
    default = integers(bits, group)
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
    return Scheme("auto", plain_modules(table, "modules_to_not_convert"), ((patterns, "mxfp4"),))


def _bitsandbytes(table: Config) -> Scheme:
    plain = plain_modules(table, "llm_int8_skip_modules")
    if table.flag("load_in_8bit", False) or table.flag("_load_in_8bit", False):
        return Scheme("int8-channel-sym", plain)
    if not (table.flag("load_in_4bit", False) or table.flag("_load_in_4bit", False)):
        raise InputError(f"{table.path}: {table.prefix}load_in_4bit and load_in_8bit are both false")
    return Scheme("nf4-double" if table.flag("bnb_4bit_use_double_quant", False) else "nf4", plain)


def _hqq(table: Config) -> Scheme:
    inner = Config(table.path, table.section("quant_config"), f"{table.prefix}quant_config.")
    weights = Config(table.path, inner.section("weight_quant_params"), f"{inner.prefix}weight_quant_params.")
    return Scheme(
        integers(bits_of(weights, "nbits"), group_of(weights, "group_size", default=64)),
        plain_modules(table, "skip_modules"),
    )


def _of(kind: str) -> Callable[[Config], Scheme]:
    """A method that has one type; what it leaves out is told in one of two ways."""
    return lambda table: Scheme(
        kind, plain_modules(table, "modules_to_not_convert", "ignored_layers"), (), kv_type(table)
    )


_TORCHAO = {
    **dict.fromkeys(("float8wo", "float8_weight_only", "float8dq", "float8_dynamic_activation_float8_weight"), "fp8"),
    **dict.fromkeys(("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"), "fp8"),
    **dict.fromkeys(("int8wo", "int8_weight_only", "int8dq"), "int8-channel-sym"),
    **dict.fromkeys(("int8_dynamic_activation_int8_weight", "Int8WeightOnlyConfig"), "int8-channel-sym"),
    "Int8DynamicActivationInt8WeightConfig": "int8-channel-sym",
}


def _torchao(table: Config) -> Scheme:
    """torchao's 8 bits, by the name of its configuration, which may stand in a table under "default"."""
    kind = table.table.get("quant_type")
    for key in ("default", "_type"):
        kind = kind.get(key) if isinstance(kind, dict) else kind
    if not isinstance(kind, str) or kind not in _TORCHAO:
        raise InputError(
            f"{table.path}: {table.prefix}quant_type is torchao's {shown(kind)}, which is not modelled; known are "
            f"{', '.join(_TORCHAO)}"
        )
    return Scheme(_TORCHAO[kind], plain_modules(table, "modules_to_not_convert"))


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
    return Scheme(default, plain_modules(table, "ignore"), tuple(own), kv_type(table))


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
            return integers(bits, -1, symmetric)
        return integers(bits, group_of(weights, "group_size"), symmetric)
    raise InputError(
        f"{weights.path}: {weights.prefix}num_bits = {shown(bits)}, type = {shown(kind)}, group_size = {shown(group)} "
        "is not modelled; known are float with 8 bits, or 4 bits in groups of 16 (NVFP4) or 32 (MXFP4), int with 2 to "
        "8 bits"
    )


def _quark(table: Config) -> Scheme:
    """AMD Quark: the scheme of all layers, and what is excluded."""
    inner = Config(table.path, table.section("global_quant_config"), f"{table.prefix}global_quant_config.")
    weight = Config(table.path, inner.section("weight"), f"{inner.prefix}weight.")
    kind, group = weight.table.get("dtype"), weight.table.get("group_size")
    plain = plain_modules(table, "exclude")
    if isinstance(kind, str) and kind.startswith("fp8"):
        return Scheme("fp8", plain)
    if kind == "fp4" and group in (32, None):
        return Scheme("mxfp4", plain)
    if isinstance(kind, str) and kind in ("int4", "uint4", "int8", "uint8"):
        return Scheme(integers(int(kind[-1]), group_of(weight, "group_size", default=-1)), plain)
    raise InputError(
        f"{table.path}: {weight.prefix}dtype = {shown(kind)} is not modelled; known are fp8, fp4, int4, int8"
    )


_METHODS: Mapping[str, Callable[[Config], Scheme]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": modelopt,
    "modelopt_fp4": modelopt,
    "modelopt_mixed": modelopt,
    "mxfp4": _mxfp4,
    "mxfp8": _of("mxfp8"),
    "nvfp4": _of("nvfp4"),
    "w8a8_fp8": _of("fp8"),
    "w8a8_int8": _of("int8-channel-sym"),
    "eetq": _of("int8-channel-sym"),
    "torchao": _torchao,
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "auto-round": _gptq,
    "intel/auto-round": _gptq,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "quark": _quark,
}
