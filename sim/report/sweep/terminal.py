"""A sweep for the terminal: how many points ended how, the best of each measure, and the failures by reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.measures import Measure
from sim.report.sweep.interactivity import curve
from sim.report.sweep.points import PER_GPU, PER_MEGAWATT, PER_USER, PRICE, SHOWN
from sim.report.sweep.table import Sweep
from sim.results.units import number
from traces.late import pd

MOST_REASONS = 5
MOST_ON_CURVE = 10
CURVE = {PER_USER: "tokens/s/user", PER_GPU: "tokens/s/GPU", PRICE: "$/Mtok output", PER_MEGAWATT: "tokens/s/MW"}


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
    if len(curve(sweep)) > 1:
        parts += [Text(""), _curve_table(sweep)]
    if unlike := sweep.unlike_clients():
        parts += [Text(""), Text(unlike)]
    reasons = list(_reasons(table))
    if reasons:
        parts += [Text(""), Text("Failed", style="bold"), *reasons]
    return Group(*parts)


def _counts(table: pd.DataFrame, sweep: Sweep) -> str:
    failed = int((table["status"] == "failed").sum())
    text = f"{len(table):,} points" + (f", {sweep.seeds} seeds" if sweep.seeds > 1 else "")
    text += f": {len(table) - failed:,} ran" + (f", {failed:,} failed" if failed else "")
    if sweep.unstable:
        left_out = "is left out below, for its" if sweep.unstable == 1 else "are left out below, for their"
        text += f"; {sweep.unstable:,} {left_out} queue kept growing"
    return text


def _best_table(sweep: Sweep) -> Table:
    """Of every measure the best point; those that all have alike are left out, unless there is only one."""
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("Best", "", "with"):
        view.add_column(name, justify="left" if name else "right", overflow="fold")
    for measure in sweep.known(SHOWN):
        best = sweep.best(measure)
        values = {sweep.words(measure, row) for row in sweep.winners.nonzero()[0].tolist()}
        if best is not None and (len(values) > 1 or sweep.winners.sum() == 1):
            ties = len(sweep.ties(measure, best))
            name = sweep.name(best) + (f" (ties with {ties:,} more)" if ties else "")
            view.add_row(measure.label, sweep.words(measure, best), name)
    return view


def _curve_table(sweep: Sweep) -> Table:
    """The points that no other beats in both, what a user and what a GPU gets: the fastest for a user first."""
    rows, known = curve(sweep), sweep.known(list(CURVE))
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    view.add_column("Fast for a user and cheap", overflow="fold")
    for measure in known:
        view.add_column(CURVE[measure], justify="right", overflow="fold")
    kept = rows if len(rows) <= MOST_ON_CURVE else [rows[at] for at in _spread(len(rows))]
    for row in kept:
        view.add_row(sweep.name(row), *(_curve_text(sweep, measure, row) for measure in known))
    if len(kept) < len(rows):
        view.add_row(f"and {len(rows) - len(kept):,} between them", *("" for _ in known))
    return view


def _curve_text(sweep: Sweep, measure: Measure, row: int) -> str:
    return sweep.words(measure, row) if measure == PRICE else number(sweep.value(measure, row))


def _spread(length: int) -> list[int]:
    """Places of `MOST_ON_CURVE` out of so many, the ends among them, evenly spread."""
    return [round(at * (length - 1) / (MOST_ON_CURVE - 1)) for at in range(MOST_ON_CURVE)]


def _reasons(table: pd.DataFrame) -> Iterator[Text]:
    failed = table[table["status"] == "failed"]
    groups = failed.groupby("reason", sort=False)["name"].agg(list)
    for reason, names in list(groups.items())[:MOST_REASONS]:
        who = ", ".join(dict.fromkeys(names)) if len(names) <= 3 else f"{names[0]} and {len(names) - 1:,} more"
        yield Text(f"{who}: {reason}")
    if len(groups) > MOST_REASONS:
        yield Text(f"and {len(groups) - MOST_REASONS:,} other reasons, in the table")
