"""OpenAI batch files (JSON Lines): what is sent (custom_id, method, url, body) or comes back (custom_id, response).

Source: platform.openai.com/docs/guides/batch; vLLM's run-batch reads and writes the same. What is sent has no times,
and answers of the length that they may have at most; what comes back tells both.
"""

from __future__ import annotations

from typing import Any

from traces.chats import limit_of, prompt_tokens, usage_of
from traces.fields import BadRow, Text, Time, get
from traces.head import Head
from traces.late import pd
from traces.source import Source

WRITING = ("/chat/completions", "/completions", "/responses")
LIMIT_NOTE = (
    "Output lengths are the most that each request may write (max_tokens or its newer names), not what it wrote."
)
CREATED_NOTE = "Arrivals are created, whole seconds: when the server made the answer, not when it was asked for."


def detect(head: Head) -> bool:
    sent = head.has("custom_id", "method", "url", "body")
    return head.shape == "json" and (sent or head.has("custom_id", "response"))


def openai_batch(source: Source) -> pd.DataFrame:
    sent = source.head.has("body")
    if sent:
        source.has_arrivals = False
        source.notes.append(LIMIT_NOTE)
        return pd.DataFrame(source.each(lambda record, line: _sent(source, record, line)))
    rows = [row for row in source.each(lambda record, line: _answered(source, record, line)) if row]
    if not rows:
        source.nothing()
    source.notes.append(CREATED_NOTE)
    return source.clock(pd.DataFrame(rows), "created", "s", ordered=False)


def _sent(source: Source, record: dict[str, Any], line: int) -> dict[str, Any]:
    url = get(record, "url", Text())
    if not url.endswith(WRITING):
        raise BadRow(f"url is {url!r}; only requests to {', '.join(WRITING)} write tokens", "url: writes no tokens")
    body = _object(record, "body")
    limit = limit_of(body)
    if limit is None:
        raise BadRow(
            "body has no max_tokens (or its newer names): how long the answer gets is not told", "no max_tokens"
        )
    return {
        "arrival_s": 0.0,
        "prompt_tokens": prompt_tokens(body, source.tokens),
        "output_tokens": limit,
        "source_row": line,
        "model": get(body, "model", Text(optional=True)),
    }


def _answered(source: Source, record: dict[str, Any], line: int) -> dict[str, Any] | None:
    response = record.get("response")
    code = response.get("status_code") if isinstance(response, dict) else None
    if record.get("error") is not None or response is None or (isinstance(code, int) and not 200 <= code < 300):
        source.dropped["requests that failed (error, or a status_code that is none of 200 to 299)"] += 1
        return None
    body = _object(_object(record, "response"), "body")
    usage = usage_of(body)
    if usage is None:
        raise BadRow("the body of the response has no usage: neither length is told", "no usage")
    key = "created" if "created" in body else "created_at"
    return {
        "arrival_s": get(body, key, Time("s")),
        "prompt_tokens": usage[0],
        "output_tokens": usage[1],
        "source_row": line,
        "model": get(body, "model", Text(optional=True)),
    }


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key)
    if not isinstance(found, dict):
        raise BadRow(f"{key} must be an object", f"{key}: no object")
    return found
