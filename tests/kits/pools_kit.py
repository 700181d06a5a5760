"""A prefill pool and a decode pool of engines from the kit, in one simulated time, with links between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from engine_kit import Setup

from sim.engine.engine import Engine
from sim.engine.flight import Audience, Flight, ObservedReplica, Observer
from sim.engine.request import Request
from sim.results.gaps import TokenGaps
from sim.routers.round_robin import RoundRobin
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster
from sim.serving.disaggregation import Disaggregated, Places
from sim.serving.executor import Predicted
from sim.serving.links import Links
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload


class Watches(Observer):
    """Notes when each step of each replica ended, and asks every roster for its laws."""

    def __init__(self, replicas: int) -> None:
        self.step_end_s: list[list[float]] = [[] for _ in range(replicas)]

    def planned(self, replica: ObservedReplica, batch: object) -> None:
        assert isinstance(replica.engine, Engine)
        replica.engine.roster.check()

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        self.step_end_s[replica.index] += flight.ends_s()


@dataclass(frozen=True)
class Between:
    """What is between the pools; bytes are tokens here."""

    tokens_per_s: float = math.inf
    latency_s: float = 0.0
    layers: int = 0
    min_prompt_tokens: int = 0


@dataclass
class Served:
    requests: list[Request]
    engines: list[Engine]
    gaps: TokenGaps
    transfers: pd.DataFrame
    replica_of: dict[int, int] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        return [getattr(req, name) for req in self.requests]


def serve(
    prefill: Setup, decode: Setup, counts: tuple[int, int], workload: Workload, between: Between | None = None
) -> Served:
    """Serve a workload by so many replicas of each pool; every request is checked to have been answered once."""
    between = between or Between()
    clock, done, replica_of = Clock(), {}, {}
    setups = [prefill] * counts[0] + [decode] * counts[1]
    engines = [setup.engine() for setup in setups]
    watches, places = Watches(len(setups)), Places()
    replicas: list[Replica] = []

    def answered(req: Request, index: int) -> None:
        assert req.id not in done, f"{req} was answered twice"
        done[req.id], replica_of[req.id] = req, index
        source.finished(req)

    def ends(index: int) -> Callable[[Request], None]:
        def finished(req: Request) -> None:
            cluster = prefilling if index < counts[0] else decoding
            cluster.finished(req, index if index < counts[0] else index - counts[0])
            if index >= counts[0] or disaggregated.prefilled(req, replicas[index]):
                answered(req, index)

        return finished

    for index, (setup, engine) in enumerate(zip(setups, engines, strict=True)):
        engine.sends = index < counts[0]
        observers: list[Observer] = [watches] if engine.sends else [watches, places]
        executor = Predicted(setup.cost, overlap_host=setup.depth == 2)
        replicas.append(
            Replica(
                clock,
                engine,
                executor,
                depth=setup.depth,
                on_finish=ends(index),
                observer=Audience(observers),
                index=index,
            )
        )
    prefilling, decoding = (
        Cluster(part, RoundRobin(), [1] * len(part)) for part in (replicas[: counts[0]], replicas[counts[0] :])
    )
    rates = [between.tokens_per_s] * len(replicas)
    places.disaggregated = disaggregated = Disaggregated(
        prefilling,
        decoding,
        replicas[counts[0] :],
        Links(clock, dict(enumerate(rates)), between.latency_s),
        kv_bytes=float,
        bytes_per_s=rates,
        layers=between.layers,
        min_prompt_tokens=between.min_prompt_tokens,
    )
    source = RequestSource(clock, workload, disaggregated.submit)
    source.start()
    clock.run_out()
    count = len(workload)
    assert sorted(done) == list(range(count)), "somebody was never answered"
    for engine in engines:
        engine.roster.check()
        assert not engine.busy
        assert not engine.roster.sending
        assert not engine.roster.expected
        assert not engine.roster.placed
        assert not engine.roster.landed
        assert engine.allocator.free_blocks == engine.allocator.pool.blocks
    gaps = TokenGaps([engine.tokens for engine in engines], [np.array(ends_s) for ends_s in watches.step_end_s])
    requests = [done[at] for at in range(count)]
    return Served(requests, engines, gaps, disaggregated.transfers(np.ones(count, bool)), replica_of)


def decoded_apart(setup: Setup, arrivals: Sequence[tuple[float, Request]]) -> dict[int, float]:
    """When each of these requests ends in a lone decode replica that gets it, with its KV, at its time."""
    clock, ended = Clock(), {}
    engine = setup.engine()
    observer = Observer()
    replica = Replica(
        clock,
        engine,
        Predicted(setup.cost, overlap_host=setup.depth == 2),
        depth=setup.depth,
        on_finish=lambda req: ended.__setitem__(req.id, req.finish_s),
        observer=observer,
    )

    def arrive(req: Request) -> None:
        engine.expect(req)
        replica.settle()
        assert engine.place() == [req], "the pool is too small to be simulated apart so"
        engine.land(req)
        replica.wake()

    for time_s, req in arrivals:
        clock.call_at(time_s, lambda event, req=req: arrive(req))  # type: ignore[misc]
    clock.run_out()
    return ended
