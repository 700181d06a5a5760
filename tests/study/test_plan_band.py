"""The capacity at both ends of the errors of step times, beside what is known without simulating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import api
from sim.cost.errors import NORMAL_P90
from sim.report.plan.sentences import answer as sentence
from sim.results.metrics import parse_slo
from sim.scenario import Scenario
from sim.study.plan import model_band
from sim.study.plan.model_band import edge
from sim.study.plan.observation import Observation, Window, clauses_of
from sim.study.plan.rates import AtRate
from sim.study.plan.search import Capacity, Trial
from sim.study.plan.trials import Hands
from sim.study.statistics import Estimate


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan whose limits are so loose that only the queue's growth bounds it."""
    path: Path = tmp_path_factory.mktemp("plan") / "alike.csv"
    rows = "".join(f"{at},400,20\n" for at in range(200))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    return api.plan(trace=str(path), slo="ttft_p90=60,tpot_p90=5", requests=500, precision=0.2, workers=1)


def test_a_queues_capacity_moves_as_steps_do(told: dict[str, Any]) -> None:
    """Steps that take f times as long serve 1 / f as many: the law that the band of a loose SLO must keep."""
    capacity = told["capacity"]
    assert capacity["bound_by"] == "stability"
    model, mean = capacity["model"], capacity["requests_per_s"]
    width = NORMAL_P90 * model["common"]
    # As far apart as the rates may be between which each of the two capacities lies.
    assert math.log(mean / model["low"]) == pytest.approx(width, abs=0.1)
    assert math.log(model["high"] / mean) == pytest.approx(width, abs=0.1)
    assert model["low"] < mean < model["high"]


def test_the_band_holds_the_models_and_the_seeds(told: dict[str, Any]) -> None:
    capacity = told["capacity"]
    model, band, mean = capacity["model"], capacity["band"], capacity["requests_per_s"]
    assert band["low"] <= model["low"]
    assert band["high"] >= model["high"]
    assert mean - band["low"] <= (mean - model["low"]) + (mean - capacity["ci95"][0]) + 1e-9
    assert "for the traffic's chance; 90% with the model's errors: " in sentence(told)


def stepped(capacity: float) -> Any:
    """A bench whose every request waits 1 ms up to a rate, and 3 ms beyond it."""

    def bench(trials: Sequence[Trial]) -> list[Observation]:
        [trial] = trials
        arrival_s = np.arange(100) / trial.rate_per_s
        ttft_s = np.full(100, 0.001 if trial.rate_per_s <= capacity else 0.003)
        nothing = np.zeros(100)
        values = {"ttft_s": ttft_s, "tpot_s": nothing, "max_itl_s": nothing, "e2e_s": ttft_s, "queue_s": nothing}
        return [Observation(trial.rate_per_s, 0, arrival_s, arrival_s, arrival_s + ttft_s, np.ones(100), values)]

    return bench


@pytest.mark.parametrize("capacity", [1.0, 3.7, 40.0])
@pytest.mark.parametrize("guess", [(0.9, 0.91), (3.65, 3.72), (0.95, 5.0), (100.0, 102.0)])
def test_an_edge_is_found_from_either_side(capacity: float, guess: tuple[float, float]) -> None:
    clauses = clauses_of(parse_slo("ttft_p90=0.002"), None)
    low, high = edge(stepped(capacity), clauses, 100, Window(0), guess, 0.02)
    assert low <= capacity < high <= 1.021 * low


def test_where_no_rate_meets_the_slo_there_is_no_edge() -> None:
    clauses = clauses_of(parse_slo("ttft_p90=0.002"), None)
    assert edge(stepped(0.0), clauses, 100, Window(0), (10.0, 10.2), 0.02) == (0.0, 0.0)


@pytest.mark.parametrize("true", [8.1, 9.9, 11.9])
def test_a_coarse_grid_moves_as_the_steps_do(true: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates half as far apart again as the capacity is high, and steps that are 6 % off at most."""

    class Scaled:
        runs = 1

        def __init__(self, *args: Any, factors: Sequence[tuple[str, float]], **more: Any) -> None:
            self._bench = stepped(true / dict(factors)["decode"])

        def __call__(self, trials: Sequence[Trial]) -> list[Observation]:
            return list(self._bench(trials))

    monkeypatch.setattr(model_band, "Simulated", Scaled)
    clauses = clauses_of(parse_slo("ttft_p90=0.002"), None)
    rates = tuple(AtRate(rate, tuple(stepped(true)([Trial(rate, 0, 100)])), ()) for rate in (8.0, 12.0))
    capacity = Capacity(Estimate(10.0, 9.0, 11.0), "ttft_p90", rates, Window(0), True, 100, 10, True)
    known = {"common": 0.06, "steps": {"decode": {"common": 0.06}}}
    told, _ = model_band.capacity_band(Scenario(), clauses, capacity, known, Hands(1), precision=0.5)
    assert told["model"]["low"] == pytest.approx(10.0 * math.exp(-NORMAL_P90 * 0.06), rel=1e-3)
    assert told["model"]["high"] == pytest.approx(10.0 * math.exp(NORMAL_P90 * 0.06), rel=1e-3)
