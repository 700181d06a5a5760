"""Every format is read for what it is: samples, detection, packing, sessions, prefixes, plug-ins."""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from trace_samples import KINDS, RAG_PARTS, SAMPLES, Sample, battle, chat, jsonl, weka, weka_request

import traces
from traces import formats
from traces.head import head_of
from traces.schema import DTYPES, InputError, Trace


@pytest.fixture(params=SAMPLES)
def named(request: pytest.FixtureRequest) -> tuple[str, Sample]:
    return request.param, SAMPLES[request.param]


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def triples(trace: Trace) -> list[tuple[float, int, int]]:
    table = trace.requests
    rows = zip(table["arrival_s"], table["prompt_tokens"], table["output_tokens"], strict=True)
    return [(float(arrival), int(prompt), int(output)) for arrival, prompt, output in rows]


def assert_triples(trace: Trace, expected: list[tuple[float, int, int]]) -> None:
    assert [row[1:] for row in triples(trace)] == [row[1:] for row in expected]
    assert [row[0] for row in triples(trace)] == pytest.approx([row[0] for row in expected], abs=1e-6)


def test_samples_are_read_exactly(tmp_path: Path, named: tuple[str, Sample]) -> None:
    name, sample = named
    trace = traces.read(put(tmp_path, sample.file, sample.text), format=sample.format)
    assert trace.kind == KINDS.get(name, name)
    assert trace.has_arrivals is sample.timed
    assert_triples(trace, sample.requests)
    assert trace.requests.index.equals(pd.RangeIndex(len(sample.requests)))
    assert trace.requests.dtypes.astype(str).to_dict() == {column: DTYPES[column] for column in trace.requests}


def test_every_format_has_a_sample() -> None:
    assert {KINDS.get(name, name) for name in SAMPLES} == set(formats.names())


def test_detection_never_confuses_two_formats(tmp_path: Path, named: tuple[str, Sample]) -> None:
    name, sample = named
    found = [one.name for one in formats.detect(head_of(put(tmp_path, sample.file, sample.text)))]
    expected = "mooncake" if sample.format else KINDS.get(name, name)  # vLLM's keys are Mooncake's
    assert found == [expected]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_packed_files_are_read_whatever_their_name(
    tmp_path: Path, named: tuple[str, Sample], pack: type[gzip.GzipFile]
) -> None:
    _, sample = named
    path = tmp_path / sample.file
    path.write_bytes(pack(sample.text.encode()))  # type: ignore[arg-type]
    assert_triples(traces.read(path, format=sample.format), sample.requests)


def test_byte_order_mark_and_blank_lines_are_no_fault(tmp_path: Path, named: tuple[str, Sample]) -> None:
    _, sample = named
    text = (
        "\ufeff" + sample.text.replace("\n", "\n\n") + "\n\n" if sample.file.endswith("l") else "\ufeff" + sample.text
    )
    assert_triples(traces.read(put(tmp_path, sample.file, text), format=sample.format), sample.requests)


def test_limit_keeps_the_first_by_arrival(tmp_path: Path, named: tuple[str, Sample]) -> None:
    _, sample = named
    trace = traces.read(put(tmp_path, sample.file, sample.text), format=sample.format, limit=1)
    assert_triples(trace, sample.requests[:1])


def test_a_name_may_have_hyphens(tmp_path: Path) -> None:
    sample = SAMPLES["vllm-timed"]
    assert traces.read(put(tmp_path, "t.jsonl", sample.text), format="vllm-timed").kind == "vllm_timed"


