"""The plots of a comparison: latencies and queues laid over one another, KV memory side by side on one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from sim.report.chart import Chart, axis, cdf_line, distributions
from sim.report.compare.variant import Timeline, Variant
from sim.report.measures import LatencyUnits
from sim.report.run.charts import LATENCY_TEXTS
from sim.report.run.timeline import KV_TEXTS, TimeAxis
from sim.results import series
from sim.results.kv import KV_HELD
from sim.results.percentiles import Floats
from sim.results.units import TimeUnit, count, number, percent, seconds

ENDED = "had ended"
QUEUES = {"serving": ("Requests being served", "were being served"), "waiting": ("Requests waiting", "waited")}
# Below this share of the pool, free room would squeeze what is held: it is drawn when asked for.
FREE_FROM = 0.3


def spread(values: Mapping[str, float], text: Callable[[float], str]) -> str:
    """Each variant's value, or the smallest and the largest where there are many, or the one that all have."""
    if len(values) > 1 and len(set(map(text, values.values()))) == 1:
        return f"{text(next(iter(values.values())))} in each"
    if len(values) > 3:
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        return f"{text(values[low])} ({low}) to {text(values[high])} ({high})"
    return listed((name, text(value)) for name, value in values.items())


def listed(parts: Iterable[tuple[str, str]]) -> str:
    """`(name, text)` pairs as "name text; name text"."""
    return "; ".join(f"{name} {text}" for name, text in parts)


def latency_charts(variants: Sequence[Variant], units: LatencyUnits) -> list[Chart]:
    """The cumulative distributions of TTFT, TPOT, ITL and E2E, one line for each variant."""
    known = [key for key in LATENCY_TEXTS if any(key in variant.cdfs for variant in variants)]
    return [_latency_chart(key, variants, units[key]) for key in known]


def _latency_chart(key: str, variants: Sequence[Variant], unit: TimeUnit) -> Chart:
    stats = {variant.name: variant.summary[key] for variant in variants if key in variant.cdfs}
    halves, tails = (
        spread({name: stat[percentile] for name, stat in stats.items()}, unit.words) for percentile in ("p50", "p99")
    )
    slos = [variant.summary.get("goodput", {}).get("slo", {}) for variant in variants]
    slo = slos[0] if all(other == slos[0] for other in slos) else {}
    lines = [
        cdf_line(variant.name, variant.cdfs[key], place)
        for place, variant in enumerate(variants)
        if key in variant.cdfs
    ]
    spec = distributions(key, stats.values(), lines, unit, slo=slo, group="variants")
    title = LATENCY_TEXTS[key][0]
    return Chart(key.removesuffix("_s"), title, f"Median: {halves}. 99 % within: {tails}.", "", spec)


class SharedAxis:
    """The time axis that the variants share, in buckets as wide as the widest of theirs."""

    def __init__(self, timelines: Sequence[Timeline]) -> None:
        self.width_s = max(timeline.width_s for timeline in timelines)
        self.buckets = max(timeline.coarser(self.width_s).buckets for timeline in timelines)
        edges_s: Floats = self.width_s * np.arange(self.buckets + 1, dtype=np.float64)
        self.spec = TimeAxis(0.0, float(edges_s[-1])).axis(edges_s)

    def means(self, timeline: Timeline, name: str) -> Floats:
        """A quantity in these buckets; NaN where the run had ended."""
        values = timeline.coarser(self.width_s).means[name]
        return np.append(values, np.full(self.buckets - len(values), np.nan))


