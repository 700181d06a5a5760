"""The command `sim claims`: runs what the field says, and prints each claim beside what came out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from sim.cli.options import progress_bar


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--set", "setting", multiple=True, metavar="KEY=VALUE", help="Any setting (sim list settings), on top of every run."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write claims.json and claims.html here.")
@click.option("--workers", type=click.IntRange(1, 10_000), help="Simulations at once; one on each core if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the claims as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def claims(
    names: tuple[str, ...], setting: tuple[str, ...], out: Path | None, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """Run again what the field says of its techniques: each claim is simulated without and with it.

    NAMES are claims (sim list claims); all of them where none is named. What the field published stands beside what
    came out here, with the setting that made it and why they differ.
    """
    from sim import scenario  # noqa: PLC0415
    from sim.report.claims.terminal import row_view  # noqa: PLC0415
    from sim.report.claims.words import as_document  # noqa: PLC0415
    from sim.report.folder import write_claims  # noqa: PLC0415
    from sim.report.terminal import show  # noqa: PLC0415
    from sim.results.folder import taken  # noqa: PLC0415
    from sim.study import claims as study  # noqa: PLC0415

    settings: dict[str, Any] = dict(scenario.parse_setting(text) for text in setting)
    known = [study.load(name) for name in names or study.names()]
    rows: list[study.ClaimRow] = []
    with nullcontext() if out is None else taken(out, "claims") as claim:
        with progress_bar("simulating", quiet) as progress:
            for row in study.tried(known, settings, workers=workers, progress=progress):
                if not as_json:
                    show(row_view(row, first=not rows or rows[-1].name != row.name))
                rows.append(row)
        paths = write_claims(rows, settings, out, claim=claim) if out is not None else []
    if paths:
        click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(as_document(rows, settings), indent=2, allow_nan=False))
