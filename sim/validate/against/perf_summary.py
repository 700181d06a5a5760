"""The statistics that GenAI-Perf (*_genai_perf.json) and AIPerf (profile_export_aiperf.json) write, without requests.

Source: genai_perf/export_data/json_exporter.py (0.0.16), whose form AIPerf took over
(aiperf/common/models/export_models.py, 0.13): for each metric a unit, `avg` and percentiles. Their inter-token latency
is of requests, (latency - first token) / (tokens - 1): what is called TPOT here. GenAI-Perf names its load in
`input_config.perf_analyzer.stimulus`; AIPerf's many ways to do so are not read.
"""

from __future__ import annotations

import re
from typing import Any

from sim.validate.against.aiperf import unit_s
from sim.validate.against.rows import Key, ResultFile, SentLoad, StatedValue, ToolRun, maybe, within

ABOUT = "the statistics of GenAI-Perf or AIPerf"
MEASURED_AT = "client"
MEASURES = {"time_to_first_token": "ttft_s", "inter_token_latency": "tpot_s", "request_latency": "e2e_s"}
RATES = {"request_throughput": "requests_per_s", "output_token_throughput": "output_tokens_per_s"}
PERCENTILE = re.compile(r"p\d+(\.\d+)?")


def detect(file: ResultFile) -> bool:
    found = file.value
    return isinstance(found, dict) and any(
        isinstance(metric := found.get(key), dict) and "unit" in metric and "avg" in metric for key in MEASURES
    )


def runs(file: ResultFile) -> list[ToolRun]:
    stated: dict[Key, StatedValue] = {}
    for name, measure in MEASURES.items():
        stated |= _statistics(file.value, name, measure)
    for name, rate in RATES.items():
        if (value := _average(file.value, name)) > 0:
            stated["throughput", rate] = StatedValue.exact(value)
    count = _average(file.value, "request_count")
    tokens = (_average(file.value, "input_sequence_length"), _average(file.value, "output_sequence_length"))
    more = "the profile_export file of the same run holds each request"
    load = _load(within(within(within(file.value, "input_config"), "perf_analyzer"), "stimulus"))
    return [ToolRun(ABOUT, (), load, stated, int(count) if count > 0 else 0, mean_tokens=tokens, more=more)]


def _statistics(document: dict[str, Any], name: str, measure: str) -> dict[Key, StatedValue]:
    metric = within(document, name)
    if not metric:
        return {}
    factor = unit_s(metric.get("unit"), name)
    names = {"avg": "mean", "max": "max"} | {key: key for key in metric if PERCENTILE.fullmatch(key)}
    values = {statistic: maybe(metric, key) * factor for key, statistic in names.items()}
    return {(measure, statistic): StatedValue.exact(value) for statistic, value in values.items() if value >= 0}


def _average(document: dict[str, Any], name: str) -> float:
    return maybe(within(document, name), "avg")


def _load(stimulus: dict[str, Any]) -> SentLoad:
    users, rate = maybe(stimulus, "concurrency"), maybe(stimulus, "request_rate")
    # perf_analyzer spaces requests evenly unless it is told otherwise.
    return SentLoad(rate if rate > 0 else 0.0, 0.0, int(users) if users >= 1 else 0)
