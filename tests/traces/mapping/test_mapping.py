"""Any log in: what is guessed, what is read by a mapping, and that each refusal says what is true."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES

import traces
from traces import write
from traces.formats import Format
from traces.mapping import assign
from traces.mapping.guess import apart, guess, missing
from traces.mapping.rows import MISSING, at
from traces.mapping.survey import survey
from traces.mapping.table import mapped
from traces.schema import InputError, Trace


def read(path: Path, given: str = "", **how: Any) -> Trace:
    """By the mapping given, and guesses for the rest."""
    assignments = guess(survey(path), assign.parse([given] if given else []))
    assert not missing(assignments)
    return traces.read(path, format=Format("mapped", lambda source: mapped(source, assignments), None, ""), **how)


def guessed(path: Path, given: str = "") -> str:
    return assign.typed(guess(survey(path), assign.parse([given] if given else [])))


def rows_of(trace: Trace) -> list[tuple[float, int, int]]:
    table = trace.requests
    return [
        (float(a), int(p), int(o))
        for a, p, o in zip(table["arrival_s"], table["prompt_tokens"], table["output_tokens"], strict=True)
    ]


def assert_rows(trace: Trace, expected: list[tuple[float, int, int]], within: float = 1e-9) -> None:
    found = rows_of(trace)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=within)


def put(folder: Path, name: str, *records: dict[str, Any] | str) -> Path:
    path = folder / name
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


# ---- laws -----------------------------------------------------------------------------------------------------------

COUNT = st.integers(1, 100_000)
WORD = st.sampled_from(["alpha", "beta", "a.b", "x", "0", "gen_ai.usage", "µ"])
UNIT = st.sampled_from(["s", "ms", "us", "ns", "iso"])
PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ROWS = st.lists(st.tuples(st.integers(0, 10**6), COUNT, COUNT), min_size=1, max_size=8)


def stamp(ns: int, unit: str, text: bool) -> object:
    if unit == "iso":
        return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"
    value: float | int = ns * PER_S[unit] / 10**9
    value = int(value) if value == int(value) and PER_S[unit] > 1 else value
    return str(value) if text else value


@settings(max_examples=EXAMPLES or 120)
@given(ROWS, st.lists(WORD, min_size=0, max_size=3), UNIT, st.booleans(), st.booleans(), st.data())
def test_nested_logs_are_read_by_their_paths(
    tmp_path: Path, rows: list[tuple[int, int, int]], steps: list[str], unit: str, text: bool, epoch: bool, data: Any
) -> None:
    """Whatever the nesting, the unit, whether numbers stand as texts: the same requests."""
    base = 1_700_000_000 * 10**9 if epoch or unit == "iso" else 0
    out = []
    for ms, prompt, output in rows:
        inner: dict[str, Any] = {
            "when": stamp(base + ms * 10**6, unit, text),
            "p": str(prompt) if text else prompt,
            "o": output,
        }
        for step in reversed(steps):
            inner = {step: inner, "noise": [1, {"when": 3}]}
        out.append(inner)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in out))
    prefix = "".join(f"{step}." for step in steps)
    found = read(path, f"arrival={prefix}when:{unit},prompt={prefix}p,output={prefix}o")
    expected = sorted(
        ((ms - min(r[0] for r in rows)) / 1000, place, prompt, output)
        for place, (ms, prompt, output) in enumerate(rows)
    )
    # Seconds and microseconds since 1970 are floats here, to a quarter of a microsecond.
    assert_rows(found, [(arrival, prompt, output) for arrival, _, prompt, output in expected], within=1e-6)


@settings(max_examples=EXAMPLES or 60)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), COUNT, COUNT, st.sampled_from(["", "s1", "s2"])), min_size=1, max_size=8),
    st.sampled_from([".csv", ".jsonl", ".parquet", ".csv.gz"]),
)
def test_our_own_files_come_back_the_same(tmp_path: Path, rows: list[tuple[int, int, int, str]], ending: str) -> None:
    """Written in our format and imported by its columns: the same table."""
    table = pd.DataFrame(
        {
            "arrival_s": [ms / 1000 for ms, *_ in sorted(rows)],
            "prompt_tokens": [row[1] for row in sorted(rows)],
            "output_tokens": [row[2] for row in sorted(rows)],
            "session": pd.Series([row[3] for row in sorted(rows)], dtype=object),
        }
    )
    first = table["arrival_s"].iloc[0]
    table["arrival_s"] -= first
    from traces.sessions import linked

    whole = traces.from_frame(linked(table))
    path = write.write(whole, tmp_path / f"own{ending}")
    fields = "arrival=arrival_s:s,prompt=prompt_tokens,output=output_tokens,think=think_s:s"
    if any(row[3] for row in rows):
        fields += ",session=session"
        again = read(path, fields).requests.drop(columns="source_row")
        pd.testing.assert_frame_equal(again, whole.requests.drop(columns="source_row"), check_exact=False, atol=1e-9)
    else:
        assert_rows(read(path, fields), rows_of(whole))
    assert traces.read(path).requests.equals(traces.read(path, format="foretoken").requests)


def slow_at(value: Any, path: str) -> Any:
    """All ways to cut a path, the longest first key first."""
    if path == "":
        return value
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        key, rest = ".".join(parts[:count]), ".".join(parts[count:])
        if isinstance(value, dict) and key in value:
            if (found := slow_at(value[key], rest)) is not MISSING:
                return found
        elif isinstance(value, list) and count == 1 and key.isdecimal() and int(key) < len(value):
            return slow_at(value[int(key)], rest)
    return MISSING


KEYS = st.sampled_from(["a", "b", "a.b", "b.a", "0"])
TREES = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(KEYS, inner) | st.lists(inner), max_leaves=8)


@given(TREES, st.lists(KEYS, min_size=1, max_size=4))
def test_a_path_leads_where_a_slow_search_leads(tree: Any, steps: list[str]) -> None:
    assert at(tree, ".".join(steps)) is slow_at(tree, ".".join(steps)) or at(tree, ".".join(steps)) == slow_at(
        tree, ".".join(steps)
    )


# ---- guesses --------------------------------------------------------------------------------------------------------

HEADERS = {
    "timestamp,prompt_tokens,output_tokens": "arrival=timestamp:s,prompt=prompt_tokens,output=output_tokens",
    "arrived_at,num_prefill_tokens,num_decode_tokens": (
        "arrival=arrived_at:s,prompt=num_prefill_tokens,output=num_decode_tokens"
    ),
    "Timestamp,ContextTokens,GeneratedTokens": "arrival=Timestamp:s,prompt=ContextTokens,output=GeneratedTokens",
    "arrival_time_ns,input_toks,output_toks": "arrival=arrival_time_ns:ns,prompt=input_toks,output=output_toks",
    "ts_ms,input_length,output_length": "arrival=ts_ms:ms,prompt=input_length,output=output_length",
    "startTimeMicros,ISL,OSL": "arrival=startTimeMicros:us,prompt=ISL,output=OSL",
    "created,prompt_eval_count,eval_count": "arrival=created:s,prompt=prompt_eval_count,output=eval_count",
    "ts,n_prompt_words_tokens,generation_token_count": (
        "arrival=ts:s,prompt=n_prompt_words_tokens,output=generation_token_count"
    ),
}


@pytest.mark.parametrize("header", HEADERS)
def test_names_are_guessed(tmp_path: Path, header: str) -> None:
    assert guessed(put(tmp_path, "a.csv", header, "1,10,5", "2,20,6")) == HEADERS[header]


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (["1700000000", "1700000060"], "s"),
        (["1700000000.5", "1700000060.25"], "s"),
        (["1700000000000", "1700000060000"], "ms"),
        (["1700000000000000", "1700000060000000"], "us"),
        (["1700000000000000000", "1700000060000000000"], "ns"),
        (["2023-11-16 18:15:46", "2023-11-16 18:15:50.25"], "iso"),
        (["2023-11-16T18:15:46Z", "2023-11-16T18:15:50+02:00"], "iso"),
        (["0", "19"], "s"),
        (["0.5", "12.5"], "s"),
        (["0", "3000"], "ms"),
        (["0", "300000000"], "ns"),
        (["0.5", "3000.5"], "ms"),
    ],
)
def test_units_are_guessed_from_values(tmp_path: Path, values: list[str], unit: str) -> None:
    path = put(tmp_path, "a.csv", "when_it_came,p,o", *(f"{value},1,1" for value in values))
    assert f"arrival=when_it_came:{unit}" in guessed(path, "arrival=when_it_came,prompt=p,output=o")


def test_a_log_with_everything(tmp_path: Path) -> None:
    """Counted by hand: two sessions, one failure, an end, a model."""
    log = [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z", "a", 200, {"prompt_tokens": 10, "completion_tokens": 5}),
        ("2026-01-01T00:00:01Z", None, "b", 503, None),
        ("2026-01-01T00:00:06.5Z", "2026-01-01T00:00:07Z", "a", 200, {"prompt_tokens": 20, "completion_tokens": 6}),
    ]
    path = put(
        tmp_path,
        "log.jsonl",
        *(
            {"start_time": start, "end_time": end, "meta": {"session_id": who, "model": "m"}, "status_code": code}
            | {"usage": usage}
            for start, end, who, code, usage in log
        ),
    )  # fmt: skip
    trace = read(path)
    assert rows_of(trace) == [(0.0, 10, 5), (6.5, 20, 6)]
    assert trace.requests["think_s"].tolist() == [0.0, 4.5]
    assert trace.requests["after"].tolist() == [-1, 0]
    assert trace.requests["model"].tolist() == ["m", "m"]
    assert trace.dropped_reasons == {"requests that failed by their status_code": 1}


def test_an_answered_request_has_both_lengths(tmp_path: Path) -> None:
    rows = ("1,success,10,5", "2,failure,,", "3,success,10,", "4,success,10,6")
    path = put(tmp_path, "a.csv", "ts,status,prompt_tokens,output_tokens", *rows)
    with pytest.raises(InputError) as error:
        read(path)
    told = "output_tokens is 0 or absent; a request that was answered has at least 1 token"
    assert str(error.value) == f"{path} line 4: {told}"
    kept = read(path, skip_bad=True)
    assert rows_of(kept) == [(0.0, 10, 5), (3.0, 10, 6)]
    assert kept.dropped_reasons == {"requests that failed by their status": 1, told: 1}


def test_texts_and_chats_are_counted_by_the_stated_rule(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "a" * 8}, {"role": "user", "content": [{"type": "text", "text": "b" * 9}]}]
    path = put(tmp_path, "log.jsonl", {"messages": chat, "response": "c" * 12, "t": 1})
    trace = read(path)
    assert rows_of(trace) == [(0.0, 2 + 3, 3)]
    assert any("UTF-8 bytes / 4" in note for note in trace.notes)
    assert not trace.has_arrivals
    cell = json.dumps(chat).replace('"', '""')
    assert rows_of(read(put(tmp_path, "log.csv", "messages,response", f'"{cell}",{"c" * 12}'))) == [(0.0, 5, 3)]


@pytest.mark.parametrize("key", ["data", "requests", "whatever"])
def test_rows_in_a_list_of_one_object(tmp_path: Path, key: str) -> None:
    document = {"version": 1, key: [{"input_tokens": 3, "output_tokens": 4, "ts": place} for place in range(2)]}
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document, indent=2))
    assert rows_of(read(path)) == [(0.0, 3, 4), (1.0, 3, 4)]


def test_packed_and_marked_files(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfts,in_len,out_len\r\n1,10,5\r\n2,20,6\r\n"))
    assert rows_of(read(path)) == [(0.0, 10, 5), (1.0, 20, 6)]


def test_parquet_with_nested_columns_and_stamps(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame(
        {
            "request_time": pd.to_datetime(["2026-01-01 00:00:00.123456789", "2026-01-01 00:00:01"], format="ISO8601"),
            "usage": [{"input_tokens": 3, "output_tokens": 4}, {"input_tokens": 5, "output_tokens": 6}],
        }
    ).to_parquet(path)
    assert guessed(path) == "arrival=request_time:iso,prompt=usage.input_tokens,output=usage.output_tokens"
    assert_rows(read(path), [(0.0, 3, 4), (1 - 0.123456789, 5, 6)])


@pytest.mark.parametrize(("inside", "path"), [(True, "usage."), (False, "")])
def test_cached_tokens_that_are_counted_apart_are_told(tmp_path: Path, inside: bool, path: str) -> None:
    usage = {"input_tokens": 1, "cache_read_input_tokens": 900, "output_tokens": 2}
    found = survey(put(tmp_path, "a.jsonl", {"usage": usage} if inside else usage))
    assert f"the tokens of {path}cache_read_input_tokens beside {path}input_tokens" in apart(found, guess(found, {}))
    assert not apart(found, guess(found, {"prompt": ""}))


# ---- common names are read without a word ---------------------------------------------------------------------------


def test_common_names_need_no_mapping(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "a.csv", "timestamp,prompt_tokens,output_tokens", "1,10,5", "3,20,6"))
    assert (trace.kind, rows_of(trace)) == ("common", [(0.0, 10, 5), (2.0, 20, 6)])
    assert trace.notes[0] == "Read by its columns: arrival=timestamp:s, prompt=prompt_tokens, output=output_tokens."


def test_a_known_format_goes_before_common_names(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.68,374,44")
    assert traces.read(path).kind == "azure"


def test_a_doubtful_unit_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "timestamp,prompt_tokens,output_tokens", "0,10,5", "3000,20,6")
    with pytest.raises(InputError) as error:
        traces.read(path)
    assert "does not say for certain the unit of timestamp, which is such as 0" in str(error.value)
    assert f"sim trace import {path} --map arrival=timestamp:ms,prompt=prompt_tokens,output=output_tokens" in str(
        error.value
    )
    path = put(tmp_path, "b.csv", "timestamp_ms,prompt_tokens,output_tokens", "1700000000,10,5", "1700000003,20,6")
    with pytest.raises(InputError, match="unit of timestamp_ms"):
        traces.read(path)


def test_times_that_are_no_times_are_not_passed_over(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "timestamp,prompt_tokens,output_tokens", "11/16/2023 6:15:46 PM,374,44")
    with pytest.raises(
        InputError, match="has timestamp for its times, but they are such as 11/16/2023 6:15:46 PM; known"
    ):
        traces.read(path)


def test_one_of_several_objects_in_a_row_is_no_request(tmp_path: Path) -> None:
    """A result of a benchmark, whose one row holds all requests: nothing is guessed of its first one."""
    requests = [{"prompt_tokens": at, "output_tokens": 1} for at in (1, 2)]
    path = put(tmp_path, "result.json", {"tool": "x", "done": {"requests": requests}})
    found = survey(path)
    assert missing(guess(found, {})) == ["prompt", "output"]
    assert "done.requests.0.prompt_tokens" in found.names


# ---- sentences ------------------------------------------------------------------------------------------------------

LOG = ("ts,alpha,beta,text", "1,10,5,x", "2,20,6,y")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("arival=ts", "--map 'arival=ts': there is no field 'arival'; known are arrival, prompt, output, session, "),
        ("arrival", "--map 'arrival' is no field=column, such as arrival=timestamp"),
        ("arrival=ts,arrival=alpha", "--map gives arrival twice"),
        ("arrival=zeit", "a.csv has no column 'zeit' in its header; there are ts, alpha, beta, text"),
        ("arrival=ts:days", "there is no unit 'days' of arrival; known are s, ms, us, ns, iso"),
        ("prompt=alpha:ms", "there is no unit 'ms' of prompt; only arrival, end, duration, think have one"),
        ("arrival=ts:iso", "--map arrival=ts:iso: values are such as '1'"),
        (
            "arrival=text",
            "a.csv has text there, such as 'x'; arrival (when the request came) takes whole, number, date",
        ),
        ("prompt=alpha,output=alpha", "a column can tell one field only"),
    ],
)
def test_mappings_are_refused_truly(tmp_path: Path, given: str, sentence: str) -> None:
    path = put(tmp_path, "a.csv", *LOG)
    with pytest.raises(InputError) as error:
        guess(survey(path), assign.parse([given]))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("x,10,5", "log.csv line 203: ts is 'x'; it must be a number of seconds, 0 or more"),
        ("1,0,5", "log.csv line 203: alpha is 0; it must be a whole number of at least 1"),
        ("1,10,5.5", "log.csv line 203: beta is 5.5; it must be a whole number of at least 1"),
        ("1,10", "log.csv line 203: has 2 fields; the header has 3"),
    ],
)
def test_a_bad_row_is_named_and_skipped_on_demand(tmp_path: Path, row: str, sentence: str) -> None:
    """Behind the rows that were sampled."""
    path = put(tmp_path, "log.csv", "ts,alpha,beta", *("1,10,5" for _ in range(201)), row)
    given = "arrival=ts:s,prompt=alpha,output=beta"
    with pytest.raises(InputError) as error:
        read(path, given)
    assert str(error.value).endswith(sentence)
    assert (len(kept := read(path, given, skip_bad=True)), kept.dropped) == (201, 1)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"u": {"p": 1, "o": 2}}, "log.jsonl line 202: t is missing"),
        (
            {"t": "soon", "u": {"p": 1, "o": 2}},
            "log.jsonl line 202: t is 'soon'; it must be a number of seconds, 0 or more",
        ),
        ({"t": 1, "u": {"p": 1}}, "log.jsonl line 202: u.o is missing"),
        (
            {"t": 1, "u": {"p": True, "o": 1}},
            "log.jsonl line 202: u.p is True; it must be a whole number of at least 1",
        ),
        ("[1", "log.jsonl line 202: is cut off or not valid JSON"),
    ],
)
def test_a_bad_record_is_named_and_skipped_on_demand(
    tmp_path: Path, record: dict[str, Any] | str, sentence: str
) -> None:
    good = {"t": 1, "u": {"p": 10, "o": 5}}
    path = put(tmp_path, "log.jsonl", *(good for _ in range(201)), record)
    given = "arrival=t:s,prompt=u.p,output=u.o"
    with pytest.raises(InputError) as error:
        read(path, given)
    assert sentence in str(error.value)
    assert (len(kept := read(path, given, skip_bad=True)), kept.dropped) == (201, 1)


def test_an_unknown_file_is_told_its_columns_and_the_command(tmp_path: Path) -> None:
    path = put(
        tmp_path, "odd.jsonl", {"when": "2026-01-01 00:00:00", "usage": {"prompt_tokens": 3}, "reply": {"colour": 1}}
    )
    with pytest.raises(InputError) as error:
        traces.read(path)
    told = str(error.value)
    assert "its columns are when, usage.prompt_tokens, reply.colour" in told
    assert (
        f"`sim trace import {path} --map arrival=when:iso,prompt=usage.prompt_tokens,output=COLUMN -o OUT.csv`" in told
    )
    assert told.endswith("once you name output, a number of tokens or a text")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("ts;prompt_tokens;output_tokens", "1;10;5"), "its columns are set apart by ';', and only commas are known"),
        (
            ("ts\tprompt_tokens\toutput_tokens", "1\t10\t5"),
            "its columns are set apart by '\\t', and only commas are known",
        ),
        (
            ("0.5,10,5", "1.5,20,6"),
            "its first line holds numbers, not the names of columns: put a line of names before it",
        ),
    ],
)
def test_what_is_no_csv_of_ours_is_told_why(tmp_path: Path, lines: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        traces.read(put(tmp_path, "a.csv", *lines))
    assert str(error.value).endswith(sentence)


def test_the_command_of_a_refusal_reads_the_file(tmp_path: Path) -> None:
    path = put(tmp_path, "odd.jsonl", *({"when": 5 * at, "question": "abcd" * at, "answer": "abcd"} for at in (1, 2)))
    with pytest.raises(InputError) as error:
        traces.read(path)
    mapping = str(error.value).split(" --map ")[1].split(" -o ")[0]
    assert rows_of(read(path, mapping)) == [(0.0, 1, 1), (5.0, 2, 1)]
