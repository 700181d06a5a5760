"""A validation as tables for a terminal of 80 columns. It reads the document alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.validate_words import (
    STAGE_WORDS,
    Document,
    attribution_table,
    notes,
    request_table,
    step_table,
    title,
    twin_line,
)
from sim.schedules import Verdict


def validation_view(document: Document) -> RenderableType:
    """Verdict, twin check, steps, requests, attribution, and what to know about them."""
    verdict = document["verdict"]
    word, style = ("WITHIN", "bold green") if verdict["good"] else ("OUT", "bold red")
    parts: list[RenderableType] = [Text(title(document), style="bold", overflow="fold")]
    parts += [Text(f"{word}: ", style=style).append(verdict["reason"], style="default"), ""]
    parts += [Text("Twin check  ", style="bold").append(twin_line(document), style="default"), ""]
    steps = list(step_table(document["steps"]))
    if steps:
        parts += [_table((f"Steps ({document['steps']['model']})", "steps", "bias", "MAPE", "P90"), steps), ""]
    rows = list(request_table(document["requests"]))
    heads = ("Requests", "live", "predicted", "error", "spread")
    wide = len(heads) if any(row[-1] for row in rows) else len(heads) - 1
    parts += [_table(heads[:wide], [row[:wide] for row in rows]), ""]
    split = [(name, live, error, *shares) for name, live, error, shares in attribution_table(document)]
    if split:
        parts += [_table(("Why", "live", "error", *STAGE_WORDS.values()), split), ""]
    remarks = Table.grid(padding=(0, 1, 0, 0))
    for text in (*document["verdict"]["out"][1:], *notes(document)):
        remarks.add_row(Text("*", style="dim"), Text(text, style="dim"))
    return Group(*parts, remarks)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", style="" if place else "bold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def schedules_view(verdicts: Sequence[Verdict]) -> RenderableType:
    """How each recorded schedule compares, and how many are identical."""
    rows = [(one.name, one.status, f"{one.steps:,}", one.detail) for one in verdicts]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, justify in (("schedule", "left"), ("verdict", "left"), ("steps", "right"), ("", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    known = ("identical", "different", "unsupported")
    tally = {status: sum(one.status == status for one in verdicts) for status in known}
    return Group(table, Text(", ".join(f"{number} {status}" for status, number in tally.items())))
