"""A run as Trace Event JSON for ui.perfetto.dev and chrome://tracing, streamed: memory does not grow with the run.

One process per replica with a track of steps (a span of equal steps is one slice) and counters for waiting,
running and KV tokens; one process of requests with nested asynchronous slices: request, then queued, prefill and
decode. Format: "Trace Event Format" (Chromium project), events X, b, e, C, M and i. Times are microseconds.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.metrics import Ints
from sim.report.charts import Run
from traces.schema import InputError

Window = tuple[float, float]
CHUNK_ROWS = 20_000
REQUESTS_PID, FIRST_REPLICA_PID = 1, 2
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
PHASES = (("queued", "arrival_s", "first_scheduled_s"), ("prefill", "first_scheduled_s", "first_token_s"),
          ("decode", "first_token_s", "finish_s"))  # fmt: skip


def parse_window(text: str) -> Window:
    """`START:END` in seconds on the run's clock; raises InputError for anything else."""
    try:
        start_s, end_s = (float(part) for part in text.split(":"))
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf:
        raise InputError(f"--trace-window: {text!r} is not START:END in seconds, such as 10:20")
    return start_s, end_s


def trace_json(run: Run, *, window: Window | None = None, names: Sequence[str] = ()) -> Iterator[str]:
    """The whole file as pieces of text.

    window: (start_s, end_s) on the run's clock keeps the steps and requests that touch it, each whole.
    names: what the replicas are called, in their order, instead of "replica 0" and so on.
    """
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    first = True
    for lines in _events(run, window, names):
        if lines:
            yield ("" if first else ",\n") + ",\n".join(lines)
            first = False
    yield "\n]}\n"


def _events(run: Run, window: Window | None, names: Sequence[str]) -> Iterator[list[str]]:
    """Every event as a line of JSON, some lines at a time, in time order within each track."""
    requests, steps = _cut(run.requests, run.steps, window)
    yield _name(REQUESTS_PID, "process_name", "requests", 0)
    for replica in sorted(int(value) for value in steps["replica"].unique()):
        pid = FIRST_REPLICA_PID + replica
        rows = steps[steps["replica"] == replica]
        start_ns, end_ns = _nanoseconds(rows["start_s"]), _nanoseconds(rows["end_s"])
        tracks = _tracks(start_ns, end_ns)
        yield _name(pid, "process_name", names[replica] if names else f"replica {replica}", 0)
        for track in range(int(tracks.max()) + 1):
            yield _name(pid, "thread_name", "steps" if track == 0 else f"steps, in flight {track + 1}", track + 1)
        for part in _chunks(len(rows)):
            yield _steps(rows.iloc[part], pid, start_ns[part], end_ns[part], tracks[part])
        yield from _counters(rows, pid, start_ns, end_ns)
    end_s = float(np.nanmax([run.requests["arrival_s"].max(), run.steps["end_s"].max(), 0.0]))
    for part in _chunks(len(requests)):
        yield _requests(requests.iloc[part], end_s)


