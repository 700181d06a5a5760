"""Traces to files: Foretoken's own CSV, JSON Lines and Parquet. A file appears whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pyarrow import parquet

from traces.late import pa, pd
from traces.schema import DTYPES, InputError, Trace

SHAPES = (".csv", ".jsonl", ".parquet")
PACKED = (".gz", ".xz")
_IDS = tuple(name for name, kind in DTYPES.items() if kind == "object")


def write(trace: Trace, path: str | Path) -> Path:
    """Writes the requests under the contract's column names, in the shape that the file's name says (.gz and .xz may
    follow .csv and .jsonl). Bytes depend on the trace alone. Raises InputError.
    """
    path = Path(path)
    shape = _shape(path)
    table = trace.requests.drop(columns=["source_row"])
    if not trace.has_arrivals:
        table = table.drop(columns=["arrival_s"])
    if trace.synthetic:
        table = table.assign(synthetic=True)
    with whole(path) as stream:
        if shape == ".parquet":
            columns = {name: _arrow(table[name]) for name in table.columns}
            parquet.write_table(pa.table(columns), stream)
        else:
            with packed(stream, path.suffix) as inner:
                (_csv if shape == ".csv" else _jsonl)(table, inner)
    return path


def write_lines(lines: Iterable[str], path: str | Path) -> Path:
    """Writes lines of text; .gz and .xz are packed, always to the same bytes."""
    path = Path(path)
    with whole(path) as stream, packed(stream, path.suffix) as inner:
        for line in lines:
            inner.write(line.encode("utf-8") + b"\n")
    return path


def check(path: Path, *, shaped: bool = True) -> None:
    """Refuse a path that cannot be written, before anything takes its time; with `shaped`, also one of unknown ending.

    Raises InputError.
    """
    if shaped:
        _shape(path)
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A stream to a file beside `path` that takes its place at the end; after an error nothing is left."""
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = stream.name
            yield stream  # type: ignore[misc]
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def packed(stream: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    """The stream itself, or one that packs into it. gzip's time stamp is 0 and it names no file."""
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=9, mtime=0) as inner:
            yield inner  # type: ignore[misc]
    elif suffix == ".xz":
        with lzma.open(stream, "wb") as inner:
            yield inner  # type: ignore[misc]
    else:
        yield stream


def _shape(path: Path) -> str:
    endings = path.suffixes
    shape = endings[-1] if endings else ""
    if shape in PACKED and len(endings) > 1 and endings[-2] != ".parquet":
        shape = endings[-2]
    if shape not in SHAPES:
        raise InputError(f"{path}: the name must end in {', '.join(SHAPES)} (.gz or .xz may follow the first two)")
    return shape


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _csv(table: pd.DataFrame, stream: BinaryIO) -> None:
    lists = {name: [" ".join(map(str, ids)) for ids in table[name]] for name in table.columns if name in _IDS}
    text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
    table.assign(**lists).to_csv(text, index=False, lineterminator="\n")
    text.flush()
    text.detach()


def _jsonl(table: pd.DataFrame, stream: BinaryIO) -> None:
    columns = {name: _plain(table[name]) for name in table.columns}
    for values in zip(*columns.values(), strict=True):
        stream.write(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False).encode("utf-8") + b"\n")


def _plain(column: pd.Series) -> list[object]:
    if column.name in _IDS:
        return [np.asarray(ids).tolist() for ids in column]
    if column.name == "acceptance":
        return [None if np.isnan(rate) else rate for rate in column]
    return list(column.tolist())


def _arrow(column: pd.Series) -> pa.Array:
    if column.name in _IDS:
        return pa.array([np.asarray(ids, dtype=np.int64) for ids in column], type=pa.list_(pa.int64()))
    return pa.array(column, from_pandas=True)
