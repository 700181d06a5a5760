"""What a mapping is: for fields of a request the column, its kind and its unit; and how a person writes one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.mapping.names import TARGETS
from traces.mapping.survey import LogColumn, Survey
from traces.mapping.times import UNITS
from traces.schema import InputError

TIMED = ("arrival", "end", "duration", "think")


@dataclass(frozen=True, slots=True)
class Assignment:
    """A field of a request and the column that tells it; `unit` of times alone, `why` says how this is known.

    The unit of a `doubtful` one is a guess.
    """

    target: str
    column: LogColumn
    unit: str = ""
    why: str = ""
    doubtful: bool = False

    @property
    def kind(self) -> str:
        return self.column.kind

    def __str__(self) -> str:
        return f"{self.target}={self.column.path}" + (f":{self.unit}" if self.unit else "")


def typed(assignments: Iterable[Assignment]) -> str:
    """The mapping as a person types it behind --map."""
    return ",".join(map(str, assignments))


def command(path: Path, assignments: Iterable[Assignment], out: Path | None = None, inside: str = "") -> str:
    """The command that imports a file by a mapping, ready to be typed."""
    written = out or Path(f"{path.name.split('.')[0] or 'log'}.trace.csv")
    rows = ["--rows", inside] if inside else []
    words = ["sim", "trace", "import", str(path), *rows, "--map", typed(assignments), "-o", str(written), "--yes"]
    return shlex.join(words)


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Field -> column (with its unit, where one is given) of texts such as `arrival=ts:ms,prompt=usage.prompt_tokens`.

    An empty column leaves the field out. Raises InputError for an unknown field or one that is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        for part in re.split(r",(?=\s*[A-Za-z_]+=)", text):
            target, sign, column = part.partition("=")
            target = target.strip()
            if not sign:
                raise InputError(f"--map {part!r} is no field=column, such as arrival=timestamp")
            if target not in TARGETS:
                raise InputError(f"--map {part!r}: there is no field {target!r}; known are {', '.join(TARGETS)}")
            if target in found:
                raise InputError(f"--map gives {target} twice")
            found[target] = column.strip()
    return found


def named(given: Mapping[str, str], survey: Survey) -> dict[str, tuple[LogColumn, str]]:
    """Field -> (column, unit or nothing) of what --map gives. Raises InputError for what the file does not have."""
    found: dict[str, tuple[LogColumn, str]] = {}
    for target, text in given.items():
        if not text:
            continue
        column, unit = survey.column(text), ""
        if column is None and ":" in text:
            path, _, unit = text.rpartition(":")
            column = survey.column(path)
            if column is not None and (target not in TIMED or unit not in UNITS):
                known = f"known are {', '.join(UNITS)}" if target in TIMED else f"only {', '.join(TIMED)} have one"
                raise InputError(f"--map {target}={text}: there is no unit {unit!r} of {target}; {known}")
        if column is None:
            rows = f"the first {survey.rows} rows" if survey.shape != "csv" else "its header"
            raise InputError(
                f"--map {target}={text}: {survey.path} has no column {text!r} in {rows}; there are {survey.names}"
            )
        found[target] = column, unit
    return found
