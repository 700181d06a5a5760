"""One table of a profile: its rows by column, checked when read or made, and written as CSV. It prices nothing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sim.cost.schema import TABLES, Column, TableSpec
from traces import files
from traces.schema import InputError

Value: TypeAlias = str | int | float
Row: TypeAlias = Mapping[str, Value]
Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.intp]
Picked: TypeAlias = npt.NDArray[np.intp]
"""Numbers of some of a table's rows."""

_MOST_COUNT = 2**53
MOST = 1e12
"""Of a time in microseconds, eleven days, and of everything else that is no count."""
MAX_TABLE_BYTES = 256 * 2**20


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
        rows = list(rows)
        place = where or f"table {name}"
        if not rows:
            raise InputError(f"{place}: has no rows")
        return _checked(spec, list(rows[0]), ([row.get(key, "") for key in rows[0]] for row in rows), place, "row")

    def texts(self, name: str) -> tuple[str, ...]:
        """A column of texts."""
        column = self.columns[name]
        assert isinstance(column, tuple)
        return column

    def numbers(self, name: str) -> Floats:
        """A column of numbers, float64 [rows]."""
        column = self.columns[name]
        assert not isinstance(column, tuple)
        return column

    def rows(self) -> Iterator[dict[str, Value]]:
        """The rows one by one; counts as int."""
        names = list(self.columns)
        for row in zip(*map(self._values, names), strict=True):
            yield dict(zip(names, row, strict=True))

    def grouped(self) -> dict[tuple[Value, ...], Picked]:
        """Row numbers of each kernel: values of the group columns (counts as int) -> rows, in the table's order."""
        names = [column.name for column in self.spec.groups]
        varying = [self._values(name) for name in names if not _alike(self.columns[name])]
        groups: dict[tuple[Value, ...], list[int]] = {}
        for at, key in enumerate(zip(*varying, strict=True)):
            groups.setdefault(key, []).append(at)
        picked = [np.array(rows) for rows in groups.values()] or [np.arange(len(self))]
        return {tuple(self._values(name, rows[:1])[0] for name in names): rows for rows in picked}

    def _values(self, name: str, rows: Picked | None = None) -> Sequence[Value]:
        """A column as Python values, of all rows or of some; counts as int."""
        values = self.columns[name]
        if isinstance(values, tuple):
            return values if rows is None else [values[at] for at in rows]
        whole = {column.name for column in self.spec.known if column.kind == "count"}
        picked = values if rows is None else values[rows]
        plain: list[Value] = (picked.astype(np.int64) if name in whole else picked).tolist()
        return plain

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
    text = files.text(path, MAX_TABLE_BYTES)
    lines = csv.reader(io.StringIO(text))
    try:
        return _checked(spec, next(lines, []), lines, str(path), "line", first=2, text=text)
    except csv.Error as error:
        raise InputError(f"{path}:{lines.line_num}: not valid CSV ({error})") from None


def _parsed(columns: Sequence[Column], text: str) -> list[Sequence[str] | Floats] | None:
    """The columns of a file, which its header names, where it is plain enough that commas and line ends tell all."""
    rows = text.count("\n") - text.endswith("\n")
    if not rows or '"' in text or "\r" in text or "\0" in text:
        return None
    text, alike = _shortened(text, rows)
    names = [(column.name, object if column.kind == "text" else np.float64) for column in columns]
    try:
        made = np.loadtxt(io.StringIO(text), names[len(alike) :], comments=None, delimiter=",", skiprows=1, ndmin=1)
        same = [
            [cell] * rows if kind is object else np.full(rows, float(cell))
            for cell, (_, kind) in zip(alike, names, strict=False)
        ]
    except ValueError:
        return None
    if len(made) != rows:  # empty lines
        return None
    apart = names[len(alike) :]
    return [
        *same,
        *(made[name].tolist() if kind is object else np.ascontiguousarray(made[name]) for name, kind in apart),
    ]


def _shortened(text: str, rows: int) -> tuple[str, list[str]]:
    """The text without the cells with which all of its rows begin, and these: most are of one kernel, or few."""
    first, last = text.index("\n") + 1, text.rindex("\n", 0, len(text) - 1) + 1
    ends = zip(text[first : text.find("\n", first)].split(",")[:-1], text[last:].split(","), strict=False)
    alike = [cell for cell, _ in takewhile(lambda both: both[0] == both[1], ends)]
    begin = "".join([f"{cell}," for cell in alike])
    short = text.replace(f"\n{begin}", "\n")
    if not begin or len(text) - len(short) != rows * len(begin):
        return text, []
    return short, alike


