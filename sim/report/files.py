"""Writing results: every file appears whole or not at all. It does not know what the files mean."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from traces import documents
from traces import files as inputs
from traces.schema import InputError

Writer = Callable[[Path], None]


def text(content: str | Iterable[str]) -> Writer:
    """A writer of UTF-8 text; an iterable of pieces is streamed and never held whole."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            if isinstance(content, str):
                file.write(content)
            else:
                file.writelines(content)

    return write


def raw(content: bytes) -> Writer:
    """A writer of bytes."""

    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def as_json(value: Any) -> Writer:
    """A writer of indented JSON; NaN is refused (ValueError), since JSON has none."""
    return text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def parquet(frame: pd.DataFrame) -> Writer:
    """A writer of a Parquet file (zstd); the same frame gives the same bytes."""

    def write(path: Path) -> None:
        with path.open("wb") as file:  # Python's file, so that a full disk is Python's error
            frame.to_parquet(file, engine="pyarrow", compression="zstd", index=False)

    return write


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON object that has at least these keys; raises InputError where it cannot be read or lacks one."""
    found = documents.json_file(path, inputs.MAX_RESULT_BYTES)
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise InputError(f"{path} has no key {missing[0]!r}")
    return dict(found)


def read_parquet(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """A table that has at least these columns; raises InputError where it cannot be read or lacks one."""
    table = documents.frame(path)
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}")
    return table


@contextmanager
def as_written(folder: Path, by: str) -> Iterator[None]:
    """What cannot be made of the files of `folder` is a fault of theirs: raises InputError, naming the command `by`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{folder} does not hold what {by} of this version writes ({told})") from error


def write_files(folder: Path, writers: Mapping[str, Writer], *, stale: Iterable[str] = ()) -> list[Path]:
    """Write every file of `writers` (name -> writer) into `folder`, which is made if it is not there.

    `stale` are names that an earlier result may have left in it: those that are not written are removed.

    All are written beside their places first and moved there together at the end, so that a failure (a full
    disk, no permission, an exception or Ctrl-C within a writer) changes nothing: earlier files of the same
    names stay as they were and a folder that was made is removed again. Raises InputError, one sentence, for
    what the operating system refuses.
    """
    made = _missing_parents(folder)
    waiting: dict[Path, Path] = {}
    target = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            target = folder / name
            waiting[target] = folder / f".{name}.{os.getpid()}.part"
            write(waiting[target])
        for target, part in waiting.items():
            os.replace(part, target)
        for target in [folder / name for name in stale if name not in writers]:
            target.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for part in waiting.values():
            part.unlink(missing_ok=True)
        _remove_if_empty(made)
    return list(waiting)


def write_file(path: Path, writer: Writer) -> None:
    """Write one file whole or not at all; its folder is made if it is not there. Raises InputError."""
    write_files(path.parent, {path.name: writer})


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that will have to be made for `folder` to exist, innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    return missing


def _remove_if_empty(folders: Iterable[Path]) -> None:
    for path in folders:
        try:
            path.rmdir()
        except OSError:  # it holds the files that were written, or was never made
            return
