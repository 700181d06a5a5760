"""Scenarios with pools: what a pool takes from the scenario, what its pages tell, and what does not go together."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim import api
from sim.cli.main import cli
from sim.scenario import build, dump
from traces.schema import InputError

LOAD: dict[str, Any] = {
    "workload.trace": "chatbot_arena.jsonl",
    "workload.limit": 80,
    "workload.rate": 20.0,
    "seed": 3,
}
APART: dict[str, Any] = {
    "pools.prefill.role": "prefill",
    "pools.decode.role": "decode",
    "pools.decode.count": 2,
    "transfer.gb_per_s": 25.0,
}
UNLIKE: dict[str, Any] = {
    "router.name": "least-outstanding",
    "pools.new.gpu": "h100",
    "pools.old.gpu": "a100-80",
    "pools.old.count": 2,
    "pools.old.engine.max_num_seqs": 16,
}


def test_a_pool_takes_what_it_does_not_say_and_defaults_follow_its_gpu() -> None:
    scenario = build({"gpu": "h100", "engine": {"preset": "vllm-0.33"}, **LOAD, "pools.a.tp": 2, "pools.b.gpu": "l4"})
    pools = {name: pool.scenario for name, pool in scenario.pools.items()}
    assert (pools["a"].gpu, pools["a"].tp, pools["b"].gpu, pools["b"].tp) == ("h100", 2, "l4", 1)
    assert [pools[name].engine.max_num_batched_tokens for name in "ab"] == [8192, 2048]
    assert all(pool.seed == 3 for pool in pools.values())


@pytest.mark.parametrize("pools", [APART, UNLIKE])
def test_a_written_scenario_runs_the_same(pools: dict[str, Any]) -> None:
    run = api.run(**LOAD, **pools)
    again = build(tomllib.loads(dump(run.scenario)))
    assert again == run.scenario
    assert api.simulate(again).requests.equals(run.requests)


def test_names_of_pools_change_nothing() -> None:
    renamed = {key.replace("new", "one").replace("old", "two"): value for key, value in UNLIKE.items()}
    assert api.run(**LOAD, **UNLIKE).requests.equals(api.run(**LOAD, **renamed).requests)


def test_the_order_of_pools_that_are_alike_changes_nothing() -> None:
    sizes = {"pools.a.count": 1, "pools.b.count": 2}
    swapped = {"pools.b.count": 2, "pools.a.count": 1}
    for router in ("round-robin", "least-outstanding", "least-kv", "power-of-two", "random"):
        runs = [api.run(**LOAD, **pools, **{"router.name": router}) for pools in (sizes, swapped)]
        assert runs[0].requests.equals(runs[1].requests)
        alone = api.run(**LOAD, replicas=3, **{"router.name": router})
        assert runs[0].requests.equals(alone.requests)


@pytest.mark.parametrize("pools", [APART, UNLIKE])
def test_the_fleet_is_the_sum_of_its_pools(pools: dict[str, Any]) -> None:
    run = api.run(**LOAD, **pools)
    own = list(run.summary["pools"].values())
    for key in ("gpus", "usd", "joules"):
        assert sum(pool["bill"][key] for pool in own) == pytest.approx(run.summary["bill"][key])
    assert sum(pool["computed"]["tokens"] for pool in own) == run.summary["computed"]["tokens"]
    both = sum(pool["requests"] for pool in own if pool["role"] != "prefill")
    assert both == 80 - (run.requests["replica"] == 0).sum() * (pools is APART)
    assert run.summary["binding"]["pool"] in run.summary["pools"]
    assert run.summary["kv"]["classes"]["used"]["mean"] + run.summary["kv"]["classes"]["free"]["mean"] <= 1.0


def test_unlike_pools_are_used_by_what_they_can_do() -> None:
    run = api.run(**{**LOAD, "workload.rate": 60.0}, **UNLIKE)
    served = run.requests["replica"].value_counts()
    assert set(served.index) == {0, 1, 2}
    assert run.steps.groupby("replica")["running"].max()[[1, 2]].max() <= 16


def test_pages_and_tables_tell_each_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for key, value in (LOAD | APART).items() for word in ("--set", f"{key}={value}")]
    cli.main(["run", *options, "--out", str(tmp_path / "out"), "--perfetto", "--quiet"], standalone_mode=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "prefill h100 (TP 1, 1 replica) and decode 2 x h100 (TP 1, 2 replicas)" in told
    assert "transfers of KV" in told
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Pool prefill" in page
    assert "KV between pools" in page
    assert '"decode 1"' in (tmp_path / "out" / "trace.perfetto.json").read_text()
    moved = pd.read_parquet(tmp_path / "out" / "transfers.parquet")
    requests = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    split = requests.iloc[moved["request"]]
    assert (split["replica"].to_numpy() == moved["target"].to_numpy()).all()
    assert np.array_equal(split["first_token_s"].to_numpy(), moved["asked_s"].to_numpy())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["transfers"]["count"] == len(moved)
    cli.main(["report", str(tmp_path / "out")], standalone_mode=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"replicas": 2, "pools.a.count": 1}, "replicas stands beside pools"),
        ({"pools.a.count": 0}, "pools.a.count is 0; it must be a whole number from 1"),
        ({"pools.a.role": "encode"}, "pools.a: role is 'encode'; known: both, prefill, decode"),
        ({"pools.a.seed": 4}, "pools.a.seed is no pool's own"),
        ({"pools.a.gpus": "h100"}, "pools.a: unknown setting 'gpus'"),
        ({"pools.a b.count": 1}, "a pool's name is made of letters"),
        (
            {"pools.a.model": "llama-3.1-70b", "pools.a.tp": 4, "pools.b.count": 1},
            "its model is 'gpt-4', which no pool serves",
        ),
        ({"pools.a.model": "llama-3.1-70b"}, "pools.a: model 'llama-3.1-70b' does not fit on GPU 'h100' with tp = 1"),
        ({"pools.a.role": "prefill"}, "no pool of its model has the role decode"),
        ({"pools.a.role": "decode"}, "no pool of its model has the role prefill"),
        ({**APART, "pools.c.count": 1}, "pools.c.role is both, beside pools of the roles"),
        ({**APART, "transfer.gb_per_s": 0.0}, "transfer.gb_per_s is not set"),
        ({**APART, "pools.decode.kv.dtype": "fp8"}, "pools.decode: kv.dtype is fp8 and that of pools.prefill is bf16"),
        ({**APART, "pools.decode.kv.block_tokens": 32}, "pools.decode: kv.block_tokens is 32"),
        ({**APART, "pools.decode.policy.name": "static"}, "policy static holds the memory of finished requests"),
        ({**APART, "pools.decode.allocator.name": "no-cache"}, "allocator no-cache keeps no KV"),
        ({**APART, "executor": "live"}, "pools are simulated"),
        ({**APART, "workload.samples": 2}, "asks for several sequences"),
        ({"transfer.gb_per_s": 5.0}, "transfer.gb_per_s is 5, and it is read only where a pool has the role prefill"),
    ],
)
def test_what_does_not_go_together_is_told_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        api.run(**LOAD, **settings)
