"""The same requests as each benchmark tool writes them down; made here, after the tools' sources."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

EPOCH_S = 1_760_000_000


@dataclass(frozen=True)
class Asked:
    """A request that was answered: `gaps_s` has one for each token after the first."""

    start_s: float
    prompt: int
    ttft_s: float
    gaps_s: tuple[float, ...]

    @property
    def output(self) -> int:
        return len(self.gaps_s) + 1

    @property
    def e2e_s(self) -> float:
        return self.ttft_s + math.fsum(self.gaps_s)

    @property
    def tpot_s(self) -> float:
        return math.fsum(self.gaps_s) / len(self.gaps_s) if self.gaps_s else math.nan

    def token_times_s(self) -> list[float]:
        times = [self.start_s + self.ttft_s]
        for gap in self.gaps_s:
            times.append(times[-1] + gap)
        return times


HAND = (Asked(0.0, 8, 0.5, (0.5, 0.25)), Asked(0.5, 6, 0.25, (0.5,)))
"""TTFT 0.5 and 0.25 s, TPOT 0.375 and 0.5 s, E2E 1.25 and 0.75 s."""

thousandths = st.integers(1, 5000).map(lambda value: value / 1000)
asked = st.builds(
    Asked,
    st.integers(0, 60_000).map(lambda value: value / 1000),
    st.integers(1, 4000),
    thousandths,
    st.lists(thousandths, max_size=6).map(tuple),
)
some = st.lists(asked, min_size=1, max_size=8).map(lambda rows: sorted(rows, key=lambda row: row.start_s))


def vllm(rows: Sequence[Asked], **changed: Any) -> dict[str, Any]:
    return {
        "num_prompts": len(rows), "completed": len(rows), "request_rate": "inf", "max_concurrency": 2,
        "input_lens": [row.prompt for row in rows], "output_lens": [row.output for row in rows],
        "ttfts": [row.ttft_s for row in rows], "itls": [list(row.gaps_s) for row in rows],
        "errors": [""] * len(rows), "start_times": [row.start_s for row in rows],
        "mean_ttft_ms": 1e3 * math.fsum(row.ttft_s for row in rows) / len(rows), **changed,
    }  # fmt: skip


def sglang(rows: Sequence[Asked], **changed: Any) -> dict[str, Any]:
    record = vllm(rows, dataset_name="sharegpt", request_rate=4.0, max_concurrency=None)
    del record["num_prompts"], record["start_times"]
    return record | changed


def guidellm_request(row: Asked, *, old: bool = False) -> dict[str, Any]:
    start_s = EPOCH_S + row.start_s
    told = {"prompt_tokens": row.prompt, "output_tokens": row.output, "time_to_first_token_ms": 1e3 * row.ttft_s}
    if old:
        return told | {
            "start_time": start_s, "end_time": start_s + row.e2e_s + 1,
            "first_token_time": start_s + row.ttft_s, "last_token_time": start_s + row.e2e_s,
        }  # fmt: skip
    timings = {
        "request_start": start_s, "first_token_iteration": start_s + row.ttft_s,
        "last_token_iteration": start_s + row.e2e_s, "request_end": start_s + row.e2e_s + 0.001,
    }  # fmt: skip
    return told | {"info": {"timings": timings, "error": None}, "request_start_time": start_s}


def guidellm_benchmark(rows: Sequence[Asked], strategy: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    old = changed.pop("old", False)
    total = changed.pop("total", len(rows))
    return {
        "config": {"strategy": strategy or {"type_": "synchronous"}},
        "requests": {"successful": [guidellm_request(row, old=old) for row in rows], "incomplete": [], "errored": []},
        "metrics": {"request_totals": {"successful": total, "incomplete": 0, "errored": 0, "total": total}},
        **changed,
    }


def guidellm(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"guidellm_version": "0.5.0"}, "benchmarks": list(benchmarks)}


def aiperf(row: Asked, *, old: bool = False, **metadata: Any) -> dict[str, Any]:
    start_ns, end_ns = (int(1e9 * (EPOCH_S + stamp_s)) for stamp_s in (row.start_s, row.start_s + row.e2e_s))
    metrics: dict[str, Any] = {
        "input_sequence_length": {"value": row.prompt, "unit": "tokens"},
        "output_sequence_length": {"value": row.output, "unit": "tokens"},
        "ttft" if old else "time_to_first_token": {"value": 1e3 * row.ttft_s, "unit": "ms"},
        "request_latency": {"value": row.e2e_s, "unit": "s"},
    }
    if row.gaps_s:
        metrics["inter_chunk_latency"] = {"value": [1e3 * gap for gap in row.gaps_s], "unit": "ms"}
    if old:
        metrics["max_response_timestamp"] = {"value": end_ns, "unit": "ns"}
        told = {"timestamp_ns": start_ns, "credit_phase": "profiling"}
    else:
        told = {"request_start_ns": start_ns, "request_end_ns": end_ns, "benchmark_phase": "profiling"}
    return {"metadata": told | metadata, "metrics": metrics, "error": None}


def genai_perf(rows: Sequence[Asked], *, usage: bool = True) -> dict[str, Any]:
    requests = []
    for row in rows:
        stamps = [int(1e9 * (EPOCH_S + time_s)) for time_s in row.token_times_s()]
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": "word "}}]} for _ in stamps]
        if usage:
            stamps.append(stamps[-1] + 1000)
            events.append({"choices": [], "usage": {"prompt_tokens": row.prompt, "completion_tokens": row.output}})
        payload = {"messages": [{"role": "user", "content": "word " * row.prompt}]}
        requests.append(
            {
                "timestamp": int(1e9 * (EPOCH_S + row.start_s)),
                "request_inputs": {"payload": json.dumps(payload)},
                "response_timestamps": stamps,
                "response_outputs": [{"response": f"data: {json.dumps(event)}\n\n"} for event in events],
            }
        )
    experiment = {"experiment": {"mode": "concurrency", "value": 2}, "requests": requests}
    return {"service_kind": "openai", "endpoint": "v1/chat/completions", "experiments": [experiment]}


def inference_perf(row: Asked, *, old: bool = False) -> dict[str, Any]:
    told: dict[str, Any] = {"output_tokens": row.output, "output_token_times": row.token_times_s()}
    info = {"input_tokens": row.prompt, **told} if old else {
        "request_metrics": {"text": {"input_tokens": row.prompt}}, "response_metrics": told
    }  # fmt: skip
    stamps = {"start_time": row.start_s, "end_time": row.start_s + row.e2e_s}
    return {**stamps, "request": "{}", "response": "", "info": info, "error": None}


def llmservingsim(row: Asked, **changed: Any) -> dict[str, Any]:
    return {
        "input_toks": row.prompt, "output_toks": row.output, "queued_ts": 99 + row.start_s,
        "scheduled_ts": 99 + row.start_s, "first_token_ts": 99 + row.start_s + row.ttft_s,
        "last_token_ts": 99 + row.start_s + row.e2e_s, **changed,
    }  # fmt: skip


def lines(records: Sequence[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, records))


TIMED = {
    "vllm": lambda rows: json.dumps(vllm(rows)),
    "guidellm": lambda rows: json.dumps(guidellm(guidellm_benchmark(rows))),
    "guidellm before 0.4": lambda rows: json.dumps(guidellm(guidellm_benchmark(rows, old=True))),
    "aiperf of 2026": lambda rows: lines([aiperf(row) for row in rows]),
    "aiperf of 2025": lambda rows: lines([aiperf(row, old=True) for row in rows]),
    "genai_perf": lambda rows: json.dumps(genai_perf(rows)),
    "inference_perf 0.7": lambda rows: json.dumps([inference_perf(row) for row in rows]),
    "inference_perf 0.2": lambda rows: json.dumps([inference_perf(row, old=True) for row in rows]),
    "llmservingsim": lambda rows: lines([llmservingsim(row) for row in rows]),
}
"""The text of each format that tells when requests came."""
UNTIMED = {
    "vllm before 2026": lambda rows: json.dumps(vllm(rows, start_times=None)),
    "sglang": lambda rows: json.dumps(sglang(rows)),
}
