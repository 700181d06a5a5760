"""The band of a KV capacity: its ends in a run, and what they do where KV memory limits."""

from __future__ import annotations

from typing import Any

import pytest

from sim import api
from sim.report.run.sentences import kv_capacity_lines
from sim.results.binding import kv_limits

TIGHT: dict[str, Any] = {
    "trace": "chatbot_arena.jsonl", "limit": 120, "rate": 200, "gpu": "rtx-4090", "engine.preset": "vllm-0.33",
    "engine.max_model_len": 2048, "kv.gpu_memory_utilization": 0.75,
}  # fmt: skip


def test_the_ends_of_a_run_that_memory_limits_are_runs_with_them() -> None:
    result = api.run(**TIGHT, kv_ends=True)
    kv = result.summary["kv"]
    assert kv_limits(result.summary)
    assert kv["capacity_low_tokens"] < kv["capacity_tokens"] < kv["capacity_high_tokens"]
    assert set(kv["ends"]) == {"least", "most"}
    for end, tokens in (("least", kv["capacity_low_tokens"]), ("most", kv["capacity_high_tokens"])):
        figures = kv["ends"][end]
        alone = api.run(**TIGHT, **{"kv.estimate": end}).summary
        assert figures["capacity_tokens"] == alone["kv"]["capacity_tokens"] == tokens
        assert figures["preemptions"] == alone["kv"]["preemptions"]
        assert figures["ttft_s"]["p99"] == alone["ttft_s"]["p99"]
    assert kv["ends"]["most"]["requests_per_s"] > result.summary["throughput"]["requests_per_s"]
    told = " ".join(kv_capacity_lines(result.summary))
    assert "With the least KV memory" in told
    assert "With the most KV memory" in told


def test_an_end_that_cannot_run_says_why() -> None:
    result = api.run(**TIGHT | {"kv.gpu_memory_utilization": 0.72}, kv_ends=True)
    assert result.summary["kv"]["ends"]["least"]["cannot_run"].startswith("kv.estimate is least, and at the least end")
    assert "With the least KV memory it does not run: kv.estimate is least" in kv_capacity_lines(result.summary)[1]


@pytest.mark.parametrize("more", [{"gpu": "h200", "kv.gpu_memory_utilization": 0.9}, {"kv.blocks": 200}])
def test_no_further_run_where_it_does_not_limit_or_is_exact(more: dict[str, Any]) -> None:
    result = api.run(**TIGHT | more, kv_ends=True) if "gpu" in more else _given(more)
    assert result.summary["kv"]["ends"] == {}
    assert len(kv_capacity_lines(result.summary)) == ("gpu" in more)


def _given(more: dict[str, Any]) -> Any:
    own = {key: value for key, value in TIGHT.items() if key != "kv.gpu_memory_utilization"}
    return api.run(**own, **more, kv_ends=True)


def test_without_the_option_a_run_says_that_there_is_one() -> None:
    summary = api.run(**TIGHT).summary
    assert "ends" not in summary["kv"]
    assert kv_capacity_lines(summary)[1].endswith("sim run --kv-ends tells how far.")
