"""A setting that nothing reads under the others is refused before anything runs; of several runs one must read it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sim import api
from sim.cli.main import main
from sim.scenario import SETTINGS, Scenario, build, dump, load, refuse_unread
from sim.specs.operations import OutageSettings
from sim.specs.settings import word
from traces.schema import InputError

CSV = "arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n"
LIVE = "executor is live"
FRONT_END = {
    "processes": 3,
    "request_s": 0.5,
    "prompt_token_s": 0.5,
    "step_s": 0.5,
    "output_s": 0.5,
    "stream_s": 0.5,
    "latency_s": 0.5,
    "spread": 0.5,
    "max_num_queued_reqs": 3,
    "max_num_queued_tokens": 3,
}
TRANSFER = {"gb_per_s": 0.5, "latency_s": 0.5, "by_layer": True, "min_prompt_tokens": 3}
APART = {
    "pools.a.role": "prefill",
    "pools.b.role": "decode",
    **{f"transfer.{key}": value for key, value in TRANSFER.items()},
}
ADMISSION = {"burst_requests": 3, "burst_tokens": 10**6, "max_queued": 3, "max_wait_s": 0.5}
OF = {"burst_requests": "requests_per_s", "burst_tokens": "tokens_per_s"}
FAILURES = {"mttr_s": (5.0, "mtbf_s"), "restart_s": (5.0, "restart_at_s"), "restart_drains": (False, "restart_at_s")}
FAIL = {"mtbf_s": 50.0, "restart_at_s": 5.0, "schedule": (OutageSettings(down_s=1.0),)}
SCALE = {"target": 5.0, "min": 2, "max": 3, "interval_s": 5.0, "tolerance": 0.5, "delay_s": 5.0, "cooldown_s": 5.0}
RETRY = {"base_s": 0.5, "factor": 3.0, "max_s": 30.0, "jitter": 0.25}
TIERS = ("host", "disk", "store")
LORA = {
    "max_cpu_loras": 3, "max_lora_rank": 32, "modules": "q_proj", "rank": 8, "ranks": {"a": 8.0}, "disk_gb_per_s": 0.5,
    "disk_latency_s": 0.5,
}  # fmt: skip
DRAWN = {"adapter_skew": 0.5, "base_share": 0.5}
UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"device": "cpu"}, f"device is cpu, and it is read only where {LIVE}"),
    ({"live.temperature": 0.5}, f"live.temperature is 0.5, and it is read only where {LIVE}"),
    ({"live.clock": "wall"}, f"live.clock is wall, and it is read only where {LIVE}"),
    ({"live.prompts": "text"}, f"live.prompts is text, and it is read only where {LIVE}"),
    ({"live.threads": 2}, f"live.threads is 2, and it is read only where {LIVE}"),
    ({"live.stop_at_eos": True}, f"live.stop_at_eos is true, and it is read only where {LIVE}"),
    ({"live.top_k": 5, "executor": "live"}, f"live.top_k is 5, and it is read only where {LIVE} and live.temperature"),
    ({"live.top_p": 0.5, "executor": "live"}, f"live.top_p is 0.5, and it is read only where {LIVE} and live.temp"),
    ({"offload.host_gib": 3.0}, "offload.host_gib is 3, and it is read only where offload.weight_layers or"),
    (
        {"workload.beam_churn": 0.5},
        "workload.beam_churn is 0.5, and it is read only where workload.beam_search is true",
    ),
    (
        {"front_end.name": "custom", "executor": "live"},
        "front_end.name is custom, and it is read only where executor is predicted",
    ),
    *(
        (
            {f"front_end.{key}": value, "front_end.name": "off"},
            f"front_end.{key} is {value}, and it is read only where front_end.name is not off",
        )
        for key, value in FRONT_END.items()
    ),
    *(
        (
            {f"tiers.{tier}_{key}": value},
            f"tiers.{tier}_{key} is {value:g}, and it is read only where tiers.{tier}_gib is set",
        )
        for tier in TIERS
        for key, value in (("gb_per_s", 7.0), ("latency_s", 0.5))
    ),
    (
        {"kv.from_log": "line", "executor": "live"},
        "kv.from_log is line, and it is read only where executor is pred",
    ),
    ({"kv.accounting": "plain", "kv.blocks": 9}, "kv.accounting is plain, and it is read only where executor is pred"),
    ({"kv.estimate": "least", "kv.blocks": 9}, "kv.estimate is least, and it is read only where executor is predicted"),
    ({"redundant_experts": 2}, "redundant_experts is 2, and it is read only where ep is above 1"),
    ({"routing.poll_s": 0.5}, "routing.poll_s is 0.5, and it is read only where there are several replicas"),
    *(
        (
            {f"transfer.{key}": value},
            f"transfer.{key} is {word(value)}, and it is read only where a pool has the role prefill",
        )
        for key, value in TRANSFER.items()
    ),
    ({"speculation.k": 3}, "speculation.k is 3, and it is read only where policy.name is speculative"),
    *(
        (
            {f"failures.{key}": value},
            f"failures.{key} is {word(value)}, and it is read only where failures.{other} is set",
        )
        for key, (value, other) in FAILURES.items()
    ),
    *(
        (
            {f"failures.{key}": value, "executor": "live"},
            f"failures.{key} is {word(value)}, and it is read only where ex",
        )
        for key, value in FAIL.items()
    ),
    *(
        (
            {f"autoscale.{key}": value},
            f"autoscale.{key} is {word(value)}, and it is read only where autoscale.metric is not off",
        )
        for key, value in SCALE.items()
    ),
    (
        {"autoscale.metric": "rate", "autoscale.target": 5.0, "executor": "live"},
        "autoscale.metric is rate, and it is read only where executor is predicted",
    ),
    (
        {"workload.model_shares": {"large": 1.0}},
        "workload.model_shares is {'large': 1.0}, and it is read only where there are pools",
    ),
    *(
        ({f"lora.{key}": value}, f"lora.{key} is {word(value)}, and it is read only where lora.max_loras is set")
        for key, value in LORA.items()
    ),
    *(
        (
            {f"workload.{key}": value},
            f"workload.{key} is {word(value)}, and it is read only where workload.adapters is set",
        )
        for key, value in DRAWN.items()
    ),
    ({"retry.attempts": 3}, "retry.attempts is 3, and it is read only where admission or a front end can refuse"),
    *(
        ({f"retry.{key}": value}, f"retry.{key} is {word(value)}, and it is read only where retry.attempts is above 1")
        for key, value in RETRY.items()
    ),
    *(
        (
            {f"admission.{key}": value},
            f"admission.{key} is {word(value)}, and it is read only where admission.{OF.get(key, 'max_outstanding')}",
        )
        for key, value in ADMISSION.items()
    ),
    *(
        ({f"admission.{key}": most, "executor": "live"}, f"admission.{key} is 5, and it is read only where executor is")
        for key, most in (("requests_per_s", 5.0), ("tokens_per_s", 5.0), ("max_outstanding", 5))
    ),
]
READ: list[dict[str, Any]] = [
    {"executor": "live", "device": "cpu", "live.temperature": 0.5, "live.top_k": 5, "live.clock": "wall"},
    {"offload.kv_layers": 3, "offload.host_gib": 3.0},
    {"front_end.name": "custom", **{f"front_end.{key}": value for key, value in FRONT_END.items()}},
    {"workload.beam_search": True, "workload.beam_churn": 0.5},
    {"kv.from_log": "GPU KV cache size: 9,000 tokens"},
    {"kv.accounting": "plain", "kv.estimate": "least"},
    {"redundant_experts": 2, "model": "qwen3-30b-a3b", "tp": 2, "ep": 2},
    {"routing.poll_s": 0.5, "replicas": 2},
    {
        "retry.attempts": 3,
        "admission.requests_per_s": 5.0,
        "admission.tokens_per_s": 5.0,
        "admission.max_outstanding": 5,
        **{f"admission.{key}": value for key, value in ADMISSION.items()},
        **{f"retry.{key}": value for key, value in RETRY.items()},
    },
    {
        **{f"failures.{key}": value for key, value in FAIL.items()},
        **{f"failures.{key}": value for key, (value, _) in FAILURES.items()},
    },
    {"autoscale.metric": "rate", "replicas": 2, **{f"autoscale.{key}": value for key, value in SCALE.items()}},
    {"pools.a.serves": ["large"], "workload.model_shares": {"large": 1.0}},
    {"pools.a.autoscale.metric": "rate", "pools.a.autoscale.target": 5.0, "autoscale.max": 2},
    {"retry.attempts": 2, "front_end.name": "custom", "front_end.max_num_queued_reqs": 3},
    APART,
    {"policy": "speculative", "speculation.k": 3},
    {"policy": "mine:Mine", "speculation.k": 3},
    {"policy": "speculative", "speculation.prompt_lookup_max": 2},  # as the live run had whose acceptance it takes
    {"lora.max_loras": 2, **{f"lora.{key}": value for key, value in LORA.items()}},
    {"workload.adapters": 3, **{f"workload.{key}": value for key, value in DRAWN.items()}},
    {"live.clock": "virtual", "speculation.k": 4, "workload.beam_churn": 0.07},
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "small.csv"
    path.write_text(CSV)
    return str(path)


def sim(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and stderr of `sim WORDS`."""
    sys.argv = ["sim", *map(str, words)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("settings", "sentence"), UNREAD)
