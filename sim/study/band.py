"""What a run answers where all of its steps are as fast, or as slow, as their errors allow. It simulates twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim.cost.errors import NORMAL_P90, step_kind
from sim.engine.batch import Batch, Outcome
from sim.results.band import FRONT_END, StepErrors, simulated, step_errors, steps_of
from sim.results.terms import FleetTerms
from sim.scenario import Scenario
from sim.serving.executor import Executor
from sim.serving.hooks import Hooks
from sim.serving.run import Result, simulate

WAYS = (-1, 1)
"""The fast end and the slow one."""
_OF_FRONT_END = ("request_s", "prompt_token_s", "step_s", "output_s", "stream_s", "latency_s")


class Scaled:
    """Multiplies the seconds of each step by the factor of its kind (`sim.cost.errors.STEP_KINDS`)."""

    def __init__(self, inner: Executor, factors: Mapping[str, float]) -> None:
        self._inner = inner
        self._factors = factors

    def execute(self, batch: Batch) -> Outcome:
        """As `Executor.execute`."""
        outcome = self._inner.execute(batch)
        shape = batch.shape
        factor = self._factors.get(step_kind(shape.prefills, shape.decodes + len(shape.verifies)), 1.0)
        return replace(
            outcome,
            seconds=[value * factor for value in outcome.seconds],
            device_s=[value * factor for value in outcome.device_s],
            host_s=outcome.host_s * factor,
            drafting_s=outcome.drafting_s * factor,
            late_s=outcome.late_s * factor,
        )


def errors_of(result: Result) -> StepErrors:
    """Of the steps of a simulated run."""
    assert result.terms is not None, "the steps of a live run are measured"
    pools = result.terms.pools if isinstance(result.terms, FleetTerms) else [result.terms]
    return step_errors([(each, each.spent()[1]) for each in pools])


def at_end(scenario: Scenario, way: int) -> Scenario:
    """The scenario with the seconds of its front end at one of `WAYS`."""
    if not scenario.front_end.on:
        return scenario
    times = math.exp(way * NORMAL_P90 * FRONT_END)
    own = {name: getattr(scenario.front_end, name) * times for name in _OF_FRONT_END}
    return replace(scenario, front_end=replace(scenario.front_end, **own))


def hooks_of(factors: Mapping[str, float]) -> Hooks:
    """What brings the steps of a run to an end of their errors."""
    return Hooks(wrap=lambda executor: Scaled(executor, factors))


def with_band(result: Result, scenario: Scenario, simulated_by: Callable[..., Result] = simulate) -> Result:
    """The result with a `band` from the same run at both ends, two more simulations.

    `scenario` is that of the run, before what was derived was spelled out.
    """
    known = errors_of(result)
    ends: list[Mapping[str, Any]] = [
        simulated_by(at_end(scenario, way), hooks=hooks_of(known.factors(way))).summary for way in WAYS
    ]
    band = simulated(result.summary, known, steps_of(result.steps), ends)
    return result.told({**result.summary, "band": band})
