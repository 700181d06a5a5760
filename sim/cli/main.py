"""The command `sim`: a group, and a file for each of its commands. All that it does, a notebook can do."""

from __future__ import annotations

import click

from sim.cli.claims import claims
from sim.cli.compare import compare
from sim.cli.engine import engine
from sim.cli.guard import Commands, guarded, version_option
from sim.cli.list import list_
from sim.cli.memory import memory
from sim.cli.plan import plan
from sim.cli.report import report
from sim.cli.run import run
from sim.cli.sweep import sweep
from sim.cli.trace import trace
from sim.cli.validate import validate

# Commands import what they need when they run, so that `sim --help` and a mistyped option answer at once.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@version_option
def cli() -> None:
    """Foretoken: how an LLM serving deployment will behave, and how sure that is."""


for command in (run, compare, validate, list_, memory, plan, claims, report, sweep, trace, engine):
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    guarded(lambda: cli(standalone_mode=False))


if __name__ == "__main__":
    main()
