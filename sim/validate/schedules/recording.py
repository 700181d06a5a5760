"""The steps of one replica, written down in the form of a recorded schedule (docs/validate.md), whoever decides them.

A record's loop keeps a queue of the batches under way, those of empty steps too. A synchronous loop takes in a step's
output before it schedules the next. An asynchronous one schedules a second batch behind the first, unless the second
is empty, and then takes in the oldest: an empty one, that is, right after another was scheduled
(`step_with_batch_queue`). What was free, and who queued, is read at those moments.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sim.engine.batch import Batch
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request


class ScheduleLog(Observer):
    """Observes a replica.

    Args:
        depth: batches in flight at most.
        ns: whole nanoseconds in a unit of the replica's clock.
    """

    def __init__(self, depth: int, ns: float = 1.0) -> None:
        self.steps: list[dict[str, Any]] = []
        self.seen: dict[int, Request] = {}
        """Requests that have come, by id."""
        self.accepted: dict[int, list[int]] = {}
        """By request, how many drafts were right, each time that some were verified."""
        self.proposed: dict[int, list[int]] = {}
        """By request, drafts proposed after each step in which it sampled."""
        self.engine: ServingEngine | None = None
        """Of the replica, from its first plan on."""
        self._depth, self._ns = depth, ns
        self._index = 0
        self._arrived: list[int] = []
        self._running: set[int] = set()
        self._under_way: deque[dict[str, Any]] = deque()
        self._ended = 0

    def before_plan(self, replica: ObservedReplica) -> None:
        self.engine = replica.engine
        self._running = {req.id for req in replica.engine.running}
        new = [req for req in replica.engine.waiting if req.id not in self.seen]
        for req in sorted(new, key=lambda req: (req.arrival_s, req.id)):
            self.seen[req.id] = req
            self._arrived.append(req.id)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self._under_way.append(self._scheduled(replica.engine, batch))
        self.steps.append(self._under_way[-1])
        self._index += 1
        if len(self._under_way) == self._depth or batch.empty:
            self._take_in_empty(replica.engine)

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        step = self._under_way.popleft()
        self._note_drafts(step, flight)
        first = [req.id for req in flight.committed.first_tokens]
        finished = [req.id for req in flight.committed.ended]
        self._ended = self._whole(flight.times_s[-1])
        self._close(replica.engine, step, self._whole(flight.times_s[0]), first, finished)
        if not replica.engine.busy and not self.due:
            self._take_in_empty(replica.engine)

    @property
    def due(self) -> bool:
        """Does a request come with the next plan?"""
        return False

    def more(self, engine: ServingEngine) -> dict[str, Any]:
        """Keys of a step that not every record has."""
        return {}

    def _whole(self, time: float) -> int:
        return round(time * self._ns)

    def _note_drafts(self, step: dict[str, Any], flight: Flight) -> None:
        sampled, outcome = flight.batch.sampled, flight.outcome
        right = iter(step["spec"])
        for sample, accepted in zip(sampled, outcome.accepted or (), strict=False):
            if sample.drafts:
                next(right).append(accepted)
                if sample.real:
                    self.accepted.setdefault(sample.request.id, []).append(accepted)
        for sample, count in zip(sampled, outcome.proposed or [one.next_drafts for one in sampled], strict=True):
            self.proposed.setdefault(sample.request.id, []).append(count)

    def _scheduled(self, engine: ServingEngine, batch: Batch) -> dict[str, Any]:
        entries = sorted(batch.rows, key=lambda entry: entry.request.seat.seq)
        gone = {req.id for req in batch.evicted}
        admitted = [entry for entry in entries if entry.request.id not in self._running or entry.request.id in gone]
        new = [entry for entry in admitted if not entry[0].preemptions]
        resumed = [entry for entry in admitted if entry[0].preemptions]
        arrived, self._arrived = self._arrived, []
        return {
            "i": self._index,
            "t_sched": self._whole(batch.planned_s),
            "tokens": sum(tokens for _, tokens, _ in entries),
            "arrived": arrived,
            "sched": [[req.id, tokens, past] for req, tokens, past in entries],
            "new": [req.id for req, _, _ in new],
            "resumed": [req.id for req, _, _ in resumed],
            "preempted": [req.id for req in batch.evicted],
            "spec": [[sample.request.id, sample.drafts] for sample in batch.sampled if sample.drafts],
            "hit": [[req.id, past] for req, _, past in [*new, *resumed] if past],
            "free": [engine.counts().free_blocks],
            "queues": [[len(engine.running), len(engine.waiting)]],
            **self.more(engine),
        }

    def _take_in_empty(self, engine: ServingEngine) -> None:
        """Where the oldest step under way is an empty one, it has ended: its device time is none."""
        if self._under_way and not self._under_way[0]["sched"]:
            step = self._under_way.popleft()
            self._ended = max(step["t_sched"], self._ended)
            self._close(engine, step, self._ended, [], [])

    def _close(
        self, engine: ServingEngine, step: dict[str, Any], start: int, first: list[int], finished: list[int]
    ) -> None:
        step["t0"], step["t1"] = start, self._ended
        step["free"].append(engine.counts().free_blocks)
        # The record lets arrivals enter just before the next planning; here they queue up when they come.
        early = len(self._arrived) + sum(req.id not in self.seen for req in engine.waiting)
        step["queues"].append([len(engine.running), len(engine.waiting) - early])
        step["first"], step["finished"] = first, finished
        for key in ("arrived", "new", "resumed", "preempted", "hit", "spec", "first", "finished"):
            if not step[key]:
                del step[key]
