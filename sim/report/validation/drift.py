"""A drift as text: where two engines part, the rule that explains it, and what it does to the latencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sim.report.fitted import in_parts
from sim.report.terminal import remarks
from sim.results.units import NONE, count, number, signed
from sim.validate.schedules.verdicts import short

HEADS = ("Latency", "engine", "ours", "off")


def drift_view(document: Mapping[str, Any]) -> RenderableType:
    """Verdict, first difference of each grade, the rule, latencies, and how fast the engine decided."""
    word, style = ("IDENTICAL", "bold green") if document["verdict"]["good"] else ("DIFFERENT", "bold red")
    verdict = Text(f"{word}: ", style=style).append(document["verdict"]["reason"], style="default")
    parts: list[RenderableType] = [verdict]
    parts += [Text(line, overflow="fold") for line in _differences(document)]
    parts += ["", in_parts(HEADS, list(latency_rows(document["latencies"]))), ""]
    speed = document["engine"]["steps_per_s"]
    notes = [f"Ours decides by the rules of {document['engine']['rules_of']}."]
    if speed:
        notes.append(f"{document['engine']['name']} decided {count(round(speed))} steps/s.")
    return Group(*parts, remarks([("*", text, "dim") for text in (*notes, *document["inputs"].get("notes", []))]))


def _differences(document: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{name}: {count(grade['steps'])} steps differ; {_told(grade['first_difference'])}"
        for name, grade in document["grades"].items()
        if grade["first_difference"]
    ]
    return [*lines, sentence] if (sentence := rule_sentence(document)) else lines


def rule_sentence(document: Mapping[str, Any]) -> str:
    """Which rule explains that decisions differ; "" where none differs."""
    if rule := document["rule"]:
        how = "all of it" if rule["explains_all"] else f"it up to step {count(rule['identical_steps'])}"
        return f"Rule {rule['name']}, switched {'on' if rule['on'] else 'off'}, explains {how}."
    return "No single rule that is known explains it." if document["grades"]["decisions"]["first_difference"] else ""


def _told(difference: Mapping[str, Any]) -> str:
    engine, ours = short(difference["recorded"]), short(difference["ours"])
    return f"first at step {difference['step']:,}, {difference['key']}: the engine {engine}, ours {ours}"


def latency_rows(latencies: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of `HEADS` for each latency and statistic."""
    rows = []
    for key, statistics in latencies.items():
        for name, told in statistics.items():
            values = (NONE if told[who] is None else f"{number(told[who] * 1e3)} ms" for who in ("engine", "ours"))
            off = NONE if told["off"] is None else f"{signed(100 * told['off'])} %"
            rows.append((f"{key.removesuffix('_s').upper()} {name}", *values, off))
    return rows
