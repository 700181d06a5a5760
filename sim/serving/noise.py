"""Step times that vary from one step to the next, as real ones do. They are drawn from the seed, by step number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.cost.step import StepCost
from sim.engine.batch import Batch, Outcome
from sim.scenario import Scenario
from sim.serving.executor import Executor
from sim.serving.workload import stream
from traces.table import Columns

AUTO = "auto"
UNKNOWN_SPREAD = 0.02
"""Where a cost model does not know how its steps vary; measured ones do by a few percent."""
_MEAN_OF_PAIRS = 2 / math.sqrt(math.pi)
"""The mean distance of two draws from a normal distribution, in standard deviations."""
_CHUNK = 4096


def noise_of(scenario: Scenario, cost: StepCost, requests: Columns) -> float:
    """The standard deviation of a step's seconds as a share of them; `requests` are those that are sent.

    By default there is some in a closed loop of equal requests alone, which would end and come again together for ever.
    """
    noise = scenario.cost.noise
    if not isinstance(noise, str):
        return noise
    lengths = (np.asarray(requests[name]) for name in ("prompt_tokens", "output_tokens"))
    equal = len(requests) > 1 and all((each == each[0]).all() for each in lengths)
    return repeat_spread(cost) if scenario.workload.concurrency > 1 and equal else 0.0


def repeat_spread(cost: StepCost) -> float:
    """How a profile's own measurements vary where they were repeated, over the middle one of its tables."""
    from sim.cost.profiled import Profiled  # noqa: PLC0415 - closed loops of equal requests alone come here

    known = []
    if isinstance(cost, Profiled):
        known = [each.repeat_mean for each in cost.profile.meta.accuracy.values() if each.repeat_mean is not None]
    return statistics.median(known) / _MEAN_OF_PAIRS if known else UNKNOWN_SPREAD


def noise_notes(scenario: Scenario, spread: float) -> Iterator[str]:
    """What a run says of its noise."""
    if spread:
        why = ", as in every closed loop of equal requests" if scenario.cost.noise == AUTO else ""
        yield f"Step times vary by {100 * spread:.2g} % (standard deviation, from the seed){why}: cost.noise sets it."


class Noisy:
    """Multiplies the seconds of each step by a factor of its own, lognormal with a mean of 1.

    A step's factor depends on its number alone, so that spans change nothing.

    Args:
        spread: standard deviation of the factors.
        index: of the replica.
    """

    def __init__(self, inner: Executor, spread: float, seed: int, index: int) -> None:
        self._inner = inner
        self._sigma = math.sqrt(math.log1p(spread * spread))
        self._seed, self._index = seed, index
        self._chunks: dict[int, list[float]] = {}

    def execute(self, batch: Batch) -> Outcome:
        outcome = self._inner.execute(batch)
        factors = [self._factor(batch.first_step + at) for at in range(len(outcome.seconds))]
        return replace(
            outcome,
            seconds=[value * factor for value, factor in zip(outcome.seconds, factors, strict=True)],
            device_s=[value * factor for value, factor in zip(outcome.device_s, factors, strict=True)],
        )

    def _factor(self, step: int) -> float:
        number, place = divmod(step, _CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            self._chunks.pop(number - 2, None)
            rng = stream(self._seed, "noise", self._index, number)
            chunk = self._chunks[number] = rng.lognormal(-(self._sigma**2) / 2, self._sigma, _CHUNK).tolist()
        return chunk[place]
