"""The run id that every file of a results folder has: made of the content, so that the same run has the same id.

It stands in a Parquet file's metadata, under a key of a JSON object, in a comment at the top of TOML and in the head of
a page.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import ArrowException
from pyarrow import parquet as pq

from sim.results import files
from sim.results.transaction import Writer
from traces import documents
from traces import files as inputs
from traces.late import pd
from traces.schema import InputError

KEY = "run_id"
LETTERS = 16
HEAD_BYTES = 4096
"""Where the id of a text file stands."""
JSON_BYTES = 8 * 2**20
"""A JSON file up to this size is read whole: another program may have put its keys in another order."""
_TEXT = re.compile(rf'{KEY}"?(?:\s*[:=]\s*"?| content=")([0-9a-f]{{{LETTERS}}})\b')
_CHARSET = '<meta charset="utf-8">'


def digest(*parts: str | Mapping[str, Any] | pd.DataFrame) -> str:
    sha = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            sha.update(len(piece).to_bytes(8, "little"))
            sha.update(piece)
    return sha.hexdigest()[:LETTERS]


def _pieces(part: str | Mapping[str, Any] | pd.DataFrame) -> Iterable[bytes]:
    if isinstance(part, str):
        yield part.encode()
    elif isinstance(part, pd.DataFrame):
        for name in part.columns:
            yield f"{name} {part[name].dtype}".encode()
            yield from _column(part[name])
    else:
        yield json.dumps(part).encode()


def _column(column: pd.Series[Any]) -> Iterable[bytes]:
    if isinstance(column.dtype, np.dtype) and column.dtype != object:
        yield column.to_numpy().tobytes()
        return
    try:
        codes, names = pd.factorize(column.astype(object))
    except TypeError:  # lists and arrays
        yield from (np.asarray(item).tobytes() for item in column)
    else:
        yield codes.astype(np.int64).tobytes()
        yield "\0".join(map(repr, names)).encode()


def table(frame: pd.DataFrame, mark: str, **layout: Any) -> Writer:
    return files.parquet(frame, {KEY: mark}, **layout)


def document(value: Mapping[str, Any], mark: str) -> Writer:
    return files.as_json({KEY: mark, **value})


def page(html: str, mark: str) -> Writer:
    return files.text(html.replace(_CHARSET, f'{_CHARSET}\n<meta name="{KEY}" content="{mark}">', 1) if mark else html)


def toml(text: str, mark: str) -> Writer:
    return files.text(f"# {KEY} = {mark}\n{text}")


def without_comment(text: str) -> str:
    """The TOML that `toml` was given."""
    first, _, rest = text.partition("\n")
    return rest if first.startswith(f"# {KEY} = ") else text


def mark_of(path: Path) -> str:
    """The id of a file; "" for one without, as earlier versions wrote them. Raises InputError: it cannot be read."""
    try:
        with inputs.plain(path) as (raw, size):
            if path.suffix == ".parquet":
                return str((pq.read_metadata(raw).metadata or {}).get(KEY.encode(), b""), "utf-8")
            if path.suffix == ".json" and size <= JSON_BYTES:
                return _of_json(documents.loads(raw.read(JSON_BYTES)))
            head = _TEXT.search(raw.read(HEAD_BYTES).decode("utf-8", "replace"))
        return head[1] if head else ""
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"cannot read {path}: {documents.reason(error)}") from None


def _of_json(document: Any) -> str:
    """Under the key itself, or in the first object that is there: of a trace `otherData`, of a comparison a variant."""
    if not isinstance(document, dict):
        return ""
    inner = next((value for value in document.values() if isinstance(value, dict)), {})
    written = document.get(KEY) or inner.get(KEY)
    return written if isinstance(written, str) else ""


def check_one(folder: Path, names: Iterable[str]) -> str:
    """The id that all of these files in a folder have, as far as they are there; "" where none has one.

    Raises:
        InputError: they are of two runs, or one has an id and another none.
    """
    return agree(folder, marks_of(folder, names))


def marks_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The id of each of these files that is there. Raises InputError."""
    return {name: mark_of(folder / name) for name in names if (folder / name).exists()}


def agree(folder: Path, ids: Mapping[str, str]) -> str:
    """The id that these files in a folder have; raises InputError where they are not alike."""
    first = next(iter(ids), "")
    for name, id in ids.items():
        if id != ids[first]:
            raise InputError(
                f"{folder} mixes two results: {first} {_of(ids[first])} and {name} {_of(id)}; make it again, or "
                "delete the folder"
            )
    return ids.get(first, "")


def _of(mark: str) -> str:
    return f"has the run id {mark}" if mark else "has no run id"


def unmarked(folder: Path) -> str:
    """What is said of a folder whose files have no id."""
    return (
        f"{folder} is from an earlier version, without run ids: whether its files are of one run is not known; the "
        "command that wrote it, given again, makes sure"
    )
