"""The commands `sim trace ...`: look at traces, convert and edit them, make synthetic ones. Thin over `traces`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from sim.cli.trace_import import import_

if TYPE_CHECKING:
    from traces import Trace

# Commands import `traces` when they run, so that `sim --help` and a mistyped option answer at once.


@click.group()
def trace() -> None:
    """Look at traces, convert them, and make synthetic ones."""


trace.add_command(import_)


def reading(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of `traces.read`; they reach the command as one mapping `how`."""

    @functools.wraps(command)
    def collected(**options: Any) -> None:
        names = ("format", "tokenizer", "skip_bad", "limit", "side")
        command(how={name: options.pop(name) for name in names}, **options)

    wrapped: Callable[..., None] = collected
    for option in (
        click.option("--side", type=click.Choice(["both", "a", "b"]), default="both", help="Side of each battle."),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N requests."),
        click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used, and count them."),
        click.option("--tokenizer", type=click.Path(), help="A tokenizer.json, for text without token counts."),
        click.option("--format", help="Format of the trace, instead of detecting it."),
    ):
        wrapped = option(wrapped)
    return wrapped


@trace.command()
@click.argument("name", metavar="TRACE")
@reading
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def info(name: str, how: dict[str, Any], as_json: bool) -> None:
    """Rows, span, rate, lengths, sessions and reusable prefixes of TRACE."""
    import traces  # noqa: PLC0415
    from traces.stats import describe  # noqa: PLC0415

    facts = describe(traces.read(name, **how))
    if as_json:
        click.echo(json.dumps(facts, indent=2, allow_nan=False))
    else:
        _show(facts)


@trace.command()
@click.argument("name", metavar="TRACE")
@click.argument("out", type=click.Path(path_type=Path))
@reading
@click.option("--merge", multiple=True, metavar="TRACE", help="Add the requests of another trace (repeatable).")
@click.option("--between", type=(float, float), metavar="START END", help="Only arrivals in [START, END) seconds.")
@click.option("--first-turns", is_flag=True, help="Only requests that follow none.")
@click.option("--resample", type=click.IntRange(min=1), help="Draw N sessions (or requests) with replacement.")
@click.option("--spread", is_flag=True, help="Spread requests of one time over the slot up to the next.")
@click.option(
    "--session-blocks", type=click.IntRange(min=1), metavar="TOKENS", help="Derive prefix blocks of sessions."
)
@click.option("--stagger", type=float, metavar="RATE", help="New Poisson session starts, RATE per second.")
@click.option("--rate", type=float, help="Set the mean arrivals per second.")
@click.option("--rate-scale", type=float, help="Multiply the arrival rate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is drawn.")
def convert(name: str, out: Path, how: dict[str, Any], merge: tuple[str, ...], seed: int, **edits: Any) -> None:
    """Write TRACE to OUT (.csv, .jsonl, .parquet), edited in the order of the options above."""
    import traces  # noqa: PLC0415
    from traces import edit, write  # noqa: PLC0415

    write.check(out)
    requests = traces.read(name, **how)
    if merge:
        requests = edit.merge([requests, *(traces.read(other, **how) for other in merge)])
    requests = _edited(requests, seed, **edits)
    write.write(requests, out)
    click.echo(f"wrote {len(requests):,} requests to {out}", err=True)


def _edited(
    requests: Trace,
    seed: int,
    between: tuple[float, float] | None,
    first_turns: bool,
    resample: int | None,
    spread: bool,
    session_blocks: int | None,
    stagger: float | None,
    rate: float | None,
    rate_scale: float | None,
) -> Trace:
    import numpy as np  # noqa: PLC0415

    from traces import edit  # noqa: PLC0415

    if between is not None:
        requests = edit.slice_time(requests, *between)
    if first_turns:
        requests = edit.first_turns(requests)
    if resample is not None:
        requests = edit.resample(requests, resample, np.random.default_rng([seed, 0]))
    if spread:
        requests = edit.spread(requests)
    if session_blocks is not None:
        requests = edit.session_blocks(requests, session_blocks)
    if stagger is not None:
        requests = edit.stagger(requests, stagger, np.random.default_rng([seed, 1]))
    if rate is not None:
        requests = edit.set_rate(requests, rate, np.random.default_rng([seed, 2]))
    if rate_scale is not None:
        requests = edit.scale_rate(requests, rate_scale)
    return requests


@trace.group()
def synth() -> None:
    """Make a synthetic trace; the same seed gives the same trace."""


