"""Requests of a real vLLM as LLMServingSim records them: JSON Lines, seconds of the engine's monotonic clock.

Source: github.com/casys-kaist/LLMServingSim. A request counts from `queued_ts`, when the engine saw it, as there;
`arrival_time` is of another clock and up to some 100 ms earlier.
"""

from collections.abc import Iterator
from typing import Any

from sim.validate.against import Row

ABOUT = "LLMServingSim's records of vLLM"
STAMPS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def detect(document: Any) -> bool:
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and all(key in first for key in ("input_toks", "output_toks", *STAMPS))


def rows(document: Any) -> Iterator[Row]:
    for number, record in enumerate(document if isinstance(document, list) else [document], 1):
        queued_s, scheduled_s, first_s, last_s = (float(record[key]) for key in STAMPS)
        yield Row(
            f"line {number}",
            queued_s,
            int(record["input_toks"]),
            int(record["output_toks"]),
            first_s - queued_s,
            last_s - queued_s,
            scheduled_s - queued_s,
        )
