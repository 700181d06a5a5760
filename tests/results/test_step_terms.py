"""What a run remembers beside its tables: preemptions with their times, and steps that can be priced again by term."""

from __future__ import annotations

import numpy as np
import pytest

from sim import api
from sim.cost.fixed import FixedCost
from sim.report.run.charts import PHASES, phases_s
from sim.results import steps as record
from sim.results.terms import StepTerms, term_shares

SMALL = {"kv.blocks": 400, "limit": 300, "rate": 40.0, "trace": "chatbot_arena.jsonl"}


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> api.Result:
    """A run whose memory is too small, so that it preempts."""
    return api.run(**SMALL, **{"engine.async_scheduling": request.param})


def test_every_preemption_is_told_with_its_times(run: api.Result) -> None:
    found, requests = run.preempted, run.requests.set_index("request")
    assert found is not None
    assert len(found) == run.summary["kv"]["preemptions"] > 10
    counts = found.groupby("request").size()
    assert counts.to_dict() == requests.loc[requests["preemptions"] > 0, "preemptions"].to_dict()
    mine = requests.loc[found["request"]]
    assert (found["start_s"].to_numpy() >= mine["first_scheduled_s"].to_numpy()).all()
    back_s = found["end_s"].fillna(np.inf).to_numpy()
    assert (back_s > found["start_s"].to_numpy()).all()
    assert (np.isinf(back_s) | (back_s < mine["finish_s"].to_numpy())).all()
    for _, part in found.groupby("request"):
        assert (part["start_s"].to_numpy()[1:] >= part["end_s"].to_numpy()[:-1]).all()


def test_the_phases_add_up_to_the_latency(run: api.Result) -> None:
    spent = phases_s(run.requests, run.preempted)
    assert list(spent) == [*PHASES, "preempted"]
    np.testing.assert_allclose(sum(spent.values()), run.requests["e2e_s"])
    assert all((phase >= -1e-9).all() for phase in spent.values())
    assert spent["preempted"].sum() > 0
    assert run.preempted is not None
    assert (spent["preempted"] > 0).sum() == run.preempted.dropna()["request"].nunique()
    plain = phases_s(run.requests, None)
    assert (plain["prefill"] + plain["decode"] - spent["prefill"] - spent["decode"]).sum() == pytest.approx(
        spent["preempted"].sum()
    )


def test_each_recorded_span_is_the_row_that_it_says(run: api.Result) -> None:
    terms = run.terms
    assert terms is not None
    assert terms.every == 1
    np.testing.assert_array_equal(terms.rows, np.arange(len(run.steps)))
    for place, row in enumerate(run.steps.itertuples()):
        if row.repeats == 1:
            found = terms.of(place)
            host_s = row.host_s
            if terms.overlap_host:
                host_s = max(0.0, row.host_s - row.device_s) + terms.gap.of(terms.spans[place][1])
            assert sum(found.values()) == pytest.approx(row.device_s + host_s)
            assert found["host"] == pytest.approx(host_s, abs=1e-12)


def test_the_shares_by_term_are_those_by_source(run: api.Result) -> None:
    shares = run.summary["cost_terms"]
    sources = run.summary["cost_sources"]
    assert {one: sum(parts.get(one, 0.0) for parts in shares.values()) for one in sources} == pytest.approx(sources)
    totals = [sum(parts.values()) for parts in shares.values()]
    assert totals == sorted(totals, reverse=True)


def test_of_a_long_run_every_so_many_th_span_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_SAMPLES", 16)
    run = api.run(trace="chatbot_arena.jsonl", limit=60, rate=8.0)
    assert run.terms is not None
    assert 8 <= len(run.terms.rows) <= 16
    every = run.terms.every
    assert every & (every - 1) == 0
    np.testing.assert_array_equal(run.terms.rows, np.arange(0, len(run.steps), every))
    for place, row in enumerate(run.terms.rows.tolist()):
        if run.steps["repeats"].iloc[row] == 1:
            device_s = sum(run.terms.of(place).values()) - run.terms.of(place)["host"]
            assert device_s == pytest.approx(run.steps["device_s"].iloc[row])


def test_nothing_to_share() -> None:
    assert term_shares({}) == {}
    assert term_shares({("a", "measured"): 0.0}) == {}
    assert StepTerms(FixedCost(1.0), [], False).seconds() == {}
    shares = term_shares({("a", "x"): 1.0, ("b", "x"): 2.0, ("b", "y"): 1.0})
    assert shares == {"b": {"x": 0.5, "y": 0.25}, "a": {"x": 0.25}}
    assert list(shares) == ["b", "a"]
