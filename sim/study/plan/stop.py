"""Ends a replication as soon as nothing that may still happen could let it meet its SLO. It decides nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sim.engine.batch import Batch
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.request import Request
from sim.results.clients import ClientLog
from sim.study.plan.observation import STABILITY, Clause, Floats, Window, grown
from sim.study.statistics import GROWTH_ALLOWED

EVERY = 64
"""Batches between two looks at those who wait."""
SURELY = 1 + 1e-9
"""A sum must exceed its limit by more than the rounding of its terms."""


class HopelessError(Exception):
    def __init__(self, clause: str) -> None:
        super().__init__(clause)
        self.clause = clause


class Stop(Observer):
    """Raises HopelessError once a clause is certain to be missed by the requests that count, or the queue to grow.

    It rests on lower bounds alone. A latency that has not ended is at least what has passed of it; a share is certain
    to be exceeded when more requests are over the limit than may be of all that count; the growth of the backlog is
    known when the time is over in which requests are due. So it never changes a verdict, only the time to it.

    Behind a front end a latency is a client's, and the times are those that the front end tells: of an output when it
    was sent, be that later than now, and of a request that it has not handed on yet when it came.

    Args:
        due_s: of each request, when it is due; (n,), in this order.
        output_tokens: of each request.
        work_tokens: of each request.
        single: does each request ask for one sequence? Where not, nothing is ended early.
        clients: what clients see, where they are behind a front end.
    """

    def __init__(
        self,
        clauses: Sequence[Clause],
        window: Window,
        due_s: Floats,
        output_tokens: Floats,
        work_tokens: Floats,
        single: bool = True,
        clients: ClientLog | None = None,
    ) -> None:
        self._replicas: dict[int, ObservedReplica] = {}
        self._window = window
        self._due_s, self._work = due_s, work_tokens
        counted = window.slice(len(due_s))
        self._first, self._end = counted.start, counted.stop
        self._closes_s = float(due_s[self._end - 1])
        self._single = single
        self._clients = clients
        seen = _Seen() if clients is None else _SeenByClients(clients)
        self._seen = seen
        tallies = [_Tally(clause, output_tokens[counted], seen) for clause in clauses]
        self._tallies = [tally for tally in tallies if tally.known]
        self._arrival_s = np.full(len(due_s), np.nan)
        self._finish_s = np.full(len(due_s), np.nan)
        self._batches = 0
        self._grown = False

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self._replicas[replica.index] = replica

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        if not self._single:
            return
        for req in flight.committed.ended:
            self._arrival_s[req.id] = self._seen.arrival_s(req)
            self._finish_s[req.id] = self._seen.finish_s(req)
            if self._first <= req.id < self._end:
                for tally in self._tallies:
                    tally.ended(req)
        self._batches += 1
        if self._batches % EVERY == 0:
            self._look(replica.clock.now)

    def _look(self, now_s: float) -> None:
        live = [
            req
            for replica in self._replicas.values()
            for queue in (replica.engine.running, replica.engine.waiting)
            for req in queue
        ]
        if self._clients is not None:
            live += self._clients.coming.values()
        counted = [req for req in live if self._first <= req.id < self._end]
        for tally in self._tallies:
            if tally.certain(counted, now_s):
                raise HopelessError(tally.clause.name)
        if now_s > self._closes_s and not self._grown:
            self._check_growth(live)

    def _check_growth(self, live: Sequence[Request]) -> None:
        self._grown = True
        for req in live:
            self._arrival_s[req.id] = self._seen.arrival_s(req)
        backlog = grown(self._due_s, self._arrival_s, self._finish_s, self._work, self._window)
        if backlog.share > GROWTH_ALLOWED:
            raise HopelessError(STABILITY)


class _Seen:
    """When a request's client saw what; NaN: not yet. Without a front end that is when the engine did it."""

    def arrival_s(self, req: Request) -> float:
        return req.arrival_s

    def first_token_s(self, req: Request) -> float:
        return req.first_token_s

    def finish_s(self, req: Request) -> float:
        return req.finish_s

    def queued(self, req: Request) -> bool:
        """Does it wait in the engine, or has it?"""
        return True


class _SeenByClients(_Seen):
    def __init__(self, log: ClientLog) -> None:
        self._log = log

    def arrival_s(self, req: Request) -> float:
        return self._log.arrival_s[req.id]

    def first_token_s(self, req: Request) -> float:
        return self._log.first_token_s[req.id]

    def finish_s(self, req: Request) -> float:
        return self._log.finish_s[req.id]

    def queued(self, req: Request) -> bool:
        return req.id not in self._log.coming


class _Tally:
    """Lower bounds of one clause: of those who ended, the final count; of the others what has passed."""

    def __init__(self, clause: Clause, output_tokens: Floats, seen: _Seen) -> None:
        self.clause = clause
        self._seen = seen
        metrics = {limit.metric for limit in clause.limits}
        self.known = metrics <= {"ttft", "tpot", "e2e", "queue"} or clause.statistic == "share"
        several = metrics == {"tpot"} and clause.statistic != "share"  # one token has no time per token
        self._population = int((output_tokens > 1).sum()) if several else len(output_tokens)
        self._over = 0
        self._sum_s = 0.0

    def ended(self, req: Request) -> None:
        if self.clause.statistic == "mean":
            self._sum_s += self._mean_part(req, self._seen.finish_s(req))
        elif self._is_over(req, self._seen.finish_s(req)):
            self._over += 1

    def certain(self, live: Sequence[Request], now_s: float) -> bool:
        clause = self.clause
        if clause.statistic == "mean":
            total_s = self._sum_s + sum(self._mean_part(req, now_s) for req in live)
            return total_s > clause.limit_s * self._population * SURELY
        over = self._over + sum(self._is_over(req, now_s) for req in live)
        return over > (clause.share * self._population) * SURELY + 1e-6

    def _mean_part(self, req: Request, now_s: float) -> float:
        return _passed_s(self.clause.limits[0].metric, req, self._seen, now_s)

    def _is_over(self, req: Request, now_s: float) -> bool:
        margin = SURELY if self.clause.statistic == "max" else 1.0  # the verdict rounds a ratio there
        return any(
            _passed_s(limit.metric, req, self._seen, now_s) > limit.limit_s * margin for limit in self.clause.limits
        )


def _passed_s(metric: str, req: Request, seen: _Seen, now_s: float) -> float:
    """The least that this latency of the request can come to, seen from now."""
    if metric == "queue":  # which is the engine's, whoever waits before it
        if not seen.queued(req):
            return 0.0
        return (now_s if math.isnan(req.first_scheduled_s) else req.first_scheduled_s) - req.arrival_s
    first_s = seen.first_token_s(req)
    answered = not math.isnan(first_s)
    if metric == "ttft":
        return (first_s if answered else now_s) - seen.arrival_s(req)
    if metric == "e2e":
        return now_s - seen.arrival_s(req)
    if metric == "tpot" and answered and req.output_tokens > 1:
        return (now_s - first_s) / (req.output_tokens - 1)  # below 0 where the first output is still on its way
    return 0.0
