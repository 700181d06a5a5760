"""Which candidate meets an SLO for least, by as few simulations as that takes. It does not know what runs them.

Candidates come with what they can do at best. The most promising is sized and confirmed; from then on each other one
is first asked at the most replicas with which it would still be cheaper, and dropped where it misses the SLO with
those. The order of the questions depends on answers alone, never on time, so that a search that was cut short, or
killed and begun again with what it had, goes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sim.results.units import count_of
from sim.study.plan.glance import Glance
from sim.study.plan.observation import decided
from sim.study.plan.rates import rounded
from sim.study.statistics import Estimate, by_skewed_replications

SCREEN, MAJORITY = 2, 5
"""Replications that judge a number of replicas; so many where the first do not agree."""
CONFIRMATIONS = (5, 10, 20, 40)
"""Replications after which a confirmation is looked at; it ends with the first that can say."""
LOOK_CONFIDENCE = 0.961
"""Of each look, two-sided: of four looks a rate that misses the SLO is confirmed 5 times of 100 (Pocock 1977)."""
EFFICIENCY = 0.85
"""Of the bound, the share that the first candidate is tried at."""
MARGIN = 0.05
"""The rates between which the best one's capacity is told lie so close together."""
LEAD = 2.0
"""Until one is confirmed, a candidate known to cost more than so many times what another may lets that go first."""


class FleetQuestion(NamedTuple):
    """One replication of a candidate with so many replicas; `load` multiplies the rate that is asked for, and a `whole`
    one is never ended early."""

    name: str
    replicas: int
    replication: int
    whole: bool = False
    load: float = 1.0


class CannotRunError(Exception):
    """A candidate turns out not to run at all; says why."""


Ask = Callable[[Sequence[FleetQuestion]], Sequence[Glance]]
"""Answers questions in their order; raises `sim.study.workers.crew.OverError` when the time is over."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known before anything is simulated: a replica's cost, the fewest replicas that might do, and the most
    that there may be."""

    name: str
    cost: float
    least: int
    most: int
    family: str = ""
    sizes: tuple[int, ...] = ()
    """Of a layout of pools the replicas of each: where it misses the SLO, so do smaller ones of its family."""

    def within(self, other: Candidate) -> bool:
        """Is it a layout that has of no pool more than another of its family?"""
        pairs = zip(self.sizes, other.sizes, strict=False)
        return bool(self.sizes) and self.family == other.family and all(own <= its for own, its in pairs)


@dataclass(slots=True)
class Standing:
    """What has been found out about a candidate."""

    candidate: Candidate
    missed: int
    """With so many replicas it misses the SLO, by the bound or by simulation."""
    meets: int | None = None
    """The fewest replicas with which it met the SLO in a screening."""
    confirmed: int | None = None
    done: bool = False
    cannot_run: str = ""
    """Why it does not run, where that came to light late."""
    glances: dict[tuple[int, float], dict[int, Glance]] = field(default_factory=dict)
    """By replicas and load, by replication."""

    @property
    def lowest_cost(self) -> float:
        return (self.missed + 1) * self.candidate.cost

    def whole(self, replicas: int) -> list[Glance]:
        """The replications at the rate with so many replicas that were not ended early."""
        glances = self.glances.get((replicas, 1.0), {})
        return [glance for _, glance in sorted(glances.items()) if not glance.stopped]


