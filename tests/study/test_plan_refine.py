"""The planner's search against exhaustive search, cut short anywhere, and killed and begun again.

Here a replica's capacity is given, and replications are drawn from it: no simulator is in the loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.study.plan.glance import Glance
from sim.study.plan.refine import (
    LOOK_CONFIDENCE,
    Candidate,
    CannotRunError,
    FleetQuestion,
    Refinement,
    met_by,
)
from sim.study.workers.crew import OverError

RATE = 100.0


@dataclass
class Bench:
    """Replicas that each take `capacity`; `noise` is of the logarithm of the load in one replication."""

    capacity: dict[str, float]
    noise: float = 0.0
    lasts: float = math.inf
    stops: bool = True
    known: dict[FleetQuestion, Glance] = field(default_factory=dict)
    asked: list[FleetQuestion] = field(default_factory=list)

    def __call__(self, questions: Sequence[FleetQuestion]) -> list[Glance]:
        return [self.known.get(question) or self.draw(question) for question in questions]

    def draw(self, question: FleetQuestion) -> Glance:
        if len(self.asked) >= self.lasts:
            raise OverError
        self.asked.append(question)
        load = question.load * (RATE / question.replicas / self.capacity[question.name])
        seed = [int(1e6 * self.capacity[question.name]), question.replicas, question.replication]
        excess = math.log(load) + float(np.random.default_rng(seed).normal(0, self.noise))
        if excess > 0 and self.stops and not question.whole:
            answer = Glance("ttft_p99")
        else:
            answer = Glance("", (excess, -0.5), False, {"ttft_p99": math.exp(excess)}, {}, 1.0)
        self.known[question] = answer
        return answer


@st.composite
def markets(draw: st.DrawFn) -> tuple[list[Candidate], dict[str, float]]:
    """Candidates with bounds that are never below what they take, as `Fleet` makes them."""
    candidates, capacity = [], {}
    for place in range(draw(st.integers(1, 6))):
        name = f"gpu{place}"
        capacity[name] = draw(st.floats(0.7, 130.0))
        bound = capacity[name] * draw(st.floats(1.0, 2.5))
        cost = draw(st.floats(0.5, 20.0))
        most = draw(st.integers(1, 60))
        candidates.append(Candidate(name, cost, max(1, math.ceil(RATE / bound)), most))
    return candidates, capacity


def exhaustive(candidates: Sequence[Candidate], capacity: dict[str, float]) -> float:
    """The least cost of all numbers of replicas of all candidates."""
    return min(
        (
            replicas * candidate.cost
            for candidate in candidates
            for replicas in range(1, candidate.most + 1)
            if math.log(RATE / replicas / capacity[candidate.name]) <= 0
        ),
        default=math.inf,
    )


def best_cost(refinement: Refinement) -> float:
    best = refinement.best
    return math.inf if best is None or best.confirmed is None else best.confirmed * best.candidate.cost


@settings(max_examples=100)
@given(markets())
def test_it_finds_what_exhaustive_search_finds(market: tuple[list[Candidate], dict[str, float]]) -> None:
    candidates, capacity = market
    bench = Bench(capacity)
    refinement = Refinement(candidates, bench)
    refinement.run()
    assert best_cost(refinement) == pytest.approx(exhaustive(candidates, capacity))
    everything = sum(candidate.most for candidate in candidates if candidate.least <= candidate.most)
    assert len({(one.name, one.replicas) for one in bench.asked if one.load == 1.0}) <= everything


@settings(max_examples=30)
@given(markets(), st.sampled_from([0.0, 0.02, 0.1]))
def test_the_best_so_far_is_never_worse_with_more_budget(
    market: tuple[list[Candidate], dict[str, float]], noise: float
) -> None:
    candidates, capacity = market
    whole = Bench(capacity, noise)
    Refinement(candidates, whole).run()
    last = math.inf
    for budget in range(len(whole.asked) + 1):
        refinement = Refinement(candidates, Bench(capacity, noise, lasts=budget))
        with suppress(OverError):
            refinement.run()
        cost = best_cost(refinement)
        assert cost <= last
        last = cost


@settings(max_examples=30)
@given(markets(), st.lists(st.integers(1, 15), max_size=6), st.sampled_from([0.0, 0.05]))
def test_killed_at_random_and_begun_again_it_gives_the_same_answer(
    market: tuple[list[Candidate], dict[str, float]], kills: list[int], noise: float
) -> None:
    candidates, capacity = market
    whole = Bench(capacity, noise)
    plain = Refinement(candidates, whole)
    plain.run()
    known: dict[FleetQuestion, Glance] = {}
    for lasts in [*kills, math.inf]:
        bench = Bench(capacity, noise, lasts=lasts, known=known)
        again = Refinement(candidates, bench)
        try:
            again.run()
        except OverError:
            continue
    assert {name: (each.confirmed, each.meets, each.missed) for name, each in again.standings.items()} == {
        name: (each.confirmed, each.meets, each.missed) for name, each in plain.standings.items()
    }
    assert again.margin == plain.margin
    assert known == whole.known


def test_what_cannot_be_cheaper_is_never_simulated() -> None:
    candidates = [Candidate("cheap", 1.0, 4, 100), Candidate("dear", 10.0, 2, 100), Candidate("close", 2.0, 2, 100)]
    bench = Bench({"cheap": 21.0, "dear": 60.0, "close": 30.0})
    refinement = Refinement(candidates, bench)
    refinement.run()
    assert best_cost(refinement) == 5.0
    asked = {question.name for question in bench.asked}
    assert "dear" not in asked
    # Its bound, two replicas for 4, could beat 5: it is asked with the two that would be cheaper, and no others but
    # those that would tie.
    assert {question.replicas for question in bench.asked if question.name == "close"} == {2}


def test_one_far_below_its_bound_lets_others_go_first() -> None:
    """By their bounds both need one replica; of the first 60 are needed, of the second 2."""
    bench = Bench({"hopeless": 1.7, "good": 60.0})
    candidates = [Candidate("hopeless", 1.0, 1, 200), Candidate("good", 1.0, 1, 200)]
    refinement = Refinement(candidates, bench)
    refinement.run()
    assert best_cost(refinement) == 2
    assert max(question.replicas for question in bench.asked if question.name == "hopeless") < 4
    assert len(bench.asked) < 40


def test_where_all_are_far_below_their_bounds_they_take_turns() -> None:
    bench = Bench({"worse": 0.9, "better": 1.1})
    refinement = Refinement([Candidate("worse", 1.0, 1, 200), Candidate("better", 1.0, 1, 200)], bench)
    refinement.run()
    assert best_cost(refinement) == math.ceil(RATE / 1.1)
    assert len({question.replicas for question in bench.asked}) < 40


def test_the_margin_holds_the_capacity() -> None:
    refinement = Refinement([Candidate("gpu", 1.0, 3, 100)], Bench({"gpu": 28.0}))
    refinement.run()
    assert refinement.best is not None
    assert refinement.best.confirmed == 4
    assert refinement.margin is not None
    low, high = refinement.margin
    assert low <= 4 * 28.0 / RATE <= high
    assert high / low <= 1.1001


def test_one_that_turns_out_not_to_run_is_left_out() -> None:
    bench = Bench({"odd": 100.0, "plain": 60.0})

    def ask(questions: Sequence[FleetQuestion]) -> list[Glance]:
        if questions[0].name == "odd":
            raise CannotRunError("it cannot")
        return bench(questions)

    refinement = Refinement([Candidate("odd", 0.1, 1, 10), Candidate("plain", 1.0, 1, 10)], ask)
    refinement.run()
    assert refinement.standings["odd"].cannot_run == "it cannot"
    assert best_cost(refinement) == 2.0


def test_a_confirmation_is_wrong_at_most_as_often_as_it_says() -> None:
    """Of capacities just below the rate, that of four looks at 5, 10, 20 and 40 replications together."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        drawn = rng.normal(0.0, 1.0, 40)
        for count in (5, 10, 20, 40):
            met = met_by([Glance("", (float(excess), -0.5)) for excess in drawn[:count]])
            if met is not None:
                break
        wrong += bool(met)
    # A binomial of 400 and 5 percent exceeds 34 in one of a thousand trials.
    assert 4 <= wrong <= 34, f"{wrong} of 400 at {LOOK_CONFIDENCE}"
