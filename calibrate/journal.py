"""What was measured so far, one JSON line per case and pass, so that an interrupted calibration goes on where it was.

It stands beside the profile that is being made, and is removed when that is written. It begins with all that fitting
needs (`calibrate.header`), so that it can be taken to another machine. It fits nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from calibrate.cases import Case
from calibrate.header import Header
from calibrate.messages import VALUE, Message
from sim.cost.tables import Value
from traces import documents, files
from traces.schema import InputError

MOVES = "moves"
"""What stands for a case's name where block copies and swaps were measured."""


class Operation(NamedTuple):
    """What was measured: a table, and the row's columns but its times."""

    table: str
    row: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class OperationTime:
    """Microseconds of one launch of an operation: the middle of an entry's repeats. `row` are a table's columns.

    `waited`: in all of them the device waited for the launch, so that `us` is too long.
    """

    table: str
    row: Mapping[str, Value]
    us: float
    waited: bool = False


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


@dataclass(frozen=True, slots=True)
class MessageTime:
    """Microseconds of a collective in each repeat; `waited` as of an operation, `clocks` as of a case."""

    message: Message
    us: tuple[float, ...]
    waited: bool = False
    clocks: Mapping[str, float] | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> MessageTime:
        """From a line of the journal.

        Raises:
            TypeError, KeyError, ValueError: it is none.
        """
        one = cls(**{**told, "message": Message(**told["message"]), "us": tuple(map(float, told["us"]))})
        if one.message.op not in VALUE or not one.us:
            raise ValueError(f"{one.message.op!r} is no collective that is measured, or was not timed")
        return one


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong while `case` of a model was measured (empty: beside all cases), in words."""

    model: str
    case: str
    why: str

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.model, self.case) if part)
        return f"{where}: {self.why}" if where else self.why


class Journal:
    """An append-only file of entries and troubles, headed by what they are measurements of."""

    def __init__(self, path: Path, header: Header, *, resume: bool) -> None:
        """Open or begin the journal.

        Raises:
            InputError: there is one and it is not to be resumed, or it is of another calibration, or not a journal.
        """
        self.path = path
        self.header = header
        self.entries: list[JournalEntry] = []
        self.troubles: list[Trouble] = []
        self.messages: list[MessageTime] = []
        if files.exists(path):
            if not resume:
                raise InputError(f"{path} is there from an interrupted run; go on with --resume, or remove it")
            begun = read(path)
            _same(path, begun.header, header)
            self.entries, self.troubles = list(begun.entries), list(begun.troubles)
            self.messages = list(begun.messages)
            if begun.rest:  # killed in the middle of a line
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size - begun.rest)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"calibration": header.plain()})

    def add(self, entry: JournalEntry) -> None:
        """Keep an entry, on disk before this returns."""
        self.entries.append(entry)
        self._append(asdict(entry))

    def add_message(self, time: MessageTime) -> None:
        """Keep what a collective took, likewise."""
        self.messages.append(time)
        self._append({"collective": asdict(time)})

    def tell(self, trouble: Trouble) -> None:
        """Keep what went wrong; the same is kept once."""
        if trouble not in self.troubles:
            self.troubles.append(trouble)
            self._append({"trouble": asdict(trouble)})

    def done(self) -> set[tuple[str, str, int]]:
        return {entry.key for entry in self.entries}

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Begun(NamedTuple):
    """A journal as it was read; `rest` are the bytes of a line that was not written to its end."""

    header: Header
    entries: Sequence[JournalEntry]
    troubles: Sequence[Trouble]
    messages: Sequence[MessageTime]
    rest: int


def read(path: Path) -> Begun:
    """A journal, whole or cut at any byte behind its first line.

    Raises:
        InputError: it is not there, or not a journal of a calibration.
    """
    lines = files.content(path, files.MAX_RESULT_BYTES).split(b"\n")
    whole, rest = lines[:-1], lines[-1]
    told = [_line(path, line, number) for number, line in enumerate(whole, 1)]
    if not told or "calibration" not in told[0]:
        raise InputError(f"{path}: not a journal of a calibration")
    header = Header.of(told[0]["calibration"], path)
    entries: list[JournalEntry] = []
    troubles: list[Trouble] = []
    messages: list[MessageTime] = []
    for number, line in enumerate(told[1:], 2):
        try:
            if "trouble" in line:
                troubles.append(Trouble(**line["trouble"]))
            elif "collective" in line:
                messages.append(MessageTime.of(line["collective"]))
            else:
                points = tuple(OperationTime(**one) for one in line["points"])
                entries.append(JournalEntry(**{**line, "points": points}))
                _check(entries[-1], header, f"{path}:{number}")
        except (TypeError, KeyError, ValueError):
            raise InputError(f"{path}:{number}: not a line of a calibration's journal") from None
    return Begun(header, entries, troubles, messages, len(rest))


def _check(entry: JournalEntry, header: Header, where: str) -> None:
    if entry.model not in header.specs:
        raise InputError(f"{where}: names model {entry.model!r}, and its header does not")
    try:
        if entry.case != MOVES:
            Case.named(entry.case)
    except ValueError:
        raise InputError(f"{where}: {entry.case!r} is the name of no case") from None


def _same(path: Path, begun: Header, wanted: Header) -> None:
    was, goal = (json.loads(json.dumps(dict(one.compared()))) for one in (begun, wanted))
    for key, now in goal.items():
        if was.get(key) != now:
            raise InputError(
                f"{path}: was begun with {key} = {was.get(key)!r}, and now it is {now!r}; remove it, or give another "
                "--out"
            )


def _line(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        entry = documents.loads(line)
        if isinstance(entry, dict):
            return entry
    except ValueError:
        pass
    raise InputError(f"{path}:{number}: not a line of a calibration's journal")
