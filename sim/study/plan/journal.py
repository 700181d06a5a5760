"""Where a plan keeps each replication as it comes, so that the same question goes on from it. It knows no plan."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from sim.study.plan.glance import Glance, of_line, to_line
from traces import documents
from traces.schema import InputError

NAME = "plan.jsonl"
MOST_BYTES = 1 << 30


class PlanJournal:
    """Glances by key, in memory and, with a file, on disk: one write for each, so that a kill loses a line at most.

    Raises InputError where the file cannot be read or written, or a whole line of it is damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, Glance] = {}
        self._file: int | None = None
        if path is None:
            return
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            facts = os.fstat(self._file)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
                raise InputError(f"{path} is no file of a plan; delete it, or give another --out")
            whole = self._whole()
            os.ftruncate(self._file, len(whole))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = documents.loads(line)
                key = str(entry.pop("key"))
                self.known[key] = of_line(entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(f"{path} line {number} is damaged; delete it and it is simulated again") from None

    def _whole(self) -> bytes:
        """The whole lines; a line that a kill cut short is dropped."""
        assert self._file is not None
        content = b""
        while part := os.pread(self._file, 1 << 20, len(content)):
            content += part
        return content[: content.rfind(b"\n") + 1]

    def get(self, key: str, *, whole: bool) -> Glance | None:
        """What is known; one that was ended early does not do where the whole is asked for."""
        glance = self.known.get(key)
        return None if glance is None or (whole and glance.stopped) else glance

    def add(self, key: str, glance: Glance) -> None:
        self.known[key] = glance
        if self._file is None:
            return
        left = memoryview(to_line(key, glance))
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def working_file(mark: str) -> Path:
    """Where a plan without --out keeps what it has, by the identity of its question; none but the user can read it.

    Raises InputError where there is no such place.
    """
    folder = Path(tempfile.gettempdir()) / f"foretoken-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; give --out") from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise InputError(f"{folder} is not a folder of yours alone, so nothing can be kept there; give --out")
    return folder / f"plan-{mark[:16]}.jsonl"
