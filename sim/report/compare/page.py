"""One self-contained HTML page for several runs side by side, in the dress of the page of a single run."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.report.compare.charts import finished_note, kv_charts, latency_charts, queue_charts, told, waste_chart
from sim.report.compare.paired import paired_section
from sim.report.compare.variant import Failure, Row, Variant, differences
from sim.report.elements import assemble, card, details, figures
from sim.report.measures import MEASURES, Measure, best, scaled, shown_measures, texts
from sim.report.run.sentences import notes_of, sources_line, title
from sim.report.units import NONE, count, row_unit
from sim.results.metrics import plain

TONES = 8
# The measures that have a card: which variant is best at it.
CARDS = {
    "Goodput/s": "Most goodput",
    "Requests/s": "Most requests/s",
    "TTFT p99": "Lowest TTFT p99",
    "TPOT p99": "Lowest TPOT p99",
    "E2E p99": "Lowest E2E p99",
    "KV held useful": "Least KV waste",
    "$/Mtok output": "Lowest $/Mtok of output",
}
# Groups of measures that the table leaves to the plots, the text and compare.json.
LEFT_OUT = ("ITL", "Queue", "Costs")
SHARED_INPUTS = {"trace": "trace", "model": "model", "gpu": "GPU", "policy": "policy", "allocator": "allocator",
                 "seed": "seed"}  # fmt: skip


def render_comparison(rows: Sequence[Row]) -> str:
    """The page of a comparison as one string of HTML; every text that comes from outside is escaped.

    rows: what ran and what did not, in the order asked for, with at least one that ran.
    """
    variants = [row for row in rows if isinstance(row, Variant)]
    waste = waste_chart(variants)
    sections = {
        "waste": [waste] if waste else [],
        "kv": kv_charts(variants),
        "latency": latency_charts(variants),
        "time": queue_charts(variants),
    }
    warnings = list(_warnings(variants))
    parts = {
        "version": html.escape(str(variants[0].summary["inputs"].get("version") or "")),
        "title": html.escape(_title(variants)),
        "lead": html.escape(_lead(rows, variants)),
        "cards": "\n".join(_cards(variants)),
        "trust": "doubt" if warnings else "",
        "remarks": "\n".join([*warnings, *_notes(variants)]),
        "table": _table(rows, variants),
        "paired": paired_section(differences(rows), {one.name: _swatch(variants, one) for one in variants}),
        "differences": _differences(variants),
        "columns": "" if len(variants) in (1, 2, 4) else "three",
        "scenarios": "\n".join(details(f"The whole scenario of {one.name}", one.scenario) for one in variants),
        **{name: figures(charts) for name, charts in sections.items()},
    }
    return assemble("compare.html", [chart for charts in sections.values() for chart in charts], parts)


def _common(variants: Sequence[Variant], key: str) -> str | None:
    """An input that all variants share."""
    found = {one.summary["inputs"].get(key) for one in variants}
    same = found.pop()
    return None if found or same is None else str(same)


def _title(variants: Sequence[Variant]) -> str:
    inputs = {key: _common(variants, key) for key in ("trace", "model", "gpu")}
    return title({"inputs": inputs}) if inputs["trace"] else "Runs side by side"


def _lead(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    what = "1 variant" if len(variants) == 1 else f"{count(len(variants))} variants side by side"
    differing = _differing(variants)
    told_as = [f"{what}, which differ in {', '.join(differing)}." if 0 < len(differing) <= 6 else f"{what}."]
    done = {one.summary["requests"]["completed"] for one in variants}
    if len(done) == 1:
        told_as.append(f"{count(done.pop())} requests completed in each.")
    if len(rows) > len(variants):
        told_as.append(f"{count(len(rows) - len(variants))} more did not run: see the table.")
    return " ".join(told_as)


def _differing(variants: Sequence[Variant]) -> list[str]:
    """The settings that are not the same in all variants, by dotted key."""
    keys = dict.fromkeys(key for one in variants for key in one.settings)
    return [key for key in keys if len({repr(one.settings.get(key)) for one in variants}) > 1]


def _cards(variants: Sequence[Variant]) -> Iterable[str]:
    """For each headline measure the variant that is best at it, and the one that is worst."""
    by_title = {measure.title: measure for measure in MEASURES}
    for name, label in CARDS.items():
        measure = by_title[name]
        values = [measure.value(one.summary) for one in variants]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            continue
        unit, shown = texts(measure, values)
        winners = best(measure, values)
        if not winners:
            yield card(label, "all alike", _valued(measure, unit, shown[values.index(known[0])]), "name")
            continue
        first, *others = sorted(winners)
        worst = values.index(min(known, key=lambda value: measure.better * value))
        names = [variants[place].name for place in (first, *others)]
        big = ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(others)} more"
        values_shown = [_valued(measure, unit, shown[place]) for place in (first, worst)]
        small = f"{values_shown[0]}, against {values_shown[1]} with {variants[worst].name}"
        yield card(label, big, small, "name")


def _valued(measure: Measure, unit: str, text: str) -> str:
    rate = "/s" if measure.label.endswith("/s") else ""
    words = [text + rate, unit, "useful" if measure.label == "useful" else ""]
    return " ".join(filter(None, words))


def _grouped(told_by: Iterable[tuple[str, str]], everyone: int) -> Iterable[str]:
    """Sentences, each once, with the names of those it is about unless it is about all."""
    names: dict[str, list[str]] = {}
    for name, text in told_by:
        names.setdefault(text, []).append(name)
    for text, who in names.items():
        yield text if len(who) == everyone else f"{', '.join(who)}: {text}"


def _warnings(variants: Sequence[Variant]) -> Iterable[str]:
    finished = finished_note(variants)
    told_by = [(one.name, text) for one in variants for text in one.warnings]
    for text in [*([finished] if finished else []), *_grouped(told_by, len(variants))]:
        yield f'<li class="warn">{html.escape(text)}</li>'


def _notes(variants: Sequence[Variant]) -> Iterable[str]:
    sources = [(one.name, sources_line(one.summary)) for one in variants]
    told_by = [(name, f"Where the simulated seconds come from: {line}.") for name, line in sources if line]
    for what, key in (("Price", "price_source"), ("Power", "power_source")):
        told_by += [(one.name, f"{what}: {one.summary['bill'][key]}.") for one in variants]
    told_by += [(one.name, note) for one in variants for note in notes_of(one.summary)]
    for text in _grouped(told_by, len(variants)):
        yield f"<li>{html.escape(text)}</li>"


def _swatch(variants: Sequence[Variant], one: Variant) -> str:
    place = list(variants).index(one)
    dashed = " dashed" if place >= TONES else ""
    return f'<i class="swatch c{place % TONES}{dashed}"></i>'


def _table(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    """A row for each variant, a column for each measure, the best of a column marked; failures with their reason."""
    groups: dict[str, list[Measure]] = {}
    for measure in shown_measures(one.summary for one in variants):
        if measure.group not in LEFT_OUT:
            groups.setdefault(measure.group, []).append(measure)
    ended = [count(one.summary["requests"]["completed"]) for one in variants]
    over, heads, columns = ["<th></th>"], [], []
    if len(set(ended)) > 1:
        over, heads = [*over, "<th></th>"], ['<th scope="col">Completed</th>']
        columns = [[_cell(text, False) for text in ended]]
    for group, measures in groups.items():
        unit, cells = _group(measures, variants)
        over.append(f'<th colspan="{len(measures)}" scope="colgroup">{group}{f", {unit}" if unit else ""}</th>')
        heads += [f'<th scope="col">{measure.label.removesuffix("/s")}</th>' for measure in measures]
        columns += cells
    lines = []
    for row in rows:
        if isinstance(row, Failure):
            told_why = f"<span>did not run: {html.escape(row.reason)}</span>"
            reason = f'<td class="reason" colspan="{len(columns)}">{told_why}</td>'
            lines.append(f'<tr class="failed"><th scope="row">{html.escape(row.name)}</th>{reason}</tr>')
            continue
        name = f'<th scope="row">{_swatch(variants, row)}{html.escape(row.name)}</th>'
        lines.append(f"<tr>{name}{''.join(cells[variants.index(row)] for cells in columns)}</tr>")
    return (
        f'<table class="side"><thead><tr class="over">{"".join(over)}</tr><tr><th scope="col">Variant</th>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _group(measures: Sequence[Measure], variants: Sequence[Variant]) -> tuple[str, list[list[str]]]:
    """(unit, for each measure its cells): times of one group share a unit."""
    values = [[measure.value(one.summary) for one in variants] for measure in measures]
    unit, factor = "per s" if measures[0].label.endswith("/s") else "", 1.0
    if measures[0].unit == "s":
        unit, factor = row_unit([value for some in values for value in some])
    columns = []
    for measure, some in zip(measures, values, strict=True):
        own, shown = (unit, scaled(some, factor)) if measure.unit == "s" else texts(measure, some)
        unit = unit or own
        winners = best(measure, some)
        columns.append([_cell(text, place in winners) for place, text in enumerate(shown)])
    return unit, columns


def _cell(text: str, winner: bool) -> str:
    return f'<td class="best"><b>{text}</b><span class="unseen"> (best)</span></td>' if winner else f"<td>{text}</td>"


def _differences(variants: Sequence[Variant]) -> str:
    """The settings that differ, as a table, and in words what all variants share."""
    keys = _differing(variants)
    shared = [(label, _common(variants, key)) for key, label in SHARED_INPUTS.items()]
    same = told((label, value) for label, value in shared if value)
    text = f'<p class="hint">The same in all: {html.escape(same)}.</p>' if same else ""
    if not keys:
        return text
    heads = "".join(f'<th scope="col">{html.escape(key)}</th>' for key in keys)
    lines = "".join(
        f'<tr><th scope="row">{_swatch(variants, one)}{html.escape(one.name)}</th>'
        + "".join(f"<td>{html.escape(_value(one.settings.get(key)))}</td>" for key in keys)
        + "</tr>"
        for one in variants
    )
    table = f'<table><thead><tr><th scope="col">Variant</th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="scroll plain">{table}</div>{text}'


def _value(value: Any) -> str:
    return NONE if value is None or value == "" else str(value)


def summaries_of(rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    """What a script reads: by name the summary of each variant, or `{"error": reason}`.

    From the second on, a variant's `paired` has its differences from the first by request.
    """
    pairs = {name: {"paired": plain(one.as_table())} for name, one in differences(rows).items()}
    return {
        row.name: {**row.summary, **pairs.get(row.name, {})} if isinstance(row, Variant) else {"error": row.reason}
        for row in rows
    }
