"""Files appear whole or not at all, and a failure is one sentence."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_samples import make_run

from sim.report import folder
from sim.results import files
from traces.schema import InputError


@pytest.fixture
def small_disk() -> Iterator[int]:
    """The kernel refuses every file beyond 64 KiB, as a full disk would: a real error from a real write."""
    most = 65_536
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = {
    "text": files.text("x" * 1_000_000),
    "stream": files.text("x" * 1000 for _ in range(1000)),
    "bytes": files.raw(b"x" * 1_000_000),
    "json": files.as_json(["x" * 1000] * 1000),
    "parquet": files.parquet(pd.DataFrame({"x": np.random.default_rng(0).random(200_000)})),
}


@pytest.mark.parametrize("kind", BIG)
def test_a_full_disk_leaves_nothing_behind(small_disk: int, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "made" / "for" / "it"
    with pytest.raises(InputError) as caught:
        files.write_files(target, {"first.txt": files.text("fits"), "second": BIG[kind]})
    message = str(caught.value)
    assert message.startswith(f"cannot write {target / 'second'}: ")
    assert "File too large" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_earlier_files(small_disk: int, tmp_path: Path) -> None:
    files.write_files(tmp_path, {"a": files.text("old a"), "b": files.text("old b")})
    with pytest.raises(InputError):
        files.write_files(tmp_path, {"a": files.text("new a"), "b": BIG["text"]})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_an_exception_or_ctrl_c_within_a_writer_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[str]:
        yield "half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "new" / "x", files.text(interrupted()))
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*taken"):
        files.write_files(tmp_path / "taken", {"x": files.text("y")})
    with pytest.raises(InputError, match=r"cannot write .*taken"):
        files.write_files(tmp_path / "taken" / "below", {"x": files.text("y")})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        files.write_file(tmp_path / "folder", files.text("y"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken"]


def test_json_without_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.as_json({"x": float("nan")})
    files.write_file(tmp_path / "x.json", files.as_json({"b": 1, "a": "é"}))
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_a_run_folder_holds_everything_and_is_the_same_twice(tmp_path: Path) -> None:
    run = make_run(40, rate=14.0)
    paths = folder.write_run(run, tmp_path / "a", scenario="[engine]\n", perfetto=True)
    folder.write_run(run, tmp_path / "b", scenario="[engine]\n", perfetto=True, window=(0.0, 1e9))
    tables = ["requests.parquet", "steps.parquet", "gaps.parquet"]  # a toy tells no preemptions and no terms
    names = ["scenario.toml", "summary.json", *tables, "report.html", "trace.perfetto.json"]
    assert [path.name for path in paths] == names
    assert sorted(os.listdir(tmp_path / "a")) == sorted(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a" / "requests.parquet"), run.requests)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a" / "steps.parquet"), run.steps)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary == {**run.summary, "run_id": summary["run_id"]}
