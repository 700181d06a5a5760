"""What stands before a replica: server processes that take requests in and stream outputs back, by turns.

Each process is one queue, first come, first served, of two kinds of work: requests, and the outputs of a step. When a
piece of work will be done is known when it comes (Lindley 1952: a process is free at F = max(F, now) + work), so that
nothing is simulated but the hand-over of a request to the engine. The outputs of the steps of a span are taken into
account before whatever comes after them, so that spans change nothing.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from operator import le

from sim.engine.batch import Batch
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.lost import anew
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.results.clients import ClientLog
from sim.serving.clock import Clock, Event
from sim.serving.replica import Replica
from sim.serving.workload import stream
from sim.specs.front_end import FrontEndSettings

Refusal = Callable[[Request, float, str], None]
"""Told of a refused request, when its client knows, and the limit that it met."""


class Draws:
    """By request, the factors of its own work and of its way to the engine; 1 where nothing is drawn."""

    def __init__(self, requests: int, spread: float, seed: int) -> None:
        self.work = self.way = [1.0] * requests
        if spread:
            # A lognormal of mean 1 whose standard deviation is the spread.
            sigma = math.sqrt(math.log1p(spread * spread))
            drawn = stream(seed, "front end").lognormal(-sigma * sigma / 2, sigma, (2, requests))
            self.work, self.way = drawn.tolist()


class FrontEnd(Observer):
    """Before one replica. A router sends to it; it hands on to the replica, and is told of its outputs as an observer.

    It outlives the engine: clients get what had come out before a death. Who is sent to it again has the process that
    it had here before.

    Args:
        settings: what its processes cost.
        log: of all clients' requests.
        draws: of all requests.
        on_refusal: called with a request that is refused, when its client is told.
    """

    def __init__(
        self, clock: Clock, settings: FrontEndSettings, log: ClientLog, draws: Draws, on_refusal: Refusal
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._log = log
        self._draws = draws
        self._on_refusal = on_refusal
        count = settings.processes
        self._free_s = [0.0] * count
        """When each process will have done all that has come so far."""
        self._connections = [0] * count
        self.seen_s = [array("d") for _ in range(count)]
        """Of each process the end of its outputs of each step."""
        self.busy_s = 0.0
        """Seconds of work of all processes so far."""
        self._rows: deque[int] = deque()
        self._streamed = 0
        """Steps of the oldest batch under way whose outputs are taken into account."""
        self._coming: dict[int, Request] = {}
        self._lost: dict[int, int] = {}
        """By request that an engine here died with, its process."""
        self._limited = settings.max_num_queued_reqs or settings.max_num_queued_tokens
        self._under_way = 0
        self._prefilling_tokens = 0
        self._leaving: list[tuple[float, int, int]] = []
        """(when clients' outputs are sent, sequences that end, prompt tokens that wait no more)."""

    def serve(self, replica: Replica) -> None:
        """Stand before this replica."""
        self._replica = replica

    @property
    def engine(self) -> ServingEngine:
        return self._replica.engine

    @property
    def outstanding(self) -> int:
        """Requests here and in the replica that have not finished."""
        return len(self._coming) + self._replica.outstanding

    def settle(self) -> None:
        """As `Replica.settle`."""
        self._replica.settle()

    # ---- requests ---------------------------------------------------------------------------------------------------

    def submit(self, req: Request) -> None:
        """Take a client's request now; the engine gets it when a process has taken it in."""
        number, now_s, log, settings = req.id, self._clock.now, self._log, self._settings
        self._stream_until(now_s)
        free_s, connections = self._free_s, self._connections
        # A connection is accepted by the process that has the fewest (vLLM 0.33, `vllm/v1/utils.py`).
        at = 0 if len(free_s) == 1 else connections.index(min(connections))
        if self._lost:
            at = self._lost.get(number, at)
        connections[at] += 1
        if math.isnan(log.arrival_s[number]):
            log.arrival_s[number] = now_s
        log.process[number] = at
        work_s = settings.request_s * self._draws.work[number] + settings.prompt_token_s * req.prompt_tokens
        self.busy_s += work_s
        begin_s = free_s[at]
        free_s[at] = done_s = (begin_s if begin_s > now_s else now_s) + work_s
        ready_s = done_s + settings.latency_s * self._draws.way[number]
        if ready_s > now_s:
            self._coming[number] = log.coming[number] = req
            self._clock.call_at(ready_s, partial(self._taken_in, req), first=True)
        else:
            self._hand_over(req)

    def _taken_in(self, req: Request, event: Event) -> None:
        if self._coming.get(req.id) is not req:
            return  # it was sent elsewhere when the engine died
        del self._coming[req.id], self._log.coming[req.id]
        self._hand_over(req)

    def _hand_over(self, req: Request) -> None:
        if self._limited and (limit := self._limit_met(req)):
            self._log.refused[limit] += 1
            self._connections[self._log.process[req.id]] -= 1
            self._on_refusal(req, self._clock.now + self._settings.latency_s, limit)
            return
        if req.id not in self._log.handed_over:
            req.arrival_s = self._clock.now
        self._replica.submit(req)

    def died_with(self, unfinished: Sequence[Request]) -> list[Request]:
        """Take note that the engine died with these; returns those who were on their way to it."""
        log, coming = self._log, list(self._coming.values())
        self._rows.clear()
        self._streamed = 0
        for req in (*unfinished, *coming):
            self._lost[req.id] = log.process[req.id]
            self._connections[log.process[req.id]] -= 1
        log.handed_over.update(req.id for req in unfinished)
        for req in coming:
            del self._coming[req.id], log.coming[req.id]
        return [anew(req) for req in coming]

    def streamed_s(self, req: Request) -> float:
        """When the client of a request that the engine died with has been sent all that had come out."""
        return self._free_s[self._lost[req.id]]

    def processes(self) -> Sequence[int]:
        """By request, the process that streamed what the replica gave of it."""
        if not self._lost:
            return self._log.process
        own = self._log.process[:]
        for number, at in self._lost.items():
            own[number] = at
        return own

    def _limit_met(self, req: Request) -> str:
        """The limit that keeps the request out; else it is counted (vLLM 0.33, `AsyncLLM.check_admission`)."""
        settings, now_s = self._settings, self._clock.now
        self._stream_until(now_s)
        while self._leaving and self._leaving[0][0] <= now_s:
            _, sequences, tokens = heappop(self._leaving)
            self._under_way -= sequences
            self._prefilling_tokens -= tokens
        if settings.max_num_queued_reqs and self._under_way + req.seats > settings.max_num_queued_reqs:
            return "max_num_queued_reqs"
        if settings.max_num_queued_tokens and self._prefilling_tokens >= settings.max_num_queued_tokens:
            return "max_num_queued_tokens"
        self._under_way += req.seats
        self._prefilling_tokens += req.prompt_tokens
        return ""

    # ---- outputs ----------------------------------------------------------------------------------------------------

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        if not batch.empty:
            rows = batch.lockstep
            if batch.sampled:
                rows += len(batch.sampled)
            elif batch.entries:
                step = batch.first_step
                rows += sum([entry.request.seat.last_token_step == step for entry in batch.entries])
            self._rows.append(rows)

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        ends_s, rows = flight.ends_s(), self._rows.popleft()
        if flight.vain:
            out = len(ends_s) - flight.vain
            self._stream(ends_s[self._streamed : out], rows)
            self._stream(ends_s[max(out, self._streamed) :], 0)
        else:
            self._stream(ends_s[self._streamed :] if self._streamed else ends_s, rows)
        self._streamed = 0
        log, latency_s = self._log, self._settings.latency_s
        for req in flight.committed.first_tokens:
            if req.id < len(log.first_token_s):  # of several samples, the first tells for all
                sent_s = self.seen_s[log.process[req.id]][-1]
                log.first_token_s[req.id] = sent_s + latency_s
                if self._limited:
                    heappush(self._leaving, (sent_s, 0, req.prompt_tokens))
        for req in flight.committed.finished:
            at = log.process[req.id]
            sent_s = self.seen_s[at][-1]
            log.finish_s[req.id] = sent_s + latency_s
            self._connections[at] -= 1
            if self._limited:
                heappush(self._leaving, (sent_s, req.group.size if req.group is not None else 1, 0))

    def _stream_until(self, now_s: float) -> None:
        """Take into account the outputs of the steps that have ended by now."""
        flights = self._replica.flights
        if not flights:
            return
        flight = flights[0]
        if flight.times_s[1] + flight.outcome.late_s > now_s:
            return  # mostly: not even the first
        ended = flight.steps_out(now_s)
        if ended > self._streamed:
            self._stream(flight.ends_s()[self._streamed : ended], self._rows[0])
            self._streamed = ended

    def _stream(self, ends_s: list[float], rows: int) -> None:
        """The outputs of steps that end then and give so many each, of which every process has its share."""
        if not ends_s:
            return
        settings, free_s = self._settings, self._free_s
        share = rows / len(free_s)
        work_s = settings.step_s + share * settings.output_s if rows else 0.0
        stream_s = share * settings.stream_s
        for at, seen_s in enumerate(self.seen_s):
            if free_s[at] <= ends_s[0]:
                sent_s = [end_s + work_s + stream_s for end_s in ends_s]
                if len(ends_s) == 1 or all(map(le, sent_s, islice(ends_s, 1, None))):
                    seen_s.extend(sent_s)  # mostly: it is done with each before the next
                    free_s[at] = sent_s[-1]
                    self.busy_s += (work_s + stream_s) * len(ends_s)
                    continue
            self._fall_behind(at, ends_s, work_s, stream_s)

    def _fall_behind(self, at: int, ends_s: list[float], work_s: float, stream_s: float) -> None:
        """The outputs of steps, some of which come while their process is busy."""
        free_s, seen_s, sent = self._free_s[at], self.seen_s[at], 0
        for end_s in ends_s:
            if free_s <= end_s:
                free_s = end_s + work_s + stream_s
                sent += 1
            else:  # what a client has not been sent yet takes the new output along (`RequestOutputCollector`)
                free_s += work_s
            seen_s.append(free_s)
        self._free_s[at] = free_s
        self.busy_s += work_s * len(ends_s) + stream_s * sent
