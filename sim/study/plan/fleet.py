"""The candidates of a plan as fleets: what each can do at best, and its replications, kept as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sim.results.bill import Rates
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.assemble import assemble
from sim.study.identity import Made
from sim.study.plan.bounds import RateBound, bound_of
from sim.study.plan.errors import cost_model
from sim.study.plan.glance import Glance, Glimpse, key_of
from sim.study.plan.journal import PlanJournal
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
    """One replica's scenario, with what its costs say before anything is simulated."""

    name: str
    scenario: Scenario
    bound: RateBound
    usd_per_hour: float | None
    """Of one replica; None where no price is known."""
    price_source: str
    sessions_per_request: float
    fewest: int
    """Requests of a replication, at least."""

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.scenario.tp

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
        lasting = math.ceil((FILLING + FALLING + COUNTED / group) * filling)
        requests = min(LONGEST, max(self.fewest, 5 * requests_needed(clauses), lasting))
        skip = min(requests // 2, max(requests // 10, FILLING * filling))
        window = Window(skip, min(FALLING * filling, requests // 4))
        base = replace(self.scenario, replicas=group)
        sessions = math.ceil(requests * self.sessions_per_request)
        point = Replication(base, rate, question.replication, sessions, clauses)
        return Glimpse(point, window, question.whole)

    def gains(self, clauses: Sequence[Clause], sources: Mapping[str, float] | None) -> tuple[float, float]:
        """By how much a replica's capacity differs where steps are faster or slower by the cost model's error: factors
        of the capacity, as the bound has them."""
        error, parts, trace = cost_model(sources), assemble(self.scenario), source(self.scenario.workload)
        plain, faster, slower = (
            bound_of(parts, trace, clauses, times).rate_per_s for times in (1.0, 1 / (1 + error), 1 + error)
        )
        return max(1.0, faster / plain), min(1.0, slower / plain)


def fleet(name: str, scenario: Scenario, clauses: Sequence[Clause], fewest: int) -> Fleet:
    """Raises InputError for a scenario that cannot be assembled, or whose trace cannot be read."""
    trace = source(scenario.workload)
    parts = assemble(scenario)
    rates = Rates.of(scenario.tp, parts.gpu, scenario.price)
    return Fleet(
        name,
        scenario,
        bound_of(parts, trace, clauses),
        None if rates.usd_per_gpu_hour is None else rates.usd_per_gpu_hour * scenario.tp,
        rates.price_source,
        sessions_per_request(trace),
        fewest,
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
                parts = assemble(scenario)
                serving.admissible(parts, source(scenario.workload), parts.engine())
            except InputError as error:
                raise CannotRunError(str(error)) from None
            self._admitted.add(name)
