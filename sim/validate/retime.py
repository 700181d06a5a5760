"""A record told with other durations: the same decisions in the same order, and what its requests would have seen.

With the record's own durations it gives the record's own times.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.engine.request import index_of, indices_of
from sim.results import metrics
from sim.results.gaps import TokenGaps
from sim.results.percentiles import Itl, distribution
from sim.results.requests import RequestLog, request_table
from sim.validate.record import Record
from traces.late import pd

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latencies:
    """What the requests of a run saw, as the tables of docs/metrics.md have it."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl

    def measures(self) -> dict[str, dict[str, float | None]]:
        """Latencies by statistic, throughput and duration, with the keys of a summary."""
        duration_s = metrics.duration_s(self.requests, self.steps)
        rates = metrics.throughput(self.requests, duration_s)
        named = {name: distribution(self.requests[name]) for name in ("ttft_s", "tpot_s")}
        more = {name: distribution(self.requests[name]) for name in ("e2e_s", "queue_s")}
        itl = {"itl_s": distribution(*self.itl)}
        return {**named, **itl, **more, "throughput": rates, "duration_s": {"all": duration_s}}


def as_recorded(record: Record, block_tokens: int) -> Latencies:
    return retimed(record, np.array([outcome.seconds[0] for outcome in record.results]), block_tokens)


def retimed(record: Record, seconds: Floats, block_tokens: int) -> Latencies:
    """The record's decisions where step k takes `seconds[k]`.

    A step starts when the one before has ended; where the run was idle before it, as long after the last arrival that
    it admits as it did. A request that came in answer to the end of a step (a closed loop, the next turn of a session)
    comes as long after that step's end as it did.
    """
    arrivals = _Arrivals(record)
    start_s, end_s = np.empty(len(seconds)), np.empty(len(seconds))
    was_start_s, was_end_s = (record.steps[name].to_numpy(np.float64) for name in ("start_s", "end_s"))
    log = RequestLog(len(record.requests))
    admitted: set[int] = set()
    now_s = 0.0
    for at, decision in enumerate(record.decisions):
        new = [(id, past) for id, _, past in decision.entries if id not in admitted and id < len(record.requests)]
        idle = was_start_s[at] > (was_end_s[at - 1] if at else 0.0)
        if new:
            came_s = max(arrivals.at_s(id, end_s) for id, _ in new)
            waited_s = float(was_start_s[at] - max(record.arrival_s[id] for id, _ in new)) if idle else 0.0
            now_s = max(now_s, came_s + waited_s)
        elif idle:
            now_s = max(now_s, float(was_start_s[at]))
        start_s[at] = now_s
        for id, past in new:
            admitted.add(id)
            log.arrival_s[id], log.first_scheduled_s[id] = arrivals.at_s(id, end_s), now_s
            log.prefix_hit_tokens[id] = past
        now_s = end_s[at] = now_s + seconds[at]
        _note(log, decision, now_s)
    for came in np.flatnonzero(~np.isnan(record.arrival_s)).tolist():
        log.arrival_s[came] = arrivals.at_s(came, end_s)
    return _tables(record, log, start_s, end_s, block_tokens)


class _Arrivals:
    """When each request comes in the retimed run."""

    def __init__(self, record: Record) -> None:
        self._was_s = record.arrival_s
        self._planned_s = record.requests["arrival_s"].to_numpy(np.float64)
        self._was_end_s: list[float] = record.step_end_s().tolist()

    def at_s(self, id: int, end_s: Floats) -> float:
        """`end_s` holds the new ends of the steps so far."""
        was_s = float(self._was_s[id])
        if was_s == self._planned_s[id]:
            return was_s
        step = bisect_right(self._was_end_s, was_s) - 1
        return was_s if step < 0 else float(end_s[step]) + (was_s - self._was_end_s[step])


def _note(log: RequestLog, decision: Any, end_s: float) -> None:
    for id in decision.evicted:
        log.preemptions[index_of(id)] += 1
    for id in decision.first:
        if id < len(log.first_token_s):
            log.first_token_s[id] = end_s
    for id in decision.finished:
        log.finish_s[index_of(id)] = end_s  # the last of its sequences says when a request has ended


def _tables(record: Record, log: RequestLog, start_s: Floats, end_s: Floats, block_tokens: int) -> Latencies:
    count, gaps = len(record.requests), TokenGaps([record.token_clock()], [end_s])
    sequences = indices_of(np.unique(record.runs[:, 0]))
    for sequence, samples in zip(
        *(column.tolist() for column in np.unique(sequences, return_counts=True)), strict=True
    ):
        log.samples[sequence] = samples
    sent = np.ones(count, bool)
    requests = request_table(record.requests, sent, {}, log, gaps.longest_s(count), [block_tokens])
    return Latencies(requests.frame(), record.steps.assign(start_s=start_s, end_s=end_s), gaps.itl())
