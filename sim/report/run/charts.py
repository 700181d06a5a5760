"""The plots of distributions and of where the time went: data, units, and a sentence for each."""

from __future__ import annotations

import numpy as np

from sim.report.chart import Chart, axis, cdf_line, distributions
from sim.report.measures import LATENCIES, LatencyUnits
from sim.results import series
from sim.results.percentiles import Floats, Ints, Itl
from sim.results.result import Run
from sim.results.units import TimeUnit, count, count_of, percent
from traces.late import pd

LATENCY_TEXTS = {
    "ttft_s": (
        "Time to first token (TTFT)",
        "Half of the requests had their first token within {p50}, 99 % within {p99}; the slowest took {max}.",
    ),
    "tpot_s": (
        "Time per output token (TPOT)",
        "After the first token, half of the requests received a token every {p50} or faster, 99 % every "
        "{p99} or faster; the slowest took {max} per token.",
    ),
    "itl_s": (
        "Gap between tokens (ITL)",
        "Half of all gaps between two tokens of a request were {p50} or less, 99 % were {p99} or less; the "
        "longest was {max}.",
    ),
    "e2e_s": (
        "Whole request (E2E)",
        "Half of the requests were answered in full within {p50}, 99 % within {p99}; the slowest took {max}.",
    ),
}
PHASES = {"queued": ("arrival_s", "first_scheduled_s"), "prefill": ("first_scheduled_s", "first_token_s"),
          "decode": ("first_token_s", "finish_s")}  # fmt: skip
PHASE_WORDS = ("in the queue", "in prefill", "in decode", "preempted")
E2E_GROUPS = (("all requests", 0, 100), ("fastest half", 0, 50), ("next 40 %", 50, 90), ("next 9 %", 90, 99),
              ("slowest 1 %", 99, 100))  # fmt: skip


def latency_charts(run: Run, units: LatencyUnits) -> list[Chart]:
    """The cumulative distributions of TTFT, TPOT, ITL and E2E, those that have any value."""
    return [_latency_chart(run, key, units[key]) for key in LATENCY_TEXTS if run.summary[key]["mean"] is not None]


def _latency_chart(run: Run, key: str, unit: TimeUnit) -> Chart:
    """One distribution with its percentiles marked and the limits of the SLO drawn in."""
    stats = run.summary[key]
    title, sentence = LATENCY_TEXTS[key]
    values, counts = population(run.requests, run.itl, key)
    cdf, total = series.cdf(values, counts), int(counts.sum())
    note = f"Thinned: {count(len(cdf[0]))} percentiles of {count(total)} values." if len(cdf[0]) < total else ""
    marks = [{"x": stats[name], "y": int(name[1:]), "label": name} for name in ("p50", "p90", "p99")]
    slo = run.summary.get("goodput", {}).get("slo")
    spec = distributions(key, [stats], [cdf_line(LATENCIES[key], cdf)], unit, slo=slo, marks=marks)
    shown = sentence.format(**{name: unit.words(stats[name]) for name in ("p50", "p99", "max")})
    return Chart(key.removesuffix("_s"), title, shown, note, spec)


def population(requests: pd.DataFrame, itl: Itl, key: str) -> Itl:
    if key == "itl_s":
        return itl
    values = requests[key].dropna().to_numpy(dtype=np.float64)
    return values, np.ones(len(values), dtype=np.int64)


def phases_chart(requests: pd.DataFrame, unit: TimeUnit, preempted: pd.DataFrame | None = None) -> Chart | None:
    """Where a request's time went, for all completed requests and by how long they took.

    unit: of the page for E2E. preempted: one row per preemption, as `sim.api.Result` has them; None where they were not
    recorded.
    """
    done = requests[requests["status"] == "completed"]
    if not len(done):
        return None
    e2e_s = done["e2e_s"].to_numpy(dtype=np.float64)
    spent = phases_s(done, preempted)
    rank = np.argsort(np.argsort(e2e_s, kind="stable"), kind="stable")
    rows = []
    for label, low, high in E2E_GROUPS:
        group = (rank >= len(done) * low / 100) & (rank < len(done) * high / 100)
        if group.any():
            means = [float(phase[group].mean()) for phase in spent.values()]
            note = f"{unit.words(sum(means))}, {count_of(int(group.sum()), 'request')}"
            rows.append({"label": label, "note": note, "values": series.compact(np.array(means) * unit.factor)})
    shares = [percent(float(phase.sum() / max(e2e_s.sum(), 1e-300))) for phase in spent.values()]
    parts = [f"{share} {words}" for share, words in zip(shares, PHASE_WORDS, strict=False)]
    noun = "The completed request took" if len(done) == 1 else f"{count(len(done))} completed requests took on average"
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}{_slowest(list(spent.values()), rank)}"
    sentence = f"{noun} {unit.words(float(e2e_s.mean()))}: {listed}"
    note = (
        "Requests are grouped by how long they took. Prefill lasts from the first step to the first token, "
        "decode from the first to the last token; preempted is what passed in either of them from losing the "
        "memory to the next step, while computing again what was lost counts where it fell."
        if preempted is not None
        else "Requests are grouped by how long they took. Prefill lasts from the first step to the first token, "
        "decode from the first to the last token; time lost to preemption counts where it fell."
    )
    spec = {"kind": "bars", "x": axis(unit.name, "mean time"), "names": list(spent), "rows": rows}
    return Chart("phases", "Where a request's time went", sentence, note, spec)


def phases_s(done: pd.DataFrame, preempted: pd.DataFrame | None) -> dict[str, Floats]:
    """Seconds of each completed request by phase, which add up to its E2E; "preempted" where that was recorded."""
    spent = {name: (done[end] - done[begin]).to_numpy(np.float64) for name, (begin, end) in PHASES.items()}
    if preempted is None:
        return spent
    breaks = preempted[(preempted["sequence"] == 0) & preempted["end_s"].notna()]
    place = pd.Series(np.arange(len(done)), done["request"].to_numpy()).reindex(breaks["request"]).to_numpy(np.float64)
    known = ~np.isnan(place)
    at, lost_s = place[known].astype(np.int64), np.zeros(len(done))
    for name in ("prefill", "decode"):
        begin_s, end_s = (done[edge].to_numpy(np.float64)[at] for edge in PHASES[name])
        out_s, back_s = breaks["start_s"].to_numpy()[known], breaks["end_s"].to_numpy()[known]
        within_s = np.minimum(back_s, end_s) - np.maximum(out_s, begin_s)
        lost = np.bincount(at, np.maximum(within_s, 0.0), minlength=len(done))
        spent[name] = spent[name] - lost
        lost_s += lost
    return {**spent, "preempted": lost_s}


def _slowest(spent: list[Floats], rank: Ints) -> str:
    """The end of the sentence: what the slowest hundredth waited for most."""
    if len(rank) < 100:
        return "."
    last = rank >= len(rank) * 0.99
    totals = [float(phase[last].sum()) for phase in spent]
    most = int(np.argmax(totals))
    return f"; the slowest 1 % spent {percent(totals[most] / sum(totals))} of theirs {PHASE_WORDS[most]}."
