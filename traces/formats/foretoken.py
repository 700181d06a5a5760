"""Foretoken's own CSV, JSON Lines and Parquet: the columns of the trace contract under their own names, in seconds.

Times stay as they are. In CSV, lists of ids stand with blanks between them; `after` counts data rows from 0. A
column `synthetic` marks a generated trace. Without arrival_s the file holds lengths only. Prompts are whole, unless the
user says that a later turn's length is that of its new text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from traces import documents, tables, turns
from traces.fields import BadRow, Count, Ids, Kind, Probability, Text, Time, get
from traces.head import Head
from traces.late import pa, pd
from traces.names import BlockNames
from traces.schema import DTYPES, MAX_TOKENS, REQUIRED
from traces.source import Source
from traces.table import ColumnTable

COLUMNS: Mapping[str, Kind] = {
    "arrival_s": Time("s"),
    "prompt_tokens": Count(),
    "output_tokens": Count(),
    "session": Text(optional=True),
    "turn": Count(0, default=0),
    "after": Count(-1, default=-1),
    "think_s": Time("s", optional=True),
    "prefix_blocks": BlockNames(optional=True),
    "prefix_block_tokens": Count(),
    "prefix_starts": Ids(optional=True),
    "token_ids": Ids(optional=True),
    "output_token_ids": Ids(optional=True),
    "model": Text(optional=True),
    "adapter": Text(optional=True),
    "samples": Count(default=1),
    "priority": Count(-MAX_TOKENS, default=0),
    "acceptance": Probability(),
}
PLAIN = (*REQUIRED, "samples", "priority", "acceptance")
"""Columns of numbers that say nothing of other rows."""
LENGTHS = ("prompt_tokens", "output_tokens")
UNREAD = ("source_row", "synthetic")


def detect(head: Head) -> bool:
    ours = head.has("arrival_s") or all(key in COLUMNS or key in UNREAD for key in head.keys)
    return head.has("prompt_tokens", "output_tokens") and ours


def foretoken(source: Source) -> ColumnTable | pd.DataFrame:
    if (plain := _plain(source)) is not None:
        return source.clock(plain, "arrival_s", ordered=True, shift=False)
    shape = source.head.shape
    table = {"csv": _csv, "json": _json, "parquet": _parquet}[shape](source)
    if "after" in table and source.rejected:
        table["after"] = _relinked(table, source.rejected)
    if "think_s" in table:
        table["think_s"] = table["think_s"].fillna(0.0)
    source.has_arrivals = "arrival_s" in table
    if not source.has_arrivals:
        return turns.asked(source, table.assign(arrival_s=0.0))
    return turns.asked(source, source.clock(table, "arrival_s", ordered=True, shift=False))


def _plain(source: Source) -> ColumnTable | None:
    """A CSV of requests with their times and no ties between them; None of what needs a closer look."""
    if source.head.shape != "csv":
        return None
    table = tables.read_plain(source.path, {name: COLUMNS[name] for name in PLAIN})
    if table is None or any(name not in table for name in REQUIRED):
        return None
    return ColumnTable({name: table[name] for name in DTYPES if name in table})


def _csv(source: Source) -> pd.DataFrame:
    names = source.columns()
    _known(source, names)
    wanted = {name: kind for name, kind in COLUMNS.items() if name in names or name in LENGTHS}
    if "synthetic" in names:
        wanted["synthetic"] = Text(optional=True)
    table = source.table(wanted)
    if "synthetic" in table:
        source.synthetic = bool((table.pop("synthetic").str.lower() == "true").any())
    return table


def _json(source: Source) -> pd.DataFrame:
    present: set[str] = set()

    def row(record: dict[str, Any], line: int) -> dict[str, Any]:
        if unknown := [key for key in record if key not in COLUMNS and key not in UNREAD]:
            raise BadRow(f"has the unknown key {unknown[0]!r}; known are {', '.join(COLUMNS)}", "unknown key")
        found = {name: get(record, name, COLUMNS[name]) for name in record if name in COLUMNS}
        if missing := [name for name in LENGTHS if name not in found]:
            raise BadRow(f"{missing[0]} is missing")
        found["source_row"] = line
        present.update(found)
        return found

    rows = source.each(row)
    if "arrival_s" in present:
        rows = [found for found in rows if _timed(source, found)]
    columns = {}
    for name in ("source_row", *(name for name in COLUMNS if name in present)):
        kind = COLUMNS.get(name)
        absent = kind.parse(None) if kind is not None and kind.optional else None
        values = [found.get(name, absent) for found in rows]
        columns[name] = pd.Series(values, dtype="object" if DTYPES[name] == "object" else None)
    return pd.DataFrame(columns)


def _timed(source: Source, found: dict[str, Any]) -> bool:
    """Whether the row has a time, as others have."""
    if "arrival_s" not in found:
        source.reject(found["source_row"], BadRow("arrival_s is missing, and other rows have one", "no arrival_s"))
    return "arrival_s" in found


def _parquet(source: Source) -> pd.DataFrame:
    source.where = "row"
    table = documents.table(source.path)
    _known(source, table.column_names)
    if "synthetic" in table.column_names:
        flags = table["synthetic"].to_pylist()
        source.synthetic = any(flag is True for flag in flags)
        table = table.drop_columns(["synthetic"])
    columns: dict[str, Any] = {"source_row": np.arange(1, table.num_rows + 1)}
    for name in table.column_names:
        if name == "source_row":
            continue
        column = table[name]
        if DTYPES[name] == "object":
            columns[name] = _id_lists(source, name, column)
        elif DTYPES[name] == "string":
            columns[name] = column.to_pandas().astype("string").fillna("")
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            columns[name] = column.to_pandas()
        else:
            source.fail(f"has {name} of type {column.type}; it must be a number")
    if not table.num_rows:
        source.fail("holds no requests")
    return pd.DataFrame(columns)


def _id_lists(source: Source, name: str, column: Any) -> pd.Series:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
        source.fail(f"has {name} of type {kind}; it must be lists of whole numbers")
    if any(chunk.flatten().null_count for chunk in column.chunks):
        source.fail(f"has an empty id in {name}")
    empty = np.empty(0, dtype=np.int64)
    rows = [empty if row is None else row.astype(np.int64) for row in column.to_pandas()]
    return pd.Series(rows, dtype=object)


def _known(source: Source, names: list[str]) -> None:
    if unknown := [name for name in names if name not in COLUMNS and name not in UNREAD]:
        source.fail(f"line 1: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")


def _relinked(table: pd.DataFrame, rejected: list[int]) -> np.ndarray:
    """`after` counts the file's rows; here are fewer. One that named a rejected row names none."""
    lines = np.sort(np.concatenate([table["source_row"].to_numpy(), np.array(rejected, dtype=np.int64)]))
    place = np.full(len(lines), -1, dtype=np.int64)
    place[np.searchsorted(lines, table["source_row"].to_numpy())] = np.arange(len(table))
    after = table["after"].to_numpy(dtype=np.int64)
    known = (after >= 0) & (after < len(lines))
    return np.where(known, place[np.where(known, after, 0)], np.where(after < 0, -1, len(table)))
