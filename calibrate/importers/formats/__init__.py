"""Formats of other people's measurements: a file here is a format, by its name.

Each has `table_of(sheet)` (which of its tables a header is, or None) and `read(sheets, options)`, which makes a `Draft`
of the sheets that it recognised.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Protocol, cast

from calibrate.importers.draft import Draft, ImportOptions
from calibrate.importers.sheet import Sheet
from traces.schema import InputError


class ImportFormat(Protocol):
    """A module of this package."""

    def table_of(self, sheet: Sheet) -> str | None:
        """The format's own name of the table that has this header."""
        ...

    def read(self, sheets: list[Sheet], options: ImportOptions) -> Draft:
        """What these sheets hold; InputError where something that they do not say was not told."""
        ...


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ImportFormat:
    """A format by name; InputError lists the known ones."""
    if name not in names():
        raise InputError(f"unknown format {name!r}; known are {', '.join(names())}")
    return cast("ImportFormat", import_module(f"{__name__}.{name}"))


def recognise(sheets: list[Sheet]) -> str:
    """The one format that knows all the tables or, in a folder, most of them.

    Raises:
        InputError: none does, or several do.
    """
    known = {name: sum(load(name).table_of(sheet) is not None for sheet in sheets) for name in names()}
    best = max(known.values())
    likely = [name for name, tables in known.items() if tables == best]
    if best == 0:
        columns = ", ".join(sheets[0].header[:12])
        raise InputError(
            f"{sheets[0].path}: in no known format by its columns ({columns}); known formats are {', '.join(names())}"
        )
    if len(likely) > 1:
        raise InputError(f"{sheets[0].path}: could be {' or '.join(likely)} by its columns; name it with --format")
    return likely[0]
