"""The candidates of a plan as fleets: what each can do at best, and its replications, kept as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.cost.errors import NORMAL_P90
from sim.results.bill import Rates
from sim.scenario import Scenario
from sim.serving.assemble import assemble
from sim.serving.pool import pools_of
from sim.serving.servable import admissible_in_all
from sim.study.identity import Made
from sim.study.plan.bounds import RateBound, bound_of
from sim.study.plan.glance import Glance, Glimpse, key_of
from sim.study.plan.journal import PlanJournal
from sim.study.plan.layouts import (
    MOST_LAYOUTS,
    PoolAtBest,
    Sizes,
    at_best,
    cost_of,
    layouts,
    name_of_layout,
    together,
    with_sizes,
)
from sim.study.plan.model_band import typical_error
from sim.study.plan.observation import Clause, Window, requests_needed
from sim.study.plan.refine import CannotRunError, FleetQuestion
from sim.study.plan.replication import Replication, sessions_per_request, source
from sim.study.plan.search import LONGEST
from sim.study.workers.crew import Crew
from traces.schema import InputError

GROUP = 3
"""Of more replicas so many, with their share of the load, stand for all: more of them share it only more evenly."""
FILLING, FALLING, COUNTED = 2, 1, 9
"""A replication lasts so many times as long as the 90th percentile of a request's time in the system: while the batch
fills, while the load falls at the end, and between them as long as one replica needs, shared by those that run
together, whose chance averages out."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One replica's scenario, with what its costs say before anything is simulated.

    Of several pools it is a whole layout, so many replicas of each, and what is said of a replica holds for all of it.
    """

    name: str
    scenario: Scenario
    bound: RateBound
    usd_per_hour: float | None
    """Of one replica; None where no price is known."""
    price_source: str
    sessions_per_request: float
    fewest: int
    """Requests of a replication, at least."""
    common: float
    """The common error of its steps, before anything is simulated (`sim.results.band`)."""
    gpus: int = 1
    """Of one replica."""
    replicas: int = 1
    """That it is: more than 1 in a layout of pools."""
    family: str = ""
    """Of a layout the candidate that it is one of."""
    sizes: Sizes = ()
    """Of a layout the replicas of each pool."""

    def hourly(self, replicas: int) -> float | None:
        """Dollars an hour of so many replicas; None where no price is known."""
        return None if self.usd_per_hour is None else self.usd_per_hour * replicas

    def glimpse(self, question: FleetQuestion, rate: float, clauses: tuple[Clause, ...]) -> Glimpse:
        """What answers a question: how many requests, and which of them count.

        No less than a tenth is cut off at the beginning, and what comes in twice a request's time in the system at the
        bound, after which the batch is full; what comes in once that time is cut off at the end.
        """
        group = min(question.replicas, GROUP)
        rate *= question.load * group / question.replicas
        filling = math.ceil(self.bound.lifetime_s * rate)
        lasting = math.ceil((FILLING + FALLING + COUNTED / min(group * self.replicas, GROUP)) * filling)
        requests = min(LONGEST, max(self.fewest, 5 * requests_needed(clauses), lasting))
        skip = min(requests // 2, max(requests // 10, FILLING * filling))
        window = Window(skip, min(FALLING * filling, requests // 4))
        base = replace(self.scenario, replicas=group)
        sessions = math.ceil(requests * self.sessions_per_request)
        point = Replication(base, rate, question.replication, sessions, clauses)
        return Glimpse(point, window, question.whole)

    def gains(self, clauses: Sequence[Clause], band: Mapping[str, Any] | None) -> tuple[float, float]:
        """By how much a replica's capacity differs where steps are as fast or as slow as their errors allow, those of a
        run's `band` where there is one: factors of the capacity, as the bound has them."""
        slower_by = math.exp(NORMAL_P90 * (self.common if band is None else band["common"]))
        trace = source(self.scenario.workload)

        def rate_per_s(times: float) -> float:
            if not self.sizes:
                return bound_of(assemble(self.scenario), trace, clauses, times).rate_per_s
            return together(at_best(self.scenario, trace, clauses, times), self.sizes).rate_per_s

        plain, faster, slower = (rate_per_s(times) for times in (1.0, 1.0 / slower_by, slower_by))
        return max(1.0, faster / plain), min(1.0, slower / plain)

    @property
    def least_gpus(self) -> int:
        """The fewest GPUs by which it can grow."""
        return min(kind.parallel.gpus for kind in self.scenario.kinds)


