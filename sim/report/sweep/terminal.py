"""A sweep for the terminal: how many points ended how, the best of each measure, and the failures by reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.sweep.points import SHOWN
from sim.report.sweep.table import Sweep

MOST_REASONS = 5


def sweep_view(table: pd.DataFrame, axes: dict[str, list[Any]]) -> RenderableType:
    sweep = Sweep.of(table, axes)
    parts: list[RenderableType] = [Text(_counts(table, sweep), style="bold")]
    best = _best_table(sweep)
    if nearest := sweep.nearest_words():
        parts += [Text(""), Text(nearest)]
    elif best.rows:
        parts += [Text(""), best]
    elif sweep.good.any():
        parts += [Text(""), Text("Every measure reads the same in all of them.")]
    reasons = list(_reasons(table))
    if reasons:
        parts += [Text(""), Text("Failed", style="bold"), *reasons]
    return Group(*parts)


def _counts(table: pd.DataFrame, sweep: Sweep) -> str:
    failed = int((table["status"] == "failed").sum())
    text = f"{len(table):,} points" + (f", {sweep.seeds} seeds" if sweep.seeds > 1 else "")
    text += f": {len(table) - failed:,} ran" + (f", {failed:,} failed" if failed else "")
    if sweep.unstable:
        text += f"; {sweep.unstable:,} are left out below, for their queue kept growing"
    return text


def _best_table(sweep: Sweep) -> Table:
    """Of every measure the best point; those that all points have alike are left out."""
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("Best", "", "with"):
        view.add_column(name, justify="left" if name else "right", overflow="fold")
    for measure in sweep.known(SHOWN):
        best = sweep.best(measure)
        values = {sweep.words(measure, row) for row in sweep.winners.nonzero()[0].tolist()}
        if best is not None and (len(values) > 1 or len(sweep.points) == 1):
            ties = len(sweep.ties(measure, best))
            name = sweep.name(best) + (f" (ties with {ties:,} more)" if ties else "")
            view.add_row(measure.label, sweep.words(measure, best), name)
    return view


def _reasons(table: pd.DataFrame) -> Iterator[Text]:
    failed = table[table["status"] == "failed"]
    groups = failed.groupby("reason", sort=False)["name"].agg(list)
    for reason, names in list(groups.items())[:MOST_REASONS]:
        who = ", ".join(dict.fromkeys(names)) if len(names) <= 3 else f"{names[0]} and {len(names) - 1:,} more"
        yield Text(f"{who}: {reason}")
    if len(groups) > MOST_REASONS:
        yield Text(f"and {len(groups) - MOST_REASONS:,} other reasons, in the table")
