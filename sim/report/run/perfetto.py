"""A run as Trace Event JSON for ui.perfetto.dev and chrome://tracing, streamed: memory does not grow with the run.

One process per replica with a track of steps (a span of equal steps is one slice, with the terms of its middle step)
and counters for waiting, running and KV tokens; one process of requests with nested asynchronous slices: request, then
queued, prefill and decode, and in the last two each time it was preempted. Format: "Trace Event Format" (Chromium
project), events X, b, e, C, M and i. Times are microseconds.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.report.run.charts import PHASES
from sim.results.percentiles import Floats, Ints
from sim.results.result import Run
from sim.results.terms import FleetTerms, StepTerms, terms_of
from traces.late import pd
from traces.schema import InputError

Window = tuple[float, float]
CHUNK_ROWS = 20_000
# Pricing a step again takes some 30 us: of more spans than this, an even choice has its terms.
MOST_EXPLAINED = 20_000
REQUESTS_PID, FIRST_REPLICA_PID = 1, 2
LOAD_COLUMNS = ("replica", "time_s", "load_s", "adapter", "disk", "evicted")
LOADS_TRACK = 1_000
"""Behind those of the steps, of which there is one for each batch in flight."""
NEVER_NS = np.iinfo(np.int64).max
STEP_ARGS = (
    "step", "repeats", "prefill_requests", "prefill_tokens", "prefill_past_tokens", "decode_requests",
    "decode_context_tokens", "padding_tokens", "preempted",
)  # fmt: skip
# Each counter track with its series; a new value is written only when it differs from the one before.
COUNTERS = {
    "requests": {"waiting": "waiting", "running": "running"},
    "KV tokens": {"used": "kv_used_tokens", "shared": "kv_shared_tokens", "reserved": "kv_reserved_tokens",
                  "internal waste": "kv_internal_tokens", "external waste": "kv_external_tokens"},
}  # fmt: skip


def parse_window(text: str) -> Window:
    """`START:END` in seconds on the run's clock; raises InputError for anything else."""
    try:
        start_s, end_s = (float(part) for part in text.split(":"))
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf:
        raise InputError(f"--trace-window: {text!r} is not START:END in seconds, such as 10:20")
    return start_s, end_s


def trace_json(run: Run, *, window: Window | None = None, names: Sequence[str] = (), mark: str = "") -> Iterator[str]:
    """The whole file as pieces of text.

    window: (start_s, end_s) on the run's clock keeps the steps and requests that touch it, each whole.
    names: what the replicas are called, in their order, instead of "replica 0" and so on. mark: the id of the run.
    """
    requests, steps = _cut(run.requests, run.steps, window)
    explained = Explained.of(terms_of(run), steps)
    named = {"run_id": mark} if mark else {}
    other = {**named, "steps": "a slice is a span of equal steps; args hold its sums", "terms": explained.note}
    yield f'{{"displayTimeUnit":"ms","otherData":{json.dumps(other)},"traceEvents":[\n'
    first = True
    for lines in _events(run, requests, steps, explained, names, window):
        if lines:
            yield ("" if first else ",\n") + ",\n".join(lines)
            first = False
    yield "\n]}\n"


