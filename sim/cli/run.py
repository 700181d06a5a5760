"""The command `sim run`: reads options, calls `sim.api.run`, prints the summary."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim import scenario
from sim.cli.options import command_line, progress_bar, scenario_options
from traces.schema import InputError

if TYPE_CHECKING:
    from sim.report.run.perfetto import Window
    from sim.results.transaction import Claim
    from sim.scenario import Scenario
    from sim.serving.run import Result


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@scenario_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write tables and page here.")
@click.option("--perfetto", is_flag=True, help="With --out: also trace.perfetto.json, for ui.perfetto.dev.")
@click.option("--trace-window", metavar="START:END", help="Seconds of the run that trace.perfetto.json shows.")
@click.option(
    "--kv-ends",
    is_flag=True,
    help="Where an estimated KV capacity limits, also run both ends of its band (two more runs).",
)
@click.option("--band", is_flag=True, help="Also run both ends of the errors of step times (two more runs).")
@click.option("--json", "as_json", is_flag=True, help="Print the summary alone, as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def run(
    file: str | None,
    settings: dict[str, Any],
    allow_code: bool,
    out: Path | None,
    perfetto: bool,
    trace_window: str | None,
    kv_ends: bool,
    band: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay a trace. FILE is a scenario: TOML, or a name of sim list scenarios; options and --set win over it."""
    from sim import api  # noqa: PLC0415
    from sim.report.terminal import show, summary_view  # noqa: PLC0415
    from sim.results.stability import queue_warning  # noqa: PLC0415

    window = _window(trace_window, perfetto, out)
    with nullcontext() if out is None else _taken(out) as claim:
        with progress_bar("simulating", quiet) as progress:
            result = api.run(file, progress=progress, allow_code=allow_code, kv_ends=kv_ends, band=band, **settings)
        result = _with_bound(result, command_line("run", file, settings, ["workload.rate", "workload.rate_scale"]))
        if out is not None:
            from sim.report.folder import write_run  # noqa: PLC0415

            text = scenario.dump(result.scenario)
            paths = write_run(
                result, out, scenario=text, perfetto=perfetto, window=window, answers=result.tokens, claim=claim
            )
    if out is not None:
        click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}", err=True)
    if as_json:
        click.echo(json.dumps(result.summary, indent=2, allow_nan=False))
    else:
        warning = queue_warning(result.table("requests"))
        show(summary_view(result.summary, warnings=[warning] if warning else []))
    if result.died:
        raise InputError(result.died)


def _window(text: str | None, perfetto: bool, out: Path | None) -> Window | None:
    if perfetto and out is None:
        raise InputError("--perfetto writes its trace into the folder --out; give --out too")
    if not text:
        return None
    if not perfetto:
        raise InputError("--trace-window cuts the trace that --perfetto writes; give --perfetto too")
    from sim.report.run.perfetto import parse_window  # noqa: PLC0415

    return parse_window(text)


def _taken(out: Path) -> Claim:
    from sim.results.folder import taken  # noqa: PLC0415

    return taken(out, "run")


def _alike(settings: Scenario) -> bool:
    """Whether all replicas are predicted, alike, and there all the time."""
    return settings.executor == "predicted" and not settings.pools and not settings.autoscale.on


def _with_bound(result: Result, command: str) -> Result:
    """The result of a load that leaves its replicas idle, with what one of them could take at most."""
    from sim.results.verdict import bounded, rests  # noqa: PLC0415
    from sim.study.plan.bounds import saturation  # noqa: PLC0415

    summary, settings = result.summary, result.scenario
    if not _alike(settings) or not rests(summary, summary["verdict"]["stable"]):
        return result
    bound = saturation(settings, result.trace)
    told = bounded(summary, {"rate_per_s": bound.rate_per_s, "binds": bound.binds}, command)
    return result.told(told)
