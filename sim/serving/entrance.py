"""Where requests come in: the replicas of all pools, the routers before them, and what passes between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from sim.engine.flight import Audience, Listener, Observer
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.load import build, load
from sim.scenario import Scenario
from sim.serving.autoscale import Autoscaler
from sim.serving.cluster import Cluster
from sim.serving.disaggregation import Disaggregated, Places
from sim.serving.failures import Failures
from sim.serving.front_end import FrontEnd
from sim.serving.lifecycle import Lifecycle, Member
from sim.serving.links import Links
from sim.serving.pool import Pool, by_model, check_changes, each_replica, kv_bytes, numbers, router_traits
from sim.serving.ranking import SentTo, Touches
from sim.serving.ranks import Rank
from sim.serving.replica import Replica
from sim.serving.snapshot import Server
from sim.specs.fleet import BOTH, DECODE, PREFILL
from traces.late import pd

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
        observer: Listener | None,
    ) -> tuple[Server, Sequence[Replica | Rank]]: ...


class Entrance:
    """Takes requests, and sends each on its way.

    Args:
        engines: those of each pool, the ranks of one replica after those of another.
        answered: called when a request's answer is complete.
        spans: whether engines may repeat steps unasked.
        over: whether all requests have ended.
        models: of each request the name of its model, where there are several.
    """

    def __init__(
        self,
        scenario: Scenario,
        pools: Sequence[Pool],
        engines: Sequence[Sequence[ServingEngine]],
        make: MakesReplicas,
        answered: Answered,
        *,
        spans: bool,
        over: Callable[[], bool],
        models: Sequence[str] | None = None,
    ) -> None:
        self._scenario = scenario
        self._changes = check_changes(scenario, pools)
        self._answered = answered
        self.follows_sessions = False
        self.replicas: list[Replica | Rank] = []
        fleets = by_model(pools)
        places = {model: Places() for model in fleets}
        alone = sum(pool.count for pool in pools) == 1 and not self._changes
        self._touches = self._watching(pools)
        servers: dict[tuple[str, str], list[tuple[Pool, Server]]] = {}
        places_of: list[tuple[tuple[str, str], int]] = []
        for pool, own in zip(pools, engines, strict=True):
            model = pool.parts.model.name
            each = pool.ranks // pool.count
            for first in range(0, pool.ranks, each):
                which = (model, pool.role)
                watching: list[Observer] = [places[model]] if pool.role == DECODE else []
                watching += filter(None, [self._touches.get(which)])
                on_finish: Answered = answered if alone else self._finished
                if pool.role == PREFILL:
                    on_finish = self._prefilled
                of_one = own[first : first + each]
                observer = Audience(watching) if watching else None
                server, ranks = make(pool, of_one, len(self.replicas), on_finish=on_finish, observer=observer)
                self.replicas += ranks
                beside = servers.setdefault(which, [])
                places_of += [(which, len(beside))] * each
                beside.append((pool, server))
        for which, touches in self._touches.items():
            touches.place_of = {index: at for index, (own, at) in enumerate(places_of) if own == which}
        clusters = {which: self._cluster(own, self._touches.get(which)) for which, own in servers.items()}
        self._where = [(clusters[which], place) for which, place in places_of]
        """Of each replica the cluster that it is in, and its place there."""
        self._model_of = [model for (model, _), _ in places_of]
        self._role_of = [role for (_, role), _ in places_of]
        self.lifecycle = self._lifecycle(pools, spans, over) if self._changes else None
        self._disaggregated: dict[str, Disaggregated] = {}
        takes: dict[str, Callable[[Request], None]] = {}
        for model, own_pools in fleets.items():
            if (model, PREFILL) in clusters:
                decoders = [server for _, server in servers[model, DECODE]]
                between = (clusters[model, PREFILL], clusters[model, DECODE], decoders)
                apart = self._disaggregation(pools, own_pools[0], *between)
                places[model].disaggregated = self._disaggregated[model] = apart
                takes[model] = apart.submit
                for member, of in zip(self.lifecycle.members if self.lifecycle else (), self._model_of, strict=False):
                    member.apart = apart if of == model else member.apart
            else:
                takes[model] = clusters[model, BOTH].submit
        self.submit: Callable[[Request], None] = next(iter(takes.values()))
        if models is not None:
            submit_of = [takes[model] for model in models]
            self.submit = lambda req: submit_of[req.id](req)

    def _watching(self, pools: Sequence[Pool]) -> dict[tuple[str, str], Touches]:
        """By model and role, who tells a router that reads what memory is now of what may have changed."""
        first = {(pool.parts.model.name, pool.role): pool.parts.scenario for pool in reversed(pools)}
        return {
            which: Touches()
            for which, scenario in first.items()
            if router_traits(scenario, [])["reads_memory"] and not self._scenario.routing.poll_s
        }

    def _cluster(self, servers: Sequence[tuple[Pool, Server]], touches: Touches | None) -> Cluster:
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
            changes=self._changes,
            touched=None if touches is None else touches.touched,
            falls=lambda place: servers[place][0].parts.takes_only,
            sent=SentTo(prefixes=traits["reads_cache"], adapters=traits["reads_adapters"])
            if traits["reads_cache"] or traits["reads_adapters"]
            else None,
        )

    def _lifecycle(self, pools: Sequence[Pool], spans: bool, over: Callable[[], bool]) -> Lifecycle:
        """What fails, restarts, comes and goes of these replicas."""
        scenario, clock = self._scenario, self.replicas[0].clock
        engines = [partial(pool.engine, spans=spans) for pool in each_replica(pools)]
        members = [
            Member(replica, cluster, place, engine, front_end=before if isinstance(before, FrontEnd) else None)
            for replica, (cluster, place), engine in zip(self.replicas, self._where, engines, strict=True)
            for before in [cluster.server(place)]
            if isinstance(replica, Replica)
        ]
        lifecycle = Lifecycle(clock, members)
        for pool, indices in zip(pools, numbers(pools), strict=True):
            if pool.start:
                Autoscaler(clock, pool.parts.scenario.autoscale, indices, pool.start, lifecycle, over)
        if scenario.failures.on:
            Failures(clock, scenario.failures, pools, lifecycle, scenario.seed, over)
        return lifecycle

    def _disaggregation(
        self, pools: Sequence[Pool], first: Pool, prefilling: Cluster, decoding: Cluster, decoders: Sequence[Server]
    ) -> Disaggregated:
        """Between the pools of a model, of which `first` is one."""
        transfer = self._scenario.transfer
        rates = [pool.link_bytes_per_s for pool in each_replica(pools)]
        return Disaggregated(
            prefilling,
            decoding,
            decoders,
            Links(self.replicas[0].clock, dict(enumerate(rates)), transfer.latency_s),
            kv_bytes=lambda tokens: kv_bytes(first, tokens),
            bytes_per_s=rates,
            layers=first.parts.model.layers if transfer.by_layer else 0,
            min_prompt_tokens=transfer.min_prompt_tokens,
            emptied=None if self.lifecycle is None else self.lifecycle.left,
            touched=self._touched,
            left=self.left,
        )

    def left(self, req: Request, index: int) -> None:
        """Take note that a replica, or what stands before it, is done with a request."""
        cluster, place = self._where[index]
        cluster.finished(req, place)
        if self.lifecycle is not None:
            self.lifecycle.left(index)

    def _touched(self, index: int) -> None:
        """Take note that memory of a replica was taken or given back between its steps."""
        which = (self._model_of[index], self._role_of[index])
        if which in self._touches:
            self._touches[which].touched.add(self._where[index][1])

    def _finished(self, req: Request, replica: Replica | Rank) -> None:
        self.left(req, replica.index)
        self._answered(req, replica)

    def _prefilled(self, prompt: Request, replica: Replica | Rank) -> None:
        self.left(prompt, replica.index)
        if self._disaggregated[self._model_of[replica.index]].prefilled(prompt, replica):
            self._answered(prompt, replica)

    def transfers(self, sent: np.ndarray) -> pd.DataFrame | None:
        """What KV was sent (`Disaggregated.transfers`); None where no pool sends any."""
        tables = [apart.transfers(sent) for apart in self._disaggregated.values()]
        if len(tables) < 2:
            return tables[0] if tables else None
        return pd.concat(tables).sort_values("landed_s", kind="stable", ignore_index=True)


def _seeded(scenario: Scenario) -> dict[str, Any]:
    """The router's parameters; one that draws takes the scenario's seed unless it is given its own."""
    given = dict(scenario.router.parameters)
    if "seed" in inspect.signature(load("sim.routers", scenario.router.name)).parameters:
        given.setdefault("seed", scenario.seed)
    return given