@dataclass(frozen=True, slots=True)
class Explained:
    """Which rows of the steps table have their terms told, and what the file says about it."""

    terms: StepTerms | FleetTerms | None
    places: Mapping[int, int]
    """By row its place among those that can be explained."""
    note: str

    @classmethod
    def of(cls, terms: StepTerms | FleetTerms | None, rows: Ints) -> Explained:
        if terms is None:
            return cls(None, {}, "not known: the steps were measured as a whole")
        places = np.flatnonzero(np.isin(terms.rows, rows))
        every = -(-len(places) // MOST_EXPLAINED) or 1
        chosen = places[::every]
        note = "all spans have them, in ms of the middle step"
        if len(chosen) < len(rows):
            note = f"{len(chosen)} of {len(rows)} spans have them, evenly chosen; --trace-window cuts to fewer spans"
        return cls(terms, dict(zip(terms.rows[chosen].tolist(), chosen.tolist(), strict=True)), note)

    def text(self, row: int) -> str:
        """The further arguments of a span's slice; nothing where it was not chosen."""
        place = self.places.get(row)
        if place is None or self.terms is None:
            return ""
        parts = ",".join(f"{json.dumps(name)}:{1e3 * value:.4g}" for name, value in self.terms.of(place).items())
        return f',"terms_ms":{{{parts}}}'


def _events(
    run: Run, requests: Ints, steps: Ints, explained: Explained, names: Sequence[str], window: Window | None
) -> Iterator[list[str]]:
    """Every event as a line of JSON, some lines at a time, in time order within each track."""
    yield _name(REQUESTS_PID, "process_name", "requests", 0)
    replicas = run.steps["replica"].to_numpy()[steps]
    for replica in np.unique(replicas).tolist():
        pid = FIRST_REPLICA_PID + replica
        rows = steps[replicas == replica]
        start_ns, end_ns = (_nanoseconds(run.steps[name].to_numpy(np.float64)[rows]) for name in ("start_s", "end_s"))
        tracks = _tracks(start_ns, end_ns)
        yield _name(pid, "process_name", names[replica] if names else f"replica {replica}", 0)
        for track in range(int(tracks.max()) + 1):
            yield _name(pid, "thread_name", "steps" if track == 0 else f"steps, in flight {track + 1}", track + 1)
        for part in _chunks(len(rows)):
            more = [explained.text(row) for row in rows[part].tolist()]
            yield _steps(run.steps.iloc[rows[part]], pid, start_ns[part], end_ns[part], tracks[part], more)
        for name, series in COUNTERS.items():
            yield from _counter(run.steps, rows, pid, name, series, end_ns if name == "KV tokens" else start_ns)
            yield [_counter_line(pid, name, series) % (end_ns.max() / 1e3, *([0] * len(series)))]
    yield from _fleet(getattr(run, "events", None), np.unique(replicas).tolist(), names)
    yield from _loads(getattr(run, "adapter_loads", None), window)
    end_s = float(np.nanmax([run.requests["arrival_s"].max(), run.steps["end_s"].max(), 0.0]))
    breaks = Breaks.of(getattr(run, "preempted", None))
    for part in _chunks(len(requests)):
        yield _requests(run.requests.iloc[requests[part]], end_s, breaks)


def _fleet(events: pd.DataFrame | None, named: Sequence[int], names: Sequence[str]) -> Iterator[list[str]]:
    """What became of replicas, as instants of each; a replica that never had a step is named here."""
    if events is None:
        return
    for replica in sorted(set(events["replica"].tolist()) - set(named)):
        name = names[replica] if names else f"replica {replica}"
        yield _name(FIRST_REPLICA_PID + replica, "process_name", name, 0)
    for time_s, replica, event in zip(events["time_s"], events["replica"], events["event"], strict=True):
        at = {"pid": FIRST_REPLICA_PID + int(replica), "tid": 0, "ts": round(time_s * 1e6, 3)}
        yield [json.dumps({"ph": "i", **at, "s": "p", "cat": "replica", "name": event})]


def _loads(loads: pd.DataFrame | None, window: Window | None) -> Iterator[list[str]]:
    """Each adapter on its way into a slot, on a track of its replica's."""
    if loads is None:
        return
    start_s, end_s = window or (-math.inf, math.inf)
    for replica in np.unique(loads["replica"].to_numpy()).tolist():
        yield _name(FIRST_REPLICA_PID + replica, "thread_name", "adapter loads", LOADS_TRACK)
    for replica, time_s, load_s, adapter, disk, evicted in zip(*(loads[name] for name in LOAD_COLUMNS), strict=True):
        if start_s <= time_s <= end_s:
            at = {"pid": FIRST_REPLICA_PID + int(replica), "tid": LOADS_TRACK, "ts": round(time_s * 1e6, 3)}
            told = {"from": "disk" if disk else "host", "evicted": evicted}
            yield [
                json.dumps({"ph": "X", **at, "dur": round(load_s * 1e6, 3), "name": f"load {adapter}", "args": told})
            ]


def _cut(requests: pd.DataFrame, steps: pd.DataFrame, window: Window | None) -> tuple[Ints, Ints]:
    """The rows of the requests and steps that touch the window; what has no end lasts to the end of the run."""
    arrival_s = requests["arrival_s"].to_numpy(np.float64)
    start_s, end_s = window or (-math.inf, math.inf)
    gone_s = requests["finish_s"].to_numpy(np.float64)
    gone_s = np.where((requests["status"] == "rejected").to_numpy(bool), arrival_s, gone_s)
    gone_s = np.where(np.isnan(gone_s), np.inf, gone_s)
    # The next turn of an unfinished session never arrived: no comparison holds for it.
    touching = np.flatnonzero((arrival_s <= end_s) & (gone_s >= start_s))
    begin_s, done_s = (steps[name].to_numpy(np.float64) for name in ("start_s", "end_s"))
    return touching, np.flatnonzero((begin_s <= end_s) & (done_s >= start_s))


def _name(pid: int, kind: str, name: str, tid: int) -> list[str]:
    return [json.dumps({"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}})]


def _chunks(rows: int) -> Iterable[slice]:
    return (slice(begin, begin + CHUNK_ROWS) for begin in range(0, rows, CHUNK_ROWS))


def _nanoseconds(seconds: Floats) -> Ints:
    """Whole nanoseconds, so that neighbouring slices meet exactly and never overlap by a rounding."""
    whole: Ints = np.rint(seconds * 1e9).astype(np.int64)
    return whole


def _tracks(start_ns: Ints, end_ns: Ints) -> Ints:
    """A track for each slice: 0 where no two overlap, more where several batches are in flight at once."""
    if (start_ns[1:] >= end_ns[:-1]).all():
        return np.zeros(len(start_ns), dtype=np.int64)
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    tracks = np.empty(len(start_ns), dtype=np.int64)
    for row, (start, end) in enumerate(zip(start_ns.tolist(), end_ns.tolist(), strict=True)):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        track = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, track))
        tracks[row] = track
    return tracks


def _columns(rows: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].tolist() for name in names), strict=True)


