"""One self-contained HTML page for a plan: its answer, goodput and latency against rate, cost against latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.report.plan.charts import cost_charts, rate_charts
from sim.report.plan.sentences import ROOFLINE, answer, binds_words, gpus_words, remarks, slo_words
from sim.report.plan.tables import PAGE_CANDIDATES, PAGE_E2E, PAGE_RATES, cells, slo_columns
from sim.report.run.sentences import ROOFLINE_WARNING
from sim.report.templates import Card, Panels, halves, render
from sim.report.units import count, dollars, energy, number, percent

Document = Mapping[str, Any]


def render_plan(document: Document) -> str:
    """The page of a plan as one string of HTML. document: what `sim.api.plan` returns."""
    inputs, rates = document["inputs"], document["rate"] is None
    sources = inputs.get("cost_sources") or {}
    columns = PAGE_RATES if rates else [*PAGE_CANDIDATES, *slo_columns(document), *PAGE_E2E]
    return render(
        "plan.html",
        {
            "Against the rate": [*rate_charts(document)] if rates else [],
            "Cost against latency": [*cost_charts(document)],
        },
        version=inputs.get("version") or "",
        title=_title(document),
        lead=f"{answer(document)} SLO: {slo_words(document)}.",
        headlines=_cards(document),
        sources=sources,
        warnings=[ROOFLINE_WARNING] if sources.get("roofline", 0) >= 1 else [],
        remarks=[text for text in remarks(document) if text != ROOFLINE],
        table_hint=_hint(document),
        heads=[name for name, _ in columns],
        rows=cells(columns, document["rates" if rates else "candidates"]),
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
        first = "Cheapest" if best.get("confirmed", True) else "Best so far"
        yield Card(first, str(best["name"]), f"{count(best['replicas'])} replicas", "name")
        if best.get("binds"):
            yield Card("Bound by", binds_words(best).removeprefix(", bound by "), slo_words(document), "name")
        yield Card("GPUs", gpus_words(best), str(best["gpu"]))
    if best["usd_per_hour"] is not None:
        yield Card("Price", f"{dollars(best['usd_per_hour'])}/h", str(best["price_source"]))
    if best["usd_per_million_tokens"] is not None:
        yield Card("A million tokens", dollars(best["usd_per_million_tokens"]), "prompt and output")
    if best["joules_per_million_tokens"] is not None:
        bound = "at most; " if best["joules_upper_bound"] else ""
        yield Card("Energy of these", energy(best["joules_per_million_tokens"]), f"{bound}{best['power_source']}")


def _hint(document: Document) -> str:
    if document["rate"] is None:
        return "Every rate that was simulated, with the percentiles of its requests after warm-up."
    return "Every candidate. * No other that meets the SLO is both cheaper and faster."


def _facts(document: Document) -> Panels:
    yield from halves([(key, value) for key, value in document["inputs"].items() if key != "cost_sources"])
    question = [("SLO", slo_words(document)), ("precision", percent(document["precision"]))]
    if warm := document.get("warm_up"):
        question += [("warm-up", warm["rule"]), ("requests cut", count(warm["requests_cut"]))]
    yield "Asked", question
