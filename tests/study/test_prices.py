"""Runs of one deployment share its prices, and no result depends on it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sim import api
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.pool import pools_of
from sim.specs.workload import WorkloadSettings
from sim.study import prices
from sim.study.plan import replication
from sim.study.sweep import sweep


def of(scenario: Scenario) -> object:
    return prices.remembered(scenario, pools_of(scenario)[0].parts.cost)


def test_one_deployment_has_one_price_whatever_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "_known", {})
    plain = Scenario()
    first = of(plain)
    assert of(replace(plain, workload=WorkloadSettings(rate=3.0), seed=7, slo="ttft=1")) is first
    assert of(replace(plain, tp=2)) is not first
    for at in range(prices.MOST_MODELS):
        of(replace(plain, engine=replace(plain.engine, max_num_seqs=8 + at)))
    assert of(plain) is not first


def test_points_of_a_sweep_share_prices_and_are_what_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, simulate = [], serving.simulate

    def watched(*given, **named):  # type: ignore[no-untyped-def]
        seen.append(named["hooks"].cost)
        return simulate(*given, **named)

    monkeypatch.setattr(prices, "_known", {})
    monkeypatch.setattr(sweep.serving, "simulate", watched)
    asked = {"trace": "chatbot_arena.jsonl", "limit": 60}
    table = api.sweep(**asked, rate=[40.0, 5.0, 20.0], out=tmp_path / "out", workers=1)
    assert len(seen) == 3
    assert len({id(cost) for cost in seen}) == 1
    monkeypatch.undo()
    expected = [sweep._row(api.run(**asked, rate=rate).summary) for rate in (40.0, 5.0, 20.0)]
    told = [key for key, value in expected[0].items() if value is not None and key in table]
    assert {"e2e_s.p99", "bill.cost"} & set(told)
    for key in told:
        assert table[key].tolist() == [row[key] for row in expected], key


def test_who_works_for_a_plan_is_given_the_traces_that_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "_known", {})
    asked = WorkloadSettings(trace="chatbot_arena.jsonl", limit=20)
    here, told = replication.source(asked), pickle.dumps(replication.Informed(replication.measure))
    monkeypatch.setattr(replication, "_known", {})  # as in another process
    monkeypatch.setattr(replication, "read_trace", lambda reading: pytest.fail(f"{reading} was read once more"))
    assert pickle.loads(told) is replication.measure
    there = replication.source(asked)
    assert there is not here
    pd.testing.assert_frame_equal(there.requests, here.requests)
    monkeypatch.setattr(replication, "looks", lambda name: ((name, 1, 2, 3, 4),))  # another file now
    with pytest.raises(pytest.fail.Exception, match="once more"):
        replication.source(asked)
