"""The plots of a plan: goodput and latency against the rate, what candidates cost against how long they let wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.report.chart import Chart, against_load, axis, choice, line, scattered
from sim.report.measures import LATENCIES, LatencyUnits, latency
from sim.report.plan.sentences import binds_words, gpu_count, gpus_words
from sim.results.units import dollars, number

Document = Mapping[str, Any]
SPAN = ("low", "likely", "high")
STEEP = 20
"""A latency that grows by more than so many times starts out on a logarithmic axis."""


def rate_charts(document: Document, units: LatencyUnits) -> Iterable[Chart]:
    rows = document["rates"]
    if not rows:
        return
    rates = [row["requests_per_s"] for row in rows]
    hollow = [int(not row["stable"]) for row in rows]
    good = [row["goodput"]["requests_per_s"] for row in rows]
    lines = [line("requests that came", 3, rates, rates, hollow), line("goodput", 0, rates, good, hollow)]
    sentence = (
        f"Up to {number(document['capacity']['requests_per_s'])} requests/s the SLO is met; the most goodput is "
        f"{number(max(good))}/s."
    )
    spec = _over_rate(choice("goodput", sentence, axis("per s", "within every limit"), lines))
    note = "Goodput counts requests that meet every limit by their own values. Hollow: the queue grows."
    yield Chart("rate-goodput", "Goodput against rate", sentence, note, spec, "wide")
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        if known := [row for row in rows if row[key]]:
            yield _latency_chart(document["slo"], known, key, units)


def _over_rate(shown: dict[str, Any]) -> dict[str, Any]:
    return against_load(axis("per s", "requests/s"), [shown], "unstable")


def _latency_chart(slo: Mapping[str, Any], rows: Sequence[Any], key: str, units: LatencyUnits) -> Chart:
    metric, name, tail = key.removesuffix("_s"), LATENCIES[key], latency(key, "p99")
    rates = [row["requests_per_s"] for row in rows]
    tails = [row[key]["p99"] for row in rows]
    unit, factor = units[key]
    lines = [
        line(percentile, place, rates, [row[key][percentile] * factor for row in rows], [0] * len(rows))
        for place, percentile in enumerate(("p50", "p90", "p99"))
    ]
    limits = [
        {"y": value * factor, "label": f"{clause} limit {units.limit(clause, value)}"}
        for clause, value in slo.items()
        if clause.partition("_")[0] == metric
    ]
    sentence = (
        f"{tail.label} goes from {units.words(tail, tails[0])} at {number(rates[0])} requests/s to "
        f"{units.words(tail, tails[-1])} at {number(rates[-1])}."
    )
    shown = choice(name, sentence, axis(unit, name), lines, ylog=max(tails) > STEEP * tails[0], limits=limits)
    note = "Of all replications' requests after warm-up; rates at which the queue grows have no latency of their own."
    return Chart(f"rate-{metric}", f"{name} against rate", sentence, note, _over_rate(shown))


def cost_charts(document: Document, units: LatencyUnits) -> Iterable[Chart]:
    """Candidates that meet the SLO, by dollars an hour (GPUs where no price is known)."""
    rows = [row for row in document["candidates"] if row.get("ttft_s") and row.get("e2e_s")]
    if document["rate"] is None or not rows:
        return
    priced = all(row["usd_per_hour"] is not None for row in rows)
    label, unit = ("cost of an hour", "$") if priced else ("GPUs", "")
    for key, percentile in (("ttft_s", "p99"), ("e2e_s", "p50")):
        name, wait = LATENCIES[key], latency(key, percentile)
        shown, factor = units[key]
        costs = [row["usd_per_hour"] if priced else gpu_count(row) for row in rows]
        lines = [
            line(row["name"], place, [cost], [row[key][percentile] * factor], [0])
            for place, (row, cost) in enumerate(zip(rows, costs, strict=True))
        ]
        best = document["best"]["name"] if document["best"] else "none"
        sentence = f"{wait.title} of each candidate at {number(document['rate'])} requests/s; {best} is cheapest."
        picture = choice(name, sentence, axis(shown, wait.title), lines, x=axis(unit, label))
        spec = scattered([row["name"] for row in rows], [picture])
        yield Chart(
            f"cost-{key.removesuffix('_s')}",
            f"{label.capitalize() if priced else label} against {name}",
            sentence,
            "",
            spec,
        )


def range_charts(document: Document) -> Iterable[Chart]:
    """Every candidate with the range of GPUs, and of dollars, that it takes, and what binds it."""
    rows = [
        row for row in document["candidates"] if isinstance(row["gpus"], Mapping) and row["gpus"]["low"] is not None
    ]
    if document["rate"] is None or not rows:
        return
    choices = [_ranges("GPUs", "", [(row, row["gpus"], gpus_words(row)) for row in rows])]
    priced = [(row, _dollars(row)) for row in rows if row["usd_per_hour"] is not None]
    if priced:
        choices.append(_ranges("$ an hour", "$", [(row, span, _dollar_words(span)) for row, span in priced]))
    sentence = f"What each candidate takes for {number(document['rate'])} requests/s under the SLO, and what binds it."
    note = "The bar is the range, the disc the most likely. An arrow: at least so much; how much more is not known."
    yield Chart("ranges", "What each candidate takes", sentence, note, {"kind": "ranges", "choices": choices}, "wide")


def _ranges(label: str, unit: str, spans: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], str]]) -> dict[str, Any]:
    rows = [
        {"label": row["name"], "text": f"{words}{binds_words(row)}", **{key: span[key] for key in SPAN}}
        for row, span, words in spans
    ]
    return {"label": label, "x": axis(unit, label), "rows": rows}


def _dollars(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The range of its price, or what its costs allow at best."""
    least = {"low": row["usd_per_hour"], "likely": None, "high": None}
    return {**least, **(row.get("usd_range") or {})}


def _dollar_words(span: Mapping[str, Any]) -> str:
    if span["likely"] is None:
        return f"at least {dollars(span['low'])}"
    if span["low"] is None or span["high"] is None:
        return dollars(span["likely"])
    return f"{dollars(span['low'])} to {dollars(span['high'])}, most likely {dollars(span['likely'])}"
