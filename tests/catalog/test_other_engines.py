"""Engines beside vLLM: their defaults by GPU against what their own code says, and side by side in one command."""

from __future__ import annotations

import json

import pytest
from command_kit import sim

from sim.scenario import build
from sim.serving.assemble import assemble
from traces.schema import InputError

SGLANG = {
    # GPU, GPUs of a replica: MiB, chunk, rows of the largest decode graph; `srt/arg_groups/memory_hook.py` of 0.5.23
    ("t4", 1): (15_360, 2048, 8),
    ("l4", 1): (23_034, 4096, 48),
    ("l4", 4): (23_034, 4096, 160),
    ("l40s", 1): (46_068, 4096, 32),
    ("a100-80", 1): (81_920, 8192, 256),
    ("h200", 4): (143_771, 8192, 512),
    ("b200", 1): (183_359, 16_384, 512),
}


@pytest.mark.parametrize(("gpu", "tp"), SGLANG)
def test_sglang_has_defaults_by_gpu(gpu: str, tp: int) -> None:
    mib, chunk, rows = SGLANG[gpu, tp]
    scenario = build({}, {"engine.preset": "sglang", "gpu": gpu, "tp": tp})
    assert (scenario.engine.max_num_batched_tokens, scenario.kv.block_tokens) == (chunk, 1)
    reserved = 512 + 1.5 * chunk + 128 * tp + 2 * rows
    least = 10_240 if mib > 60 * 1024 else 0
    assert scenario.kv.gpu_memory_utilization == pytest.approx(1 - max(reserved, least) / mib, abs=6e-4)


def test_a_smaller_chunk_leaves_sglang_more_memory() -> None:
    shares = [
        build({}, {"engine.preset": "sglang", "gpu": "l40s", **more}).kv.gpu_memory_utilization
        for more in ({}, {"engine.max_num_batched_tokens": 2048}, {"kv.gpu_memory_utilization": 0.5})
    ]
    assert shares[1] > shares[0] > shares[2] == 0.5


def test_an_engines_parameters_go_with_its_policy() -> None:
    assert build({}, {"engine.preset": "tensorrt-llm"}).policy.parameters == {"order": "decode-first"}
    chunked = build({}, {"engine.preset": "trtllm", "policy": "chunked"})
    assert chunked.policy.parameters == {}
    assemble(chunked)
    with pytest.raises(InputError, match=r"llama\.cpp has no policy 'continuous'; it has chunked"):
        assemble(build({}, {"engine.preset": "llama.cpp", "policy": "continuous"}))


def test_who_asks_nothing_of_the_longest_context_starts() -> None:
    for engine in ("sglang", "llama.cpp", "tgi", "tensorrt-llm"):
        assemble(build({}, {"engine.preset": engine, "gpu": "l40s", "kv.gpu_memory_utilization": 0.6}))
    with pytest.raises(InputError, match=r"orca with llama-3\.1-8b on l4 would not start"):
        assemble(build({}, {"engine.preset": "orca", "gpu": "l4"}))


def test_the_engines_of_every_introduction_in_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ["hf-transformers", "tgi", "orca", "vllm", "tensorrt-llm"]
    words = ("--trace", "chatbot_arena.jsonl", "--limit", 80, "--rate", 20, "--gpu", "a100-80", "--quiet")
    code, out, _ = sim(
        capsys, "compare", *words, "--set", "engine.max_model_len=4096", "--engine", ",".join(engines), "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert list(found) == engines
    told = [found[name]["inputs"]["engine"] for name in engines]
    assert told == ["hf-transformers", "tgi", "orca", "vllm-0.33", "tensorrt-llm"]
    rates = {name: found[name]["throughput"]["requests_per_s"] for name in engines}
    assert min(rates, key=rates.__getitem__) == "hf-transformers"
    assert rates["vllm"] > 2 * rates["hf-transformers"]
    held = {name: found[name]["kv"]["waste"]["of_held"]["used"] for name in engines}
    assert held["vllm"] > held["tgi"] > held["orca"]
