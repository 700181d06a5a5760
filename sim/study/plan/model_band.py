"""What the errors of step times do to the answer of a plan: the capacity with all steps at either of their ends.

Each capacity is looked for with replication 0, the same requests and gaps as the search had, and only its ratio to that
of the steps as they are is used, so that what the traffic's chance does to all of them is gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sim.cost.errors import NORMAL_P90
from sim.engine.batch import Shape
from sim.results.band import LEVEL, step_errors
from sim.results.terms import StepTerms
from sim.scenario import Scenario
from sim.serving.assemble import Parts
from sim.serving.workload import samples
from sim.specs.fleet import BOTH, DECODE, PREFILL
from sim.study.band import WAYS, at_end
from sim.study.plan.bounds import Mix, RateBound
from sim.study.plan.document import Document
from sim.study.plan.observation import Clause, Window, excesses, verdict
from sim.study.plan.rates import rounded
from sim.study.plan.search import FLOOR, Bench, Capacity, Trial
from sim.study.plan.trials import Hands, Simulated
from sim.study.statistics import CONFIDENCE, student_t
from traces.schema import Trace

NARROW = 0.02
"""Two rates between which a capacity lies are at most so far apart, or half of the precision that was asked for."""

SHORTER, HIGHER = 1.25, 0.7
"""A run that misses ends early, for a quarter of what one takes that meets: by which power strides grow downwards,
where most miss, and where between two rates the next is tried."""


def edge(
    bench: Bench,
    clauses: Sequence[Clause],
    requests: int,
    window: Window,
    guess: tuple[float, float],
    narrow: float,
    *,
    known: bool = False,
) -> tuple[float, float]:
    """Two rates, at most `narrow` apart as a share, of which one replication meets the clauses at the lower only,
    looked for from two that are guessed, or known, to be such; zeros where no rate meets them."""

    def met(rate: float) -> bool:
        [observation] = bench([Trial(rate, 0, requests, window)])
        return not (observation.stopped or verdict(excesses(observation, clauses, window), clauses))

    low, high = map(rounded, guess)
    floor = low / FLOOR
    stride = (1.0 + narrow) ** 2  # halved once; then its square, and so on
    if not known:
        if met(low):
            while met(high):
                low, high, stride = high, rounded(high * stride), stride * stride
        else:
            high = low
            while not met(low := rounded(high / stride)):
                if low < floor:
                    return 0.0, 0.0
                high, stride = low, stride**SHORTER
    while high / low > 1.0 + narrow:
        middle = rounded(low * (high / low) ** HIGHER)
        if not low < middle < high:
            break
        if met(middle):
            low = middle
        else:
            high = middle
    return low, high


def capacity_band(
    scenario: Scenario,
    clauses: tuple[Clause, ...],
    capacity: Capacity,
    known: Mapping[str, Any],
    hands: Hands,
    *,
    precision: float,
) -> tuple[Document, int]:
    """(`model` and `band` of a plan's capacity, how many simulations they took).

    Args:
        known: the `band` of one of its runs.
        hands: who runs them.
        precision: of the capacity, as a share of it.
    """
    mean, narrow = capacity.interval.mean, max(NARROW, precision / 2)
    found, runs, searched = list[tuple[float, float]](), 0, _as_searched(capacity, clauses)
    first = searched or (mean, mean * (1.0 + narrow))
    for way in (0, *WAYS):
        factors = {kind: math.exp(way * NORMAL_P90 * each["common"]) for kind, each in known["steps"].items()}
        asked = at_end(scenario, way) if way else scenario
        bench = Simulated(asked, clauses, hands, factors=tuple(factors.items()))
        slower = math.exp(way * NORMAL_P90 * known["common"])
        low, high = found[0] if found and found[0][0] > 0 else first
        # As wide as what the capacity itself is known by, lest the grid move what moves as the steps do.
        guess = low / slower, high / slower
        is_known = not way and searched is not None
        found.append(edge(bench, clauses, capacity.requests, capacity.window, guess, narrow, known=is_known))
        runs += bench.runs
    own, fast, slow = (math.sqrt(low * high) for low, high in found)
    low, high = (min(1.0, slow / own), max(1.0, fast / own)) if own > 0 else (0.0, math.inf)
    degrees = max(1, capacity.replications - 1)
    seeds = student_t(LEVEL, degrees) / student_t(CONFIDENCE, degrees)
    below = math.hypot((1.0 - low) * mean, seeds * (mean - capacity.interval.low))
    above = math.hypot((high - 1.0) * mean, seeds * (capacity.interval.high - mean))
    return {
        "model": {"level": LEVEL, "common": known["common"], "low": low * mean, "high": high * mean},
        "band": {"level": LEVEL, "low": max(0.0, mean - below), "high": mean + above},
    }, runs


def _as_searched(capacity: Capacity, clauses: Sequence[Clause]) -> tuple[float, float] | None:
    """Between which of the rates that the search tried `edge` finds what it looks for, from the capacity on; None where
    they end before."""
    rates = [at.rate_per_s for at in capacity.rates]
    met = [not verdict(excesses(at.observations[0], clauses, capacity.window), clauses) for at in capacity.rates]
    at = min(range(len(rates)), key=lambda place: abs(math.log(rates[place] / capacity.interval.mean)))
    way = 1 if met[at] else -1
    while 0 <= at + way < len(rates):
        if met[at + way] != met[at]:
            low, high = sorted((rates[at], rates[at + way]))
            return low, high
        at += way
    return None


def typical_error(parts: Parts, trace: Trace, bound: RateBound, role: str = BOTH) -> float:
    """The common error of a replica's steps as its bound has them, before anything is simulated."""
    mix = Mix.of(
        trace,
        parts.window.span_tokens if parts.window else 0,
        samples(trace.requests, parts.scenario.workload) is not None,
    )
    rows = max(1, round(bound.rows))
    spans = []
    if role != PREFILL and mix.decodes > 0:
        context, within = (rows * max(1, round(tokens)) for tokens in (mix.context, mix.window_context))
        decode = Shape(decodes=rows, decode_context=context, decode_window_context=within if parts.window else 0)
        spans.append((0, decode, max(1, round(mix.decodes))))
    if role != DECODE:
        spans.append((1, Shape(((max(1, round(mix.prompt)), 0),)), rows))
    terms = StepTerms(parts.cost, spans, parts.asynchronous, parts.gap)
    return step_errors([(terms, terms.spent()[1])]).common
