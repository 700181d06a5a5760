"""AIPerf's records of single requests (profile_export.jsonl): metadata, metrics with their units, an error or none.

Written from AIPerf's documented output, not yet tried on a file of a real run.
"""

from collections.abc import Iterator
from typing import Any

from sim.validate.against import Row

ABOUT = "AIPerf's profile_export.jsonl"
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}


def detect(document: Any) -> bool:
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and isinstance(first.get("metadata"), dict) and "metrics" in first


def rows(document: Any) -> Iterator[Row]:
    for number, one in enumerate(document if isinstance(document, list) else [document], 1):
        told, found = one["metadata"], one["metrics"]
        if told.get("benchmark_phase") == "warmup":
            continue
        start_s = int(told["request_start_ns"]) / 1e9
        if one.get("error") or told.get("was_cancelled"):
            yield Row(f"line {number}", start_s, 1, 1, 0.0, 0.0, failed=str(one.get("error") or "cancelled"))
            continue
        yield Row(
            f"line {number}",
            start_s,
            int(found["input_sequence_length"]["value"]),
            int(found["output_sequence_length"]["value"]),
            _seconds(found["time_to_first_token"]),
            _seconds(found["request_latency"]),
        )


def _seconds(metric: Any) -> float:
    unit = metric["unit"]
    if unit not in SECONDS:
        raise ValueError(f"unknown unit {unit!r}; known: {', '.join(SECONDS)}")
    return float(metric["value"]) * SECONDS[unit]