@dataclass(slots=True)
class Refinement:
    """A search over candidates; `run` may be left at any time by an exception, and `best` is then the best so far."""

    candidates: Sequence[Candidate]
    ask: Ask
    say: Callable[[str], None] = lambda what: None
    standings: dict[str, Standing] = field(default_factory=dict)
    best: Standing | None = None
    """The cheapest that is confirmed."""
    margin: tuple[float, float] | None = None
    """Loads of the best: (met, missed)."""
    asked: int = 0
    _efficiency: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.standings = {
            candidate.name: Standing(candidate, candidate.least - 1, done=candidate.least > candidate.most)
            for candidate in self.candidates
        }

    def run(self) -> None:
        """Ask until the answer stands; at the end come the best one's margin and the costs that might equal its."""
        while (standing := self._next()) is not None:
            try:
                self._refine(standing)
            except CannotRunError as error:
                standing.done, standing.cannot_run = True, str(error)
        if self.best is not None:
            self._measure_margin(self.best)
            self._look_for_ties(self.best)

    def _next(self) -> Standing | None:
        """The candidate that can be cheapest, among those that can beat the best."""
        for standing in self.standings.values():
            if not standing.done and self._most(standing) <= standing.missed:
                standing.done = True
        left = [standing for standing in self.standings.values() if not standing.done]
        return min(left, key=lambda standing: standing.lowest_cost, default=None)

    def _most(self, standing: Standing) -> int:
        """The most replicas with which it is still cheaper than the best."""
        candidate = standing.candidate
        if self.best is None or self.best.confirmed is None:
            return candidate.most
        cost = self.best.confirmed * self.best.candidate.cost
        return min(candidate.most, math.ceil(cost / candidate.cost * (1 - 1e-9)) - 1)

    def _refine(self, standing: Standing) -> None:
        """Size a candidate and confirm it, find that it cannot be cheaper than the best, or let another go first."""
        most = self._most(standing)
        if self.best is not None and not self._meets(standing, most):
            self._out(standing, most)
            return
        replicas = self._sized(standing, most)
        if replicas is None and standing.missed < most:
            return
        while replicas is not None and replicas <= most:
            met = self._confirmed(standing, replicas)
            name = standing.candidate.name + ("" if standing.candidate.sizes else f" with {replicas}")
            self.say(f"{name}: {'confirmed' if met else 'not confirmed'}")
            if met:
                standing.confirmed = standing.meets = replicas
                standing.done = True
                self.best = standing
                return
            standing.meets = None
            self._missed(standing, replicas)
            if self._gives_way(standing):
                return
            replicas += 1
        self._out(standing, most)

    def _gives_way(self, standing: Standing) -> bool:
        """Nothing is confirmed yet, and another candidate may be far cheaper than this one by what is known now."""
        left = [one for one in self.standings.values() if not one.done and one.missed < one.candidate.most]
        least = min((one.lowest_cost for one in left), default=math.inf)
        return self.best is None and standing.lowest_cost > LEAD * least

    def _out(self, standing: Standing, most: int) -> None:
        standing.missed = max(standing.missed, most)
        standing.meets = None
        standing.done = True
        if not standing.candidate.sizes:
            self.say(f"{standing.candidate.name}: more than {most} replicas")

    def _sized(self, standing: Standing, most: int) -> int | None:
        """The fewest replicas that meet the SLO in a screening; None where `most` do not, or another goes first."""
        candidate = standing.candidate
        share = float(np.median(self._efficiency)) if self._efficiency else EFFICIENCY
        likely = math.ceil(candidate.least / share)
        if standing.meets is None:
            tried, step = min(most, max(standing.missed + 1, likely)), 1
            while not self._meets(standing, tried):
                if tried >= most or self._gives_way(standing):
                    return None
                tried, step = min(most, tried + step), 2 * step
        assert standing.meets is not None
        while standing.meets - standing.missed > 1:
            middle = (standing.meets + standing.missed) // 2
            near = [number for number in (likely, likely - 1) if standing.missed < number < standing.meets]
            self._meets(standing, near[0] if near else middle)
        if not candidate.sizes:
            self._efficiency.append(candidate.least / standing.meets)
        return standing.meets

    def _meets(self, standing: Standing, replicas: int) -> bool:
        """Screen a number of replicas, and remember what it says of fewer and of more."""
        met = self.screened(standing, replicas)
        name = standing.candidate.name
        if not standing.candidate.sizes:
            name += f", {count_of(replicas, 'replica')}"
        self.say(f"{name}: {'meets' if met else 'misses'} the SLO")
        if met:
            standing.meets = replicas if standing.meets is None else min(standing.meets, replicas)
        else:
            self._missed(standing, replicas)
        return met

    def _missed(self, standing: Standing, replicas: int) -> None:
        standing.missed = max(standing.missed, replicas)
        for other in self.standings.values():
            if other.candidate.within(standing.candidate):
                other.missed = max(other.missed, replicas)

    def screened(self, standing: Standing, replicas: int, load: float = 1.0) -> bool:
        """Two replications that agree, or most of five."""
        for count in (SCREEN, MAJORITY):
            glances = self.look(standing, replicas, count, load=load)
            missed = sum(glance.missed for glance in glances)
            if missed in (0, len(glances)):
                break
        return 2 * missed < len(glances)

    def _confirmed(self, standing: Standing, replicas: int) -> bool:
        """By Student's test over replications, looked at a few times."""
        for count in CONFIRMATIONS:
            met = met_by(self.look(standing, replicas, count, whole=True))
            if met is not None:
                return met
        return False

    def look(
        self,
        standing: Standing,
        replicas: int,
        count: int,
        *,
        whole: bool = False,
        load: float = 1.0,
    ) -> list[Glance]:
        """So many replications, of which those that are known are not asked for again."""
        known = standing.glances.setdefault((replicas, load), {})
        missing = [number for number in range(count) if number not in known or (whole and known[number].stopped)]
        name = standing.candidate.name
        questions = [FleetQuestion(name, replicas, number, whole, load) for number in missing]
        if questions:
            self.asked += len(questions)
            for question, glance in zip(questions, self.ask(questions), strict=True):
                known[question.replication] = glance
        return [known[number] for number in range(count)]

    def _measure_margin(self, best: Standing) -> None:
        """How much more than the rate the best takes: twice as much at most, to `MARGIN`."""
        replicas = best.confirmed
        assert replicas is not None
        low, high = 1.0, min(2.0, (replicas + 1) / replicas * (1 + MARGIN))
        self.margin = low, math.inf
        if self.screened(best, replicas, rounded(high)):
            self.margin = rounded(high), math.inf
            return
        self.margin = low, rounded(high)
        while high / low > 1 + 2 * MARGIN:
            middle = rounded(math.sqrt(low * high))
            low, high = (middle, high) if self.screened(best, replicas, middle) else (low, middle)
            self.margin = low, rounded(high)

    def _look_for_ties(self, best: Standing) -> None:
        """Candidates whose next number of replicas costs no more than the best's range are asked with it."""
        most = self.top_cost(best)
        for standing in self.standings.values():
            candidate = standing.candidate
            if standing is best or standing.meets or standing.cannot_run or candidate.least > candidate.most:
                continue
            while standing.lowest_cost <= most * (1 + 1e-9) and standing.missed < candidate.most:
                if self._meets(standing, standing.missed + 1):
                    break

    def top_cost(self, best: Standing) -> float:
        """What the best costs at most within the tolerance of ties."""
        assert best.confirmed is not None
        return best.confirmed * best.candidate.cost * (1 + MARGIN)


def estimates(glances: Sequence[Glance], confidence: float = LOOK_CONFIDENCE) -> list[Estimate]:
    """Of each clause and of the stability, the mean excess over replications that were not ended early."""
    rows = np.array([glance.excess for glance in glances if not glance.stopped])
    return [by_skewed_replications(column, confidence) for column in rows.T] if len(rows) else []


def met_by(glances: Sequence[Glance]) -> bool | None:
    """Is the SLO met, by the test over whole replications? None where they cannot say."""
    intervals = estimates(glances)
    return decided(intervals) if intervals else None
