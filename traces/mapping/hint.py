"""What a refusal of an unknown file adds: its columns, and the command that would read them."""

from __future__ import annotations

import shlex
from pathlib import Path

from traces.fields import number_of
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
    names = [column.path for column in found.columns]
    if found.shape == "csv" and all(isinstance(number_of(name), (int, float)) for name in names):
        return "; its first line holds numbers, not the names of columns: put a line of names before it"
    if len(names) < 2:
        apart = next((sign for sign in (";", "\t", "|") if sign in names[0]), "") if found.shape == "csv" else ""
        return f"; its columns are set apart by {apart!r}, and only commas are known" if apart else ""
    lacking = missing(assignments)
    if not lacking:
        return f"; its columns are {found.names}: `{command(path, assignments)}` would read them"
    example = ",".join([*([typed(assignments)] if assignments else []), *(f"{name}=COLUMN" for name in lacking)])
    words = shlex.join(["sim", "trace", "import", str(path), "--map"])
    return (
        f"; its columns are {found.names}: `{words} {shlex.quote(example)} -o OUT.csv` reads them, once you name "
        f"{' and '.join(lacking)}, a number of tokens or a text"
    )
