"""How a claim reads: its figures in their units, what was published, how ours stands to it. It runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.results.units import NONE, number, percent, seconds
from sim.study.claims import ABSENT, HOLDS, LESS, MORE, NOT, ClaimRow

STYLES = {HOLDS: "green", MORE: "green", LESS: "yellow", NOT: "red", ABSENT: "dim"}


def figure(value: float | None, unit: str) -> str:
    """What one run measured; `unit` as the claim's file has it."""
    if value is None:
        return "cannot run"
    if unit == "share":
        return percent(value)
    if unit == "s":
        return seconds(value)
    return f"{number(value)} {unit}".strip()


def ours(row: ClaimRow) -> str:
    """The value of a row in the words of what was published: 3.1 times, 59.9 %."""
    if row.value is None:
        return NONE
    if row.claim.kind == "share":
        return percent(row.value)
    if row.claim.kind == "runs":
        return "runs" if row.value else "does not run"
    return f"{number(row.value, 2 if row.value < 10 else 3)} times"


def figures(row: ClaimRow) -> str:
    """What each run measured: static 284 tokens/s, continuous 880 tokens/s."""
    if row.situation is None:
        return row.claim.missing
    each = zip(row.situation.runs, row.figures, strict=True)
    return ", ".join(f"{run.name} {figure(value, row.claim.unit)}" for run, value in each)


def as_document(rows: Sequence[ClaimRow], settings: dict[str, Any]) -> dict[str, Any]:
    """The claims as JSON: one object a row, with the whole settings of every run."""
    return {
        "settings": settings,
        "claims": [
            {
                "name": row.name,
                "title": row.claim.title,
                "published": row.claim.published,
                "source": row.claim.source,
                "verdict": row.verdict,
                "value": row.value,
                "kind": row.claim.kind,
                "low": row.claim.low,
                "high": row.claim.high if row.claim.high < float("inf") else None,
                "measured": row.claim.measured,
                "situation": row.situation.text if row.situation else None,
                "missing": row.claim.missing or None,
                "why": row.claim.why,
                "runs": [
                    {
                        "name": run.name,
                        "figure": value,
                        "reason": reason or None,
                        "traffic": dict(row.situation.traffic),
                        "settings": {**row.situation.settings, **run.settings, **settings},
                    }
                    for run, value, reason in zip(row.situation.runs, row.figures, row.reasons, strict=True)
                ]
                if row.situation
                else [],
            }
            for row in rows
        ],
    }
