"""Logs of interfaces, gateways and servers: what each line gives, counted by hand, and what refusals say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import answer, chat, jsonl, span

import traces
from traces.chats import content_tokens, usage_of
from traces.fields import BadRow
from traces.schema import InputError, Trace
from traces.tokens import count_bytes


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def rows_of(trace: Trace) -> list[tuple[float, int, int]]:
    table = trace.requests
    return [
        (float(arrival), int(prompt), int(output))
        for arrival, prompt, output in zip(
            table["arrival_s"], table["prompt_tokens"], table["output_tokens"], strict=True
        )
    ]


def said(path: Path, **how: Any) -> str:
    with pytest.raises(InputError) as error:
        traces.read(path, **how)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path} ")


# ---- OpenAI: batches and logs ---------------------------------------------------------------------------------------


def sent(**body: Any) -> dict[str, Any]:
    return {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"} | body}


def came(body: Any, code: int = 200, error: Any = None) -> dict[str, Any]:
    return {"custom_id": "1", "response": {"status_code": code, "body": body}, "error": error}


def test_failed_answers_of_a_batch_are_counted(tmp_path: Path) -> None:
    records = [
        came(answer(5, 10, 5)),
        came({}, 500),
        came(answer(6, 10, 5), error={"code": "expired"}),
        came(None, 400),
    ]
    trace = traces.read(put(tmp_path, "out.jsonl", jsonl(*records)))
    assert (rows_of(trace), trace.dropped) == ([(0.0, 10, 5)], 3)
    assert any("when the server made the answer" in note for note in trace.notes)


def test_responses_and_messages_have_other_names(tmp_path: Path) -> None:
    """Anthropic's input_tokens leave out what its cache holds."""
    response = {"object": "response", "created_at": 7, "output": [], "usage": {"input_tokens": 10, "output_tokens": 5}}
    message = {
        **{"type": "message", "created_at": 9, "content": []},
        "usage": {
            **{"input_tokens": 10, "output_tokens": 6},
            **{"cache_read_input_tokens": 300, "cache_creation_input_tokens": 40},
        },
    }
    path = put(tmp_path, "log.jsonl", jsonl(response, message))
    assert rows_of(traces.read(path, format="openai_log")) == [(0.0, 10, 5), (2.0, 350, 6)]


BATCHES = {
    "embeddings": (
        sent(input="x") | {"url": "/v1/embeddings"},
        "line 1: url is '/v1/embeddings'; only requests to /chat/completions, /completions, /responses write tokens",
    ),
    "no limit": (
        sent(messages=chat("a")),
        "line 1: body has no max_tokens (or its newer names): how long the answer gets is not told",
    ),
    "no prompt": (sent(max_tokens=5), "line 1: has neither messages, prompt nor input"),
    "limit of text": (
        sent(messages=chat("a"), max_tokens="x"),
        "line 1: max_tokens is 'x'; it must be a whole number of at least 1",
    ),
    "image alone": (
        sent(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], max_tokens=5),
        "line 1: messages holds no text",
    ),
    "no usage": (came({"created": 1}), "line 1: the body of the response has no usage: neither length is told"),
    "no time": (
        came({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        "line 1: created_at is missing",
    ),
    "zero": (
        came(answer(1, 10, 0)),
        "line 1: completion_tokens is 0; it must be a whole number of at least 1",
    ),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_are_refused_truly(tmp_path: Path, case: str) -> None:
    record, sentence = BATCHES[case]
    path = put(tmp_path, "batch.jsonl", jsonl(record))
    assert said(path) == sentence
    assert said(path, skip_bad=True).startswith("holds no usable request (1 bad)")


LATER = 1_711_652_800
WHOLE = "it must be a whole number of at least 1"
LOGS: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": (
        {"model": "m", "prompt": "a"},
        "line 2: has neither an answer nor max_tokens (or its newer names): its length is not told",
    ),
    "no usage": (
        {"choices": [{"text": "a"}], "created": LATER},
        "line 2: the answer has no usage, and nothing tells its prompt",
    ),
    "another": (
        {"event": "start", "created": LATER},
        "line 2: is neither a request nor an answer of an OpenAI-like interface",
    ),
    "no time": (
        answer(1, 1, 1) | {"created": "noon"},
        "line 201: created is 'noon'; it must be a number of seconds, 0 or more",
    ),
    "fraction": (
        answer(LATER, 10, 5) | {"usage": {"prompt_tokens": 1.5, "completion_tokens": 1}},
        f"line 2: prompt_tokens is 1.5; {WHOLE}",
    ),
    "doubtful unit": (
        answer(1, 10, 5),
        "does not say for certain the unit of created, such as 1711652795",
    ),
}


