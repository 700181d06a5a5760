"""Files that a scenario may name, made when they are first asked for: profiles of known laws, acceptance of a run."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.cost import profile
from sim.cost.tables import Table

# Beside this package, which is `tests.fuzz` or `fuzz`.
_KIT = import_module(".".join([*__name__.split(".")[:-2], "kits", "profile_kit"]))


def told(value: Any) -> Any:
    """A setting's value, with the path of the file that it names by "@" and a name."""
    return _path(value[1:]) if isinstance(value, str) and value.startswith("@") else value


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _path(name: str) -> str:
    path = _folder() / name
    ASSETS[name](path)
    return str(path)


def _looked_up(path: Path) -> None:
    drafts = {"rate_by_position": [0.8, 0.5, None], "found_by_position": [0.6, 0.5, 0.1]}
    path.write_text(json.dumps({"speculation": drafts}), encoding="utf-8")


def _mixed(path: Path) -> None:
    profile.write(_KIT.llama_profile(mixed=True), path)


def _uneven(path: Path) -> None:
    """Batches of unequal contexts cost more, which asks the engine for the longest of them."""
    made = _KIT.llama_profile()
    rows = list(made.tables["decode_attention"].rows())
    last = next(row for row in rows if (row["sequences"], row["mean_context_tokens"]) == (16, 1024))
    uneven = {**last, "max_context_tokens": 4096, "us": 1.4 * last["us"]}
    columns = ("dtype", "kv_dtype", "heads", "kv_heads", "head_dim", "window", "width", "sequences")
    columns = (*columns, "mean_context_tokens", "max_context_tokens", "us")
    table = Table.of("decode_attention", [{key: row[key] for key in columns} for row in [*rows, uneven]])
    profile.write(replace(made, tables={**made.tables, "decode_attention": table}), path)


ASSETS: dict[str, Callable[[Path], None]] = {"looked-up.json": _looked_up, "mixed": _mixed, "uneven": _uneven}
