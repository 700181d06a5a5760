"""The commands on what was measured: fit a journal, show, check and derive profiles."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from traces.schema import InputError

if TYPE_CHECKING:
    from calibrate.result import Calibration

REASONS = ("throttled", "waited")
"""Those of `calibrate.readings.WHY` that somebody may know better."""


@click.command()
@click.argument("journal", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the profile.")
@click.option("--keep", multiple=True, type=click.Choice(REASONS), help="Use what would be left out for this reason.")
@click.option("--replace", is_flag=True, help="Replace the profile that is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON.")
def fit(journal: Path, out: Path, keep: tuple[str, ...], replace: bool, as_json: bool) -> None:
    """Make the profile of what a calibration measured before it ended, on any machine.

    JOURNAL is the file that a calibration leaves beside its profile where it is interrupted, or with --keep-journal.
    """
    from calibrate.journal import read  # noqa: PLC0415
    from calibrate.result import fitted  # noqa: PLC0415

    if out.exists() and not replace:
        raise InputError(f"{out} is there already; remove it, give another --out, or --replace it")
    begun = read(journal)
    made = fitted(begun.header, begun.entries, begun.troubles, begun.messages, name=name_of(out), keep=keep)
    write_out(made, out, replace=replace, as_json=as_json)


@click.command()
@click.argument("profile")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON.")
def show(profile: str, as_json: bool) -> None:
    """Show a profile: where it is from, where its grid ends, how far off it is.

    PROFILE is a folder, or a name of the catalog.
    """
    from calibrate.report import show as show_profile  # noqa: PLC0415
    from sim.cost.profile import find  # noqa: PLC0415

    source = find(profile)
    if as_json:
        click.echo(json.dumps(_errors(source), indent=2))
    else:
        show_profile(source, console())


@click.command()
@click.argument("profile")
@click.option("--limit", type=click.FloatRange(min=0.0), help="Exit 1 when a mean error is above this share.")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON.")
def check(profile: str, limit: float | None, as_json: bool) -> None:
    """Check every number of a profile, and tell its errors anew from what it holds.

    Rows that their neighbours contradict are listed. PROFILE is a folder, or a name of the catalog.
    """
    from calibrate.check import predictions, suspects  # noqa: PLC0415
    from calibrate.evaluate import accuracy, by_group  # noqa: PLC0415
    from sim.cost.profile import find  # noqa: PLC0415

    source = find(profile)
    operations, steps = predictions(source)
    groups = {**by_group(operations), **{f"steps: {kind}": one for kind, one in by_group(steps).items()}}
    errors = {name: accuracy(checked) for name, checked in groups.items()}
    odd = suspects(source)
    if as_json:
        numbers = {name: {"points": one.points, "mean": one.mean, "bias": one.bias} for name, one in errors.items()}
        click.echo(json.dumps({"errors": numbers, "suspects": [asdict(one) for one in odd]}, indent=2))
    else:
        click.echo(
            f"{source.meta.name}: {sum(map(len, source.tables.values())):,} rows are possible on {source.meta.device}"
        )
        for name, one in errors.items():
            click.echo(f"{name:24} {one.points:5} points left out, mean error {one.mean:6.1%}, bias {one.bias:+6.1%}")
        for suspect in odd:
            click.echo(f"suspect {suspect}")
    if limit is not None and any(one.mean > limit for one in errors.values()):
        sys.exit(1)


@click.command()
@click.option("--from", "source", required=True, help="Profile that was measured: a folder, or a name of the catalog.")
@click.option("--to", "goal", required=True, help="GPU of the catalog, or a TOML file.")
@click.option("--check", "checked", help="Profile measured on that GPU, to tell the errors by.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the new profile.")
@click.option("--replace", is_flag=True, help="Replace the profile that is in the folder.")
def derive(source: str, goal: str, checked: str | None, out: Path | None, replace: bool) -> None:
    """Scale a measured profile to another GPU by data-sheet ratios; its rows are marked as derived."""
    from calibrate.derive import derive as scale  # noqa: PLC0415
    from calibrate.report import show as show_profile  # noqa: PLC0415
    from sim.catalog import load_gpu  # noqa: PLC0415
    from sim.cost.profile import find, write  # noqa: PLC0415

    origin, gpu = find(source), load_gpu(goal)
    folder = out or Path(f"{gpu.name}-from-{origin.meta.name}")
    made = scale(origin, gpu, name=name_of(folder), date=origin.meta.date, check=find(checked) if checked else None)
    write(made, folder, replace=replace)
    show_profile(made, console())
    click.echo(f"wrote {folder}", err=True)


@click.command("fit-roofline")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--gpu", required=True, help="GPU of the catalog, or a TOML file: where the tables were measured.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write (.toml).")
@click.option("--replace", is_flag=True, help="Replace the file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON.")
def fit_roofline(tables: tuple[Path, ...], gpu: str, out: Path, replace: bool, as_json: bool) -> None:
    """Fit the roofline's constants to a card's kernel TABLES (files and folders, as of calibrate import).

    Takes a few minutes. Use the file with sim run --set cost.fit=FILE.
    """
    from backend.atomic import replace_file  # noqa: PLC0415
    from calibrate.roofline import fit_roofline as fit_tables  # noqa: PLC0415

    if out.suffix != ".toml":
        raise InputError(f"--out {out} must end in .toml")
    if out.exists() and not replace:
        raise InputError(f"{out} is there already; give another --out, or --replace it")
    made = fit_tables(list(tables), gpu, datetime.datetime.now(datetime.UTC).date().isoformat())
    replace_file(out, made.text.encode())
    found = {
        name: {"rows": len(errors), "mean": float(abs(errors).mean()), "bias": float(errors.mean())}
        for name, errors in made.errors.items()
    }
    if as_json:
        click.echo(json.dumps({"errors": found, "left_out": made.left_out}, indent=2))
    else:
        for name, one in found.items():
            click.echo(f"{name:24} {one['rows']:5} rows, mean error {one['mean']:6.1%}, bias {one['bias']:+6.1%}")
        for line in made.left_out:
            click.echo(line)
    click.echo(f"wrote {out}; use it with sim run --set cost.fit={out}", err=True)


def write_out(calibration: Calibration, folder: Path, *, replace: bool, as_json: bool) -> None:
    """Write the profile with its report, and show it."""
    from calibrate.check import suspects  # noqa: PLC0415
    from calibrate.page import page  # noqa: PLC0415
    from calibrate.report import show  # noqa: PLC0415
    from sim.cost import profile  # noqa: PLC0415

    made = calibration.profile
    text = page(made, calibration.operations, calibration.steps)
    profile.write(made, folder, replace=replace, extra={"report.html": text})
    if as_json:
        click.echo(json.dumps(_errors(made), indent=2))
    else:
        show(made, console(), calibration.steps)
        for suspect in suspects(made):
            click.echo(f"suspect {suspect}")
    click.echo(f"wrote {folder}; use it with sim run --gpu {made.meta.gpu} --profile {folder}", err=True)


def _errors(profile: Any) -> dict[str, Any]:
    meta = profile.meta
    operations = {name: asdict(one) for name, one in meta.accuracy.items()}
    steps = {name: asdict(one) for name, one in meta.step_accuracy.items()}
    head = {"name": meta.name, "gpu": meta.gpu, "device": meta.device}
    return {**head, "operations": operations, "steps": steps, "notes": list(meta.notes)}


def name_of(folder: Path) -> str:
    """What a profile is called: as its folder, in the letters that names have."""
    letters = "".join(
        letter if letter.isalnum() or letter in "._-" else "-" for letter in folder.resolve().name.lower()
    )
    return letters.lstrip("._-") or "profile"


def console() -> Console:
    made = Console()
    return made if made.is_terminal else Console(width=200)
