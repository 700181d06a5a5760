"""Every mistake in a file is one sentence that names file and line; `skip_bad` drops such rows and counts them."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from trace_samples import SAMPLES, battle, jsonl, weka, weka_request

import traces
from traces import files
from traces.rows import from_frame, validate
from traces.schema import InputError, Trace

OWN = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_ROW = "2023-11-16 18:15:46.6805900,374,44\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def moon(**fields: object) -> str:
    return jsonl({"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]} | fields)


GOOD_MOON = moon(timestamp=0)


def said(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as error:
        traces.read(path, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    return message


ROWS = {
    "zero tokens": ("x.csv", OWN + "0,10,5\n1,0,5\n", r"line 3: prompt_tokens is 0; it must be a whole number"),
    "negative tokens": (
        "x.csv",
        OWN + "0,10,-5\n",
        r"line 2: output_tokens is -5; it must be a whole number of at least 1",
    ),
    "fraction": ("x.csv", OWN + "0,10.5,5\n", r"line 2: prompt_tokens is 10\.5; it must be a whole number"),
    "no number": ("x.csv", OWN + "0,ten,5\n", r"line 2: prompt_tokens is 'ten'; it must be a whole number"),
    "nothing": ("x.csv", OWN + "0,,5\n", r"line 2: prompt_tokens is 'empty'; it must be a whole number"),
    "nan": ("x.csv", OWN + "0,nan,5\n", r"line 2: prompt_tokens is nan; "),
    "inf": ("x.csv", OWN + "0,inf,5\n", r"line 2: prompt_tokens is inf; "),
    "nan time": (
        "x.csv",
        OWN + "0,1,1\nnan,10,5\n",
        r"line 3: arrival_s is nan; it must be a number of seconds, 0 or more",
    ),
    "inf time": ("x.csv", OWN + "inf,10,5\n", r"line 2: arrival_s is inf; "),
    "negative time": (
        "x.csv",
        OWN + "-1,10,5\n",
        r"line 2: arrival_s is -1; it must be a number of seconds, 0 or more",
    ),
    "unsorted": ("x.csv", OWN + "0,1,1\n5,1,1\n3,1,1\n", r"line 4: arrival_s goes back to 3 after 5; "),
    "many tokens": ("x.csv", OWN + "0,10000001,5\n", r"line 2: prompt_tokens is 10000001; more than 10,000,000"),
    "huge tokens": ("x.csv", OWN + f"0,{10**40},5\n", r"line 2: prompt_tokens is 1000+.*; more than 10,000,000"),
    "century": ("x.csv", OWN + "0,1,1\n4e9,1,1\n", r"line 3: arrival_s is 4000000000\.0; .* more than 100 years"),
    "epoch ms": ("x.csv", OWN + "1700000000000,1,1\n", r"line 2: .*; it looks like milliseconds since 1970"),
    "epoch ns": (
        "x.csv",
        VIDUR + "1700000000000000000,1,1\n",
        r"line 2: arrived_at .* looks like nanoseconds since 1970",
    ),
    "few fields": ("x.csv", OWN + "0,10,5\n1,10\n", r"line 3: has 2 fields; the header has 3"),
    "many fields": ("x.csv", OWN + "0,10,5,6\n", r"line 2: has 4 fields; the header has 3"),
    "open quote": ("x.csv", OWN + '0,"10,5\n', r"line 2: is not valid CSV"),
    "overlong id": (
        "x.csv",
        OWN[:-1] + ",session\n0,1,1," + "x" * 2000 + "\n",
        r"line 2: session is 'x+\.\.\.; it is 2,000 char",
    ),
    "bad ids": (
        "x.csv",
        OWN[:-1] + ",prefix_blocks,prefix_block_tokens\n0,1,1,0 x,16\n",
        r"line 2: prefix_blocks is '0 x'; it must be a list of whole numbers",
    ),
    "too many blocks": (
        "x.csv",
        OWN[:-1] + ",prefix_blocks,prefix_block_tokens\n0,16,1,0 1,16\n",
        r"line 2: prefix_blocks is 2 ids; it names more blocks than the prompt has",
    ),
    "two block sizes": (
        "x.csv",
        OWN[:-1] + ",prefix_blocks,prefix_block_tokens\n0,16,1,0,16\n0,32,1,0,32\n",
        r"line 3: prefix_block_tokens is 32; it must be the same in every row",
    ),
    "after itself": (
        "x.csv",
        OWN[:-1] + ",after\n0,1,1,0\n",
        r"line 2: after is 0; it must be -1 or the index of another",
    ),
    "after a later one": (
        "x.csv",
        OWN[:-1] + ",after\n0,1,1,1\n1,1,1,-1\n",
        r"line 2: after is 1; it must name a request that",
    ),
    "after nothing": (
        "x.csv",
        OWN[:-1] + ",after\n0,1,1,7\n",
        r"line 2: after is 7; it must be -1 or the index of another",
    ),
    "azure stamp": (
        "x.csv",
        AZURE + AZURE_ROW + "1700000000,1,1\n",
        r"line 3: TIMESTAMP is 1700000000; it must be a date",
    ),
    "azure date": (
        "x.csv",
        AZURE + "2023-13-16 18:15:46,1,1\n",
        r"line 2: TIMESTAMP is '2023-13-16 18:15:46'; there is no such",
    ),
    "azure zero": ("x.csv", AZURE + AZURE_ROW.replace(",44", ",0"), r"line 2: GeneratedTokens is 0; "),
    "azure unsorted": (
        "x.csv",
        AZURE + AZURE_ROW + "2023-11-16 18:15:45,1,1\n",
        r"line 3: TIMESTAMP goes back to 0 after 1\.68059",
    ),
    "burst negative": ("x.csv", BURST + "5,GPT-4,-1,3,2,API log\n", r"line 2: Request tokens is -1; .* at least 0"),
    "splitwise batch": (
        "x.csv",
        SAMPLES["splitwise"].text.replace("1.75,1", "1.75,4"),
        r"line 3: batch_size is 4; a row with batch_size above 1",
    ),
    "json cut off": ("x.jsonl", GOOD_MOON + moon()[:40], r"line 2: is cut off or not valid JSON"),
    "json no object": ("x.jsonl", GOOD_MOON + "[1]\n", r"line 2: is not a JSON object"),
    "json key twice": (
        "x.jsonl",
        GOOD_MOON + '{"timestamp": 1, "timestamp": 2}\n',
        r"line 2: has the key 'timestamp' twice",
    ),
    "json nested": ("x.jsonl", GOOD_MOON + "[" * 100_000 + "\n", r"line 2: is "),
    "json number": ("x.jsonl", GOOD_MOON + '{"timestamp": ' + "1" * 5000 + "}\n", r"line 2: is not valid JSON"),
    "moon negative": (
        "x.jsonl",
        GOOD_MOON * 16 + moon(output_length=-3),
        r"line 17: output_length is -3; it must be a whole",
    ),
    "moon text": (
        "x.jsonl",
        GOOD_MOON + moon(input_length="600"),
        r"line 2: input_length is '600'; it must be a whole number",
    ),
    "moon true": (
        "x.jsonl",
        GOOD_MOON + moon(input_length=True),
        r"line 2: input_length is True; it must be a whole number",
    ),
    "moon null": (
        "x.jsonl",
        GOOD_MOON + moon(input_length=None),
        r"line 2: input_length is None; it must be a whole number",
    ),
    "moon nan": ("x.jsonl", GOOD_MOON + moon(input_length=float("nan")), r"line 2: input_length is nan; "),
    "moon no output": (
        "x.jsonl",
        GOOD_MOON + '{"timestamp": 1, "input_length": 5}\n',
        r"line 2: output_length is missing",
    ),
    "moon unsorted": ("x.jsonl", moon() + moon(timestamp=2000), r"line 2: timestamp goes back to 2000 after 3000"),
    "moon no time": (
        "x.jsonl",
        jsonl({"input_length": 600, "output_length": 5, "hash_ids": [0, 1]}) + GOOD_MOON + moon(),
        r"line 1: timestamp is missing; 2 other rows have one, the first in line 2 \(--skip-bad",
    ),
    "moon no date": (
        "x.jsonl",
        moon(timestamp="2026-01-01 10:00:00") + moon(timestamp="soon"),
        r"line 2: timestamp is 'soon'; it must be a date and time such as .*, or a number of milliseconds",
    ),
    "moon huge time": (
        "x.jsonl",
        GOOD_MOON + moon(timestamp=10**400),
        r"line 2: timestamp is 1000.*more than 100 years",
    ),
    "moon negative time": ("x.jsonl", moon(timestamp=-1), r"line 1: timestamp is -1; "),
    "moon blocks": (
        "x.jsonl",
        GOOD_MOON + moon(hash_ids=list(range(38))),
        r"line 2: hash_ids names 38 blocks; a prompt of 600 tokens has 2 of 512 .*--trace-block-tokens N",
    ),
    "moon fraction id": (
        "x.jsonl",
        GOOD_MOON + moon(hash_ids=[0, 1.5]),
        r"line 2: hash_ids is \[0, 1\.5\]; it must be a list",
    ),
    "moon deep ids": (
        "x.jsonl",
        GOOD_MOON + moon(hash_ids=[[0], [1]]),
        r"line 2: hash_ids is \[\[0\], \[1\]\]; it must be",
    ),
    "moon huge id": ("x.jsonl", GOOD_MOON + moon(hash_ids=[0, 10**30]), r"line 2: hash_ids is .*; it must be a list"),
    "aiperf back": (
        "x.jsonl",
        jsonl(*({"session_id": "s", "timestamp": at, "input_length": 5, "output_length": 5} for at in (5, 3))),
        r"line 2: timestamp is earlier than that of the session's turn before",
    ),
    "aiperf mode": (
        "x.jsonl",
        jsonl(
            {"timestamp": 0, "messages": [{"role": "user", "content": "a"}], "output_length": 5, "message_mode": "x"}
        ),
        r"line 1: message_mode is 'x'; it must be history or delta",
    ),
    "bailian twice": ("x.jsonl", SAMPLES["bailian"].text.replace("159", "55"), r"line 2: chat_id 55 stands twice"),
    "bailian back": (
        "x.jsonl",
        SAMPLES["bailian"].text.replace("61.0", "0.5"),
        r"line 2: timestamp is 0\.5; that of its parent",
    ),
    "llmss fraction": (
        "x.jsonl",
        jsonl({"input_toks": 5, "output_toks": 5, "arrival_time_ns": 0.5}),
        r"line 1: arrival_time_ns is 0\.5; it must be a whole number of nanoseconds",
    ),
    "llmss ids": (
        "x.jsonl",
        jsonl({"input_toks": 5, "output_toks": 5, "arrival_time_ns": 5, "input_tok_ids": [1]}),
        r"line 1: input_tok_ids holds 1 ids for 5 tokens",
    ),
    "llmss empty session": (
        "x.jsonl",
        jsonl({"session_id": "s", "arrival_time_ns": 5, "sub_requests": []}),
        r"line 1: sub_requests is \[\]; it must be a list of objects",
    ),
    "rag number": (
        "x.jsonl",
        SAMPLES["ragpulse"].text.replace('"93"', "93"),
        r"line 2: timestamp is 93; it must be a text that holds whole seconds",
    ),
    "rag back": (
        "x.jsonl",
        SAMPLES["ragpulse"].text.replace('"93"', '"50"'),
        r"line 2: timestamp goes back to 50 after 82; .* new week",
    ),
    "arena role": (
        "x.jsonl",
        jsonl(battle(1.0, "a", "b") | {"conversation_b": [{"role": "robot", "content": "a"}]}),
        r"line 1: conversation_b: message 1 has role 'robot'; known are user",
    ),
    "arena no text": (
        "x.jsonl",
        jsonl(battle(1.0, "a", "b") | {"conversation_a": [{"role": "user", "content": 7}]}),
        r"line 1: conversation_a: content of message 1 is 7; it must be a text",
    ),
    "arena no list": (
        "x.jsonl",
        jsonl(battle(1.0, "a", "b") | {"conversation_a": "hi"}),
        r"line 1: conversation_a must be a list",
    ),
    "arena some times": (
        "x.jsonl",
        jsonl(battle(1.0, "a", "b"), battle(None, "a", "b")),
        r"line 2: tstamp is missing",
    ),
    "arena first without time": (
        "x.jsonl",
        jsonl(battle(None, "a", "b"), battle(1.0, "a", "b")),
        r"line 1: tstamp is missing; another row has one, the first in line 2",
    ),
    "own first without time": (
        "x.jsonl",
        jsonl({"prompt_tokens": 1, "output_tokens": 1}, {"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}),
        r"line 1: arrival_s is missing, and other rows have one",
    ),
    "own starts": (
        "x.csv",
        OWN[:-1] + ",prefix_blocks,prefix_block_tokens,prefix_starts\n0,16,1,0 1,16,0 16\n",
        r"line 2: prefix_starts is 2 ids; it must rise from 0, below the prompt's end, one for each block",
    ),
    "arena epoch ms": (
        "x.jsonl",
        jsonl(battle(1682351591132.2, "a", "b")),
        r"line 1: tstamp is .*looks like milliseconds since",
    ),
    "sharegpt": (
        "x.json",
        json.dumps([{"id": "a", "conversations": [{"from": "human"}]}]),
        r"record 1: conversations: value of message 1 is None; it must be a text",
    ),
    "weka blocks": (
        "x.json",
        weka(weka_request(0.0, 130, 5), weka_request(1.0, 130, 5, hash_ids=[1])),
        r"request 2: hash_ids names 1 blocks; a prompt of 130 tokens has 2 of 64",
    ),
    "weka type": (
        "x.json",
        weka(weka_request(0.0, 130, 5, type="x")),
        r"request 1: type is 'x'; known are n, s, subagent",
    ),
    "weka back": (
        "x.json",
        weka(weka_request(5.0, 130, 5), weka_request(1.0, 130, 5)),
        r"request 2: t is before that of the request that it follows",
    ),
    "own unknown key": (
        "x.jsonl",
        jsonl({"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "colour": 3}),
        r"line 1: has the unknown key 'colour'; known are arrival_s",
    ),
    "own missing key": (
        "x.jsonl",
        jsonl({"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}, {"prompt_tokens": 1, "output_tokens": 1}),
        r"line 2: arrival_s is missing",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_named(tmp_path: Path, case: str) -> None:
    name, text, pattern = ROWS[case]
    path = tmp_path / name
    path.write_text(text)
    assert re.search(re.escape(str(path)) + " " + pattern, said(path)), said(path)


def skipping(path: Path) -> Trace | str:
    """The trace, or what was said where nothing is left of it."""
    try:
        return traces.read(path, skip_bad=True)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("case", ROWS)
def test_skip_bad_drops_it_and_counts(tmp_path: Path, case: str) -> None:
    name, text, _ = ROWS[case]
    path = tmp_path / name
    path.write_text(text)
    trace = skipping(path)
    if isinstance(trace, str):
        assert trace == f"{path} holds no usable request (1 bad)"
        return
    assert trace.dropped == sum(trace.dropped_reasons.values()) == 1
    assert sum("Dropped 1: " in note for note in trace.notes) == 1
    assert trace.requests.index.equals(pd.RangeIndex(len(trace)))


HEADS = {
    "no file": ("gone.csv", None, r"gone\.csv does not exist, and no bundled trace has that name; bundled are chatbot"),
    "empty": ("x.csv", b"", r"is empty$"),
    "blank": ("x.csv", b" \n\n", r"is empty$"),
    "header only": ("x.csv", OWN.encode(), r"holds a header but no requests"),
    "header only, no line end": ("x.csv", OWN.encode()[:-1], r"holds a header but no requests"),
    "column twice": (
        "x.csv",
        b"arrival_s,prompt_tokens,prompt_tokens\n0,1,1\n",
        r"line 1: the column 'prompt_tokens' stands twice",
    ),
    "unknown column": (
        "x.csv",
        OWN.encode()[:-1] + b",colour\n0,1,1,2\n",
        r"line 1: unknown column 'colour'; known are arrival_s",
    ),
    "unknown format": (
        "x.csv",
        b"when,who\n1,2\n",
        r"in no known format by its column names: when, who; known are azure, bailian, .*--format",
    ),
    "unknown keys": (
        "x.jsonl",
        b'{"when": 1}\n',
        r"in no known format by its keys of the first record: when; known are azure",
    ),
    "no json": ("x.jsonl", b'{"when": \n', r"line 1: no JSON object can be read"),
    "array of numbers": ("x.json", b"[1, 2]", r"line 1: no JSON object can be read \(int instead of an object\)"),
    "empty array": ("x.json", b"[]", r"line 1: no JSON object can be read"),
    "utf-16": ("x.csv", OWN.encode("utf-16"), r"is UTF-16 text; save it as UTF-8"),
    "binary": ("x.csv", b"ab\0cd", r"is neither text \(CSV, JSON\) nor Parquet"),
    "header no utf-8": ("x.csv", b"arrival\xff_s,a\n1,2\n", r"line 1: the header cannot be read"),
    "cut gzip": (
        "x.csv.gz",
        gzip.compress(OWN.encode() + b"0,1,1\n" * 5000)[:-40],
        r"is cut off or damaged: its gzip data end",
    ),
    "damaged gzip": ("x.csv.gz", gzip.compress(b"x" * 10)[:12] + b"\xff" * 20, r"is cut off or damaged: its gzip data"),
    "cut xz": (
        "x.csv.xz",
        lzma.compress(OWN.encode() + b"0,1,1\n" * 5000)[:-40],
        r"is cut off or damaged: its xz data end",
    ),
    "cut parquet": ("x.parquet", b"PAR1" + b"abc", r"is cut off or not a valid Parquet file"),
    "cut array": ("x.json", json.dumps([battle(1.0, "a", "b")] * 2)[:-30].encode(), r"is cut off or not valid JSON"),
    "results": (
        "x.json",
        b'{"model_id": "m", "input_lens": [1], "ttfts": [0.1], "itls": [[0.1]]}',
        r"is no trace by its keys of the first record: model_id, input_lens, ttfts, itls: these are a benchmark's "
        r"results, with which `sim validate --against` compares",
    ),
    "tar": ("x.tar", b"\0" * 257 + b"ustar" + b"\0" * 300, r"is a tar archive; `sim trace synth servegen`"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_bad_file_is_named(tmp_path: Path, case: str) -> None:
    name, data, pattern = HEADS[case]
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    assert re.search(pattern, said(path)), said(path)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_bad_utf8_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = {
        "x.csv": [OWN[:-1].encode() + b",session\n", b"0,1,1,a\n", b"1,1,1,\xff\n", b"2,1,1,\xc3\xa9\n"],
        "x.jsonl": [
            b'{"prompt_tokens": 1, "output_tokens": 1, "session": "%s"}\n' % text for text in (b"a", b"\xff", b"b")
        ],
    }[name]
    path.write_bytes(b"".join(rows))
    line = 3 if name == "x.csv" else 2
    assert f"{path} line {line}: is not valid UTF-8" in said(path)
    assert traces.read(path, skip_bad=True).dropped == 1


def test_a_directory_without_sessions(tmp_path: Path) -> None:
    assert "is a folder without .json files" in said(tmp_path)


def test_a_folder_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([battle(1.0, "a", "b")]))
    assert "is a folder" in said(tmp_path)


def test_of_a_folder_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1, "b": 2}')
    assert "is in no known format by the first file in it, x.json, with its keys of the first record: a, b" in said(
        tmp_path
    )


def test_an_overlong_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD_MOON + '{"timestamp": "' + "x" * 2**21 + '"}\n' + moon())
    assert "line 2: is longer than 1 MiB" in said(path)
    trace = traces.read(path, skip_bad=True)
    assert trace.requests["source_row"].tolist() == [1, 3]


def test_a_packed_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(OWN.encode() + b"0,1,1\n" * 2**20))
    assert "is more than" in said(path)


def test_wrong_units_of_the_whole_file(tmp_path: Path) -> None:
    seconds = tmp_path / "x.jsonl"
    seconds.write_text(moon(timestamp=1700000000) + moon(timestamp=1700000001))
    assert "looks like seconds since 1970" in said(seconds)
    own = tmp_path / "x.csv"
    own.write_text(OWN + "1700000000,1,1\n")
    assert "looks like seconds since 1970" in said(own)
    milliseconds = tmp_path / "y.jsonl"  # the unit that the format has: only the zero is elsewhere
    milliseconds.write_text(moon(timestamp=1700000000000) + moon(timestamp=1700000001500))
    assert traces.read(milliseconds).requests["arrival_s"].tolist() == [0.0, 1.5]


def test_options_are_never_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(OWN + "0,1,1\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "needs no tokenizer" in said(path, tokenizer=tmp_path / "tokenizer.json")
    assert "has no sides" in said(path, side="a")
    for options, message in (
        ({"side": "c"}, "unknown side 'c'; known are both, a, b"),
        ({"limit": 0}, "limit is 0"),
        ({"format": "magic"}, "unknown trace format 'magic'; known are azure, .*package.module:function"),
        ({"format": "no.such:thing"}, "cannot be imported"),
        ({"format": "traces.reader:nothing"}, "cannot be imported: AttributeError.*no attribute 'nothing'"),
        ({"format": "builtins:str"}, "a module of Python itself"),
        ({"format": "traces.files:whole"}, "returned a bytes, not a DataFrame"),
    ):
        with pytest.raises(InputError, match=message):
            traces.read(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{}", "nonsense"])
def test_a_bad_tokenizer(tmp_path: Path, text: str) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl(battle(1.0, "a", "b")))
    given = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="does not exist; --tokenizer takes"):
        traces.read(path, tokenizer=given)
    given.write_text(text)
    with pytest.raises(InputError, match=r"not a usable tokenizer\.json"):
        traces.read(path, tokenizer=given)


def test_an_ambiguous_file_asks_for_the_format(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens,num_prefill_tokens,num_decode_tokens\n")
    assert "could be azure or vidur by its column names: TIMESTAMP" in said(path)


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ({"prompt_tokens": [1, 0]}, r"row 2: prompt_tokens is 0"),
        ({"prompt_tokens": [1.0, None]}, r"row 2: prompt_tokens is nan"),
        ({"prompt_tokens": ["a", "b"]}, r"prompt_tokens of type .*string; it must be a number"),
        ({"prefix_blocks": [["a"], ["b"]], "prefix_block_tokens": [1, 1]}, r"prefix_blocks of type list"),
        ({"prefix_blocks": [[1], [None]], "prefix_block_tokens": [1, 1]}, r"empty id in prefix_blocks"),
        ({"prefix_blocks": [[1], [1]]}, r"prefix_blocks but no prefix_block_tokens"),
        ({"colour": [1, 2]}, r"unknown column 'colour'"),
        ({"arrival_s": [1.0, 0.5]}, r"row 2: arrival_s goes back to 0\.5 after 1"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, list[object]], pattern: str) -> None:
    path = tmp_path / "x.parquet"
    table = {"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]} | columns
    parquet.write_table(pa.table(table), path)
    assert re.search(pattern, said(path)), said(path)


def test_skipped_rows_keep_the_links_of_others(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(OWN[:-1] + ",after\n0,1,1,-1\n\n1,zero,1,0\n2,3,1,0\n3,4,1,2\n4,5,1,1\n")
    table = traces.read(path, skip_bad=True).requests
    assert table["prompt_tokens"].tolist() == [1, 3, 4, 5]
    assert table["after"].tolist() == [-1, 0, 1, -1]  # what the last followed is gone, and unreadable
    assert table["source_row"].tolist() == [2, 5, 6, 7]


def test_validate_links_past_dropped_rows() -> None:
    table = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0, 3.0],
            "prompt_tokens": [1, 0, -1, 4],
            "output_tokens": 1,
            "after": [-1, 0, 1, 2],
        }
    )
    clean, reasons = validate(table, "table", skip_bad=True)
    assert clean["after"].tolist() == [-1, 0]
    assert sum(reasons.values()) == 2
    with pytest.raises(InputError, match="table line 2: prompt_tokens is 0"):
        validate(table, "table")


def test_from_frame_sorts_and_checks() -> None:
    table = pd.DataFrame({"arrival_s": [2.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [1, 2], "after": [1, -1]})
    trace = from_frame(table)
    assert trace.requests["after"].tolist() == [-1, 0]
    assert trace.requests["source_row"].tolist() == [2, 1]
    for broken, message in (
        (table.drop(columns="arrival_s"), "lacks arrival_s"),
        (table.assign(colour=1), "unknown columns colour"),
        (table.assign(prompt_tokens=[True, True]), "prompt_tokens is True"),
        (table.assign(prompt_tokens=[1.5, 2.0]), r"prompt_tokens is 1\.5"),
        (table.assign(arrival_s=0.0), "after is 1; it must name a request that comes before this one"),
        (table.assign(prompt_tokens=["1", "2"]), "prompt_tokens is '1'"),
        (table.assign(token_ids=[np.array([1]), np.array([1])]), "token_ids is 1 ids; it must hold prompt_tokens ids"),
        (table.iloc[:0], "holds no usable request"),
    ):
        with pytest.raises(InputError, match=message):
            from_frame(broken)
