"""Paired differences as a table for the terminal and as the rows of the page, each with its interval drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from sim.report.measures import LATENCIES, LatencyUnits
from sim.results.paired import PAIRED, Difference, Interval, Paired
from sim.results.units import NONE, count, count_of, row_unit, signed

# With more variants than this the terminal shows this latency of each alone.
FULL = 3
KEY = "e2e_s"
STYLES = {"shorter": "green", "longer": "yellow"}


def interval_text(interval: Interval, factor: float) -> str:
    """Both ends, or a dash where there are too few pairs."""
    if interval.low_s is None or interval.high_s is None:
        return NONE
    return f"{signed(interval.low_s * factor)} to {signed(interval.high_s * factor)}"


def pairs_text(pair: Paired) -> str:
    parts = [f"{count_of(pair.pairs, 'request')} paired"]
    if pair.left_out:
        where = [
            (pair.completed_there_only, f"completed in {pair.against} alone"),
            (pair.completed_here_only, "completed here alone"),
            (pair.completed_in_neither, "completed in neither"),
        ]
        reasons = ", ".join(f"{count(requests)} {what}" for requests, what in where if requests)
        parts.append(f"{count(pair.left_out)} left out ({reasons})")
    return ", ".join(parts)


def _unit(differences: Iterable[Difference]) -> tuple[str, float]:
    ends = (end for difference in differences for end in (*difference.mean, *difference.median))
    return row_unit([abs(end) for end in ends if end is not None])


def paired_tables(pairs: Mapping[str, Paired]) -> list[Table | Text]:
    """For the terminal, 80 columns: a table for each variant, or E2E of each in one where they are many."""
    if len(pairs) <= FULL:
        parts: list[Table | Text] = []
        for name, pair in pairs.items():
            head = Text(name, style="bold").append(f" against {pair.against}: ", style="not bold")
            parts.append(head.append(pair.reason or pairs_text(pair), style="not bold"))
            if pair.differences:
                parts.append(_table({LATENCIES[key]: row for key, row in pair.differences.items()}, 5, median=True))
        return parts
    rows = {name: pair.differences[KEY] for name, pair in pairs.items() if KEY in pair.differences}
    head = Text(f"{LATENCIES[KEY]} against {next(iter(pairs.values())).against}, paired by request")
    partial = {name: pair for name, pair in pairs.items() if pair.reason or pair.left_out}
    remarks = [Text(f"{name}: {pair.reason or pairs_text(pair)}") for name, pair in partial.items()]
    return [head, _table(rows, min(18, max(map(len, pairs))), median=False), *remarks]


def _table(rows: Mapping[str, Difference], width: int, *, median: bool) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    table.add_column("", style="bold", min_width=width, max_width=width, overflow="fold", no_wrap=width <= 5)
    table.add_column("", style="dim", min_width=2, no_wrap=True)
    for name, wide in (("mean", 7), ("95 % interval", 16), *([("median", 7)] if median else [])):
        table.add_column(name, justify="right", min_width=wide, no_wrap=True)
    table.add_column("", max_width=27, overflow="fold")
    for name, row in rows.items():
        unit, factor = _unit([row])
        cells = [signed(row.mean.value_s * factor), interval_text(row.mean, factor)]
        cells += [signed(row.median.value_s * factor)] if median else []
        table.add_row(Text(name), unit, *cells, Text(row.verdict, style=STYLES.get(row.verdict, "dim")))
    return table


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


def paired_rows(pairs: Mapping[str, Paired], units: LatencyUnits) -> Iterable[PairedRow]:
    """A row for each latency and variant, those of one latency on one scale."""
    for key in PAIRED:
        differences = {name: pair.differences[key] for name, pair in pairs.items() if key in pair.differences}
        unit, factor = units[key]
        ends = [0.0, *(end for difference in differences.values() for end in difference.mean if end is not None)]
        low_s, wide_s = min(ends), (max(ends) - min(ends)) or 1.0

        def at(value_s: float | None, low_s: float = low_s, wide_s: float = wide_s) -> str:
            return "" if value_s is None else f"{4 + 92 * (value_s - low_s) / wide_s:.2f}%"

        for place, (name, difference) in enumerate(differences.items()):
            whole = difference.mean.low_s is not None and difference.mean.high_s is not None
            yield PairedRow(
                label=f"{LATENCIES[key]}, {unit}" if place == 0 else "",
                name=name,
                texts=[
                    text
                    for part in (difference.mean, difference.median)
                    for text in (signed(part.value_s * factor), interval_text(part, factor))
                ],
                what=f"{LATENCIES[key]} of {name}",
                zero=at(0.0),
                low=at(difference.mean.low_s) if whole else "",
                high=at(difference.mean.high_s) if whole else "",
                mean=at(difference.mean.value_s),
                verdict=difference.verdict,
            )
