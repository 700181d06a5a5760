"""What replications at several rates say together: where the clauses cross their limits, where the warm-up ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sim.results.metrics import REQUEST_COLUMNS
from sim.study.plan.observation import Clause, Floats, Observation, Window, decided
from sim.study.statistics import Estimate, mser5


@dataclass(frozen=True, slots=True)
class AtRate:
    rate_per_s: float
    observations: tuple[Observation, ...]
    excess: tuple[Estimate, ...]
    """Of each clause and of the stability, the mean excess with its interval."""
    growing: int = 0
    """Replications whose own test says that the queue grew."""

    @property
    def met(self) -> bool | None:
        """Is the SLO met, by the test? None where the replications cannot say."""
        return decided(self.excess)

    @property
    def unstable(self) -> bool:
        """Does the queue grow, by the test over replications or by that of most of them?"""
        return self.excess[-1].low > 0 or 2 * self.growing > len(self.observations)


@dataclass(frozen=True, slots=True)
class Crossed:
    """Rates at which something crosses its limit, and the clause for which the mean does first."""

    low: float | None
    middle: float | None
    high: float | None
    clause: int


def crossings(known: Sequence[AtRate], clauses: Sequence[Clause]) -> Crossed:
    """Where the upper bound, the mean and the lower bound of the excess first rise above 0; of all clauses the least.

    None: of `low`, where it is above 0 already at the lowest rate; of the others, where it never is. Shares rise ever
    more steeply, so that straight lines err downwards and those of the logarithm, if at all, upwards: the lower end of
    the interval follows the former, the upper end the latter.
    """
    rates = np.array([at.rate_per_s for at in known])
    low: float | None = math.inf
    middle, high, clause = math.inf, math.inf, 0
    for place in range(len(known[0].excess)):
        column = [at.excess[place] for at in known]
        upper, mean, lower = (
            np.array([getattr(estimate, name) for estimate in column]) for name in ("high", "mean", "low")
        )
        share = clauses[place].share if place < len(clauses) else 0.0
        mean, lower = _evened(mean, share), _evened(lower, share)
        low = None if low is None or upper[0] > 0 else min(low, _crossing(rates, upper))
        crossed = _crossing(rates, mean)
        if crossed < middle:
            middle, clause = crossed, place
        high = min(high, _crossing(rates, lower))
    if low is not None and math.isinf(low):
        low = float(rates[-1])
    return Crossed(low, None if math.isinf(middle) else middle, None if math.isinf(high) else high, clause)


def _evened(excess: Floats, share: float) -> Floats:
    """Values with the same signs that rise more evenly with the rate, so that straight lines between them err less.

    Of a share of requests the logarithm, since shares over a limit rise by orders of magnitude within a few percent
    of the rate; less than a thousandth of what is allowed counts as that.
    """
    if not share:
        return excess
    evened: Floats = np.log(np.maximum(excess + share, share / 1000) / share)
    return np.where(excess > 0, np.maximum(evened, 1e-12), np.minimum(evened, 0.0))


def _crossing(rates: Floats, values: Floats) -> float:
    """The first rate at which the polyline rises above 0; the first of all where it begins there, else infinity."""
    above = np.flatnonzero(values > 0)
    if not len(above):
        return math.inf
    place = int(above[0])
    if place == 0:
        return float(rates[0])
    before, after = values[place - 1], values[place]
    return float(rates[place - 1] + (rates[place] - rates[place - 1]) * (-before / (after - before)))


def around(rates: Sequence[float], values: Iterable[float]) -> list[float]:
    """The rates next below and next above each value, in order."""
    chosen = set()
    for value in values:
        above = next((place for place, rate in enumerate(rates) if rate > value), len(rates) - 1)
        chosen |= {rates[max(above - 1, 0)], rates[above]}
    return sorted(chosen)


def rounded(rate: float) -> float:
    """Four digits, so that a rate can be typed."""
    return float(f"{rate:.4g}")


def lifetime_s(observations: Sequence[Observation]) -> float:
    """The 90th percentile of a request's time in the system, as a mean over runs."""
    return float(np.mean([np.nanpercentile(observation.values["e2e_s"], 90) for observation in observations]))


def warm_up(observations: Sequence[Observation], clauses: Sequence[Clause]) -> tuple[Window, bool]:
    """The requests that count, from the first replications at one rate, and whether a steady state was found.

    The rule: of each latency of the SLO, the mean over the replications is taken request by request, and MSER-5 says
    where its warm-up ends. The longest counts, but no less is cut off than a tenth, and than come in the 90th
    percentile of a request's time in the system, after which the batch is full. So many are also cut off at the end,
    where the load falls. At most half and a quarter are cut.
    """
    shortest = min(map(len, observations))
    filling = math.ceil(lifetime_s(observations) * observations[0].rate_per_s)
    cuts = []
    for metric in sorted({limit.metric for clause in clauses for limit in clause.limits}):
        values = np.array([observation.values[REQUEST_COLUMNS[metric]][:shortest] for observation in observations])
        there = ~np.isnan(values)
        counts = there.sum(axis=0)
        sums = np.where(there, values, 0.0).sum(axis=0)
        cuts.append(mser5(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)))
    half = shortest // 2
    settled = None not in cuts
    skip = min(half, max([shortest // 10, filling, *(half if cut is None else cut for cut in cuts)]))
    return Window(skip, min(filling, shortest // 4)), settled