def _cut(requests: pd.DataFrame, steps: pd.DataFrame, window: Window | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The requests and steps that touch the window; what has no end lasts to the end of the run."""
    requests = requests[requests["arrival_s"].notna()]  # the next turn of an unfinished session never arrived
    if window is None:
        return requests, steps
    start_s, end_s = window
    gone_s = requests["finish_s"].where(requests["status"] != "rejected", requests["arrival_s"]).fillna(np.inf)
    kept = (requests["arrival_s"] <= end_s) & (gone_s >= start_s)
    return requests[kept], steps[(steps["start_s"] <= end_s) & (steps["end_s"] >= start_s)]


def _name(pid: int, kind: str, name: str, tid: int) -> list[str]:
    """The metadata event that names a process or a thread."""
    return [json.dumps({"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}})]


def _chunks(rows: int) -> Iterable[slice]:
    return (slice(begin, begin + CHUNK_ROWS) for begin in range(0, rows, CHUNK_ROWS))


def _nanoseconds(seconds: pd.Series[float]) -> Ints:
    """Whole nanoseconds, so that neighbouring slices meet exactly and never overlap by a rounding."""
    whole: Ints = np.rint(seconds.to_numpy(np.float64) * 1e9).astype(np.int64)
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
    """The rows as tuples of Python numbers."""
    return zip(*(rows[name].tolist() for name in names), strict=True)


def _steps(rows: pd.DataFrame, pid: int, start_ns: Ints, end_ns: Ints, tracks: Ints) -> list[str]:
    """One complete slice per span, named by what its batch does."""
    prefill, decode = rows["prefill_requests"].to_numpy() > 0, rows["decode_requests"].to_numpy() > 0
    names = np.where(prefill & decode, "mixed", np.where(prefill, "prefill", "decode")).tolist()
    args = ",".join(f'"{name}":%d' for name in STEP_ARGS)
    line = (
        f'{{"ph":"X","pid":{pid},"tid":%d,"ts":%.3f,"dur":%.3f,"name":"%s","cat":"step",'
        f'"args":{{{args},"device_ms":%.6g,"host_ms":%.6g}}}}'
    )
    times = zip(
        (tracks + 1).tolist(), (start_ns / 1e3).tolist(), ((end_ns - start_ns) / 1e3).tolist(), names, strict=True
    )
    spent = zip((rows["device_s"] * 1e3).tolist(), (rows["host_s"] * 1e3).tolist(), strict=True)
    return [
        line % (*time, *counts, *ms) for time, counts, ms in zip(times, _columns(rows, STEP_ARGS), spent, strict=True)
    ]


def _counters(rows: pd.DataFrame, pid: int, start_ns: Ints, end_ns: Ints) -> Iterator[list[str]]:
    """Counter events where a value changes: queues as a step begins, KV room as it ends, zero when all ends."""
    for (name, series), at_ns in zip(COUNTERS.items(), (start_ns, end_ns), strict=True):
        values = rows[list(series.values())].to_numpy(np.int64)
        changed = (
            np.concatenate([[True], (values[1:] != values[:-1]).any(axis=1)]) if len(values) else np.zeros(0, bool)
        )
        args = ",".join(f'"{label}":%d' for label in series)
        line = f'{{"ph":"C","pid":{pid},"ts":%.3f,"name":"{name}","args":{{{args}}}}}'
        times, values = np.maximum.accumulate(at_ns[changed]) / 1e3, values[changed]
        for part in _chunks(len(times)):
            pairs = zip(times[part].tolist(), values[part].tolist(), strict=True)
            yield [line % (time, *row) for time, row in pairs]
        if len(end_ns):
            yield [line % (end_ns.max() / 1e3, *([0] * len(series)))]


def _requests(rows: pd.DataFrame, end_s: float) -> list[str]:
    """The nested slices of each request; one that was rejected is an instant, one unfinished lasts to the end."""
    lines: list[str] = []
    stamps = np.stack([_or_end(rows[name], end_s) for name in ("arrival_s", *(phase[2] for phase in PHASES))], axis=1)
    known = np.stack([rows[begin].notna().to_numpy() for _, begin, _ in PHASES], axis=1)
    counts = ("request", "prompt_tokens", "output_tokens", "replica", "preemptions", "prefix_hit_tokens")
    texts = zip(rows["status"].tolist(), rows["reason"].tolist(), strict=True)
    for values, (status, reason), times, phases in zip(
        _columns(rows, counts), texts, (stamps / 1e3).tolist(), known.tolist(), strict=True
    ):
        if status == "rejected":
            lines.append(_rejected(values[0], times[0], reason))
            continue
        lines.append(OPEN % (values[0], times[0], *values, status))
        for (name, _, _), begin, end, reached in zip(PHASES, times, times[1:], phases, strict=False):
            if reached:
                lines.append(PHASE % ("b", values[0], begin, name))
                lines.append(PHASE % ("e", values[0], end, name))
        lines.append(PHASE % ("e", values[0], times[-1], "request"))
    return lines


OPEN = (
    f'{{"ph":"b","pid":{REQUESTS_PID},"tid":0,"id":%d,"ts":%.3f,"cat":"request","name":"request","args":{{"request":%d,'
    '"prompt_tokens":%d,"output_tokens":%d,"replica":%d,"preemptions":%d,"prefix_hit_tokens":%d,"status":"%s"}}'
)
PHASE = f'{{"ph":"%s","pid":{REQUESTS_PID},"tid":0,"id":%d,"ts":%.3f,"cat":"request","name":"%s"}}'


def _or_end(times_s: pd.Series[float], end_s: float) -> Ints:
    return _nanoseconds(times_s.fillna(end_s))


def _rejected(request: int, at_us: float, reason: str) -> str:
    args = {"request": request, "reason": reason}
    event = {
        "ph": "i",
        "pid": REQUESTS_PID,
        "tid": 0,
        "ts": at_us,
        "s": "p",
        "cat": "request",
        "name": "rejected",
        "args": args,
    }
    return json.dumps(event)
