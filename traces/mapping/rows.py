"""Records of a log, whatever holds them (JSON Lines, an array, a list in an object, Parquet), and paths into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces import documents, files
from traces.fields import BadRow
from traces.source import Source

HOLDERS = ("data", "requests", "records", "items", "rows", "results", "logs", "entries", "events", "spans", "traces")
"""Keys under which exports keep their rows."""
MISSING = object()


def record_rows(source: Source, inside: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or number, record) of a JSON file. What cannot be read is rejected as `Source.records` does it.

    With `inside`, the objects of the list at that path of each record, numbered through the file.
    """
    if not inside:
        yield from _whole_rows(source)
        return
    number = 0
    for line, record in _whole_rows(source):
        held = at(record, inside)
        if not isinstance(held, list):
            source.reject(line, BadRow(f"has no list at {inside}"))
            continue
        source.where = "record"
        for one in held:
            number += 1
            if isinstance(one, dict):
                yield number, one
            else:
                source.reject(number, BadRow("is not a JSON object"))


def _whole_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file.

    One object that is no JSON Lines file holds its rows in a list: under a name of `HOLDERS`, else the only list of
    objects that it has; without such a list it is the one row itself.
    """
    document = _holder(source)
    if document is None:
        yield from source.records()
        return
    held = held_rows(document)
    source.where = "record"
    for number, record in enumerate([document] if held is None else document[held], start=1):
        if isinstance(record, dict):
            yield number, record


def _holder(source: Source) -> dict[str, Any] | None:
    """The object that is all of a file; None for JSON Lines and arrays."""
    lines = files.lines(source.path)
    _, first = next(lines)
    try:
        found = documents.loads(first[: files.MAX_LINE_BYTES])
    except ValueError:
        if first[:1] != b"{" or next(lines, None) is None:
            return None
        try:
            found = documents.loads(files.whole(source.path))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
    alone = isinstance(found, dict) and next(lines, None) is None
    return found if alone and held_rows(found, named=True) is not None else None


def held_rows(document: dict[str, Any], named: bool = False) -> str | None:
    """The key of the list that holds an object's rows; with `named` only one of `HOLDERS`."""
    lists = [key for key, value in document.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if usual := [key for key in HOLDERS if key in lists]:
        return usual[0]
    return lists[0] if len(lists) == 1 and not named else None


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, record) of a Parquet file."""
    number = 0
    for batch in documents.table(path).to_batches(max_chunksize=4096):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def at(value: Any, path: str) -> Any:
    """What stands at a path of keys and list indices with dots between them; MISSING where there is nothing.

    Keys may hold dots themselves, as those of OpenTelemetry do: the longest key that is there goes first.
    """
    if isinstance(value, dict):
        if path in value:
            return value[path]
        cut = path.rfind(".")
        while cut > 0:
            if path[:cut] in value and (found := at(value[path[:cut]], path[cut + 1 :])) is not MISSING:
                return found
            cut = path.rfind(".", 0, cut)
    elif isinstance(value, list):
        step, _, rest = path.partition(".")
        if step.isdecimal() and len(step) < 6 and int(step) < len(value):
            return at(value[int(step)], rest) if rest else value[int(step)]
    return MISSING
