"""Engines by name and version: what their files say, how it meets what a user sets, and what would not start."""

from __future__ import annotations

from typing import Any

import pytest

from sim import api, catalog
from sim.catalog import presets
from sim.catalog.presets import ANY, DERIVED
from sim.engine.rules import OF_VLLM_0_19, OF_VLLM_0_33, rules_of
from sim.load import names
from sim.scenario import ENGINE_KEYS, SETTINGS, build
from sim.serving.assemble import assemble
from sim.serving.startup import LONGEST, REFUSALS
from sim.specs.front_end import FrontEndSettings
from traces.schema import InputError

VLLM = ("vllm-0.19", "vllm-0.33")
SMALL = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 20}


@pytest.mark.parametrize("name", presets.names())
def test_a_file_names_only_what_there_is(name: str) -> None:
    preset = presets.load(name)
    assert preset.name == name
    assert set(preset.policies) - {ANY} <= set(names("sim.policies"))
    assert set(preset.allocators) - {ANY} <= set(names("sim.allocators"))
    assert set(preset.refuses) <= {*REFUSALS, LONGEST}
    rules_of(preset.rules)
    assert set(preset.settings) >= ENGINE_KEYS
    assert preset.keys - {"policy.order"} <= set(SETTINGS)
    assert set(preset.derives) <= set(DERIVED)
    assert set(preset.sources) == {
        "settings",
        *(["by_gpu"] if preset.by_gpu else []),
        *(["rules"] if preset.rules or "vllm" in name else []),
        *(["derives"] if preset.derives else []),
        *(["memory"] if preset.memory else []),
        *(["front_end"] if preset.front_end else []),
    }
    costs = FrontEndSettings(**{"name": name, **preset.front_end})
    assert (costs.request_s > 0) == (costs.output_s > 0) == ("vllm" in name)
    assert preset.lacks or name == "foretoken"
    for gpu in catalog.names("gpus"):
        assemble(
            build(
                SMALL,
                {"engine.preset": name, "gpu": gpu, "dtype": "fp16", "kv.allow_short": True, "model": "qwen3-0.6b"},
            )
        )


def test_the_rules_of_a_version_are_those_that_its_schedules_need() -> None:
    assert rules_of(presets.load("vllm-0.19").rules) == OF_VLLM_0_19
    assert rules_of(presets.load("vllm-0.33").rules) == OF_VLLM_0_33
    with pytest.raises(InputError, match="unknown rule 'fast'; known are lone_request_uncapped"):
        rules_of(["fast"])