def _checked(
    spec: TableSpec,
    header: list[str],
    lines: Iterable[Sequence[Any]],
    path: str,
    noun: str,
    first: int = 1,
    text: str = "",
) -> Table:
    """The table of lines; `text` is the file that they are of, if they are of one."""
    columns = _columns(spec, header, path)
    values = _parsed(columns, text)
    picked = [at for at, column in enumerate(columns) if column.name in spec.identity or column in spec.optional_keys]
    made = _made(columns, picked, values) if values is not None else None
    if made is None:
        lines = list(lines)
        if {len(line) for line in lines} == {len(columns)}:
            made = _made(columns, picked, list(zip(*lines, strict=True)))
    if made is None:
        _refuse(columns, picked, lines, path, noun, first)
        raise AssertionError(f"{path}: checked column by column it is wrong, and line by line it is not")
    return Table(spec, made)


def _made(
    columns: Sequence[Column], picked: Sequence[int], values: Sequence[Sequence[Any] | Floats]
) -> dict[str, tuple[str, ...] | Floats] | None:
    """The columns, checked one by one since there may be tens of thousands of lines; None if any line is wrong."""
    made: dict[str, tuple[str, ...] | Floats] = {}
    for column, cells in zip(columns, values, strict=True):
        try:
            if column.kind == "text":
                for cell in set(cells):
                    _value(column, cell, "")
                made[column.name] = tuple(cells)
                continue
            numbers = cells if isinstance(cells, np.ndarray) else np.array(list(map(float, cells)))
        except (InputError, TypeError, ValueError):
            return None
        if not _allowed(column, numbers):
            return None
        made[column.name] = numbers
    return made if apart([made[columns[at].name] for at in picked]) else None


def apart(keys: Sequence[tuple[str, ...] | Floats]) -> bool:
    """Whether no two rows have the same keys, of which there is one at least."""
    numbers: list[npt.NDArray[Any]] = []
    for key in keys:
        if not _alike(key):
            codes: dict[str, int] = {}
            numbers.append(
                np.array([codes.setdefault(text, len(codes)) for text in key]) if isinstance(key, tuple) else key
            )
    if not numbers:
        return len(keys[0]) == 1
    order = np.lexsort(numbers)
    before, after = order[:-1], order[1:]
    return not np.logical_and.reduce([key[before] == key[after] for key in numbers]).any()


def _alike(values: tuple[str, ...] | Floats) -> bool:
    """Whether a column has one value in all rows."""
    return values.count(values[0]) == len(values) if isinstance(values, tuple) else bool((values == values[0]).all())


def _allowed(column: Column, numbers: Floats) -> bool:
    """Whether all of a column's numbers are as `_value` asks of each."""
    if column.kind == "count":
        whole = (numbers >= column.least) & (numbers <= _MOST_COUNT) & (numbers == np.floor(numbers))
        return bool(whole.all())
    above = numbers >= 0.0 if column.zero else numbers > 0.0
    return bool((above & (numbers <= MOST)).all())


def _refuse(
    columns: Sequence[Column], picked: Sequence[int], lines: Iterable[Sequence[Any]], path: str, noun: str, first: int
) -> None:
    """Raise InputError for the first line that is wrong, or for there being none."""
    first_lines: dict[tuple[Any, ...], int] = {}
    for number, line in enumerate(lines, first):
        where = f"{path}:{number}" if noun == "line" else f"{path}, row {number}"
        if len(line) != len(columns):
            raise InputError(f"{where}: {len(line)} values where the header has {len(columns)}")
        row = [_value(column, text, where) for column, text in zip(columns, line, strict=True)]
        before = first_lines.setdefault(tuple(row[at] for at in picked), number)
        if before != number:
            raise InputError(f"{where}: measures the same as {noun} {before}")
    if not first_lines:
        raise InputError(f"{path}: has no rows")


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
        if not (number.is_integer() and column.least <= number <= _MOST_COUNT):
            raise InputError(f"{where}: {name} {text!r} must be a whole number, at least {column.least}")
        return int(number)
    if not math.isfinite(number) or number < 0.0 or (number == 0.0 and not column.zero):
        raise InputError(f"{where}: {name} {text!r} must be positive and finite")
    if number > MOST:
        raise InputError(f"{where}: {name} {text!r} must be at most {MOST:g}")
    return number
