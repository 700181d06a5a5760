"""Step times that vary: as much as asked, by step number alone, and unasked where equal requests would move in step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_front_end import COST, check_same, serve

from sim import scenario
from sim.cost.profile import find
from sim.cost.step import StepCost
from sim.serving.assemble import assemble
from sim.serving.hooks import Hooks
from sim.serving.noise import UNKNOWN_SPREAD, repeat_spread
from traces.schema import InputError

EQUAL = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [100] * 24, "output_tokens": [20] * 24})
LONG = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [10] * 4, "output_tokens": [6000] * 4})
USERS: dict[str, Any] = {"workload.concurrency": 4}


def step_s(**settings: Any) -> np.ndarray:
    return np.diff(serve(LONG, **settings, **{"kv.blocks": 4000}).step_end_s[0])


def test_factors_are_as_wide_as_asked_and_independent() -> None:
    factors = step_s(**{"cost.noise": 0.1}) / step_s(**{"cost.noise": 0.0})
    error = 0.1 / np.sqrt(len(factors))
    assert abs(factors.mean() - 1) < 4 * error
    assert factors.std() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(factors[1:], factors[:-1])[0, 1]) < 4 * error / 0.1


def test_noise_is_of_the_seed_and_of_the_replica() -> None:
    one, same, other = (step_s(**{"cost.noise": 0.1, "seed": seed}) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()
    two = serve(LONG, **{"cost.noise": 0.1, "seed": 1, "replicas": 2, "kv.blocks": 4000}).step_end_s
    assert (np.diff(two[0])[:5000] != np.diff(two[1])[:5000]).all()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_spans_change_nothing_where_steps_vary(asynchronous: bool) -> None:
    rows = pd.DataFrame({"arrival_s": np.arange(30) * 0.021, "prompt_tokens": 90, "output_tokens": np.arange(1, 31)})
    settings = {"cost.noise": 0.1, "engine.async_scheduling": asynchronous}
    check_same(*(serve(rows, Hooks(cost=COST, spans=spans), **settings) for spans in (True, False)))


def test_equal_requests_of_a_closed_loop_get_some_unasked_and_are_told() -> None:
    def noted(table: pd.DataFrame, **settings: Any) -> list[str]:
        notes = serve(table, **settings).summary["inputs"]["notes"]
        return [note for note in notes if note.startswith("Step times vary")]

    told = "Step times vary by 2 % (standard deviation, from the seed), as in every closed loop of equal requests"
    assert noted(EQUAL, **USERS) == [f"{told}: cost.noise sets it."]
    assert noted(EQUAL, **USERS, **{"cost.noise": 0.0}) == []
    assert noted(EQUAL, **USERS, **{"cost.noise": 0.04}) == [
        "Step times vary by 4 % (standard deviation, from the seed): cost.noise sets it."
    ]
    assert noted(EQUAL) == []
    assert noted(EQUAL.assign(output_tokens=np.arange(24) + 1), **USERS) == []


def test_the_spread_is_the_profile_s_own() -> None:
    name = "h200-llama-3.1-8b"
    cost: StepCost = assemble(scenario.load(None, {"cost.profile": name, "gpu": "h200"})).cost
    apart = [each.repeat_mean for each in find(name).meta.accuracy.values()]
    # Two draws of a normal distribution are 1.128 standard deviations apart in the mean.
    assert repeat_spread(cost) == pytest.approx(float(np.median(apart)) / 1.128, rel=1e-3)
    assert 0.001 < repeat_spread(cost) < 0.1
    assert repeat_spread(COST) == UNKNOWN_SPREAD


@pytest.mark.parametrize("noise", ["loud", -0.1, 2.0])
def test_bad_noise_is_told(noise: Any) -> None:
    with pytest.raises(InputError, match=r"cost\.noise is .*; it must be (auto, or )?at least 0 and at most 1"):
        scenario.load(None, {"cost.noise": noise})
