"""TOML, JSON and Parquet that users name: parsed within bounds of size and depth, or refused in a sentence."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from traces import files
from traces.schema import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_DEPTH = 100
"""Tables within tables, lists within lists. What people write has 5 to 10."""
MAX_TOML_BYTES = 16 * 2**20
_QUOTED = re.compile(r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_RUN = re.compile(r"[\w\- \t.]+")


class TooDeepError(ValueError):
    """A value nested more deeply than `MAX_DEPTH`."""


def toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError, naming the line where it is no TOML."""
    return toml_of(files.text(path, MAX_TOML_BYTES), files.named(path))


def toml_of(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; `where` names it in the sentence of an InputError."""
    try:
        _check_keys(text)
        found = tomllib.loads(text)
        check_depth(found)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not TOML: {reason(error)}") from None
    return found


def json_file(path: Path, most: int = files.MAX_TEXT_BYTES) -> Any:
    """The value of a JSON file of at most `most` bytes. Raises InputError."""
    return json_of(files.text(path, most), files.named(path))


def json_of(text: str | bytes, where: str, decode: Callable[[str], Any] = json.loads) -> Any:
    """The value of a JSON text; `where` names it in the sentence of an InputError."""
    try:
        return loads(text, decode)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {reason(error)}") from None


def loads(text: str | bytes, decode: Callable[[str], Any] = json.loads) -> Any:
    """What `decode` makes of a JSON text; ValueError where it is none, or is nested too deeply."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        found = decode(text)
    except RecursionError:
        raise TooDeepError(_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(found)
    return found


def finite(text: str) -> Any:
    """The value of a JSON text without NaN and Infinity, which `json` reads and JSON has not."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def check_depth(value: Any) -> None:
    """Raise TooDeepError, a ValueError, for a value nested more deeply than anything that recurses over it can go."""
    level = [value]
    for _ in range(MAX_DEPTH):
        boxes = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not boxes:
            return
        level = [one for box in boxes for one in box]
    raise TooDeepError(_DEEP)


def reason(error: BaseException) -> str:
    """Why something could not be parsed, on one short line."""
    if isinstance(error, RecursionError):
        return _DEEP
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    told = (str(error).splitlines() or [type(error).__name__])[0]
    return "it has a number of thousands of digits" if told.startswith("Exceeds the limit") else told[:200]


_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def _check_keys(text: str) -> None:
    """Refuse dotted keys of many parts, on which `tomllib` spends the cube of their number."""
    if text.count(".") <= MAX_DEPTH:
        return
    text = _QUOTED.sub("q", text)
    for run in _RUN.finditer(text):
        if run.group().count(".") > MAX_DEPTH and text[run.end() : run.end() + 1] in ("=", "]"):
            raise TooDeepError(_DEEP)


def frame(path: Path) -> pd.DataFrame:
    """A Parquet file as pandas reads it; raises InputError."""
    import pandas as pd  # noqa: PLC0415 - a name that is not a table should be refused at once

    with _parquet(path) as file:
        return pd.read_parquet(file)


def table(path: Path) -> pa.Table:
    """A Parquet file as an Arrow table; raises InputError."""
    from pyarrow import parquet  # noqa: PLC0415

    with _parquet(path) as file:
        return parquet.read_table(file)


def parquet_names(path: Path) -> tuple[str, ...]:
    """The column names of a Parquet file; raises InputError."""
    from pyarrow import parquet  # noqa: PLC0415

    with _parquet(path) as file:
        return tuple(parquet.read_schema(file).names)


@contextmanager
def _parquet(path: Path) -> Iterator[BinaryIO]:
    """A Parquet file whose footer was read and promises no more than memory can hold."""
    from pyarrow import parquet  # noqa: PLC0415

    most = files.size_words(files.MAX_FILE_BYTES)
    with files.plain(path) as (raw, size):
        if size > files.MAX_FILE_BYTES:
            raise InputError(f"{files.named(path)} is more than {most}; split it")
        try:
            told = parquet.read_metadata(raw)
            # A page may say a million times what it says once, so values count as well as bytes.
            groups = [told.row_group(number) for number in range(told.num_row_groups)]
            values = sum(one.column(at).num_values for one in groups for at in range(one.num_columns))
            if max(8 * values, sum(one.total_byte_size for one in groups)) > files.MAX_FILE_BYTES:
                raise InputError(f"{files.named(path)} unpacks to more than {most}; split it")
            raw.seek(0)
            yield raw
        except (InputError, MemoryError):
            raise
        except Exception as error:  # whatever Arrow and pandas make of a file that is none of theirs
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"{files.named(path)} is cut off or not a valid Parquet file ({reason})") from None
