"""What a checkpoint's quantisation says; how tables write bits, groups, modules and caches. It knows no method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sim.catalog.hf_config import Config, shown
from sim.catalog.patterns import Patterns
from traces.schema import InputError


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


def plain_modules(table: Config, *keys: str) -> Patterns:
    """The modules that these keys leave as they are."""
    texts: list[object] = []
    for key in keys:
        value = table.table.get(key)
        if value is not None and not isinstance(value, list):
            raise InputError(f"{table.path}: {table.prefix}{key} must be a list of names of modules")
        texts += value or []
    return Patterns(f"{table.path}: {table.prefix}{'/'.join(keys)}", texts)


def integers(bits: int, group: int, symmetric: bool = False) -> str:
    """The name of an integer type; GPTQ and AWQ pack zero points even where they are symmetric."""
    if group == 128 and bits in (4, 8) and not symmetric:
        return f"int{bits}"
    columns = "channel" if group == -1 else f"g{group}"
    return f"int{bits}-{columns}{'-sym' if symmetric else ''}"


def bits_of(table: Config, *keys: str, default: int | None = None) -> int:
    key = next((key for key in keys if table.table.get(key) is not None), keys[0])
    bits = table.count(key) if default is None else table.count(key, default)
    if not 2 <= bits <= 8:
        raise InputError(f"{table.path}: {table.prefix}{key} = {bits} must lie between 2 and 8")
    return bits


def group_of(table: Config, *keys: str, default: int = 128) -> int:
    key = next((key for key in keys if table.table.get(key) is not None), keys[0])
    group = table.count(key, default)
    if group != -1 and not 1 <= group <= 10**6:
        raise InputError(f"{table.path}: {table.prefix}{key} = {group} must be -1 or lie between 1 and 1000000")
    return group


def kv_type(table: Config) -> str:
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
        f"{table.path}: the checkpoint's KV cache is {shown(value)}, which is not modelled; known are FP8, INT8"
    )
