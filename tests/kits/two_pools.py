"""A prefill pool and a decode pool in one simulated time, over a link that takes no time: what fleets will stand on.

A request gives its first token at a prefill replica, and goes on at a decode replica with the KV that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sim.engine.engine import Engine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.request import Request
from sim.results.gaps import TokenGaps
from sim.routers.round_robin import RoundRobin
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster
from sim.serving.executor import Executor
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload


class Sends(Observer):
    """Hands each request over when its first token is out, and notes when each step of each replica ended."""

    def __init__(self, pool: str, step_end_s: list[list[float]], submit: Callable[[Request], None] | None) -> None:
        self._pool = pool
        self._step_end_s = step_end_s
        self._submit = submit
        self.handed_over = 0

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        self._step_end_s[replica.index] += flight.ends_s
        engine = replica.engine
        assert isinstance(engine, Engine)
        for req in flight.committed.first_tokens:
            if self._submit is not None and not req.finished:
                engine.hand_over(req, "decode")
                self.handed_over += 1
                self._submit(req)


@dataclass
class Served:
    requests: list[Request]
    engines: list[Engine]
    step_end_s: list[np.ndarray]
    handed_over: int

    def gaps(self) -> TokenGaps:
        return TokenGaps([engine.tokens for engine in self.engines], self.step_end_s)


def serve(
    prefill: Callable[[], Engine],
    decode: Callable[[], Engine],
    counts: tuple[int, int],
    executor: Executor,
    workload: Workload,
) -> Served:
    """Serve a workload by so many replicas of each pool."""
    clock, done = Clock(), []
    engines = [prefill() for _ in range(counts[0])] + [decode() for _ in range(counts[1])]
    step_end_s: list[list[float]] = [[] for _ in engines]

    def finished(req: Request) -> None:
        done.append(req)
        source.finished(req)

    def replicas(indices: Sequence[int], observer: Observer) -> list[Replica]:
        return [
            Replica(clock, engines[at], executor, on_finish=finished, observer=observer, index=at) for at in indices
        ]

    decoding = Cluster(replicas(range(counts[0], len(engines)), Sends("decode", step_end_s, None)), RoundRobin())
    sends = Sends("prefill", step_end_s, decoding.submit)
    prefilling = Cluster(replicas(range(counts[0]), sends), RoundRobin())
    source = RequestSource(clock, workload, prefilling.submit)
    source.start()
    clock.run()
    requests = sorted(done, key=lambda req: req.id)
    return Served(requests, engines, [np.array(ends_s) for ends_s in step_end_s], sends.handed_over)
