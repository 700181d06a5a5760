"""From nested tables to the dataclasses of a scenario, strictly: an unknown key or a wrong type is one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sim.scenario.settings import SETTINGS, Part
from sim.scenario.tables import UnknownSettingError
from traces.schema import InputError

_hints = cache(get_type_hints)


def make(target: type, tables: Mapping[str, Any], where: str) -> Any:
    """A dataclass of settings from its tables; `where` is its section. Raises InputError."""
    if target is Part:
        return _part(tables, where)
    hints = _hints(target)
    made: dict[str, Any] = {}
    for key, value in tables.items():
        label = f"{where}.{key}" if where else key
        if key not in hints:
            raise UnknownSettingError(f"unknown setting {label!r}; {where or 'a scenario'} has {', '.join(hints)}")
        made[key] = _value(hints[key], value, label)
    return target(**made)


def _part(tables: Mapping[str, Any], where: str) -> Part:
    parameters = dict(tables)
    name = parameters.pop("name", SETTINGS[f"{where}.name"][0])
    if not isinstance(name, str):
        raise InputError(f"{where}.name is {name!r}; it must be a text")
    return Part(name, parameters)


def _value(kind: Any, value: Any, label: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{label} is {value!r}; it must be a section")
        return make(kind, value, label)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _tables(get_args(kind)[0], value, label)
    simple = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(value) in simple:
        return value
    if float in simple and type(value) is int:
        return float(value)
    if not isinstance(kind, type) and isinstance(value, Mapping):
        return {key: _value(get_args(kind)[1], inner, f"{label}.{key}") for key, inner in value.items()}
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise InputError(f"{label} is {value!r}; it must be of type {name}")


def _tables(kind: Any, value: Any, label: str) -> tuple[Any, ...]:
    if isinstance(value, list | tuple) and all(isinstance(inner, kind | Mapping) for inner in value):
        return tuple(inner if isinstance(inner, kind) else make(kind, inner, label) for inner in value)
    raise InputError(f"{label} is {value!r}; it must be a list of tables of {', '.join(_hints(kind))}")
