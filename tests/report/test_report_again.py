"""A results folder: its page comes again from its tables, and it holds one result and nothing of another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_kit import refused, sim
from report_samples import make_run

from sim import api, scenario
from sim.report import folder
from sim.report.run.page import render_page
from sim.results.percentiles import distribution
from sim.results.tables import RunTables
from traces.schema import InputError

SWEEP = ["sweep", "--trace", "small.csv", "--policy", "chunked,nope", "--rate", "2,9", "--seeds", "2", "--workers", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{0.02 * at:.2f},{100 + 37 * at % 300},{5 + 11 * at % 50}\n" for at in range(60))
    Path("small.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return tmp_path


def test_the_page_of_a_run_comes_again_byte_for_byte(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With preemptions, terms and an SLO; and the command prints what `sim run` printed."""
    words = ["--trace", "small.csv", "--kv-blocks", 60, "--slo", "ttft_p99=0.1", "--out", "out", "--perfetto", "--json"]
    code, printed, _ = sim(capsys, "run", *words)
    page, trace = Path("out/report.html"), Path("out/trace.perfetto.json")
    there, lanes = page.read_bytes(), trace.read_bytes()
    assert code == 0
    assert len(pd.read_parquet("out/preempted.parquet"))
    page.unlink()
    code, again, err = sim(capsys, "report", "out", "--json")
    assert (code, err) == (0, "wrote report.html to out\n")
    assert page.read_bytes() == there
    assert again == printed
    assert trace.read_bytes() == lanes
    assert "TTFT" in sim(capsys, "report", "out")[1]


def test_the_tables_say_what_the_run_did(here: Path) -> None:
    run = api.run(trace="small.csv", kv_blocks=60)
    folder.write_run(run, here / "out", scenario=scenario.dump(run.scenario))
    kept = RunTables.read(here / "out")
    assert kept.term_table is not None
    assert run.terms is not None
    gaps = pd.read_parquet("out/gaps.parquet")
    assert distribution(gaps["gap_s"].to_numpy(), gaps["count"].to_numpy()) == run.summary["itl_s"]
    pd.testing.assert_frame_equal(pd.read_parquet("out/preempted.parquet"), run.preempted)
    first = kept.term_table.iloc[0].to_dict()
    assert first.pop("row") == run.terms.rows[0]
    assert {name: spent for name, spent in first.items() if spent} == {
        name: spent for name, spent in run.terms.of(0).items() if spent
    }
    assert render_page(kept, scenario=kept.scenario) == render_page(run, scenario=kept.scenario)


def test_a_run_leaves_nothing_of_the_one_before(here: Path) -> None:
    """The first has answers, preemptions and terms; the second has none. Files of the user's own stay."""
    out = here / "out"
    run = api.run(trace="small.csv", kv_blocks=60)
    answers = pd.DataFrame({"request": [0], "sample": [0], "token_ids": [[1, 2]]})
    folder.write_run(run, out, scenario="a", answers=answers)
    assert {"answers.parquet", "preempted.parquet", "terms.parquet"} <= set(os.listdir(out))
    (out / "notes.txt").write_text("mine")
    paths = folder.write_run(make_run(40, rate=14.0), out, scenario="b")
    assert sorted(os.listdir(out)) == sorted(["notes.txt", *(path.name for path in paths)])
    assert "answers.parquet" not in os.listdir(out)


