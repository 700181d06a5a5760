"""No result changed: the fingerprints of tests/data/fingerprints/record.json, made again.

One rule: a fingerprint may change only in a commit that says why (`python -m tests.fingerprints record`).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fingerprints import compare, prints, store
from fingerprints.__main__ import changes, unrecorded
from fingerprints.runs import Outcome, impossible

RUNS = store.read()


def _made(kind: str) -> list[str]:
    return [name for name, kept in RUNS.items() if (kept.kind == "run") == (kind == "run")]


def test_single_runs_are_as_recorded() -> None:
    assert [line for name in _made("run") for line in changes(name, RUNS[name])[1]] == []


@pytest.mark.parametrize("name", _made("others"))
def test_what_is_no_single_run_is_as_recorded(name: str) -> None:
    kept = RUNS[name]
    if kept.kind == "schedules":
        pytest.skip("tests/validate/test_vllm_schedules.py replays the schedules")
    if reason := impossible(kept.kind):
        pytest.skip(reason)
    assert changes(name, kept)[1] == []


def test_every_run_is_recorded_as_it_is_listed() -> None:
    assert unrecorded(RUNS) == []
    assert len(RUNS) > 120
    assert store.RECORD.stat().st_size < 580_000


def test_the_record_reads_as_it_was_written(tmp_path: Path) -> None:
    store.write(RUNS, tmp_path / "again.json")
    again = store.read(tmp_path / "again.json")
    assert again == RUNS
    assert any(isinstance(value, prints.Code) for value in again["chunked/paged/sync/open"].prints["summary"].values())


TABLE = pd.DataFrame({"step": range(200), "kind": ["a", "b"] * 100, "end_s": [0.1 * at for at in range(200)]})


def told(new: pd.DataFrame) -> list[str]:
    outcome = Outcome()
    outcome.table("steps", new)
    return list(compare.differences("run", outcome, {"steps": prints.of_table(TABLE)}))


def test_the_last_bits_of_floats_are_no_difference() -> None:
    assert told(TABLE.assign(end_s=TABLE["end_s"] * (1 + 2e-13))) == []
    assert told(TABLE.copy()) == []


def test_a_difference_names_column_and_row() -> None:
    changed = TABLE.copy()
    changed.loc[70, "step"] = 7
    assert told(changed) == ["steps: from one of the rows 64 to 71 on, columns step changed; row 64 is now step=64"]
    changed = TABLE.copy()
    changed.loc[13, "end_s"] += 1e-7
    (sentence,) = told(changed)
    assert sentence.startswith("steps: from one of the rows 8 to 15 on, column end_s: the sum is 1990.0000001")
    swapped = TABLE.assign(end_s=[*TABLE["end_s"][:100], *TABLE["end_s"][100:][::-1]])
    assert told(swapped) == ["steps: from one of the rows 96 to 103 on, values changed places"]
    assert told(TABLE.rename(columns={"kind": "sort"})) == ["steps: column kind is gone", "steps: column sort is new"]
    assert "steps: 199 rows, were 200" in told(TABLE.iloc[1:])


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.004, 1.0, 93.7, 3.1e6, -12.5])
def test_a_code_holds_still_for_the_last_bits_alone(value: float) -> None:
    code = prints.Code.of(value)
    assert code.fits(value)
    assert code.fits(value * (1 + 5e-13))
    assert not code.fits(value + 1e-11 * max(1.0, abs(value)))
