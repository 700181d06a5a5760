"""The command `sim`: a group, and a file for each of its commands. All that it does, a notebook can do."""

from __future__ import annotations

from importlib import import_module

import click

from sim.cli.guard import Commands, guarded, version_option

SUMMARIES = {
    "claims": "Run again what the field says of its techniques: each claim is simulated without and with it.",
    "compare": "Run several scenarios and show them side by side.",
    "engine": "Install an engine's scheduler for `sim validate --against-engine` and `--set engine.name=NAME`.",
    "list": "What a name may be, and what every setting is.",
    "memory": "Weights, KV and activations of a model with their formulas, and which GPUs hold a batch of sequences.",
    "plan": "How much a configuration takes under an SLO, or which is the cheapest that takes --rate.",
    "report": "Write the page of a results folder again, from its tables.",
    "run": "Replay a trace.",
    "sweep": "Run every combination of settings, and tell which is best.",
    "trace": "Look at traces, convert them, and make synthetic ones.",
    "validate": "Run a trace live and simulate the same: the same decisions? how far off, and why?",
}
"""What each does in a line. Its file has its name, and is imported when it is called, as is all that it needs then."""


class _Sim(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        module = import_module(f"sim.cli.{cmd_name}")
        command: click.Command = getattr(module, "list_" if cmd_name == "list" else cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(map(len, SUMMARIES))
        rows = [(name, click.Command(name, help=what).get_short_help_str(width)) for name, what in SUMMARIES.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Sim, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@version_option
def cli() -> None:
    """Foretoken: how an LLM serving deployment will behave, and how sure that is."""


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    guarded(lambda: cli(standalone_mode=False))


if __name__ == "__main__":
    main()
