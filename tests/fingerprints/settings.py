"""Writes out every setting of a run, so that a changed default moves none. It makes the run once to learn them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from sim.scenario import SETTINGS

from .runs import command, make

Settings = dict[str, Any]

PARTS = {"policy": "policies", "allocator": "allocators", "router": "routers"}
_AXES = ("compare", "points", "seeds", "requests", "precision")
"""Of a comparison, a sweep or a plan: no settings of a scenario."""


def written_out(kind: str, told: Mapping[str, Any]) -> Settings:
    """All settings of a run that sets `told` and leaves the others as they are by default today."""
    if kind in ("recorded", "page", "schedules"):
        return dict(told)
    if kind == "compared":
        alike = {key: value for key, value in told.items() if key != "compare"}
        whole = [written_out("run", {**alike, **one}) for one in told["compare"]]
        common = {key: value for key, value in whole[0].items() if all(one.get(key) == value for one in whole)}
        own = [{key: value for key, value in one.items() if key not in common} for one in whole]
        return {**common, "compare": own}
    single = {key: value[0] if isinstance(value, list) else value for key, value in told.items() if key not in _AXES}
    scenario = make("live" if kind == "live" else "run", single).scenario
    parts = {name: scenario[f"{name}.name"] for name in PARTS if f"{name}.name" in scenario}
    axes = {key for key, value in told.items() if isinstance(value, list)}
    found = {key: value for key, value in scenario.items() if heeded(key, scenario)}
    for name, chosen in parts.items():
        if f"{name}.name" not in axes:
            base = scenario.get("policy.base", "") if name == "policy" else ""
            for one in filter(None, (base, chosen)):
                found |= {f"{name}.{key}": value for key, value in _parameters(PARTS[name], one).items()}
    found |= told
    return {key: value for key, value in found.items() if not (key in ("router.name",) and scenario["replicas"] == 1)}


def heeded(key: str, scenario: Mapping[str, Any]) -> bool:
    """Does a run of this scenario read the setting? (What none reads may one day be refused.)"""
    section = key.partition(".")[0]
    if section == "speculation":
        return bool(scenario["policy.name"] == "speculative")
    if section in ("live", "device"):
        return bool(scenario["executor"] == "live")
    if section == "front_end":
        return key == "front_end.name" or bool(scenario["front_end.name"] != "off")
    if section in ("admission", "retry", "failures", "autoscale"):
        return scenario[key] != SETTINGS[key][0]
    if section == "router":
        return bool(scenario["replicas"] > 1)
    return True


def not_written(settings: Mapping[str, Any], scenario: Mapping[str, Any]) -> list[str]:
    """Settings that the product has today and the record does not say."""
    return [key for key in scenario if key not in settings and heeded(key, scenario)]


@cache
def _parameters(kind: str, name: str) -> Settings:
    """The parameters of a policy, an allocator or a router with their defaults, as `sim list` tells them."""
    if ":" in name:
        return {}
    rows = json.loads(command("list", kind, "--json"))
    text = next(row["parameters"] for row in rows if row["name"] == name)
    found = {}
    for one in filter(None, text.split(", ")):
        key, _, value = one.partition("=")
        found[key] = {"True": True, "False": False}.get(value, value.strip("'"))
        if isinstance(found[key], str) and value[0] not in "'\"":
            found[key] = float(value) if "." in value else int(value)
    return found