def _steps(rows: pd.DataFrame, pid: int, start_ns: Ints, end_ns: Ints, tracks: Ints, more: Sequence[str]) -> list[str]:
    """One complete slice per span, named by what its batch does."""
    prefill, decode = rows["prefill_requests"].to_numpy() > 0, rows["decode_requests"].to_numpy() > 0
    names = np.where(prefill & decode, "mixed", np.where(prefill, "prefill", "decode")).tolist()
    args = ",".join(f'"{name}":%d' for name in STEP_ARGS)
    line = (
        f'{{"ph":"X","pid":{pid},"tid":%d,"ts":%.3f,"dur":%.3f,"name":"%s","cat":"step",'
        f'"args":{{{args},"device_ms":%.6g,"host_ms":%.6g%s}}}}'
    )
    times = zip(
        (tracks + 1).tolist(), (start_ns / 1e3).tolist(), ((end_ns - start_ns) / 1e3).tolist(), names, strict=True
    )
    spent = zip((rows["device_s"] * 1e3).tolist(), (rows["host_s"] * 1e3).tolist(), more, strict=True)
    return [
        line % (*time, *counts, *ms) for time, counts, ms in zip(times, _columns(rows, STEP_ARGS), spent, strict=True)
    ]


def _counter_line(pid: int, name: str, series: Mapping[str, str]) -> str:
    args = ",".join(f'"{label}":%d' for label in series)
    return f'{{"ph":"C","pid":{pid},"ts":%.3f,"name":"{name}","args":{{{args}}}}}'


def _counter(
    steps: pd.DataFrame, rows: Ints, pid: int, name: str, series: Mapping[str, str], at_ns: Ints
) -> Iterator[list[str]]:
    """Counter events where a value changes: queues as a step begins, KV room as it ends."""
    line, columns = _counter_line(pid, name, series), list(series.values())
    last: Ints | None = None
    latest_ns = 0
    for part in _chunks(len(rows)):
        values = np.stack([steps[column].to_numpy()[rows[part]] for column in columns], axis=1)
        before = np.concatenate([values[:1] - 1 if last is None else last[None], values[:-1]])
        changed = (values != before).any(axis=1)
        times_ns = np.maximum.accumulate(np.maximum(at_ns[part], latest_ns))
        last, latest_ns = values[-1], int(times_ns[-1])
        pairs = zip((times_ns[changed] / 1e3).tolist(), values[changed].tolist(), strict=True)
        yield [line % (time, *row) for time, row in pairs]


