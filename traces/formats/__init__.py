"""Trace formats: a file here is a format; its name is the file's name, its reader the function of that name.

A reader is `def name(source) -> DataFrame` with the columns of `traces.schema`; `source` is a path with help
around it (`traces.source.Source`). Beside it, `def detect(head) -> bool` says whether a header or the first
record's keys are the format's; a format without it has to be named. Installed packages add formats under the
entry point group `foretoken.formats`; any `package.module:function` works too.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType

from traces.code import imported
from traces.head import Head
from traces.late import pd
from traces.schema import InputError
from traces.source import Source
from traces.table import ColumnTable

GROUP = "foretoken.formats"
GENERAL = ("common",)
"""Those that know kinds of files, and are asked where no other knows the file."""


@dataclass(frozen=True, slots=True)
class Format:
    """A reader with its name, its predicate (None: never detected) and one line about it."""

    name: str
    read: Callable[[Source], pd.DataFrame | ColumnTable]
    detect: Callable[[Head], bool] | None
    summary: str


def names() -> list[str]:
    return sorted({*_built_in(), *_added()})


def load(name: str) -> Format:
    """The format of that name, or of `package.module:function`. Raises InputError listing the known ones."""
    stem = name.replace("-", "_")
    if stem in _built_in():
        return _of(import_module(f"{__name__}.{stem}"), stem, stem)
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _imported(point.value, name)
    if ":" in name:
        return _imported(name, name)
    raise InputError(f"unknown trace format {name!r}; known are {', '.join(names())}, or package.module:function")


def detect(head: Head) -> list[Format]:
    """The formats that recognise the head; installed ones are asked where no built-in one does, general ones last."""
    own = [name for name in _built_in() if name not in GENERAL]
    for group in (lambda: own, _added, lambda: GENERAL):
        known = map(load, group())
        if found := [one for one in known if one.detect is not None and one.detect(head)]:
            return found
    return []


@lru_cache
def _built_in() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def _added() -> list[str]:
    return [point.name for point in entry_points(group=GROUP)]


def _imported(where: str, name: str) -> Format:
    module, _ = imported(where, f"trace format {name!r} cannot be imported")
    return _of(module, where.partition(":")[2], name)


def _of(module: ModuleType, function: str, name: str) -> Format:
    read = getattr(module, function, None)
    if not inspect.isfunction(read):
        raise InputError(f"trace format {name!r}: {module.__name__} has no function {function!r}")
    try:
        inspect.signature(read).bind("source")
    except TypeError:
        raise InputError(f"trace format {name!r} is not a function of a source (docs/traces.md)") from None
    summary = (module.__doc__ or "").strip().split("\n", 1)[0]
    return Format(name, read, getattr(module, "detect", None), summary)
