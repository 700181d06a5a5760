"""Arrivals, waits and the theory of queues, for tests that hold a run against it.

Statistical checks state a confidence bound from batch means (Law 2014, section 9.5.3): the run is cut into 25 batches,
whose means are nearly independent, and the theory must lie within `MARGIN` standard errors, which a correct
simulator misses about once in two thousand seeds; the seeds are fixed."""

from __future__ import annotations

import math

import numpy as np
from engine_kit import Run

from sim.engine.memory import KvPool
from sim.serving.source import Workload

MARGIN = 4.0
BATCHES = 25
VAST = KvPool(64, 10**6, 10**6)


def poisson(rate_per_s: float, count: int, seed: int) -> list[float]:
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return [float(time_s) for time_s in np.cumsum(gaps_s)]


def single_steps(arrival_s: list[float], prompt_tokens: list[int] | None = None) -> Workload:
    count = len(arrival_s)
    return Workload(arrival_s, prompt_tokens or [1] * count, [1] * count)


def agree(samples: np.ndarray, theory: float) -> None:
    """The mean of correlated samples is the theory's, within the stated confidence bound."""
    means = np.array([part.mean() for part in np.array_split(samples, BATCHES)])
    error = means.std(ddof=1) / math.sqrt(BATCHES)
    assert error < 0.1 * abs(theory), "the run is too short to tell"
    assert abs(means.mean() - theory) < MARGIN * error, f"{means.mean()} +- {error}, theory says {theory}"


def waits_s(done: Run) -> np.ndarray:
    waited_s: np.ndarray = done.column("first_scheduled_s") - done.column("arrival_s")
    return waited_s


def md1_wait_at_most(time_s: float, load: float) -> float:
    """P(W <= t) of M/D/1 with service time 1 (Erlang 1909; Crommelin 1932)."""
    terms = (
        (-load * (time_s - k)) ** k / math.factorial(k) * math.exp(load * (time_s - k)) for k in range(int(time_s) + 1)
    )
    return (1 - load) * sum(terms)
