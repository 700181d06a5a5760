"""A folder that one writer at a time fills, with all files of a result or none, whenever the writer is killed.

New files are written to a folder within it, NEW. Renaming that to DONE is the moment at which the result is there:
whoever opens the folder next, to write or to read, moves the files of a DONE to their places before anything else. All
files of the old result go before the first of the new comes, so that at no moment two results stand side by side.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from traces import documents
from traces.schema import InputError

LOCK, NEW, DONE, ORDER = ".foretoken.lock", ".foretoken.new", ".foretoken.done", ".order.json"
WAIT_S = 30.0
"""How long a writer that has nothing to lose by it waits for another, such as a page for a sweep that ends."""
POLL_S = 0.02

Writer = Callable[[Path], None]


class Lock:
    """A file that one process holds at a time. The system gives it back when the process ends, however that comes."""

    def __init__(self, path: Path, busy: str, *, wait_s: float = 0.0) -> None:
        """Take it, and make its folder where it is not there.

        Raises:
            InputError: `busy`, where another holds it for longer than `wait_s`.
            OSError: it cannot be made.
        """
        self.path = path
        self._made = _missing_parents(path.parent)
        until_s = time.monotonic() + wait_s
        while (held := self._try()) is None:
            if time.monotonic() >= until_s:
                raise InputError(busy)
            time.sleep(POLL_S)
        self._file = held

    def _try(self) -> int | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its holder made the folder, and has just removed it again
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(file).st_ino:
                    return file
        except BlockingIOError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # held by another, or removed by the one who held it
        return None

    def release(self) -> None:
        """Give it back and leave nothing: no file, and no folder that was made for it and is empty."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # it holds what was written
                return


class Claim:
    """A folder with its lock, from when a command begins until it has written: what cannot be written is known first.

    Taking it puts right what a killed writer left.
    """

    def __init__(self, folder: Path, *, wait_s: float = 0.0) -> None:
        """Take the folder, and make it where it is not there.

        Raises:
            InputError: another process is writing it, or the operating system refuses.
        """
        self.folder = folder
        try:
            self._lock = Lock(folder / LOCK, f"{folder} is in use by another command that writes to it", wait_s=wait_s)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
        try:
            _settle(folder)
            shutil.rmtree(folder / NEW, ignore_errors=True)
        except BaseException:
            self._lock.release()
            raise

    def write(self, writers: Mapping[str, Writer], *, stale: Iterable[str] = ()) -> list[Path]:
        """Write the files (name -> writer), and remove those of `stale` that are not among them: all or nothing.

        A failure before all are written (a full disk, an exception or Ctrl-C within a writer) changes nothing.
        Raises InputError, one sentence, for what the operating system refuses.
        """
        new, target = self.folder / NEW, self.folder
        gone = [name for name in stale if name not in writers]
        try:
            new.mkdir()
            for name, write in writers.items():
                target = self.folder / name
                if target.is_dir() and not target.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                write(new / name)
            target = self.folder
            order = {"files": list(writers), "gone": [*gone, *self._parts({*writers, *gone})]}
            (new / ORDER).write_text(json.dumps(order), encoding="utf-8")
            os.replace(new, self.folder / DONE)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        try:
            _settle(self.folder)
        except BaseException as error:  # the files are there and only have to be moved: once more
            _settle(self.folder)
            if not isinstance(error, InputError):
                raise
        return [self.folder / name for name in writers]

    def _parts(self, names: set[str]) -> list[str]:
        """What earlier versions left beside these files when they were killed."""
        part = re.compile(r"\.(.+)\.\d+\.part")
        matches = ((part.fullmatch(name), name) for name in os.listdir(self.folder))
        return sorted(name for match, name in matches if match and match[1] in names)

    def release(self) -> None:
        """Let others write; a folder that was made and stayed empty goes again."""
        self._lock.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def settle(folder: Path) -> None:
    """Finish what a killed writer had decided: to be called before a folder is read. Raises InputError."""
    try:
        waiting = (folder / DONE).exists()
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from None
    if waiting:
        Claim(folder, wait_s=WAIT_S).release()


def _settle(folder: Path) -> None:
    """Move the files of a DONE to their places. It may be interrupted anywhere and called again."""
    done, target = folder / DONE, folder
    if not done.exists():
        return
    try:
        if (done / ORDER).exists():  # it goes last
            order = documents.json_file(done / ORDER)
            waiting = [name for name in order["files"] if (done / name).exists()]
            for name in [*order["gone"], *waiting]:
                target = folder / name
                target.unlink(missing_ok=True)
            for name in waiting:
                target = folder / name
                os.replace(done / name, target)
            target = done
            (done / ORDER).unlink()
        done.rmdir()
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; the result is whole in {done}, and the next command on "
            "this folder goes on from there"
        ) from error


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that will have to be made for `folder` to exist, innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    return missing
