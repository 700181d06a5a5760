"""A file that is read without a library of tables is the same trace, and the same run, as with one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces
from sim import api
from traces import tables
from traces.fields import date_words
from traces.formats.foretoken import COLUMNS
from traces.schema import MAX_TIME_S, InputError, Trace
from traces.table import ColumnTable

HEADER = "samples,arrival_s,output_tokens,prompt_tokens,priority,acceptance"
PLAIN = ["1,0,5,30,0,0.5", "2,0.1,6,31,-4,1", "1,1e-1,7,31,0,1.", "1,1e1,9,12,3,1", "1,00010.50,9,012,3,0"]
ODD = ["1,11,6,3e1,-4,", "1,11.,7,31,0,nan", "1,1e2,9,12.0,3,1", ",+100,9, 3,3,1", '"1",1000,9,3,3,1']
ROWS = [*PLAIN[:2], *ODD]
CELLS = ("", "-1", "x", "nan", "inf", "é", " 3", "1_0", "0x3", "1e400", "9" * 40, "99999999", "1\r", "'3'", "#3")
TIMES = "TIMESTAMP,ContextTokens,GeneratedTokens"
STAMPS = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16T18:15:50,396,109", "2023-11-16 18:15:50.123456789,1,2"]
ZONED = [f"2024-05-1{at} 00:00:00.00{at}+00:00,{at + 1},5" for at in range(9)]
FILES = {
    "plain": [HEADER, *PLAIN],
    "odd cells": [HEADER, *ROWS],
    "out of order": [HEADER, PLAIN[3], *PLAIN[:3]],
    "since 1970": [HEADER, "1,1700000000,5,30,0,1"],
    "an empty line": [HEADER, ROWS[0], "", *ROWS[1:]],
    "an empty line of plain ones": [HEADER, PLAIN[0], "", *PLAIN[1:]],
    "empty lines behind": [HEADER, *PLAIN, "", ""],
    "a short row": [HEADER, ROWS[0], "1,2", *ROWS[1:]],
    "a line end in quotes": [HEADER, '1,0,"5\n",30,0,1', *ROWS],
    "quotes left open": [HEADER, *ROWS, '1,20,"5,30,0,1'],
    "no rows": [HEADER],
    "empty rows": [HEADER, "", ""],
    "no times": ["prompt_tokens,output_tokens", "1,2"],
    "no outputs": ["arrival_s,prompt_tokens", "1,2"],
    "turns": [f"{HEADER},turn", *(f"{row},1" for row in ROWS)],
    "sessions": [f"{HEADER},session", *(f"{row},a" for row in ROWS)],
    "marked synthetic": [f"{HEADER},synthetic", *(f"{row},true" for row in ROWS)],
    "no such column": [f"{HEADER},colour", *(f"{row},1" for row in ROWS)],
    "a column twice": [f"{HEADER},samples", *(f"{row},1" for row in ROWS)],
    **{f"{cell!r} in a cell": [HEADER, ROWS[0], f"1,{cell},3,{cell},1,0.5"] for cell in CELLS},
    **{f"{cell} for a count": [HEADER, ROWS[0], f"1,9,3,{cell},1,0.5"] for cell in ("0", "1.5", "1e9", "true")},
    "no probability": [HEADER, "1,0,5,30,0,1.5"],
    "stamps": [TIMES, *STAMPS],
    "stamps of a zone": [TIMES, *ZONED],
    "stamps of other zones": [TIMES, *ZONED[:1], "2024-05-11 00:00:00+01:00,2,3", "2024-05-12T00:00:00Z,2,3"],
    "stamps out of order": [TIMES, *STAMPS[::-1]],
    "stamps a century apart": [TIMES, *STAMPS, "2138-11-16 18:15:50,3,4"],
    "another column": [f"n,{TIMES}", *(f"{at},{row}" for at, row in enumerate(STAMPS))],
    "columns elsewhere": ["ContextTokens,TIMESTAMP,GeneratedTokens", "3,2169-12-31 23:59:59.999999999,4"],
    **{
        f"{day!r} for a stamp": [TIMES, STAMPS[0], f"{day},1,2"]
        for day in (
            *("2023-02-29 00:00:00", "2024-02-29 00:00:00", "2023-11-16 24:00:00", "2023-11-16 18:60:00", "2023-11-17"),
            *("2023-11-16 18:15:60", "1969-12-31 23:59:59", "2170-01-01 00:00:00", "2600-01-01 00:00:00", "NaT", "now"),
            *("2023-11-17 18:15", "2023-11-17 18:15:46.", "2023-11-17 18:15:46.1234567891", "2023-11-17  18:15:46", ""),
        )
    },
}  # fmt: skip


def read(path: Path, kind: str, skip_bad: bool, limit: int | None) -> Trace | str:
    try:
        return traces.read(path, format=kind, skip_bad=skip_bad, limit=limit)
    except InputError as error:
        return str(error)


def alike(path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The file is the same trace, or the same sentence, with and without a library of tables."""
    kind = "azure" if b"TIMESTAMP" in path.read_bytes() else "foretoken"
    for skip_bad, limit in ((False, None), (True, 2)):
        found = read(path, kind, skip_bad, limit)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "PLAIN_BYTES", 0)
            expected = read(path, kind, skip_bad, limit)
        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected, what
            continue
        pd.testing.assert_frame_equal(found.requests, expected.requests, check_exact=True, obj=what)
        for item in fields(Trace)[1:]:
            assert getattr(found, item.name) == getattr(expected, item.name), (what, item.name)
        assert (len(found), found.span_s) == (len(expected), expected.span_s)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_file_is_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, last: bool) -> None:
    path = tmp_path / "some.csv"
    for what, lines in FILES.items():
        path.write_bytes((end.join(lines) + end * last).encode())
        alike(path, monkeypatch, what)


