"""What a format is recognised by: the header of a CSV or Parquet file, or the keys of the first JSON record.

Magnitudes are never looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from traces import documents, files
from traces.schema import InputError
from traces.tables import header_of

WINDOW_BYTES = (1 << 16, 1 << 20, files.MAX_LINE_BYTES)
_SERVER_LOG = re.compile(rb"^[^\n{]{0,200}\] Received request \S+: ", re.MULTILINE)
"""A line of a server's log, as vLLM prints them; such a file has neither header nor keys. Lines of JSON are none."""
JSON_SUFFIXES = (".json", ".json.gz", ".json.xz")


@dataclass(frozen=True, slots=True)
class Head:
    """`shape` is csv, json, parquet or log (lines of a server); `keys` are column names, or the first record's keys."""

    shape: str
    keys: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    folder: bool = False

    def has(self, *names: str) -> bool:
        return all(name in self.keys for name in names)

    def __str__(self) -> str:
        what = {"json": "keys of the first record", "log": "lines"}.get(self.shape, "column names")
        return f"{what}: {', '.join(self.keys[:20])}" + (", ..." if len(self.keys) > 20 else "")


def head_of(path: Path, skip_bad: bool = False) -> Head:
    """Raises InputError where there is neither header nor keys. With `skip_bad`, later records may serve."""
    if files.is_dir(path):
        inside = json_files(path)
        first = head_of(inside[0])
        return Head(first.shape, first.keys, first.record, folder=True)
    data = files.start(path)
    if data[:4] == b"PAR1":
        return Head("parquet", documents.parquet_names(path))
    if data[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; `sim trace synth servegen` reads ServeGen's parameters from one")
    if b"\0" in data:
        raise InputError(f"{path} is neither text (CSV, JSON) nor Parquet")
    if _SERVER_LOG.search(files.start(path, WINDOW_BYTES[1])):
        return Head("log", ("Received request",))
    begin = data.lstrip()
    if not begin:
        raise InputError(f"{path} is empty")
    if begin[:1] in (b"{", b"["):
        record = _first_record(path, skip_bad)
        return Head("json", tuple(record), record)
    return Head("csv", tuple(header_of(data.split(b"\n", 1)[0], path)))


def json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder in order of name. Raises InputError where there is none."""
    try:
        found = sorted(item for item in folder.iterdir() if item.name.endswith(JSON_SUFFIXES))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    if not found:
        raise InputError(f"{folder} is a folder without .json files; give a file")
    return found


def _first_record(path: Path, skip_bad: bool) -> dict[str, Any]:
    decoder = json.JSONDecoder()
    problem = ""
    for size in WINDOW_BYTES:
        data = files.start(path, size)
        text = data.decode("utf-8", errors="replace").lstrip()
        first_line = text.split("\n", 1)[0]
        for candidate in (first_line, text.removeprefix("[").lstrip()):
            try:
                found = documents.loads(candidate, lambda text: decoder.raw_decode(text)[0])
            except ValueError as error:
                problem = documents.reason(error)
                continue
            if isinstance(found, dict):
                return found
            problem = f"{type(found).__name__} instead of an object"
        if len(data) < size:
            break
    if skip_bad:
        for _, line in islice(files.lines(path), 1000):
            try:
                found = documents.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    raise InputError(f"{path} line 1: no JSON object can be read ({problem})")
