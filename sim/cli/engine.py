"""The command `sim engine`: makes the environment in which an installed engine's own scheduler decides."""

from __future__ import annotations

import click


@click.command("engine")
@click.argument("name")
def engine(name: str) -> None:
    """Install an engine's scheduler for `sim validate --against-engine` and `--set engine.name=NAME`.

    NAME is such as vllm==0.33.0. It goes into a virtual environment of its own in ~/.cache/foretoken/engines, or the
    folder that FORETOKEN_ENGINES names; nothing of it enters this one, and no GPU is needed.
    """
    from sim.engines.environment import Installed  # noqa: PLC0415

    installed = Installed.of(name)
    installed.make(lambda text: click.echo(text, err=True))
    click.echo(installed.folder)
