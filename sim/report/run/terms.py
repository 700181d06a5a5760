"""The plots of step time by term: attention, products, communication, host and so on; it prices nothing itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.cost.terms import KINDS, kind_of
from sim.report.chart import Chart, axis
from sim.report.run.timeline import TimeAxis
from sim.results import series
from sim.results.percentiles import Floats
from sim.results.result import Run
from sim.results.terms import term_table
from sim.results.units import TimeUnit, count, percent, seconds
from traces.late import pd

# More spans than this are not explained for a page: an even choice says the same.
SPANS_PER_BUCKET, MOST_BUCKETS = 20, 150
NOTE = (
    "Products: all matrix products, the LM head included; elementwise: norms, activations, rotation, sampling, KV "
    "writes; launching: gaps between kernels; host: what the device does not hide."
)


def term_charts(run: Run, unit: TimeUnit) -> list[Chart]:
    """Mean step time by group of terms: over the run, and by what the steps did. unit: of the page's step times."""
    table = term_table(run)
    if table is None:
        return []
    spent = _grouped(table.drop(columns="row"))
    names = [kind for kind in KINDS if kind in spent and spent[kind].any()]
    if not names:
        return []
    steps = run.steps.iloc[table["row"].to_numpy()].reset_index(drop=True)
    note = NOTE
    if len(table) < len(run.steps):
        note = f"Thinned: {count(len(table))} of {count(len(run.steps))} spans, evenly chosen. {NOTE}"
    return [_shares(steps, spent[names], unit, note), _over_time(run, steps, spent[names], unit, note)]


def _grouped(terms: pd.DataFrame) -> pd.DataFrame:
    groups: dict[str, Any] = {}
    for name in terms:
        group = kind_of(str(name))
        groups[group] = groups[group] + terms[name] if group in groups else terms[name]
    return pd.DataFrame(groups)


def _shares(steps: pd.DataFrame, spent: pd.DataFrame, unit: TimeUnit, note: str) -> Chart:
    """Bars of the mean step: all, those that prefill, those that only decode."""
    repeats = steps["repeats"].to_numpy(np.float64)
    prefill = steps["prefill_requests"].to_numpy() > 0
    parts = {"all steps": np.ones(len(steps), bool), "with prefill": prefill, "decode only": ~prefill}
    rows: list[dict[str, Any]] = []
    for label, chosen in parts.items():
        if chosen.any():
            means: Floats = np.average(spent.to_numpy()[chosen], axis=0, weights=repeats[chosen])
            text = f"{unit.words(float(means.sum()))} a step"
            if label != "all steps":
                text += f", {percent(float(repeats[chosen].sum() / repeats.sum()))} of the steps"
            rows.append({"label": label, "note": text, "values": series.compact(means * unit.factor)})
    overall = np.average(spent.to_numpy(), axis=0, weights=repeats)
    ranked = np.argsort(-overall)[:3]
    largest = [f"{spent.columns[place]} {percent(float(overall[place] / overall.sum()))}" for place in ranked]
    sentence = f"Of the time of a mean step: {', '.join(largest)}."
    spec = {"kind": "bars", "x": axis(unit.name, "mean step"), "names": list(spent.columns), "rows": rows}
    return Chart("terms", "Step time by term", sentence, note, spec, "wide")


def _over_time(run: Run, steps: pd.DataFrame, spent: pd.DataFrame, unit: TimeUnit, note: str) -> Chart:
    """A stack over the run: the mean over time of a step's duration, by group."""
    clock = TimeAxis.of(run)
    buckets = min(MOST_BUCKETS, max(1, len(steps) // SPANS_PER_BUCKET))
    edges_s = np.linspace(clock.start_s, max(clock.end_s, clock.start_s + 1e-9), buckets + 1)
    scaled = steps.assign(**{f"term {name}": spent[name] * unit.factor for name in spent})
    spans = series.by_replica(scaled, *(f"term {name}" for name in spent))
    means: dict[str, Floats] = {}
    for name in spent:
        parts = [part.constant(part.columns[f"term {name}"]) for part in spans]
        means[str(name)] = series.busy_means(parts, edges_s)["mean"]
    totals = np.nan_to_num(np.array(list(means.values()))).sum(axis=0)
    top = int(np.argmax(totals))
    most = max(means, key=lambda name: np.nan_to_num(means[name][top]))
    at_s, longest_s, share_s = edges_s[top] - clock.start_s, totals[top] / unit.factor, means[most][top] / unit.factor
    sentence = (
        f"Steps were longest after {clock.words(float(at_s))}: {unit.words(float(longest_s))} on average, "
        f"most of it {most} ({unit.words(float(share_s))})."
    )
    lines = [{"name": name, "mean": series.compact(values)} for name, values in means.items()]
    axes = {"x": clock.axis(edges_s), "y": axis(unit.name, "step time")}
    spec = {"kind": "stack", **axes, "nothing": "nothing ran", "series": lines}
    width = seconds(float(edges_s[1] - edges_s[0]))
    return Chart("terms-time", "Step time by term, over time", sentence, f"Means over {width}. {note}", spec, "wide")