def test_a_failure_leaves_the_run_before_whole(here: Path) -> None:
    run = api.run(trace="small.csv", limit=5)
    folder.write_run(run, here / "out", scenario="a", answers=pd.DataFrame({"request": [0]}))
    before = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    broken = make_run(40, rate=14.0)
    broken.summary["duration_s"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        folder.write_run(broken, here / "out", scenario="b")
    assert {path.name: path.read_bytes() for path in (here / "out").iterdir()} == before


def test_the_page_of_a_sweep_comes_again_byte_for_byte(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the table, and without it from the journal."""
    _, printed, _ = sim(capsys, *SWEEP, "--out", "out", "--json")
    page = Path("out/report.html")
    there = page.read_bytes()
    for gone in ("points.jsonl", None):
        page.unlink()
        if gone:
            journal = Path("out", gone).read_bytes()
            Path("out", gone).unlink()
        else:
            Path("out/sweep.parquet").unlink()
            Path("out/points.jsonl").write_bytes(journal)
        code, again, _ = sim(capsys, "report", "out", "--json")
        assert code == 0
        assert json.loads(again) == json.loads(printed)
        assert page.read_bytes() == there


def test_the_page_of_an_unfinished_sweep(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the points that are there, says how many are not, and leaves the journal to the sweep that goes on."""
    sim(capsys, *SWEEP, "--out", "out")
    whole = Path("out/report.html").read_bytes(), Path("out/sweep.parquet").read_bytes()
    Path("out/sweep.parquet").unlink()
    journal = Path("out/points.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], lines[3][:10]]))
    cut = journal.read_bytes()
    code, out, err = sim(capsys, "report", "out")
    assert code == 0
    assert out.startswith("3 points")
    assert "3 of 8 points are there" in err
    assert "Not finished: 5 of 8 runs are still to come." in Path("out/report.html").read_text()
    assert journal.read_bytes() == cut
    sim(capsys, *SWEEP, "--out", "out")
    assert (Path("out/report.html").read_bytes(), Path("out/sweep.parquet").read_bytes()) == whole
    journal.unlink()
    Path("out/sweep.parquet").unlink()
    assert "no point of the sweep in out" in refused(capsys, "report", "out")


def test_a_folder_holds_one_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run does not take a sweep's folder nor a sweep a run's, and neither has simulated by then."""
    run = ["run", "--trace", "small.csv", "--out", "run"]
    sim(capsys, *run)
    sim(capsys, *SWEEP, "--out", "sweep")
    before = {path: path.read_bytes() for path in here.glob("*/*")}
    assert "run holds a run; give another --out" in refused(capsys, *SWEEP, "--out", "run")
    assert "sweep holds a sweep; give another --out" in refused(capsys, *run[:-1], "sweep")
    assert {path: path.read_bytes() for path in here.glob("*/*")} == before
    Path("plan").mkdir()
    Path("plan/plan.json").write_text("{}")
    assert "plan holds a plan" in refused(capsys, *run[:-1], "plan")
    Path("plan/sweep.toml").write_text("")
    assert "plan holds a sweep and a plan" in refused(capsys, "report", "plan")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("steps.parquet", b"no parquet", "out/steps.parquet is cut off or not a valid Parquet"),
        ("steps.parquet", None, "out/steps.parquet does not exist"),
        ("gaps.parquet", None, "out/gaps.parquet does not exist"),
        ("requests.parquet", "columns", "out/requests.parquet has no column 'request'"),
        ("summary.json", b"{", "out/summary.json is not JSON"),
        ("summary.json", b"[]", "out/summary.json has no key 'requests'"),
        ("scenario.toml", None, "out/scenario.toml does not exist"),
    ],
)
def test_a_damaged_run_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | str | None, told: str
) -> None:
    folder.write_run(make_run(10, rate=14.0), here / "out", scenario="")
    path = here / "out" / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pd.DataFrame({"x": np.arange(3)}).to_parquet(path)
    assert told in refused(capsys, "report", "out")


@pytest.mark.parametrize("name", ["absent", "small.csv", "empty"])
def test_what_holds_no_result_is_told(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path("empty").mkdir()
    told = refused(capsys, "report", name)
    assert f"{name} holds no result; a page is made again of a run, sweep, plan" in told


@pytest.mark.parametrize("text", ["", "a = 1\n", "= 1\n", 'version = "1"\nlisted = 1\nseeds = [0]\n'])
def test_a_damaged_sweep_is_told(here: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("out").mkdir()
    Path("out/sweep.toml").write_text(text)
    assert "out/sweep.toml" in refused(capsys, "report", "out")


def test_a_damaged_plan_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    for text in ("{", "[]", "{}"):
        Path("out/plan.json").write_text(text)
        assert "out/plan.json" in refused(capsys, "report", "out")


def test_a_mistyped_slo_makes_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown metric 'tft'" in refused(capsys, *SWEEP, "--slo", "tft=1", "--out", "out")
    assert not Path("out").exists()


def test_the_error_is_an_input_error(here: Path) -> None:
    with pytest.raises(InputError):
        folder.write_page(here)
