"""What a run decided, step by step, and how long each step took: small enough to keep, enough to run it again.

It judges nothing. A block table is told once and from then on by what changed in it; so are the lockstep's members.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.engine.batch import Batch, Outcome, Shape
from sim.engine.engine import Engine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.memory import Allocator
from sim.engine.request import Request
from sim.engine.tokens import TokenClock
from sim.results.steps import StepLog
from traces.late import pd
from traces.schema import InputError

Ids = tuple[int, ...]


class Decision(NamedTuple):
    """One batch as it was planned and sealed; sequences go by their ids (`sim.engine.request.SAMPLE_BITS`)."""

    step: int
    repeats: int
    planned_s: float
    entries: tuple[Ids, ...]
    """(sequence, tokens, past) in scheduling order, of those that are not in lockstep."""
    joined: tuple[Ids, ...]
    """(sequence, past) of those that are in lockstep now and were not in the batch before."""
    left: Ids
    """Sequences that were in lockstep in the batch before, and are not now."""
    tables: tuple[tuple[int, int, Ids], ...]
    """(sequence, blocks kept, new ones behind them) of block tables that differ from when they were last told."""
    evicted: Ids
    copies: tuple[Ids, ...]
    swaps: tuple[tuple[int, bool, int, Ids], ...]
    """(sequence, to the host?, copies made before, blocks)."""
    sampled: tuple[Ids, ...]
    """Of a drafting engine: (sequence, drafts verified, drafts proposed next) of those that sample."""
    accepted: Ids
    """How many drafts of each of these were right."""
    first: Ids
    """Sequences whose first token the batch gave."""
    finished: Ids
    """Sequences that ended with the batch."""


@dataclass(frozen=True, slots=True)
class Record:
    """All that is kept of a run on one replica.

    Args:
        requests: those sent, with the columns of the trace contract; a sequence's index is its row.
        arrival_s: when each came, as the run saw it; NaN where it never did.
        steps: a row for each batch that ended, with the columns of docs/metrics.md.
        decisions: the same batches.
        shapes, results: what the executor was asked and what it answered; one for each single step, of a live run.
        runs: (sequence, first step, last step) of tokens that came in consecutive steps; sequences that ended.
        same_step: how many tokens came in the same step as the one before them.
        died: why the run ended before its time; "" where it did not.
        terms: device seconds of each step by `sim.validate.terms.TERMS`; empty where operations were not timed.
    """

    requests: pd.DataFrame
    arrival_s: npt.NDArray[np.float64]
    steps: pd.DataFrame
    decisions: Sequence[Decision]
    shapes: Sequence[Shape]
    results: Sequence[Outcome]
    runs: npt.NDArray[np.int64]
    same_step: int = 0
    died: str = ""
    terms: Sequence[Mapping[str, float]] = ()

    def token_clock(self) -> TokenClock:
        clock = TokenClock()
        clock.request, clock.first_step, clock.last_step = (array("q", column.tobytes()) for column in self.runs.T)
        clock.same_step = self.same_step
        return clock

    def step_end_s(self) -> npt.NDArray[np.float64]:
        """[steps] when each single step of a live run ended."""
        return self.steps["end_s"].to_numpy(np.float64)


@dataclass(slots=True)
class _Planned:
    entries: tuple[Ids, ...]
    joined: tuple[Ids, ...]
    left: Ids
    evicted: Ids
    tables: tuple[tuple[int, int, Ids], ...] = ()
    computed: list[Request] = field(default_factory=list)


class Recorder(Observer):
    """Writes down the decisions of one replica as they are made.

    A batch's tables are looked at when it is sealed, since a span takes its blocks then.
    """

    def __init__(self, requests: pd.DataFrame) -> None:
        self._requests = requests
        self._log = StepLog(1)
        self._decisions: list[Decision] = []
        self._arrival_s = np.full(len(requests), np.nan)
        self._members: dict[int, int] = {}
        self._tables: dict[int, list[int]] = {}
        self._evicted: Ids = ()
        self._open: dict[int, _Planned] = {}
        self._runs = TokenClock()

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self._runs = replica.engine.tokens
        self._evicted += tuple(req.id for req in batch.evicted)
        if batch.empty:
            return
        for req, _, _ in batch.entries:
            if req.id < len(self._arrival_s):
                self._arrival_s[req.id] = req.arrival_s
        own = {req for req, _, _ in batch.entries}
        lockstep = _ours(replica).roster.lockstep
        together = [req for req in lockstep if req not in own] if batch.lockstep else []
        tick = lockstep.tick
        members = {req.id: lockstep.computed(req) - tick for req in together}
        known = self._members
        joined: tuple[Ids, ...] = ()
        left: Ids = ()
        if members != known:
            joined = tuple(
                (req.id, members[req.id] + tick - 1) for req in together if known.get(req.id) != members[req.id]
            )
            left = tuple(id for id in known if id not in members)
            self._members = members
        entries = tuple((req.id, tokens, past) for req, tokens, past in batch.entries)
        made = _Planned(entries, joined, left, self._evicted)
        made.computed = [*own, *together]
        self._evicted = ()
        self._open[batch.first_step] = made

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        self._log.sealed(replica, flight)
        made = self._open[flight.batch.first_step]
        made.tables = tuple(sorted(self._changed(_ours(replica).allocator, made.computed)))
        made.computed = []

    def _changed(self, allocator: Allocator, computed: Iterable[Request]) -> Iterable[tuple[int, int, Ids]]:
        for req in computed:
            now, known = list(allocator.table(req)), self._tables.get(req.id, [])
            if now == known:
                continue
            same = common(now, known)
            self._tables[req.id] = now
            yield req.id, same, tuple(now[same:])

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        self._log.committed(replica, flight)
        batch = flight.batch
        made = self._open.pop(batch.first_step)
        self._decisions.append(
            Decision(
                batch.first_step,
                batch.repeats,
                batch.planned_s,
                made.entries,
                made.joined,
                made.left,
                made.tables,
                made.evicted,
                tuple(batch.copies),
                tuple((swap.request.id, swap.out, swap.after, tuple(swap.blocks)) for swap in batch.swaps),
                tuple((sample.request.id, sample.drafts, sample.next_drafts) for sample in batch.sampled),
                tuple(flight.outcome.accepted or ()),
                tuple(req.id for req in flight.committed.first_tokens),
                tuple(req.id for req in flight.committed.ended),
            )
        )

    def record(
        self,
        shapes: Sequence[Shape] = (),
        results: Sequence[Outcome] = (),
        *,
        terms: Sequence[Mapping[str, float]] = (),
        died: str = "",
    ) -> Record:
        """All of it, once the run has ended; of what the executor was asked, those that ended."""
        runs = (self._runs.request, self._runs.first_step, self._runs.last_step)
        count = len(self._decisions)
        return Record(
            self._requests,
            self._arrival_s,
            self._log.table().frame(),
            self._decisions,
            shapes[:count],
            results[:count],
            np.stack([np.array(column, np.int64) for column in runs], axis=1).reshape(-1, 3),
            self._runs.same_step,
            died,
            terms[:count],
        )


def _ours(replica: ObservedReplica) -> Engine:
    """The engine of a replica. Raises InputError for another's, whose lockstep and memory nobody knows."""
    if not isinstance(replica.engine, Engine):
        raise InputError("engine.name: decisions can be recorded of the engine foretoken alone")
    return replica.engine


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(at for at in range(shorter) if first[at] != second[at])
