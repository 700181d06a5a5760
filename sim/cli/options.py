"""What several commands share: the options that describe a scenario, and the bar that shows progress."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim import scenario
from traces.schema import InputError

Options = tuple[tuple[str, str, Any, str], ...]
"""(flag, dotted key, type, help) of each."""

OPTIONS: Options = (
    ("--trace", "workload.trace", str, "Trace file, or the name of a bundled one."),
    ("--format", "workload.format", str, "Format of the trace, instead of detecting it."),
    ("--model", "model", str, "Model of the catalog, a TOML file, or a Hugging Face config.json."),
    ("--gpu", "gpu", str, "GPU of the catalog, or a TOML file."),
    ("--profile", "cost.profile", str, "Where step times come from."),
    ("--executor", "executor", str, "Who supplies the seconds of a step: predicted, or live (a device)."),
    ("--device", "device", str, "Device of a live run: cpu, cuda."),
    ("--policy", "policy.name", str, "Batching policy."),
    ("--allocator", "allocator.name", str, "KV-cache allocator."),
    ("--kv-blocks", "kv.blocks", int, "KV blocks of each replica, instead of deriving them from its memory."),
    ("--replicas", "replicas", int, "Replicas behind the router."),
    ("--tp", "tp", int, "GPUs that share one replica's layers (tensor parallelism)."),
    ("--rate", "workload.rate", float, "Mean arrivals per second; a trace's own times are stretched to it."),
    ("--rate-scale", "workload.rate_scale", float, "Multiply the trace's arrival rate."),
    (
        "--concurrency",
        "workload.concurrency",
        int,
        "Closed loop: so many users, each waiting for its answer.",
    ),
    ("--limit", "workload.limit", int, "Only the first N requests."),
    (
        "--tokenizer",
        "workload.tokenizer",
        str,
        "A tokenizer.json, for traces that hold text without token counts.",
    ),
    ("--seed", "seed", int, "Seed of everything random."),
    ("--slo", "slo", str, "Limits in seconds for goodput, such as ttft=0.5,tpot=0.05."),
)


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe a scenario; they reach the command as one mapping `settings`."""

    def settings_of(given: dict[str, Any]) -> dict[str, Any]:
        settings = _taken(given, OPTIONS)
        return settings | dict(scenario.parse_setting(text) for text in given.pop("setting"))

    return _with_options(command, OPTIONS, settings_of, "Any setting, such as engine.max_num_seqs=64.")


def axis_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same for many scenarios: an option may have several values, which then are a list in `settings`.

    Where the points run, and so `--executor`, is the command's own affair.
    """
    options = tuple(
        (flag, key, int if key == "seed" else str, text)
        for flag, key, _, text in OPTIONS
        if key not in ("executor", "device")
    )

    def settings_of(given: dict[str, Any]) -> dict[str, Any]:
        from sim.study.sweep.grid import parse_values  # noqa: PLC0415

        settings: dict[str, Any] = {}
        taken = _taken(given, options)
        options_given = [f"{key}={'true' if value is True else value}" for key, value in taken.items()]
        for text in (*options_given, *given.pop("setting")):
            key, value = parse_values(text)
            if settings.setdefault(scenario.full_key(key), value) is not value:
                raise InputError(f"{key} is given twice; give all its values at once: {key}=first,second")
        return settings

    return _with_options(
        command, options, settings_of, "Any setting; several values, such as rate=5,10 or rate=5:50:5, are an axis."
    )


def _taken(given: dict[str, Any], options: Options) -> dict[str, Any]:
    """The settings among the options given, which are taken out."""
    settings: dict[str, Any] = {}
    for flag, key, _, _ in options:
        value = given.pop(flag[2:].replace("-", "_"))
        if value is not None:
            settings[key] = value
    if given.pop("skip_bad"):
        settings["workload.skip_bad"] = True
    return settings


def _with_options(
    command: Callable[..., None],
    options: Options,
    settings_of: Callable[[dict[str, Any]], dict[str, Any]],
    help_of_set: str,
) -> Callable[..., None]:
    @functools.wraps(command)  # which also hands on the options given below this decorator
    def collected(**given: Any) -> None:
        command(settings=settings_of(given), **given)

    wrapped: Callable[..., None] = collected
    for flag, _, kind, text in reversed(options):
        wrapped = click.option(flag, type=kind, help=text)(wrapped)
    wrapped = click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be used, and count them.")(
        wrapped
    )
    wrapped = click.option(
        "--allow-code", is_flag=True, help="Let files name code to import (module:object); only if you trust them."
    )(wrapped)
    return click.option("--set", "setting", multiple=True, metavar="KEY=VALUE", help=help_of_set)(wrapped)


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, where a person is there to see it."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
