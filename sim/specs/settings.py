"""A setting of a scenario, declared at its field: default, meaning, bound or choices, and who reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from sim.specs.bounds import Bound
from traces.schema import InputError

T = TypeVar("T")


class Where(NamedTuple):
    """The scenarios that read a setting, in words and as a test of one; in others it must keep its default."""

    words: str
    holds: Callable[[Any], object]

    def __and__(self, other: Where) -> Where:
        return Where(f"{self.words} and {other.words}", lambda scenario: self.holds(scenario) and other.holds(scenario))


class Setting(NamedTuple):
    """What a field is beside its default. Every number has a bound."""

    meaning: str
    bound: Bound | None = None
    choices: tuple[Any, ...] = ()
    where: Where | None = None

    def check(self, key: str, value: Any) -> None:
        """Raise InputError, naming the key and what it may be, for a value that the field cannot have."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self.check(f"{key}.{name}", inner)
        if self.choices and value not in self.choices:
            raise InputError(f"{key} is {value!r}; known: {', '.join(map(word, self.choices))}")
        if self.bound is not None and isinstance(value, int | float):
            self.bound.check(key, value)


def setting(
    default: T, meaning: str, bound: Bound | None = None, *, choices: tuple[Any, ...] = (), where: Where | None = None
) -> T:
    """The field of a setting."""
    about = {"setting": Setting(meaning, bound, choices, where)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=about)  # type: ignore[return-value]
    return dataclasses.field(default=default, metadata=about)


def section(kind: Callable[[], T], where: Where | None = None) -> T:
    """The field of several settings; `where` is of them all."""
    return dataclasses.field(default_factory=kind, metadata={"where": where})


def check(section: str, settings: Any) -> None:
    """Raise InputError for the first of a section's values that its field cannot have; "" is the top."""
    for entry in dataclasses.fields(settings):
        if "setting" in entry.metadata:
            key = f"{section}.{entry.name}" if section else entry.name
            entry.metadata["setting"].check(key, getattr(settings, entry.name))


def word(value: Any) -> str:
    """A value as a user writes it: values that are the same setting read the same."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(word, value)) or "none"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
