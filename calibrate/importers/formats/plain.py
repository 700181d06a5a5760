"""A plain CSV of one's own: the columns of a profile's table, with times in us, ms or s. It checks no speed.

The table is recognised by its columns, so that any file name will do. A time column carries its unit: `us`, `ms` or `s`
where the table has `us`, `device_ms` where it has `device_us`. Columns that are alike in all rows may be left out:
types (then --dtype says them), `window` (0), `width` and `sequences` (1), `max_context_tokens` (the mean).
"""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.importers.draft import Draft, ImportOptions
from calibrate.importers.sheet import Cells, Sheet, Unusable, count, number
from sim.cost.schema import TABLES, Column, TableSpec
from sim.cost.tables import Value
from sim.specs.dtypes import DTYPE_BYTES
from traces.schema import InputError

_TO_US: Mapping[str, float] = {"us": 1.0, "ms": 1e3, "s": 1e6}
_TYPES = ("dtype", "weight_dtype", "kv_dtype")
_DEFAULTS: Mapping[str, int] = {"window": 0, "width": 1, "sequences": 1, "graph": 0}
_UNREAD = ("spread", "burst_us")
"""What `calibrate` writes beside a time, and no import keeps."""
_MEAN, _MOST = "mean_context_tokens", "max_context_tokens"


def table_of(sheet: Sheet) -> str | None:
    """The one table of a profile that has these columns."""
    names = [name for name, spec in TABLES.items() if _fits(spec, sheet.header)]
    return names[0] if len(names) == 1 else None


def _fits(spec: TableSpec, header: tuple[str, ...]) -> bool:
    times = [time_column(column, header) for column in spec.values]
    known = {column.name for column in (*spec.required, *spec.optional_keys)} - {column.name for column in spec.values}
    may_lack = {*_TYPES, *_DEFAULTS, *([_MOST] if spec.name == "decode_attention" else [])}
    needed = {column.name for column in (*spec.groups, *spec.axes, *spec.keys)} - may_lack
    return None not in times and needed <= set(header) and set(header) <= known | {*map(str, times), *_UNREAD}


def time_column(column: Column, header: tuple[str, ...]) -> str | None:
    """The column that holds a table's time, in whichever unit: `device_ms` for `device_us`; None where none does."""
    stem = column.name.removesuffix("us")
    columns = [f"{stem}{unit}" for unit in _TO_US if f"{stem}{unit}" in header]
    return columns[0] if len(columns) == 1 else None


def read(sheets: list[Sheet], options: ImportOptions) -> Draft:
    """All files together, each a table.

    Raises:
        InputError: no column says a type, and --dtype neither.
    """
    draft = Draft("a plain CSV of the user's", "their columns' units")
    for sheet in sheets:
        name = str(table_of(sheet))
        spec = TABLES[name]
        absent = _absent(spec, sheet, options)
        times = {column.name: str(time_column(column, sheet.header)) for column in spec.values}
        for place, cells in sheet.rows():
            with draft.reading(name, place):
                draft.add(name, place, **_row(spec, cells, absent, times))
        for key, value in absent.items():
            draft.note(f"{sheet.path.name} has no column {key}; taken as {value}.")
    return draft


def _absent(spec: TableSpec, sheet: Sheet, options: ImportOptions) -> dict[str, Value]:
    """What columns that the file lacks are taken as."""
    values: dict[str, Value] = {}
    for column in (*spec.groups, *spec.axes):
        if column.name in sheet.header:
            continue
        if column.name not in _TYPES:
            values[column.name] = _DEFAULTS[column.name]
            continue
        dtype = options.dtype()
        if dtype is None:
            raise InputError(f"{sheet.path}: no column {column.name!r}; add it, or say the type with --dtype")
        if dtype not in DTYPE_BYTES:
            raise InputError(f"--dtype {dtype!r} is none of {', '.join(DTYPE_BYTES)}")
        values[column.name] = "none" if spec.name == "elementwise" and column.name == "kv_dtype" else dtype
    return values


def _row(spec: TableSpec, cells: Cells, absent: dict[str, Value], times: dict[str, str]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    for column in (*spec.groups, *spec.axes, *spec.keys):
        if column.name in absent:
            row[column.name] = absent[column.name]
        elif column.name not in cells:  # only decode attention's largest context may be left out
            row[column.name] = row[_MEAN]
        elif column.kind == "text":
            row[column.name] = _text(column, cells)
        else:
            row[column.name] = count(cells, column.name, column.least)
    for column in spec.optional_keys:
        if column.name in cells:
            row[column.name] = count(cells, column.name, column.least)
    for name, key in times.items():
        row[name] = number(cells, key) * _TO_US[key.rpartition("_")[2]]
    return row


def _text(column: Column, cells: Cells) -> str:
    text = str(cells[column.name])
    if not text or (column.choices and text not in column.choices):
        raise Unusable(f"{column.name} is none of {', '.join(column.choices)}" if text else f"{column.name} is empty")
    return text
