"""One self-contained HTML page for several runs side by side, in the dress of the page of a single run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.report.compare.charts import finished_note, kv_charts, latency_charts, listed, queue_charts, waste_chart
from sim.report.compare.paired import paired_rows, pairs_text
from sim.report.compare.variant import Failure, Row, Variant, differences
from sim.report.compare.winners import holds, nearest_words, turned_words, unlike_clients
from sim.report.measures import MEASURES, LatencyUnits, Measure, best, compared
from sim.report.run.sentences import answer, engine_of, heading, load_words, notes_of, sources_line
from sim.report.templates import Card, TableColumn, render, tone
from sim.results.metrics import plain
from sim.results.units import NONE, count

# The measures that have a card: which variant is best at it.
CARDS = {
    "goodput.requests_per_s": "Most goodput",
    "throughput.requests_per_s": "Most requests/s",
    "ttft_s.p99": "Lowest TTFT p99",
    "tpot_s.p99": "Lowest TPOT p99",
    "e2e_s.p99": "Lowest E2E p99",
    "kv.useful": "Least KV waste",
    "bill.usd_per_million_output_tokens": "Lowest $/Mtok of output",
}
# (heading with the unit, columns)
Group = tuple[str, Sequence[TableColumn]]
MOST_COLUMNS = 12
TITLED = ("trace", "model", "gpu", "tp", "replicas")
# Groups of measures that the table leaves to the plots, the text and compare.json.
LEFT_OUT = ("ITL", "Queue", "Costs")
SHARED_INPUTS = {"trace": "trace", "model": "model", "gpu": "GPU", "policy": "policy", "allocator": "allocator",
                 "seed": "seed"}  # fmt: skip


def render_comparison(rows: Sequence[Row]) -> str:
    """The page of a comparison as one string of HTML.

    rows: what ran and what did not, in the order asked for, with at least one that ran.
    """
    variants = [row for row in rows if isinstance(row, Variant)]
    summaries = {variant.name: variant.summary for variant in variants}
    units = LatencyUnits.of(variant.summary for variant in variants)
    waste, pairs, keys = waste_chart(variants), differences(rows), _differing(variants)
    shared = [(label, _common(variants, key)) for key, label in SHARED_INPUTS.items()]
    return render(
        "compare.html",
        {
            "waste": [waste] if waste else [],
            "kv": kv_charts(variants),
            "latency": latency_charts(variants, units),
            "time": queue_charts(variants),
        },
        version=variants[0].summary["inputs"].get("version") or "",
        title=_title(variants),
        lead=_lead(rows, variants),
        headlines=_cards(variants, units),
        places={variant.name: place for place, variant in enumerate(variants)},
        tone=tone,
        tables=_split(_groups(variants, units)),
        rows=[(row.name, row.reason if isinstance(row, Failure) else None) for row in rows],
        against=next(iter(pairs.values())).against if pairs else "",
        pairs=[(name, pair.reason or pairs_text(pair)) for name, pair in pairs.items()],
        paired=list(paired_rows(pairs, units)),
        warnings=list(_warnings(variants)),
        remarks=[*filter(None, [turned_words(summaries)]), *_notes(variants)],
        differing=keys,
        settings=[(variant.name, [_value(variant.settings.get(key)) for key in keys]) for variant in variants],
        same=listed((label, value) for label, value in shared if value),
        scenarios=[(variant.name, variant.scenario) for variant in variants],
    )


def _common(variants: Sequence[Variant], key: str) -> str | None:
    same = _same(variant.summary["inputs"].get(key) for variant in variants)
    return None if same is None else str(same)


def _title(variants: Sequence[Variant]) -> str:
    inputs = {key: _same(variant.summary["inputs"].get(key) for variant in variants) for key in TITLED}
    engine, load = (
        _same(texts) or ""
        for texts in (
            (engine_of(variant.summary["inputs"], variant.scenario) for variant in variants),
            (load_words(variant.summary.get("load") or {}) for variant in variants),
        )
    )
    return heading(inputs, engine, load, inputs["trace"] or "runs side by side")


def _same(values: Iterable[Any]) -> Any:
    """What all have alike; None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _lead(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    what = "1 variant" if len(variants) == 1 else f"{count(len(variants))} variants side by side"
    differing = _differing(variants)
    sentences = [f"{what}, which differ in {', '.join(differing)}." if 0 < len(differing) <= 6 else f"{what}."]
    done = {variant.summary["requests"]["completed"] for variant in variants}
    if len(done) == 1:
        sentences.append(f"{count(done.pop())} requests completed in each.")
    if len(rows) > len(variants):
        sentences.append(f"{count(len(rows) - len(variants))} more did not run: see the table.")
    return " ".join(sentences)


def _differing(variants: Sequence[Variant]) -> list[str]:
    keys = dict.fromkeys(key for variant in variants for key in variant.settings)
    return [key for key in keys if len({repr(variant.settings.get(key)) for variant in variants}) > 1]


def _cards(variants: Sequence[Variant], units: LatencyUnits) -> Iterable[Card]:
    """For each headline measure the variant that is best at it, of those that may win, and the one that is worst."""
    if nearest := nearest_words({variant.name: variant.summary for variant in variants}):
        yield Card("Winner", "none", nearest, "bad")
        return
    for key, label in CARDS.items():
        measure = MEASURES[key]
        values = [measure.value(variant.summary) if holds(variant.summary) else None for variant in variants]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            continue
        unit, shown = units.texts(measure, values)
        winners = best(measure, values, units)
        if not winners:
            yield Card(label, "all alike", _valued(measure, unit, shown[values.index(known[0])]), "name")
            continue
        first, *others = sorted(winners)
        worst = values.index(min(known, key=lambda value: measure.better * value))
        names = [variants[place].name for place in (first, *others)]
        big = ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(others)} more"
        values_shown = [_valued(measure, unit, shown[place]) for place in (first, worst)]
        small = f"{values_shown[0]}, against {values_shown[1]} with {variants[worst].name}"
        yield Card(label, big, small, "name")


