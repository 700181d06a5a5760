"""Where requests come in: the replicas of all pools, the routers before them, and what passes between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from sim.engine.flight import Observer
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.load import build, load
from sim.scenario import Scenario
from sim.serving.cluster import Cluster
from sim.serving.disaggregation import Disaggregated, Places
from sim.serving.links import Links
from sim.serving.pool import Pool, each_replica, kv_bytes, router_traits
from sim.serving.ranks import Rank
from sim.serving.replica import Replica
from sim.serving.snapshot import Server
from sim.specs.fleet import BOTH, DECODE, PREFILL

Answered = Callable[[Request, Replica | Rank], None]
"""Told of a request and of the replica that has answered it."""


class MakesReplicas(Protocol):
    """Makes the ranks of a replica, numbered from `index` on, and what stands before them; `on_finish` is told of each
    request that they answered."""

    def __call__(
        self,
        pool: Pool,
        engines: Sequence[ServingEngine],
        index: int,
        *,
        on_finish: Answered,
        observer: Observer | None,
    ) -> tuple[Server, Sequence[Replica | Rank]]: ...


class Entrance:
    """Takes requests, and sends each on its way.

    Args:
        engines: those of each pool, the ranks of one replica after those of another.
        answered: called when a request's answer is complete.
    """

    def __init__(
        self,
        scenario: Scenario,
        pools: Sequence[Pool],
        engines: Sequence[Sequence[ServingEngine]],
        make: MakesReplicas,
        answered: Answered,
    ) -> None:
        self._scenario = scenario
        self._answered = answered
        self._disaggregated: Disaggregated | None = None
        self.follows_sessions = False
        self.replicas: list[Replica | Rank] = []
        places = Places()
        alone = sum(pool.count for pool in pools) == 1
        servers: dict[str, list[tuple[Pool, Server]]] = {}
        places_of: list[tuple[str, int]] = []
        for pool, own in zip(pools, engines, strict=True):
            for first in range(0, pool.ranks, pool.ranks // pool.count):
                observer = places if pool.role == DECODE else None
                on_finish: Answered = answered if alone else self._finished
                if pool.role == PREFILL:
                    on_finish = self._prefilled
                of_one = own[first : first + pool.ranks // pool.count]
                server, ranks = make(pool, of_one, len(self.replicas), on_finish=on_finish, observer=observer)
                self.replicas += ranks
                beside = servers.setdefault(pool.role, [])
                places_of += [(pool.role, len(beside))] * len(ranks)
                beside.append((pool, server))
        self._clusters = {role: self._cluster(own) for role, own in servers.items()}
        self._where = [(self._clusters[role], place) for role, place in places_of]
        """Of each replica the cluster that it is in, and its place there."""
        if PREFILL in servers:
            places.disaggregated = self._disaggregated = self._disaggregation(
                pools, [server for _, server in servers[DECODE]]
            )
            self.submit = self._disaggregated.submit
        else:
            self.submit = self._clusters[BOTH].submit

    def _cluster(self, servers: Sequence[tuple[Pool, Server]]) -> Cluster:
        """These behind the router of the first pool, which is that of all unless a pool says otherwise."""
        scenario = servers[0][0].parts.scenario
        traits = router_traits(scenario, [pool for pool, _ in servers])
        self.follows_sessions = self.follows_sessions or traits["follows_sessions"]
        return Cluster(
            [server for _, server in servers],
            build("sim.routers", scenario.router.name, _seeded(scenario)),
            [pool.parts.pool.blocks * (pool.ranks // pool.count) for pool, _ in servers],
            clock=self.replicas[0].clock,
            poll_s=self._scenario.routing.poll_s,
            polls_memory=traits["reads_memory"],
        )

    def _disaggregation(self, pools: Sequence[Pool], decoders: Sequence[Server]) -> Disaggregated:
        transfer = self._scenario.transfer
        rates = [pool.link_bytes_per_s for pool in each_replica(pools)]
        return Disaggregated(
            self._clusters[PREFILL],
            self._clusters[DECODE],
            decoders,
            Links(self.replicas[0].clock, dict(enumerate(rates)), transfer.latency_s),
            kv_bytes=lambda tokens: kv_bytes(pools[0], tokens),
            bytes_per_s=rates,
            layers=pools[0].parts.model.layers if transfer.by_layer else 0,
            min_prompt_tokens=transfer.min_prompt_tokens,
        )

    def left(self, req: Request, index: int) -> None:
        """Take note that a replica, or what stands before it, is done with a request."""
        cluster, place = self._where[index]
        cluster.finished(req, place)

    def _finished(self, req: Request, replica: Replica | Rank) -> None:
        self.left(req, replica.index)
        self._answered(req, replica)

    def _prefilled(self, prompt: Request, replica: Replica | Rank) -> None:
        self.left(prompt, replica.index)
        assert self._disaggregated is not None
        if self._disaggregated.prefilled(prompt, replica):
            self._answered(prompt, replica)

    def transfers(self, sent: np.ndarray) -> pd.DataFrame | None:
        """What KV was sent (`Disaggregated.transfers`); None where no pool sends any."""
        return None if self._disaggregated is None else self._disaggregated.transfers(sent)


def _seeded(scenario: Scenario) -> dict[str, Any]:
    """The router's parameters; one that draws takes the scenario's seed unless it is given its own."""
    given = dict(scenario.router.parameters)
    if "seed" in inspect.signature(load("sim.routers", scenario.router.name)).parameters:
        given.setdefault("seed", scenario.seed)
    return given
