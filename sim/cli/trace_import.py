"""The command `sim trace import`: a log of any shape to a trace, by a mapping that is guessed, shown and confirmed."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from traces import Trace
    from traces.mapping.assign import Assignment
    from traces.mapping.survey import Survey


@click.command("import")
@click.argument("name", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--map",
    "given",
    multiple=True,
    metavar="FIELD=COLUMN,...",
    help="As arrival=ts:ms,prompt=usage.prompt_tokens (units s, ms, us, ns, iso); beats guesses; session= drops one.",
)
@click.option("--rows", default="", metavar="PATH", help="JSON: the list inside of each record whose objects are rows.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A .csv, .jsonl or .parquet file.")
@click.option("--yes", is_flag=True, help="Take the mapping as it is shown, and ask nothing.")
@click.option("--tokenizer", type=click.Path(), help="A tokenizer.json, for text without token counts.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used, and count them.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N requests.")
def import_(name: Path, given: tuple[str, ...], rows: str, out: Path, yes: bool, **how: Any) -> None:
    """Write the requests of a log (CSV, JSON Lines, JSON, Parquet) as a trace.

    Which column tells what is guessed from names and values, and shown. A file of a known format needs no mapping.
    """
    from traces import write  # noqa: PLC0415
    from traces.mapping import assign  # noqa: PLC0415

    write.check(out)
    wanted = assign.parse(given)
    requests = None if wanted or rows else _of_known_format(name, how)
    if requests is None:
        requests = _mapped(name, wanted, rows, out, yes, how)
    write.write(requests, out)
    for note in requests.notes:
        click.echo(note, err=True)
    click.echo(f"wrote {len(requests):,} requests to {out}", err=True)


def _of_known_format(path: Path, how: dict[str, Any]) -> Trace | None:
    """The trace of a file that some format knows for its own; None for one of columns that may mean anything."""
    import traces  # noqa: PLC0415
    from traces import formats  # noqa: PLC0415
    from traces.head import head_of  # noqa: PLC0415

    found = formats.detect(head_of(path, how["skip_bad"]))
    if len(found) != 1 or found[0].name in formats.GENERAL:
        return None
    known = found[0].name
    click.echo(f"{path} is in the format {known} and needs no mapping (--map reads it by its columns)", err=True)
    return traces.read(path, format=found[0], **how)


def _mapped(path: Path, given: dict[str, str], rows: str, out: Path, yes: bool, how: dict[str, Any]) -> Trace:
    import traces  # noqa: PLC0415
    from traces.formats import Format  # noqa: PLC0415
    from traces.mapping import assign  # noqa: PLC0415
    from traces.mapping.guess import guess, missing  # noqa: PLC0415
    from traces.mapping.survey import shortened, survey  # noqa: PLC0415
    from traces.mapping.table import mapped  # noqa: PLC0415

    found = survey(path, how["skip_bad"], rows)
    assignments = guess(found, given)
    _show(found, assignments)
    if lacking := missing(assignments):
        example = ",".join(f"{target}=COLUMN" for target in lacking)
        lists = f" (or --rows PATH, of the lists of objects at {shortened(found.lists)})" if found.lists else ""
        raise traces.InputError(
            f"{path}: no column was taken for {' and '.join(lacking)}; name it with --map {example}{lists}; "
            f"there are {found.names}"
        )
    command = assign.command(path, assignments, out, rows)
    if not yes:
        _confirm(path, command)
    elif doubtful := [one for one in assignments if one.doubtful]:
        unsure = doubtful[0].column
        raise traces.InputError(
            f"{path}: --yes does not take the unit of {unsure.path}, which is a guess; `{command}` says it"
        )
    return traces.read(path, format=Format("mapped", lambda source: mapped(source, assignments, rows), None, ""), **how)


def _confirm(path: Path, command: str) -> None:
    """Ask a person; where there is none, InputError with the command that takes the mapping as it is."""
    import traces  # noqa: PLC0415

    if not sys.stdin.isatty():
        raise traces.InputError(f"{path}: nothing is written, for nobody confirmed this mapping; `{command}` does")
    if not click.confirm("Import it like this?", err=True):
        raise traces.InputError(f"{path}: nothing is written; correct the mapping and type `{command}`")


def _show(survey: Survey, assignments: tuple[Assignment, ...]) -> None:
    from traces.mapping.guess import apart, misfits  # noqa: PLC0415
    from traces.mapping.names import TARGETS  # noqa: PLC0415
    from traces.mapping.survey import shortened  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("field", "column", "read as", "example", "known by"):
        table.add_column(title, overflow="fold")
    for one in assignments:
        read_as = one.unit or ("tokens" if one.kind == "whole" and one.target in ("prompt", "output") else one.kind)
        cells = (one.target, one.column.path, read_as, one.column.example, one.why)
        table.add_row(*(Text(cell) for cell in cells))  # what a file says is no markup
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=120)
    console.print(table)
    say = functools.partial(console.print, markup=False, highlight=False)
    used = {one.column.path for one in assignments}
    left = [column.path for column in survey.columns if column.path not in used]
    if left:
        say(f"not used: {shortened(left)}")
    for column in misfits(survey, assignments):
        say(f"{column.path} is named like arrivals, but holds what is no time that is known, such as {column.example}")
    if beside := apart(survey, assignments):
        say(beside)
    absent = [target for target in TARGETS if target not in {one.target for one in assignments}]
    if absent:
        say(f"not told: {', '.join(absent)}")
