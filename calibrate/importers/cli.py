"""The command `calibrate import`: options in, a profile folder and what was left out. Thin over `build`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Commands import what they need when they run, so that `calibrate --help` answers at once.

_MOST_SUSPECTS = 10


@click.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@click.option("--gpu", required=True, help="GPU of the catalog, or a TOML file: where the measurements were made.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new profile.")
@click.option("--format", "format_name", help="Format of the files, instead of recognising it by their columns.")
@click.option("--dtype", help="Type of activations and weights, where the files do not say it: bf16, fp16, fp32.")
@click.option("--model", help="Model that was measured, where the files do not say it.")
@click.option("--tp", type=click.IntRange(min=1), help="GPUs that shared the layers, where that is open.")
@click.option("--replace", is_flag=True, help="Replace the profile that is in the folder.")
def import_command(
    sources: tuple[Path, ...],
    gpu: str,
    out: Path,
    format_name: str | None,
    dtype: str | None,
    model: str | None,
    tp: int | None,
    replace: bool,
) -> None:
    """Make a profile of other people's measurements in the files and folders SOURCE, and check its rows.

    Formats: aiconfigurator, llmservingsim, plain, splitwise, vidur.
    """
    from calibrate.check import suspects  # noqa: PLC0415
    from calibrate.importers.build import import_profile  # noqa: PLC0415
    from sim.cost import profile  # noqa: PLC0415
    from traces.schema import InputError  # noqa: PLC0415

    console = Console(stderr=True, soft_wrap=True)
    try:
        imported = import_profile(list(sources), gpu, format_name=format_name, dtype=dtype, model=model, tp=tp)
        profile.write(imported.profile, out, replace=replace)
    except InputError as error:
        console.print(f"calibrate import: {escape(str(error))}", style="red", highlight=False)
        raise SystemExit(2) from None
    meta = imported.profile.meta
    shown = Table("table", "rows", "held out: mean", "90 %", title=f"{meta.name} in {escape(str(out))}")
    for name, table in imported.profile.tables.items():
        held_out = meta.accuracy.get(name)
        errors = (f"{held_out.mean:.1%}", f"{held_out.p90:.1%}") if held_out else ("-", "-")
        shown.add_row(name, f"{len(table):,}", *errors)
    console.print(shown)
    for line in (*imported.left_out, *(f"not read, no table of a profile: {path}" for path in imported.skipped_files)):
        console.print(escape(str(line)), highlight=False)
    odd = suspects(imported.profile)
    for suspect in odd[:_MOST_SUSPECTS]:
        console.print(escape(f"suspect {suspect}"), highlight=False)
    if len(odd) > _MOST_SUSPECTS:
        console.print(
            f"{len(odd) - _MOST_SUSPECTS} more rows are suspect: calibrate check {escape(str(out))}", highlight=False
        )
    for note in meta.notes:
        if not note.startswith("Left out"):
            console.print(escape(note), highlight=False, style="dim")
