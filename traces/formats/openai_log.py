"""Logs of OpenAI-like interfaces (JSON Lines or array): answers with usage, {request, response} pairs, or bodies sent.

Source: platform.openai.com/docs/api-reference (chat, completions, responses), docs.anthropic.com (messages).
Lengths are those of usage; without it texts are counted, and a body without an answer tells the most that it may
write.
"""

from __future__ import annotations

from typing import Any

from traces.chats import answer_tokens, limit_of, prompt_tokens, usage_of
from traces.fields import BadRow, Count, Text, broken, get
from traces.formats.openai_batch import LIMIT_NOTE
from traces.head import Head
from traces.late import pd
from traces.source import Source

SENT = ("messages", "prompt", "input")
WRITTEN = ("choices", "output", "content")


def detect(head: Head) -> bool:
    if head.shape != "json" or head.has("custom_id") or head.has("output_length"):
        return False
    request, response = _parts(head.record)
    return bool(request or response) and (_is_answer(response) or _is_request(request))


def openai_log(source: Source) -> pd.DataFrame:
    from traces.mapping.arrivals import ArrivalColumn  # noqa: PLC0415 - every format is asked what files it knows

    clock = ArrivalColumn.of(source)
    limited = 0

    def row(record: dict[str, Any], line: int) -> dict[str, Any]:
        nonlocal limited
        request, response = _parts(record)
        if not request and not response:
            raise BadRow("is neither a request nor an answer of an OpenAI-like interface")
        if request and not response:
            limited += 1
        prompt, output = _lengths(source, request, response)
        return {
            "arrival_s": clock.ticks(record),
            "prompt_tokens": prompt,
            "output_tokens": output,
            "source_row": line,
            "model": get(response or request, "model", Text(optional=True)),
            "samples": _samples(request),
        }

    table = pd.DataFrame(source.each(row))
    if limited:
        source.notes.append(
            LIMIT_NOTE if limited == len(table) else f"Of {limited:,} requests without answer: {LIMIT_NOTE}"
        )
    return clock.laid(table)


def _parts(record: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what was sent, what came back), empty where a record does not hold it."""
    pair = record.get("request"), record.get("response")
    if any(isinstance(one, dict) for one in pair):
        request, response = (_body(one) if isinstance(one, dict) else {} for one in pair)
        return request, response
    if _is_answer(record):
        return {}, record
    return (record, {}) if _is_request(record) else ({}, {})


def _body(message: dict[str, Any]) -> dict[str, Any]:
    inner = message.get("body")
    return inner if isinstance(inner, dict) else message


def _is_answer(body: dict[str, Any]) -> bool:
    return any(name in body for name in WRITTEN) and (isinstance(body.get("usage"), dict) or "choices" in body)


def _is_request(body: dict[str, Any]) -> bool:
    return "model" in body and any(name in body for name in SENT) and not any(name in body for name in WRITTEN)


def _lengths(source: Source, request: dict[str, Any], response: dict[str, Any]) -> tuple[int, int]:
    if (usage := usage_of(response)) is not None:
        return usage
    if not request:
        raise BadRow("the answer has no usage, and nothing tells its prompt", "no usage")
    if response:
        return prompt_tokens(request, source.tokens), answer_tokens(response, source.tokens)
    if (limit := limit_of(request)) is None:
        raise BadRow(
            "has neither an answer nor max_tokens (or its newer names): its length is not told", "no max_tokens"
        )
    return prompt_tokens(request, source.tokens), limit


def _samples(request: dict[str, Any]) -> int:
    try:
        return Count(default=1).parse(request.get("n"))
    except BadRow as rule:
        raise broken("n", request.get("n"), rule) from None
