"""A validation as tables for a terminal of 80 columns. It reads the document alone."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.fitted import in_parts
from sim.report.terminal import remarks
from sim.report.validation.sentences import (
    Document,
    attribution_table,
    collection_table,
    curve_table,
    notes,
    request_table,
    step_table,
    title,
    twin_line,
    units_of,
)
from sim.results.units import count
from sim.validate.attribution import STAGES
from sim.validate.schedules.grades import GRADES
from sim.validate.schedules.verdicts import ScheduleResult, described


def validation_view(document: Document) -> RenderableType:
    """Verdict, twin check, steps, requests, attribution, and what to know about them."""
    verdict, units = document["verdict"], units_of(document)
    word, style = ("WITHIN", "bold green") if verdict["good"] else ("OUT", "bold red")
    parts: list[RenderableType] = [Text(title(document), style="bold", overflow="fold")]
    parts += [Text(f"{word}: ", style=style).append(verdict["reason"], style="default"), ""]
    parts += [Text("Twin check  ", style="bold").append(twin_line(document), style="default"), ""]
    steps = list(step_table(document["steps"]))
    if steps:
        parts += [in_parts((f"Steps ({document['steps']['model']})", "steps", "bias", "MAPE", "P90"), steps), ""]
    rows = list(request_table(document, units))
    heads = (
        "Requests",
        "live",
        "predicted",
        "error",
        "spread" if document["twin"]["identical"] is not None else "between",
    )
    wide = len(heads) if any(row[-1] for row in rows) else len(heads) - 1
    parts += [in_parts(heads[:wide], [row[:wide] for row in rows]), ""]
    split = list(attribution_table(document, units))
    if split:
        parts += [in_parts(("Why", "live", "error", *STAGES), split), ""]
    texts = (*document["verdict"]["out"][1:], *notes(document), *document["inputs"].get("notes", []))
    return Group(*parts, remarks([("*", text, "dim") for text in texts]))


def collection_view(document: Document) -> RenderableType:
    """One line for each folder of records: steps, twin check, errors of steps and of requests."""
    verdict = document["verdict"]
    word, style = ("WITHIN", "bold green") if verdict["good"] else ("OUT", "bold red")
    twin = document["twin"]
    again = "all taken again" if twin["identical"] else "and not all taken again"
    parts: list[RenderableType] = [Text(f"{word}: ", style=style).append(verdict["reason"], style="default")]
    parts += [Text(f"{count(twin['steps'])} live steps, {again}"), ""]
    heads = ("Errors in %", "steps", "bias", "MAPE", "TTFT90", "TPOT50", "E2E50", "E2E99", "out/s")
    table = in_parts(heads, collection_table(document["records"]), gap=1)
    return Group(*parts, table, Text("* inside the spread of the live runs", style="dim"))


def curve_view(document: Document) -> RenderableType:
    """One line for each run of a server: what was measured, and what is predicted."""
    verdict = document["verdict"]
    word, style = ("WITHIN", "bold green") if verdict["good"] else ("OUT", "bold red")
    parts: list[RenderableType] = [Text(f"{word}: ", style=style).append(verdict["reason"], style="default"), ""]
    heads, rows = curve_table(document["runs"])
    labels: dict[str, list[str]] = {}
    for label, run in document["runs"].items():
        for note in run["inputs"].get("notes", []):
            labels.setdefault(note, []).append(label)
    notes = [
        note if len(named) == len(document["runs"]) else f"{', '.join(named)}: {note}" for note, named in labels.items()
    ]
    left_out = [f"{label} is not compared: {reason}" for label, reason in document["unusable"].items()]
    return Group(*parts, in_parts(heads, rows), "", remarks([("*", text, "dim") for text in (*left_out, *notes)]))


def schedules_view(verdicts: Sequence[ScheduleResult]) -> RenderableType:
    """How each recorded schedule compares: its steps that differ, by grade, and the first of each."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("schedule", "verdict", "steps", *GRADES):
        table.add_column(name, justify="left" if name in ("schedule", "verdict") else "right", overflow="fold")
    notes: list[RenderableType] = []
    for verdict in verdicts:
        counts = [count(grade.steps) for grade in verdict.grades.values()]
        table.add_row(verdict.name, verdict.status, count(verdict.steps), *counts)
        firsts = [(name, grade.first_difference) for name, grade in verdict.grades.items()]
        texts = [f"{name}: {described(first)}" for name, first in firsts if first] or [verdict.detail]
        notes += [Text(f"{verdict.name}, {text}", overflow="fold") for text in texts if text]
    known = ("identical", "different", "unsupported")
    tally = {status: sum(verdict.status == status for verdict in verdicts) for status in known}
    return Group(table, *notes, Text(", ".join(f"{number} {status}" for status, number in tally.items())))