@synth.command("requests")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), required=True, help="Requests.")
@click.option("--rate", type=float, required=True, help="Mean requests per second.")
@click.option("--arrivals", default="poisson", show_default=True, help="poisson, gamma, weibull, constant, diurnal.")
@click.option("--cv", type=float, help="Coefficient of variation of gamma and weibull gaps (default 2).")
@click.option("--start-hour", type=float, help="Hour of day of the first diurnal arrival (default 0).")
@click.option("--prompt", metavar="LENGTHS", help="fixed:512, lognormal:median=200,sigma=1, empirical:16=1,64=3, ...")
@click.option("--output", metavar="LENGTHS", help="As --prompt.")
@click.option("--lengths-from", metavar="TRACE", help="Draw pairs of lengths from a trace instead.")
@click.option("--next-turn", type=float, help="Make sessions: the chance that a turn follows.")
@click.option("--think", type=float, help="Median think time in seconds, with --next-turn (default 60).")
@click.option("--prefixes", type=int, help="Open each session with one of N shared prefixes.")
@click.option("--prefix-tokens", type=int, help="Tokens of a shared prefix, with --prefixes (default 256).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def requests_(out: Path, seed: int, **options: Any) -> None:
    """Arrivals of a process, lengths of a distribution."""
    import numpy as np  # noqa: PLC0415

    from traces import write  # noqa: PLC0415
    from traces.synth import Recipe  # noqa: PLC0415

    write.check(out)
    requests = Recipe(**options).make(np.random.default_rng(seed), name=out.name)
    write.write(requests, out)
    click.echo(f"wrote {len(requests):,} requests to {out}", err=True)


@synth.command("servegen")
@click.argument("clients", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--start", type=float, default=0.0, show_default=True, help="Second of the clients' day to begin at.")
@click.option("--duration", type=float, default=600.0, show_default=True, help="Seconds.")
@click.option("--rate-scale", type=float, default=1.0, show_default=True, help="Multiply every client's rate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def servegen_(clients: Path, out: Path, start: float, duration: float, rate_scale: float, seed: int) -> None:
    """Requests of ServeGen's measured CLIENTS, a folder or a tar file."""
    import numpy as np  # noqa: PLC0415

    from traces import servegen, write  # noqa: PLC0415

    write.check(out)
    requests = servegen.synthesise(
        servegen.read_clients(clients),
        np.random.default_rng(seed),
        start_s=start,
        duration_s=duration,
        rate_scale=rate_scale,
        name=out.name,
    )
    write.write(requests, out)
    click.echo(f"wrote {len(requests):,} requests to {out}", err=True)


@synth.command("arena")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--votes", type=int, default=4_700, show_default=True, help="Battles (the release has 33000).")
@click.option("--days", type=float, default=7.338, show_default=True, help="Days from the launch (the release: 67).")
@click.option("--seed", type=click.IntRange(min=0), default=2, show_default=True)
def arena_(out: Path, votes: int, days: float, seed: int) -> None:
    """A file in Chatbot Arena's schema with its published statistics; JSON Lines, marked synthetic in each row."""
    import numpy as np  # noqa: PLC0415

    from traces import arena, write  # noqa: PLC0415

    write.check(out, shaped=False)
    launch = arena.Launch(votes, days)
    write.write_lines(arena.lines(launch, np.random.default_rng(seed)), out)
    click.echo(f"wrote {votes:,} battles to {out}", err=True)


def _show(facts: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("trace", facts["name"] + (" (synthetic)" if facts["synthetic"] else ""))
    table.add_row("format", facts["kind"])
    table.add_row("requests", f"{facts['requests']:,}")
    if facts["dropped"]:
        table.add_row("dropped", f"{facts['dropped']:,}")
    if arrivals := facts["arrivals"]:
        table.add_row("span", f"{arrivals['span_s']:,.3f} s, {arrivals['distinct_times']:,} distinct times")
        if arrivals["rate_per_s"]:
            table.add_row("rate", f"{arrivals['rate_per_s']:.4g}/s, CV of gaps {arrivals['cv']:.2f}")
    for name in ("prompt_tokens", "output_tokens"):
        lengths = facts[name]
        spread = ", ".join(f"{key} {lengths[key]:,.0f}" for key in ("p50", "p90", "p99", "max"))
        table.add_row(name.replace("_", " "), f"mean {lengths['mean']:,.1f}, {spread}")
    if sessions := facts["sessions"]:
        many = f"{sessions['sessions']:,} of {sessions['requests']:,} requests"
        turns = f"turns mean {sessions['turns_mean']:.2f}, max {sessions['turns_max']}"
        table.add_row("sessions", f"{many}, {turns}, think p50 {sessions['think_p50_s']:.3g} s")
    if prefix := facts["prefix"]:
        blocks = f"{prefix['reused_blocks']:,} of {prefix['blocks']:,} blocks of {prefix['block_tokens']}"
        table.add_row("reusable prefix", f"{blocks} ({prefix['reused_block_share']:.2%})")
        tokens = f"{prefix['reused_tokens']:,} of {prefix['tokens']:,} tokens ({prefix['reused_token_share']:.2%})"
        table.add_row("", f"{tokens}, unbounded cache, order of the trace")
    for place, note in enumerate(facts["notes"]):
        table.add_row("notes" if not place else "", note)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
