"""A results folder is a transaction: whenever its writer is killed, it is the old result or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_kit import refused, sim
from folder_killer import new_run
from patience import PATIENCE_S
from report_samples import make_run

import traces
from sim import api, scenario
from sim.cli import validation as command  # before anything is patched that it imports
from sim.report import folder
from sim.results import files, run_id
from sim.results import folder as results_folder
from sim.results import transaction as claim
from sim.results.tables import RUN_FILES, RunTables
from traces.schema import InputError

assert command
ROOT = Path(__file__).parents[2]
KITS = ROOT / "tests" / "kits"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(KITS)])}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{0.02 * at:.2f},{100 + 37 * at % 300},{5 + 11 * at % 50}\n" for at in range(30))
    Path("small.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return tmp_path


def write_old(out: Path) -> None:
    """A run with answers, which the new one has not, beside a file of the user's own."""
    folder.write_run(make_run(30, rate=14.0), out, scenario="old = 1\n", answers=pd.DataFrame({"request": [0]}))
    (out / "notes.txt").write_text("mine")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != claim.LOCK}


def whole(out: Path, mine: bytes = b"mine") -> dict[str, bytes]:
    """The files of a result, without the user's own, which must be there."""
    found = contents(out)
    assert found.pop("notes.txt") == mine
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """(the old run, the new one, the folders whose writers were killed)."""
    where = tmp_path_factory.mktemp("killed")
    write_old(where / "old")
    folder.write_run(new_run(), where / "new", scenario="new = 1\n")
    (where / "at").mkdir()
    words = [sys.executable, str(KITS / "folder_killer.py"), str(where / "old"), str(where / "at")]
    subprocess.run(words, env=ENVIRONMENT, check=True, timeout=PATIENCE_S)
    return where / "old", where / "new", sorted((where / "at").iterdir(), key=lambda path: int(path.name))


def test_killed_at_any_moment_the_folder_is_the_old_run_or_the_new(killed: tuple[Path, Path, list[Path]]) -> None:
    old, new, folders = killed
    before, after = whole(old), contents(new)
    assert len(folders) > 30
    ids = {run_id.mark_of(old / "summary.json"), run_id.mark_of(new / "summary.json")}
    assert len(ids) == 2
    seen, run = [], new_run()
    for out in folders:
        found = {name: run_id.mark_of(out / name) for name in RUN_FILES if (out / name).exists()}
        assert len(set(found.values())) <= 1, f"two runs stand side by side in {out}: {found}"
        kept = RunTables.read(out)
        assert kept.mark in ids
        assert whole(out) in (before, after)
        seen.append(whole(out) == after)
        if len(seen) % 4 == 0:
            folder.write_run(run, out, scenario="new = 1\n")
        else:
            files.write_file(out / "notes.txt", files.text("mine"))
        assert not [name for name in os.listdir(out) if name.startswith(".")]
        assert whole(out) == after or len(seen) % 4
    assert seen == sorted(seen)  # first the old one, and from some moment on the new one
    assert seen.count(False) > 10
    assert seen.count(True) > 10