@given(
    st.sampled_from(["plain", "stamps", "stamps of a zone"]),
    st.lists(st.tuples(st.integers(45, 300), st.sampled_from('0123456789,.-+: eETZn\r\n"#_')), max_size=3),
)
def test_a_file_with_slips_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, what: str, slips: list[tuple[int, str]]
) -> None:
    letters = list("\n".join(FILES[what]))
    for at, letter in slips:
        letters[at % len(letters)] = letter
    path = tmp_path_factory.mktemp("slips") / "some.csv"
    path.write_text("".join(letters), newline="")
    with pytest.MonkeyPatch.context() as patch:
        alike(path, patch, "".join(letters))


@pytest.mark.parametrize("what", ["plain", "empty lines behind", "stamps", "stamps of a zone", "columns elsewhere"])
def test_such_a_file_needs_no_library_of_tables(tmp_path: Path, what: str) -> None:
    path = tmp_path / "some.csv"
    path.write_text("\n".join(FILES[what]))
    for limit in (None, 1):
        found = traces.read(path, limit=limit)
        assert isinstance(found.table, ColumnTable)
        assert len(found) == (limit or len(list(filter(None, FILES[what]))) - 1)


@given(st.lists(st.floats(0, MAX_TIME_S), min_size=1), st.integers(0, 17))
def test_every_float_is_read_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], digits: int
) -> None:
    path = tmp_path_factory.mktemp("floats") / "some.csv"
    texts = [repr(time) for time in sorted(times)] + [
        f"{max(times):.{digits}f}" if max(times) < 9 else repr(max(times))
    ]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{text},1,1\n" for text in texts))
    found = tables.read_plain(path, COLUMNS)
    assert found is not None
    assert found["arrival_s"].tolist() == [float(text) for text in texts]


@given(st.integers(0, 6_311_433_600 * 10**9 - 1))
def test_a_date_is_told_as_pandas_tells_it(since_1970_ns: int) -> None:
    assert date_words(since_1970_ns) == str(pd.Timestamp(since_1970_ns))


def test_a_mistake_behind_the_limit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("\n".join([TIMES, *STAMPS, "2023-11-16 18:15:51,0,2"]))
    with pytest.raises(InputError, match="line 5: ContextTokens is 0"):
        traces.read(path, limit=1)


def test_a_run_of_it_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.csv"
    rows = "".join(f"{at / 7},{30 + at},{1 + at}\n" for at in range(9))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    found = api.run(trace=str(path))
    assert isinstance(found.trace.table, ColumnTable)
    monkeypatch.setattr(tables, "PLAIN_BYTES", 0)
    expected = api.run(trace=str(path))
    assert isinstance(expected.trace.table, pd.DataFrame)
    for name in ("requests", "steps", "preempted"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))
    assert {**found.summary, "simulator": None} == {**expected.summary, "simulator": None}