def test_what_nothing_reads_is_refused(trace: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        api.run(trace=trace, **settings)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "settings", [settings for settings, _ in UNREAD if not {"executor", "kv.blocks"} & set(settings)]
)
def test_what_is_refused_would_change_nothing(trace: str, settings: dict[str, Any]) -> None:
    if "live.stop_at_eos" in settings:
        pytest.skip("is refused for itself, too")
    with_it, without = (
        api.simulate(build({"trace": trace}, {"front_end.name": "off"} | some)) for some in (settings, {})
    )
    pd.testing.assert_frame_equal(with_it.requests, without.requests)
    pd.testing.assert_frame_equal(with_it.steps, without.steps)


@pytest.mark.parametrize("settings", READ)
def test_what_something_reads_or_changes_nothing_stays(settings: dict[str, Any]) -> None:
    refuse_unread([build({}, settings)])


def test_each_condition_is_of_a_setting_that_is_tried_both_ways() -> None:
    conditional = {key for key, (_, about) in SETTINGS.items() if about.where and not key.startswith("speculation.")}
    assert conditional == {next(iter(settings)) for settings, _ in UNREAD} - {"speculation.k"}


def test_from_a_file_and_by_an_option(capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path) -> None:
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text("[live]\ntop_k = 3\n")
    for words in ((file,), ("--set", "live.top_k=3"), ("--device", "cpu")):
        code, err = sim(capsys, "run", *words, "--trace", trace, "--out", out)
        assert (code, err.count("\n"), out.exists()) == (2, 1, False)
        assert "it is read only where executor is live" in err


