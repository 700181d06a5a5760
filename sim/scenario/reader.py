"""From files and settings to a scenario."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.load import OURS
from sim.scenario.pools import made_of, pools_of
from sim.scenario.presets import value_at
from sim.scenario.settings import ENGINE_KEYS, Scenario
from sim.scenario.tables import leaves, merge
from sim.scenario.writer import as_tables
from sim.specs.front_end import AUTO, OFF, FrontEndSettings
from traces import documents
from traces.schema import InputError

_PARTS = ("policy", "allocator", "router")
"""Sections whose texts may name code, such as policy.name and policy.base."""


def load(
    base: Scenario | str | Path | None, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False
) -> Scenario:
    """A scenario, a TOML file's or the default's, with settings on top; raises as `read` and `build`."""
    return build(tables_of(base, settings, allow_code=allow_code), settings)


def tables_of(
    base: Scenario | str | Path | None, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False
) -> dict[str, Any]:
    """The settings of a scenario, of a TOML file or of nothing, as nested tables; raises as `read`."""
    if isinstance(base, Scenario):
        return as_tables(base)
    return read(base, settings, allow_code=allow_code) if base is not None else {}


def read(path: str | Path, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """The settings in a TOML file, or in the scenario of that name that comes along, as nested tables.

    Args:
        settings: what will win over the file, by key.
        allow_code: let the file name code to import (`module:object`), which `settings` always may.

    Raises:
        InputError: no such file, or it is not TOML, or it names code; the sentence names file and line.
    """
    from sim.catalog import bundles  # noqa: PLC0415

    tables = documents.toml(bundles.located(path))
    if not allow_code:
        refuse_code(tables, str(path), settings or {})
    if {key for key, _ in leaves(tables)} >= ENGINE_KEYS:
        # As results were written before engines had names, and front ends: nothing is left that one could set.
        tables["engine"].setdefault("preset", OURS)
        tables.setdefault("front_end", {"name": OFF})
    return tables


def refuse_code(tables: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise InputError where a file's settings name code to import that `settings` do not overrule.

    A file may come from anyone, and a module runs as soon as it is imported. Names of what is installed are no code:
    whoever installed it has said so.
    """
    overruled = {key for key, _ in leaves(settings or {})}
    for key, value in leaves(tables):
        if key in overruled or not (key.partition(".")[0] in _PARTS or key in ("workload.format", "engine.name")):
            continue
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and ":" in name:
                shown = name if len(name) <= 100 else f"{name[:100]}..."
                raise InputError(
                    f"{where}: {key} is {shown!r}, code that would be run; if you trust this file, add --allow-code "
                    f"(allow_code=True from Python), or name the code yourself: --set {key}={shown}"
                )


def build(tables: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario from nested tables and dotted settings, which win.

    Raises:
        InputError: an unknown key or a value of the wrong type; the sentence lists the known keys.
    """
    tables = merge(tables, settings or {})
    pools = tables.pop("pools", {})
    scenario = made_of(tables)
    made = pools_of(tables, pools) if pools else {}
    front_end = scenario.front_end
    if value_at(tables, "front_end.name") == AUTO:
        # That of the pools' engines, where it is one and can stand before them.
        each = [pool.scenario for pool in made.values()] or [scenario]
        own = {one.front_end for one in each}
        apart = any(pool.role == "prefill" for pool in made.values())
        none = apart or any(one.dp > 1 for one in each)
        front_end = FrontEndSettings(OFF) if none or len(own) > 1 else own.pop()
    return with_front_end(dataclasses.replace(scenario, pools=made), front_end)


def with_front_end(scenario: Scenario, front_end: FrontEndSettings) -> Scenario:
    """The scenario with another front end, before all of its pools."""
    pools = {
        name: dataclasses.replace(pool, scenario=dataclasses.replace(pool.scenario, front_end=front_end))
        for name, pool in scenario.pools.items()
    }
    return dataclasses.replace(scenario, front_end=front_end, pools=pools)
