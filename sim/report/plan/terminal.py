"""A plan's answer in the terminal: the sentence, the table of candidates or of rates, the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.plan.sentences import answer, remarks, slo_words
from sim.report.plan.tables import CANDIDATES, RATES, STATUS, Columns, Rows, cells, slo_columns


def plan_view(document: Mapping[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text(answer(document), style="bold"), Text(f"SLO: {slo_words(document)}")]
    if document["rate"] is None and document["rates"]:
        parts += [Text(""), _table(RATES, document["rates"])]
    if document["rate"] is not None and document["candidates"]:
        table = _table([*CANDIDATES, *slo_columns(document), *STATUS], document["candidates"])
        table.caption = "* no other that meets the SLO is both cheaper and faster; ! nearest to its limit"
        table.caption_justify = "left"
        parts += [Text(""), table]
        parts += [Text(f"{row['name']}: {row['reason']}") for row in document["candidates"] if row["reason"]]
    lines = list(remarks(document))
    return Group(*parts, *([Text(""), *map(Text, lines)] if lines else []))


def _table(columns: Columns, rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, (name, _) in enumerate(columns):
        table.add_column(name, justify="left" if not place or not name else "right", overflow="fold")
    for row in cells(columns, rows):
        table.add_row(*row)
    return table