def fleet(name: str, scenario: Scenario, clauses: Sequence[Clause], fewest: int) -> Fleet:
    """Raises InputError for a scenario that cannot be assembled, or whose trace cannot be read."""
    trace = source(scenario.workload)
    parts = assemble(scenario)
    rates = Rates.of(scenario.parallel.gpus, parts.gpu, scenario.price)
    bound = bound_of(parts, trace, clauses)
    return Fleet(
        name,
        scenario,
        bound,
        None if rates.usd_per_gpu_hour is None else rates.usd_per_gpu_hour * scenario.parallel.gpus,
        rates.price_source,
        sessions_per_request(trace),
        fewest,
        typical_error(parts, trace, bound),
        scenario.parallel.gpus,
    )


def fleets_of_pools(
    name: str, scenario: Scenario, clauses: Sequence[Clause], fewest: int, rate: float, most_gpus: int
) -> tuple[list[Fleet], list[PoolAtBest]]:
    """The layouts of a scenario's pools that may take a rate, the cheapest first, and each pool at best.

    Raises InputError as `pools_of`, for a trace that cannot be read, and where no layout may take the rate.
    """
    trace = source(scenario.workload)
    pools = at_best(scenario, trace, clauses)
    able = layouts(pools, rate, most_gpus)[:MOST_LAYOUTS]
    if not able:
        raise InputError(_none_does(pools, rate, most_gpus))
    sessions = sessions_per_request(trace)
    return [_layout(name, scenario, pools, sizes, sessions, fewest) for sizes in able], pools


def _none_does(pools: Sequence[PoolAtBest], rate: float, most_gpus: int) -> str:
    for pool in pools:
        for clause, (least_s, limit_s) in pool.bound.floors.items():
            return f"pools.{pool.name} misses {clause} at any load ({least_s:.3g} s alone, limit {limit_s:g} s)"
    needed = ", ".join(f"{pool.name} {pool.fewest(rate)}" for pool in pools)
    return f"no layout of at most {most_gpus} GPUs takes {rate:g} requests/s: at best that needs {needed} replicas"


def _layout(
    name: str, scenario: Scenario, pools: Sequence[PoolAtBest], sizes: Sizes, sessions: float, fewest: int
) -> Fleet:
    counts = {pool.name: size for pool, size in zip(pools, sizes, strict=True)}
    priced = all(pool.usd_per_hour is not None for pool in pools)
    return Fleet(
        name_of_layout(name, counts),
        with_sizes(scenario, sizes),
        together(pools, sizes),
        cost_of(pools, sizes) if priced else None,
        "; ".join(dict.fromkeys(pool.price_source for pool in pools)),
        sessions,
        fewest,
        max(pool.common for pool in pools),
        sum(pool.gpus * size for pool, size in zip(pools, sizes, strict=True)),
        sum(sizes),
        name,
        sizes,
    )


class Simulations:
    """Answers questions about fleets: from the journal, else by simulating them."""

    def __init__(
        self,
        fleets: Sequence[Fleet],
        rate: float,
        clauses: tuple[Clause, ...],
        journal: PlanJournal,
        crew: Crew[Glimpse, Glance],
        made: Made,
    ) -> None:
        self._fleets = {each.name: each for each in fleets}
        self._rate, self._clauses, self._made = rate, clauses, made
        self._journal, self._crew = journal, crew
        self._admitted: set[str] = set()
        self.runs = 0

    def __call__(self, questions: Sequence[FleetQuestion]) -> list[Glance]:
        """In the order of the questions. Raises OverError, with what has come kept; CannotRunError; InputError."""
        self._admit({question.name for question in questions})
        asked = [self._fleets[question.name].glimpse(question, self._rate, self._clauses) for question in questions]
        keys = [key_of(each, self._made) for each in asked]
        known = [self._journal.get(key, whole=each.whole) for key, each in zip(keys, asked, strict=True)]
        answers = dict(enumerate(known))
        missing = [place for place, glance in answers.items() if glance is None]
        for index, glance in self._crew([asked[place] for place in missing]):
            place = missing[index]
            self._journal.add(keys[place], glance)
            answers[place] = glance
            self.runs += 1
        return [glance for _, glance in sorted(answers.items()) if glance is not None]

    def _admit(self, names: set[str]) -> None:
        """Before its first simulation, look whether a candidate can serve the trace's requests at all."""
        for name in sorted(names - self._admitted):
            scenario = self._fleets[name].scenario
            try:
                pools = pools_of(scenario)
                admissible_in_all(
                    pools,
                    source(scenario.workload),
                    [pool.parts.engine() for pool in pools],
                    fails=scenario.failures.on,
                )
            except InputError as error:
                raise CannotRunError(str(error)) from None
            self._admitted.add(name)
