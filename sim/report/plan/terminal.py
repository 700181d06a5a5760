"""A plan's answer in the terminal: the sentence, the table of candidates or of rates, the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.plan.sentences import answer, remarks, slo_words, units_of
from sim.report.plan.tables import Columns, Rows, candidate_columns, cells, rate_columns

GAP = 2


def plan_view(document: Mapping[str, Any], width: int = 80) -> RenderableType:
    """The answer for a terminal of `width` columns: its table keeps the columns that fit, and all in JSON."""
    units = units_of(document)
    parts: list[RenderableType] = [Text(answer(document), style="bold"), Text(f"SLO: {slo_words(document)}")]
    if document["rate"] is None and document["rates"]:
        parts += [Text(""), _table(rate_columns(units), document["rates"], width)]
    if document["rate"] is not None and document["candidates"]:
        table = _table(candidate_columns(document, units), document["candidates"], width)
        table.caption = "* no other that meets the SLO is both cheaper and faster; ! nearest to its limit"
        table.caption_justify = "left"
        parts += [Text(""), table]
        parts += [Text(f"{row['name']}: {row['reason']}") for row in document["candidates"] if row["reason"]]
    lines = list(remarks(document))
    return Group(*parts, *([Text(""), *map(Text, lines)] if lines else []))


def _table(columns: Columns, rows: Rows, width: int) -> Table:
    """Whole numbers with their units whatever the width: headings break between words, and spare columns go."""
    kept = list(columns)
    texts = cells(kept, rows)

    def wide() -> int:
        return sum(_wide(column.heading, [row[at] for row in texts]) + GAP for at, column in enumerate(kept)) - GAP

    while wide() > width and any(column.spare for column in kept):
        out = max(range(len(kept)), key=lambda at: kept[at].spare)
        kept.pop(out)
        texts = [[*row[:out], *row[out + 1 :]] for row in texts]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for place, column in enumerate(kept):
        left = not place or not column.heading
        table.add_column(
            _broken(column.heading),
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=not left,
            min_width=None if left else _wide(column.heading, [row[place] for row in texts]),
        )
    for row in texts:
        table.add_row(*row)
    return table


def _broken(heading: str) -> str:
    """With a line for each word, as the clause `ttft_p99` has two."""
    return heading.replace(" ", "\n").replace("_", "\n").replace("/Mtok", "\n/Mtok")


def _wide(heading: str, texts: list[str]) -> int:
    return max(map(len, [*_broken(heading).split("\n"), *texts]))
