"""ModelOpt's tables: one algorithm for all modules, or a list of modules with an algorithm each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sim.catalog.hf_config import Config, shown
from sim.catalog.patterns import Patterns
from sim.catalog.schemes import Scheme, group_of, integers, kv_type, plain_modules
from traces.schema import InputError

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
        return integers(_GROUPED[name.upper()], group_of(table, "group_size"), symmetric=True)
    known = (*_ALGORITHMS, *_GROUPED, "MIXED_PRECISION")
    raise InputError(
        f"{table.path}: {table.prefix}quant_algo = {shown(name)} is not modelled; known are {', '.join(known)}"
    )


def modelopt(table: Config) -> Scheme:
    plain = plain_modules(table, "exclude_modules", "ignore", "modules_to_not_convert")
    name = table.table.get("quant_algo")
    if name is None:
        return Scheme("auto", plain, (), kv_type(table))
    if name == "MIXED_PRECISION":
        return Scheme("auto", plain, tuple(quantized_layers(table)), kv_type(table))
    return Scheme(_algorithm(table), plain, (), kv_type(table))


def quantized_layers(table: Config) -> Iterable[tuple[Patterns, str]]:
    """ModelOpt's list of modules, each with its algorithm: those of one type together."""
    by_type: dict[str, list[str]] = {}
    for name, entry in table.section("quantized_layers").items():
        if not isinstance(entry, dict):
            raise InputError(f"{table.path}: {table.prefix}quantized_layers[{shown(name)}] must be an object")
        by_type.setdefault(_algorithm(Config(table.path, entry, f"{table.prefix}quantized_layers.")), []).append(name)
    where = f"{table.path}: {table.prefix}quantized_layers"
    return [(Patterns(where, names), kind) for kind, names in by_type.items()]
