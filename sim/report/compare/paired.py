"""Paired differences as a table for the terminal and as the rows of the page, each with its interval drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from sim.report.measures import LATENCIES
from sim.report.units import NONE, count, number, row_unit
from sim.results.paired import PAIRED, Difference, Interval, Paired

# With more variants than this the terminal shows this latency of each alone.
FULL = 3
KEY = "e2e_s"
STYLES = {"shorter": "green", "longer": "yellow"}


def signed(value: float) -> str:
    """A number with its sign; 0 has none."""
    return f"+{number(value)}" if value > 0 else number(value)


def interval_text(one: Interval, factor: float) -> str:
    """Both ends, or a dash where there are too few pairs."""
    if one.low_s is None or one.high_s is None:
        return NONE
    return f"{signed(one.low_s * factor)} to {signed(one.high_s * factor)}"


def pairs_text(one: Paired) -> str:
    """How many requests were paired, and which were left out."""
    noun = "request" if one.pairs == 1 else "requests"
    parts = [f"{count(one.pairs)} {noun} paired"]
    if one.left_out:
        where = [
            (one.completed_there_only, f"completed in {one.against} alone"),
            (one.completed_here_only, "completed here alone"),
            (one.completed_in_neither, "completed in neither"),
        ]
        told = ", ".join(f"{count(some)} {what}" for some, what in where if some)
        parts.append(f"{count(one.left_out)} left out ({told})")
    return ", ".join(parts)


def _unit(found: Iterable[Difference]) -> tuple[str, float]:
    return row_unit([abs(end) for one in found for end in (*one.mean, *one.median) if end is not None])


def paired_tables(pairs: Mapping[str, Paired]) -> list[Table | Text]:
    """For the terminal, 80 columns: a table for each variant, or one row for each where they are many."""
    if len(pairs) > FULL:
        return _rows(pairs)
    parts: list[Table | Text] = []
    for name, one in pairs.items():
        head = Text(name, style="bold").append(f" against {one.against}: ", style="not bold")
        parts.append(head.append(one.reason or pairs_text(one), style="not bold"))
        if one.differences:
            parts.append(_table(one.differences))
    return parts


def _table(found: Mapping[str, Difference]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    table.add_column("", style="bold", width=5)
    table.add_column("", style="dim", width=2)
    table.add_column("mean", justify="right", width=7)
    table.add_column("95 % interval", justify="right", width=16)
    table.add_column("median", justify="right", width=7)
    table.add_column("", width=27, overflow="fold")
    for key, one in found.items():
        unit, factor = _unit([one])
        mean, median = (signed(part.value_s * factor) for part in (one.mean, one.median))
        table.add_row(LATENCIES[key], unit, mean, interval_text(one.mean, factor), median, _verdict(one))
    return table


def _rows(pairs: Mapping[str, Paired]) -> list[Table | Text]:
    """E2E of every variant in one table; what was left out is told below it."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    against = next(iter(pairs.values())).against
    table.add_column("", style="bold", width=min(18, max(map(len, pairs))), overflow="fold")
    table.add_column("", style="dim", width=2)
    table.add_column("mean", justify="right", width=7)
    table.add_column("95 % interval", justify="right", width=16)
    table.add_column("", width=27, overflow="fold")
    for name, one in pairs.items():
        if (found := one.differences.get(KEY)) is not None:
            unit, factor = _unit([found])
            mean, interval = signed(found.mean.value_s * factor), interval_text(found.mean, factor)
            table.add_row(Text(name), unit, mean, interval, _verdict(found))
    told = [f"{name}: {one.reason or pairs_text(one)}" for name, one in pairs.items() if one.reason or one.left_out]
    return [Text(f"{LATENCIES[KEY]} against {against}, paired by request"), table, *map(Text, told)]


def _verdict(one: Difference) -> Text:
    return Text(one.verdict, style=STYLES.get(one.verdict, "dim"))


class PairedRow(NamedTuple):
    """A row of the page's table: a latency of a variant, and its interval as places on a scale that holds 0."""

    label: str
    """The latency and its unit, in the first row of each."""
    name: str
    texts: Sequence[str]
    what: str
    zero: str
    low: str
    high: str
    mean: str
    verdict: str


def paired_rows(pairs: Mapping[str, Paired]) -> Iterable[PairedRow]:
    """A row for each latency and variant, those of one latency on one scale."""
    for key in PAIRED:
        found = {name: pair.differences[key] for name, pair in pairs.items() if key in pair.differences}
        unit, factor = _unit(found.values())
        ends = [0.0, *(end for one in found.values() for end in one.mean if end is not None)]
        low_s, wide_s = min(ends), (max(ends) - min(ends)) or 1.0

        def at(value_s: float | None, low_s: float = low_s, wide_s: float = wide_s) -> str:
            return "" if value_s is None else f"{4 + 92 * (value_s - low_s) / wide_s:.2f}%"

        for place, (name, one) in enumerate(found.items()):
            whole = one.mean.low_s is not None and one.mean.high_s is not None
            yield PairedRow(
                label=f"{LATENCIES[key]}, {unit}" if place == 0 else "",
                name=name,
                texts=[
                    text
                    for part in (one.mean, one.median)
                    for text in (signed(part.value_s * factor), interval_text(part, factor))
                ],
                what=f"{LATENCIES[key]} of {name}",
                zero=at(0.0),
                low=at(one.mean.low_s) if whole else "",
                high=at(one.mean.high_s) if whole else "",
                mean=at(one.mean.value_s),
                verdict=one.verdict,
            )