def _valued(measure: Measure, unit: str, text: str) -> str:
    rate = "/s" if measure.unit == "per s" else ""
    return " ".join(filter(None, [text + rate, unit, measure.short if measure.unit == "%" else ""]))


def _by_text(texts: Iterable[tuple[str, str]], everyone: int) -> Iterable[str]:
    """Sentences, each once, with the names of those it is about unless it is about all."""
    names: dict[str, list[str]] = {}
    for name, text in texts:
        names.setdefault(text, []).append(name)
    for text, who in names.items():
        yield text if len(who) == everyone else f"{', '.join(who)}: {text}"


def _warnings(variants: Sequence[Variant]) -> Iterable[str]:
    if incomplete := finished_note(variants):
        yield incomplete
    if unlike := unlike_clients({variant.name: "front_end" in variant.summary for variant in variants}):
        yield unlike
    yield from _by_text([(variant.name, text) for variant in variants for text in variant.warnings], len(variants))


def _notes(variants: Sequence[Variant]) -> Iterable[str]:
    sources = [(variant.name, sources_line(variant.summary)) for variant in variants]
    notes = [(variant.name, answer(variant.summary)) for variant in variants if answer(variant.summary)]
    notes += [(name, f"Where the simulated seconds come from: {line}.") for name, line in sources if line]
    for what, key in (("Price", "price_source"), ("Power", "power_source")):
        notes += [(variant.name, f"{what}: {variant.summary['bill'][key]}.") for variant in variants]
    notes += [(variant.name, note) for variant in variants for note in notes_of(variant.summary)]
    return _by_text(notes, len(variants))


def _groups(variants: Sequence[Variant], units: LatencyUnits) -> Iterable[Group]:
    """(heading with the unit, columns) of each group of measures, with the best of each column."""
    groups: dict[str, list[Measure]] = {}
    for measure in compared(variant.summary for variant in variants):
        if measure.group not in LEFT_OUT:
            groups.setdefault(measure.group, []).append(measure)
    ended = [count(variant.summary["requests"]["completed"]) for variant in variants]
    if len(set(ended)) > 1:
        yield "", [TableColumn("Completed", ended)]
    for group, measures in groups.items():
        unit, columns = _group(measures, variants, units)
        yield f"{group}, {unit}" if unit else group, columns


def _split(groups: Iterable[Group]) -> list[list[Group]]:
    """As many tables as it takes for each to be no wider than a sheet of paper; a group stays whole."""
    tables: list[list[Group]] = []
    room = 0
    for group in groups:
        if len(group[1]) > room:
            tables.append([])
            room = MOST_COLUMNS
        tables[-1].append(group)
        room -= len(group[1])
    return tables


def _group(
    measures: Sequence[Measure], variants: Sequence[Variant], units: LatencyUnits
) -> tuple[str, Sequence[TableColumn]]:
    """(unit, a column for each measure): those of one group share a unit."""
    values = [[measure.value(variant.summary) for variant in variants] for measure in measures]
    columns = [
        TableColumn(
            measure.short,
            units.texts(measure, some)[1],
            {place for place in best(measure, some, units) if holds(variants[place].summary)},
        )
        for measure, some in zip(measures, values, strict=True)
    ]
    return "per s" if measures[0].unit == "per s" else units.texts(measures[0], values[0])[0], columns


def _value(value: Any) -> str:
    return NONE if value is None or value == "" else str(value)


def summaries_of(rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    """What a script reads: by name the summary of each variant, or `{"error": reason}`.

    From the second on, a variant's `paired` has its differences from the first by request.
    """
    pairs = {name: {"paired": plain(pair.as_table())} for name, pair in differences(rows).items()}
    return {
        row.name: {**row.summary, **pairs.get(row.name, {})} if isinstance(row, Variant) else {"error": row.reason}
        for row in rows
    }
