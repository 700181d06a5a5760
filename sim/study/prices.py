"""Cost models that a process keeps from one run of a study to the next, with the prices that they remember."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.step import StepCost
from sim.results.tables import flat
from sim.scenario import Scenario, as_tables
from sim.specs.workload import WorkloadSettings
from sim.study.identity import Stamps, ingredients, looks

MOST_MODELS = 8
_known: dict[tuple[str, tuple[Stamps, ...]], StepCost] = {}


def remembered(scenario: Scenario, made: StepCost) -> StepCost:
    """The cost model that an earlier run of the same scenario, whatever its load, used; else this one.

    Prices are pure functions, so that no result depends on it.
    """
    plain = replace(scenario, workload=WorkloadSettings(), seed=0, replicas=1, slo="")
    key = repr(plain), tuple(looks(name) for name in ingredients(flat(as_tables(plain))))
    if key not in _known:
        while len(_known) >= MOST_MODELS:
            del _known[next(iter(_known))]
        _known[key] = made
    return _known[key]
