"""One self-contained HTML page for a plan: its answer, goodput and latency against rate, cost against latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.report.plan.terminal import MET, ROOFLINE, answer, remarks, slo_words
from sim.report.run.charts import Chart
from sim.report.run.sentences import ROOFLINE_WARNING
from sim.report.templates import Card, Panels, halves, render
from sim.report.units import NONE, count, dollars, energy, limit, number, percent, seconds

Document = Mapping[str, Any]
LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
PERCENTILES = ("p50", "p90", "p99")
COLUMNS = (("ttft_s", "p50"), ("ttft_s", "p99"), ("tpot_s", "p50"), ("tpot_s", "p99"), ("e2e_s", "p99"))
CANDIDATE = ("Candidate", "", "Requests/s a replica", "Replicas", "GPUs", "$/hour", "$/Mtok", "J/Mtok", "TTFT p99",
             "E2E p50")  # fmt: skip


def render_plan(document: Document) -> str:
    """The page of a plan as one string of HTML. document: what `sim.api.plan` returns."""
    inputs, rates = document["inputs"], document["rate"] is None
    sources = inputs.get("cost_sources") or {}
    heads, rows = _rates(document) if rates else _candidates(document)
    return render(
        "plan.html",
        {
            "Against the rate": [*_rate_charts(document)] if rates else [],
            "Cost against latency": [*_cost_charts(document)],
        },
        version=inputs.get("version") or "",
        title=_title(document),
        lead=f"{answer(document)} SLO: {slo_words(document)}.",
        headlines=_cards(document),
        sources=sources,
        warnings=[ROOFLINE_WARNING] if sources.get("roofline", 0) >= 1 else [],
        remarks=[text for text in remarks(document) if text != ROOFLINE],
        table_hint=_hint(document),
        heads=heads,
        rows=rows,
        facts=_facts(document),
        scenario="",
    )


def _title(document: Document) -> str:
    inputs = document["inputs"]
    what = "Capacity" if document["rate"] is None else f"{number(document['rate'])} requests/s"
    return " ".join(filter(None, [f"{what}:", str(inputs.get("trace") or ""), f"on {inputs.get('model', '')}"]))


def _cards(document: Document) -> Iterable[Card]:
    best, capacity = document["best"], document["capacity"]
    if best is None:
        yield Card("Meets the SLO", "nothing", str(document.get("reason", "")), "bad")
        return
    if document["rate"] is None:
        yield Card("Capacity", f"{number(capacity['requests_per_s'])}/s", f"+- {percent(capacity['relative'])}, 95 %")
        yield Card("Bounded by", str(capacity["bound_by"]), slo_words(document), "name")
    else:
        yield Card("Cheapest", str(best["name"]), f"{count(best['replicas'])} replicas", "name")
        yield Card("GPUs", count(best["gpus"]), str(best["gpu"]))
    if best["usd_per_hour"] is not None:
        yield Card("Price", f"{dollars(best['usd_per_hour'])}/h", str(best["price_source"]))
    if best["usd_per_million_tokens"] is not None:
        yield Card("A million tokens", dollars(best["usd_per_million_tokens"]), "prompt and output")
    if best["joules_per_million_tokens"] is not None:
        bound = "at most; " if best["joules_upper_bound"] else ""
        yield Card("Energy of these", energy(best["joules_per_million_tokens"]), f"{bound}{best['power_source']}")


def _rate_charts(document: Document) -> Iterable[Chart]:
    rows = document["rates"]
    if not rows:
        return
    capacity = document["capacity"]
    rates = [row["requests_per_s"] for row in rows]
    base = {"kind": "xy", "zoom": "load", "joined": True, "hollow": "unstable", "log": False,
            "x": {"unit": "per s", "label": "requests/s"}}  # fmt: skip
    hollow = [int(not row["stable"]) for row in rows]
    good = [row["goodput"]["requests_per_s"] for row in rows]
    line = {"name": "goodput", "place": 0, "x": rates, "y": good, "hollow": hollow}
    came = {"name": "requests that came", "place": 3, "x": rates, "y": rates, "hollow": hollow}
    sentence = (
        f"Up to {number(capacity['requests_per_s'])} requests/s the SLO is met; the most goodput is "
        f"{number(max(good))}/s."
    )
    choice = {"label": "goodput", "sentence": sentence, "y": {"unit": "per s", "label": "within every limit"},
              "ylog": False, "limits": [], "series": [came, line]}  # fmt: skip
    note = "Goodput counts requests that meet every limit by their own values. Hollow: the queue grows."
    yield Chart("rate-goodput", "Goodput against rate", sentence, note, {**base, "choices": [choice]}, "wide")
    for key, name in LATENCIES.items():
        kept = [row for row in rows if row[key]]
        if kept:
            yield _latency_chart(document, base, kept, key, name)


def _latency_chart(document: Document, base: Mapping[str, Any], rows: Sequence[Any], key: str, name: str) -> Chart:
    largest = max(row[key]["p99"] for row in rows)
    unit, factor = ("ms", 1e3) if largest < 10 else ("s", 1.0)
    series = [
        {
            "name": percentile,
            "place": place,
            "x": [row["requests_per_s"] for row in rows],
            "y": [row[key][percentile] * factor for row in rows],
            "hollow": [0] * len(rows),
        }
        for place, percentile in enumerate(PERCENTILES)
    ]
    metric = key.removesuffix("_s")
    limits = [
        {"y": value * factor, "label": f"{clause} limit {limit(value)}"}
        for clause, value in document["slo"].items()
        if clause.partition("_")[0] == metric
    ]
    first, last = rows[0], rows[-1]
    sentence = (
        f"{name} p99 goes from {seconds(first[key]['p99'])} at {number(first['requests_per_s'])} requests/s to "
        f"{seconds(last[key]['p99'])} at {number(last['requests_per_s'])}."
    )
    choice = {"label": name, "sentence": sentence, "y": {"unit": unit, "label": name},
              "ylog": largest > 20 * rows[0][key]["p99"], "limits": limits, "series": series}  # fmt: skip
    note = "Of all replications' requests after warm-up; rates at which the queue grows have no latency of their own."
    return Chart(f"rate-{metric}", f"{name} against rate", sentence, note, {**base, "choices": [choice]})


def _cost_charts(document: Document) -> Iterable[Chart]:
    """Candidates that meet the SLO, by dollars an hour (GPUs where no price is known)."""
    rows = [row for row in document["candidates"] if row.get("ttft_s") and row.get("e2e_s")]
    if document["rate"] is None or not rows:
        return
    priced = all(row["usd_per_hour"] is not None for row in rows)
    key, label, unit = ("usd_per_hour", "$/hour", "$") if priced else ("gpus", "GPUs", "")
    for latency, name, percentile in (("ttft_s", "TTFT", "p99"), ("e2e_s", "E2E", "p50")):
        largest = max(row[latency][percentile] for row in rows)
        shown, factor = ("ms", 1e3) if largest < 10 else ("s", 1.0)
        series = [
            {"name": row["name"], "place": place % 8, "x": [row[key]], "y": [row[latency][percentile] * factor],
             "hollow": [0]}
            for place, row in enumerate(rows)
        ]  # fmt: skip
        best = document["best"]["name"] if document["best"] else "none"
        sentence = (
            f"{name} {percentile} of each candidate at {number(document['rate'])} requests/s; {best} is cheapest."
        )
        choice = {"label": name, "sentence": sentence, "x": {"unit": unit, "label": label},
                  "y": {"unit": shown, "label": f"{name} {percentile}"}, "ylog": False, "limits": [],
                  "series": series}  # fmt: skip
        spec = {
            "kind": "xy",
            "hollow": "",
            "joined": False,
            "names": [row["name"] for row in rows],
            "choices": [choice],
        }
        yield Chart(f"cost-{latency.removesuffix('_s')}", f"{label} against {name}", sentence, "", spec)


def _hint(document: Document) -> str:
    if document["rate"] is None:
        return "Every rate that was simulated, with the percentiles of its requests after warm-up."
    return "Every candidate. * No other that meets the SLO is both cheaper and faster."


def _rates(document: Document) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    heads = ["Requests/s", "SLO", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "E2E p99", "Goodput", "Replications"]
    rows = [
        [
            number(row["requests_per_s"]),
            MET[row["met"]] if row["stable"] else "unstable",
            *(
                seconds(row[key][name]) if row[key] else NONE
                for key, name in COLUMNS
            ),
            percent(row["goodput"]["fraction"]),
            count(row["replications"]),
        ]
        for row in document["rates"]
    ]  # fmt: skip
    return heads, rows


def _candidates(document: Document) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = [
        [
            row["name"],
            " ".join(filter(None, [row["status"], "*" if row.get("pareto") else "", row["reason"]])),
            number(row["capacity_per_replica"]),
            count(row["replicas"]),
            count(row["gpus"]),
            dollars(row["usd_per_hour"]),
            dollars(row["usd_per_million_tokens"]),
            energy(row["joules_per_million_tokens"]),
            seconds(row["ttft_s"]["p99"]) if row["ttft_s"] else NONE,
            seconds(row["e2e_s"]["p50"]) if row["e2e_s"] else NONE,
        ]
        for row in document["candidates"]
    ]  # fmt: skip
    return CANDIDATE, rows


def _facts(document: Document) -> Panels:
    yield from halves([(key, value) for key, value in document["inputs"].items() if key != "cost_sources"])
    asked = [("SLO", slo_words(document)), ("precision", percent(document["precision"]))]
    if warm := document.get("warm_up"):
        asked += [("warm-up", warm["rule"]), ("requests cut", count(warm["requests_cut"]))]
    yield "Asked", asked
