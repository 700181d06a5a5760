"""Laws of reading, writing and editing traces, on random tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from traces import blocks, edit, fields, tables, write
from traces.fields import BadRow
from traces.names import settled
from traces.reuse import reuse
from traces.rows import from_frame, in_order, keep_rows, validate
from traces.schema import DTYPES, InputError, Trace

QUICK = settings(max_examples=40)
TIMES = st.one_of(st.floats(0, 1e7, allow_subnormal=False), st.integers(0, 5).map(float))
TOKENS = st.integers(1, 500)


@st.composite
def traces_(draw: st.DrawFn, *, most: int = 12) -> Trace:
    """Any trace: sessions or none, blocks or none, names with quotes, commas and line ends."""
    count = draw(st.integers(1, most))
    times = sorted(draw(st.lists(TIMES, min_size=count, max_size=count)))
    table = pd.DataFrame(
        {
            "arrival_s": times,
            "prompt_tokens": draw(st.lists(TOKENS, min_size=count, max_size=count)),
            "output_tokens": draw(st.lists(TOKENS, min_size=count, max_size=count)),
        }
    )
    if draw(st.booleans()):
        table["after"] = [draw(st.integers(-1, row - 1)) for row in range(count)]
        table["think_s"] = draw(st.lists(st.floats(0, 1e4), min_size=count, max_size=count))
        table["turn"] = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
        name = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=9)
        table["session"] = draw(st.lists(name, min_size=count, max_size=count))
    if draw(st.booleans()):
        size = draw(st.integers(1, 32))
        ids = [
            np.array(draw(st.lists(st.integers(0, 99), max_size=min(4, prompt)))) for prompt in table["prompt_tokens"]
        ]
        ids = [one[: -(-prompt // size)] for one, prompt in zip(ids, table["prompt_tokens"], strict=True)]
        table["prefix_blocks"] = pd.Series(settled([one.astype(np.int64) for one in ids])[0], dtype=object)
        table["prefix_block_tokens"] = size
    if draw(st.booleans()):
        table["priority"] = draw(st.lists(st.integers(-5, 5), min_size=count, max_size=count))
    return from_frame(table, synthetic=draw(st.booleans()))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert list(one.columns) == list(other.columns)
    for column in one:
        if column == "source_row":
            continue
        if DTYPES[str(column)] == "object":
            assert [ids.tolist() for ids in one[column]] == [ids.tolist() for ids in other[column]], column
        else:
            assert one[column].tolist() == other[column].tolist(), column


@QUICK
@given(trace=traces_(), ending=st.sampled_from([".csv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.xz"]))
def test_own_formats_round_trip(tmp_path: Path, trace: Trace, ending: str) -> None:
    path = write.write(trace, tmp_path / f"t{ending}")
    back = traces.read(path)
    same(back.requests, trace.requests)
    assert back.synthetic is trace.synthetic
    first = path.read_bytes()
    assert write.write(back, path).read_bytes() == first
    assert not ending.endswith(".gz") or first[4:8] == b"\0\0\0\0"  # no time of packing


@QUICK
@given(trace=traces_())
def test_lengths_only_round_trip(tmp_path: Path, trace: Trace) -> None:
    bare = trace.requests.assign(arrival_s=0.0)
    untimed = Trace(bare, "bare", "test", has_arrivals=False)
    for ending in (".csv", ".jsonl", ".parquet"):
        back = traces.read(write.write(untimed, tmp_path / f"t{ending}"))
        assert not back.has_arrivals
        same(back.requests, bare)


CELL = st.one_of(
    st.integers(-2, 2**70).map(str),
    st.floats().map(str),
    st.sampled_from(["", " 7", "7 ", "+7", "07", "1e3", "nan", "inf", "7.0", "7.5", "1_000", "x", "٣", "-0", "1e400"]),
)
KINDS = {
    "count": fields.Count(),
    "zero": fields.Count(least=0),
    "s": fields.Time("s"),
    "ms": fields.Time("ms", whole=True),
    "maybe": fields.Time("ns", optional=True),
}


@QUICK
@given(cells=st.lists(CELL, min_size=1, max_size=5), name=st.sampled_from(list(KINDS)))
def test_the_fast_path_of_a_csv_agrees_with_the_slow_one(tmp_path: Path, cells: list[str], name: str) -> None:
    columns: dict[str, fields.Kind] = {"value": KINDS[name], "tail": fields.Text(optional=True)}
    data = ("value,tail\n" + "".join(f"{cell},x\n" for cell in cells)).encode()
    fast = tables._at_once(data, ["value", "tail"], columns)
    refused: list[int] = []
    slow = tables._row_by_row(data, ["value", "tail"], columns, lambda line, why: refused.append(line))
    if fast is not None:
        assert not refused
        assert fast["source_row"].tolist() == slow["source_row"]
        np.testing.assert_array_equal(fast["value"].to_numpy(dtype=float), np.array(slow["value"], float))


@pytest.mark.parametrize(
    "stamp",
    [
        "2023-11-16 18:15:46.6805901",
        "2024-05-10 00:00:00.009930+00:00",
        "2024-05-10T00:00:00Z",
        "2024-05-10 02:30:00+02:30",
    ],
)
def test_stamps_are_read_alike(stamp: str) -> None:
    columns: dict[str, fields.Kind] = {"at": fields.Stamp()}
    data = f"at\n{stamp}\n{stamp}\n".encode()
    fast = tables._at_once(data, ["at"], columns)
    slow = tables._row_by_row(data, ["at"], columns, lambda line, why: pytest.fail(str(why)))
    assert fast is not None
    expected = (
        pd.Timestamp(stamp).value if pd.Timestamp(stamp).unit == "ns" else pd.Timestamp(stamp).as_unit("ns").value
    )
    assert fast["at"].tolist() == slow["at"] == [expected] * 2


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)


@QUICK
@given(value=JSON)
def test_any_json_value_is_taken_or_refused_by_name(value: Any) -> None:
    for kind in (*KINDS.values(), fields.Stamp(), fields.Text(), fields.Ids()):
        refusal = ""
        try:
            fields.get({"key": value}, "key", kind)
        except BadRow as why:
            refusal = str(why)
        assert refusal == "" or (refusal.startswith("key is ") and len(refusal) < 200)


@QUICK
@given(trace=traces_(), data=st.data())
def test_dropping_rows_keeps_links_to_the_nearest_kept(trace: Trace, data: st.DataObject) -> None:
    requests = trace.requests
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests))))
    out = keep_rows(requests, kept)
    rows = np.flatnonzero(kept)
    assert len(out) == len(rows)
    if "after" not in requests:
        return
    after = requests["after"].tolist()
    for new, old in enumerate(rows):
        parent = after[old]
        while parent >= 0 and not kept[parent]:
            parent = after[parent]
        found = int(out["after"].iloc[new])
        assert (rows[found] if found >= 0 else -1) == parent


@QUICK
@given(trace=traces_(), seed=st.integers(0, 999))
def test_shuffled_rows_come_back_in_order(trace: Trace, seed: int) -> None:
    requests = trace.requests.assign(tag=np.arange(len(trace)))
    order = rng(seed).permutation(len(requests))
    place = np.argsort(order)
    mixed = requests.iloc[order].reset_index(drop=True)
    if "after" in mixed:
        mixed["after"] = [int(place[parent]) if parent >= 0 else -1 for parent in mixed["after"]]
    back = in_order(mixed)
    assert (np.diff(back["arrival_s"]) >= 0).all()
    assert sorted(back["tag"]) == list(range(len(back)))
    if "after" in back:
        for row, parent in zip(back["tag"], back["after"], strict=True):
            expected = requests["after"].iloc[row]
            assert (int(back["tag"].iloc[parent]) if parent >= 0 else -1) == expected


def checked(trace: Trace) -> pd.DataFrame:
    """The requests, after the checks that every trace passes."""
    clean, _ = validate(trace.requests, "edited")
    assert (np.diff(clean["arrival_s"]) >= 0).all()
    assert trace.requests.index.equals(pd.RangeIndex(len(trace)))
    return clean


def links(trace: Trace) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Lengths of each request that follows another, and of the one that it follows."""
    table = trace.requests
    pairs = list(zip(table["prompt_tokens"], table["output_tokens"], strict=True))
    return sorted((pairs[row], pairs[parent]) for row, parent in enumerate(table.get("after", [])) if parent >= 0)


