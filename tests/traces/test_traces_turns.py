"""Files of one format that differ: what a turn's length says, in what unit times are, how long blocks are and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import chat, jsonl

import traces
from sim.cli.main import cli
from traces import edit, write
from traces.blocks import Reblocked
from traces.names import LARGEST, settled
from traces.reuse import reuse
from traces.rows import from_frame
from traces.schema import InputError
from traces.turns import whole_prompts


def put(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "t.jsonl"
    path.write_text(jsonl(*rows))
    return path


def said(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        traces.read(path, **options)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).strip()


def turn(length: int, output: int, ids: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    row = {"session_id": "s", "input_length": length, "output_length": output} | more
    row |= {} if "timestamp" in more else {"delay": 1000}
    return row if ids is None else row | {"hash_ids": ids}


# ---- what a turn's length is ----------------------------------------------------------------------------------------

FIRST = turn(1300, 100, [0, 1, 2], timestamp=0)
NEW = (FIRST, turn(600, 50, [7, 8]), turn(40, 10, [9]))
WHOLE = (FIRST, turn(2000, 50, [0, 1, 3, 4]), turn(2100, 10, [0, 1, 3, 5, 6]))
UNSAID = (turn(100, 20, timestamp=0), turn(200, 20))


def test_ids_that_begin_anew_are_of_new_text(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, *NEW))
    assert trace.turns == "new"
    assert trace.requests["prompt_tokens"].tolist() == [1300, 2000, 2090]
    assert any("its hash_ids begin anew" in note for note in trace.notes)
    found = reuse(trace.requests)
    assert found is not None
    assert (found.reused_tokens, found.tokens, found.block_tokens) == (1400 + 2050, 1300 + 2000 + 2090, None)
    assert found.kv_reused_tokens == 1399 // 16 * 16 + 2049 // 16 * 16


def test_ids_that_repeat_those_before_are_of_whole_prompts(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, *WHOLE))
    assert trace.turns == "whole"
    assert trace.requests["prompt_tokens"].tolist() == [1300, 2000, 2100]
    assert any("its hash_ids repeat" in note for note in trace.notes)


def test_the_user_wins_over_what_the_ids_show(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, *NEW), turns="whole")
    assert trace.turns == "whole"
    assert trace.requests["prompt_tokens"].tolist() == [1300, 600, 40]
    assert any(note.startswith("As asked for") for note in trace.notes)


OPEN = {
    "no ids": UNSAID,
    "both kinds": (*NEW, turn(2200, 10, [0, 1, 3, 5, 10]), turn(3000, 10, [0, 1, 3, 5, 11, 12])),
    "no full block to repeat": (turn(100, 5, [0], timestamp=0), turn(300, 5, [1])),
    "a history that was cut": (FIRST, turn(1100, 5, [0, 5, 6])),
    "ids of one turn alone": (FIRST, turn(100, 5)),
}


@pytest.mark.parametrize("rows", OPEN.values(), ids=OPEN.keys())
def test_what_is_not_certain_is_asked_for(tmp_path: Path, rows: tuple[dict[str, Any], ...]) -> None:
    path = put(tmp_path, *rows)
    assert said(path) == (
        "does not show for certain whether the input_length of a session's later turn is the whole prompt or its new "
        "text alone; say so with --turns whole or --turns new"
    )
    for turns in ("whole", "new"):
        assert traces.read(path, turns=turns).turns == turns


def test_new_text_without_ids_repeats_the_session(tmp_path: Path) -> None:
    trace = traces.read(put(tmp_path, *UNSAID), turns="new")
    found = reuse(trace.requests)
    assert found is not None
    assert (found.reused_tokens, found.tokens) == (120, 100 + 320)


def test_messages_say_themselves_what_they_are(tmp_path: Path) -> None:
    rows = [
        {"session_id": "x", "timestamp": 0, "messages": chat("a" * 40), "output_length": 5, "message_mode": "delta"},
        {"session_id": "x", "delay": 10, "messages": chat("b" * 8), "output_length": 6, "message_mode": "delta"},
        {"session_id": "x", "delay": 10, "messages": chat("c" * 80), "output_length": 6, "message_mode": "history"},
    ]
    trace = traces.read(put(tmp_path, *rows))
    assert trace.requests["prompt_tokens"].tolist() == [10, 17, 20]
    found = reuse(trace.requests)
    assert found is not None
    assert found.reused_tokens == 15
    assert "leave --turns out" in said(put(tmp_path, *rows), turns="new")


def test_an_option_without_use_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, {"timestamp": 0, "input_length": 5, "output_length": 5})
    assert said(path, turns="new") == (
        "has no turns whose length could be another than it is (mooncake); leave --turns out"
    )
    own = tmp_path / "o.csv"
    own.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    assert said(own, time_unit="s").endswith("leave --time-unit out")
    assert said(own, block_tokens=16).endswith("leave --trace-block-tokens out")
    assert said(own, turns="new").endswith("leave --turns out")


OWN = "arrival_s,prompt_tokens,output_tokens,after,think_s\n0,100,20,-1,0\n5,10,20,0,5\n6,10,7,0,1\n7,3,1,1,1\n"


def test_own_files_may_tell_new_text_too(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text(OWN)
    assert traces.read(path).turns == "whole"
    trace = traces.read(path, turns="new")
    assert trace.requests["prompt_tokens"].tolist() == [100, 130, 130, 153]
    found = reuse(trace.requests)
    assert found is not None
    assert found.reused_tokens == 120 + 120 + 150
    for name in ("back.csv", "back.jsonl", "back.parquet"):
        back = traces.read(write.write(trace, tmp_path / name))
        assert reuse(back.requests) == found
        assert "prefix_starts, which are of whole prompts" in said(tmp_path / name, turns="new")


def test_merged_traces_keep_what_each_repeats(tmp_path: Path) -> None:
    new = traces.read(put(tmp_path, *NEW))
    table = pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [140, 150], "output_tokens": 1})
    table["prefix_blocks"] = pd.Series([np.array([0]), np.array([0])], dtype=object)
    alike = from_frame(table.assign(prefix_block_tokens=512))  # 140 tokens of a block, and what is left out at its end
    full = from_frame(table.assign(prefix_block_tokens=64))
    apart = [reuse(one.requests) for one in (new, alike)]
    both = reuse(edit.merge([new, alike]).requests)
    assert both is not None
    assert apart[0] is not None
    assert apart[1] is not None
    assert both.reused_tokens == apart[0].reused_tokens + apart[1].reused_tokens
    with pytest.raises(InputError, match="prefix blocks of 64 and 512 tokens cannot be merged"):
        edit.merge([new, full])
    small = traces.read(put(tmp_path, turn(64, 5, [0], timestamp=0), turn(10, 5, [1])), block_tokens=64)
    found = reuse(edit.merge([full, small]).requests)
    assert found is not None
    assert found.reused_tokens == 64 + 69


@given(turns=st.integers(2, 400))
def test_a_long_session_takes_no_more_room_than_a_short_one(turns: int) -> None:
    place = np.arange(turns)
    table = pd.DataFrame({"arrival_s": place * 1.0, "prompt_tokens": 3, "output_tokens": 2, "after": place - 1})
    told = whole_prompts(table, place > 0)
    assert told["prompt_tokens"].tolist() == (3 + 5 * place).tolist()
    assert {len(ids) for ids in told["prefix_blocks"]} == {1}


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    cut=st.integers(0, 40),
    size=st.sampled_from([1, 4, 16]),
)
def test_equal_blocks_of_unequal_ones_are_named_by_their_last_token(lengths: list[int], cut: int, size: int) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    ids, tokens = np.arange(10, 10 + len(lengths)), sum(lengths)
    found = Reblocked(ids, starts, tokens, size)
    each = [name for name, length in zip(ids.tolist(), lengths, strict=True) for _ in range(length)]
    names = [(each[end - 1] << 24) + place for place, end in enumerate(range(size, tokens + 1, size))]
    assert list(found) == names
    assert list(found[:cut]) == names[:cut]
    assert list(found[1:cut]) == names[1:cut]
    assert [found[place] for place in range(-len(names), len(names))] == names * 2
    assert found[:cut] == Reblocked(ids, starts, min(cut * size, tokens), size)
    assert len(names) == 0 or found != Reblocked(ids + 1, starts, tokens, size)


# ---- times ----------------------------------------------------------------------------------------------------------


def at(*stamps: Any) -> list[dict[str, Any]]:
    return [{"timestamp": stamp, "input_length": 5, "output_length": 5} for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "unit", "arrivals"),
    [
        ((0, 105.25), "auto", [0.0, 0.10525]),
        ((0, 3), "auto", [0.0, 0.003]),
        ((0.0, 1.5, 2.25), "s", [0.0, 1.5, 2.25]),
        ((1718000000.5, 1718000002), "s", [0.0, 1.5]),
        ((1718000000123, 1718000001123), "auto", [0.0, 1.0]),
        ((1718000000000000, 1718000000250000), "us", [0.0, 0.25]),
        ((1718000000 * 10**9, 1718000002 * 10**9), "ns", [0.0, 2.0]),
        (("2026-01-01T10:00:00Z", "2026-01-01T11:00:01.5+01:00"), "auto", [0.0, 1.5]),
    ],
)
def test_times_in_each_unit(tmp_path: Path, stamps: tuple[Any, ...], unit: str, arrivals: list[float]) -> None:
    trace = traces.read(put(tmp_path, *at(*stamps)), time_unit=unit)
    assert trace.requests["arrival_s"].tolist() == pytest.approx(arrivals, abs=1e-6)


@pytest.mark.parametrize(
    ("stamps", "asks"),
    [
        (
            (0.0, 1.5, 2.25),
            "has 3 requests within 2.25 ms if its timestamps count milliseconds, and they have fractions: say what "
            "they count with --time-unit s or --time-unit ms",
        ),
        (
            (1718000000, 1718000002),
            "has no timestamp below 1718000000; the format counts milliseconds from the start; it looks like seconds "
            "since 1970: give --time-unit s",
        ),
        (
            (1718000000000000,),
            "line 1: timestamp is 1718000000000000; as milliseconds that is more than 100 years; it looks like "
            "microseconds since 1970: give --time-unit us",
        ),
    ],
)
def test_a_unit_that_is_not_certain_is_asked_for(tmp_path: Path, stamps: tuple[Any, ...], asks: str) -> None:
    assert said(put(tmp_path, *at(*stamps))) == asks


def test_rows_without_a_time_are_told_or_left_out(tmp_path: Path) -> None:
    bare = {"input_length": 5, "output_length": 5}
    path = put(tmp_path, bare, *at(100, 400), bare)
    assert "line 1: timestamp is missing; 2 other rows have one, the first in line 2" in said(path)
    trace = traces.read(path, skip_bad=True)
    assert (trace.has_arrivals, trace.dropped) == (True, 2)
    assert trace.requests["arrival_s"].tolist() == [0.0, pytest.approx(0.3)]


# ---- blocks ---------------------------------------------------------------------------------------------------------


def blocks_of(size: int, lengths: list[int]) -> list[dict[str, Any]]:
    ids = iter(range(10**6))
    return [
        row | {"input_length": length, "hash_ids": [next(ids) for _ in range(0, length, size)]}
        for row, length in zip(at(*range(len(lengths))), lengths, strict=True)
    ]


@pytest.mark.parametrize("size", [16, 64, 100, 512, 1024])
def test_the_only_size_of_blocks_that_fits_is_taken(tmp_path: Path, size: int) -> None:
    trace = traces.read(put(tmp_path, *blocks_of(size, [size * 9, size * 9 + 1, size])))
    assert trace.requests["prefix_block_tokens"].tolist() == [size] * 3
    assert any("no other size fits" in note for note in trace.notes) == (size != 512)


def test_of_several_sizes_that_fit_one_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, *blocks_of(64, [100, 150]))
    assert said(path) == (
        "has hash_ids of blocks of 50 to 74 tokens by their numbers, and not of 512; say which with "
        "--trace-block-tokens N"
    )
    assert traces.read(path, block_tokens=64).requests["prefix_block_tokens"].tolist() == [64, 64]
    assert "line 1: hash_ids names 2 blocks; a prompt of 100 tokens has 4 of 32 tokens" in said(path, block_tokens=32)


@pytest.mark.parametrize("names", [[2**64 - 1, 2**63 + 1, 7], [0, 2**63, 2**62], ["a3", "b", "c"]])
def test_ids_may_be_any_64_bits_or_texts(tmp_path: Path, names: list[Any]) -> None:
    first, second, third = names
    row = {"timestamp": 0, "input_length": 600, "output_length": 5}
    rows = (row | {"hash_ids": [first, second]}, row | {"hash_ids": [first, third]})
    requests = traces.read(put(tmp_path, *rows)).requests
    ids = [one.tolist() for one in requests["prefix_blocks"]]
    assert ids[0][0] == ids[1][0]
    assert len({*ids[0], *ids[1]}) == 3
    assert all(0 <= name <= LARGEST for one in ids for name in one)
    found = reuse(requests)
    assert found is not None
    assert (found.reused_blocks, found.reused_tokens) == (1, 512)


@pytest.mark.parametrize("ids", [[-1, 0], [2**64, 0], [True, "a"], ["", "a"], [None, 1], "ab"])
def test_other_ids_are_refused(tmp_path: Path, ids: Any) -> None:
    path = put(tmp_path, {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": ids})
    assert said(path).endswith("it must be a list of whole numbers from 0 to 2^64 - 1, or of texts")


def test_only_what_stands_behind_the_same_is_the_same(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 1536, "output_length": 5}
    path = put(tmp_path, *(row | {"hash_ids": ids} for ids in ([0, 1, 2], [1, 2, 7], [9, 1, 2])))
    trace = traces.read(path)
    found = reuse(trace.requests)
    assert found is not None
    assert (found.reused_blocks, found.reused_tokens) == (0, 0)
    assert any("Ids of blocks that stand behind different ones: 1" in note for note in trace.notes)


@given(rows=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=5), max_size=6))
def test_settled_names_are_equal_where_all_up_to_them_is(rows: list[list[int]]) -> None:
    found, _ = settled([np.array(row, np.int64) for row in rows])
    named = [
        (tuple(row[: place + 1]), name)
        for row, names in zip(rows, found, strict=True)
        for place, name in enumerate(names.tolist())
    ]
    assert all(0 <= name <= LARGEST for _, name in named)
    assert all((one == two) == (a == b) for one, a in named for two, b in named)


# ---- the command line, and the cases that people met ----------------------------------------------------------------


def test_info_and_run_take_the_same_options_and_name_the_turns(tmp_path: Path) -> None:
    path = put(tmp_path, *UNSAID)
    info = CliRunner().invoke(cli, ["trace", "info", str(path), "--turns", "new", "--json"])
    facts = json.loads(info.output)
    assert (facts["turns"], facts["prefix"]["reused_tokens"], facts["prefix"]["kv_reused_tokens"]) == ("new", 120, 112)
    ran = CliRunner().invoke(cli, ["run", "--trace", str(path), "--turns", "new", "--allocator", "prefix", "--json"])
    summary = json.loads(ran.output)
    assert summary["kv"]["prefix_hit_rate"] == pytest.approx(112 / 420)
    assert "that of its new text" in ran.output
    shown = CliRunner().invoke(cli, ["trace", "info", str(path), "--turns", "new"]).output
    assert "told as new text; prompts here hold what went before too" in shown
    assert "120 of 420 tokens (28.57%)" in shown


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "blocks", "tokens"),
    [("mc_doc_example.jsonl", 1, 512), ("mc_chain_break.jsonl", 0, 0), ("mc_u64.jsonl", 1, 512)],
)
def test_reuse_of_cases(shared: Path, file: str, blocks: int, tokens: int) -> None:
    found = reuse(traces.read(shared / "cases/files" / file).requests)
    assert found is not None
    assert (found.reused_blocks, found.reused_tokens) == (blocks, tokens)


@pytest.mark.shared
def test_sessions_of_aiperf(shared: Path, tmp_path: Path) -> None:
    rows = (shared / "cases/files/aiperf_mooncake_sessions.jsonl").read_text().splitlines()[:2]
    path = put(tmp_path, *map(json.loads, rows))
    trace = traces.read(path)
    found = reuse(trace.requests)
    assert found is not None
    assert (trace.requests["prompt_tokens"].iloc[1], found.reused_tokens) == (44_467, 42_612)
    assert traces.read(shared / "cases/files/mc_float_ms.jsonl").requests["arrival_s"].iloc[1] == pytest.approx(0.10525)
    assert len(traces.read(shared / "cases/files/lmsys1m.jsonl")) == 1
