"""The plan against queueing theory: does its interval hold a known capacity, and do replicas queue as they must?

A queue with one server, constant service and Poisson arrivals (M/D/1) has its waits in closed form, and so the rate at
which their mean or a percentile meets a limit. Here the trials of the search are M/D/1 queues by Lindley's
recursion, of which `tests/serving/test_oracles.py` shows that the simulator gives the same waits, path by path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from engine_kit import Run, Setup, run
from queueing_kit import VAST, agree, md1_wait_at_most, poisson, single_steps, waits_s

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.request import Request
from sim.results import metrics
from sim.routers.least_outstanding import LeastOutstanding
from sim.routers.random import Random
from sim.serving.cluster import Router
from sim.serving.replica import Replica
from sim.study.plan.observation import STABILITY, Observation, Window, clauses_of
from sim.study.plan.search import Aim, Bench, Search, Trial


def md1(trial: Trial, seed: int, service_s: float = 1.0) -> Observation:
    """One queue: common random numbers for one seed and replication, at whatever rate."""
    count = trial.requests
    gaps = np.random.default_rng([seed, trial.replication]).exponential(1.0, count)
    due_s = (np.cumsum(gaps) - gaps[0]) * (count / trial.rate_per_s / gaps.sum())
    served = service_s * np.arange(count)
    finish_s = np.maximum.accumulate(due_s - served) + served + service_s
    nothing = np.full(count, np.nan)
    values = {
        "queue_s": finish_s - due_s - service_s,
        "ttft_s": finish_s - due_s,
        "tpot_s": nothing,
        "max_itl_s": nothing,
        "e2e_s": finish_s - due_s,
    }
    return Observation(trial.rate_per_s, trial.replication, due_s, due_s, finish_s, np.ones(count), values)


def bench(seed: int) -> Bench:
    return lambda trials: [md1(trial, seed) for trial in trials]


def aim(slo: str, **more: float) -> Aim:
    told = {"precision": 0.05, "fewest": 1500, **more}
    return Aim(clauses_of(metrics.parse_slo(slo)), **told)  # type: ignore[arg-type]


def rate_at(excess: Callable[[float], float]) -> float:
    """The load at which something that rises with it crosses zero, by bisection."""
    low, high = 0.01, 0.999
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    return low


def mean_wait_s(load: float) -> float:
    """Pollaczek and Khinchine, service time 1."""
    return load / (2 * (1 - load))


@pytest.mark.parametrize(
    ("slo", "capacity", "seeds", "least"),
    [
        # Of so many intervals that each hold the truth with probability 0.95, fewer than the least do so in one of
        # a thousand trials (binomial).
        ("queue_mean=0.5", rate_at(lambda load: mean_wait_s(load) - 0.5), 40, 33),
        ("queue_p90=2", rate_at(lambda load: 0.9 - md1_wait_at_most(2.0, load)), 100, 88),
    ],
)
def test_the_interval_covers_the_capacity_as_often_as_it_claims(
    slo: str, capacity: float, seeds: int, least: int
) -> None:
    found = [Search(bench(seed), aim(slo), 0.8).capacity() for seed in range(seeds)]
    held = sum(one.interval.low <= capacity <= one.interval.high for one in found)
    sys.stdout.write(f"\n{slo}: the interval holds the capacity {held} of {seeds} times")
    assert held >= least
    assert np.mean([one.interval.mean for one in found]) == pytest.approx(capacity, rel=0.01)
    assert all(one.narrow and one.interval.relative <= 0.05 for one in found)
    assert {one.bound_by for one in found} == {slo.partition("=")[0]}


def test_a_loose_slo_is_bounded_by_the_queue() -> None:
    """An hour of waiting never shows in a short run; above load 1 the queue grows all the same."""
    found = Search(bench(0), aim("queue_p90=3600"), 0.5).capacity()
    assert found.bound_by == STABILITY
    assert found.interval.mean == pytest.approx(1.0, abs=0.04)
    assert any("The queue grows before" in note for note in found.notes)
    unstable = [one.rate_per_s for one in found.rates if one.unstable]
    assert unstable
    assert min(unstable) > 0.97


def test_common_random_numbers_lower_the_variance_of_differences() -> None:
    """The mean wait at two service times, with the same arrivals and with others."""

    def mean(seed: int, service_s: float) -> float:
        return float(md1(Trial(0.7, 0, 2000), seed, service_s).values["queue_s"].mean())

    same = [mean(seed, 1.05) - mean(seed, 1.0) for seed in range(60)]
    other = [mean(seed, 1.05) - mean(1000 + seed, 1.0) for seed in range(60)]
    assert np.var(same) < 0.25 * np.var(other)


class LeastWork:
    """The replica that is free first: with it, waits are those of one queue for all (Kiefer and Wolfowitz 1955)."""

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._free_s: dict[int, float] = {}

    def __call__(self, req: Request, replicas: Sequence[Replica]) -> Replica:
        chosen = min(replicas, key=lambda one: self._free_s.get(one.index, 0.0))
        start_s = max(req.arrival_s, self._free_s.get(chosen.index, 0.0))
        self._free_s[chosen.index] = start_s + req.prompt_tokens / self._unit
        return chosen


def two_servers(router: Router, rate_per_s: float, prompts: np.ndarray, unit: int, seed: int) -> Run:
    cost = FixedCost(base_s=0.0, per_token_s=1 / unit)
    limits = Limits(1, 10**9)
    setup = Setup(allocator="contiguous-oracle", pool=VAST, limits=limits, cost=cost, replicas=2, router=lambda: router)
    return run(setup, single_steps(poisson(rate_per_s, len(prompts), seed), prompts.tolist()))


def erlang_c_wait_s(servers: int, load: float) -> float:
    """Mean wait of M/M/c with service rate 1 and so much work offered (Erlang 1917)."""
    queued = load**servers / math.factorial(servers) * servers / (servers - load)
    idle = sum(load**at / math.factorial(at) for at in range(servers))
    return queued / (idle + queued) / (servers - load)


def exponential(count: int, unit: int, seed: int) -> np.ndarray:
    """Prompts of exponential length, one `unit` in the mean."""
    return np.maximum(1, np.rint(np.random.default_rng(seed).exponential(unit, count))).astype(int)


def test_two_replicas_behind_one_queue_are_mm2() -> None:
    unit, load = 10_000, 1.4
    prompts = exponential(20_000, unit, 11)
    done = two_servers(LeastWork(unit), load, prompts, unit, 12)
    agree(waits_s(done), erlang_c_wait_s(2, load))
    agree(waits_s(done) > 0, erlang_c_wait_s(2, load) * (2 - load))
    # Fewest unfinished requests is a guess at that: worse than one queue, better than a coin.
    guessed = two_servers(LeastOutstanding(), load, prompts, unit, 12)
    assert waits_s(done).mean() < waits_s(guessed).mean() < 0.8 * mean_mm1_wait_s(load / 2)


def mean_mm1_wait_s(load: float) -> float:
    return load / (1 - load)


def test_random_splitting_makes_two_mg1_queues() -> None:
    """Service of 0.5 s or, for one in four, 2 s; each replica has half of the Poisson stream."""
    unit, rate_per_s = 10_000, 1.4
    rng = np.random.default_rng(21)
    prompts = np.where(rng.random(20_000) < 0.25, 2 * unit, unit // 2)
    done = two_servers(Random(seed=3), rate_per_s, prompts, unit, 22)
    mean_s, square = 0.75 * 0.5 + 0.25 * 2, 0.75 * 0.25 + 0.25 * 4
    each = rate_per_s / 2
    agree(waits_s(done), each * square / (2 * (1 - each * mean_s)))  # Pollaczek and Khinchine
    first = np.array([done.replica_of[at] == 0 for at in range(len(prompts))])
    assert first.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02


def test_the_random_router_is_seeded() -> None:
    requests = [Request(at, 0.0, 1, 1) for at in range(50)]
    replicas = ["a", "b", "c"]

    def drawn(seed: int) -> list[str]:
        router = Random(seed=seed)
        return [router(req, replicas) for req in requests]  # type: ignore[arg-type, misc]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == set(replicas)


def test_warm_up_and_end_are_cut_as_the_rule_says() -> None:
    assert Window(10, 5).slice(100) == slice(10, 95)
    assert Window(200, 5).slice(100) == slice(99, 100)
    found = Search(bench(1), aim("queue_mean=0.5"), 0.8).capacity()
    assert found.window.skip >= found.requests // 10
    assert 0 < found.window.drop <= found.requests // 4
    assert found.settled