def queue_charts(variants: Sequence[Variant]) -> list[Chart]:
    timelines = [(place, variant, variant.timeline) for place, variant in enumerate(variants) if variant.timeline]
    if not timelines:
        return []
    shared = SharedAxis([timeline for _, _, timeline in timelines])
    charts = []
    for name, (title, verb) in QUEUES.items():
        lines = [
            {"name": variant.name, "place": place, "mean": series.compact(shared.means(timeline, name))}
            for place, variant, timeline in timelines
        ]
        means = {variant.name: _mean(variant, timeline, name) for _, variant, timeline in timelines}
        look = {"kind": "lines", "group": "variants", "bands": False, "nothing": ENDED}
        spec = {**look, "x": shared.spec, "y": axis("", "requests"), "series": lines}
        note = f"Each point is the mean over {seconds(shared.width_s)}; a line ends with its run."
        charts.append(Chart(name, title, f"So many {verb} on average: {spread(means, number)}.", note, spec))
    return charts


def _mean(variant: Variant, timeline: Timeline, name: str) -> float:
    """The mean over the run, whose end need not be that of its last bucket."""
    return float(timeline.means[name].sum() * timeline.width_s / max(float(variant.summary["duration_s"]), 1e-300))


def kv_charts(variants: Sequence[Variant]) -> list[Chart]:
    """The KV memory of each variant as a stack over time: one legend, one time axis, one scale for all."""
    timelines = [(variant, variant.timeline) for variant in variants if variant.timeline]
    if not timelines:
        return []
    shared = SharedAxis([timeline for _, timeline in timelines])
    kinds = [
        kind
        for kind in KV_TEXTS
        if kind in {"used", "free"} or max(float(timeline.means[kind].max()) for _, timeline in timelines) >= 0.5
    ]
    fullest = max(variant.summary["kv"]["peak_held"] for variant, _ in timelines)
    charts = []
    for place, (variant, timeline) in enumerate(timelines):
        stack = [
            {"name": KV_TEXTS[kind], "mean": series.compact(np.rint(shared.means(timeline, kind))), "kind": kind}
            for kind in kinds
        ]
        look = {"kind": "stack", "group": "kv", "nothing": ENDED}
        hidden = ["free"] if fullest < FREE_FROM else []
        spec = {**look, "x": shared.spec, "y": axis("", "KV tokens"), "series": stack, "hidden": hidden}
        charts.append(Chart(f"kv-{place}", variant.name, _kv_sentence(variant.summary["kv"]), "", spec, "small"))
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
    held = [(variant, variant.summary["kv"]["waste"]["of_held"]) for variant in variants]
    held = [(variant, share) for variant, share in held if share["used"] is not None]
    if not held:
        return None
    kinds = [kind for kind in KV_HELD if kind == "used" or any(share[kind] for _, share in held)]
    rows = [
        {
            "label": variant.name,
            "note": f"{percent(1 - variant.summary['kv']['useful'])} waste",
            "values": series.compact(np.array([100 * share[kind] for kind in kinds])),
        }
        for variant, share in held
    ]
    ranked = sorted(((variant.summary["kv"]["useful"], variant.name) for variant, _ in held), key=itemgetter(0))
    (low, worst), (high, best) = ranked[0], ranked[-1]
    sentence = f"{best} wasted {percent(1 - high)} of the KV memory that it took"
    if len(ranked) > 1:
        sentence += f", {worst} {percent(1 - low)}"
    note = (
        "Means over time of what requests held. Reserved: for tokens still to come; internal: never to be used; "
        "external: free, in holes too small to use (Kwon et al. 2023, figure 2)."
    )
    names = [KV_TEXTS[kind] for kind in kinds]
    spec = {"kind": "bars", "x": axis("%", "share of what was taken"), "names": names, "kinds": kinds, "rows": rows}
    return Chart("waste", "What the memory that was taken held", sentence + ".", note, spec, "wide")


def finished_note(variants: Sequence[Variant]) -> str | None:
    """A warning where the variants did not complete the same number of requests."""
    counts = {variant.name: variant.summary["requests"]["completed"] for variant in variants}
    if len(set(counts.values())) < 2:
        return None
    return (
        f"The variants did not complete the same requests ({listed((name, count(n)) for name, n in counts.items())}): "
        "their latencies and rates are not of the same work."
    )
