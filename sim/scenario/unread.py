"""Settings that somebody gave and nothing reads are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sim.scenario.settings import SETTINGS, Scenario, settings_of
from sim.specs.settings import Where, word
from traces.schema import InputError


def refuse_unread(scenarios: Iterable[Scenario]) -> None:
    """Raise InputError for a setting that is not the default's and that none of these scenarios reads.

    Only as many scenarios are looked at as it takes.
    """
    unread: dict[str, str] | None = None
    for scenario in scenarios:
        own = _unread(scenario)
        unread = own if unread is None else {key: why for key, why in unread.items() if key in own}
        if not unread:
            return
    for sentence in (unread or {}).values():
        raise InputError(sentence)


def _unread(scenario: Scenario) -> dict[str, str]:
    """By key of a setting that is not the default's and that the scenario does not read, the sentence that says so.

    Of a fleet, one of its own is read where any pool reads it; one that a pool says otherwise, where that pool does.
    """
    pools = {name: pool.scenario for name, pool in scenario.pools.items()}
    shared = {key: value for key, value, _ in settings_of(scenario)} if pools else {}

    def told(label: str, value: Any, where: Where) -> dict[str, str]:
        return {label: f"{label} is {word(value)}, and it is read only where {where.words}"}

    found: dict[str, str] = {}
    for key, value, about in settings_of(scenario):
        where = about.where
        if where and value != SETTINGS[key][0] and not any(map(where.holds, (scenario, *pools.values()))):
            found |= told(key, value, where)
    for name, pool in pools.items():
        for key, value, about in settings_of(pool):
            where = about.where
            if where and value not in (SETTINGS[key][0], shared.get(key)) and not where.holds(pool):
                found |= told(f"pools.{name}.{key}", value, where)
    return found
