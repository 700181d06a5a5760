"""What an engine's preset and its front end set in a scenario's tables, beneath what the user says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from sim.load import OURS
from sim.scenario.settings import SETTINGS
from sim.scenario.tables import leaves, merge
from sim.specs.front_end import AUTO, CUSTOM, OFF


def with_preset(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables on top of what their engine sets on their GPU: the one that they name, or the default one.

    What would be refused of an engine by its name is allowed where nobody named it: policies and allocators that it
    has not, a number of KV blocks, which is a study's own, and swapping, for which its blocks are paged ones.
    """
    preset = value_at(tables, "engine.preset", None)
    if not isinstance(preset, str | None):
        return tables
    from sim.catalog import load_model, presets  # noqa: PLC0415  (the start of every command would pay for it)
    from sim.cost import profile  # noqa: PLC0415

    found = presets.load(_unnamed(tables) if preset is None else preset or OURS)
    given = dict(leaves(tables))
    if preset is not None and found.keys <= set(given):
        return merge(tables, {"engine.preset": found.name})  # a resolved scenario: nothing is left to the engine
    gpu = profile.gpu_of(str(value_at(tables, "cost.profile")), str(value_at(tables, "gpu")))

    def longest() -> int:
        told = value_at(tables, "engine.max_model_len")
        return told if told and isinstance(told, int) else load_model(str(value_at(tables, "model"))).max_context_tokens

    made = merge(found.defaults(gpu, given, longest), tables, {"engine.preset": found.name})
    if preset is None:
        if value_at(made, "kv.swap_gib") and "allocator.name" not in given and value_at(made, "engine.name") == OURS:
            made = merge(made, {"allocator.name": "paged"})  # no prefix that stays findable is moved to the host
        mixed = found.refusal(policies_of(made), str(value_at(made, "allocator.name")))
        made = merge({"engine.allow_mix": bool(mixed), "kv.allow_short": bool(value_at(made, "kv.blocks"))}, made)
    return made


def _unnamed(tables: Mapping[str, Any]) -> str:
    """The preset where none is named: that of the version of an installed engine, or the default one."""
    from sim.catalog import presets  # noqa: PLC0415

    engine, _, version = str(value_at(tables, "engine.name")).partition("==")
    own = presets.of_line(engine, version)
    return own if own in presets.names() else SETTINGS["engine.preset"][0]


def policies_of(tables: Mapping[str, Any]) -> list[str]:
    """The policy of a scenario's tables and the one that it is based on, by name."""
    named = (value_at(tables, "policy.name"), value_at(tables, "policy.base", ""))
    return [name for name in named if isinstance(name, str) and name]


def value_at(tables: Mapping[str, Any], key: str, default: Any = MISSING) -> Any:
    """What nested tables have at a dotted key, or the default of the setting."""
    value: Any = tables
    for part in key.split("."):
        value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
    if value is not MISSING:
        return value
    return SETTINGS[key][0] if default is MISSING else default


def with_named_front_end(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables with their front end named, on top of what the engine that has it has found it to cost."""
    name = value_at(tables, "front_end.name")
    if name == AUTO:
        name = _own_front_end(tables)
    if not isinstance(name, str) or name in (OFF, CUSTOM):
        return merge(tables, {"front_end.name": name})
    from sim.catalog import presets  # noqa: PLC0415

    found = presets.with_front_end(name)
    return merge({"front_end": found.front_end}, tables, {"front_end.name": found.name})


def _own_front_end(tables: Mapping[str, Any]) -> str:
    """The name of the preset's front end, where it is known and steps are simulated: clients see what is behind it."""
    from sim.catalog import presets  # noqa: PLC0415

    preset = value_at(tables, "engine.preset")
    predicted = value_at(tables, "executor") == SETTINGS["executor"][0]
    return preset if predicted and isinstance(preset, str) and presets.load(preset).front_end else OFF
