"""A sweep's folder: what was asked, and every finished point as a line that outlives a kill. It runs nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from sim.results import files, run_id
from sim.results.folder import PAGE, check_free
from sim.results.transaction import Lock
from sim.study.identity import differing
from traces import documents
from traces import files as inputs
from traces.schema import InputError

QUESTION, JOURNAL, TABLE = "sweep.toml", "points.jsonl", "sweep.parquet"
LOCK = ".foretoken.sweep.lock"
MOST_NAMES = 3
"""Of files that have changed, so many are named."""


@dataclass(frozen=True, slots=True)
class PointOutcome:
    """What came of a point: its summary by dotted key, or the reason why it failed.

    `final` is False where another try may end otherwise: the worker was killed, or something unexpected happened.
    """

    reason: str | None
    stable: bool | None
    summary: Mapping[str, Any]
    final: bool = True


class Store:
    """The folder, locked for one sweep at a time.

    `done` holds the finished points that were in it and still stand, by number, `again` those that run again, and
    `reason` why they do. `mark` is the id that the table and the page have.
    """

    def __init__(
        self,
        folder: Path,
        question: Mapping[str, Any],
        made_of_point: Callable[[int], Iterable[str]] = lambda point: (),
    ) -> None:
        """Open the folder of this sweep or make it; what was made of something that has changed since is dropped.

        Args:
            folder: where it is.
            question: all that was asked, and as `made_of` the digests of what the points are made of.
            made_of_point: the ingredients of a point, by its number.

        Raises:
            InputError: it is that of another sweep, another process is at work in it, or it cannot be written.
        """
        self.folder = folder
        self.done: dict[int, PointOutcome] = {}
        self.again: list[int] = []
        self.reason = ""
        self.mark = ""
        text = tomli_w.dumps(dict(question))
        check_free(folder, "sweep")
        _check_same(folder, text)
        try:
            self._lock = Lock(folder / LOCK, f"{folder} is in use by a sweep that is still running")
            try:
                _check_same(folder, text)  # once more: another may have begun since
                self._take(text, question, made_of_point)
                self._journal = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise InputError(f"cannot write {folder / JOURNAL}: {error.strerror}") from None

    def _take(self, text: str, question: Mapping[str, Any], made_of_point: Callable[[int], Iterable[str]]) -> None:
        folder, journal = self.folder, self.folder / JOURNAL
        self.mark = run_id.digest(text)
        if not (folder / QUESTION).exists():
            if journal.exists() and journal.stat().st_size:  # it is filled only after the other is there
                raise InputError(
                    f"{folder} has a {JOURNAL} without {QUESTION}; give another --out, or delete that folder"
                )
            files.write_file(folder / QUESTION, files.text(text))
            return
        changed = differing(question_of(folder).get("made_of", {}), question.get("made_of", {}))
        lines = bytearray()
        for point, outcome, line in _entries(folder):
            if changed and not changed.keys().isdisjoint(made_of_point(point)):
                self.again.append(point)
            else:
                self.done[point] = outcome
                lines += line
        if inputs.text(folder / QUESTION) != text:  # of another version, or made of something else
            files.write_files(
                folder, {QUESTION: files.text(text), JOURNAL: files.raw(bytes(lines))}, stale=(TABLE, PAGE)
            )
        elif journal.exists():
            os.truncate(journal, len(lines))  # the line that a kill cut short is dropped
        if self.again:
            names = sorted({name for some in changed.values() for name in some})
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            self.reason = (
                f"{len(self.done):,} of {question['points']:,} points reused, {len(set(self.again)):,} run again since "
                f"{', '.join(names[:MOST_NAMES])}{more} changed"
            )

    def add(self, index: int, outcome: PointOutcome) -> None:
        """Keep a finished point, in one write."""
        line = json.dumps({"point": index, **asdict(outcome)}, allow_nan=False) + "\n"
        try:
            left = memoryview(line.encode())
            while left:
                left = left[os.write(self._journal, left) :]
        except OSError as error:
            raise InputError(f"cannot write {self.folder / JOURNAL}: {error.strerror}") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._journal)
        self._lock.release()


def _whole(folder: Path) -> bytes:
    """The whole lines of the journal; empty where there is none."""
    path = folder / JOURNAL
    content = inputs.content(path, inputs.MAX_RESULT_BYTES) if inputs.exists(path) else b""
    return content[: content.rfind(b"\n") + 1]


def finished(folder: Path) -> dict[int, PointOutcome]:
    """The finished points by number, also of a sweep that is still running; raises InputError for a damaged line."""
    return {point: outcome for point, outcome, _ in _entries(folder)}


def _entries(folder: Path) -> Iterator[tuple[int, PointOutcome, bytes]]:
    """Each whole line of the journal: its point, what came of it, and itself."""
    for number, line in enumerate(_whole(folder).splitlines(keepends=True), 1):
        try:
            entry = documents.loads(line)
            point = int(entry.pop("point"))
            outcome = PointOutcome(**entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                f"{folder / JOURNAL} line {number} is damaged; delete the line and its point runs again"
            ) from None
        yield point, outcome, line


def question_of(folder: Path) -> dict[str, Any]:
    """What the sweep in a folder was asked; raises InputError."""
    return documents.toml(folder / QUESTION)


def mark_of(folder: Path) -> str:
    """The id that the table and the page of the sweep in a folder have; "" for one of an earlier version."""
    return run_id.digest(inputs.text(folder / QUESTION)) if "made_of" in question_of(folder) else ""


def _check_same(folder: Path, text: str) -> None:
    path = folder / QUESTION
    if not inputs.exists(path):
        return
    written = inputs.text(path)
    if written == text:
        return
    there, here = (dict(_leaves(documents.toml_of(tables, str(path)))) for tables in (written, text))
    keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key) and not _of_making(key)]
    if not keys:
        return
    first = keys[0]
    difference = f"{first} is {_short(there.get(first))} there and {_short(here.get(first))} here"
    more = f" (and {len(keys) - 1} more differences)" if len(keys) > 1 else ""
    raise InputError(f"{folder} holds another sweep: {difference}{more}; give another --out, or delete that folder")


def _of_making(key: str) -> bool:
    """Whether a key tells what the points are made of, and not what was asked; `files` is of earlier versions."""
    return key in ("version", "points") or key.startswith(("made_of.", "files."))


def _leaves(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)


def _short(text: str | None) -> str:
    if text is None:
        return "not set"
    return text if len(text) <= 100 else f"{text[:100]}..."
