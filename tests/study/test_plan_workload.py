"""Arrivals drawn anew and sessions drawn with replacement: rates, bursts, seeds, sessions kept, blocks kept apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import scenario
from sim.serving.workload import timed
from sim.specs.workload import WorkloadSettings
from traces import edit
from traces.redraw import redraw
from traces.rows import from_frame, validate
from traces.schema import InputError, Trace

PLAIN = from_frame(
    pd.DataFrame({"arrival_s": np.arange(4000.0), "prompt_tokens": np.arange(1, 4001), "output_tokens": 7})
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps_s(trace: Trace) -> np.ndarray:
    gaps: np.ndarray = np.diff(trace.requests["arrival_s"].to_numpy())
    return gaps


def chat(sessions: int, turns: int, think_s: float = 60.0) -> Trace:
    """Sessions that start each second, each turn so long after the last."""
    starts, turn = np.divmod(np.arange(sessions * turns), turns)
    table = pd.DataFrame(
        {
            "arrival_s": starts + think_s * turn,
            "prompt_tokens": 1 + np.arange(len(starts)),
            "output_tokens": 1,
            "after": np.where(turn > 0, np.arange(len(starts)) - 1, -1),
            "think_s": np.where(turn > 0, think_s, 0.0),
        }
    )
    return from_frame(table)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_rate_and_bursts_are_those_asked_for(cv: float) -> None:
    drawn = redraw(PLAIN, 25.0, rng(), cv)
    gaps = gaps_s(drawn)
    assert len(drawn) == len(PLAIN)
    assert drawn.requests["arrival_s"].iloc[0] == 0.0
    assert drawn.requests["arrival_s"].iloc[-1] <= 4000 / 25
    assert gaps.mean() == pytest.approx(1 / 25, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)
    assert drawn.requests["prompt_tokens"].tolist() == PLAIN.requests["prompt_tokens"].tolist()


def test_poisson_gaps_are_exponential() -> None:
    gaps = gaps_s(redraw(PLAIN, 2.0, rng(1))) * 2.0
    for value in (0.1, 0.5, 1.0, 2.0, 4.0):
        expected = np.exp(-value)
        assert np.mean(gaps > value) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))


def test_two_rates_see_one_stream() -> None:
    slow, fast = redraw(PLAIN, 3.0, rng(5)), redraw(PLAIN, 12.0, rng(5))
    np.testing.assert_allclose(gaps_s(slow), 4 * gaps_s(fast), rtol=1e-6, atol=1e-12)
    assert not np.allclose(gaps_s(slow), gaps_s(redraw(PLAIN, 3.0, rng(6))))


@settings(max_examples=40)
@given(
    sessions=st.integers(1, 12),
    turns=st.integers(1, 4),
    rate=st.floats(0.01, 50),
    seed=st.integers(0, 99),
    cv=st.sampled_from([0.5, 1.0, 2.5]),
)
def test_sessions_are_wrapped_whole(sessions: int, turns: int, rate: float, seed: int, cv: float) -> None:
    trace = chat(sessions, turns)
    drawn = redraw(trace, rate, rng(seed), cv)
    table = drawn.requests
    validate(table, "drawn")  # `after` names earlier requests
    assert sorted(table["prompt_tokens"]) == sorted(trace.requests["prompt_tokens"])
    window_s = sessions * turns / rate
    assert table["arrival_s"].between(0.0, window_s * (1 + 1e-9)).all()
    # Prompts number the requests of the trace in order of session and turn: who follows does so after his own turn.
    first = {
        int(row): int(parent) for row, parent in zip(trace.requests["prompt_tokens"], _parents(trace), strict=True)
    }
    times = table["arrival_s"].to_numpy()
    for place in np.flatnonzero(table["after"] >= 0):
        parent = int(table["after"].iloc[place])
        assert first[int(table["prompt_tokens"].iloc[place])] == int(table["prompt_tokens"].iloc[parent])
        assert times[place] - times[parent] == pytest.approx(60.0, abs=1e-6 * window_s)


def _parents(trace: Trace) -> list[int]:
    after = trace.requests["after"].to_numpy()
    prompts = trace.requests["prompt_tokens"].to_numpy()
    return [int(prompts[one]) if one >= 0 else -1 for one in after]


def test_later_turns_are_there_from_the_start() -> None:
    """With the trace's own times the first minute has no second turn, and the last minute no first."""
    trace = chat(600, 2)
    drawn = redraw(trace, 2.0, rng(2)).requests
    halves = np.histogram(drawn["arrival_s"], bins=10, range=(0, 600))[0]
    assert halves.min() > 0.75 * halves.mean()
    odd = edit.set_rate(trace, 2.0, rng()).requests
    assert (odd.loc[odd["arrival_s"] < 25, "after"] < 0).all()