@dataclass(frozen=True, slots=True)
class Breaks:
    """The preemptions of each request's first sequence in whole nanoseconds, sorted by request and then by time."""

    request: Ints
    start_ns: Ints
    end_ns: Ints

    @classmethod
    def of(cls, preempted: pd.DataFrame | None) -> Breaks:
        if preempted is None or not len(preempted):
            return cls(*(np.empty(0, np.int64) for _ in range(3)))
        first = preempted[preempted["sequence"] == 0].sort_values(["request", "start_s"], kind="stable")
        start_s, end_s = first["start_s"].to_numpy(np.float64), first["end_s"].to_numpy(np.float64)
        end_ns = np.where(np.isnan(end_s), NEVER_NS, _nanoseconds(np.nan_to_num(end_s)))
        return cls(first["request"].to_numpy(np.int64), _nanoseconds(start_s), end_ns)

    def within(self, request: int, begin_ns: int, end_ns: int, *, done: bool) -> Iterator[tuple[int, int]]:
        """(start, end) of those of a request that fall into a phase, cut to it.

        One that never ended lasts, but for a request that is `done`: that lost its memory when its last step was
        planned already, and waited for nothing.
        """
        low, high = np.searchsorted(self.request, [request, request + 1]).tolist()
        for place in range(low, high):
            start, end = max(int(self.start_ns[place]), begin_ns), min(int(self.end_ns[place]), end_ns)
            if start < end and not (done and self.end_ns[place] == NEVER_NS):
                yield start, end


def _requests(rows: pd.DataFrame, end_s: float, breaks: Breaks) -> list[str]:
    """The nested slices of each request; one that was rejected is an instant, one unfinished lasts to the end."""
    lines: list[str] = []
    edges = ("arrival_s", *(end for _, end in PHASES.values()))
    stamps = np.stack([_nanoseconds(rows[name].fillna(end_s).to_numpy(np.float64)) for name in edges], axis=1)
    known = np.stack([rows[begin].notna().to_numpy() for begin, _ in PHASES.values()], axis=1)
    counts = ("request", "prompt_tokens", "output_tokens", "replica", "preemptions", "prefix_hit_tokens")
    texts = zip(rows["status"].tolist(), rows["reason"].tolist(), strict=True)
    for values, (status, reason), times, phases in zip(
        _columns(rows, counts), texts, stamps.tolist(), known.tolist(), strict=True
    ):
        request = values[0]
        if status == "rejected":
            lines.append(_rejected(request, times[0] / 1e3, reason))
            continue
        lines.append(OPEN % (request, times[0] / 1e3, *values, status))
        for name, begin, end, reached in zip(PHASES, times, times[1:], phases, strict=False):
            if not reached:
                continue
            lines.append(PHASE % ("b", request, begin / 1e3, name))
            if values[4]:
                for out_ns, back_ns in breaks.within(request, begin, end, done=status == "completed"):
                    lines.append(PHASE % ("b", request, out_ns / 1e3, "preempted"))
                    lines.append(PHASE % ("e", request, back_ns / 1e3, "preempted"))
            lines.append(PHASE % ("e", request, end / 1e3, name))
        lines.append(PHASE % ("e", request, times[-1] / 1e3, "request"))
    return lines


OPEN = (
    f'{{"ph":"b","pid":{REQUESTS_PID},"tid":0,"id":%d,"ts":%.3f,"cat":"request","name":"request","args":{{"request":%d,'
    '"prompt_tokens":%d,"output_tokens":%d,"replica":%d,"preemptions":%d,"prefix_hit_tokens":%d,"status":"%s"}}'
)
PHASE = f'{{"ph":"%s","pid":{REQUESTS_PID},"tid":0,"id":%d,"ts":%.3f,"cat":"request","name":"%s"}}'


def _rejected(request: int, at_us: float, reason: str) -> str:
    event = {"ph": "i", "pid": REQUESTS_PID, "tid": 0, "ts": at_us, "s": "p", "cat": "request", "name": "rejected"}
    return json.dumps({**event, "args": {"request": request, "reason": reason}})