def test_arena_turns_follow_their_own_side(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", jsonl(battle(1682351591.0, "a" * 40, "b" * 20, "c" * 8, "d" * 4)))
    trace = traces.read(path)
    table = trace.requests
    assert table["turn"].tolist() == [0, 0, 1, 1]
    assert table["after"].tolist() == [-1, -1, 0, 1]
    assert table["think_s"].tolist() == [0, 0, 60, 60]
    assert table["model"].tolist() == ["chatglm-6b", "koala-13b"] * 2
    assert table["session"].nunique() == 2
    assert any("Arrivals are derived" in note for note in trace.notes)
    one_side = traces.read(path, side="b").requests
    assert one_side["model"].unique().tolist() == ["koala-13b"]
    assert one_side["after"].tolist() == [-1, 0]


def test_arena_array_num_tokens_and_none(tmp_path: Path) -> None:
    counted = battle(1.0, "hello", "hi") | {"conversation_a": chat("hello", "hi", num_tokens=77)}
    records = [counted, battle(2.0, "hello", "hi") | {"conversation_a": None}]
    trace = traces.read(put(tmp_path, "a.json", json.dumps(records, indent=2)))
    assert triples(trace) == [(0.0, 77, 77), (0.0, 2, 1)]
    assert trace.dropped == 1
    assert "None" in next(iter(trace.dropped_reasons))


def test_arena_without_tstamp_needs_arrivals(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "a.jsonl", jsonl(battle(None, "hello", "hi"))))
    assert not trace.has_arrivals
    with pytest.raises(InputError, match=r"a\.jsonl has no arrival times .*--rate"):
        trace.require_arrivals()


def test_arena_content_in_parts(tmp_path: Path) -> None:
    record = battle(1.0, "x", "y") | {"conversation_a": chat("x", "y")}
    record["conversation_a"][0]["content"] = [{"type": "text", "text": "a" * 40}, {"type": "image", "image": "?"}]
    assert triples(traces.read(put(tmp_path, "a.jsonl", jsonl(record)), side="a")) == [(0.0, 10, 1)]


def test_synthetic_rows_mark_the_trace(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "a.jsonl", jsonl(battle(1.0, "x", "y", synthetic=True))))
    assert trace.synthetic
    assert trace.notes[0].startswith("Synthetic")


def test_burstgpt_sessions_think_from_the_answers_end(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "b.csv", SAMPLES["burstgpt-v2"].text))
    table = trace.requests
    assert table["session"].tolist() == ["s1", "", "s1"]
    assert table["after"].tolist() == [-1, -1, 0]
    assert table["think_s"].tolist() == [0.0, 0.0, 17.5]
    assert table["turn"].tolist() == [0, 0, 1]


def test_burstgpt_failures_are_dropped_by_rule(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, "b.csv", SAMPLES["burstgpt-v1"].text))
    assert trace.dropped == 1
    assert trace.requests["source_row"].tolist() == [2, 4]
    assert any("failed requests" in note for note in trace.notes)


def test_burstgpt_requests_of_nothing_are_failures_too(tmp_path: Path) -> None:
    text = SAMPLES["burstgpt-v1"].text.replace("118,GPT-4,417", "118,GPT-4,0")
    assert traces.read(put(tmp_path, "b.csv", text)).dropped == 2


def test_a_line_end_inside_quotes_moves_the_lines(tmp_path: Path) -> None:
    text = 'arrival_s,prompt_tokens,output_tokens,session\n0,1,1,"a\nb"\n1,1,1,c\n'
    table = traces.read(put(tmp_path, "x.csv", text)).requests
    assert table["session"].tolist() == ["a\nb", "c"]
    assert table["source_row"].tolist() == [2, 4]


def test_mooncake_blocks(tmp_path: Path) -> None:
    table = traces.read(put(tmp_path, "m.jsonl", SAMPLES["mooncake"].text)).requests
    assert [ids.tolist() for ids in table["prefix_blocks"]] == [[0, 1], [0]]
    assert table["prefix_block_tokens"].tolist() == [512, 512]


def test_aiperf_delay_is_think_time(tmp_path: Path) -> None:
    table = traces.read(put(tmp_path, "m.jsonl", SAMPLES["aiperf"].text)).requests
    assert table["after"].tolist() == [-1, -1, 0]
    assert table["think_s"].tolist() == [0.0, 0.0, 0.5]


