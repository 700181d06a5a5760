"""One self-contained HTML page of claims: published beside ours, with the setting and the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sim.report.claims.words import as_document, figures, ours
from sim.report.templates import Card, render
from sim.study.claims import ABSENT, HOLDS, LESS, MORE, NOT, ClaimRow

CARDS = {HOLDS: "", MORE: "", LESS: "", NOT: "bad", ABSENT: ""}


def render_claims(rows: Sequence[ClaimRow], settings: dict[str, Any], version: str) -> str:
    """The page as one string of HTML. settings: what was set on top of each claim's own."""
    counts = Counter(row.verdict for row in rows)
    changed = ", ".join(f"{key}={value}" for key, value in settings.items())
    cards = [Card(verdict, str(counts[verdict]), "rows", style) for verdict, style in CARDS.items() if counts[verdict]]
    return render(
        "claims.html",
        version=version,
        title="What the field says, run again",
        lead="Each row is two simulations of one technique, without and with it, priced by data-sheet rooflines unless "
        "another profile was set." + (f" Set on top of every run: {changed}." if changed else ""),
        headlines=cards,
        claims=[
            {
                "name": row.name,
                "first": place == 0 or rows[place - 1].name != row.name,
                "claim": row.claim,
                "situation": row.situation,
                "ours": ours(row),
                "figures": figures(row),
                "verdict": row.verdict,
                "reasons": [reason for reason in row.reasons if reason],
            }
            for place, row in enumerate(rows)
        ],
        runs=as_document(rows, settings)["claims"],
    )
