"""True load: the rate that is asked for is offered, of requests alone as of sessions, in every kind of load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim import api, scenario
from sim.results.load import load
from sim.serving.workload import TraceReading, load_trace, read_trace, timed
from sim.specs.workload import StageSettings, WorkloadSettings
from traces import edit, write
from traces.redraw import own_rate
from traces.rows import from_frame, validate
from traces.schema import InputError, Trace
from traces.sessions import followed, roots

ARENA = "chatbot_arena.jsonl"


def chat(sessions: int, think_s: float, *, seed: int = 0, tokens: int = 40, most: int = 6) -> Trace:
    """Sessions of one to `most` turns that start about each second, so long between one turn and the next."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(1, most + 1, sessions)
    turn = np.concatenate([np.arange(count) for count in turns])
    start_s = np.repeat(np.cumsum(rng.exponential(1.0, sessions)), turns)
    count = len(turn)
    table = pd.DataFrame(
        {
            "arrival_s": start_s + think_s * turn,
            "prompt_tokens": rng.integers(1, 200, count),
            "output_tokens": rng.integers(1, tokens + 1, count),
            "session": pd.Series(np.repeat(np.arange(sessions), turns)).astype("string"),
            "turn": turn,
            "after": np.where(turn > 0, np.arange(count) - 1, -1),
            "think_s": np.where(turn > 0, think_s, 0.0),
        }
    )
    return from_frame(table)


def run(trace: Trace, **told: Any) -> Any:
    """A run of a trace by the scenario's own path to its times."""
    plan = scenario.build({}, told)
    return api.simulate(plan, trace=timed(trace, plan.workload, plan.seed))


def standard_error(trace: Trace, per_s: float) -> float:
    """Of the rate of so many requests, which come session by session."""
    sizes = np.bincount(roots(followed(trace.requests))).astype(float)
    return float(per_s * math.sqrt(np.square(sizes).sum()) / sizes.sum())


@settings(max_examples=25)
@given(
    sessions=st.integers(20, 250),
    think_s=st.sampled_from([0.0, 0.3, 4.0, 60.0, 3000.0]),
    rate=st.floats(0.5, 40.0),
    limit=st.integers(20, 700),
    arrivals=st.sampled_from(["trace", "poisson", "gamma"]),
    seed=st.integers(0, 99),
)
def test_what_is_asked_is_offered(
    sessions: int, think_s: float, rate: float, limit: int, arrivals: str, seed: int
) -> None:
    """Below capacity, within three standard errors; every request is sent, and only turns that waited come late."""
    trace = chat(sessions, think_s, seed=seed)
    told = WorkloadSettings(rate=rate, limit=limit, arrivals=arrivals)
    laid = timed(trace, told, seed)
    result = api.simulate(scenario.Scenario(seed=seed, workload=told), trace=laid)
    requests, about = result.requests, result.summary["load"]
    assert about["asked_per_s"] == pytest.approx(rate)
    assert about["window_s"] == pytest.approx(len(laid) / rate)
    late = (requests["arrival_s"] > about["window_s"]).to_numpy()
    assert not late[followed(laid.requests) < 0].any()
    assert about["offered_per_s"] * about["window_s"] == pytest.approx(len(laid) - late.sum())
    assert len(laid) == max(limit, len(trace))
    # Later turns wait for answers: where as many are under way as a run is long, its window ends before them.
    assume(rate * requests["e2e_s"].mean() < 2 * math.sqrt(sessions))
    assert abs(about["offered_per_s"] - rate) <= 3 * standard_error(trace, rate)
    assert about["admitted_per_s"] == about["offered_per_s"] >= about["served_per_s"]


@pytest.mark.parametrize("rate", [10.0, 30.0, 50.0])
def test_a_short_run_of_the_bundled_trace_offers_its_rate(rate: float) -> None:
    """500 of its requests once offered 2.2 to 2.6 a second at all of these rates."""
    trace = load_trace(scenario.build({}, {"trace": ARENA, "limit": 500, "rate": rate}))
    assert len(trace) == 500
    about = run(trace, rate=rate, limit=500).summary["load"]
    assert abs(about["offered_per_s"] - rate) <= 3 * standard_error(trace, rate)
    assert about["kind"] == "open"


