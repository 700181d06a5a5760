"""The command `sim report`: writes the page of a results folder again. What the tables mean others know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from traces.schema import InputError

Shown = tuple[Any, RenderableType]
"""(what --json prints, the same for people)."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as the command that filled FOLDER does with --json.")
def report(folder: Path, as_json: bool) -> None:
    """Write the page of a results folder again, from its tables.

    FOLDER is what `sim run`, `sim sweep` or `sim plan` wrote with --out. Nothing is simulated. Of a sweep that has
    not ended, the page shows the points that it has by now.
    """
    from sim.report.terminal import show  # noqa: PLC0415
    from sim.results.files import as_written  # noqa: PLC0415
    from sim.results.folder import PAGE, held  # noqa: PLC0415

    kinds = held(folder)
    if len(kinds) != 1 or kinds[0] not in READERS:
        what = f"holds a {' and a '.join(kinds)}" if kinds else "holds no result"
        hint = "; sim validate --recorded computes a validation again" if "validation" in kinds else ""
        raise InputError(f"{folder} {what}; a page is made again of a {', '.join(READERS)}{hint}")
    with as_written(folder, f"sim {kinds[0]}"):
        document, view = READERS[kinds[0]](folder)
    click.echo(f"wrote {PAGE} to {folder}", err=True)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        show(view, Console(highlight=False))


def _warn(folder: Path, mark: str) -> None:
    from sim.results.run_id import unmarked  # noqa: PLC0415

    if not mark:
        click.echo(unmarked(folder), err=True)


def _run(folder: Path) -> Shown:
    from sim.report.folder import write_page  # noqa: PLC0415
    from sim.report.terminal import summary_view  # noqa: PLC0415
    from sim.results.stability import queue_warning  # noqa: PLC0415

    tables = write_page(folder)
    _warn(folder, tables.mark)
    warning = queue_warning(tables.requests)
    return tables.summary, summary_view(tables.summary, warnings=[warning] if warning else [])


def _sweep(folder: Path) -> Shown:
    from sim.cli.sweep import as_document  # noqa: PLC0415
    from sim.report.sweep.folder import write_page  # noqa: PLC0415
    from sim.report.sweep.terminal import sweep_view  # noqa: PLC0415
    from sim.study.sweep.sweep import axes_of  # noqa: PLC0415

    question, table, mark = write_page(folder)
    _warn(folder, mark)
    if len(table) < len(question.grid):
        click.echo(f"{len(table):,} of {len(question.grid):,} points are there; the sweep has not ended", err=True)
    axes = axes_of(question.grid)
    return as_document(table, axes), sweep_view(table, axes)


def _plan(folder: Path) -> Shown:
    from sim.report.folder import rewrite_plan  # noqa: PLC0415
    from sim.report.plan.terminal import plan_view  # noqa: PLC0415

    document, mark = rewrite_plan(folder)
    _warn(folder, mark)
    return document, plan_view(document)


READERS: dict[str, Callable[[Path], Shown]] = {"run": _run, "sweep": _sweep, "plan": _plan}
