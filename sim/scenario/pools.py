"""Pools of replicas: what one does not say is taken from the scenario that it is in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sim.scenario.builder import make
from sim.scenario.presets import with_named_front_end, with_preset
from sim.scenario.settings import MOST_REPLICAS, PoolSettings, Scenario
from sim.scenario.tables import merge
from traces.schema import InputError

OF_THE_FLEET = (
    "workload", "front_end", "replicas", "seed", "slo", "executor", "device", "live", "routing", "transfer", "pools",
    "admission", "retry", "failures",
)  # fmt: skip
"""Settings that no pool has of its own."""


_BEFORE_POOLS = ("routing", "transfer", "admission", "retry", "failures")
"""Those of them that no pool reads, and that depend on there being several."""


def made_of(tables: dict[str, Any]) -> Scenario:
    """A scenario without pools, on top of what its engine and front end set."""
    return make(Scenario, with_named_front_end(with_preset(tables)), "")  # type: ignore[no-any-return]


def pools_of(tables: Mapping[str, Any], pools: Any) -> dict[str, PoolSettings]:
    """The pools of a scenario whose other tables these are: what a pool does not say is taken from there."""
    if not isinstance(pools, Mapping) or not all(isinstance(own, Mapping) for own in pools.values()):
        raise InputError("pools is no table of pools; a pool is a section [pools.NAME] of role, count and settings")
    if "replicas" in tables:
        raise InputError("replicas stands beside pools, and each pool says its own count (pools.NAME.count)")
    shared = {key: value for key, value in tables.items() if key not in _BEFORE_POOLS}
    made = {}
    for name, own in pools.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"pools.{name}: a pool's name is made of letters, digits, - and _")
        settings = merge(own)
        role, count, serves = settings.pop("role", "both"), settings.pop("count", 1), settings.pop("serves", ())
        if fleet := [key for key in settings if key in OF_THE_FLEET]:
            raise InputError(f"pools.{name}.{fleet[0]} is no pool's own; say it for all of them ({fleet[0]})")
        if type(count) is not int or not 1 <= count <= MOST_REPLICAS:
            raise InputError(f"pools.{name}.count is {count!r}; it must be a whole number from 1 to {MOST_REPLICAS:,}")
        serves = (serves,) if isinstance(serves, str) else tuple(serves) if isinstance(serves, list | tuple) else None
        if serves is None or not all(isinstance(one, str) and one for one in serves):
            raise InputError(f"pools.{name}.serves must be the name of a model, or a list of names")
        try:
            made[name] = PoolSettings(made_of(merge(shared, settings, {"replicas": count})), role, serves)
        except InputError as error:
            raise type(error)(f"pools.{name}: {error}") from None
    return made
