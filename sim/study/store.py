"""A sweep's folder: what was asked, and every finished point as a line that outlives a kill. It runs nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from sim.report import files
from sim.report.folder import PAGE, check_free
from traces import documents
from traces import files as inputs
from traces.schema import InputError

ASKED, JOURNAL, TABLE = "sweep.toml", "points.jsonl", "sweep.parquet"
_READ = (".json", ".toml", ".csv")
"""Of a folder that a setting names, what a simulation reads: a model's or a profile's description, and no weights."""
_FILES = ("workload.trace", "workload.tokenizer", "model", "gpu", "cost.profile", "speculation.draft_model")
"""Settings that may name a file or a folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a point: its summary by dotted key, or the reason why it failed.

    `final` is False where another try may end otherwise: the worker was killed, or something unexpected happened.
    """

    reason: str | None
    stable: bool | None
    summary: Mapping[str, Any]
    final: bool = True


class Store:
    """The folder, locked for one sweep at a time. `done` holds the finished points that were in it, by number."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Open the folder of this sweep or make it.

        Raises:
            InputError: it is that of another sweep, another process is at work in it, or it cannot be written.
        """
        self.folder = folder
        self.done: dict[int, Outcome] = {}
        text = tomli_w.dumps(dict(asked))
        check_free(folder, "sweep")
        _check_same(folder, text)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {folder / JOURNAL}: {error.strerror}") from None
        try:
            self._take(text)
        except BaseException:
            os.close(self._journal)
            raise

    def _take(self, text: str) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.folder} is in use by a sweep that is still running") from None
        _check_same(self.folder, text)  # once more: another may have begun since
        for left in [one for name in (ASKED, TABLE, PAGE) for one in self.folder.glob(f".{name}.*.part")]:
            left.unlink(missing_ok=True)
        if (self.folder / ASKED).exists():
            os.ftruncate(self._journal, len(_whole(self.folder)))  # the line that a kill cut short is dropped
            self.done = finished(self.folder)
        elif os.fstat(self._journal).st_size:  # it is filled only after the other is there
            raise InputError(
                f"{self.folder} has a {JOURNAL} without {ASKED}; give another --out, or delete that folder"
            )
        else:
            files.write_file(self.folder / ASKED, files.text(text))

    def add(self, index: int, outcome: Outcome) -> None:
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


def _whole(folder: Path) -> bytes:
    """The whole lines of the journal; empty where there is none."""
    path = folder / JOURNAL
    content = inputs.content(path, inputs.MAX_RESULT_BYTES) if inputs.exists(path) else b""
    return content[: content.rfind(b"\n") + 1]


def finished(folder: Path) -> dict[int, Outcome]:
    """The finished points by number, also of a sweep that is still running; raises InputError for a damaged line."""
    done: dict[int, Outcome] = {}
    for number, line in enumerate(_whole(folder).splitlines(), 1):
        try:
            found = documents.loads(line)
            point = found.pop("point")
            done[point] = Outcome(**found)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                f"{folder / JOURNAL} line {number} is damaged; delete the line and its point runs again"
            ) from None
    return done


def asked_of(folder: Path) -> dict[str, Any]:
    """What the sweep in a folder was asked; raises InputError."""
    return documents.toml(folder / ASKED)


def _check_same(folder: Path, text: str) -> None:
    """Refuse the folder of another sweep, and say what differs."""
    path = folder / ASKED
    if not inputs.exists(path):
        return
    found = inputs.text(path)
    if found == text:
        return
    there, here = (dict(_leaves(documents.toml_of(one, str(path)))) for one in (found, text))
    keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key) and key != "points"]
    first = keys[0] if keys else "how it is written"
    told = f"{first} is {_short(there.get(first))} there and {_short(here.get(first))} here"
    more = f" (and {len(keys) - 1} more differences)" if len(keys) > 1 else ""
    raise InputError(f"{folder} holds another sweep: {told}{more}; give another --out, or delete that folder")


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


def fingerprints(settings: Mapping[str, list[Any]]) -> dict[str, str]:
    """What the files that settings name hold, by path: a sweep goes on only from the same.

    settings: the values of each dotted key.
    """
    paths = [Path(value) for key in _FILES for value in settings.get(key, []) if isinstance(value, str) and value]
    return {str(path): fingerprint(path) for path in paths if inputs.exists(path)}


def fingerprint(path: Path) -> str:
    """The digest of a file, or of what a simulation reads in a folder; raises InputError where it cannot be read."""
    inner = sorted(one for one in path.rglob("*") if one.suffix in _READ) if inputs.is_dir(path) else [path]
    digest = hashlib.sha256()
    for one in inner:
        digest.update(os.fsencode(one.relative_to(path)) + inputs.digest(one))
    return digest.hexdigest()
