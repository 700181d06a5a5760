"""AIPerf's records of single requests (profile_export.jsonl): metadata, metrics with their units, an error or none.

Written from AIPerf's documented output, not yet tried on a file of a real run.
"""

from collections.abc import Iterator
from typing import Any

from sim.validate.against import Row

ABOUT = "AIPerf's profile_export.jsonl"
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
PHASES = ("warmup", "profiling")
LATE_S = 1e-3


def detect(document: Any) -> bool:
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and isinstance(first.get("metadata"), dict) and "metrics" in first


def rows(document: Any) -> Iterator[Row]:
    for number, record in enumerate(document if isinstance(document, list) else [document], 1):
        where, metadata, metrics = f"line {number}", record["metadata"], record["metrics"]
        phase = metadata.get("benchmark_phase", "profiling")
        if phase not in PHASES:
            raise ValueError(f"{where} is of the phase {phase!r}; known: {', '.join(PHASES)}")
        if phase == "warmup":
            continue
        start_s = int(metadata["request_start_ns"]) / 1e9
        if record.get("error") or metadata.get("was_cancelled"):
            yield Row(where, start_s, 1, 1, 0.0, 0.0, failed=_why(record.get("error")))
            continue
        prompt, output = (_tokens(metrics[f"{side}_sequence_length"]) for side in ("input", "output"))
        ttft_s, e2e_s = _seconds(metrics["time_to_first_token"]), _seconds(metrics["request_latency"])
        if (end_ns := metadata.get("request_end_ns")) is not None:
            lasted_s = (int(end_ns) - int(metadata["request_start_ns"])) / 1e9
            if e2e_s > lasted_s + LATE_S:
                raise ValueError(f"{where} has a latency of {e2e_s:g} s, and ended after {lasted_s:g} s")
        yield Row(where, start_s, prompt, output, ttft_s, e2e_s, gaps_s=_gaps_s(metrics))


def _why(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or "an error")
    return str(error or "cancelled")


def _gaps_s(metrics: Any) -> list[float]:
    chunks = metrics.get("inter_chunk_latency")
    if not chunks or not isinstance(chunks.get("value"), list):
        return []
    return [float(gap) * _unit(chunks) for gap in chunks["value"]]


def _tokens(metric: Any) -> int:
    if metric["unit"] != "tokens":
        raise ValueError(f"a length is in {metric['unit']!r}, not in tokens")
    return int(metric["value"])


def _seconds(metric: Any) -> float:
    return float(metric["value"]) * _unit(metric)


def _unit(metric: Any) -> float:
    if metric["unit"] not in SECONDS:
        raise ValueError(f"unknown unit {metric['unit']!r}; known: {', '.join(SECONDS)}")
    return SECONDS[metric["unit"]]
