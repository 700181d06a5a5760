"""The plots of a comparison: latencies and queues laid over one another, KV memory side by side on one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sim.report.chart import Chart, cdf_line, distributions
from sim.report.compare.variant import Timeline, Variant
from sim.report.run.charts import LATENCY_TEXTS
from sim.report.run.timeline import KV_TEXTS, Clock
from sim.report.units import count, number, percent, seconds
from sim.results import series
from sim.results.metrics import KV_HELD, Floats

ENDED = "had ended"
QUEUES = {
    "serving": ("Requests being served", "were being served"),
    "waiting": ("Requests waiting", "waited"),
}
# Below this share of the pool, free room would squeeze what is held: it is drawn when asked for.
FREE_FROM = 0.3


def spread(values: Mapping[str, float], text: Callable[[float], str]) -> str:
    """Each variant's value, or the smallest and the largest where there are many, or the one that all have."""
    if len(values) > 1 and len(set(map(text, values.values()))) == 1:
        return f"{text(next(iter(values.values())))} in each"
    if len(values) > 3:
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        return f"{text(values[low])} ({low}) to {text(values[high])} ({high})"
    return told((name, text(value)) for name, value in values.items())


def told(parts: Iterable[tuple[str, str]]) -> str:
    """`(name, text)` pairs as "name text; name text"."""
    return "; ".join(f"{name} {text}" for name, text in parts)


def latency_charts(variants: Sequence[Variant]) -> list[Chart]:
    """The cumulative distributions of TTFT, TPOT, ITL and E2E, one line for each variant."""
    return [_latency_chart(key, variants) for key in LATENCY_TEXTS if any(key in one.cdfs for one in variants)]


def _latency_chart(key: str, variants: Sequence[Variant]) -> Chart:
    stats = {one.name: one.summary[key] for one in variants if key in one.cdfs}
    halves, tails = (
        spread({name: stat[percentile] for name, stat in stats.items()}, seconds) for percentile in ("p50", "p99")
    )
    slos = [variant.summary.get("goodput", {}).get("slo", {}) for variant in variants]
    slo = slos[0] if all(other == slos[0] for other in slos) else {}
    lines = [
        cdf_line(variant.name, variant.cdfs[key], place)
        for place, variant in enumerate(variants)
        if key in variant.cdfs
    ]
    spec = distributions(key, stats.values(), lines, slo=slo, group="variants")
    title = LATENCY_TEXTS[key][0]
    return Chart(key.removesuffix("_s"), title, f"Median: {halves}. 99 % within: {tails}.", "", spec)


class Axis:
    """The time axis that the variants share, in buckets as wide as the widest of theirs."""

    def __init__(self, timelines: Sequence[Timeline]) -> None:
        self.width_s = max(one.width_s for one in timelines)
        self.buckets = max(one.coarser(self.width_s).buckets for one in timelines)
        edges_s: Floats = self.width_s * np.arange(self.buckets + 1, dtype=np.float64)
        self.spec = Clock(0.0, float(edges_s[-1])).axis(edges_s)

    def means(self, timeline: Timeline, name: str) -> Floats:
        """A quantity in these buckets; NaN where the run had ended."""
        values = timeline.coarser(self.width_s).means[name]
        return np.append(values, np.full(self.buckets - len(values), np.nan))


def queue_charts(variants: Sequence[Variant]) -> list[Chart]:
    """Waiting and served requests over time, one line for each variant."""
    lasting = [(place, one, one.timeline) for place, one in enumerate(variants) if one.timeline]
    if not lasting:
        return []
    axis = Axis([timeline for _, _, timeline in lasting])
    charts = []
    for name, (title, verb) in QUEUES.items():
        lines = [
            {"name": one.name, "place": place, "mean": series.compact(axis.means(time, name))}
            for place, one, time in lasting
        ]
        means = {one.name: _mean(one, time, name) for _, one, time in lasting}
        spec = {
            "kind": "lines",
            "group": "variants",
            "bands": False,
            "nothing": ENDED,
            "x": axis.spec,
            "y": {"unit": "", "label": "requests"},
            "series": lines,
        }
        note = f"Each point is the mean over {seconds(axis.width_s)}; a line ends with its run."
        charts.append(Chart(name, title, f"So many {verb} on average: {spread(means, number)}.", note, spec))
    return charts


