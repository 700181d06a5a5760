"""One table of a profile: its rows by column, checked when read or made, and written as CSV. It prices nothing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sim.cost.schema import TABLES, Column, TableSpec
from traces.schema import InputError

Value: TypeAlias = str | int | float
Row: TypeAlias = Mapping[str, Value]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """One table's rows, by column: texts as tuples, numbers as float64 arrays (counts are exact in them)."""

    spec: TableSpec
    columns: Mapping[str, tuple[str, ...] | Floats]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @classmethod
    def of(cls, name: str, rows: Iterable[Row], where: str = "") -> Table:
        """A checked table of rows {column: value}; optional columns are kept where the first row has them.

        Raises:
            InputError: an unknown table or column, a missing one, a value out of range, two rows alike.
        """
        spec = spec_of(name)
        found = list(rows)
        place = where or f"table {name}"
        if not found:
            raise InputError(f"{place}: has no rows")
        return _checked(spec, list(found[0]), ([row.get(key, "") for key in found[0]] for row in found), place, "row")

    def texts(self, name: str) -> tuple[str, ...]:
        """A column of texts."""
        found = self.columns[name]
        assert isinstance(found, tuple)
        return found

    def numbers(self, name: str) -> Floats:
        """A column of numbers, float64 [rows]."""
        found = self.columns[name]
        assert not isinstance(found, tuple)
        return found

    def rows(self) -> Iterator[dict[str, Value]]:
        """The rows one by one; counts as int."""
        whole = {column.name for column in self.spec.known if column.kind == "count"}
        columns: list[Sequence[Value]] = []
        for name, values in self.columns.items():
            if isinstance(values, tuple):
                columns.append(values)
            else:
                columns.append((values.astype(np.int64) if name in whole else values).tolist())
        names = list(self.columns)
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True))

    def grouped(self) -> dict[tuple[Value, ...], npt.NDArray[np.intp]]:
        """Row numbers of each kernel: values of the group columns (counts as int) -> rows, in the table's order."""
        names = [column.name for column in self.spec.groups]
        found: dict[tuple[Value, ...], list[int]] = {}
        for at, row in enumerate(self.rows()):
            found.setdefault(tuple(row[name] for name in names), []).append(at)
        return {key: np.array(rows) for key, rows in found.items()}

    def csv(self) -> str:
        """The table as it is written: one header, numbers as short as they can be told apart at six digits."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows():
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row.values())
        return out.getvalue()


def spec_of(name: str) -> TableSpec:
    """The columns of a table; InputError lists the known tables."""
    if name not in TABLES:
        raise InputError(f"unknown table {name!r}; known are {', '.join(TABLES)}")
    return TABLES[name]


def read_table(path: Path) -> Table:
    """The table of a file `<name>.csv`.

    Raises:
        InputError: it cannot be read or is not such a table; names file and line.
    """
    spec = spec_of(path.stem)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    lines = csv.reader(io.StringIO(text))
    header = next(lines, [])
    return _checked(spec, header, lines, str(path), "line", first=2)


def _checked(
    spec: TableSpec, header: list[str], lines: Iterable[Sequence[Any]], path: str, noun: str, first: int = 1
) -> Table:
    columns = _columns(spec, header, path)
    values: list[list[Any]] = [[] for _ in columns]
    seen: dict[tuple[Any, ...], int] = {}
    picked = [at for at, column in enumerate(columns) if column.name in spec.identity or column in spec.optional_keys]
    for number, line in enumerate(lines, first):
        where = f"{path}:{number}" if noun == "line" else f"{path}, row {number}"
        if len(line) != len(columns):
            raise InputError(f"{where}: {len(line)} values where the header has {len(columns)}")
        row = [_value(column, text, where) for column, text in zip(columns, line, strict=True)]
        before = seen.setdefault(tuple(row[at] for at in picked), number)
        if before != number:
            raise InputError(f"{where}: measures the same as {noun} {before}")
        for kept, value in zip(values, row, strict=True):
            kept.append(value)
    if not seen:
        raise InputError(f"{path}: has no rows")
    made: dict[str, tuple[str, ...] | Floats] = {
        column.name: tuple(kept) if column.kind == "text" else np.array(kept, np.float64)
        for column, kept in zip(columns, values, strict=True)
    }
    return Table(spec, made)


def _columns(spec: TableSpec, header: list[str], path: str) -> list[Column]:
    known = {column.name: column for column in spec.known}
    for name in header:
        if name not in known:
            raise InputError(f"{path}: unknown column {name!r}; known are {', '.join(known)}")
        if header.count(name) > 1:
            raise InputError(f"{path}: column {name!r} is there twice")
    for column in spec.required:
        if column.name not in header:
            raise InputError(f"{path}: column {column.name!r} is missing")
    return [known[name] for name in header]


def _value(column: Column, text: Any, where: str) -> Value:
    name = column.name
    if column.kind == "text":
        if column.choices and text not in column.choices:
            raise InputError(f"{where}: {name} {text!r} is none of {', '.join(column.choices)}")
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: {name} is empty")
        return text
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name} {text!r} is not a number") from None
    if column.kind == "count":
        if not (number.is_integer() and column.least <= number <= 2**53):
            raise InputError(f"{where}: {name} {text!r} must be a whole number, at least {column.least}")
        return int(number)
    if not math.isfinite(number) or number < 0.0 or (number == 0.0 and not column.zero):
        raise InputError(f"{where}: {name} {text!r} must be positive and finite")
    return number
