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
from sim.serving.pool import Pool, kv_bytes, router_traits
from sim.serving.replica import Replica
from sim.specs.fleet import BOTH, DECODE, PREFILL

Answered = Callable[[Request, Replica], None]
"""Told of a request and of the replica that has answered it."""


class MakesReplicas(Protocol):
    """Makes a replica of a pool; `on_finish` is called with each request that it has answered, and itself."""

    def __call__(
        self, pool: Pool, engine: ServingEngine, index: int, *, on_finish: Answered, observer: Observer | None = None
    ) -> Replica: ...


class Entrance:
    """Takes requests, and sends each on its way.

    Args:
        engines: those of each pool.
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
        self._clusters: dict[str, Cluster] = {}
        self._disaggregated: Disaggregated | None = None
        self.follows_sessions = False
        self.replicas: list[Replica] = []
        self._placed: list[tuple[Pool, Replica]] = []
        places = Places()
        alone = sum(pool.count for pool in pools) == 1
        for pool, own in zip(pools, engines, strict=True):
            for engine in own:
                observer = places if pool.role == DECODE else None
                on_finish: Answered = answered if alone else self._finished
                if pool.role == PREFILL:
                    on_finish = self._prefilled
                replica = make(pool, engine, len(self.replicas), on_finish=on_finish, observer=observer)
                self.replicas.append(replica)
                self._placed.append((pool, replica))
        roles = list(dict.fromkeys(pool.role for pool in pools))
        for role in roles:
            self._clusters[role] = self._cluster([pool for pool in pools if pool.role == role])
        self._role_of = [pool.role for pool, _ in self._placed]
        if PREFILL in roles:
            places.disaggregated = self._disaggregated = self._disaggregation(pools)
            self.submit = self._disaggregated.submit
        else:
            self.submit = self._clusters[BOTH].submit

    def _cluster(self, pools: Sequence[Pool]) -> Cluster:
        """The replicas of these pools behind the router of the first, which is that of all unless it says otherwise."""
        scenario = pools[0].parts.scenario
        traits = router_traits(scenario, pools)
        self.follows_sessions = self.follows_sessions or traits["follows_sessions"]
        mine = [(pool, replica) for pool, replica in self._placed if pool in pools]
        return Cluster(
            [replica for _, replica in mine],
            build("sim.routers", scenario.router.name, _seeded(scenario)),
            [pool.parts.pool.blocks for pool, _ in mine],
            poll_s=self._scenario.routing.poll_s,
            polls_memory=traits["reads_memory"],
        )

    def _disaggregation(self, pools: Sequence[Pool]) -> Disaggregated:
        transfer = self._scenario.transfer
        rates = [pool.link_bytes_per_s for pool, _ in self._placed]
        return Disaggregated(
            self._clusters[PREFILL],
            self._clusters[DECODE],
            Links(self.replicas[0].clock, dict(enumerate(rates)), transfer.latency_s),
            kv_bytes=lambda tokens: kv_bytes(pools[0], tokens),
            bytes_per_s=rates,
            layers=pools[0].parts.model.layers if transfer.by_layer else 0,
            min_prompt_tokens=transfer.min_prompt_tokens,
        )

    def _finished(self, req: Request, replica: Replica) -> None:
        self._clusters[self._role_of[replica.index]].finished(req, replica)
        self._answered(req, replica)

    def _prefilled(self, prompt: Request, replica: Replica) -> None:
        self._clusters[PREFILL].finished(prompt, replica)
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
