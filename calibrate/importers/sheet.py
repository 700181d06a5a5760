"""A table that others wrote (CSV or Parquet): its header, and its rows with their place. It knows no format.

Recognised by content: Parquet by its magic bytes, gzip and xz by theirs, everything else is CSV with a header.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from traces import documents, files, tables
from traces.schema import InputError

TABLE_NAMES = (".csv", ".csv.gz", ".csv.xz", ".parquet", "_perf.txt")
"""Ends of the names that are taken for tables in a folder (AIConfigurator's are CSV named `gemm_perf.txt`)."""

Cells = Mapping[str, Any]
# What its header says of a cell is checked here; a magnitude never is, since units belong to the format.
_MAX_COUNT = 2**53


class Unusable(Exception):  # noqa: N818 - a row is unusable; the error that the user sees is InputError
    """Why a row cannot be used, the same words for all rows alike."""


class Place(NamedTuple):
    """Where a row stands: file, and line of a CSV or row of a Parquet file, both from 1."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class Sheet:
    """One file: its column names now, its rows when asked."""

    path: Path
    header: tuple[str, ...]
    packed: bool
    """Whether it is Parquet."""

    def has(self, *names: str) -> bool:
        return all(name in self.header for name in names)

    def digest(self) -> str:
        return files.digest(self.path).hex()[:16]

    def rows(self) -> Iterator[tuple[Place, Cells]]:
        """(place, cells by column) of each row that is not empty.

        Raises:
            InputError: the file is no table after all, or a line has more or fewer values than the header.
        """
        numbered = enumerate(documents.table(self.path).to_pylist(), 1) if self.packed else self._csv()
        for number, cells in numbered:
            yield Place(self.path, number), cells

    def _csv(self) -> Iterator[tuple[int, Cells]]:
        lines = csv.reader(io.StringIO(_text(self.path)), strict=True)
        next(lines)
        try:
            for line in lines:
                if not line:
                    continue
                if len(line) != len(self.header):
                    raise InputError(
                        f"{self.path}:{lines.line_num}: {len(line)} values where the header has {len(self.header)}"
                    )
                yield lines.line_num, dict(zip(self.header, line, strict=True))
        except csv.Error as error:
            raise InputError(f"{self.path}:{lines.line_num}: not valid CSV ({error})") from None


def open_sheets(sources: list[Path]) -> list[Sheet]:
    """The tables in these files and folders (not in folders within), in order of name within a folder.

    Raises:
        InputError: one cannot be read, or holds no table.
    """
    sheets = []
    for source in sources:
        if not files.is_dir(source):
            sheets.append(open_sheet(source))
            continue
        inside = sorted(path for path in source.iterdir() if path.is_file() and path.name.endswith(TABLE_NAMES))
        if not inside:
            raise InputError(f"{source}: no table in this folder; tables end in {', '.join(TABLE_NAMES)}")
        sheets += [open_sheet(path) for path in inside]
    return sheets


def open_sheet(path: Path) -> Sheet:
    """A file with its header read; InputError where it has none."""
    start = files.start(path)
    if start[:4] == b"PAR1":
        return Sheet(path, documents.parquet_names(path), packed=True)
    if b"\0" in start:
        raise InputError(f"{path}: neither text (CSV) nor Parquet")
    return Sheet(path, tuple(tables.header_of(start.split(b"\n", 1)[0], path)), packed=False)


def _text(path: Path) -> str:
    try:
        return files.whole(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8 (byte {error.start + 1})") from None


def number(cells: Cells, key: str) -> float:
    """A positive, finite number; raises Unusable."""
    value = cells[key]
    if value is None or value == "":
        raise Unusable(f"{key} is empty")
    try:
        magnitude = float(value)
    except (TypeError, ValueError):
        raise Unusable(f"{key} is not a number") from None
    if not (math.isfinite(magnitude) and magnitude > 0.0):
        raise Unusable(f"{key} is not positive and finite")
    return magnitude


def count(cells: Cells, key: str, least: int = 1) -> int:
    """A whole number of at least `least`; raises Unusable."""
    try:
        size = float(cells[key])
    except (TypeError, ValueError):
        raise Unusable(f"{key} is not a number") from None
    if not (size.is_integer() and least <= size <= _MAX_COUNT):
        raise Unusable(f"{key} is not a whole number of at least {least}")
    return int(size)


def scalars(path: Path) -> dict[str, str]:
    """The top-level `key: value` lines of a YAML file; lists, blocks and comments are passed over.

    Enough for a name, a version and a date, which is all that is taken from such files.
    """
    values = {}
    for line in _text(path).splitlines():
        match = re.fullmatch(r"(\w+):\s+(\S.*?)\s*", line)
        if match and match[2][0] not in "[{|>&*":
            values[match[1]] = match[2].strip("'\"")
    return values
