"""What columns a log has: paths into its records, with the kind and some values of each. Knows no meaning of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from traces import documents, files
from traces.fields import BadRow, Stamp, number_of, real
from traces.head import Head, head_of
from traces.mapping.rows import parquet_rows, record_rows
from traces.schema import InputError
from traces.source import Options, Source
from traces.tables import header_of

SAMPLE_ROWS = 200
MAX_COLUMNS = 500
MAX_NESTING = 8
_STAMP = Stamp()


@dataclass(frozen=True, slots=True)
class LogColumn:
    """`path` leads to the value with dots between its steps; `values` are those of the sample that are not empty.

    `kind` is whole, number, stamp (a date and time), messages (of a chat), ids (a list of whole numbers), text, other,
    or empty, where the sample holds no value. `first_of_many` columns stand in the first of several objects of a list.
    """

    path: str
    kind: str
    values: tuple[Any, ...]
    absent: int
    first_of_many: bool = False

    @property
    def example(self) -> str:
        """A value as a table shows it."""
        text = " ".join(str(self.values[0] if self.values else "").split())
        return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Survey:
    """The columns of a file, in its order, from its first `SAMPLE_ROWS` rows.

    `inside` is the path to the lists whose objects are the rows (nothing: the records are); `lists` are paths to lists
    of several objects.
    """

    path: Path
    shape: str
    columns: tuple[LogColumn, ...]
    rows: int
    inside: str = ""
    lists: tuple[str, ...] = ()

    def column(self, path: str) -> LogColumn | None:
        return next((one for one in self.columns if one.path == path), None)

    @property
    def names(self) -> str:
        return shortened([one.path for one in self.columns])


def shortened(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")


def survey(path: Path, skip_bad: bool = False, inside: str = "") -> Survey:
    """The columns of a CSV, JSON or Parquet file. Raises InputError where it is none, or no row can be read."""
    head = head_of(path, skip_bad)
    if head.folder:
        raise InputError(f"{files.named(path)} is a folder; give one file")
    if head.shape == "log":
        raise InputError(f"{files.named(path)} holds lines of a server's log, which have no columns")
    if inside and head.shape != "json":
        raise InputError(f"{files.named(path)} is {head.shape}, not JSON: no list inside of its rows is read")
    sample = list(islice(_rows(path, head, inside), SAMPLE_ROWS))
    if not sample and inside:
        raise InputError(f"{files.named(path)} has no list of objects at {inside} in any record")
    if not sample:
        raise InputError(f"{files.named(path)} holds no rows from which its columns could be seen")
    values: dict[str, list[Any]] = {}
    crowded: set[str] = set()
    for record in sample:
        for name, value, many in _leaves(record):
            if name in values or len(values) < MAX_COLUMNS:
                values.setdefault(name, []).append(value)
                crowded.update([name] if many else [])
    columns = tuple(_column(name, found, len(sample), name in crowded) for name, found in values.items())
    lists = dict.fromkeys(name.rpartition(".0.")[0] for name in crowded)
    return Survey(path, head.shape, columns, len(sample), inside, tuple(sorted(lists)))


def _rows(path: Path, head: Head, inside: str) -> Iterator[dict[str, Any]]:
    if head.shape == "csv":
        return _csv_rows(path)
    if head.shape == "parquet":
        return (record for _, record in parquet_rows(path))
    # What cannot be read is told by the reader, which meets it again.
    source = Source(path, Options(skip_bad=True))
    return (record for _, record in record_rows(source, inside))


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    data = files.start(path, 1 << 20)
    whole = data if len(data) < 1 << 20 else data[: data.rfind(b"\n") + 1]
    header, _, rest = whole.partition(b"\n")
    names = header_of(header, path)
    reader = csv.reader(io.StringIO(rest.decode("utf-8", errors="replace"), newline=""))
    try:
        for cells in reader:
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
    except csv.Error:
        return


def _leaves(record: Any, path: str = "", many: bool = False, depth: int = 0) -> Iterator[tuple[str, Any, bool]]:
    """(path, value, is it in the first of many) of what is no object; of a list of objects its first one alone."""
    if isinstance(record, dict) and depth < MAX_NESTING:
        inner: Iterable[tuple[str, Any]] = record.items()
    elif isinstance(record, list) and depth < MAX_NESTING and _objects(record) and not is_messages(record):
        inner, many = [("0", record[0])], many or len(record) > 1
    else:
        yield path, record, many
        return
    for key, value in inner:
        yield from _leaves(value, f"{path}.{key}" if path else str(key), many, depth + 1)


def _objects(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict)


def is_messages(value: object) -> bool:
    """Whether this is a chat: a list of objects with a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def _column(path: str, found: list[Any], rows: int, many: bool) -> LogColumn:
    values = [value for value in found if value is not None and value not in ("", [])]
    return LogColumn(path, _kind(values), tuple(values), rows - len(values), many)


def _kind(values: list[Any]) -> str:
    if not values:
        return "empty"
    for kind, holds in _KINDS.items():
        if all(map(holds, values)):
            return kind
    return "other"


def _number(value: object) -> float | int | None:
    return real(number_of(value)) if isinstance(value, str) else real(value)


def _is_whole(value: object) -> bool:
    found = _number(value)
    return found is not None and found == int(found)


def _is_stamp(value: object) -> bool:
    try:
        _STAMP.parse(stamp_text(value))
    except BadRow:
        return False
    return True


def stamp_text(value: object) -> object:
    """A date and time of Parquet's as text; any other value as it is."""
    told = getattr(value, "isoformat", None)
    return told() if callable(told) else value.strip() if isinstance(value, str) else value


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def _is_chat(value: object) -> bool:
    return is_messages(unpacked(value))


def unpacked(value: object) -> object:
    """A list that stands as JSON in a text, as exports to CSV have it; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return documents.loads(value)
        except ValueError:
            return value
    return value


_KINDS = {
    "whole": _is_whole,
    "number": lambda value: _number(value) is not None,
    "stamp": _is_stamp,
    "messages": _is_chat,
    "ids": _is_ids,
    "text": lambda value: isinstance(value, str),
}
