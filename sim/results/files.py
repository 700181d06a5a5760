"""Writing results: every file appears whole or not at all. It does not know what the files mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyarrow import parquet as pq

from sim.results.transaction import WAIT_S, Claim, Writer
from traces import documents
from traces import files as inputs
from traces.late import pa, pd
from traces.schema import InputError

__all__ = ["Writer", "as_json", "parquet", "raw", "read_json", "read_parquet", "text", "write_file", "write_files"]


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

    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def as_json(value: Any) -> Writer:
    """A writer of indented JSON; NaN is refused (ValueError), since JSON has none."""
    return text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def parquet(frame: pd.DataFrame, facts: Mapping[str, str] = MappingProxyType({}), **layout: Any) -> Writer:
    """A writer of a Parquet file (zstd); the same frame gives the same bytes.

    `facts` go into its metadata by name; `layout` is pyarrow's.
    """

    def write(path: Path) -> None:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        metadata = {name.encode(): value.encode() for name, value in facts.items()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
        with path.open("wb") as file:  # Python's file, so that a full disk is Python's error
            pq.write_table(table, file, compression="zstd", **layout)

    return write


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON object that has at least these keys; raises InputError where it cannot be read or lacks one."""
    value = documents.json_file(path, inputs.MAX_RESULT_BYTES)
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise InputError(f"{path} has no key {missing[0]!r}")
    return dict(value)


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
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{folder} does not hold what {by} of this version writes ({fault})") from error


def write_files(
    folder: Path, writers: Mapping[str, Writer], *, stale: Iterable[str] = (), claim: Claim | None = None
) -> list[Path]:
    """Write every file of `writers` (name -> writer) into `folder`, all or none (`sim.results.transaction`).

    `stale` are names that an earlier result may have left in it: those that are not written are removed. `claim` is
    of the folder, where the caller has taken it. Raises InputError, one sentence, for what the operating system
    refuses, and then leaves the folder as it was.
    """
    if claim is not None:
        return claim.write(writers, stale=stale)
    with Claim(folder, wait_s=WAIT_S) as taken:
        return taken.write(writers, stale=stale)


def write_file(path: Path, writer: Writer) -> None:
    """Write one file whole or not at all; its folder is made if it is not there. Raises InputError."""
    write_files(path.parent, {path.name: writer})
