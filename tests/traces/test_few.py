"""A short file that is read without a library of tables is the same trace, and the same run, as with one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

import traces
from sim import api
from traces import tables
from traces.schema import InputError, Trace
from traces.table import ColumnTable

HEADER = "samples,arrival_s,output_tokens,prompt_tokens,priority,acceptance"
ROWS = ["1,0,5,30,0,0.5", "2,0.1,6,3e1,-4,", "1,0.1,7,31,0,nan", "1,1e1,9,12.0,3,1"]
ODD = ("", "-1", "x", "nan", "é", " 3")
FEW = {
    "as it is": [HEADER, *ROWS],
    "out of order": [HEADER, ROWS[3], *ROWS[:3]],
    "since 1970": [HEADER, "1,1700000000,5,30,0,1"],
    "an empty line": [HEADER, ROWS[0], "", *ROWS[1:]],
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
    **{f"{cell!r} in a cell": [HEADER, ROWS[0], f"1,{cell},3,{cell},1,0.5"] for cell in ODD},
    **{f"{cell} for a count": [HEADER, ROWS[0], f"1,9,3,{cell},1,0.5"] for cell in ("0", "1.5", "1e9", "true")},
    "no probability": [HEADER, "1,0,5,30,0,1.5"],
}  # fmt: skip


def read(path: Path, skip_bad: bool, limit: int | None) -> Trace | str:
    try:
        return traces.read(path, format="foretoken", skip_bad=skip_bad, limit=limit)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_short_file_is_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    path = tmp_path / "few.csv"
    for what, lines in FEW.items():
        path.write_bytes((end.join(lines) + end).encode())
        for skip_bad, limit in ((False, None), (True, 2)):
            found = read(path, skip_bad, limit)
            with monkeypatch.context() as patch:
                patch.setattr(tables, "FEW_BYTES", 0)
                expected = read(path, skip_bad, limit)
            if isinstance(found, str) or isinstance(expected, str):
                assert found == expected, what
                continue
            pd.testing.assert_frame_equal(found.requests, expected.requests, obj=what)
            for item in fields(Trace)[1:]:
                assert getattr(found, item.name) == getattr(expected, item.name), (what, item.name)
            assert (len(found), found.span_s) == (len(expected), expected.span_s)


def test_a_run_of_it_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "few.csv"
    rows = "".join(f"{at / 7},{30 + at},{1 + at}\n" for at in range(9))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    found = api.run(trace=str(path))
    assert isinstance(found.trace.table, ColumnTable)
    monkeypatch.setattr(tables, "FEW_BYTES", 0)
    expected = api.run(trace=str(path))
    assert isinstance(expected.trace.table, pd.DataFrame)
    for name in ("requests", "steps", "preempted"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))
    assert {**found.summary, "simulator": None} == {**expected.summary, "simulator": None}