ESTIMATED = ("capacity_low_tokens", "capacity_high_tokens", "capacity_source")
"""Of blocks that were derived; a written scenario has their number."""


def test_a_written_scenario_is_not_refused(trace: str) -> None:
    for settings in ({}, {"kv.gpu_memory_utilization": 0.8}, {"policy": "speculative", "speculation.k": 2}):
        result = api.run(trace=trace, **settings)
        again, first = (
            {key: value for key, value in run.summary["kv"].items() if key not in ESTIMATED}
            for run in (api.run(result.scenario), result)
        )
        assert again == first
        assert dump(load(result.scenario)) == dump(result.scenario)


def test_several_runs_keep_what_one_of_them_reads(
    capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path
) -> None:
    drafts, both = ("--set", "speculation.k=3"), ("--policy", "chunked,speculative")
    none = ("--policy", "chunked,sjf")
    for command in (("compare",), ("sweep", "--workers", 1)):
        assert sim(capsys, *command, "--trace", trace, *drafts, *both, "--quiet")[0] == 0
        code, err = sim(capsys, *command, "--trace", trace, *drafts, *none, "--quiet", "--out", tmp_path / "out")
        assert (code, (tmp_path / "out").exists()) == (2, False)
        assert err == "error: speculation.k is 3, and it is read only where policy.name is speculative\n"
    table = api.sweep(trace=trace, workers=1, policy=["chunked", "speculative"], **{"speculation.k": [2, 3]})
    assert table["status"].eq("ok").all()
    with pytest.raises(InputError, match=r"speculation\.k is 3"):
        api.plan(trace=trace, slo="ttft=9", rate=1.0, policy=["chunked", "sjf"], **{"speculation.k": 3})


def test_what_one_leaves_another_may_read() -> None:
    drafts, samples = {"speculation.k": 3}, {"executor": "live", "live.temperature": 1.0}
    refuse_unread([build({}, {**drafts, **samples}), build({}, {**drafts, "policy": "speculative", "device": "cpu"})])
    with pytest.raises(InputError, match=r"speculation\.k is 3"):
        refuse_unread([build({}, {**drafts, "device": "cpu"}), build({}, {**drafts, **samples})])


def test_only_as_many_scenarios_are_looked_at_as_it_takes() -> None:
    def scenarios() -> Iterator[Scenario]:
        yield build({}, {"live.top_k": 3})
        yield Scenario()
        pytest.fail("a third was looked at")

    refuse_unread(scenarios())