def lengths(table: pd.DataFrame) -> list[tuple[int, int]]:
    return sorted(zip(table["prompt_tokens"], table["output_tokens"], strict=True))


@QUICK
@given(trace=traces_(), factor=st.floats(0.01, 100))
def test_scaling_conserves_requests(trace: Trace, factor: float) -> None:
    out = checked(edit.scale_rate(trace, factor))
    assert lengths(out) == lengths(trace.requests)
    np.testing.assert_allclose(out["arrival_s"] * factor, trace.requests["arrival_s"], atol=1e-300)


@QUICK
@given(trace=traces_(), rate=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_set_rate_sets_the_rate_and_conserves_requests(trace: Trace, rate: float, seed: int) -> None:
    out = edit.set_rate(trace, rate, rng(seed))
    assert lengths(checked(out)) == lengths(trace.requests)
    if trace.span_s > edit.AT_ONCE_S:
        assert (len(out) - 1) / out.span_s == pytest.approx(rate)


def test_set_rate_draws_times_for_a_trace_without() -> None:
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": np.arange(1, 4001), "output_tokens": 1})
    table["after"] = np.where(np.arange(4000) % 2 == 1, np.arange(4000) - 1, -1)
    table["think_s"] = np.where(table["after"] >= 0, 2.0, 0.0)
    bare = Trace(from_frame(table).requests, "bare", "test", has_arrivals=False)
    out = edit.set_rate(bare, 10.0, rng())
    assert out.has_arrivals
    requests = checked(out)
    starts = requests.loc[requests["after"] < 0, "arrival_s"].to_numpy()
    assert (len(starts) - 1) / (starts[-1] - starts[0]) == pytest.approx(5.0, rel=4 / math.sqrt(2000))
    follows = requests["after"] >= 0
    parents = requests["arrival_s"].to_numpy()[requests.loc[follows, "after"]]
    np.testing.assert_allclose(requests.loc[follows, "arrival_s"] - parents, 2.0)
    assert out.requests.equals(edit.set_rate(bare, 10.0, rng()).requests)
    with pytest.raises(InputError, match="has no arrival times"):
        edit.scale_rate(bare, 2.0)


@QUICK
@given(trace=traces_(), data=st.data())
def test_slices_split_a_trace(trace: Trace, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(trace)))
    parts = [edit.slice_count(trace, 0, cut)]
    if cut < len(trace):
        parts.append(edit.slice_count(trace, cut, len(trace)))
    assert sorted(row for part in parts for row in lengths(checked(part))) == lengths(trace.requests)
    assert all(part.requests["arrival_s"].iloc[0] == 0 for part in parts)
    middle = float(trace.requests["arrival_s"].iloc[cut - 1])
    early = trace.requests["arrival_s"] < middle
    if early.any():
        assert len(edit.slice_time(trace, 0.0, middle)) == early.sum()
    else:
        with pytest.raises(InputError, match="no request is left"):
            edit.slice_time(trace, 0.0, middle)


