"""Writes down what becomes of each request, as compact columns: one row per request. It knows no step."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from struct import Struct

import numpy as np

from sim.engine.request import Request
from sim.results.clients import ClientLog
from traces.table import Columns, ColumnTable, Folded, folded, smallest

_TIMES, _COUNTS = (
    ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s"),
    ("replica", "preemptions", "prefix_hit_tokens", "output_tokens"),
)
_ROW = np.dtype([*((name, "f8") for name in _TIMES), *((name, "i4") for name in _COUNTS)])
_ROW_BYTES = _ROW.itemsize
_pack_row = Struct("=4d4i").pack_into


class RequestLog:
    """Time stamps and counts of each finished request, by request index; NaN where it never finished."""

    def __init__(self, requests: int) -> None:
        self._packed = bytearray(requests * _ROW_BYTES)
        rows = np.frombuffer(self._packed, _ROW)
        self.arrival_s, self.first_scheduled_s, self.first_token_s, self.finish_s = (rows[name] for name in _TIMES)
        for times_s in (self.arrival_s, self.first_scheduled_s, self.first_token_s, self.finish_s):
            times_s[:] = np.nan
        self.replica, self.preemptions, self.prefix_hit_tokens, self.output_tokens = (rows[name] for name in _COUNTS)
        self.samples = array("i", np.ones(requests, "i4").tobytes())
        self.asked_s: dict[int, float] = {}
        """By request that waited before it was sent to a replica, or was sent again: when its client sent it first."""

    def finished(self, req: Request, replica: int) -> None:
        _pack_row(
            self._packed,
            req.id * _ROW_BYTES,
            req.arrival_s,
            req.first_scheduled_s,
            req.first_token_s,
            req.finish_s,
            replica,
            req.preemptions,
            req.prefix_hit_tokens,
            req.output_tokens,
        )
        if req.group is not None:
            self.samples[req.id] = req.group.size


def request_table(
    trace: Columns,
    sent: np.ndarray,
    rejected: Mapping[int, str],
    log: RequestLog,
    longest_gap_s: np.ndarray,
    block_tokens: Sequence[int],
    clients: ClientLog | None = None,
) -> ColumnTable:
    """One row per request of the trace, in its order; `sent` marks those that were sent and stand in the log.

    `block_tokens` is of each replica; `clients` is what they saw behind a front end; without it they see what the
    engine does, when it does it.
    """

    def spread(values: array[float] | array[int] | np.ndarray, empty: float) -> np.ndarray:
        return _spread(np.asarray(values), sent, empty)

    def times(of: RequestLog | ClientLog, asked_s: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        arrivals_s: np.ndarray | array[float] = of.arrival_s
        if asked_s:
            arrivals_s = np.array(arrivals_s)
            arrivals_s[list(asked_s)] = list(asked_s.values())
        arrival_s = spread(arrivals_s, np.nan)
        arrival_s = np.where(np.isnan(arrival_s), np.asarray(trace["arrival_s"]), arrival_s)
        return arrival_s, spread(of.first_token_s, np.nan), spread(of.finish_s, np.nan)

    engine_s = times(log, {})
    alike = clients is None and not log.asked_s
    arrival_s, first_token_s, finish_s = engine_s if alike else times(clients or log, log.asked_s)
    first_scheduled_s = spread(log.first_scheduled_s, np.nan)
    # An answer may have ended before the length that the trace gives it (end of sequence).
    made = spread(log.output_tokens, 0).astype("i8")
    output = np.where(made > 0, made, np.asarray(trace["output_tokens"]))
    status, reason = _ends(finish_s, rejected)
    prompt = np.asarray(trace["prompt_tokens"])
    hit_tokens = spread(log.prefix_hit_tokens, 0).astype("i8")
    replica = spread(log.replica, -1).astype("i8")
    size = np.asarray(block_tokens)[replica]
    engine_latencies = _latencies(*engine_s, output)
    latencies = engine_latencies if alike else _latencies(arrival_s, first_token_s, finish_s, output)
    columns: dict[str, np.ndarray] = {
        "request": np.arange(len(trace)),
        "arrival_s": arrival_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "status": status,
        "reason": reason,
        "replica": replica,
        "first_scheduled_s": first_scheduled_s,
        "first_token_s": first_token_s,
        "finish_s": finish_s,
        "queue_s": first_scheduled_s - engine_s[0],
        **latencies,
        "engine_arrival_s": engine_s[0],
        **{f"engine_{name}": values for name, values in engine_latencies.items()},
        "max_itl_s": spread(longest_gap_s, np.nan),
        "preemptions": spread(log.preemptions, 0).astype("i8"),
        "prefix_hit_tokens": hit_tokens,
        "prefix_hit_blocks": hit_tokens // size,
        "prefix_blocks": (prompt - 1) // size,
        "samples": spread(log.samples, 1).astype("i8"),
    }
    table: dict[str, np.ndarray | Folded] = {name: _small(values) for name, values in columns.items()}
    for name in ("session", "turn", "priority", "adapter", "source_row"):
        if name in trace:
            table[name] = np.asarray(trace[name], object if name == "session" else None)
    return ColumnTable(table)


def _small(values: np.ndarray) -> np.ndarray | Folded:
    return folded([smallest(values)], "i8") if values.dtype == np.int64 else values


def _spread(values: np.ndarray, sent: np.ndarray, empty: float) -> np.ndarray:
    """The values of the requests that were sent as values of all requests, `empty` for the others."""
    if len(values) == len(sent):
        return np.ascontiguousarray(values)
    full = np.full(len(sent), empty, values.dtype)
    full[sent] = values
    return full


def _latencies(
    arrival_s: np.ndarray, first_token_s: np.ndarray, finish_s: np.ndarray, output: np.ndarray
) -> dict[str, np.ndarray]:
    """What lies between the time stamps of the requests, by column."""
    return {
        "ttft_s": first_token_s - arrival_s,
        "tpot_s": np.where(output > 1, (finish_s - first_token_s) / np.maximum(output - 1, 1), np.nan),
        "e2e_s": finish_s - arrival_s,
    }


def _ends(finish_s: np.ndarray, rejected: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """How each request ended, and why it was rejected."""
    status = np.where(np.isnan(finish_s), "unfinished", "completed").astype(object)
    status[list(rejected)] = "rejected"
    reason = np.full(len(finish_s), "", object)
    for index, text in rejected.items():
        reason[index] = text
    return status, reason
