"""Adapters of whole runs: from a trace's column to what reports tell, over replicas and pools, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_kit import refused, sim

import traces
from sim import api
from sim.scenario import build
from sim.serving.assemble import assemble
from sim.serving.run import Result
from traces.schema import InputError

ROWS = 40
CSV = "arrival_s,prompt_tokens,output_tokens,adapter\n" + "".join(
    f"{at * 0.02:.2f},{40 + at % 7},{5 + at % 5},{('', 'sql', 'law', 'sql', 'med')[at % 5]}\n" for at in range(ROWS)
)
SMALL: dict[str, Any] = {"lora.max_loras": 2, "engine.max_model_len": 256, "front_end.name": "off"}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "small.csv"
    path.write_text(CSV)
    return str(path)


def ran(trace: str, **settings: Any) -> Result:
    return api.simulate(build({"trace": trace}, SMALL | settings))


def test_a_run_tells_what_was_loaded_and_what_requests_saw(trace: str) -> None:
    result = ran(trace, **{"lora.ranks.sql": 8})
    told, loads, steps = result.summary["adapters"], result.adapter_loads, result.steps
    assert loads is not None
    assert result.requests["adapter"].tolist()[:5] == ["", "sql", "law", "sql", "med"]
    assert result.requests["status"].eq("completed").all()
    assert (told["asked"], told["requests"], told["per_step"]["max"]) == (3, 32, 2)
    assert told["each"]["sql"]["requests"] == 16
    assert list(told["each"])[:2] == ["", "sql"]
    assert told["loads"] == len(loads) >= 3
    assert told["loads"] - told["evictions"] == 2
    assert sum(each["loads"] for each in told["each"].values()) == len(loads)
    assert told["load_s"] == pytest.approx(loads["load_s"].sum())
    assert told["disk_loads"] == len(loads)  # host memory has no more than the slots
    assert told["tokens"] <= (steps["repeats"] * (steps["prefill_tokens"] + steps["decode_requests"])).sum()
    # Of the time of its step, each load is a part.
    for row in loads.itertuples():
        step = steps[(steps["start_s"] <= row.time_s) & (row.time_s < steps["end_s"])]
        assert (row.time_s + row.load_s <= step["end_s"] + 1e-9).any()
    spent = result.summary["cost_terms"]
    assert spent["adapter load"]["roofline"] > 0
    assert spent["adapter shrink"]["roofline"] > 0
    assert told["deferred_requests"] > 0
    assert result.summary["binding"]["waiting"]["adapter slots"] > 0
    assert any("A step waits for the adapters that it loads" in note for note in result.summary["inputs"]["notes"])


def test_without_adapters_there_is_nothing_of_them(trace: str) -> None:
    plain = api.simulate(build({"trace": trace}, {"workload.adapters": 0, "lora.max_loras": 3} | {"limit": 1}))
    assert plain.summary["adapters"]["loads"] == 0
    off = ran(traces_without(trace), **{"lora.max_loras": 0})
    assert off.adapter_loads is None
    assert "adapters" not in off.summary
    assert "deferred" not in off.steps
    assert "adapter slots" not in off.summary["binding"]["shares"]


def traces_without(trace: str) -> str:
    path = Path(trace).with_name("plain.csv")
    path.write_text("\n".join(line.rpartition(",")[0] for line in CSV.splitlines()) + "\n")
    return str(path)


def test_more_slots_leave_less_room_and_fewer_waits(trace: str) -> None:
    few, more = (ran(trace, **{"lora.max_loras": slots, "lora.max_cpu_loras": 8}) for slots in (1, 3))
    assert few.summary["adapters"]["deferred_requests"] > 10
    assert more.summary["adapters"]["deferred_requests"] == 0
    assert few.summary["kv"]["capacity_tokens"] > more.summary["kv"]["capacity_tokens"]
    assert "GiB of each GPU for the slots of 3 adapters" in more.summary["kv"]["capacity_source"]
    assert few.summary["adapters"]["disk_loads"] == 3  # what was loaded once stays in the host


def test_draws_are_uneven_by_their_skew_and_alike_within_a_session() -> None:
    settings = {
        "workload.adapters": 4,
        "workload.base_share": 0.25,
        "lora.max_loras": 4,
        "limit": 400,
        "rate": 400.0,
        "front_end.name": "off",
    }
    told: list[dict[str, int]] = []
    for skew in (0.0, 2.0):
        result = api.simulate(build({"trace": "chatbot_arena.jsonl"}, settings | {"workload.adapter_skew": skew}))
        told.append(result.requests["adapter"].value_counts().to_dict())
        assert result.requests.groupby("session")["adapter"].nunique().max() == 1
    even, uneven = told
    assert even[""] == uneven[""] == pytest.approx(100, abs=25)
    assert [even[f"adapter-{number}"] for number in range(1, 5)] == pytest.approx([75] * 4, abs=30)
    weights = np.array([1, 1 / 4, 1 / 9, 1 / 16])
    expected = 300 * weights / weights.sum()
    assert [uneven[f"adapter-{number}"] for number in range(1, 5)] == pytest.approx(expected.tolist(), abs=30)


@pytest.mark.parametrize(
    "settings",
    [
        {"replicas": 2, "router": "adapter-affinity"},
        {"replicas": 2, "router": "adapter-affinity", "routing.poll_s": 0.1},
        {"replicas": 2, "failures.schedule": [{"replica": 0, "at_s": 0.3, "down_s": 0.1}]},
        {"tiers.host_gib": 1.0, "tiers.host_gb_per_s": 50.0},
        {"kv.blocks": 40, "kv.allow_short": True},
    ],
)
def test_fleets_answer_all_of_them(trace: str, settings: dict[str, Any]) -> None:
    result = ran(trace, **settings)
    assert result.requests["status"].eq("completed").all()
    loads = result.adapter_loads
    assert loads is not None
    for _, own in loads.groupby("replica"):
        first = own.drop_duplicates("adapter")
        assert first["disk"].all()
    if settings.get("router"):
        near = result.requests.groupby("adapter")["replica"].nunique()
        assert near[["law", "med", "sql"]].sum() < 6  # some are served by one replica alone


def test_a_replica_that_comes_back_has_none(trace: str) -> None:
    dies = {"failures.schedule": [{"replica": 0, "at_s": 0.3, "down_s": 0.1}], "lora.max_loras": 3}
    assert [len(ran(trace, **more).adapter_loads) for more in ({"lora.max_loras": 3}, dies)] == [3, 6]


def test_prompts_and_answers_of_different_pools_both_need_the_adapter(trace: str) -> None:
    pools = {"pools.p.role": "prefill", "pools.d.role": "decode", "transfer.gb_per_s": 50.0}
    result = ran(trace, **pools)
    assert result.requests["status"].eq("completed").all()
    assert sorted(result.adapter_loads["replica"].unique()) == [0, 1]
    with pytest.raises(InputError, match=r"line 3: it asks for the adapter 'sql', and pools\.d\.lora\.max_loras is 0"):
        ran(trace, **pools, **{"pools.d.lora.max_loras": 0})
    with pytest.raises(InputError, match=r"adapter 'sql' has the rank 16 in pools\.p and 8 in pools\.d"):
        ran(trace, **pools, **{"pools.d.lora.ranks.sql": 8})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lora.max_loras": 0}, "small.csv line 3: it asks for the adapter 'sql', and lora.max_loras is 0, with which"),
    ({"lora.max_loras": 0, "workload.adapters": 5}, "^workload.adapters is 5, and lora.max_loras is 0, with"),
    ({"lora.max_cpu_loras": 1}, "lora.max_cpu_loras is 1 and lora.max_loras 2: host memory has every"),
    ({"lora.rank": 32}, "lora.rank is 32, above lora.max_lora_rank, 16, that slots are made for"),
    ({"lora.ranks.sql": 64}, "lora.ranks.sql is 64, above lora.max_lora_rank, 16"),
    ({"lora.max_lora_rank": 48}, "lora.max_lora_rank is 48; vLLM makes slots for ranks of 1, 8, 16, 32, 64, 128, 256"),
    ({"lora.modules": "q_proj+query"}, "lora.modules names 'query'; known: all, or some of q_proj, k_proj, v_proj"),
    ({"lora.max_loras": 800}, r"does not fit on GPU 'h100' with tp = 1: .*\(slots for adapters: \d+\.\d GiB\)"),
    ({"policy": "static", "engine.allow_mix": True}, "lora.max_loras is set, and policy static pads rows"),
    ({"policy": "speculative", "speculation.drafter": "ngram", "engine.async_scheduling": False}, "drafts beside ada"),
    ({"pp": 2}, "adapters of replicas of several ranks or stages"),
    ({"offload.weight_layers": 2}, "adapters beside layers in host memory are not modelled"),
    ({"model": "deepseek-v2-lite"}, "adapters of a model with latent attention"),
    ({"lora.max_loras": 0, "workload.adapters": 0, "replicas": 2, "router": "adapter-affinity"}, "line 3: it asks"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "sentence"), REFUSED)
def test_what_cannot_be_is_refused(trace: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ran(trace, **settings)


def test_a_live_run_has_none() -> None:
    with pytest.raises(
        InputError, match=r"lora\.max_loras is set, and executor is live, and a live run has no adapters"
    ):
        assemble(build({"executor": "live", "kv.blocks": 64, "model": "tiny-llama"}, {"lora.max_loras": 2}))


def test_a_router_needs_adapters_to_ask_for(trace: str) -> None:
    with pytest.raises(
        InputError, match=r"adapter-affinity asks which adapters a replica has, and lora\.max_loras is 0"
    ):
        ran(traces_without(trace), **{"lora.max_loras": 0, "replicas": 2, "router": "adapter-affinity"})


def test_a_folder_a_page_and_a_timeline_have_them(
    capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path
) -> None:
    out, words = tmp_path / "out", [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    code, told, err = sim(capsys, "run", "--trace", trace, *words, "--perfetto", "--out", out, "--quiet")
    assert (code, err) == (0, f"wrote {err.split('wrote ')[-1]}")
    assert "Adapters   32 requests asked for 3" in told
    loads = pd.read_parquet(out / "adapter_loads.parquet")
    events = json.loads((out / "trace.perfetto.json").read_text())["traceEvents"]
    slices = [event for event in events if event["name"].startswith("load ")]
    assert [event["name"].removeprefix("load ") for event in slices] == loads["adapter"].tolist()
    assert "Requests that let others pass" in (out / "report.html").read_text()
    assert "lora.max_loras is 0" in refused(capsys, "run", "--trace", trace, "--out", tmp_path / "other")


# ---- traces ---------------------------------------------------------------------------------------------------------


def test_a_log_of_vllm_tells_adapters(tmp_path: Path) -> None:
    def line(name: str, adapter: str) -> str:
        params = "params: SamplingParams(n=1, max_tokens=5), prompt_token_ids: [1, 2]"
        told = f"Received request {name}: prompt: 'lora_request: LoRARequest(lora_name=\\'no\\')', {params}"
        return f"INFO 08-21 10:00:00 [logger.py:41] {told}, lora_request: {adapter}.\n"

    path = tmp_path / "vllm.log"
    path.write_text(line("a", "LoRARequest(lora_name='sql', lora_int_id=1, lora_path='/x')") + line("b", "None"))
    assert traces.read(path).requests["adapter"].tolist() == ["sql", ""]
    path.write_text(line("a", "None"))
    assert "adapter" not in traces.read(path).requests
