"""The command `sim compare`: runs several scenarios by `sim.api` and prints them side by side."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sim import scenario
from sim.cli.options import progress_bar, scenario_options
from sim.scenario import Scenario
from traces.schema import InputError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False))
@scenario_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write page and tables here.")
@click.option("--json", "as_json", is_flag=True, help="Print the summaries, by name, as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def compare(
    files: tuple[str, ...], settings: dict[str, Any], allow_code: bool, out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Run several scenarios and show them side by side.

    FILES are scenarios (TOML). A setting with several values, such as --set allocator=contiguous-max,paged, makes a
    run of each; several such settings make a run of each combination. What cannot be run is told with its reason
    among the others; the exit code is 2 where nothing ran.
    """
    from sim import api  # noqa: PLC0415
    from sim.report.compare.page import summaries_of  # noqa: PLC0415
    from sim.report.compare.variant import Failure, Row, Variant, attempt, differences  # noqa: PLC0415
    from sim.report.folder import write_comparison  # noqa: PLC0415
    from sim.report.terminal import compare_view, show  # noqa: PLC0415
    from sim.results.folder import taken  # noqa: PLC0415

    rows: list[Row] = []
    variants = {name: _loaded(*variant, allow_code) for name, variant in _variants(files, settings).items()}
    scenario.refuse_unread(variant for variant in variants.values() if isinstance(variant, Scenario))
    with nullcontext() if out is None else taken(out, "comparison") as claim:
        for name, variant in variants.items():
            if isinstance(variant, InputError):
                rows.append(Failure(name, str(variant)))
                continue
            with progress_bar(name, quiet) as progress:
                rows.append(attempt(name, partial(api.simulate, variant, progress=progress)))
        failures = {row.name: row.reason for row in rows if isinstance(row, Failure)}
        if len(failures) == len(rows):
            reasons = list(dict.fromkeys(failures.values()))
            if len(reasons) > 1:
                reasons = [f"{name}: {reason}" for name, reason in failures.items()]
            raise InputError("nothing could be run: " + "; ".join(reasons))
        if out is not None:
            paths = write_comparison(rows, out, claim=claim)
    if out is not None:
        click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(summaries_of(rows), indent=2, allow_nan=False))
    else:
        console = Console(highlight=False)
        summaries = {row.name: row.summary for row in rows if isinstance(row, Variant)}
        show(compare_view(summaries, console.width, failures=failures, pairs=differences(rows)), console)


def _loaded(file: str | None, settings: dict[str, Any], allow_code: bool) -> Scenario | InputError:
    try:
        return scenario.load(file, settings, allow_code=allow_code)
    except InputError as error:
        return error


def _variants(files: tuple[str, ...], settings: dict[str, Any]) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """By name the file and settings of each run; files that are called alike are told apart by their whole path."""
    stems = [Path(file).stem for file in files]
    named: dict[str, str | None] = {
        file if stems.count(stem) > 1 else stem: file for file, stem in zip(files, stems, strict=True)
    }
    several = scenario.variants(settings)
    runs = {
        " ".join(filter(None, [label if len(files) > 1 else "", name if len(several) > 1 else ""])): (file, own)
        for label, file in (named or {"": None}).items()
        for name, own in several.items()
    }
    if len(runs) < 2:
        raise InputError(
            "nothing to compare: give two scenarios, or a setting with two values (--set policy=sjf,chunked)"
        )
    return runs
