"""The command `sim`: reads options, calls `sim.api`, prints. All that it does, a notebook can do."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sim import scenario
from sim.cli.guard import Commands, guarded
from sim.cli.options import progress_bar, scenario_options
from sim.cli.plan import plan
from sim.cli.report import report
from sim.cli.sweep import sweep
from sim.cli.trace import trace
from traces.schema import InputError

# Commands import what they need when they run, so that `sim --help` and a mistyped option answer at once.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="foretoken")
def cli() -> None:
    """Foretoken: how an LLM serving deployment will behave, and how sure that is."""


@cli.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@scenario_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write tables, page and trace here.")
@click.option("--trace-window", metavar="START:END", help="Seconds of the run that trace.perfetto.json shows.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary alone, as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def run(
    file: str | None,
    settings: dict[str, Any],
    allow_code: bool,
    out: Path | None,
    trace_window: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay a trace. FILE is a scenario (TOML); options and --set win over it."""
    from sim import api  # noqa: PLC0415
    from sim.report.folder import write_run  # noqa: PLC0415
    from sim.report.run.perfetto import parse_window  # noqa: PLC0415
    from sim.report.terminal import show, summary_view  # noqa: PLC0415
    from sim.results.folder import taken  # noqa: PLC0415
    from sim.results.stability import queue_warning  # noqa: PLC0415

    window = parse_window(trace_window) if trace_window else None
    if window and out is None:
        raise InputError("--trace-window cuts the trace that --out writes; give --out too")
    with nullcontext() if out is None else taken(out, "run") as claim:
        with progress_bar("simulating", quiet) as progress:
            result = api.run(file, progress=progress, allow_code=allow_code, **settings)
        if out is not None:
            told = scenario.dump(result.scenario)
            paths = write_run(result, out, scenario=told, window=window, answers=result.tokens, claim=claim)
    if out is not None:
        click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(result.summary, indent=2, allow_nan=False))
    else:
        warning = queue_warning(result.requests)
        show(summary_view(result.summary, warnings=[warning] if warning else []))
    if result.died:
        raise InputError(result.died)


@cli.command()
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
    from sim.report.compare.variant import Failure, Variant, attempt, differences  # noqa: PLC0415
    from sim.report.folder import write_comparison  # noqa: PLC0415
    from sim.report.terminal import compare_view, show  # noqa: PLC0415
    from sim.results.folder import taken  # noqa: PLC0415

    rows = []
    variants = _variants(files, settings)
    with nullcontext() if out is None else taken(out, "comparison") as claim:
        for name, (file, one) in variants.items():
            with progress_bar(name, quiet) as progress:
                rows.append(attempt(name, lambda: api.run(file, progress=progress, allow_code=allow_code, **one)))  # noqa: B023
        failures = {row.name: row.reason for row in rows if isinstance(row, Failure)}
        if len(failures) == len(rows):
            told = [f"{name}: {reason}" for name, reason in failures.items()] if len(set(failures.values())) > 1 else []
            raise InputError("nothing could be run: " + ("; ".join(told) or next(iter(failures.values()))))
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


def _variants(files: tuple[str, ...], settings: dict[str, Any]) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """By name the file and settings of each run; files that are called alike are told apart by their whole path."""
    stems = [Path(file).stem for file in files]
    named: dict[str, str | None] = {
        file if stems.count(stem) > 1 else stem: file for file, stem in zip(files, stems, strict=True)
    }
    several = scenario.variants(settings)
    runs = {
        " ".join(filter(None, [label if len(files) > 1 else "", name if len(several) > 1 else ""])): (file, one)
        for label, file in (named or {"": None}).items()
        for name, one in several.items()
    }
    if len(runs) < 2:
        raise InputError(
            "nothing to compare: give two scenarios, or a setting with two values (--set policy=sjf,chunked)"
        )
    return runs


@cli.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@scenario_options
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, help="Live runs, whose spread is told.")
@click.option("--clock", type=click.Choice(["virtual", "wall"]), help="Clock of the live run.")
@click.option("--within", type=float, metavar="PERCENT", help="Bound of every judged error, instead of the usual ones.")
@click.option("--against", type=click.Path(path_type=Path), help="Results of a real server instead of a live run.")
@click.option("--recorded", type=click.Path(path_type=Path), help="Folder of kept live runs instead of a new one.")
@click.option("--schedules", type=click.Path(path_type=Path), help="Folder of a real engine's recorded schedules.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write records, page and trace here.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def validate(settings: dict[str, Any], out: Path | None, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Run a trace live and simulate the same: the same decisions? how far off, and why?

    With --against, --recorded or --schedules nothing runs live. FILE is a scenario (TOML). Exit code 1 where
    something is out of bounds, or a decision differs.
    """
    from sim.cli.validate import Asked, answer  # noqa: PLC0415
    from sim.report.terminal import show  # noqa: PLC0415

    with progress_bar("running live", quiet) as progress:
        found = answer(Asked(settings=settings, out=out, **asked), progress)
    if found.written:
        click.echo(f"wrote {', '.join(path.name for path in found.written)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(found.document, indent=2, allow_nan=False))
    else:
        show(found.view)
    if not found.document["verdict"]["good"]:
        sys.exit(1)


@cli.command("list")
@click.argument(
    "kind",
    type=click.Choice(["policies", "allocators", "routers", "models", "gpus", "profiles", "traces", "formats"]),
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def list_(kind: str, as_json: bool) -> None:
    """What a name may be."""
    from sim.cli.list import rows_of  # noqa: PLC0415

    rows = rows_of(kind)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _print_rows(rows)


cli.add_command(plan)
cli.add_command(report)
cli.add_command(sweep)
cli.add_command(trace)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(
            name,
            justify="right" if rows and isinstance(rows[0][name], int | float) else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(
            *(
                f"{one:,}" if isinstance(one, int) else f"{one:.4g}" if isinstance(one, float) else one
                for one in row.values()
            )
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    guarded(lambda: cli(standalone_mode=False))


if __name__ == "__main__":
    main()
