"""The highest rate that meets an SLO, with an interval, from few replications. It does not know what runs them.

The interval is a test turned round: a rate belongs to it if replications at that rate can neither show that the SLO
is met nor that it is missed (two-sided, by Student's t over the replications). So its coverage is that of the t-test at
the true capacity, and no percentile of a finite run, which would be biased, enters it. Replications use common
random numbers: number r has the same requests and the same gaps, scaled, at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.study.plan.observation import (
    STABILITY,
    Clause,
    Floats,
    Observation,
    Window,
    conditions,
    excesses,
    requests_needed,
    verdict,
)
from sim.study.plan.rates import AtRate, around, crossings, lifetime_s, rounded, warm_up
from sim.study.statistics import CONFIDENCE, Estimate, by_skewed_replications

STEP = 1.6
"""Between rates that are tried before the capacity lies between two of them."""
FLOOR = 256.0
"""Below the first guess by this factor a request is as good as alone."""
PILOTS = 3
"""Replications that say roughly where the capacity lies."""
WIDEST = 0.12
"""Between rates that pilots compare, as a share at most: further apart, straight lines between them make intervals
wide, and the replications that make them narrow cost more than a few pilots."""
FIRST_REPLICATIONS = 10
MOST_REPLICATIONS = 64
LONGEST = 20_000
"""Requests of one replication at most."""
FEWEST = 5000
"""Requests of one replication at least."""
LIFETIMES = 15.0
"""A replication's arrivals last so many times as long as the 90th percentile of a request's time in the system."""
ROUNDS = 60
FINEST = 0.6
"""Neighbouring rates around the capacity lie closer than so much of the precision, since lines are drawn between."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One replication to be run at a rate; with a window, it may end once it is certain to miss a clause there."""

    rate_per_s: float
    replication: int
    requests: int
    window: Window | None = None


Bench = Callable[[Sequence[Trial]], list[Observation]]
"""Runs trials, in any order, and returns what they showed, in theirs."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is searched for: `precision` is the half width of the interval as a share of the capacity.

    A replication has at least `fewest` requests, five times those that its percentiles need, and arrivals for so many
    `lifetimes` of a request.
    """

    clauses: tuple[Clause, ...]
    precision: float = 0.03
    confidence: float = CONFIDENCE
    fewest: int = FEWEST
    lifetimes: float = LIFETIMES
    first_replications: int = FIRST_REPLICATIONS
    most_replications: int = MOST_REPLICATIONS

    @property
    def names(self) -> list[str]:
        """Of the conditions, the queue's stability last."""
        return conditions(self.clauses)