def test_the_scenario_draws_from_its_seed() -> None:
    told = WorkloadSettings(arrivals="poisson", rate=10.0, resample=500)
    one, same, other = (timed(PLAIN, told, seed) for seed in (1, 1, 2))
    assert one.requests.equals(same.requests)
    assert not one.requests.equals(other.requests)
    assert len(one) == 500
    assert set(one.requests["prompt_tokens"]) <= set(PLAIN.requests["prompt_tokens"])
    faster = timed(PLAIN, WorkloadSettings(arrivals="poisson", rate=20.0, resample=500), 1)
    assert faster.requests["prompt_tokens"].tolist() == one.requests["prompt_tokens"].tolist()


def test_without_a_rate_the_traces_own_is_kept() -> None:
    own = timed(PLAIN, WorkloadSettings(arrivals="poisson"), 0)
    assert gaps_s(own).mean() == pytest.approx(1.0, rel=0.01)
    twice = timed(PLAIN, WorkloadSettings(arrivals="poisson", rate_scale=2.0), 0)
    assert gaps_s(twice).mean() == pytest.approx(0.5, rel=0.01)
    with pytest.raises(InputError, match="no arrival rate of its own"):
        timed(edit.slice_count(PLAIN, 0, 1), WorkloadSettings(arrivals="poisson"), 0)


def test_copies_of_a_session_share_what_all_share() -> None:
    # Block 1 is everybody's system prompt, the others are each session's own.
    ids = [np.array([1, 10 + at], dtype=np.int64) for at in range(5)]
    table = pd.DataFrame({"arrival_s": np.arange(5.0), "prompt_tokens": 32, "output_tokens": 1})
    table["prefix_blocks"] = pd.Series(ids, dtype=object)
    table["prefix_block_tokens"] = 16
    drawn = edit.resample(from_frame(table), 40, rng(4)).requests["prefix_blocks"]
    assert all(one[0] == 1 for one in drawn)
    own = [int(one[1]) for one in drawn]
    assert len(set(own)) == len(own)
    assert set(own) >= {10, 11, 12, 13, 14}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"workload.arrivals": "weibull"}, "known: trace, poisson, gamma"),
        ({"workload.arrivals_cv": 2.0}, "workload.arrivals_cv is of gamma arrivals"),
        ({"workload.arrivals": "gamma", "workload.arrivals_cv": 0.0}, "must be at least 0.001"),
        ({"workload.arrivals": "gamma", "workload.arrivals_cv": 50.0}, "at most 20"),
        ({"workload.arrivals": "poisson", "concurrency": 3}, "exclude one another"),
        ({"workload.resample": -1}, "workload.resample is -1"),
    ],
)
def test_contradictions_are_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        scenario.build({}, told)


@pytest.mark.parametrize(("rate", "cv"), [(0.0, 1.0), (np.inf, 1.0), (1.0, 0.0), (1.0, np.nan), (1.0, 21.0)])
def test_nonsense_is_refused(rate: float, cv: float) -> None:
    with pytest.raises(InputError):
        redraw(PLAIN, rate, rng(), cv)