@pytest.mark.parametrize("once", [True, False])
def test_a_rename_that_fails_leaves_the_old_run_or_the_new(
    here: Path, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    """Once: the folder is one run at once, and nothing else stands in it. Again and again: as soon as it works."""
    write_old(here / "old")
    folder.write_run(new_run(), here / "new", scenario="new = 1\n")
    before, after = whole(here / "old"), contents(here / "new")
    replace: Callable[..., None] = os.replace
    run = new_run()
    for at in range(1, 20):
        out = here / f"at{at}"
        shutil.copytree(here / "old", out)
        calls = [0]

        def failing(source: Any, target: Any, at: int = at, calls: list[int] = calls) -> None:
            calls[0] += 1
            if calls[0] == at or (not once and calls[0] > at):
                raise OSError(5, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        told = ""
        try:
            folder.write_run(run, out, scenario="new = 1\n")
        except InputError as error:
            told = str(error)
        monkeypatch.setattr(os, "replace", replace)
        if not once:
            RunTables.read(out)
        assert whole(out) == (before if at == 1 else after)
        assert sorted(os.listdir(out)) == sorted([*(before if at == 1 else after), "notes.txt"])
        if calls[0] < at:
            break
        assert ("Input/output error" in told) == (at == 1 or not once)
    assert at > 7  # without a Perfetto trace, which is written when it is asked for


def test_what_earlier_versions_left_goes(here: Path) -> None:
    write_old(here / "out")
    (here / "out" / ".requests.parquet.4242.part").write_text("half")
    (here / "out" / ".mine.4242.part").write_text("mine")
    folder.write_run(new_run(), here / "out", scenario="")
    assert [name for name in os.listdir("out") if name.startswith(".")] == [".mine.4242.part"]


def test_one_writer_at_a_time(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told before it has simulated, and a lock whose holder was killed is none."""
    write_old(here / "out")
    before = whole(here / "out")
    holding = (
        "import sys, time; from pathlib import Path; from sim.results.transaction import Claim\n"
        "taken = Claim(Path('out')); print('taken', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holding], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"taken\n"
    monkeypatch.setattr(claim, "WAIT_S", 0.0)
    monkeypatch.setattr(files, "WAIT_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(api, "run", lambda *_, **__: pytest.fail("it was simulated"))
        told = refused(capsys, "run", "--trace", "small.csv", "--out", "out")
    assert "out is in use by another command" in told
    with pytest.raises(InputError, match="in use"):
        folder.write_run(new_run(), here / "out", scenario="")
    assert whole(here / "out") == before
    process.kill()
    process.communicate()
    assert sim(capsys, "run", "--trace", "small.csv", "--out", "out", "--quiet")[0] == 0
    assert claim.LOCK not in os.listdir("out")


@pytest.mark.parametrize("name", [*RUN_FILES[:5], "report.html", "trace.perfetto.json"])
def test_a_mixture_is_refused(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Of any file that a run writes; the sentence names two files and both ids."""
    folder.write_run(make_run(30, rate=14.0), here / "out", scenario="a", perfetto=True)
    folder.write_run(new_run(), here / "other", scenario="b", perfetto=True)
    ids = [run_id.mark_of(here / one / "summary.json") for one in ("out", "other")]
    shutil.copy(here / "other" / name, here / "out" / name)
    told = refused(capsys, "report", "out")
    assert "out mixes two results" in told
    assert all(one in told for one in (name, *ids))


def test_a_mixture_of_a_sweep_and_of_a_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, rate in (("a", 5.0), ("b", 6.0)):
        api.sweep(trace="small.csv", rate=[rate], workers=1, out=out)
        with results_folder.taken(here / f"plan-{out}", "plan") as taken:
            document = {key: [] for key in folder.PLAN_KEYS} | {"rate": rate}
            taken.write(
                {"plan.json": run_id.document(document, run_id.digest(document)), "report.html": files.text("")}
            )
    shutil.copy("b/sweep.parquet", "a/sweep.parquet")
    assert "sweep.toml has the run id" in refused(capsys, "report", "a")
    assert "plan-a mixes two results: plan.json has the run id" in refused(capsys, "report", "plan-a")


def test_a_run_without_ids_is_taken_with_a_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As earlier versions wrote them; the same command again gives it ids, and one file of a new run is no such run."""
    sim(capsys, "run", "--trace", "small.csv", "--out", "out", "--quiet")
    shutil.copytree("out", "new")
    for path in Path("out").iterdir():
        if path.suffix == ".parquet":
            pd.read_parquet(path).to_parquet(path)
        elif path.suffix != ".json":
            path.write_text(path.read_text().replace(run_id.KEY, "no_id"))
        else:
            path.write_text(json.dumps({**json.loads(path.read_text()), run_id.KEY: "", "otherData": {}}))
    code, _, told = sim(capsys, "report", "out")
    assert code == 0
    assert "out is from an earlier version, without run ids" in told
    shutil.copy("new/requests.parquet", "out/requests.parquet")
    assert "has no run id" in refused(capsys, "report", "out")
    assert sim(capsys, "run", "--trace", "small.csv", "--out", "out", "--quiet")[0] == 0
    assert run_id.check_one(Path("out"), RUN_FILES) == run_id.mark_of(Path("new/summary.json"))


def test_the_same_run_twice_is_the_same_bytes(here: Path) -> None:
    for out in ("a", "b"):
        run = api.run(trace="small.csv", kv_blocks=60)
        folder.write_run(run, Path(out), scenario=scenario.dump(run.scenario))
    one, other = contents(Path("a")), contents(Path("b"))
    for name in ("summary.json", "report.html"):  # which tell how fast the simulation was
        assert len(one.pop(name)) + len(other.pop(name)) > 1000
    assert one == other
    assert run_id.check_one(Path("a"), RUN_FILES) == run_id.check_one(Path("b"), RUN_FILES)
    run = api.run(trace="small.csv", kv_blocks=60, seed=1, rate=5.0)
    folder.write_run(run, Path("c"), scenario=scenario.dump(run.scenario))
    assert run_id.mark_of(Path("a/summary.json")) != run_id.mark_of(Path("c/summary.json"))


def test_the_id_is_of_every_value() -> None:
    """Of numbers, texts, lists and what is missing; not of how a frame was made."""
    frame = pd.DataFrame({"x": [1.0, float("nan")], "text": ["a", None], "ids": [[1, 2], [3]], "flag": [True, False]})
    first = run_id.digest(frame)
    assert first == run_id.digest(frame.copy())
    for name, value in (("x", 2.0), ("text", "b"), ("ids", [1, 3]), ("flag", False)):
        other = frame.copy()
        other.at[0, name] = value
        assert run_id.digest(other) != first, name
    assert run_id.digest(frame[["text", "x", "ids", "flag"]]) != first
    assert run_id.digest("ab", "c") != run_id.digest("a", "bc")


@pytest.mark.parametrize("name", ["scenario.toml", "report.html", "summary.json"])
def test_files_of_the_users_own_are_not_written_over(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A folder that holds no run, but a file by the name of one of a run's: such as `--out .` beside a scenario."""
    Path(name).write_text("{}")
    told = refused(capsys, "run", "--trace", "small.csv", "--out", ".", "--quiet")
    assert name in told
    assert contents(here) == {name: b"{}", "small.csv": Path("small.csv").read_bytes()}


def test_an_answers_file_of_the_users_own_stays(here: Path) -> None:
    folder.write_run(new_run(), here / "out", scenario="")
    pd.DataFrame({"mine": [1]}).to_parquet("out/answers.parquet")
    folder.write_run(new_run(), here / "out", scenario="")
    assert pd.read_parquet("out/answers.parquet")["mine"].tolist() == [1]


COMMANDS = {
    "run": ["run", "--trace", "small.csv"],
    "compare": ["compare", "--trace", "small.csv", "--policy", "sjf,chunked"],
    "sweep": ["sweep", "--trace", "small.csv", "--rate", "1,2", "--workers", "1"],
    "plan": ["plan", "--trace", "small.csv", "--slo", "ttft=1"],
    "validate": ["validate", "--trace", "small.csv", "--device", "cpu", "--model", "tiny-llama"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_known_first(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Path("taken").write_text("a file")
    for name in ("run", "simulate", "plan", "on_device"):
        monkeypatch.setattr(api, name, lambda *_, **__: pytest.fail("it was computed"))
    told = refused(capsys, *COMMANDS[command], "--out", "taken/out", "--quiet")
    assert "cannot write taken/out" in told
    assert "Not a directory" in told


def test_a_trace_that_cannot_be_written_is_known_first(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "read", lambda *_, **__: pytest.fail("it was read"))
    Path("folder.csv").mkdir()
    for out, told in (
        ("absent/x.csv", "No such file"),
        ("small.csv/x.csv", "Not a directory"),
        ("folder.csv", "it is a folder"),
        ("x.txt", "the name must end in"),
    ):
        assert told in refused(capsys, "trace", "convert", "small.csv", out)
        assert told in refused(capsys, "trace", "synth", "requests", out, "--count", "3", "--rate", "1")
    assert sorted(os.listdir()) == ["folder.csv", "small.csv"]


def test_a_page_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write_run(new_run(), here / "out", scenario="")
    Path("out", claim.LOCK).mkdir()
    assert "cannot write out" in refused(capsys, "report", "out")
