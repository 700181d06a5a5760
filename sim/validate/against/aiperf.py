"""AIPerf's records of single requests (profile_export.jsonl): metadata, metrics with their units, an error or none.

Source: aiperf/common/models/record_models.py (0.13), and records of 2025, which have `timestamp_ns` for
`request_start_ns`, `ttft` for `time_to_first_token`, and `credit_phase` for `benchmark_phase`. A record of a warm-up is
counted and left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sim.validate.against.rows import ANY_COUNT, Omitted, ResultFile, Row, ToolRun, each, either, inner, seconds_list
from traces.fields import BadRow, Time, get, real, shown

ABOUT = "AIPerf's profile_export.jsonl"
MEASURED_AT = "client"
UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
MEASURED = "profiling"
STAMP = Time("ns", whole=True)
LATE_S = 1e-3


def detect(file: ResultFile) -> bool:
    return any(isinstance(record.get("metadata"), dict) and "metrics" in record for record in file.sample())


def runs(file: ResultFile) -> list[ToolRun]:
    return [ToolRun(ABOUT, each(file.records, _row))]


def _row(where: str, record: dict[str, Any]) -> Row | Omitted:
    metadata = inner(record, "metadata")
    phase = metadata.get("benchmark_phase") or metadata.get("credit_phase") or MEASURED
    if phase != MEASURED:
        return Omitted(where, "phase", shown(phase))
    if record.get("error") or metadata.get("was_cancelled"):
        return Omitted(where, "failed", _why(record.get("error")))
    metrics = inner(record, "metrics")
    start_s = either(metadata, STAMP, "request_start_ns", "timestamp_ns")
    start_ns = next(value for key in ("request_start_ns", "timestamp_ns") if (value := metadata.get(key)) is not None)
    prompt, output = (_tokens(metrics, f"{side}_sequence_length") for side in ("input", "output"))
    e2e_s = _seconds(metrics, "request_latency")
    first = next((key for key in ("time_to_first_token", "ttft") if metrics.get(key) is not None), None)
    ttft_s = math.nan if first is None else _seconds(metrics, first)
    _check_end(record, int(start_ns), e2e_s)
    return Row(where, start_s, prompt, output, ttft_s, e2e_s, gaps_s=_gaps_s(metrics))


def _check_end(record: Mapping[str, Any], start_ns: int, e2e_s: float) -> None:
    """The end that the record tells as a stamp must not come before that of its latency."""
    end_ns = record["metadata"].get("request_end_ns")
    if end_ns is None and isinstance(stamp := record["metrics"].get("max_response_timestamp"), dict):
        end_ns = stamp.get("value")
    lasted_ns = None if real(end_ns) is None else int(end_ns) - start_ns
    if lasted_ns is not None and e2e_s > lasted_ns / 1e9 + LATE_S:
        raise BadRow(f"its request_latency is {e2e_s:g} s, and it ended after {lasted_ns / 1e9:g} s")


def _why(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or "an error")
    return str(error or "cancelled")


def _gaps_s(metrics: Mapping[str, Any]) -> list[float] | None:
    chunks = metrics.get("inter_chunk_latency")
    if not isinstance(chunks, dict) or not isinstance(chunks.get("value"), list):
        return None
    return seconds_list(chunks, "value", _unit(chunks, "inter_chunk_latency"))


def _tokens(metrics: Mapping[str, Any], key: str) -> int:
    metric = inner(metrics, key)
    if metric.get("unit") != "tokens":
        raise BadRow(f"{key} is in {shown(metric.get('unit'))}, not in tokens")
    return int(_value(metric, key, ANY_COUNT))


def _seconds(metrics: Mapping[str, Any], key: str) -> float:
    metric = inner(metrics, key)
    return float(_value(metric, key, Time("s"))) * _unit(metric, key)


def _value(metric: Mapping[str, Any], key: str, kind: Any) -> Any:
    try:
        return get(metric, "value", kind)
    except BadRow as bad:
        raise BadRow(f"{key}: {bad}") from None


def _unit(metric: Mapping[str, Any], key: str) -> float:
    return unit_s(metric.get("unit"), key)


def unit_s(unit: object, key: str) -> float:
    """The seconds of a unit; raises BadRow, naming the key, for one that is not known."""
    if not isinstance(unit, str) or unit not in UNITS_S:
        raise BadRow(f"{key} is in {shown(unit)}; known units: {', '.join(UNITS_S)}")
    return UNITS_S[unit]
