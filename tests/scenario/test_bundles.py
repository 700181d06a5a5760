"""Scenarios that come along: each runs by its name, shows what it is there for, and can be changed by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sim import api
from sim.catalog import bundles
from sim.cli.main import cli
from sim.results.presence import ABSENT, ORDERED
from sim.scenario import load
from sim.serving.assemble import assemble
from traces.schema import InputError

WIDE = "deepseek-v3-wide-ep"


def short(name: str, **more: Any) -> Any:
    """The run of a scenario with few requests, unless it says itself how many come."""
    limit = {} if name == "autoscaled-chat" else {"workload.limit": 120}
    return api.run(name, **limit, **more)


@pytest.mark.parametrize("name", [name for name in bundles.scenarios() if name != "autoscaled-chat"])
def test_each_runs(name: str) -> None:
    ran = short(name)
    assert ran.summary["requests"]["completed"] == 120
    assert ran.summary["goodput"]["fraction"] > 0.9


def test_eight_gpus_share_one_model() -> None:
    assert set(short("h100x8").requests["replica"]) == set(range(8))


def test_two_prefill_and_six_decode() -> None:
    ran = short("prefill-decode")
    assert ran.transfers is not None
    assert set(ran.transfers["source"]) == {0, 1}
    assert set(ran.transfers["target"]) <= set(range(2, 8))


def test_a_day_of_chat_takes_gpus_by_day_and_gives_them_back() -> None:
    ran = short("autoscaled-chat", seed=1)
    assert ran.events is not None
    told = ran.summary["scaling"]["all"]
    assert told["least_replicas"] == 1
    assert told["most_replicas"] > 3
    assert told["mean_replicas"] < 0.7 * told["most_replicas"]
    # The load is least from 60 to 160 s and most from 200 to 380 s.
    time_s = ran.events["time_s"]
    assert ((ran.events["event"] == ORDERED) & (time_s > 180.0) & (time_s < 300.0)).sum() >= 3
    assert ((ran.events["event"] == ABSENT) & (time_s > 400.0)).sum() >= 1


def test_two_models_have_pools_of_their_own() -> None:
    told = short("two-models").summary["models"]
    assert set(told) == {"llama-3.1-8b", "llama-3.1-70b"}


def test_a_router_keeps_adapters_where_they_are() -> None:
    loads = [
        len(short("many-adapters", router=name).adapter_loads) for name in ("adapter-affinity", "least-outstanding")
    ]
    assert loads[0] < 0.8 * loads[1]


def test_options_win_and_files_of_ones_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = CliRunner().invoke(cli, ["run", "h100x8", "--limit", "20", "--set", "replicas=2", "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["inputs"]["replicas"] == 2
    monkeypatch.chdir(tmp_path)
    Path("h100x8").write_text("replicas = 3\n")
    assert bundles.located("h100x8") == Path("h100x8")


def test_they_are_listed_and_an_unknown_one_is_told_in_a_sentence() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["list", "scenarios", "--json"]).stdout)
    assert [row["name"] for row in listed] == list(bundles.scenarios())
    assert all(row["about"].endswith(".") for row in listed)
    with pytest.raises(InputError, match="gone does not exist, and no scenario of that name comes along; known: auto"):
        api.run("gone")


@pytest.mark.parametrize(("gpus", "each"), [(16, 18), (32, 9), (64, 5)])
def test_wide_expert_parallelism_from_16_to_64_gpus(gpus: int, each: int) -> None:
    """256 experts and 32 copies, whole ones over all GPUs; attention's weights and all KV are each rank's own."""
    parts = load(WIDE, {"dp": gpus, "ep": gpus})
    assert parts.parallel.gpus == gpus
    assert parts.parallel.held(256) == each


def test_more_gpus_hold_more_kv_and_a_model_that_does_not_fit_says_how_many_it_takes() -> None:
    room = [assemble(load(WIDE, {"dp": gpus, "ep": gpus})).pool.tokens for gpus in (16, 64)]
    assert room[1] > room[0] > 0
    with pytest.raises(InputError, match=r"does not fit on GPU 'h100' with tp = 1, dp = 8, ep = 8: .* tp = 1, dp = 16"):
        assemble(load(WIDE, {"gpu": "h100", "dp": 8, "ep": 8, "redundant_experts": 0}))
