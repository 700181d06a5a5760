"""The command `sim plan`: reads options, calls `sim.api.plan`, prints its answer."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from sim.cli.options import axis_options
from traces.schema import InputError


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@axis_options
@click.option("--gpus", help="GPU kinds to choose among, such as h100,a100-80, or all; the same as --gpu.")
@click.option(
    "--budget",
    metavar="TIME",
    help="Give the best answer so far after this time, such as 60s, 5min or 120 (seconds); the same command goes on.",
)
@click.option("--precision", default="3%", show_default=True, help="Half width of the 95 % interval of the capacity.")
@click.option("--attainment", type=float, help="Share of requests that must meet every limit by their own values.")
@click.option(
    "--max-gpus", type=click.IntRange(1, 1_000_000), default=256, show_default=True, help="No deployment is larger."
)
@click.option("--requests", type=int, default=5000, show_default=True, help="Requests of one replication, at least.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write plan.json and page here.")
@click.option("--workers", type=click.IntRange(1, 10_000), help="Simulations at once; one on each core if not given.")
@click.option(
    "--executor", default="processes", show_default=True, help="Where they run: processes, ray, ray://host:port."
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def plan(
    file: str | None,
    settings: dict[str, Any],
    allow_code: bool,
    gpus: str | None,
    budget: str | None,
    precision: str,
    attainment: float | None,
    max_gpus: int,
    requests: int,
    out: Path | None,
    workers: int | None,
    executor: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """How much a configuration takes under an SLO, or which is the cheapest that takes --rate.

    FILE is a scenario (TOML, or a name). Without --rate: the highest rate under --slo, with its interval. With --rate:
    of all combinations of options with several values, such as --gpus h100,a100-80 --tp 1,2 (or --gpus all --tp auto),
    the cheapest that meets the SLO; Ctrl-C or --budget gives the best so far. Exit code 1 where nothing meets it.
    """
    from sim import api  # noqa: PLC0415
    from sim.report.folder import write_plan  # noqa: PLC0415
    from sim.report.plan.terminal import plan_view  # noqa: PLC0415
    from sim.report.terminal import show  # noqa: PLC0415
    from sim.results.folder import taken  # noqa: PLC0415
    from sim.study.plan.journal import NAME  # noqa: PLC0415

    if gpus is not None:
        if "gpu" in settings:
            raise InputError("--gpus and --gpu are the same; give one")
        settings["gpu"] = gpus.split(",") if "," in gpus else gpus
    exact = parse_share("--precision", precision)
    budget_s = None if budget is None else parse_time("--budget", budget)
    with nullcontext() if out is None else taken(out, "plan") as claim:
        document = api.plan(
            file,
            precision=exact,
            attainment=attainment,
            most_gpus=max_gpus,
            requests=requests,
            budget_s=budget_s,
            journal=None if claim is None else claim.folder / NAME,
            keep=True,
            workers=workers,
            run_on=executor,
            curve=out is not None,
            allow_code=allow_code,
            told=(lambda what: None) if quiet else (lambda what: click.echo(what, err=True)),
            **settings,
        )
        paths = write_plan(document, claim) if claim is not None else []
    if paths:
        click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        show(plan_view(document))
    if document["best"] is None:
        sys.exit(1)


UNITS_S = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def parse_time(option: str, text: str) -> float:
    """`60s`, `5min`, `1h` or `120` as seconds. Raises InputError for what is no time."""
    value = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.strip()[len(value) :]
    try:
        seconds = float(value) * UNITS_S[unit]
    except (ValueError, KeyError):
        raise InputError(f"{option} {text!r} is no time; write it like 60s, 5min, 1h or 120 (seconds)") from None
    if not 0 < seconds < float("inf"):
        raise InputError(f"{option} {text!r} must be above 0")
    return seconds


def parse_share(option: str, text: str) -> float:
    """`3%` or `0.03` as 0.03. Raises InputError for what is no number."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError(f"{option} {text!r} is no number; write it like 3% or 0.03") from None
