"""Nested tables of settings and dotted keys, unchecked: merged, listed, read from `key=value`. They know no setting."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from datetime import time as clock_time
from typing import Any

from traces import documents
from traces.schema import InputError

_SHORT = {
    "trace": "workload.trace",
    "limit": "workload.limit",
    "rate": "workload.rate",
    "rate_scale": "workload.rate_scale",
    "concurrency": "workload.concurrency",
    "skip_bad": "workload.skip_bad",
    "kv_blocks": "kv.blocks",
    "policy": "policy.name",
    "allocator": "allocator.name",
    "router": "router.name",
    "profile": "cost.profile",
}
"""Keys that may be written without their section."""


class UnknownSettingError(InputError):
    """A key that no scenario has."""


def leaves(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key in full, value) of every setting."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield full_key(prefix + key), value


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as (key, value); a value that is no TOML literal is taken as text.

    Raises:
        InputError: there is no `=`, or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r}: expected section.key=value")
    exact = literal(value)
    return key.strip(), value.strip() if exact is None else exact


def literal(text: str) -> Any:
    """The TOML value that a text is, or None: also for dates and times, which no setting is (`10:50:20` is a range)."""
    try:
        table = documents.toml_of(f"value = {text}", "")
    except InputError:
        return None
    value = table["value"] if list(table) == ["value"] else None
    return None if isinstance(value, date | clock_time) else value


def variants(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every combination of settings whose value is a list in text, such as `paged,prefix`: name -> settings.

    The name tells the values that vary; without any there is one variant, called "run". (An SLO is no such list.)
    """
    varied = {
        key: [parse_setting(f"{key}={text}")[1] for text in value.split(",")]
        for key, value in settings.items()
        if isinstance(value, str) and "," in value and key != "slo"
    }
    combinations = {}
    for values in itertools.product(*varied.values()):
        name = " ".join(map(str, values)) or "run"
        combinations[name] = {**settings, **dict(zip(varied, values, strict=True))}
    return combinations


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables and dotted settings as nested tables, unchecked; the later of two wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            _put(merged, key, value)
    return merged


def full_key(key: str) -> str:
    """The dotted key that a short one stands for, such as workload.rate for rate; others stay as they are."""
    return _SHORT.get(key, key)


def _put(tables: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        _section(tables, key.split("."), key).update(value)
        return
    *path, last = full_key(key).split(".")
    _section(tables, path, key)[last] = value


def _section(tables: dict[str, Any], path: Sequence[str], key: str) -> dict[str, Any]:
    for part in path:
        inner = tables.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UnknownSettingError(f"setting {key!r}: {part!r} has a value and is no section")
        tables = inner
    return tables
