"""CSV files as tables: a fast path for files without fault, and a slow one that finds the line at fault.

Knows columns and their kinds, not what they mean. The fast path (pyarrow) takes a file only if nothing in it
needs a closer look; everything else goes row by row through the same kinds.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces import files
from traces.fields import BadRow, Count, Kind, Probability, Stamp, Time, broken, number_of
from traces.late import arrow_csv, pa, pd
from traces.schema import InputError
from traces.table import ColumnTable

PLAIN_BYTES = 1 << 22
"""Of a file that numpy reads in less time than importing the libraries of tables takes."""
_UTC = b"+00:00"
_REAL = rb"\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,3})?"
_PLAIN: Mapping[type, tuple[bytes, npt.DTypeLike]] = {
    Count: (rb"-?\d{1,8}", np.int64),
    Time: (_REAL, np.float64),
    Probability: (_REAL, np.float64),
    Stamp: (rb"(?:19[7-9]|20\d|21[0-6])\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:\+00:00)?", "S29"),
}
"""By kind: cells about which numpy and `Kind.cell` cannot differ, and what numpy takes them for."""
Reject = Callable[[int, BadRow], None]


def header_of(line: bytes, path: Path) -> list[str]:
    """The column names of a CSV file. Raises InputError where one stands twice or the line is no text."""
    try:
        names = [name.strip() for name in next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))]
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise InputError(f"{path} line 1: the header cannot be read ({error})") from None
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} line 1: the column {name!r} stands twice")
    return names


def read_csv(path: Path, columns: Mapping[str, Kind], reject: Reject) -> pd.DataFrame:
    """The columns asked for (optional ones where the file has them) and `source_row`, the line of each row.

    `reject(line, why)` is called for each row that cannot be used. Raises InputError for faults of the file.
    """
    data = files.whole(path)
    end = data.find(b"\n")
    names = header_of(data if end < 0 else data[:end], path)
    wanted = {name: kind for name, kind in columns.items() if name in names}
    if missing := [name for name, kind in columns.items() if name not in wanted and not kind.optional]:
        raise InputError(f"{path} line 1: the column {missing[0]!r} is missing; there are {', '.join(names)}")
    if end < 0 or not data[end:].strip():
        raise InputError(f"{path} holds a header but no requests")
    table = _at_once(data, names, wanted)
    if table is None:
        values = _row_by_row(data, names, wanted, reject)
        table = pd.DataFrame({name: _series(column) for name, column in values.items()})
    return table


def read_plain(path: Path, columns: Mapping[str, Kind]) -> ColumnTable | None:
    """The same of a file of numbers and dates in which nothing needs a closer look; None of any other.

    Every byte is matched with what its column may hold before any is read.
    """
    data = files.start(path, PLAIN_BYTES + 1)
    if len(data) > PLAIN_BYTES:
        return None
    head, _, _ = data.partition(b"\n")
    kinds = {name: columns.get(name) for name in header_of(head, path)}
    if not all(type(kind) in _PLAIN for kind in kinds.values()):
        return None
    row = b",".join(_PLAIN[type(kind)][0] for kind in kinds.values())
    rows = re.compile(b"(?:%b\r?\n)*+(?:%b)?[\r\n]*" % (row, row))
    start = len(head) + 1
    if rows.fullmatch(data, start) is None or not data[start : start + 100].strip():
        return None
    types = np.dtype([(name, _PLAIN[type(kind)][1]) for name, kind in kinds.items()])
    lines = io.BytesIO(data.replace(_UTC, b""))
    cells = np.loadtxt(lines, types, comments=None, delimiter=",", skiprows=1, ndmin=1, encoding="latin1")
    out: dict[str, npt.NDArray[Any]] = {"source_row": np.arange(2, len(cells) + 2)}
    for name, kind in kinds.items():
        assert kind is not None
        try:
            given = cells[name].astype("M8[ns]").view(np.int64) if isinstance(kind, Stamp) else cells[name].copy()
        except ValueError:
            return None  # there is no such date
        values = kind.column(given)
        if values is None:
            return None
        out[name] = np.asarray(values)
    return ColumnTable(out)


def _at_once(data: bytes, names: list[str], columns: Mapping[str, Kind]) -> pd.DataFrame | None:
    tries = max(len(kind.arrow) for kind in columns.values())
    for attempt in range(tries):
        types = {name: _arrow_type(kind.arrow[min(attempt, len(kind.arrow) - 1)]) for name, kind in columns.items()}
        try:
            table = arrow_csv.read_csv(
                pa.py_buffer(data),
                read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1),
                parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=list(types), column_types=types, null_values=[""], strings_can_be_null=False
                ),
            )
            break
        except (pa.ArrowInvalid, pa.ArrowKeyError):
            continue
    else:
        return None
    if table.num_rows != data.count(b"\n") - data.endswith(b"\n"):
        return None  # a line end inside quotes: rows are not lines
    out: dict[str, Any] = {"source_row": np.arange(2, table.num_rows + 2)}
    for name, kind in columns.items():
        column = table[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        values = kind.column(column.to_pandas())
        if values is None:
            return None
        out[name] = values if values.dtype == "string" else np.asarray(values)
    return pd.DataFrame(out)


def _arrow_type(name: str) -> pa.DataType:
    if name.startswith("timestamp"):
        return pa.timestamp("ns", tz="UTC" if name.endswith("UTC") else None)
    return {"int64": pa.int64, "float64": pa.float64, "string": pa.string}[name]()


def _row_by_row(data: bytes, names: list[str], columns: Mapping[str, Kind], reject: Reject) -> dict[str, list[Any]]:
    place = {name: names.index(name) for name in columns}
    out: dict[str, list[Any]] = {name: [] for name in ("source_row", *columns)}
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    next(reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
            if cells:
                values = _parsed(cells, names, place, columns)
                out["source_row"].append(line)
                for name, value in values.items():
                    out[name].append(value)
        except StopIteration:
            break
        except csv.Error as error:
            reject(line, BadRow(f"is not valid CSV ({error})", "is not valid CSV"))
        except BadRow as why:
            reject(line, why)
    return out


def _series(values: list[Any]) -> pd.Series:
    return pd.Series(values, dtype=object if values and isinstance(values[0], np.ndarray) else None)


def _parsed(
    cells: list[str], names: list[str], place: Mapping[str, int], columns: Mapping[str, Kind]
) -> dict[str, Any]:
    if any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell):
        raise BadRow("is not valid UTF-8")
    if len(cells) != len(names):
        raise BadRow(f"has {len(cells)} fields; the header has {len(names)}", "wrong number of fields")
    values = {}
    for name, kind in columns.items():
        cell = cells[place[name]]
        try:
            values[name] = kind.cell(cell)
        except BadRow as rule:
            raise broken(name, number_of(cell) if cell else "empty", rule) from None
    return values