@pytest.mark.parametrize("case", LOGS)
def test_logs_are_refused_truly(tmp_path: Path, case: str) -> None:
    record, sentence = LOGS[case]
    first = answer(1_711_652_795, 10, 5)
    if "created" not in record:
        first["created"] = None
    # A column that holds something else among the rows that are looked at is not taken for one of times.
    path = put(tmp_path, "log.jsonl", jsonl(*[first] * (200 if case == "no time" else 1), record))
    assert said(path) == sentence
    if case != "doubtful unit":
        assert traces.read(path, skip_bad=True).dropped == 1


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.booleans())
def test_text_counts_alike_in_every_shape(texts: list[str], parts: bool) -> None:
    """As one text after the other, as messages, and as messages of parts."""
    plain = sum(count_bytes(text) for text in texts if text)
    messages = [{"role": "user", "content": [{"type": "text", "text": text}] if parts else text} for text in texts]
    assert content_tokens(messages, count_bytes, "it") == plain


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, {"completion_tokens": 3}, 7])
def test_usage_that_tells_half_tells_nothing(usage: Any) -> None:
    assert usage_of({"usage": usage}) is None


def test_usage_of_no_counts_is_refused() -> None:
    with pytest.raises(BadRow, match="cache_read_input_tokens is -1"):
        usage_of({"usage": {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": -1}})


# ---- OpenTelemetry --------------------------------------------------------------------------------------------------

T0 = 1_731_000_000_000_000_000


def test_spans_of_a_conversation_follow_one_another(tmp_path: Path) -> None:
    """Each span takes 100 ms; what is no call of a model, an agent's sum and a failure are left out and counted."""
    own = {"gen_ai.conversation.id": "c", "gen_ai.request.model": "m", "gen_ai.operation.name": "chat"}
    failed = span(str(T0 + 3 * 10**9), 10, 5) | {"status": {"code": 2}}
    spans = [
        span(str(T0 + 2 * 10**9), 30, 6, **own),
        span(str(T0), 10, 5, **own),
        span(str(T0 - 10**9), 40, 11, **own | {"gen_ai.operation.name": "invoke_agent"}),
        {"startTimeUnixNano": str(T0), "attributes": [{"key": "http.method", "value": {"stringValue": "GET"}}]},
        failed,
    ]
    lines = [{"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]} for one in spans]
    trace = traces.read(put(tmp_path, "spans.jsonl", jsonl(*lines)))
    assert rows_of(trace) == [(0.0, 10, 5), (2.0, 30, 6)]
    assert trace.requests["think_s"].tolist() == [0.0, 1.9]
    assert trace.requests["after"].tolist() == [-1, 0]
    assert trace.requests["model"].tolist() == ["m", "m"]
    assert trace.dropped == 3


SPANS: dict[str, tuple[dict[str, Any], str]] = {
    "no start": ({"startTimeUnixNano": None}, "has no startTimeUnixNano"),
    "relative": (
        {"startTimeUnixNano": "12"},
        "startTimeUnixNano is '12'; it is no time since 1970 in seconds, milli-, micro- or nanoseconds",
    ),
    "no date": (
        {"startTimeUnixNano": "noon"},
        "startTimeUnixNano is 'noon'; it must be a date and time such as 2023-11-16 18:15:46.680590",
    ),
    "negative": (
        {"attributes": {"gen_ai.usage.input_tokens": -1, "gen_ai.usage.output_tokens": 1}},
        f"gen_ai.usage.input_tokens is -1; {WHOLE}",
    ),
    "no map": ({"attributes": 5}, "attributes must be a map, or a list of {key, value}"),
}


@pytest.mark.parametrize("case", SPANS)
def test_spans_are_refused_truly(tmp_path: Path, case: str) -> None:
    change, sentence = SPANS[case]
    path = put(tmp_path, "spans.jsonl", jsonl(span(str(T0), 10, 5) | change))
    assert said(path, format="otel") == f"line 1: {sentence}"


@pytest.mark.parametrize("start", [T0, T0 // 10**3, T0 // 10**6, T0 / 10**9, "2024-11-07T17:20:00Z"])
def test_a_start_is_known_in_any_unit(tmp_path: Path, start: object) -> None:
    attributes = {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1}
    path = put(tmp_path, "spans.jsonl", jsonl({"start_time": start, "attributes": attributes}))
    assert any("counted from 2024-11-07 17:20:00 UTC" in note for note in traces.read(path).notes)


# ---- vLLM's lines ---------------------------------------------------------------------------------------------------


def received(
    name: str, prompt: str = "'aaaa'", limit: object = 5, time: str = "08-21 10:00:00", before: str = ""
) -> str:
    params = f"SamplingParams(n=1, temperature=0.7, stop=[], max_tokens={limit}, min_tokens=0)"
    told = f"prompt: {prompt}, params: {params}, prompt_token_ids: None, lora_request: None."
    return f"{before}INFO {time} [logger.py:41] Received request {name}: {told}\n"


def generated(name: str, output: str, ids: object) -> str:
    told = f"output: {output!r}, output_token_ids: {ids}, finish_reason: stop"
    return f"INFO 08-21 10:00:03 [logger.py:60] Generated response {name}: {told}\n"


def test_answers_tell_lengths_where_they_are_logged(tmp_path: Path) -> None:
    text = (
        received("cmpl-a-0")
        + received("chatcmpl-b", time="08-21 10:00:01")
        + received("chatcmpl-c", time="08-21 10:00:02")
        + generated("cmpl-a", "x", [5, 6, 7])
        + generated("chatcmpl-c (streaming delta)", "abcd", [1])
        + generated("chatcmpl-b (streaming delta)", "abcd", [1])
        + generated("chatcmpl-b (streaming complete)", "abcdefgh", None)
    )
    trace = traces.read(put(tmp_path, "vllm.log", text))
    assert rows_of(trace) == [(0.0, 1, 3), (1.0, 1, 2)]
    assert trace.dropped_reasons == {"requests whose answer is not logged": 1}


def test_without_answers_the_limit_is_said_to_be_one(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "vllm.log", received("cmpl-a")))
    assert any("Output lengths are max_tokens, the most that each request may write" in note for note in trace.notes)


def test_the_prompt_in_a_line_of_its_own(tmp_path: Path) -> None:
    params = "params: SamplingParams(n=1, max_tokens=5), lora_request: None."
    text = (
        "DEBUG 08-21 10:00:00 [logger.py:40] Request cmpl-a details: prompt: 'early', prompt_token_ids: [1], x.\n"
        f"INFO 08-21 10:00:00 [logger.py:41] Received request cmpl-a: {params}\n"
        "DEBUG 08-21 10:00:00 [logger.py:40] Request cmpl-a details: prompt: None, prompt_token_ids: [1, 2, 3], x.\n"
    )
    assert rows_of(traces.read(put(tmp_path, "vllm.log", text))) == [(0.0, 3, 5)]


def test_what_a_prompt_says_is_not_what_the_log_says(tmp_path: Path) -> None:
    prompt = repr("max_tokens=99, prompt_token_ids: [1, 2], SamplingParams(n=9")
    trace = traces.read(put(tmp_path, "vllm.log", received("a", prompt=prompt)))
    assert rows_of(trace) == [(0.0, 15, 5)]
    assert trace.requests["samples"].tolist() == [1]


def test_a_runtimes_stamp_goes_before_the_servers_time(tmp_path: Path) -> None:
    text = received("a", before="2026-08-21T10:00:00.250Z ") + received("b", before="2026-08-21T10:00:01.750Z ")
    assert rows_of(traces.read(put(tmp_path, "vllm.log", text))) == [(0.0, 1, 5), (1.5, 1, 5)]


def test_a_log_over_new_year_goes_on(tmp_path: Path) -> None:
    text = received("a", time="12-31 23:59:58") + received("b", time="01-01 00:00:01")
    assert rows_of(traces.read(put(tmp_path, "vllm.log", text))) == [(0.0, 1, 5), (3.0, 1, 5)]


VLLM = {
    "no prompt": (
        received("a", prompt="None"),
        "request a: the log tells neither its prompt nor its prompt_token_ids",
    ),
    "no limit": (received("a", limit=None), "request a: the log tells neither max_tokens nor an answer"),
    "twice": (received("x"), "request x is received twice"),
    "no such day": (received("a", time="02-30 10:00:00"), "02-30 10:00:00 is no date and time"),
    "no time": (
        "[logger.py:41] Received request a: prompt: 'x', params: SamplingParams(n=1, max_tokens=5)\n",
        "has no time such as INFO 08-21 10:00:00 before it",
    ),
}


@pytest.mark.parametrize("case", VLLM)
def test_lines_of_a_server_are_refused_truly(tmp_path: Path, case: str) -> None:
    text, sentence = VLLM[case]
    path = put(tmp_path, "vllm.log", received("x") + text)
    assert said(path) == f"line 2: {sentence}"
    assert len(traces.read(path, skip_bad=True)) == 1


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_prompt_is_read_as_python_wrote_it(tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "vllm.log"
    path.write_bytes(received("a", prompt=repr(prompt)).encode())
    assert rows_of(traces.read(path)) == [(0.0, count_bytes(prompt), 5)]


def test_lines_that_docker_wrapped_in_json_are_no_log(tmp_path: Path) -> None:
    path = put(tmp_path, "container.log", jsonl({"log": received("a"), "time": "2026-08-21T10:00:00.2Z"}))
    assert "is in no known format by its keys of the first record: log, time" in f"x {said(path)}"


def test_a_first_line_of_another_program_is_passed_over(tmp_path: Path) -> None:
    text = "[W socket.cpp:697] warning\n" + received("a")
    assert rows_of(traces.read(put(tmp_path, "vllm.log", text))) == [(0.0, 1, 5)]


def test_a_servers_log_has_no_columns(tmp_path: Path) -> None:
    from traces.mapping.survey import survey

    with pytest.raises(InputError, match="lines of a server's log, which have no columns"):
        survey(put(tmp_path, "vllm.log", received("a")))


def test_lists_of_json_are_records_too(tmp_path: Path) -> None:
    path = put(tmp_path, "log.json", json.dumps([answer(1, 10, 5), answer(2, 20, 6)], indent=2))
    assert rows_of(traces.read(path)) == [(0.0, 10, 5), (1.0, 20, 6)]