@QUICK
@given(parts=st.lists(traces_(most=6), min_size=1, max_size=3))
def test_merging_conserves_requests_and_keeps_traces_apart(parts: list[Trace]) -> None:
    sizes = {int(one.requests["prefix_block_tokens"].iloc[0]) for one in parts if "prefix_blocks" in one.requests}
    if len(sizes) > 1:
        with pytest.raises(InputError, match="cannot be merged"):
            edit.merge(parts)
        return
    out = edit.merge(parts)
    assert lengths(checked(out)) == sorted(row for one in parts for row in lengths(one.requests))
    assert out.synthetic is any(one.synthetic for one in parts)
    assert links(out) == sorted(link for one in parts for link in links(one))
    distinct = [
        len({int(x) for ids in one.requests["prefix_blocks"] for x in ids})
        for one in parts
        if sizes and "prefix_blocks" in one.requests
    ]
    if sizes:
        assert len({int(x) for ids in out.requests["prefix_blocks"] for x in ids}) == sum(distinct)


@QUICK
@given(trace=traces_(), count=st.integers(1, 30), seed=st.integers(0, 99))
def test_resampling_draws_whole_sessions(trace: Trace, count: int, seed: int) -> None:
    out = edit.resample(trace, count, rng(seed))
    requests = checked(out)
    known = set(lengths(trace.requests))
    assert set(lengths(requests)) <= known
    starts = int((requests["after"] < 0).sum()) if "after" in requests else len(requests)
    assert starts == count
    assert set(links(out)) <= set(links(trace))
    assert out.requests.equals(edit.resample(trace, count, rng(seed)).requests)


