"""The command `sim validate`: reads options, prints the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from sim.cli.options import naming_bar, scenario_options
from sim.scenario import SETTINGS

CLOCK = SETTINGS["live.clock"][1]


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@scenario_options
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, help="Live runs, whose spread is told.")
@click.option("--clock", type=click.Choice(CLOCK.choices), help=CLOCK.meaning)
@click.option("--within", type=float, metavar="PERCENT", help="Bound of every judged error, instead of the usual ones.")
@click.option("--against", type=click.Path(path_type=Path), help="Results of a real server instead of a live run.")
@click.option("--run", default="", metavar="RUN", help="Which run of --against: its number or label; all: a table.")
@click.option("--recorded", type=click.Path(path_type=Path), help="Folder of kept live runs instead of a new one.")
@click.option("--schedules", type=click.Path(path_type=Path), help="Folder of a real engine's recorded schedules.")
@click.option("--against-engine", metavar="NAME", help="An installed engine's own scheduler, such as vllm==0.33.0.")
@click.option(
    "--record",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the schedule of --against-engine here, as --schedules reads it.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write records, page and trace here.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def validate(settings: dict[str, Any], out: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a trace live and simulate the same: the same decisions? how far off, and why?

    With --against, --recorded, --schedules or --against-engine nothing runs live. FILE is a scenario (TOML, or a name).
    Exit code 1 where something is out of bounds, or a decision differs.
    """
    from sim.cli.validation import ValidateOptions, answer  # noqa: PLC0415
    from sim.report.terminal import show  # noqa: PLC0415

    with naming_bar("running", quiet) as progress:
        validation = answer(ValidateOptions(settings=settings, out=out, **options), progress)
    if validation.written:
        click.echo(f"wrote {', '.join(path.name for path in validation.written)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(validation.document, indent=2, allow_nan=False))
    else:
        show(validation.view)
    if not validation.document["verdict"]["good"]:
        sys.exit(1)
