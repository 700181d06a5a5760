"""A sweep that is interrupted goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from sim import api
from sim.serving import run as serving
from sim.study.sweep.store import JOURNAL
from traces.schema import InputError

ASKED: dict[str, Any] = {"policy": ["chunked", "nope", "static"], "rate": [2, 5, 10, 40], "seeds": 2}
WORDS = ["--trace", "small.csv", "--policy", "chunked,nope,static", "--rate", "2,5,10,40", "--seeds", "2"]
FEW: dict[str, Any] = {"policy": ["chunked", "nope"], "rate": [5, 10], "seeds": 1}
"""Enough where it does not matter how many points there are."""
ROOT = str(Path(__file__).parents[2])


def write_trace(rows: int) -> None:
    lines = (f"{0.1 * at:.1f},{100 + 37 * at % 300},{5 + 11 * at % 50}" for at in range(rows))
    Path("small.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_trace(20)
    return tmp_path


def run(out: str, **other: Any) -> bytes:
    api.sweep(**{"trace": "small.csv", "out": out, "workers": 1, **ASKED, **other})
    return Path(out, "sweep.parquet").read_bytes() + Path(out, "report.html").read_bytes()


def started(out: str, workers: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from sim.cli.main import main; main()",
            "sweep",
            *WORDS,
            "--out",
            out,
            "--workers",
            str(workers),
        ],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def lines(folder: str) -> int:
    path = Path(folder, JOURNAL)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_random_moments_it_ends_with_the_same_bytes(here: Path) -> None:
    """SIGKILL three times, each some random points and milliseconds further on, with one and with two workers."""
    write_trace(400)
    undisturbed = run("undisturbed")
    rng = random.Random()
    kills, past = 0, 0
    for attempt in range(3):
        process = started("killed", workers=1 + attempt % 2)
        target = past + rng.randrange(0, 8)
        while process.poll() is None and lines("killed") < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        assert lines("killed") >= past  # nothing finished is lost
        past = lines("killed")
    last = started("killed", workers=2)
    _, told = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, told
    assert kills
    assert f"{past} of 24 points are there already".encode() in told or not past
    assert Path("killed/sweep.parquet").read_bytes() + Path("killed/report.html").read_bytes() == undisturbed
    assert not [path.name for path in Path("killed").iterdir() if path.name.startswith(".")]


def test_any_part_of_the_journal_will_do(here: Path) -> None:
    """Cut within any byte, its points in any order (so they finish): the missing ones run, the bytes are the same."""
    there = run("whole", **FEW)
    whole = Path("whole", JOURNAL).read_bytes().splitlines(keepends=True)
    part = Path("part")
    part.mkdir()

    @settings(max_examples=12)
    @given(share=st.floats(0, 1), order=st.permutations(whole))
    def check(share: float, order: list[bytes]) -> None:
        (part / "sweep.toml").write_bytes(Path("whole/sweep.toml").read_bytes())
        (part / JOURNAL).write_bytes(b"".join(order)[: int(share * sum(map(len, order)))])
        assert run("part", **FEW) == there
        assert sorted((part / JOURNAL).read_bytes().splitlines(keepends=True)) == sorted(whole)

    check()


def test_a_finished_sweep_simulates_nothing_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("out")
    monkeypatch.setattr(serving, "simulate", lambda *_, **__: pytest.fail("a finished point ran again"))
    assert run("out") == first


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"rate": [5, 50]},
            "axes.workload.rate is [5.0, 10.0] there and [5.0, 50.0] here",
        ),
        ({"seeds": 3}, "seeds is [0] there and [0, 1, 2] here"),
        ({"kv.blocks": 99}, "base.kv.blocks is 0 there and 99 here"),
        ({"tp": [1, 2]}, "axes.tp is not set there and [1, 2] here"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(here: Path, other: dict[str, Any], told: str) -> None:
    before = run("out", **FEW)
    with pytest.raises(InputError) as error:
        run("out", **{**FEW, **other})
    assert told in str(error.value)
    assert "give another --out" in str(error.value)
    assert run("out", **FEW) == before


def test_how_it_runs_is_no_part_of_what_it_is(here: Path) -> None:
    """More workers may go on with what one began."""
    first = run("out")
    journal = Path("out", JOURNAL)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:20]))
    assert run("out", workers=2) == first


def test_a_damaged_line_is_told(here: Path) -> None:
    run("out", **FEW)
    journal = Path("out", JOURNAL)
    kept = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([kept[0], b"{not json}\n", *kept[2:]]))
    with pytest.raises(InputError, match=r"points\.jsonl line 2 is damaged"):
        run("out", **FEW)


def test_a_folder_in_use_is_refused(here: Path) -> None:
    def once_more(done: int, total: int) -> None:
        with pytest.raises(InputError, match="in use by a sweep that is still running"):
            run("out", **FEW)

    run("out", **FEW, progress=once_more)


def test_a_journal_without_its_sweep_is_left_alone(here: Path) -> None:
    run("out", **FEW)
    Path("out/sweep.toml").unlink()
    with pytest.raises(InputError, match=r"has a points\.jsonl without sweep\.toml"):
        run("out", **FEW)
    assert lines("out") == 4


KILLER = "import os\n\ndef killer(step):\n    os.kill(os.getpid(), 9)\n"
BROKEN = "def broken(step):\n    return 1 / 0\n"


def test_killed_workers_and_bugs_are_rows_that_run_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user can mend is final; what may end otherwise next time is tried again by the same command."""
    monkeypatch.syspath_prepend(here)
    Path("killer.py").write_text(KILLER)
    Path("broken.py").write_text(BROKEN)
    asked = {"policy": ["chunked", "killer:killer", "broken:broken", "nope"], "rate": 5, "seeds": 1, "workers": 2}
    args = {"trace": "small.csv", "out": "out", **asked}
    table = api.sweep(**args)  # type: ignore[arg-type]
    assert table["status"].tolist() == ["ok", "failed", "failed", "failed"]
    assert "was killed (SIGKILL" in table["reason"][1]
    assert table["reason"][2] == "unexpected: ZeroDivisionError: division by zero"
    assert lines("out") == 2
    Path("killer.py").write_text("from sim.policies.chunked import Chunked as killer\n")
    assert api.sweep(**args)["status"].tolist() == ["ok", "ok", "failed", "failed"]  # type: ignore[arg-type]
    assert lines("out") == 3