@QUICK
@given(slots=st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_spreading_keeps_slots_and_order(slots: list[int]) -> None:
    times = np.repeat(np.arange(len(slots)) * 3.0, slots)
    trace = from_frame(
        pd.DataFrame({"arrival_s": times, "prompt_tokens": np.arange(1, len(times) + 1), "output_tokens": 1})
    )
    out = checked(edit.spread(trace))
    assert out["prompt_tokens"].tolist() == trace.requests["prompt_tokens"].tolist()
    assert ((out["arrival_s"] // 3.0) == times // 3.0).all()
    assert out["arrival_s"].is_unique


def test_spreading_needs_slots() -> None:
    trace = from_frame(pd.DataFrame({"arrival_s": [1.0, 1.0], "prompt_tokens": 1, "output_tokens": 1}))
    with pytest.raises(InputError, match="one arrival time only"):
        edit.spread(trace)


@QUICK
@given(trace=traces_(), rate=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_staggering_moves_sessions_whole(trace: Trace, rate: float, seed: int) -> None:
    out = checked(edit.stagger(trace, rate, rng(seed)))
    assert lengths(out) == lengths(trace.requests)


@QUICK
@given(trace=traces_(), size=st.integers(1, 20))
def test_session_blocks_repeat_the_text_before(trace: Trace, size: int) -> None:
    if "prefix_blocks" in trace.requests:
        with pytest.raises(InputError, match="has prefix blocks already"):
            edit.session_blocks(trace, size)
        return
    out = checked(edit.session_blocks(trace, size))
    ids = [one.tolist() for one in out["prefix_blocks"]]
    assert [len(one) for one in ids] == (out["prompt_tokens"] // size).tolist()
    for row, parent in enumerate(out.get("after", [])):
        if parent >= 0:
            text = int(out["prompt_tokens"].iloc[parent] + out["output_tokens"].iloc[parent])
            repeats = out["prompt_tokens"].iloc[row] >= text
            shared = out["prompt_tokens"].iloc[parent] // size if repeats else 0
            assert ids[row][:shared] == ids[parent][:shared]
            assert repeats or not set(ids[row]) & set(ids[parent])


def test_resampled_sessions_keep_their_inner_times() -> None:
    table = pd.DataFrame({"arrival_s": [5.0, 6.0, 9.0], "prompt_tokens": [1, 2, 3], "output_tokens": 1})
    table["after"] = [-1, -1, 0]
    out = edit.resample(from_frame(table), 40, rng()).requests
    follows = out["after"] >= 0
    assert follows.any()
    waited = out.loc[follows, "arrival_s"].to_numpy() - out["arrival_s"].to_numpy()[out.loc[follows, "after"]]
    np.testing.assert_allclose(waited, 4.0)
    starts = out.loc[~follows, "arrival_s"]
    np.testing.assert_allclose(starts, np.arange(40.0))


def test_first_turns() -> None:
    table = pd.DataFrame(
        {"arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [1, 2, 3], "output_tokens": 1, "after": [-1, 0, -1]}
    )
    out = edit.first_turns(from_frame(table))
    assert out.requests["prompt_tokens"].tolist() == [1, 3]
    assert out.requests["after"].tolist() == [-1, -1]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_must_be_positive(rate: float) -> None:
    trace = from_frame(pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": 1, "output_tokens": 1}))
    for change in (edit.scale_rate, lambda one, value: edit.set_rate(one, value, rng())):
        with pytest.raises(InputError, match="it must be above 0"):
            change(trace, rate)


@QUICK
@given(rows=st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=8), size=st.integers(1, 4))
def test_reuse_counts_what_a_slow_model_counts(rows: list[list[int]], size: int) -> None:
    table = pd.DataFrame({"prompt_tokens": [max(1, len(row) * size) for row in rows], "output_tokens": 1})
    table["prefix_blocks"] = pd.Series([np.array(row, dtype=np.int64) for row in rows], dtype=object)
    table["prefix_block_tokens"] = size
    seen: set[tuple[int, int]] = set()
    expected = 0
    for row in rows:
        expected += next((place for place, name in enumerate(row) if (place, name) not in seen), len(row))
        seen |= set(enumerate(row))
    found = reuse(table)
    assert found is not None
    assert (found.blocks, found.reused_blocks) == (sum(map(len, rows)), expected)


@QUICK
@given(prompts=st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=6), size=st.integers(1, 4))
def test_chained_ids_are_equal_where_the_tokens_are(prompts: list[list[int]], size: int) -> None:
    ids = blocks.chained([np.array(one, dtype=np.int64) for one in prompts], size)
    for one, first in zip(ids, prompts, strict=True):
        assert len(one) == len(first) // size
        for other, second in zip(ids, prompts, strict=True):
            for place in range(min(len(one), len(other))):
                end = (place + 1) * size
                assert (one[place] == other[place]) == (first[:end] == second[:end])


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = from_frame(pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": 1, "output_tokens": 1}))
    path = tmp_path / "t.csv"
    write.write(trace, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_csv", full)
    with pytest.raises(InputError, match=r"t\.csv cannot be written: No space left on device"):
        write.write(trace, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["t.csv"]
    for name in ("t.txt", "t", "t.gz", "t.parquet.gz"):
        with pytest.raises(InputError, match=r"must end in \.csv, \.jsonl, \.parquet"):
            write.write(trace, tmp_path / name)
