"""What profile.toml says of a profile: device, origin, versions, errors. It knows no measurements."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from sim.cost.schema import TABLES
from sim.cost.splits import RULES
from traces import documents
from traces.schema import InputError

SCHEMA = 1
"""Version of the format. A reader of version n reads older ones by `MIGRATIONS`, and refuses newer ones."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Version -> what makes of its profile.toml one of the next version; the first version has none before it."""

KINDS = ("measured", "imported", "derived")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Errors of predictions for points that were not used: shares of the measured time, `bias` signed.

    `form` is how the operation is interpolated, the best of those tried; `how` says how points were held out.
    `repeat_mean` is how far the same measurement, made again, was from itself: no price can be better.
    """

    points: int
    mean: float
    p90: float
    max: float
    bias: float
    form: str = ""
    how: str = ""
    repeat_mean: float | None = None

    def __post_init__(self) -> None:
        if self.points < 1 or min(self.mean, self.p90, self.max) < 0.0:
            raise InputError("an accuracy needs at least 1 point and errors that are not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What profile.toml says.

    `gpu` is the device's name in the catalog, or in the profile's own device.toml. `source` says who measured it, how,
    and under which licence; `date` is that of the measurement. `software` holds driver, library versions and the hash
    of the kernels' source, `clocks` clocks and power as logged. `included` maps terms of a step that have no table to
    the table whose measurements they are part of. `synchronous`: the host computes itself and waits for nothing (a
    CPU), so that launching adds to a step's operations instead of hiding behind them. `captured_tokens` are the sizes
    that CUDA graphs were captured for; none: those of vLLM.
    `decode_splits` names the kernel whose rule says what decode rows of unequal contexts cost (`sim.cost.splits`);
    where it is empty the tables' uneven batches say it, by the number of rows.
    `accuracy` is by table, `step_accuracy` by kind of step (decode, prefill, mixed; graph or eager).
    """

    name: str
    gpu: str
    device: str
    kind: str
    source: str
    date: str
    schema: int = SCHEMA
    notes: tuple[str, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    clocks: Mapping[str, str | int | float] = field(default_factory=dict)
    included: Mapping[str, str] = field(default_factory=dict)
    synchronous: bool = False
    captured_tokens: tuple[int, ...] = ()
    decode_splits: str = ""
    grid: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    step_accuracy: Mapping[str, Accuracy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"profile name {self.name!r} must be lower-case letters, digits, '.', '_' and '-'")
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        for key in ("gpu", "device", "source", "date"):
            if not getattr(self, key):
                raise InputError(f"{key} is empty")
        if list(self.captured_tokens) != sorted(set(self.captured_tokens)) or min(self.captured_tokens, default=1) < 1:
            raise InputError("captured_tokens must rise from 1 on")
        if self.decode_splits and self.decode_splits not in RULES:
            raise InputError(f"decode_splits {self.decode_splits!r} is none of {', '.join(RULES)}")
        for name in self.accuracy:
            if name not in TABLES:
                raise InputError(f"[accuracy.{name}] is no table; known are {', '.join(TABLES)}")


def plain(meta: Meta) -> dict[str, Any]:
    """The description as TOML holds it: version first, nothing empty, tables last."""
    table = asdict(meta)
    table = {"schema": table.pop("schema"), **table}
    for key in ("accuracy", "step_accuracy"):
        table[key] = {
            name: {item: value for item, value in entry.items() if value not in (None, "")}
            for name, entry in table[key].items()
        }
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in table.items()
        if value or key == "schema"
    }


def read_meta(path: Path) -> Meta:
    table = migrated(documents.toml(path), str(path))
    try:
        for key in ("accuracy", "step_accuracy"):
            entries = _of_type(key, table.get(key, {}), dict)
            table[key] = {name: _built(Accuracy, entry, f"{key}.{name}") for name, entry in entries.items()}
        return _built(Meta, table, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def migrated(table: dict[str, Any], path: str) -> dict[str, Any]:
    """profile.toml's table, brought to the present schema version step by step.

    Raises:
        InputError: it has no version, or a newer one than this program knows.
    """
    version = table.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{path}: schema must be the format's version, a whole number from 1 to {SCHEMA}")
    if version > SCHEMA:
        raise InputError(f"{path}: schema {version} is newer than {SCHEMA}, which this version of foretoken reads")
    while version < SCHEMA:
        table = MIGRATIONS[version](table)
        version += 1
    return table


Built = TypeVar("Built", Accuracy, Meta)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "bool": (bool,),
    "tuple": (list,),
    "Mapping": (dict,),
}


def _built(kind: type[Built], table: Any, where: str) -> Built:
    """The dataclass from a table that has its fields and nothing else, each of its type."""
    place = f"[{where}] " if where else ""
    _of_type(place or "it", table, dict)
    known = {item.name: item for item in fields(kind)}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{place}unknown key {key!r}; known are {', '.join(known)}")
        declared = str(known[key].type).partition("[")[0] if "[" in str(known[key].type) else str(known[key].type)
        _of_type(f"{place}{key}", value, *_TYPES[declared])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    _check_items(place, values)
    try:
        return kind(**values)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise InputError(f"{place}key {missing[0]!r} is missing") from None


def _check_items(place: str, values: Mapping[str, Any]) -> None:
    texts = {"notes": str, "captured_tokens": int}
    for key, kind in texts.items():
        for item in values.get(key, ()):
            _of_type(f"{place}an item of {key}", item, kind)
    for key in ("software", "included", "grid"):
        for name, item in values.get(key, {}).items():
            _of_type(f"{place}{key}.{name}", item, str)
    for name, item in values.get("clocks", {}).items():
        _of_type(f"{place}clocks.{name}", item, str, int, float)


def _of_type(what: str, value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(f"{what} is {value!r}; it must be of type {' or '.join(kind.__name__ for kind in kinds)}")
    return value
