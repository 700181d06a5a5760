"""The plots of a plan: goodput and latency against the rate, what candidates cost against how long they let wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.report.chart import Chart, against_load, axis, choice, line, scattered
from sim.report.measures import LATENCIES, latency
from sim.report.units import limit, number

Document = Mapping[str, Any]
STEEP = 20
"""A latency that grows by more than so many times starts out on a logarithmic axis."""


def rate_charts(document: Document) -> Iterable[Chart]:
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
            yield _latency_chart(document["slo"], known, key)


def _over_rate(shown: dict[str, Any]) -> dict[str, Any]:
    return against_load(axis("per s", "requests/s"), [shown], "unstable")


def _latency_chart(slo: Mapping[str, Any], rows: Sequence[Any], key: str) -> Chart:
    metric, name, tail = key.removesuffix("_s"), LATENCIES[key], latency(key, "p99")
    rates = [row["requests_per_s"] for row in rows]
    tails = [row[key]["p99"] for row in rows]
    unit, factor = tail.scale(tails)
    lines = [
        line(percentile, place, rates, [row[key][percentile] * factor for row in rows], [0] * len(rows))
        for place, percentile in enumerate(("p50", "p90", "p99"))
    ]
    limits = [
        {"y": value * factor, "label": f"{clause} limit {limit(value)}"}
        for clause, value in slo.items()
        if clause.partition("_")[0] == metric
    ]
    sentence = (
        f"{tail.label} goes from {tail.words(tails[0])} at {number(rates[0])} requests/s to {tail.words(tails[-1])} at "
        f"{number(rates[-1])}."
    )
    shown = choice(name, sentence, axis(unit, name), lines, ylog=max(tails) > STEEP * tails[0], limits=limits)
    note = "Of all replications' requests after warm-up; rates at which the queue grows have no latency of their own."
    return Chart(f"rate-{metric}", f"{name} against rate", sentence, note, _over_rate(shown))


def cost_charts(document: Document) -> Iterable[Chart]:
    """Candidates that meet the SLO, by dollars an hour (GPUs where no price is known)."""
    rows = [row for row in document["candidates"] if row.get("ttft_s") and row.get("e2e_s")]
    if document["rate"] is None or not rows:
        return
    priced = all(row["usd_per_hour"] is not None for row in rows)
    cost, label, unit = ("usd_per_hour", "$/hour", "$") if priced else ("gpu_count", "GPUs", "")
    for key, percentile in (("ttft_s", "p99"), ("e2e_s", "p50")):
        name, wait = LATENCIES[key], latency(key, percentile)
        shown, factor = wait.scale([row[key][percentile] for row in rows])
        lines = [
            line(row["name"], place % 8, [row[cost]], [row[key][percentile] * factor], [0])
            for place, row in enumerate(rows)
        ]
        best = document["best"]["name"] if document["best"] else "none"
        sentence = f"{wait.title} of each candidate at {number(document['rate'])} requests/s; {best} is cheapest."
        picture = choice(name, sentence, axis(shown, wait.title), lines, x=axis(unit, label))
        spec = scattered([row["name"] for row in rows], [picture])
        yield Chart(f"cost-{key.removesuffix('_s')}", f"{label} against {name}", sentence, "", spec)
