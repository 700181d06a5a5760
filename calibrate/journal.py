"""What was measured so far, one JSON line per case and pass, so that an interrupted calibration goes on where it was.

It stands beside the profile that is being made, and is removed when that is written. It fits nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sim.cost.tables import Value
from traces import documents, files
from traces.schema import InputError


class Operation(NamedTuple):
    """What was measured: a table, and the row's columns but its times."""

    table: str
    row: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class OperationTime:
    """Microseconds of one launch of an operation: the middle of an entry's repeats. `row` are a table's columns."""

    table: str
    row: Mapping[str, Value]
    us: float


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A case of a model as measured in one pass: operations, seconds of the whole step, telemetry of the device.

    Of executions whose `operations` were timed, `work_s` is the sum of these, `beside_s` what else the step took, and
    `timed_s` the whole; 0 where they were not timed. Timing makes a step longer, and not its operations.
    """

    model: str
    case: str
    number: int
    measured_in: int
    points: tuple[OperationTime, ...]
    operations: int
    work_s: float
    beside_s: float
    timed_s: float
    device_s: float
    host_s: float
    graph_device_s: float | None = None
    graph_host_s: float | None = None
    clocks: Mapping[str, float] | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.model, self.case, self.measured_in


class Journal:
    """An append-only file of entries, headed by what they are measurements of."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Open or begin the journal.

        Raises:
            InputError: there is one and it is not to be resumed, or it is of another calibration, or not a journal.
        """
        self.path = path
        self.entries: list[JournalEntry] = []
        header = json.loads(json.dumps({"calibration": dict(settings)}))
        if files.exists(path):
            if not resume:
                raise InputError(f"{path} is there from an interrupted run; go on with --resume, or remove it")
            self._read(header)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(header)

    def add(self, entry: JournalEntry) -> None:
        """Keep an entry, on disk before this returns."""
        self.entries.append(entry)
        self._append(asdict(entry))

    def done(self) -> set[tuple[str, str, int]]:
        return {entry.key for entry in self.entries}

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, header: Mapping[str, Any]) -> None:
        lines = files.content(self.path, files.MAX_RESULT_BYTES).split(b"\n")
        whole, rest = lines[:-1], lines[-1]
        entries = [self._line(line, number) for number, line in enumerate(whole, 1)]
        if not entries or "calibration" not in entries[0]:
            raise InputError(f"{self.path}: not a journal of a calibration")
        begun, wanted = entries[0]["calibration"], header["calibration"]
        for key in wanted:
            if begun.get(key) != wanted[key]:
                raise InputError(
                    f"{self.path}: was begun with {key} = {begun.get(key)!r}, and now it is {wanted[key]!r}; remove "
                    "it, or give another --out"
                )
        self.entries = [_entry(line) for line in entries[1:]]
        if rest:  # killed in the middle of a line
            with self.path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in whole))

    def _line(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = documents.loads(line)
            if isinstance(entry, dict):
                return entry
        except ValueError:
            pass
        raise InputError(f"{self.path}:{number}: not a line of a calibration's journal")


def _entry(line: Mapping[str, Any]) -> JournalEntry:
    points = tuple(OperationTime(one["table"], one["row"], one["us"]) for one in line["points"])
    return JournalEntry(**{**line, "points": points})