def test_aiperf_delta_messages_add_to_the_conversation(tmp_path: Path) -> None:
    rows = [
        {"session_id": "x", "timestamp": 0, "messages": chat("a" * 40), "output_length": 5, "message_mode": "delta"},
        {"session_id": "x", "delay": 10, "messages": chat("b" * 8), "output_length": 6, "message_mode": "delta"},
    ]
    assert triples(traces.read(put(tmp_path, "m.jsonl", jsonl(*rows)))) == [(0.0, 10, 5), (0.01, 17, 6)]


def test_aiperf_without_times(tmp_path: Path) -> None:
    rows = [{"input_length": 10, "output_length": 5}, {"input_length": 20, "output_length": 6}]
    assert not traces.read(put(tmp_path, "m.jsonl", jsonl(*rows))).has_arrivals


def test_bailian_follows_parents(tmp_path: Path) -> None:
    text = SAMPLES["bailian"].text
    orphan = {"chat_id": 7, "parent_chat_id": 3, "timestamp": 70.0, "input_length": 5, "output_length": 1}
    trace = traces.read(put(tmp_path, "b.jsonl", text + jsonl(orphan)))
    table = trace.requests
    assert table["after"].tolist() == [-1, 0, -1]
    assert table["session"].tolist() == ["55", "55", "7"]
    assert table["think_s"].tolist() == [0.0, 60.0, 0.0]
    assert any("1 requests name a parent" in note for note in trace.notes)


def test_llmservingsim_sessions_and_token_ids(tmp_path: Path) -> None:
    table = traces.read(put(tmp_path, "l.jsonl", SAMPLES["llmservingsim"].text)).requests
    assert [ids.tolist() for ids in table["token_ids"]] == [[1, 2, 3], [], [], []]
    assert table["after"].tolist() == [-1, -1, -1, 1]
    assert table["think_s"].tolist() == [0.0, 0.0, 0.0, 0.25]


def test_weka_subagents_nest(tmp_path: Path) -> None:
    table = traces.read(put(tmp_path, "w.json", SAMPLES["weka"].text)).requests
    assert table["session"].tolist() == ["trace_1", "trace_1/a1", "trace_1"]
    assert table["after"].tolist() == [-1, 0, 0]
    assert table["think_s"].tolist() == [0.0, 9.0, 18.0]  # 11 s after the parent's start, which was served for 2 s


def test_weka_folder_keeps_files_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path, f"{name}.json", weka(weka_request(0.0, 130, 5), name=name))
    trace = traces.read(tmp_path)
    ids = [set(row.tolist()) for row in trace.requests["prefix_blocks"]]
    assert len(trace) == 2
    assert not ids[0] & ids[1]


def test_weka_folder_of_one_id_keeps_sessions_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path, f"{name}.json", weka(weka_request(0.0, 130, 5), name="same"))
    assert traces.read(tmp_path).requests["session"].nunique() == 2


def test_weka_folder_with_two_block_sizes(tmp_path: Path) -> None:
    put(tmp_path, "one.json", weka(weka_request(0.0, 60, 5)))
    put(tmp_path, "two.json", weka(weka_request(0.0, 30, 5, hash_ids=[1]), name="two", block=16))
    with pytest.raises(InputError, match=r"mixes block sizes: 64 in one\.json, 16 in two\.json"):
        traces.read(tmp_path)


def rag_sidecars(folder: Path, tokens: int) -> None:
    names = {"1_sys_prompt": "sys_prompt", "2_passages": "passage", "3_history": "history"}
    names |= {"4_user_input": "user_input", "5_web_search": "web_search"}
    for file, kind in names.items():
        put(folder, f"{file}.jsonl", jsonl(*({f"{kind}_id": part, "token_length": tokens} for part in range(1, 7))))


