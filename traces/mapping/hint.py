"""What a refusal of an unknown file adds: its columns, and the command that would read them."""

from __future__ import annotations

import shlex
from pathlib import Path

from traces.mapping.assign import command, typed
from traces.mapping.guess import guess, missing
from traces.mapping.survey import survey
from traces.schema import InputError


def import_hint(path: Path, skip_bad: bool = False) -> str:
    """The end of a sentence; empty where the file has no columns that could be named."""
    try:
        found = survey(path, skip_bad)
        assignments = guess(found, {})
    except InputError:
        return ""
    if len(found.columns) < 2:
        return ""
    lacking = missing(assignments)
    if not lacking:
        return f"; its columns are {found.names}: `{command(path, assignments)}` would read them"
    example = ",".join([*([typed(assignments)] if assignments else []), *(f"{name}=COLUMN" for name in lacking)])
    words = shlex.join(["sim", "trace", "import", str(path), "--map"])
    return (
        f"; its columns are {found.names}: `{words} {shlex.quote(example)} -o OUT.csv` reads them, once you name "
        f"{' and '.join(lacking)}, a number of tokens or a text"
    )
