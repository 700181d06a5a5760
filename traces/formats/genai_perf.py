"""GenAI-Perf's inputs.json (one object: data, a list of {payload: [body of a request]}); no times.

Source: github.com/triton-inference-server/perf_analyzer, docs of input data for its OpenAI service kind. What a body
may write at most is its output length. GenAI-Perf's traces with times are Mooncake's: see `mooncake`.
"""

from __future__ import annotations

from typing import Any

from traces.chats import limit_of, prompt_tokens
from traces.fields import BadRow, Text, get
from traces.formats.openai_batch import LIMIT_NOTE
from traces.head import Head
from traces.late import pd
from traces.source import Source


def detect(head: Head) -> bool:
    rows = head.record.get("data")
    return head.shape == "json" and isinstance(rows, list) and all(isinstance(_payload(one), list) for one in rows[:1])


def genai_perf(source: Source) -> pd.DataFrame:
    from traces.mapping.rows import record_rows  # noqa: PLC0415 - every format is asked what files it knows

    rows = []
    for number, record in record_rows(source):
        try:
            rows.append(_row(source, record, number))
        except BadRow as why:
            source.reject(number, why)
    if not rows:
        source.nothing()
    source.has_arrivals = False
    source.notes.append(LIMIT_NOTE)
    return pd.DataFrame(rows)


def _payload(record: Any) -> Any:
    return record.get("payload") if isinstance(record, dict) else None


def _row(source: Source, record: dict[str, Any], number: int) -> dict[str, Any]:
    payload = _payload(record)
    if not isinstance(payload, list) or len(payload) != 1 or not isinstance(payload[0], dict):
        raise BadRow("payload must be a list of one request's body", "payload: not one body")
    body = payload[0]
    if (limit := limit_of(body)) is None:
        raise BadRow("payload has no max_tokens (or its newer names): how long the answer gets is not told", "no limit")
    return {
        "arrival_s": 0.0,
        "prompt_tokens": prompt_tokens(body, source.tokens),
        "output_tokens": limit,
        "source_row": number,
        "model": get(body, "model", Text(optional=True)),
    }
