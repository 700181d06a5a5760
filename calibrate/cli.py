"""The command `calibrate`: options in, a profile and its report out. All that it does, a notebook can do."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.commands import check, derive, fit, fit_roofline, name_of, show, write_out
from sim.cli.guard import Commands, guarded, version_option
from traces.schema import InputError

if TYPE_CHECKING:
    from calibrate.result import Calibration
    from calibrate.run import Job, Settings

WIDEST_NAME = 48
"""Letters of what is measured that stand before the bar of progress."""

# Commands import what they need when they run, so that `calibrate --help` and a mistyped option answer at once.


class _Commands(Commands):
    """Finds `import` among the importers only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "import"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "import":
            from calibrate.importers.cli import import_command  # noqa: PLC0415

            return import_command
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
@click.option("--gpu", help="Device to measure: a GPU of the catalog, auto (the one that is here), or cpu.")
@click.option("--models", help="Models whose shapes are measured, separated by commas.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Type of activations and weights.")
@click.option("--kv-dtype", "kv_dtypes", multiple=True, help="Type of the KV cache; may be given several times.")
@click.option("--budget-s", type=click.FloatRange(1.0, 1e6), default=300.0, show_default=True, help="Seconds to spend.")
@click.option("--max-tokens", type=click.IntRange(1, 10_000_000), help="Most new tokens of a step.")
@click.option("--max-rows", type=click.IntRange(1, 1_000_000), help="Most sequences of a decode batch.")
@click.option("--max-context", type=click.IntRange(64, 100_000_000), help="Longest context.")
@click.option(
    "--collectives",
    help="Numbers of GPUs whose collectives are measured (2,4), or none; else all that are here, half of them ...",
)
@click.option("--layers", type=click.IntRange(1, 10_000), help="Measure only so many layers of each model.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, help="Seed of weights, content and held-out points.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the new profile.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted calibration of the same settings.")
@click.option("--replace", is_flag=True, help="Replace the profile that is in the folder.")
@click.option("--keep-journal", is_flag=True, help="Leave the journal beside the profile, for `calibrate fit`.")
@click.option("--dry-run", is_flag=True, help="Show the grid and the expected time, and measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print errors as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Measure a device's kernels and steps, fit a profile, and say how far off it is.

    calibrate --gpu cpu --budget-s 60 --out my-cpu
    """
    if ctx.invoked_subcommand is not None:
        return
    if given["gpu"] is None:
        click.echo(ctx.get_help())
        return
    _measure(**given)


def _measure(
    *,
    out: Path | None,
    resume: bool,
    replace: bool,
    keep_journal: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    try:
        from calibrate import device  # noqa: PLC0415
        from calibrate.collectives import nothing_to_measure  # noqa: PLC0415
        from calibrate.run import journal_path, prepare  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise InputError(f"measuring needs the package {missing.name}: install foretoken[live]") from None
    settings = _settings(given)
    target = device.planned(settings.gpu) if dry_run else device.target(settings.gpu)
    job = prepare(settings, target)
    if dry_run:
        _show_plan(job, as_json)
        return
    folder = out or Path(f"{job.target.gpu}-profile")
    if folder.exists() and not replace:
        raise InputError(f"{folder} is there already; remove it, give another --out, or --replace it")
    nothing = nothing_to_measure(settings.collectives, device.count(target), on_cpu=target.is_cpu)
    if nothing:
        click.echo(nothing, err=True)
    if not quiet:
        click.echo(f"measuring {target.name}, about {job.expected_s:,.0f} s", err=True)
    calibration = _run(job, folder, resume=resume, quiet=quiet)
    write_out(calibration, folder, replace=replace, as_json=as_json)
    if not keep_journal:
        journal_path(folder).unlink()


def _run(job: Job, folder: Path, *, resume: bool, quiet: bool) -> Calibration:
    from calibrate.harness import Harness  # noqa: PLC0415
    from calibrate.latent import LatentBench  # noqa: PLC0415
    from calibrate.run import calibrate  # noqa: PLC0415
    from sim.cli.options import naming_bar  # noqa: PLC0415

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    seed, on = job.settings.seed, job.target.device
    with naming_bar("measuring", quiet) as bar:

        def progress(what: str, done: int, total: int) -> None:
            if bar is not None:
                bar(what[:WIDEST_NAME], done, total)

        return calibrate(
            job,
            lambda spec, limits: (LatentBench if spec.is_latent else Harness)(spec, on, limits, seed),
            folder,
            name=name_of(folder),
            date=today,
            resume=resume,
            progress=progress,
        )


def _settings(given: dict[str, Any]) -> Settings:
    from calibrate.run import Settings  # noqa: PLC0415

    models = tuple(name.strip() for name in (given["models"] or "").split(",") if name.strip())
    return Settings(
        gpu=given["gpu"],
        models=models,
        dtype=given["dtype"] or "",
        kv_dtypes=given["kv_dtypes"],
        budget_s=given["budget_s"],
        tokens=given["max_tokens"] or 0,
        rows=given["max_rows"] or 0,
        context=given["max_context"] or 0,
        layers=given["layers"] or 0,
        seed=given["seed"],
        collectives=given["collectives"],
    )


def _show_plan(job: Job, as_json: bool) -> None:
    facts = {
        "device": job.target.name,
        "expected_s": round(job.expected_s, 1),
        "limits": asdict(job.limits),
        **job.grid(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name}: {value}")


for command in (fit, fit_roofline, show, check, derive):
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    guarded(
        lambda: cli(standalone_mode=False),
        stopped="stopped; go on with --resume, or fit what is there with calibrate fit",
    )


if __name__ == "__main__":
    main()
