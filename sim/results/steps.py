"""Writes down what the steps of a run do, as compact columns: one row per span, and the step clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from struct import Struct
from typing import Any

import numpy as np
from mypy_extensions import mypyc_attr

from sim.engine.batch import DECODES_ONLY, Batch, Courses, Shape
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.memory import Drift
from sim.engine.request import NEVER_S, SAMPLE_BITS, indices_of
from sim.results.growing import Growing
from sim.results.kv import KV_MEAN_COLUMNS
from sim.results.spans import RecordedSpans
from traces.table import ColumnTable, Folded, folded, smallest

_SAMPLES = 1 << 16

STEP_COLUMNS: dict[str, str] = {
    "replica": "i4",
    "step": "i8",
    "repeats": "i4",
    "start_s": "f8",
    "end_s": "f8",
    "prefill_requests": "i4",
    "prefill_tokens": "i4",
    "prefill_past_tokens": "i8",
    "decode_requests": "i4",
    "decode_context_tokens": "i8",
    "draft_tokens": "i4",
    "padding_tokens": "i4",
    "device_s": "f8",
    "host_s": "f8",
    "running": "i4",
    "waiting": "i4",
    "preempted": "i4",
    "swapped_bytes": "i8",
    "copied_bytes": "i8",
    "kv_used_tokens": "i4",
    "kv_shared_tokens": "i4",
    "kv_reserved_tokens": "i4",
    "kv_internal_tokens": "i4",
    "kv_external_tokens": "i4",
    "kv_free_tokens": "i4",
    "kv_saved_tokens": "i8",
    "kv_used_mean_tokens": "f8",
    "kv_reserved_mean_tokens": "f8",
    "kv_internal_mean_tokens": "f8",
    "kv_free_mean_tokens": "f8",
}
EARLIER_STEP_COLUMNS = tuple(name for name in STEP_COLUMNS if name not in KV_MEAN_COLUMNS)
"""Those that tables of earlier versions have (`sim.results.kv.with_kv_means` adds the others)."""
# While it runs, in the place of each mean, the drift of its class (`sim.engine.memory.Drift`).
_PACKED = {name: "i8" if name in KV_MEAN_COLUMNS else kind for name, kind in STEP_COLUMNS.items()}
_ROW = np.dtype([(name, f"<{kind}") for name, kind in _PACKED.items()])
_CHUNK_BYTES = 1 << 23
STILL = Drift()
_pack_row = Struct("<" + "".join({"i4": "i", "i8": "q", "f8": "d"}[kind] for kind in _PACKED.values())).pack
_pack_span = Struct("4q").pack


@cache
def _packing(count: int) -> Callable[..., bytes]:
    """Packs so many floats as an array has them, which parses each by a format string if it is given a list."""
    return Struct(f"{count}d").pack


@mypyc_attr(allow_interpreted_subclasses=True)
class StepLog(Observer):
    """One row per span, and the step clock: the end of every single step, for each replica."""

    def __init__(self, replicas: int) -> None:
        self._ends_s = [array("d") for _ in range(replicas)]
        """Of each replica, the ends of steps since the last chunk."""
        self._earlier_s = [Growing() for _ in range(replicas)]
        self._rows = bytearray()
        self._pieces: dict[str, list[np.ndarray]] = {name: [] for name in _PACKED}
        """Of those that were packed before, each column in its smallest types."""
        self._unlike = _Unlike()
        self._seen = 0
        self._stride = 1
        self.sample = RecordedSpans()
        """Every span, or every so many-th: at most `_SAMPLES`, evenly over the run."""
        self._packed, self._others = self.sample.packed, self.sample.others
        self._evicted: dict[int, int] = {}
        self._preempted_id, self._preempted_s, self._resumed_s = array("q"), array("d"), array("d")
        self._preempted_at = array("q")
        """The replica."""

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        if self._evicted:
            for entry in batch.entries:
                place = self._evicted.pop(entry.request.id, None)
                if place is not None:
                    self._resumed_s[place] = batch.planned_s
        if batch.evicted:
            for req in batch.evicted:
                self._evicted[req.id] = len(self._preempted_id)
                self._preempted_id.append(req.id)
                self._preempted_s.append(batch.planned_s)
                self._preempted_at.append(replica.index)
                self._resumed_s.append(NEVER_S)

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        flight.usage = replica.engine.usage()

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        batch, times_s = flight.batch, flight.times_s
        device_each_s, host_s = flight.outcome.device_s, flight.outcome.host_s
        repeats = batch.repeats
        if batch.courses is not None and repeats > 1:
            self._follow(replica.index, flight, batch.courses)
            return
        prefills, decodes, context, copied_bytes, swapped_bytes, _, _, verifies = batch.shape[:8]
        new = past = drafts = 0
        if prefills:
            for tokens, before in prefills:
                new += tokens
                past += before
        if verifies:
            for tokens, rows, before, _ in verifies:
                decodes += rows
                drafts += (tokens - 1) * rows
                context += tokens * rows + before
        used, shared, reserved, internal, external, free, saved = flight.usage
        used_drift, reserved_drift, internal_drift, free_drift = batch.drift or STILL
        output_s = flight.output_s
        if repeats == 1:
            device_s = device_each_s[0]
            self._ends_s[replica.index].append(output_s)
        else:
            device_s = sum(device_each_s[:repeats])
            self._ends_s[replica.index].frombytes(_packing(repeats)(*flight.ends_s()))
        if self._seen % self._stride:
            self._seen += 1
        else:
            self._keep(batch.shape, repeats)
        self._rows += _pack_row(
            replica.index,
            batch.first_step,
            repeats,
            times_s[0],
            output_s,
            len(prefills),
            new,
            past,
            decodes,
            context,
            drafts,
            batch.padding_tokens,
            device_s,
            host_s * repeats,
            batch.running,
            batch.waiting,
            len(batch.evicted),
            swapped_bytes,
            copied_bytes,
            used,
            shared,
            reserved,
            internal,
            external,
            free,
            saved,
            used_drift,
            reserved_drift,
            internal_drift,
            free_drift,
        )
        if len(self._rows) >= _CHUNK_BYTES:
            self._next_chunk()

    def _follow(self, index: int, flight: Flight, courses: Courses) -> None:
        """A row for a span whose repeats are unlike, from which `_Unlike` makes one for each."""
        batch, times_s, outcome = flight.batch, flight.times_s, flight.outcome
        repeats = batch.repeats
        ((width, rows, _, _),) = courses.first.verifies
        ends_s = flight.ends_s()
        self._ends_s[index].fromlist(ends_s)
        self._keep_steps(courses, repeats)
        self._unlike.add(len(self._rows) // _ROW.itemsize, courses, times_s, ends_s, outcome.device_s)
        self._rows += _pack_row(
            index,
            batch.first_step,
            repeats,
            times_s[0],
            ends_s[0],
            0,
            0,
            0,
            rows,
            rows * width,
            rows * (width - 1),
            0,
            0.0,
            outcome.host_s,
            batch.running,
            batch.waiting,
            0,
            0,
            0,
            *flight.usage,
            *STILL,
        )
        if len(self._rows) >= _CHUNK_BYTES:
            self._next_chunk()

    @property
    def step_end_s(self) -> list[np.ndarray]:
        """Of each replica, the end of each of its steps so far."""
        self._keep_ends()
        return [ends_s.whole() for ends_s in self._earlier_s]

    def _keep_ends(self) -> None:
        for earlier_s, ends_s in zip(self._earlier_s, self._ends_s, strict=True):
            earlier_s.add(np.array(ends_s))
            del ends_s[:]

    def _next_chunk(self) -> None:
        self._keep_ends()
        rows = self._unlike.told_apart(np.frombuffer(self._rows, _ROW))
        self._rows, self._unlike = bytearray(), _Unlike()
        for name, pieces in self._pieces.items():
            pieces.append(smallest(rows[name]))

    def _keep(self, shape: Shape, repeats: int) -> None:
        """Sample the next row's shape, if its turn has come."""
        seen = self._seen
        self._seen = seen + 1
        if seen % self._stride:
            return
        if len(self._packed) == 4 * _SAMPLES:
            self.sample.thin()
            self._stride *= 2
            if seen % self._stride:
                return
        # Told to be a plain tuple, since compiled code would take one apart whose fields it knows.
        fields: tuple[Any, ...] = shape
        prefills, decodes, context = fields[:3]
        if not prefills and fields[3:] == DECODES_ONLY:
            self._packed.frombytes(_pack_span(seen, repeats, decodes, context))
        else:
            self._packed.frombytes(_pack_span(seen, repeats, -1, len(self._others)))
            self._others.append(shape)

    def _keep_steps(self, courses: Courses, repeats: int) -> None:
        """Sample those of the next rows' shapes whose turn has come, of so many steps."""
        begin = self._seen
        end = begin + repeats
        self._seen = end
        at = begin + -begin % self._stride
        while at < end:
            if len(self._packed) == 4 * _SAMPLES:
                self.sample.thin()
                self._stride *= 2
                at += -at % self._stride
                continue
            stride = self._stride
            # Four numbers each, all of one kind at a time: a list for each step would cost more than the step.
            rows = range(at, end, stride)[: _SAMPLES - len(self._packed) // 4]
            kept = [0] * (4 * len(rows))
            kept[::4] = rows
            kept[1::4] = [-len(self._others)] * len(rows)
            here = slice(at - begin, rows[-1] - begin + 1, stride)
            kept[2::4] = courses.pasts[here]
            if courses.withins:
                kept[3::4] = courses.withins[here]
            self._others.append(courses.first)
            self._packed.fromlist(kept)
            at = rows[-1] + stride

    def preemptions(self, sent: np.ndarray) -> ColumnTable:
        """One row per preemption: `request`, `sequence` (0 is the first), `start_s`, and `end_s` when it resumed.

        In order of time, of one moment by replica, and there as they were decided.
        `end_s` is NaN where it never did: it had its last step planned already, or the run ended first. Of a beam
        search only the first beam is told. sent: which requests of the
        trace were sent, as for `request_table`.
        """
        ids = np.frombuffer(self._preempted_id, np.int64)
        order = np.lexsort((np.frombuffer(self._preempted_at, np.int64), np.frombuffer(self._preempted_s)))
        return ColumnTable(
            {
                "request": np.flatnonzero(sent)[indices_of(ids)][order],
                "sequence": (ids >> SAMPLE_BITS)[order],
                "start_s": np.frombuffer(self._preempted_s)[order],
                "end_s": np.frombuffer(self._resumed_s)[order],
            }
        )

    def table(self) -> ColumnTable:
        """The rows so far, in order of commitment; the log is empty afterwards, so that they are not held twice."""
        self._next_chunk()
        pieces, self._pieces = self._pieces, {name: [] for name in _PACKED}
        rows = sum(map(len, pieces["step"]))
        columns = {name: folded(pieces[name], kind) for name, kind in STEP_COLUMNS.items()}
        for name, kind in KV_MEAN_COLUMNS.items():
            unfold = partial(_means, pieces[f"kv_{kind}_tokens"], pieces[name], pieces["repeats"])
            columns[name] = Folded(rows, unfold)
        return ColumnTable(columns)


def _means(ends: Sequence[np.ndarray], drifts: Sequence[np.ndarray], repeats: Sequence[np.ndarray]) -> np.ndarray:
    """Means over the steps of spans, of which the pieces have the value at the end, the drift and the steps."""
    means = np.concatenate(drifts, dtype="f8")
    means /= np.concatenate(repeats, dtype="f8")
    means += np.concatenate(ends, dtype="f8")
    return means


class _Unlike:
    """In what the repeats of spans differ that verify drafts: one row was packed for each span."""

    def __init__(self) -> None:
        self._row, self._end = array("q"), array("q", [0])
        self._past, self._slots, self._unfilled = array("q"), array("q"), array("q")
        self._start_s, self._end_s, self._device_s = array("d"), array("d"), array("d")

    def add(self, row: int, courses: Courses, times_s: list[float], ends_s: list[float], device_s: list[float]) -> None:
        """Take the span whose packed row is number `row` of the chunk."""
        repeats = len(ends_s)
        self._row.append(row)
        self._past.fromlist(courses.pasts[:repeats])
        self._slots.fromlist(courses.slots[:repeats])
        self._unfilled.fromlist(courses.unfilled[:repeats])
        self._start_s.fromlist(times_s[:repeats])
        self._end_s.fromlist(ends_s)
        self._device_s.fromlist(device_s[:repeats])
        self._end.append(len(self._past))

    def told_apart(self, rows: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """The packed rows of the chunk by column, with one for each repeat of the spans among them."""
        if not self._row:
            return rows
        counts = np.ones(len(rows), np.int64)
        among, ends = np.frombuffer(self._row, np.int64), np.frombuffer(self._end, np.int64)
        counts[among] = rows["repeats"][among]
        past, slots, unfilled = (
            np.frombuffer(column, np.int64) for column in (self._past, self._slots, self._unfilled)
        )
        last = np.repeat(past[ends[1:] - 1], counts[among])
        every = {name: np.repeat(rows[name], counts) for name in _PACKED}
        of_spans = np.zeros(len(rows), bool)
        of_spans[among] = True
        at = np.flatnonzero(np.repeat(of_spans, counts))
        every["step"][at] += np.arange(len(at)) - np.repeat(ends[:-1], counts[among])
        every["repeats"][at] = 1
        for name, column in (("start_s", self._start_s), ("end_s", self._end_s), ("device_s", self._device_s)):
            every[name][at] = np.frombuffer(column)
        every["decode_context_tokens"][at] += past
        every["kv_used_tokens"][at] += past - last
        every["kv_free_tokens"][at] += slots
        every["kv_internal_tokens"][at] -= unfilled
        every["kv_reserved_tokens"][at] += last - past - slots + unfilled
        return every