@pytest.mark.parametrize(
    ("gpu", "old", "new"),
    [
        ("h100", (1024, 8192, 0.9), (1024, 8192, 0.92)),
        ("h200", (1024, 8192, 0.9), (1024, 8192, 0.92)),
        ("a100-80", (256, 2048, 0.9), (256, 2048, 0.92)),
        ("l40s", (256, 2048, 0.9), (256, 2048, 0.92)),
        ("l4", (256, 2048, 0.9), (256, 2048, 0.92)),
        ("rtx-4090", (256, 2048, 0.9), (256, 2048, 0.92)),
        ("b200", (1024, 8192, 0.9), (1024, 16384, 0.92)),
        ("mi300x", (1024, 8192, 0.9), (1024, 16384, 0.92)),
    ],
)
def test_vllm_serve_has_defaults_by_gpu(gpu: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    for name, told in zip(VLLM, (old, new), strict=True):
        scenario = build(SMALL, {"engine.preset": name, "gpu": gpu})
        engine = scenario.engine
        assert (engine.max_num_seqs, engine.max_num_batched_tokens, scenario.kv.gpu_memory_utilization) == told
        assert (scenario.policy.name, scenario.allocator.name) == ("chunked", "prefix")


def test_what_is_set_wins_and_is_said() -> None:
    result = api.run(
        **SMALL, gpu="a100-80", **{"kv.allow_short": True, "engine.preset": "vllm", "engine.max_num_seqs": 64}
    )
    assert result.scenario.engine.max_num_seqs == 64
    assert result.summary["inputs"]["engine"] == result.scenario.engine.preset == "vllm-0.33"
    note = result.summary["inputs"]["notes"][0]
    assert note.startswith("Engine vllm-0.33: ")
    assert note.endswith("its defaults on a100-80, but engine.max_num_seqs 64 (its own: 256).")
    plain = api.run(**SMALL, gpu="a100-80", **{"kv.allow_short": True, "engine.preset": "vllm"})
    assert plain.summary["inputs"]["notes"][0].endswith("its defaults on a100-80.")


def test_a_sweep_over_gpus_takes_the_defaults_of_each() -> None:
    rows = api.sweep(
        **SMALL, gpu=["h100", "a100-80"], **{"engine.preset": "vllm", "workload.rate": 3.0, "kv.allow_short": True}
    )
    both = [
        api.run(**SMALL, gpu=gpu, rate=3.0, **{"engine.preset": "vllm", "kv.allow_short": True})
        for gpu in ("h100", "a100-80")
    ]
    assert list(rows["ttft_s.p99"]) == [run.summary["ttft_s"]["p99"] for run in both]
    assert [run.scenario.engine.max_num_seqs for run in both] == [1024, 256]


def test_the_rules_of_a_version_reach_the_engine() -> None:
    free = {name: assemble(build(SMALL, {"engine.preset": name})).engine().allocator for name in VLLM}
    assert [getattr(free[name], "unhashed_blocks_first") for name in VLLM] == [False, True]  # noqa: B009


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"engine.preset": "vllm-0.34"},
            "unknown engine 'vllm-0.34'; known are fastertransformer, .*nearest is vllm-0.33",
        ),
        (
            {"engine.preset": "vllm", "policy": "sjf"},
            "is vllm-0.33, and vllm-0.33 has no policy 'sjf'; it has chunked, priority, .*allow_mix=true",
        ),
        ({"engine.preset": "orca", "allocator": "paged"}, "orca has no allocator 'paged'; it has contiguous"),
        (
            {"engine.max_num_seqs": 1024, "engine.max_num_batched_tokens": 128},
            "vllm-0.33 with llama-3.1-8b on h100 would not start: engine.max_num_batched_tokens is 128 and "
            "engine.max_num_seqs 1024",
        ),
        (
            {"engine.chunked_prefill": False, "engine.max_num_batched_tokens": 8192},
            "engine.chunked_prefill is off, and engine.max_num_batched_tokens 8192 is below the longest prompt",
        ),
        (
            {"engine.preset": "vllm", "kv.blocks": 100},
            r"needs 8192 KV blocks at its longest and the cache has 100; set engine.max_model_len=1600 or less",
        ),
        (
            {"gpu": "l4", "engine.preset": "foretoken"},
            r"a server of llama-3.1-8b on l4 would not start: .*131,072 tokens\) does not fit the KV cache",
        ),
        ({"gpu": "l4"}, "vllm-0.33 with llama-3.1-8b on l4 would not start"),
    ],
)
def test_what_would_not_start_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        assemble(build(SMALL, settings))


def test_the_longest_that_fits_is_told_and_fits() -> None:
    with pytest.raises(InputError) as refused:
        assemble(build(SMALL, {"gpu": "l4"}))
    length = int(str(refused.value).partition("engine.max_model_len=")[2].split()[0])
    assemble(build(SMALL, {"gpu": "l4", "engine.max_model_len": length}))
    with pytest.raises(InputError, match="would not start"):
        assemble(build(SMALL, {"gpu": "l4", "engine.max_model_len": length + 16}))


@pytest.mark.parametrize("allow", [{"kv.allow_short": True}, {"kv.blocks": 100}, {"allocator": "no-cache"}])
def test_research_may_go_on(allow: dict[str, Any]) -> None:
    """A number of blocks is a study's own, and without a cache nothing has to fit."""
    assemble(build(SMALL, {"gpu": "l4", **allow}))
