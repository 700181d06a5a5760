"""Requests of a real vLLM as LLMServingSim records them: JSON Lines, seconds of the engine's monotonic clock.

Source: github.com/casys-kaist/LLMServingSim. A request counts from `queued_ts`, when the engine saw it, as there;
`arrival_time` is of another clock and up to some 100 ms earlier.
"""

from typing import Any

from sim.validate.against.rows import ANY_COUNT, SECONDS, ResultFile, Row, ToolRun, each
from traces.fields import get

ABOUT = "LLMServingSim's records of vLLM"
MEASURED_AT = "engine"
STAMPS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def detect(file: ResultFile) -> bool:
    return any(all(key in record for key in ("input_toks", "output_toks", *STAMPS)) for record in file.sample())


def runs(file: ResultFile) -> list[ToolRun]:
    return [ToolRun(ABOUT, each(file.records, _row))]


def _row(where: str, record: dict[str, Any]) -> Row:
    queued_s, scheduled_s, first_s, last_s = (get(record, key, SECONDS) for key in STAMPS)
    prompt, output = (get(record, key, ANY_COUNT) for key in ("input_toks", "output_toks"))
    return Row(where, queued_s, prompt, output, first_s - queued_s, last_s - queued_s, scheduled_s - queued_s)
