"""inference-perf's per_request_lifecycle_metrics.json, and the statistics of its summary_lifecycle_metrics.json.

Source: inference_perf/reportgen/base.py and apis/base.py, 0.2 and 0.7: seconds of a monotonic clock; counts and the
times of tokens stand in `info` (0.2), or in its `request_metrics` and `response_metrics` (0.7). Without streaming there
are no times of tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sim.validate.against.rows import (
    ANY_COUNT,
    SECONDS,
    Key,
    Omitted,
    ResultFile,
    Row,
    SentLoad,
    StatedValue,
    ToolRun,
    each,
    either,
    inner,
    maybe,
    seconds_list,
    within,
)
from traces.fields import get

ABOUT = "inference-perf's lifecycle metrics"
MEASURED_AT = "client"
LATENCIES = {"time_to_first_token": "ttft_s", "time_per_output_token": "tpot_s",
             "inter_token_latency": "itl_s", "request_latency": "e2e_s"}  # fmt: skip
RATES = {"requests_per_sec": "requests_per_s", "output_tokens_per_sec": "output_tokens_per_s"}
PERCENTILE = re.compile(r"p\d+(\.\d+)?")


def detect(file: ResultFile) -> bool:
    return _is_summary(file.value) or any(
        {"start_time", "end_time", "info", "error"} <= record.keys() for record in file.sample()
    )


def _is_summary(value: Any) -> bool:
    return isinstance(value, dict) and {"load_summary", "successes", "failures"} <= value.keys()


def runs(file: ResultFile) -> list[ToolRun]:
    return [_summary(file.value) if _is_summary(file.value) else ToolRun(ABOUT, each(file.records, _row))]


def _row(where: str, record: dict[str, Any]) -> Row | Omitted:
    if error := record.get("error"):
        told = error.get("error_msg") or error.get("error_type") if isinstance(error, dict) else error
        return Omitted(where, "failed", str(told or "an error"))
    info = inner(record, "info")
    prompt = either(info | within(within(info, "request_metrics"), "text"), ANY_COUNT, "input_tokens")
    answer = info | within(info, "response_metrics")
    output = either(answer, ANY_COUNT, "output_tokens")
    start_s, end_s = (get(record, key, SECONDS) for key in ("start_time", "end_time"))
    times_s = seconds_list(answer, "output_token_times") if answer.get("output_token_times") else []
    ttft_s = times_s[0] - start_s if len(times_s) > 1 or (times_s and output == 1) else math.nan
    e2e_s = (times_s[-1] if len(times_s) > 1 else end_s) - start_s
    gaps = [after - before for before, after in pairwise(times_s)]
    return Row(where, start_s, prompt, output, ttft_s, e2e_s, gaps_s=gaps if times_s else None)


def _summary(document: Mapping[str, Any]) -> ToolRun:
    successes, asked = inner(document, "successes"), inner(document, "load_summary")
    latency, rates = (within(successes, key) for key in ("latency", "throughput"))
    stated: dict[Key, StatedValue] = {}
    for name, measure in LATENCIES.items():
        summary = within(latency, name)
        for key in summary:
            statistic = "p50" if key == "median" else key
            if (statistic in ("mean", "max") or PERCENTILE.fullmatch(statistic)) and maybe(summary, key) >= 0:
                stated[measure, statistic] = StatedValue.exact(maybe(summary, key))
    for name, ours in RATES.items():
        if (value := maybe(rates, name)) > 0:
            stated["throughput", ours] = StatedValue.exact(value)
    rate, users, count = maybe(asked, "requested_rate"), maybe(asked, "concurrency"), maybe(successes, "count")
    open_loop = rate > 0 and not users >= 1
    load = SentLoad(rate if open_loop else 0.0, 0.0, int(users) if users >= 1 else 0)
    tokens = (_mean(successes, "prompt_tokens", "prompt_len"), _mean(successes, "output_tokens", "output_len"))
    more = "per_request_lifecycle_metrics.json (report.request_lifecycle.per_request) holds each request"
    notes = ("It does not say whether its rate was constant, as by default and here, or Poisson.",) if open_loop else ()
    answered = int(count) if count > 0 else 0
    return ToolRun(ABOUT, (), load, stated, answered, mean_tokens=tokens, more=more, notes=notes)


def _mean(successes: Mapping[str, Any], *names: str) -> float:
    return next((maybe(one, "mean") for name in names if (one := within(successes, name))), math.nan)