def test_ragpulse_parts_become_blocks(tmp_path: Path) -> None:
    rag_sidecars(tmp_path, 24)
    second = RAG_PARTS | {"passages_ids": [2, 5]}
    row = {"timestamp": "1", "input_length": 100, "output_length": 5, "session_id": "u"}
    text = jsonl(row | {"hash_ids": RAG_PARTS}, row | {"hash_ids": second}, row | {"hash_ids": RAG_PARTS})
    table = traces.read(put(tmp_path, "trace.jsonl", text)).requests
    first, other, again = (ids.tolist() for ids in table["prefix_blocks"])
    assert len(first) == 4 * 24 // 16
    assert first[:3] == other[:3]  # 48 shared tokens
    assert not set(first[3:]) & set(other[3:])
    assert again == first
    assert table["after"].tolist() == [-1, 0, 1]


def test_ragpulse_weeks_are_appended(tmp_path: Path) -> None:
    row = {"input_length": 100, "output_length": 5, "session_id": "u", "hash_ids": RAG_PARTS}
    text = jsonl(*({"timestamp": str(stamp)} | row for stamp in (80, 604_000, 100)))
    trace = traces.read(put(tmp_path, "trace.jsonl", text))
    assert trace.requests["arrival_s"].tolist() == [0.0, 603_920.0, 604_820.0]
    assert any("2 weeks joined" in note for note in trace.notes)


def test_own_columns_survive(tmp_path: Path) -> None:
    table = traces.read(put(tmp_path, "o.csv", SAMPLES["own-csv"].text)).requests
    assert table["session"].tolist() == ["s", "s"]
    assert table["after"].tolist() == [-1, 0]
    assert [ids.tolist() for ids in table["prefix_blocks"]] == [[0, 1], [0, 1, 2, 3]]


def test_a_tokenizer_counts_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    path = put(tmp_path, "a.jsonl", jsonl(battle(1.0, "one two three", "four five")))
    for given in (tmp_path / "tokenizer.json", tmp_path):
        trace = traces.read(path, tokenizer=given, side="a")
        assert triples(trace) == [(0.0, 3, 2)]
        assert any("tokenizer.json" in note for note in trace.notes)


def test_bundled_by_name_and_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("chatbot_arena.jsonl", "chatbot_arena.jsonl.gz", "chatbot_arena"):
        trace = traces.read(name, limit=3)
        assert trace.synthetic
        assert trace.name == "chatbot_arena.jsonl"
    put(tmp_path, "chatbot_arena.jsonl", SAMPLES["arena"].text)
    assert not traces.read("chatbot_arena.jsonl").synthetic


def test_a_function_is_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        tmp_path,
        "logs.py",
        "import pandas as pd\ndef mine(path):\n    return pd.read_csv(path, names=" + repr(NAMES) + ")\n",
    )
    path = put(tmp_path, "log.txt", "0.5,10,5\n1.5,20,6\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "logs", raising=False)
    assert triples(traces.read(path, format="logs:mine")) == [(0.5, 10, 5), (1.5, 20, 6)]


def test_a_plug_in_table_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("careless")
    module.mine = lambda source: pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 0], "output_tokens": 1})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "careless", module)
    with pytest.raises(InputError, match=r"x\.csv row 2: prompt_tokens is 0"):
        traces.read(put(tmp_path, "x.csv", "a\n"), format="careless:mine")


NAMES = ["arrival_s", "prompt_tokens", "output_tokens"]


def test_an_installed_format_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("installed_format")
    module.added = lambda source: pd.DataFrame(
        {"arrival_s": [0.0], "prompt_tokens": [np.int64(3)], "output_tokens": [4]}
    )  # type: ignore[attr-defined]
    module.detect = lambda head: head.has("when")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "installed_format", module)
    point = SimpleNamespace(name="added", value="installed_format:added")
    monkeypatch.setattr(formats, "entry_points", lambda group: [point] if group == "foretoken.formats" else [])
    assert traces.read(put(tmp_path, "x.csv", "when,who\n1,2\n")).kind == "added"
    assert "added" in formats.names()
    assert traces.read(put(tmp_path, "x.csv", "when,who\n1,2\n"), format="added").kind == "added"