def _mean(one: Variant, time: Timeline, name: str) -> float:
    """The mean over the run, whose end need not be that of its last bucket."""
    return float(time.means[name].sum() * time.width_s / max(float(one.summary["duration_s"]), 1e-300))


def kv_charts(variants: Sequence[Variant]) -> list[Chart]:
    """The KV memory of each variant as a stack over time: one legend, one time axis, one scale for all."""
    lasting = [(one, one.timeline) for one in variants if one.timeline]
    if not lasting:
        return []
    axis = Axis([timeline for _, timeline in lasting])
    kinds = [
        kind
        for kind in KV_TEXTS
        if kind in {"used", "free"} or max(float(time.means[kind].max()) for _, time in lasting) >= 0.5
    ]
    fullest = max(one.summary["kv"]["peak_held"] for one, _ in lasting)
    charts = []
    for place, (one, time) in enumerate(lasting):
        stack = [
            {"name": KV_TEXTS[kind], "mean": series.compact(np.rint(axis.means(time, kind))), "kind": kind}
            for kind in kinds
        ]
        spec = {
            "kind": "stack",
            "group": "kv",
            "nothing": ENDED,
            "x": axis.spec,
            "y": {"unit": "", "label": "KV tokens"},
            "series": stack,
            "hidden": ["free"] if fullest < FREE_FROM else [],
        }
        charts.append(Chart(f"kv-{place}", one.name, _kv_sentence(one.summary["kv"]), "", spec, "small"))
    return charts


def _kv_sentence(kv: Mapping[str, Any]) -> str:
    if kv["useful"] is None:
        return "Nothing was held."
    text = f"{percent(kv['useful'])} of what was taken held data; data filled {percent(kv['mean_used'])} of the pool"
    text += f" on average, {percent(kv['peak_used'])} at the peak"
    if kv["shared"]["saving_mean"]:
        text += f"; sharing saved {percent(kv['shared']['saving_mean'])}"
    return text + "."


def waste_chart(variants: Sequence[Variant]) -> Chart | None:
    """What the KV memory that was taken held on average: data, or which kind of waste."""
    held = [(one, one.summary["kv"]["waste"]["of_held"]) for one in variants]
    held = [(one, share) for one, share in held if share["used"] is not None]
    if not held:
        return None
    kinds = [kind for kind in KV_HELD if kind == "used" or any(share[kind] for _, share in held)]
    rows = [
        {
            "label": one.name,
            "note": f"{percent(1 - one.summary['kv']['useful'])} waste",
            "values": series.compact(np.array([100 * share[kind] for kind in kinds])),
        }
        for one, share in held
    ]
    useful: Callable[[Variant], float] = lambda one: one.summary["kv"]["useful"]  # noqa: E731
    ranked = sorted((one for one, _ in held), key=useful)
    least, most = ranked[-1], ranked[0]
    sentence = f"{least.name} wasted {percent(1 - useful(least))} of the KV memory that it took"
    if len(ranked) > 1:
        sentence += f", {most.name} {percent(1 - useful(most))}"
    note = (
        "Means over time of what requests held. Reserved: for tokens still to come; internal: never to be used; "
        "external: free, in holes too small to use (Kwon et al. 2023, figure 2)."
    )
    spec = {
        "kind": "bars",
        "x": {"unit": "%", "label": "share of what was taken"},
        "names": [KV_TEXTS[kind] for kind in kinds],
        "kinds": kinds,
        "rows": rows,
    }
    return Chart("waste", "What the memory that was taken held", sentence + ".", note, spec, "wide")


def finished_note(variants: Sequence[Variant]) -> str | None:
    """A warning where the variants did not complete the same number of requests."""
    counts = {one.name: one.summary["requests"]["completed"] for one in variants}
    if len(set(counts.values())) < 2:
        return None
    return (
        f"The variants did not complete the same requests ({told((name, count(n)) for name, n in counts.items())}): "
        "their latencies and rates are not of the same work."
    )
