"""From a scenario back to tables and TOML."""

from __future__ import annotations

import dataclasses
from typing import Any

import tomli_w

from sim.scenario.pools import OF_THE_FLEET
from sim.scenario.settings import Part, PoolSettings, Scenario


def dump(scenario: Scenario) -> str:
    """The scenario as TOML that `read` and `build` turn back into it."""
    return tomli_w.dumps(as_tables(scenario))


def as_tables(scenario: Scenario) -> dict[str, Any]:
    """The scenario as nested tables, every setting spelled out."""
    tables: dict[str, Any] = {}
    for entry in dataclasses.fields(scenario):
        value = getattr(scenario, entry.name)
        if entry.name == "pools":
            if value:
                tables["pools"] = {name: _pool_table(pool) for name, pool in value.items()}
                del tables["replicas"]
            continue
        if isinstance(value, Part):
            value = {"name": value.name, **value.parameters}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        tables[entry.name] = value
    return tables


def _pool_table(pool: PoolSettings) -> dict[str, Any]:
    own = {key: value for key, value in as_tables(pool.scenario).items() if key not in OF_THE_FLEET}
    serves = {"serves": list(pool.serves)} if pool.serves else {}
    return {"role": pool.role, "count": pool.count, **serves, **own}