class UnmetError(Exception):
    """No rate meets the SLO; `observation` is what the lowest load gave."""

    def __init__(self, observation: Observation, clause: str) -> None:
        super().__init__(clause)
        self.observation = observation
        self.clause = clause


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer: the capacity in requests per second with its interval, and what it rests on."""

    interval: Estimate
    bound_by: str
    rates: tuple[AtRate, ...]
    window: Window
    settled: bool
    """Did MSER-5 find the end of the warm-up?"""
    requests: int
    replications: int
    narrow: bool
    """Is the interval as narrow as was asked?"""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Search:
    """One search: `capacity` does it all. `guess` is any rate to begin at."""

    bench: Bench
    aim: Aim
    guess: float
    say: Callable[[str], None] = lambda what: None
    requests: int = 0
    window: Window = field(default_factory=lambda: Window(0))
    settled: bool = True
    observations: dict[float, list[Observation]] = field(default_factory=dict)
    _judged: dict[tuple[float, int, Window], tuple[Floats, bool]] = field(default_factory=dict)

    def capacity(self) -> Capacity:
        """Raises UnmetError where even the lowest load misses the SLO."""
        low, high, first = self.bracket()
        self.requests = self._long_enough(first)
        for pilots in sorted({1, min(PILOTS, self.aim.first_replications)}):
            low, high = self._piloted(low, high, pilots)
        self.say(f"between {low:.4g} and {high:.4g} requests/s")
        wanted = self.aim.first_replications
        self._fill([low, high], wanted)
        self.window, self.settled = warm_up(self.observations[low], self.aim.clauses)
        for _ in range(ROUNDS):
            step = self._next(wanted)
            if step is None:
                break
            rates, wanted = step
            self._fill(rates, wanted)
        return self._answer(wanted)

    def look(self, rate: float, replications: int, requests: int) -> AtRate:
        """So many replications at one rate, judged with a warm-up of their own."""
        self.requests = requests
        self._fill([rate], replications)
        self.window, self.settled = warm_up(self.observations[rate], self.aim.clauses)
        return self.at(rate)

    def bracket(self) -> tuple[float, float, Observation]:
        """Two neighbouring rates, of which replication 0 meets the SLO at the lower only, and what it showed there."""
        self.requests = max(self.aim.fewest, 5 * requests_needed(self.aim.clauses))
        self.window = Window(self.requests // 4)
        tried: dict[float, tuple[str, Observation]] = {}

        def met(rate: float) -> bool:
            [observation] = self.bench([Trial(rate, 0, self.requests, self.window)])
            missed = observation.stopped or verdict(
                excesses(observation, self.aim.clauses, self.window), self.aim.clauses
            )
            tried[rate] = missed, observation
            self.say(f"{rate:.4g} requests/s: {f'misses {missed}' if missed else 'meets the SLO'}")
            return not missed

        low = high = rounded(self.guess)
        if met(low):
            while met(high := rounded(high * STEP)):
                low = high
        else:
            floor = rounded(self.guess / FLOOR)
            if not met(floor):
                [observation] = self.bench([Trial(floor, 0, self.requests)])  # once more, to its end
                raise UnmetError(observation, tried[floor][0])
            while (low := rounded(high / STEP)) > floor and not met(low):
                high = low
            low = max(low, floor)
        while high / low > 1 + 3 * self.aim.precision:
            middle = rounded(math.sqrt(low * high))
            if met(middle):
                low = middle
            else:
                high = middle
        return low, high, tried[low][1]

    def _piloted(self, low: float, high: float, pilots: int) -> tuple[float, float]:
        """Two neighbouring rates, of which the pilots' mean meets the SLO at the lower only: one replication may be far
        off, and no rate is worth all replications whose pilots are clear. One of the whole length comes near the place
        where several look."""
        step = 1 + min(1.5 * self.aim.precision, WIDEST)

        def met(rate: float) -> bool:
            self._fill([rate], pilots)
            self.window, _ = warm_up(self.observations[rate], self.aim.clauses)
            return all(estimate.mean <= 0 for estimate in self.at(rate).excess)

        up = met(high)
        for _ in range(ROUNDS):
            if up:
                low, high = high, rounded(high * step)
            if met(high if up else low) != up:
                break
            if not up:
                low, high = rounded(low / step), low
        return low, high

    def _known(self) -> list[AtRate]:
        """The rates that the answer rests on: those with more than pilots."""
        fewest = self.aim.first_replications
        return [self.at(rate) for rate in sorted(self.observations) if len(self.observations[rate]) >= fewest]

    def at(self, rate: float) -> AtRate:
        observations = self.observations[rate]
        judged = [self._judge(rate, number, observation) for number, observation in enumerate(observations)]
        excess = np.array([row for row, _ in judged])
        intervals = tuple(by_skewed_replications(column, self.aim.confidence) for column in excess.T)
        return AtRate(rate, tuple(observations), intervals, sum(grew for _, grew in judged))

    def _judge(self, rate: float, number: int, observation: Observation) -> tuple[Floats, bool]:
        """A replication's excesses, and whether its queue grew, worked out once."""
        key = rate, number, self.window
        if key not in self._judged:
            excess = excesses(observation, self.aim.clauses, self.window)
            self._judged[key] = excess, observation.growth(self.window).unstable
        return self._judged[key]

    def _next(self, wanted: int) -> tuple[list[float], int] | None:
        """Which rates to run next and with how many replications each; None: the interval is narrow enough."""
        precision = self.aim.precision
        known = self._known()
        rates = [at.rate_per_s for at in known]
        crossed = crossings(known, self.aim.clauses)
        lowest, highest = rates[0], rates[-1]
        step = 1 + 1.5 * precision
        if crossed.low is None:
            piloted = [rate for rate in self.observations if lowest / step <= rate < lowest]
            return [min(piloted, default=rounded(lowest / step))], wanted
        if crossed.high is None or crossed.middle is None:
            return [rounded(highest * step)], wanted
        near = around(rates, (crossed.low, crossed.middle, crossed.high))
        thin = [rate for rate in near if len(self.observations[rate]) < wanted]
        if thin:
            return thin, wanted
        below, above = around(rates, (crossed.middle,))
        finest = 1 + FINEST * precision
        if above / below > finest and (between := _between(below, crossed.middle, above, finest)) not in rates:
            return [between], wanted
        if (crossed.high - crossed.low) / 2 <= precision * crossed.middle or wanted >= self.aim.most_replications:
            return None
        wanted = min(self.aim.most_replications, math.ceil(1.5 * wanted))
        return near, wanted

    def _answer(self, wanted: int) -> Capacity:
        known = self._known()
        crossed = crossings(known, self.aim.clauses)
        low = crossed.low if crossed.low is not None else 0.0
        high = crossed.high if crossed.high is not None else math.inf
        middle = crossed.middle if crossed.middle is not None else (low if math.isinf(high) else high)
        interval = Estimate(middle, low, high)
        narrow = interval.relative <= self.aim.precision
        bound_by = self.aim.names[crossed.clause]
        return Capacity(
            interval, bound_by, tuple(known), self.window, self.settled, self.requests, wanted, narrow,
            tuple(self._notes(narrow, bound_by)),
        )  # fmt: skip

    def _notes(self, narrow: bool, bound_by: str) -> Iterable[str]:
        if not narrow:
            yield (
                f"After {self.aim.most_replications} replications of {self.requests:,} requests the interval is still "
                f"wider than {self.aim.precision:.1%}."
            )
        if not self.settled:
            yield "MSER-5 found no end of the warm-up in the first half of the replications, which was cut off."
        if bound_by == STABILITY:
            yield "The queue grows before the SLO is missed: the capacity is that of a queue that does not grow."
        if self.requests == LONGEST:
            yield (
                f"A replication was cut at {LONGEST:,} requests, which is less than {self.aim.lifetimes:g} times a "
                "request's time in the system."
            )
        limits = [clause.name for clause in self.aim.clauses if clause.statistic == "max"]
        if limits:
            yield (
                f"{', '.join(limits)} asks for every request, and the slowest of more requests is slower: the answer "
                f"is of {self.requests:,} requests; ask for a percentile, or for an attainment."
            )

    def _long_enough(self, observation: Observation) -> int:
        """Requests per replication, given what the bracket showed."""
        return min(
            LONGEST,
            max(self.requests, math.ceil(self.aim.lifetimes * lifetime_s([observation]) * observation.rate_per_s)),
        )

    def _fill(self, rates: Sequence[float], wanted: int) -> None:
        missing = [
            Trial(rate, number, self.requests)
            for number in range(wanted)
            for rate in rates
            if number >= len(self.observations.get(rate, []))
        ]
        for trial, observation in zip(missing, self.bench(missing), strict=True):
            self.observations.setdefault(trial.rate_per_s, []).append(observation)


def _between(below: float, middle: float, above: float, finest: float) -> float:
    """Where to look next for what seems to be at `middle`: so close to the nearer rate that it will be fine enough."""
    if middle < below * finest:
        return rounded(below * finest)
    return rounded(min(middle, above / finest))
