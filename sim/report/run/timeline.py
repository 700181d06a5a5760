"""The plots of a run over time: queue, TTFT, batch, step time and KV room, on one shared axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.report.chart import Chart, axis
from sim.report.measures import LatencyUnits
from sim.results import series
from sim.results.binding import BUDGET, FREE, IDLE, LIMITS, STATES, limits_of, states
from sim.results.kv import KV_HELD, KV_KINDS, kv_means
from sim.results.percentiles import Floats
from sim.results.presence import DIES, present
from sim.results.result import Run
from sim.results.series import Pieces
from sim.results.units import TimeUnit, count, count_of, percent, seconds, time_unit
from traces.late import pd

REQUESTS_PER_BUCKET = 10
HOURS = TimeUnit("h", 1 / 3600)
SMALLEST_SHARE = 1e-9
"""Of a bucket's time, what is less is rounding."""
KV_TEXTS = {
    "used": "used",
    "shared": "shared",
    "reserved": "reserved for later",
    "internal": "internal waste",
    "external": "external waste",
    "free": "free",
}


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The time axis that these plots share: from the first arrival to the end of the run."""

    start_s: float
    end_s: float

    @classmethod
    def of(cls, run: Run) -> TimeAxis:
        """The axis of a run that has at least one step."""
        start_s = float(run.requests["arrival_s"].min())
        return cls(start_s, max(float(run.requests["arrival_s"].max()), float(run.steps["end_s"].max())))

    def axis(self, edges_s: Floats) -> dict[str, Any]:
        """The buckets as the script reads them, in the unit that keeps the numbers short."""
        unit = self.unit
        first, width = (edges_s[0] - self.start_s) * unit.factor, (edges_s[1] - edges_s[0]) * unit.factor
        names = axis(unit.name, "time since first arrival")
        return {**names, "first": first, "width": width, "buckets": len(edges_s) - 1}

    @property
    def unit(self) -> TimeUnit:
        length = self.end_s - self.start_s
        return TimeUnit("s", 1.0) if length < 1200 else TimeUnit("min", 1 / 60) if length < 72_000 else HOURS

    def words(self, after_s: float) -> str:
        """How long after the first arrival, in the unit of the axis."""
        return self.unit.words(after_s)

    def grid(self, values: int) -> Floats:
        return series.grid(self.start_s, self.end_s, values)


def time_charts(run: Run, units: LatencyUnits) -> list[Chart]:
    if not len(run.steps):
        return []
    clock = TimeAxis.of(run)
    return [
        *limit_charts(run, clock),
        *fleet_charts(run, clock),
        queue_chart(run.requests, clock),
        ttft_chart(run.requests, units["ttft_s"], clock),
        batch_chart(run.steps, clock),
        step_chart(run.steps, step_unit(run.steps), clock),
        kv_chart(run.summary["kv"], run.steps, clock),
    ]


def _thinned(edges_s: Floats, values: int, what: str) -> str:
    """How a plot was thinned, in words; nothing where every bucket holds one value at most."""
    if values < len(edges_s) / 4:
        return ""
    width = seconds(float(edges_s[1] - edges_s[0]))
    return (
        f"Thinned: {count(values)} {what} in buckets of {width}. The line is the mean over the time in a "
        "bucket, the band reaches from the smallest to the largest value in it."
    )


def queue_levels(requests: pd.DataFrame, end_s: float) -> tuple[Pieces, Pieces]:
    """How many requests (waited, were being served) at each moment, up to `end_s`."""
    real = requests[(requests["status"] != "rejected") & requests["arrival_s"].notna()]
    arrival_s, scheduled_s, finish_s = (
        real[name].to_numpy(np.float64) for name in ("arrival_s", "first_scheduled_s", "finish_s")
    )
    waiting = series.level(arrival_s, scheduled_s, end_s)
    return waiting, series.level(scheduled_s[~np.isnan(scheduled_s)], finish_s, end_s)


def queue_chart(requests: pd.DataFrame, clock: TimeAxis) -> Chart:
    """Waiting and running requests, exactly as the arrivals, first steps and finishes say."""
    real = int(((requests["status"] != "rejected") & requests["arrival_s"].notna()).sum())
    edges_s = clock.grid(2 * real)
    waiting, serving = queue_levels(requests, clock.end_s)
    means = [part.integral(edges_s)[-1] / (edges_s[-1] - edges_s[0]) for part in (waiting, serving)]
    sentence = f"On average {means[0]:,.2f} requests waited and {means[1]:,.1f} were being served"
    if len(waiting.first) and waiting.first.max() > 0:
        longest = int(np.argmax(waiting.first))
        at = clock.words(float(waiting.start_s[longest] - clock.start_s))
        sentence += f"; the queue was longest after {at}, with {count(int(waiting.first[longest]))} waiting"
    lines = [
        series.banded("waiting", series.busy_means([waiting], edges_s)),
        series.banded("being served", series.busy_means([serving], edges_s)),
    ]
    note = _thinned(edges_s, 2 * real, "changes") + " Waiting is from arrival to a request's first step."
    spec = {"kind": "lines", "x": clock.axis(edges_s), "y": axis("", "requests"), "series": lines}
    return Chart("queue", "Queue", sentence + ".", note.strip(), spec)


def fleet_charts(run: Run, clock: TimeAxis) -> list[Chart]:
    """How many replicas served and were paid for; none where all of them did all the time."""
    events = getattr(run, "events", None)
    if events is None or not len(events):
        return []
    replicas = int(run.summary["inputs"]["replicas"])
    edges_s = clock.grid(2 * len(events))
    levels = {}
    for what, words in (("paid", "paid for"), ("serving", "serving")):
        times = present(events, replicas, clock.start_s, what)
        levels[words] = series.level(times.start_s, times.end_s, clock.end_s)
    means = {name: level.integral(edges_s)[-1] / (edges_s[-1] - edges_s[0]) for name, level in levels.items()}
    deaths = int((events["event"] == DIES).sum())
    died = f"; one died {count_of(deaths, 'time')}" if deaths else ""
    sentence = (
        f"{means['serving']:,.2f} replicas served on average, of {means['paid for']:,.2f} that were paid for{died}."
    )
    lines = [series.banded(name, series.busy_means([level], edges_s)) for name, level in levels.items()]
    spec = {"kind": "lines", "x": clock.axis(edges_s), "y": axis("", "replicas"), "series": lines}
    return [Chart("replicas", "Replicas", sentence, _thinned(edges_s, 2 * len(events), "changes"), spec)]


def limit_charts(run: Run, clock: TimeAxis) -> list[Chart]:
    """Which limit held waiting requests up when, as shares of the replicas' time; none of an earlier version's run."""
    binding = run.summary.get("binding")
    if binding is None:
        return []
    code = states(run.steps, limits_of(binding["limits"]))
    edges_s = clock.grid(len(run.steps))
    spans = series.by_replica(run.steps.assign(**{name: code == place for place, name in enumerate(STATES)}), *STATES)
    replicas = run.summary["inputs"].get("replicas") or len(spans)
    words = {FREE: "nobody waits", BUDGET: binding["limits"]["budget_is"]}
    means: dict[str, Floats] = {}
    for name in (*LIMITS, FREE):
        share = series.sum_of_means([part.constant(part.columns[name]) for part in spans], edges_s) / replicas
        if share.any():
            means[words.get(name, name)] = share
    rest = np.maximum(1.0 - sum(means.values()), 0.0)
    means[IDLE] = np.where(rest > SMALLEST_SHARE, rest, 0.0)
    full = sorted((pair for pair in binding["waiting"].items() if pair[1] > 0), key=lambda pair: -pair[1])
    listed = ", ".join(f"{name} {percent(share)} of the time" for name, share in full)
    sentence = (
        f"Requests waited for: {listed}." if full else "No request waited for a seat, the token budget or memory."
    )
    width = seconds(float(edges_s[1] - edges_s[0]))
    note = f"Each point is the mean over {width}; where requests waited, the limit that the step before them was at."
    tones: dict[str, dict[str, Any]] = {words[FREE]: {"kind": "free"}, IDLE: {"kind": "external"}}
    tones |= {words.get(name, name): {"place": place} for place, name in enumerate(LIMITS)}
    lines = [
        {"name": name, "mean": series.compact(100 * values), **tones[name]}
        for name, values in means.items()
        if values.any()
    ]
    spec = {
        "kind": "stack",
        "x": clock.axis(edges_s),
        "y": axis("%", "share of the time"),
        "most": 100,
        "series": lines,
    }
    return [Chart("limits", "What binds when", sentence, note, spec, "wide")]


def ttft_chart(requests: pd.DataFrame, unit: TimeUnit, clock: TimeAxis) -> Chart:
    known = requests[requests["ttft_s"].notna()].sort_values("arrival_s", kind="stable")
    arrival_s, ttft_s = known["arrival_s"].to_numpy(np.float64), known["ttft_s"].to_numpy(np.float64)
    buckets = min(series.FEWEST_BUCKETS, max(10, len(known) // REQUESTS_PER_BUCKET))
    edges_s = np.linspace(clock.start_s, max(clock.end_s, clock.start_s + 1e-9), buckets + 1)
    half = (clock.start_s + float(requests["arrival_s"].max())) / 2
    early, late = ttft_s[arrival_s < half], ttft_s[arrival_s >= half]
    sentence = "Too few requests to tell the first half of the arrivals from the second."
    if len(early) and len(late):
        medians = [unit.words(float(np.median(part))) for part in (early, late)]
        sentence = (
            f"Requests that arrived in the first half of the time had a median TTFT of {medians[0]}, those "
            f"in the second half {medians[1]}."
        )
    width = seconds(float(edges_s[1] - edges_s[0]))
    note = f"{count(len(known))} requests in buckets of {width}: the line is the mean, the band the whole range."
    line = series.banded("TTFT", series.point_buckets(arrival_s, ttft_s * unit.factor, edges_s))
    spec = {"kind": "lines", "x": clock.axis(edges_s), "y": axis(unit.name, "TTFT"), "series": [line]}
    return Chart("ttft-time", "TTFT by arrival", sentence, note, spec)


def batch_chart(steps: pd.DataFrame, clock: TimeAxis) -> Chart:
    edges_s = clock.grid(len(steps))
    kinds = {"decoding": "decode_requests", "prefilling": "prefill_requests"}
    parts = series.by_replica(steps, *kinds.values())
    lines = [
        series.banded(name, series.busy_means([part.constant(part.columns[column]) for part in parts], edges_s))
        for name, column in kinds.items()
    ]
    repeats = steps["repeats"].to_numpy()
    total = int(repeats.sum())
    decodes = float(np.dot(steps["decode_requests"], repeats)) / total
    with_prefill = float(repeats[steps["prefill_requests"].to_numpy() > 0].sum()) / total
    most = count(int(steps["decode_requests"].max()))
    sentence = (
        f"A step decoded {decodes:,.1f} requests on average and {most} at most; "
        f"{percent(with_prefill)} of the {count(total)} steps had prefill in them."
    )
    spec = {"kind": "lines", "x": clock.axis(edges_s), "y": axis("", "requests per step"), "series": lines}
    return Chart("batch", "Batch size", sentence, _thinned(edges_s, len(steps), "spans of equal steps"), spec)


def step_unit(steps: pd.DataFrame) -> TimeUnit:
    """The unit of step times: that of the longest."""
    return time_unit(float(((steps["end_s"] - steps["start_s"]) / steps["repeats"]).max()) if len(steps) else None)


def step_chart(steps: pd.DataFrame, unit: TimeUnit, clock: TimeAxis) -> Chart:
    edges_s = clock.grid(len(steps))
    spans = series.by_replica(steps, "repeats", "prefill_tokens")
    parts = [part.constant((part.end_s - part.start_s) / part.columns["repeats"] * unit.factor) for part in spans]
    busy, total = float(sum((part.end_s - part.start_s).sum() for part in parts)), int(steps["repeats"].sum())
    worst = max(range(len(parts)), key=lambda index: parts[index].first.max())
    top = int(np.argmax(parts[worst].first))
    prompt_tokens = count(int(spans[worst].columns["prefill_tokens"][top]))
    longest = unit.words(float(parts[worst].first[top]) / unit.factor)
    at = clock.words(float(spans[worst].start_s[top]) - clock.start_s)
    sentence = (
        f"A step took {unit.words(busy / total)} on average; the longest, {longest}, began after {at} "
        f"with {prompt_tokens} prompt tokens in it."
    )
    line = series.banded("step", series.busy_means(parts, edges_s))
    note = _thinned(edges_s, len(steps), "spans of equal steps")
    spec = {"kind": "lines", "x": clock.axis(edges_s), "y": axis(unit.name, "step time"), "series": [line]}
    return Chart("step", "Step time", sentence, note, spec)


def kv_stack(steps: pd.DataFrame, edges_s: Floats) -> dict[str, Floats]:
    """Mean KV tokens of each class in each bucket, all replicas together; they add up to the capacity.

    Within a span a class goes straight to its end from where its mean then has it begin; one that so would begin
    below nothing keeps its mean throughout.
    """
    room = {kind: f"kv_{kind}_tokens" for kind in KV_KINDS}
    stack = {kind: np.zeros(len(edges_s) - 1) for kind in KV_KINDS}
    capacity = 0.0
    levels = steps.assign(**{f"mean_{kind}": kv_means(steps, kind) for kind in KV_HELD})
    for spans in series.by_replica(levels, *room.values(), *(f"mean_{kind}" for kind in KV_HELD)):
        capacity += sum(float(spans.columns[column][0]) for column in room.values())
        for kind in KV_HELD:
            end, mean = spans.columns[room[kind]], spans.columns[f"mean_{kind}"]
            straight = 2 * mean >= end
            first, last = np.where(straight, 2 * mean - end, mean), np.where(straight, end, mean)
            stack[kind] += series.sum_of_means([Pieces(spans.start_s, spans.end_s, first, last)], edges_s)
    stack["free"] = np.maximum(capacity - sum(stack[kind] for kind in KV_HELD), 0.0)
    return stack


def kv_chart(kv: Mapping[str, Any], steps: pd.DataFrame, clock: TimeAxis) -> Chart:
    """The KV room of all replicas by what it holds: a stack that adds up to the capacity."""
    edges_s = clock.grid(len(steps))
    stack = kv_stack(steps, edges_s)
    sentence = f"On average {percent(kv['mean_used'])} of the pool held data, {percent(kv['peak_used'])} at the peak"
    if kv["useful"] is not None:
        useful, waste = percent(kv["useful"]), percent(1 - kv["useful"])
        sentence += f"; of what was taken, {useful} held data and {waste} was waste"
    if kv["shared"]["saving_mean"]:
        sentence += f"; sharing saved {percent(kv['shared']['saving_mean'])} of what the data would take without it"
    width = seconds(float(edges_s[1] - edges_s[0]))
    note = f"Each point is the mean over {width} of {count(len(steps))} spans, all replicas together."
    axes = {"x": clock.axis(edges_s), "y": axis("", "KV tokens")}
    spec = {"kind": "stack", **axes, "series": kv_series(stack), "hidden": ["free"] if kv["peak_held"] < 0.3 else []}
    if spec["hidden"]:
        note += " Free room is not drawn at first: press its name."
    return Chart("kv", "KV memory", sentence + ".", note, spec, "wide")


def kv_series(stack: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """The classes of a stack as the script draws them; a class that never held anything is left out."""
    return [
        {"name": KV_TEXTS[kind], "mean": series.compact(np.rint(values)), "kind": kind}
        for kind, values in stack.items()
        if kind in {"used", "free"} or np.nanmax(values, initial=0.0) >= 0.5
    ]
