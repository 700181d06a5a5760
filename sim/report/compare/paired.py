"""Paired differences as a table for the terminal and as a section of the page, with an interval drawn for each."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from sim.report.run.sentences import LATENCIES
from sim.report.units import NONE, count, number, row_unit
from sim.results.paired import PAIRED, Difference, Interval, Paired

# With more variants than this the terminal shows this latency of each alone.
FULL = 3
KEY = "e2e_s"
STYLES = {"shorter": "green", "longer": "yellow"}
METHOD = (
    "Every request is compared with itself in the first variant; positive is longer. The intervals are 95 %, from the "
    "means of ten batches of neighbouring requests, since neighbours share queues and steps: they tell how far the "
    "difference depends on which requests happened to come. Where one holds 0 there is no difference beyond chance; "
    "where the difference drifts along the trace, its mean depends on the trace's length."
)


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


def paired_section(pairs: Mapping[str, Paired], swatches: Mapping[str, str]) -> str:
    """The page's section: a row for each latency and variant with its intervals drawn on one scale; "" for one variant.

    swatches: by name of the variant, the HTML of its colour.
    """
    if not pairs:
        return ""
    against = next(iter(pairs.values())).against
    lines = [line for key in PAIRED for line in _lines(key, pairs, swatches)]
    notes = [
        f"<li>{html.escape(name)}: {html.escape(one.reason or pairs_text(one))}.</li>" for name, one in pairs.items()
    ]
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Latency", "Variant", "Mean", "95 %", "Median", "95 %", "Mean, drawn")
    )
    table = (
        '<div class="scroll plain" tabindex="0" role="region" aria-label="Paired differences"><table><thead><tr>'
        f'{heads}<th scope="col">Verdict on the mean</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
    return (
        f"<section>\n<h2>Request by request, against {html.escape(against)}</h2>\n{table if lines else ''}\n"
        f'<ul class="hint">{"".join(notes)}</ul>\n<p class="hint">{METHOD}</p>\n</section>'
    )


def _lines(key: str, pairs: Mapping[str, Paired], swatches: Mapping[str, str]) -> Iterable[str]:
    found = {name: one.differences[key] for name, one in pairs.items() if key in one.differences}
    unit, factor = _unit(found.values())
    ends = [end for one in found.values() for end in one.mean if end is not None]
    low_s, high_s = min([0.0, *ends]), max([0.0, *ends])
    for place, (name, one) in enumerate(found.items()):
        cells: Sequence[str] = (
            swatches.get(name, "") + html.escape(name),
            signed(one.mean.value_s * factor),
            interval_text(one.mean, factor),
            signed(one.median.value_s * factor),
            interval_text(one.median, factor),
            _drawn(one.mean, low_s, high_s, f"{LATENCIES[key]} of {name}"),
            one.verdict,
        )
        label = f"{LATENCIES[key]}, {unit}" if place == 0 else ""
        yield f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _drawn(one: Interval, low_s: float, high_s: float, what: str) -> str:
    """The interval as a bar with a dot on a scale that holds 0, which is a line."""
    wide = (high_s - low_s) or 1.0

    def at(value_s: float) -> str:
        return f"{4 + 92 * (value_s - low_s) / wide:.2f}%"

    zero = f'<line class="axis" x1="{at(0.0)}" x2="{at(0.0)}" y1="0" y2="16"/>'
    bar = ""
    if one.low_s is not None and one.high_s is not None:
        bar = f'<line x1="{at(one.low_s)}" x2="{at(one.high_s)}" y1="8" y2="8" stroke="currentColor" stroke-width="2"/>'
    dot = f'<circle cx="{at(one.value_s)}" cy="8" r="3.4" fill="currentColor"/>'
    return (
        f'<svg width="170" height="16" role="img" aria-label="{html.escape(what)}: mean difference with its interval">'
        f"{zero}{bar}{dot}</svg>"
    )
