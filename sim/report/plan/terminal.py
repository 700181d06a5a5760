"""A plan's answer in the terminal: the sentence, the table of candidates or of rates, the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.fitted import FittedTable
from sim.report.plan.sentences import answer, remarks, slo_words, units_of
from sim.report.plan.tables import Columns, Rows, candidate_columns, cells, rate_columns

GAP = 2
MARKS = "* no other that meets the SLO is both cheaper and faster; ! nearest to its limit"


def plan_view(document: Mapping[str, Any]) -> RenderableType:
    units = units_of(document)
    parts: list[RenderableType] = [Text(answer(document), style="bold"), Text(f"SLO: {slo_words(document)}")]
    if document["rate"] is None and document["rates"]:
        parts += [Text(""), _table(rate_columns(units), document["rates"])]
    if document["rate"] is not None and document["candidates"]:
        parts += [Text(""), _table(candidate_columns(document, units), document["candidates"], MARKS)]
        parts += [Text(f"{row['name']}: {row['reason']}") for row in document["candidates"] if row["reason"]]
    lines = list(remarks(document))
    return Group(*parts, *([Text(""), *map(Text, lines)] if lines else []))


def _table(columns: Columns, rows: Rows, marks: str = "") -> FittedTable:
    texts = cells(columns, rows)
    return FittedTable(lambda width: _fitted(columns, texts, marks, width))


def _fitted(columns: Columns, texts: list[list[str]], marks: str, width: int) -> RenderableType:
    """Whole numbers with their units whatever the width: headings break between words, spare columns are left out."""
    wide = [
        max(map(len, [*_broken(column.heading).split("\n"), *(row[at] for row in texts)]))
        for at, column in enumerate(columns)
    ]
    kept, out = list(range(len(columns))), []
    while sum(wide[at] + GAP for at in kept) - GAP > width and any(columns[at].spare for at in kept):
        out.append(max(kept, key=lambda at: columns[at].spare))
        kept.remove(out[-1])
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for at in kept:
        words = not columns[at].heading
        justify: JustifyMethod = "left" if words or not at else "right"
        table.add_column(
            _broken(columns[at].heading), justify=justify, overflow="fold", no_wrap=not words, vertical="top"
        )
    for row in texts:
        table.add_row(*(row[at] for at in kept))
    left = f"too wide for this terminal: {', '.join(columns[at].heading for at in sorted(out))}" if out else ""
    notes = [Text(text) for text in (marks, left) if text]
    return Group(table, *notes)


def _broken(heading: str) -> str:
    """With a line for each word, as the clause `ttft_p99` has two."""
    return heading.replace(" ", "\n").replace("_", "\n").replace("/Mtok", "\n/Mtok")
