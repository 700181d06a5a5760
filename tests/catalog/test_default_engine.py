"""The engine where none is named: the newest that is reproduced, what is said of it, and what runs all the same."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from sim import api, catalog
from sim.catalog import presets
from sim.scenario import SETTINGS, Scenario, as_tables, build, dump, read
from sim.serving.assemble import assemble
from sim.specs.front_end import FrontEndSettings
from traces.schema import InputError

SMALL = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 20, "workload.rate": 5.0}


def test_the_default_is_the_newest_vllm() -> None:
    versions = [name for name in presets.names() if name.startswith("vllm-")]
    newest = max(versions, key=lambda name: tuple(map(int, name.removeprefix("vllm-").split("."))))
    assert SETTINGS["engine.preset"][0] == presets.load("vllm").name == newest


def test_the_fields_defaults_are_those_of_the_default_engine_on_the_default_gpu() -> None:
    assert build({}, {"front_end.name": "off"}) == replace(Scenario(), front_end=FrontEndSettings("off"))
    own = presets.load(Scenario().engine.preset).defaults(catalog.load_gpu(Scenario().gpu))
    assert {key: SETTINGS[key][0] for key in own} == own


def test_the_gpu_decides_and_outputs_name_the_engine() -> None:
    result = api.run(**SMALL, gpu="a100-80")
    engine = result.scenario.engine
    assert (engine.preset, engine.max_num_seqs, engine.max_num_batched_tokens) == ("vllm-0.33", 256, 2048)
    assert result.summary["inputs"]["engine"] == "vllm-0.33"
    assert result.summary["inputs"]["notes"][0].endswith("its defaults on a100-80.")


def test_a_policy_that_it_has_not_runs_where_nobody_named_it() -> None:
    result = api.run(**SMALL, gpu="a100-80", policy="static")
    assert result.scenario.engine.allow_mix
    assert result.scenario.engine.max_num_batched_tokens == 2048
    inputs = result.summary["inputs"]
    assert inputs["engine"] == "foretoken with vllm-0.33's defaults"
    assert "vllm-0.33 has no policy 'static'" in inputs["notes"][0]
    assert "policy.name static (its own: chunked)" in inputs["notes"][0]
    assert not any(note.startswith("Not modelled") for note in inputs["notes"])
    again = api.run(build(tomllib.loads(dump(result.scenario))))
    assert again.scenario == result.scenario
    assert again.requests.equals(result.requests)
    assert again.summary["inputs"]["engine"] == inputs["engine"]
    assert again.summary["inputs"]["notes"][0] == inputs["notes"][0]


@pytest.mark.parametrize(
    "mixed", [{"policy": "sjf"}, {"allocator": "windowed"}, {"policy": "speculative", "policy.base": "sjf"}]
)
def test_named_it_is_held_to_what_it_has(mixed: dict[str, str]) -> None:
    assert build(SMALL, mixed).engine.allow_mix
    with pytest.raises(InputError, match=r"vllm-0\.33 has no .* engine\.allow_mix=true"):
        assemble(build(SMALL, {"engine.preset": "vllm", "allocator.window_tokens": 64, **mixed}))
    assert not build(SMALL, {"engine.preset": "foretoken", **mixed}).engine.allow_mix


def test_policies_are_swept_and_compared_under_one_set_of_defaults() -> None:
    rows = api.sweep(**SMALL, policy=["chunked", "static"], gpu=["h100", "a100-80"])
    assert rows["status"].eq("ok").all()
    assert list(rows["inputs.engine"]) == ["vllm-0.33"] * 2 + ["foretoken with vllm-0.33's defaults"] * 2
    static = api.run(**SMALL, policy="static", gpu="a100-80")
    assert rows["ttft_s.p99"].iloc[3] == static.summary["ttft_s"]["p99"]


def test_defaults_follow_what_is_set() -> None:
    """`EngineArgs` of vLLM: seats within the budget, and without chunks a budget for the longest context."""
    assert build(SMALL, {"engine.max_num_batched_tokens": 512}).engine.max_num_seqs == 512
    assert build(SMALL, {"engine.max_num_batched_tokens": 4096}).engine.max_num_seqs == 1024
    assert build(SMALL, {"engine.max_num_batched_tokens": 512, "engine.max_num_seqs": 600}).engine.max_num_seqs == 600
    whole = {"engine.chunked_prefill": False}
    assert build(SMALL, whole).engine.max_num_batched_tokens == 131_072
    assert build(SMALL, {**whole, "engine.max_model_len": 4096}).engine.max_num_batched_tokens == 8192
    assert build(SMALL, {**whole, "engine.max_model_len": 4096, "gpu": "l40s"}).engine.max_num_batched_tokens == 4096
    assert build(SMALL, {**whole, "engine.preset": "foretoken"}).engine.max_num_batched_tokens == 8192


def test_a_cpu_has_defaults_of_its_own() -> None:
    cpu = replace(catalog.load_gpu("h100"), name="cpu", memory_bytes=512 * 2**30)
    own = presets.load("vllm").defaults(cpu)
    assert (own["engine.max_num_seqs"], own["engine.max_num_batched_tokens"]) == (128, 2048)


def test_a_number_of_blocks_is_a_studys_own_where_no_engine_is_named() -> None:
    assert build(SMALL, {"kv.blocks": 100}).kv.allow_short
    assert not build(SMALL, {"kv.blocks": 100, "engine.preset": "vllm"}).kv.allow_short
    assert not build(SMALL, {"kv.blocks": 100, "kv.allow_short": False}).kv.allow_short


def test_swapping_takes_blocks_that_can_be_moved() -> None:
    result = api.run(**SMALL, **{"kv.swap_gib": 1.0})
    assert result.scenario.allocator.name == "paged"
    assert "allocator.name paged (its own: prefix)" in result.summary["inputs"]["notes"][0]
    with pytest.raises(InputError, match=r"kv\.swap_gib and the prefix allocator exclude one another"):
        assemble(build(SMALL, {"kv.swap_gib": 1.0, "engine.preset": "vllm"}))


def test_an_installed_engine_has_the_defaults_of_its_version() -> None:
    scenario = build(SMALL, {"engine.name": "vllm==0.19.0"})
    assert (scenario.engine.preset, scenario.kv.gpu_memory_utilization) == ("vllm-0.19", 0.9)
    assert build(SMALL, {"engine.name": "mine:Engine"}).engine.preset == "vllm-0.33"


def test_a_scenario_written_before_engines_had_names_is_none_of_them(tmp_path: Path) -> None:
    """All is spelled out in it but the engine, whose rules would change its schedule."""
    tables = as_tables(build(SMALL, {"engine.preset": "foretoken"}))
    del tables["engine"]["preset"], tables["engine"]["allow_mix"]
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    assert build(read(path)).engine.preset == "foretoken"
    tables["engine"]["preset"] = ""  # as it was written before an engine was the default
    path.write_text(tomli_w.dumps(tables))
    assert build(read(path)).engine.preset == "foretoken"
    del tables["engine"]["preset"], tables["engine"]["max_num_seqs"]
    path.write_text(tomli_w.dumps(tables))
    assert build(read(path)).engine.preset == "vllm-0.33"
