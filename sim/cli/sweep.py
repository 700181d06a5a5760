"""The command `sim sweep`: reads options, calls `sim.study.sweep.sweep`, prints the best points and the failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from sim.cli.options import axis_options, progress_bar
from traces.schema import InputError

if TYPE_CHECKING:
    import pandas as pd

    from sim.api import Progress


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@axis_options
@click.option(
    "--points", type=click.Path(dir_okay=False), help="CSV or TOML file of points, instead of a grid or with it."
)
@click.option("--seeds", default="1", help="How many seeds each point runs with, or which (1,2,3).", show_default=True)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Write table and page here; goes on from there."
)
@click.option("--workers", type=click.IntRange(1, 10_000), help="Points at once; one on each core if not given.")
@click.option(
    "--executor", default="processes", show_default=True, help="Where points run: processes, ray, ray://host:port."
)
@click.option("--yes", is_flag=True, help="Really, for more than 10,000 points.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def sweep(
    file: str | None,
    settings: dict[str, Any],
    allow_code: bool,
    points: str | None,
    seeds: str,
    out: Path | None,
    workers: int | None,
    executor: str,
    yes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run every combination of settings, and tell which is best.

    FILE is a scenario (TOML, or a name). An option with several values is an axis: --policy chunked,static --set
    rate=5:50:5. A point that fails is a row with its reason. Interrupted, the same command goes on where it was.
    """
    from sim.report.sweep.folder import page_of  # noqa: PLC0415
    from sim.report.sweep.terminal import sweep_view  # noqa: PLC0415
    from sim.report.terminal import show  # noqa: PLC0415
    from sim.study.sweep.question import MOST_POINTS, Question  # noqa: PLC0415
    from sim.study.sweep.sweep import axes_of, run  # noqa: PLC0415

    most = None if yes else MOST_POINTS
    question = Question.of(file, settings, points=points, seeds=seeds, most_points=most, allow_code=allow_code)
    try:
        with progress_bar("sweeping", quiet) as bar:
            again: list[str] = []
            progress = bar if quiet else _telling(bar, again)

            def told(what: str) -> None:
                again.append(what)
                click.echo(what, err=True)

            table = run(
                question, out=out, workers=workers, executor=executor, progress=progress, say=told, page=page_of
            )
    except KeyboardInterrupt:
        if out is not None:
            click.echo("the same command goes on from here", err=True)
        raise
    if out is not None:
        click.echo(f"wrote sweep.parquet, report.html to {out}", err=True)
    _check_any(table)
    if as_json:
        click.echo(json.dumps(as_document(table, axes_of(question.grid)), indent=2, allow_nan=False))
    else:
        show(sweep_view(table, axes_of(question.grid)), Console(highlight=False))


def _check_any(table: pd.DataFrame) -> None:
    """Refuse a sweep of which nothing could be run, with the reason; raises InputError."""
    failed = table.loc[table["status"] == "failed", "reason"]
    if len(failed) == len(table):
        reasons = list(failed.value_counts().index)
        others = {1: "", 2: " (and one other reason)"}.get(len(reasons), f" (and {len(reasons) - 1} other reasons)")
        raise InputError(f"nothing could be run: {reasons[0]}{others}")


def _telling(bar: Progress | None, again: list[str]) -> Progress:
    """The bar, which first says what an interrupted sweep had done already, unless `again` has told that."""
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if done and not begun and not again:
            click.echo(f"{done:,} of {total:,} points are there already", err=True)
        begun = True
        if bar is not None:
            bar(done, total)

    return progress


def as_document(table: pd.DataFrame, axes: dict[str, list[Any]]) -> dict[str, Any]:
    """What a script reads: the axes, and the rows as in sweep.parquet with null for what is missing, and "inf"."""
    rows = [
        dict(zip(table.columns, row, strict=True))
        for row in table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    ]
    document = {"axes": axes, "seeds": sorted({row["seed"] for row in rows}), "points": rows}
    return _finite(document)  # type: ignore[no-any-return]


def _finite(value: Any) -> Any:
    """The same with the text "inf" for an infinite rate, for which JSON has no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