def test_sweep_and_run_offer_alike() -> None:
    table = api.sweep(trace=ARENA, limit=300, rate=[10.0, 50.0], workers=1)
    alone = [api.run(trace=ARENA, limit=300, rate=rate).summary["load"] for rate in (10.0, 50.0)]
    assert table["load.offered_per_s"].tolist() == [about["offered_per_s"] for about in alone]
    assert table["load.asked_per_s"].tolist() == [10.0, 50.0]


def test_the_rate_is_even_from_the_first_second_to_the_last() -> None:
    trace = chat(2000, 60.0)
    for arrivals in ("trace", "poisson"):
        laid = timed(trace, WorkloadSettings(rate=20.0, arrivals=arrivals), 0)
        parts = np.histogram(laid.requests["arrival_s"], bins=8, range=(0.0, laid.window_s))[0]
        later = np.histogram(
            laid.requests.loc[laid.requests["turn"] > 0, "arrival_s"], bins=8, range=(0.0, laid.window_s)
        )[0]
        assert abs(parts / parts.mean() - 1).max() < 0.2
        assert abs(later / later.mean() - 1).max() < 0.25


@given(limit=st.integers(1, 120))
def test_a_limit_takes_whole_sessions(limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _written(chat(30, 5.0, seed=2), tmp_path_factory)
    whole = read_trace(TraceReading.of(WorkloadSettings(trace=path, rate=5.0)))
    cut = read_trace(TraceReading.of(WorkloadSettings(trace=path, rate=5.0, limit=limit)))
    assert len(cut) == min(limit, len(whole))
    sizes, every = cut.requests["session"].value_counts(), whole.requests["session"].value_counts()
    first = whole.requests.loc[whole.requests["after"] < 0, "session"].tolist()
    taken = cut.requests.loc[cut.requests["after"] < 0, "session"].tolist()
    assert taken == first[: len(taken)]
    assert all(sizes[name] == every[name] for name in taken[:-1])
    rows = read_trace(TraceReading.of(WorkloadSettings(trace=path, limit=limit)))  # without a rate the first rows
    assert rows.requests["arrival_s"].tolist() == whole.requests["arrival_s"].tolist()[:limit]


_FILES: dict[str, str] = {}


def _written(trace: Trace, folders: pytest.TempPathFactory) -> str:
    if "chat" not in _FILES:
        path = folders.mktemp("load") / "chat.parquet"
        write.write(trace, path)
        _FILES["chat"] = str(path)
    return _FILES["chat"]


@given(limit=st.integers(1, 400), seed=st.integers(0, 20))
def test_too_few_sessions_are_drawn_again(limit: int, seed: int) -> None:
    trace = chat(12, 5.0)
    laid = timed(trace, WorkloadSettings(rate=5.0, limit=limit), seed)
    table = laid.requests
    validate(table, "laid")
    assert len(table) == max(limit, len(trace))
    told = [note for note in laid.notes if "are fewer than the" in note]
    assert len(told) == (limit > len(trace))
    assert set(trace.requests["session"]) <= set(table["session"])
    assert table.equals(timed(trace, WorkloadSettings(rate=5.0, limit=limit), seed).requests)
    # A copy has a name of its own, and no turn twice.
    assert not table.duplicated(["session", "turn"]).any()


def test_the_traces_own_gaps_keep_their_shape() -> None:
    trace = chat(200, 5.0)
    start_s = trace.requests.loc[trace.requests["after"] < 0, "arrival_s"].to_numpy()
    laid = timed(trace, WorkloadSettings(rate=8.0), 0)
    table = laid.requests
    first = table.loc[table["turn"] == 0, "arrival_s"].to_numpy()
    gaps = np.diff(start_s) / np.diff(start_s).mean()
    np.testing.assert_allclose(np.diff(first) / np.diff(first).mean(), gaps, rtol=1e-9)
    assert first[-1] < laid.window_s


def test_a_scale_multiplies_what_the_sessions_offer() -> None:
    trace = chat(400, 30.0)
    own = own_rate(trace)
    assert own == pytest.approx(len(trace) / 400, rel=0.15)  # a session a second
    about = run(trace, rate_scale=3.0).summary["load"]
    assert about["asked_per_s"] == pytest.approx(3 * own)
    assert about["offered_per_s"] == pytest.approx(3 * own, rel=0.1)
    at_once = edit.at_once(trace)
    with pytest.raises(InputError, match="no arrival rate of its own to draw arrivals at; give one"):
        timed(at_once, WorkloadSettings(rate_scale=2.0), 0)
    poisson = timed(at_once, WorkloadSettings(rate=2.0), 0)  # sessions that all start at once have no gaps to keep
    assert "Poisson" in poisson.notes[-1]


def test_without_sessions_times_are_stretched_as_ever() -> None:
    trace = chat(50, 5.0)
    for told in (WorkloadSettings(rate=7.0, sessions=False), WorkloadSettings(rate_scale=7.0, sessions=False)):
        laid = timed(trace, told, 0)
        change = laid.requests["arrival_s"] / trace.requests["arrival_s"]
        assert change.dropna().max() == pytest.approx(change.dropna().min())
        assert laid.requests["after"].tolist() == trace.requests["after"].tolist()
    about = run(trace, rate=7.0, **{"workload.sessions": False}).summary["load"]
    assert (about["offered_per_s"], about["asked_per_s"]) == (pytest.approx(7.0), 7.0)


def test_an_infinite_rate_is_all_at_once() -> None:
    trace = chat(40, 5.0)
    alone = run(trace, rate=math.inf, **{"workload.sessions": False})
    assert (alone.requests["arrival_s"] == 0).all()
    about = alone.summary["load"]
    assert about["kind"] == "at once"
    assert about["window_s"] == 0.0
    assert [about[f"{what}_per_s"] for what in ("asked", "offered", "admitted", "served")] == [None] * 4
    assert about["drain_s"] == alone.requests["finish_s"].max()
    together = run(trace, rate=math.inf).requests
    laid = timed(trace, WorkloadSettings(rate=math.inf), 0).requests
    first = (laid["after"] < 0).to_numpy()
    assert (together.loc[first, "arrival_s"] == 0).all()
    parent = laid["after"].to_numpy()[~first]
    waited = together["arrival_s"].to_numpy()[~first] - together["finish_s"].to_numpy()[parent]
    np.testing.assert_allclose(waited, 5.0)


@pytest.mark.parametrize("sessions", [True, False])
def test_stages_offer_their_rates_one_after_the_other(sessions: bool) -> None:
    stages = [{"rate": 4.0, "duration_s": 50.0}, {"rate": 30.0, "duration_s": 20}, {"rate": 2.0, "duration_s": 100.0}]
    result = run(chat(100, 20.0), **{"workload.stages": stages, "workload.sessions": sessions})
    arrival_s, about = result.requests["arrival_s"], result.summary["load"]
    assert about["kind"] == "staged"
    assert about["window_s"] == 170.0
    assert about["asked_per_s"] == pytest.approx(1000 / 170)
    assert len(arrival_s) == 1000  # 350 or so in the trace
    assert any("are fewer than the 1,000 asked for" in note for note in result.summary["inputs"]["notes"])
    counts = np.histogram(arrival_s, bins=[0.0, 50.0, 70.0, 170.0])[0]
    np.testing.assert_allclose(counts, [200, 600, 200], atol=25)
    first = timed(chat(100, 20.0), WorkloadSettings(stages=(StageSettings(rate=4.0, duration_s=50.0),)), 0)
    assert len(first) == 200


def test_scales_of_stages_multiply_a_rate_or_the_traces_own() -> None:
    trace = chat(300, 2.0)
    day = tuple(StageSettings(rate_scale=scale, duration_s=40.0) for scale in (0.5, 1.5))
    asked = timed(trace, WorkloadSettings(rate=6.0, stages=day), 0)
    assert (asked.requests["arrival_s"] < 40).sum() == 6 * 0.5 * 40
    own = own_rate(trace)
    assert own is not None
    assert len(timed(trace, WorkloadSettings(stages=day), 0)) == round(own * 0.5 * 40 + own * 1.5 * 40)


def test_users_and_recorded_times_are_told_as_such() -> None:
    trace = chat(60, 1.0)
    closed = run(trace, concurrency=5).summary["load"]
    assert (closed["kind"], closed["users"], closed["asked_per_s"]) == ("closed", 5, None)
    recorded = run(trace).summary["load"]
    assert (recorded["kind"], recorded["users"], recorded["asked_per_s"]) == ("recorded", None, None)


def test_the_rates_of_a_table_by_hand() -> None:
    """Window from 2 to 6 s: four gaps of five arrivals, of which one was rejected; three ended inside."""
    table = pd.DataFrame(
        {
            "arrival_s": [2.0, 3.0, 4.0, 5.0, 6.0],
            "finish_s": [3.0, 5.0, math.nan, 5.5, 9.0],
            "status": ["completed", "completed", "rejected", "completed", "completed"],
        }
    )
    about = load(table, scenario.Scenario())
    assert about == {
        "kind": "recorded",
        "asked_per_s": None,
        "offered_per_s": 1.0,
        "admitted_per_s": pytest.approx(0.8),
        "served_per_s": 0.75,
        "window_s": 4.0,
        "users": None,
        "drain_s": 3.0,
    }
    laid = load(table, scenario.Scenario(), asked_per_s=1.0, laid_over_s=5.0)
    assert [laid[key] for key in ("offered_per_s", "admitted_per_s", "served_per_s")] == pytest.approx([0.8, 0.6, 0.4])
    assert laid["drain_s"] == 4.0


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"stages": [{"rate": 1.0}]}, "stage 1 of workload.stages has no duration_s"),
        ({"stages": [{"duration_s": 1.0}]}, "stage 1 of workload.stages has neither of rate and rate_scale"),
        ({"stages": [{"rate": 1.0, "rate_scale": 2.0, "duration_s": 1.0}]}, "has both of rate and rate_scale"),
        ({"stages": [{"rate": -1.0, "duration_s": 1.0}]}, "workload.stages.rate is -1.0; it must be 0"),
        ({"stages": [{"speed": 1.0}]}, "unknown setting 'workload.stages.speed'; workload.stages has rate, rate_scale"),
        ({"stages": 3}, "must be a list of tables of rate, rate_scale, duration_s"),
        ({"stages": [{"rate": 1.0, "duration_s": 9.0}], "limit": 3}, "stages say how many requests come"),
        ({"stages": [{"rate": 1.0, "duration_s": 9.0}], "concurrency": 3}, "exclude one another"),
        ({"stages": [{"rate": 1.0, "duration_s": 9.0}], "rate": 3.0}, "is read only as the finite rate"),
        ({"rate": math.nan}, "workload.rate is nan; it must be 0 .not set., or at least 1e-06"),
        ({"rate": math.inf, "arrivals": "poisson"}, "there are no poisson arrivals to draw"),
    ],
)
def test_what_makes_no_load_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        scenario.build({}, {f"workload.{key}": value for key, value in told.items()})


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"rate": 0.001, "duration_s": 5.0}], "ask for no request"),
        ([{"rate": 1e6, "duration_s": 1e6}], "at most 10,000,000"),
        ([{"rate": 1e9, "duration_s": 1e9}, {"rate": 1e9, "duration_s": 1e9}], "more than can be drawn"),
    ],
)
def test_what_no_trace_can_offer_is_refused(stages: list[dict[str, float]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(chat(5, 1.0), **{"workload.stages": stages})


def test_stages_and_an_infinite_rate_are_written_out(tmp_path: Path) -> None:
    for told in ({"workload.stages": [{"rate": 2, "duration_s": 3.5}]}, {"rate": math.inf}):
        plan = scenario.build({}, told)
        path = tmp_path / "scenario.toml"
        path.write_text(scenario.dump(plan))
        assert scenario.load(path) == plan
