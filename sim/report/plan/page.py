"""One self-contained HTML page for a plan: its answer, goodput and latency against rate, cost against latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.report.measures import LatencyUnits
from sim.report.plan.charts import cost_charts, range_charts, rate_charts
from sim.report.plan.sentences import ROOFLINE, answer, binds_words, gpus_words, remarks, slo_words, units_of
from sim.report.plan.tables import cells, page_candidate_columns, page_rate_columns
from sim.report.run.sentences import ROOFLINE_WARNING, heading
from sim.report.templates import Card, Panels, halves, render
from sim.results.units import count, count_of, dollars, energy, number, percent

Document = Mapping[str, Any]


def render_plan(document: Document) -> str:
    """The page of a plan as one string of HTML. document: what `sim.api.plan` returns."""
    inputs, rates = document["inputs"], document["rate"] is None
    sources = inputs.get("cost_sources") or {}
    units = units_of(document)
    columns = page_rate_columns(units) if rates else page_candidate_columns(document, units)
    return render(
        "plan.html",
        {
            "Against the rate": [*rate_charts(document, units)] if rates else [],
            "Every candidate": [*range_charts(document)],
            "Cost against latency": [*cost_charts(document, units)],
        },
        version=inputs.get("version") or "",
        title=_title(document),
        lead=f"{answer(document)} SLO: {slo_words(document, units)}.",
        headlines=_cards(document, units),
        sources=sources,
        warnings=[ROOFLINE_WARNING] if sources.get("roofline", 0) >= 1 else [],
        remarks=[text for text in remarks(document) if text != ROOFLINE],
        table_hint=_hint(document),
        every="Every rate" if rates else "Every candidate, in numbers",
        columns=columns,
        rows=cells(columns, document["rates" if rates else "candidates"]),
        facts=_facts(document, units),
        scenario="",
    )


def _title(document: Document) -> str:
    inputs, rate = document["inputs"], document["rate"]
    best = document["best"] or (inputs if rate is None else {})
    deployed = {**inputs, **{key: best.get(key) for key in ("gpu", "tp", "replicas")}}
    load = "its capacity" if rate is None else f"{number(rate)} requests/s"
    return heading(deployed, str(inputs.get("engine") or ""), load, str(inputs.get("trace") or "a plan"))


def _cards(document: Document, units: LatencyUnits) -> Iterable[Card]:
    best, capacity = document["best"], document["capacity"]
    if best is None:
        yield Card("Meets the SLO", "nothing", str(document.get("reason", "")), "bad")
        return
    if document["rate"] is None:
        yield Card("Capacity", f"{number(capacity['requests_per_s'])}/s", f"+- {percent(capacity['relative'])}, 95 %")
        yield Card("Bounded by", str(capacity["bound_by"]), slo_words(document, units), "name")
    else:
        first = "Cheapest" if best.get("confirmed", True) else "Best so far"
        yield Card(first, str(best["name"]), count_of(best["replicas"], "replica"), "name")
        if best.get("binds"):
            yield Card("Bound by", binds_words(best).removeprefix(", bound by "), slo_words(document, units), "name")
        yield Card("GPUs", gpus_words(best), str(best["gpu"]))
    if best["usd_per_hour"] is not None:
        yield Card("Price", f"{dollars(best['usd_per_hour'])}/h", "of them all")
    if best["usd_per_million_tokens"] is not None:
        yield Card("A million tokens", dollars(best["usd_per_million_tokens"]), "prompt and output")
    if best["joules_per_million_tokens"] is not None:
        bound = "at most, for a million tokens" if best["joules_upper_bound"] else "for a million tokens"
        yield Card("Energy", energy(best["joules_per_million_tokens"]), bound)


def _hint(document: Document) -> str:
    if document["rate"] is None:
        return "Every rate that was simulated, with the percentiles of its requests after warm-up."
    return "! Nearest to its limit. * No other that meets the SLO is both cheaper and faster."


def _facts(document: Document, units: LatencyUnits) -> Panels:
    yield from halves(
        [(key, value) for key, value in document["inputs"].items() if key not in ("cost_sources", "band")]
    )
    question = [("SLO", slo_words(document, units)), ("precision", percent(document["precision"]))]
    if warm := document.get("warm_up"):
        question += [("warm-up", warm["rule"]), ("requests cut", count(warm["requests_cut"]))]
    yield "Asked", question
