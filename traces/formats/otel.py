"""OpenTelemetry spans of GenAI calls (OTLP JSON: resourceSpans; or spans in JSON Lines with a map of attributes).

Source: opentelemetry.io/docs/specs/semconv/gen-ai (gen_ai.usage.input_tokens, output_tokens; prompt_tokens and
completion_tokens before 2024), opentelemetry-proto's JSON, and OpenInference's llm.token_count. A request is a span
with both counts whose operation writes tokens; it comes when the span starts, and requests of one
gen_ai.conversation.id follow one another, the think time from the end of the span before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from traces.fields import BadRow, Count, Text, broken
from traces.head import Head
from traces.late import pd
from traces.sessions import linked
from traces.source import Source

INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
MODEL = ("gen_ai.request.model", "gen_ai.response.model", "llm.model_name")
SESSION = ("gen_ai.conversation.id", "session.id")
OPERATION = "gen_ai.operation.name"
WRITING = ("chat", "text_completion", "generate_content")
"""Operations that write tokens; an agent's own span (invoke_agent) repeats the counts of those in it."""
START = ("startTimeUnixNano", "start_time_unix_nano", "startTime", "start_time")
END = ("endTimeUnixNano", "end_time_unix_nano", "endTime", "end_time")


def detect(head: Head) -> bool:
    if head.shape != "json":
        return False
    if head.has("resourceSpans") or head.has("scopeSpans"):
        return True
    timed = any(head.has(name) for name in START)
    return timed and (isinstance(head.record.get("attributes"), (dict, list)) or any(head.has(name) for name in INPUT))


def otel(source: Source) -> pd.DataFrame:
    from traces.mapping.rows import record_rows  # noqa: PLC0415 - every format is asked what files it knows

    rows: list[dict[str, Any]] = []
    for number, record in record_rows(source):
        try:
            rows += [row for span in _spans(record) if (row := _row(source, span, number)) is not None]
        except BadRow as why:
            source.reject(number, why)
    if not rows:
        source.nothing()
    table = pd.DataFrame(rows).sort_values("start", kind="stable").reset_index(drop=True)
    first = int(table["start"].iloc[0])
    took = (table.pop("end") - table["start"]).to_numpy() / 1e9
    table["arrival_s"] = (table.pop("start") - first) / 1e9
    source.notes.append(f"Arrivals are the starts of spans, counted from {pd.Timestamp(first)} UTC.")
    if (table["session"] != "").any():
        source.notes.append(
            "Requests of a conversation follow one another; think time runs from the end of the span before."
        )
        return linked(table, np.where(took >= 0, took, np.nan))
    return table.drop(columns="session")


def _spans(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spans of an export, of a part of one, or the record itself."""
    inner = next(
        (key for key in ("resourceSpans", "scopeSpans", "instrumentationLibrarySpans", "spans") if key in record), ""
    )
    if not inner:
        yield record
        return
    if not isinstance(record[inner], list) or not all(isinstance(one, dict) for one in record[inner]):
        raise BadRow(f"{inner} must be a list of objects", f"{inner}: no list of objects")
    for one in record[inner]:
        yield from _spans(one)


def _row(source: Source, span: Mapping[str, Any], number: int) -> dict[str, Any] | None:
    told = _attributes(span)
    prompt, output = (_first(told, names) for names in (INPUT, OUTPUT))
    if not prompt or not output:
        source.dropped["spans without both token counts"] += 1
        return None
    operation = told.get(OPERATION)
    if operation is not None and operation not in WRITING:
        source.dropped[f"spans of another {OPERATION} than {', '.join(WRITING)}"] += 1
        return None
    if _failed(span):
        source.dropped["requests that failed (the span's status)"] += 1
        return None
    start = _moment(span, START)
    return {
        "prompt_tokens": _told(told, prompt, Count()),
        "output_tokens": _told(told, output, Count()),
        "source_row": number,
        "model": _told(told, _first(told, MODEL), Text(optional=True)),
        "session": _told(told, _first(told, SESSION), Text(optional=True)),
        "start": start,
        "end": _moment(span, END) if _first(span, END) else start,
    }


def _attributes(span: Mapping[str, Any]) -> Mapping[str, Any]:
    """A span's attributes as a map; those of OTLP are a list of {key, value: {intValue: ...}}."""
    found = span.get("attributes", span)
    if isinstance(found, dict):
        return found
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("key"), str) for one in found
    ):
        raise BadRow("attributes must be a map, or a list of {key, value}", "attributes: no map")
    told: dict[str, Any] = {}
    for one in found:
        value = one.get("value")
        if isinstance(value, dict):
            kind = next(iter(value), "")
            value = value.get(kind)
            if kind == "intValue" and isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 20:
                value = int(value)
        told[one["key"]] = value
    return told


def _failed(span: Mapping[str, Any]) -> bool:
    status = span.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else status
    return code == 2 or (isinstance(code, str) and code.upper().removeprefix("STATUS_CODE_") == "ERROR")


def _moment(span: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Nanoseconds since 1970 of a date as text, or of a number that is a date in one unit alone."""
    from traces.mapping.kinds import LoggedTime  # noqa: PLC0415 - every format is asked what files it knows
    from traces.mapping.times import EPOCHS, ISO  # noqa: PLC0415

    key = _first(span, names)
    if not key:
        raise BadRow(f"has no {names[0]}", f"no {names[0]}")
    value = span[key]
    text = isinstance(value, str)
    number = int(value) if text and value.isdecimal() and len(value) < 20 else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        unit = next((unit for unit, least in EPOCHS.items() if least <= number < 4.2 * least), "")
        if not unit:
            raise broken(key, value, "it is no time since 1970 in seconds, milli-, micro- or nanoseconds")
    else:
        unit = ISO
    try:
        return LoggedTime(unit).parse(number)
    except BadRow as rule:
        raise broken(key, value, rule) from None


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if told.get(name) is not None), "")


def _told(told: Mapping[str, Any], key: str, kind: Any) -> Any:
    try:
        return kind.parse(told[key] if key else None)
    except BadRow as rule:
        raise broken(key, told[key], rule) from None
