"""One self-contained HTML page for a run: no network, no library, safe against whatever a trace calls itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.report.measures import LatencyUnits, latency, latency_rows
from sim.report.run.adapters import adapter_panels
from sim.report.run.band import band_rows
from sim.report.run.charts import latency_charts, phases_chart
from sim.report.run.operations import operation_panels
from sim.report.run.pools import pool_panels, routing_panels
from sim.report.run.pressure import pressure_lines, stability_lines
from sim.report.run.sentences import (
    answer,
    bill_rows,
    clause_words,
    drafts_by_position,
    engine_of,
    kv_capacity_lines,
    kv_capacity_words,
    load_rows,
    notes_of,
    requests_line,
    title,
    warnings_of,
)
from sim.report.run.terms import term_charts
from sim.report.run.tiers import tier_panels
from sim.report.run.timeline import step_unit, time_charts
from sim.report.templates import Card, Panels, render
from sim.results.metrics import verdicts
from sim.results.percentiles import STATISTICS
from sim.results.result import Run
from sim.results.stability import queue_warning
from sim.results.units import count, dollars, mean_count_of, number, percent, seconds, size_of

INPUT_NAMES = {
    "trace": "Trace",
    "trace_kind": "Trace format",
    "synthetic": "Synthetic",
    "model": "Model",
    "gpu": "GPU",
    "profile": "Profile",
    "seed": "Seed",
    "version": "Foretoken",
}


def render_page(run: Run, *, scenario: str = "") -> str:
    """The page of a run as one string of HTML. scenario: the resolved scenario as text, shown as it is."""
    summary = run.summary
    units, queue = LatencyUnits.of([summary]), queue_warning(run.requests)
    phases = phases_chart(run.requests, units["e2e_s"], getattr(run, "preempted", None))
    return render(
        "run.html",
        {
            "latency": latency_charts(run, units),
            "time": time_charts(run, units),
            "phases": [phases] if phases else [],
            "terms": term_charts(run, step_unit(run.steps)),
        },
        version=summary["inputs"].get("version") or "",
        answer=answer(summary),
        title=title(summary, engine_of(summary["inputs"], scenario)),
        lead=requests_line(summary),
        headlines=_cards(summary, units),
        clauses=list(_clauses(summary, units)),
        sources=summary["cost_sources"],
        warnings=[*warnings_of(summary), *([queue] if queue else [])],
        remarks=[*stability_lines(run), *pressure_lines(run), *kv_capacity_lines(summary), *notes_of(summary)],
        latency_heads=["", *STATISTICS],
        latencies=[(f"{name}, {unit}", *row) for name, unit, row in latency_rows(summary, STATISTICS, units)],
        facts=[*_facts(summary), *routing_panels(summary, run.requests)],
        scenario=scenario,
    )


def _cards(summary: Mapping[str, Any], units: LatencyUnits) -> Iterable[Card]:
    """The headline figures; goodput is coloured by whether the SLO was met."""
    rates, kv = summary["throughput"], summary["kv"]
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        median, tail = latency(key, "p50"), latency(key, "p99")
        yield Card(
            median.label, units.words(median, median.value(summary)), f"p99 {units.words(tail, tail.value(summary))}"
        )
    yield Card("Throughput", f"{number(rates['requests_per_s'])}/s", "requests")
    yield Card("Output", f"{number(rates['output_tokens_per_s'])}/s", "tokens")
    yield Card("KV memory used", percent(kv["mean_used"]), f"on average; peak {percent(kv['peak_used'])}")
    bill = summary.get("bill") or {}
    if bill.get("usd_per_million_output_tokens") is not None:
        hour = f"at {dollars(bill['usd_per_gpu_hour'])} a GPU-hour, {mean_count_of(bill['gpus'], 'GPU')}"
        yield Card("Cost per Mtok output", dollars(bill["usd_per_million_output_tokens"]), hour)
    if goodput := summary.get("goodput"):
        clauses = verdicts(summary)
        style = "good" if all(clause.met for clause in clauses) else "bad"
        yield Card(
            "Goodput", f"{number(goodput['requests_per_s'])}/s", f"{percent(goodput['fraction'])} of requests", style
        )


def _clauses(summary: Mapping[str, Any], units: LatencyUnits) -> Iterable[tuple[str, str]]:
    """(measured and limit, verdict) of each clause of the SLO, over the whole run."""
    for clause in verdicts(summary):
        yield clause_words(clause, units), {True: "met", False: "missed", None: "undefined"}[clause.met]


def _facts(summary: Mapping[str, Any]) -> Panels:
    """Provenance, counts and KV figures as three small tables."""
    inputs, kv, simulator = summary["inputs"], summary["kv"], summary["simulator"]
    known = [(label, inputs[key]) for key, label in INPUT_NAMES.items() if inputs.get(key) is not None]
    rest = [
        (key, value)
        for key, value in inputs.items()
        if key not in {*INPUT_NAMES, "notes", "pools", "scales", "scales_by"} and value is not None
    ]
    yield ("Inputs", [*known, *rest])
    counts = [(name.capitalize(), count(value)) for name, value in summary["requests"].items()]
    pace = [("Steps", count(simulator.get("steps"))), ("Wall time", seconds(simulator.get("wall_s")))]
    yield ("Requests", [*counts, ("Simulated time", seconds(summary["duration_s"])), *pace])
    if load := summary.get("load"):
        yield ("Load", load_rows(load))
    held = [(f"Of what was taken: {name}", percent(share)) for name, share in kv["waste"]["of_held"].items()]
    moved = [("Copied on write", size_of(kv["copied_bytes"])), ("Swapped", size_of(kv["swapped_bytes"]))]
    pool = [
        ("Capacity of a replica", kv_capacity_words(kv)),
        ("Block", f"{count(kv['block_tokens'])} tokens"),
    ]
    reuse = [
        ("Saved by sharing", percent(kv["shared"]["saving_mean"])),
        ("Prefix hits, by tokens", percent(kv["prefix_hit_rate"])),
        ("Prefix hits, by blocks", percent(kv["prefix_hit_rate_blocks"])),
    ]
    yield ("KV memory", [*pool, *held, *reuse, *(row for row in moved if row[1] != "0 B")])
    yield from tier_panels(kv)
    yield from adapter_panels(summary)
    yield from operation_panels(summary)
    yield from pool_panels(summary)
    if speculation := summary.get("speculation"):
        yield ("Speculative decoding", _drafting(speculation))
    if bill := summary.get("bill"):
        yield ("Money and energy", bill_rows(bill))
    if rows := band_rows(summary):
        yield (f"Band, {summary['band']['level']:.0%}", rows)
    if terms := summary.get("cost_terms"):
        rows = [
            (name, ", ".join(f"{percent(share)} {source}" for source, share in sources.items()))
            for name, sources in terms.items()
        ]
        yield ("Step time by term and source", rows)


def _drafting(drafts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "Drafter", str(drafts["drafter"])
    yield "Tokens a target step", number(drafts["tokens_per_target_step"])
    yield "Drafts verified", count(drafts["drafted_tokens"])
    yield "Of these right", percent(drafts["acceptance"])
    yield "Right by position", drafts_by_position(drafts)
    yield "Time spent drafting", percent(drafts["drafting_share"])
    yield "Weights on each GPU", size_of(drafts["draft_weight_bytes"])
    yield "KV of a token on each GPU", size_of(drafts["draft_kv_bytes_per_token"])
