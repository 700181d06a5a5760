"""What several commands share: the options that describe a scenario, and the bar that shows progress."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from sim import scenario
from sim.scenario import SETTINGS
from traces.late import import_numpy
from traces.schema import InputError

OPTIONS = {
    "--trace": "workload.trace",
    "--format": "workload.format",
    "--turns": "workload.turns",
    "--time-unit": "workload.time_unit",
    "--trace-block-tokens": "workload.block_tokens",
    "--model": "model",
    "--gpu": "gpu",
    "--engine": "engine.preset",
    "--front-end": "front_end.name",
    "--profile": "cost.profile",
    "--executor": "executor",
    "--device": "device",
    "--policy": "policy.name",
    "--allocator": "allocator.name",
    "--kv-blocks": "kv.blocks",
    "--replicas": "replicas",
    "--tp": "tp",
    "--rate": "workload.rate",
    "--rate-scale": "workload.rate_scale",
    "--concurrency": "workload.concurrency",
    "--limit": "workload.limit",
    "--tokenizer": "workload.tokenizer",
    "--skip-bad": "workload.skip_bad",
    "--seed": "seed",
    "--slo": "slo",
}
"""The setting of each option, which has its type and its meaning."""


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe a scenario; they reach the command as one mapping `settings`."""

    def settings_of(options: dict[str, Any], texts: tuple[str, ...]) -> dict[str, Any]:
        return options | dict(scenario.parse_setting(text) for text in texts)

    types = {flag: type(SETTINGS[key][0]) for flag, key in OPTIONS.items()}
    return _with_options(command, types, settings_of, "Any setting (sim list settings), as engine.max_num_seqs=64.")


def axis_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same for many scenarios: an option may have several values, which then are a list in `settings`.

    Where the points run, and so `--executor`, is the command's own affair.
    """

    def settings_of(options: dict[str, Any], texts: tuple[str, ...]) -> dict[str, Any]:
        from sim.study.sweep.grid import parse_values  # noqa: PLC0415

        settings: dict[str, Any] = {}
        for text in (*(f"{key}={'true' if value is True else value}" for key, value in options.items()), *texts):
            key, value = parse_values(text)
            if settings.setdefault(scenario.full_key(key), value) is not value:
                raise InputError(f"{key} is given twice; give all its values at once: {key}=first,second")
        return settings

    types = {flag: {"seed": int, "workload.skip_bad": bool}.get(key, str) for flag, key in OPTIONS.items()}
    del types["--executor"], types["--device"]
    return _with_options(
        command, types, settings_of, "Any setting; several values, such as rate=5,10 or rate=5:50:5, are an axis."
    )


def _with_options(
    command: Callable[..., None],
    types: Mapping[str, type],
    settings_of: Callable[[dict[str, Any], tuple[str, ...]], dict[str, Any]],
    help_of_set: str,
) -> Callable[..., None]:
    @functools.wraps(command)  # which also hands on the options given below this decorator
    def collected(setting: tuple[str, ...], **options: Any) -> None:
        import_numpy()
        values = {OPTIONS[flag]: options.pop(flag[2:].replace("-", "_")) for flag in types}
        settings = settings_of({key: value for key, value in values.items() if value is not None}, setting)
        command(settings=settings, **options)

    wrapped: Callable[..., None] = collected
    for flag, kind in reversed(list(types.items())):
        switch: dict[str, Any] = {"is_flag": True, "default": None} if kind is bool else {"type": kind}
        wrapped = click.option(flag, help=SETTINGS[OPTIONS[flag]][1].meaning, **switch)(wrapped)
    wrapped = click.option(
        "--allow-code", is_flag=True, help="Let files name code to import (module:object); only if you trust them."
    )(wrapped)
    return click.option("--set", "setting", multiple=True, metavar="KEY=VALUE", help=help_of_set)(wrapped)


def command_line(command: str, file: str | None, settings: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """The command that gives these settings, but those named, as a person types it."""
    words = ["sim", command, *([file] if file else [])]
    flags = {key: flag for flag, key in OPTIONS.items()}
    for key, value in settings.items():
        if (full := scenario.full_key(key)) in without:
            continue
        if full in flags:
            words += [flags[full]] if value is True else [flags[full], str(value)]
        else:
            words += ["--set", f"{full}={value}"]
    return shlex.join(words)


@contextmanager
def naming_bar(what: str, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar that is told (what is done now, how much is done, of how much); None where nobody would see it."""
    if quiet:
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """The same of one thing: told (how much is done, of how much)."""
    with naming_bar(what, quiet) as bar:
        yield None if bar is None else lambda done, total: bar(what, done, total)
