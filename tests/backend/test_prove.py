"""`python -m backend.prove`: it ends in time, and killed at any moment its files are whole and hold what was done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S, wait_for

from backend.prove import outcomes
from backend.prove.box import run_boxed
from backend.prove.command import cli
from backend.prove.folder import FILES, MOST_BYTES, ProveFolder
from backend.prove.run import ProveRun
from backend.prove.stages import ROOT, STAGES, ProvePlace, box_s, chosen
from backend.prove.table import WIDTH, lines
from traces.schema import InputError

NAMES = [stage.name for stage in STAGES]
FAKE_RUN = """
import sys, time
from dataclasses import replace
from pathlib import Path
from backend.prove.folder import ProveFolder
from backend.prove.run import ProveRun
from backend.prove.stages import STAGES, ProvePlace

out, work, hangs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
QUICK = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"
HANGING = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(10**4)"

def command(name):
    def made(place, _box_s):
        if name == hangs:
            return [sys.executable, "-c", HANGING, str(place.file("pid"))]
        return [sys.executable, "-c", QUICK, str(place.file(f"{name}.done"))]
    return made

stages = [replace(stage, command=command(stage.name)) for stage in STAGES]
ProveRun(ProvePlace("cpu", True, work), ProveFolder(out), stages, 10**5, print, time.monotonic()).run()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def summary_of(folder: Path) -> dict[str, outcomes.Document]:
    document: dict[str, outcomes.Document] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return document


def alive(process: int) -> bool:
    """Is it there, and no zombie?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux")
@pytest.mark.parametrize("hangs", NAMES)
def test_killed_in_a_stage_the_files_are_whole_and_hold_what_was_done(hangs: str, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", FAKE_RUN, str(out), str(work), hangs],
        env=environment(), stdout=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    wait_for(lambda: (work / "pid").is_file() and (work / "pid").read_text())
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(PATIENCE_S)
    left = int((work / "pid").read_text())
    wait_for(lambda: not alive(left))
    summary = summary_of(out)
    states = [stage["state"] for stage in summary["stages"]]
    at = NAMES.index(hangs)
    assert states == ["done"] * at + ["running"] + ["waiting"] * (len(NAMES) - at - 1)
    assert not summary["finished"]
    assert lines(summary)
    assert {path.name for path in out.iterdir()} <= set(FILES)


def test_a_signal_to_end_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(
        [sys.executable, "-m", "backend.prove", "--device", "cpu", "--small", "--out", str(out), "--stages", "smoke"],
        env=environment(), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: (out / "summary.json").is_file() and summary_of(out)["stages"][0]["state"] == "running")
    run.terminate()
    _, told = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130, told
    (smoke,) = summary_of(out)["stages"]
    assert (smoke["state"], smoke["reason"]) == ("cut", "stopped by a signal")


# ---- in time --------------------------------------------------------------------------------------------------------


def boxed(code: str, box: float, folder: Path) -> tuple[int, bool, str]:
    """(status, cut, standard output) of a Python text in a box."""
    outputs = (folder / "out", folder / "err")
    ended = run_boxed(
        [sys.executable, "-c", code], box, outputs, cwd=folder, env=environment(), tick=lambda: None
    )  # fmt: skip
    return ended.status, ended.cut, outputs[0].read_text()


def test_a_box_ends_what_it_holds(tmp_path: Path) -> None:
    assert boxed("print('quick')", PATIENCE_S, tmp_path) == (0, False, "quick\n")
    assert boxed("raise SystemExit(3)", PATIENCE_S, tmp_path)[:2] == (3, False)
    polite = "import time\ntry:\n    time.sleep(1e4)\nexcept KeyboardInterrupt:\n    print('asked')"
    status, cut, text = boxed(polite, 4.0, tmp_path)
    assert cut
    assert (status, "asked" in text) in ((0, True), (-signal.SIGKILL, False))  # asked in time, where a CPU was free
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(1e4)"
    assert boxed(deaf, 0.5, tmp_path)[:2] == (-signal.SIGKILL, True)


def test_a_box_ends_what_its_process_started(tmp_path: Path) -> None:
    code = "import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1e4)']).pid)"
    _, _, text = boxed(code, PATIENCE_S, tmp_path)
    wait_for(lambda: not alive(int(text)))


@given(st.lists(st.floats(0.0, 1.0), min_size=len(STAGES), max_size=len(STAGES)), st.floats(1.0, 1e5))
def test_boxes_never_exceed_what_is_left_and_later_stages_get_what_is_unused(used: list[float], left_s: float) -> None:
    planned = [left_s * stage.share_s / sum(one.share_s for one in STAGES) for stage in STAGES]
    for at, share in enumerate(used):
        box = box_s(STAGES, at, left_s)
        assert planned[at] * (1 - 1e-9) <= box <= left_s * (1 + 1e-9)
        left_s -= share * box
    assert box_s(STAGES, len(STAGES) - 1, 7.0) == pytest.approx(7.0)


def test_a_stage_whose_share_is_too_small_says_so(tmp_path: Path) -> None:
    """One that has nothing to do says that first."""
    place, done = ProvePlace("cpu", True, tmp_path), "calibrate has written its profile"
    place.file("profile").mkdir()
    run = ProveRun(place, ProveFolder(tmp_path / "out"), STAGES, 1.0, lambda _: None, time.monotonic())
    run.run()
    reasons = {stage["name"]: stage["reason"] for stage in summary_of(tmp_path / "out")["stages"]}
    assert reasons.pop("fit") == done
    assert set(reasons.values()) == {"its share of what is left is 0.0 s, less than 2"}


@pytest.mark.rehearsal
def test_the_whole_rehearsal_on_a_cpu(tmp_path: Path) -> None:
    """Every stage, small: each runs, and all files say so; no CPU that others share is asked to be fast."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "backend.prove", "--device", "cpu", "--small", "--out", str(out), "--budget-s",
         "10000"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    summary = summary_of(out)
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert list(stages) == NAMES
    assert summary["finished"]
    assert {stage["state"] for stage in stages.values()} <= {"done", "skipped"}, done.stdout
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert all(path.stat().st_size <= MOST_BYTES for path in out.iterdir())
    smoke = {line["name"]: line for line in stages["smoke"]["result"]["operations"]}
    assert {line["state"] for line in smoke.values()} == {"ok", "skipped"}, smoke
    assert smoke["CUDA graph, captured and replayed"]["reason"] == "CUDA graphs need CUDA"
    assert stages["tests"]["result"]["counts"]["failed"] == 0
    bench = json.loads((out / "bench.json").read_text())
    assert {row["group"] for row in bench["rows"]} >= {"copy", "decode", "prefill", "step", "cliff", "gemm", "swap"}
    assert stages["calibrate"]["result"]["journal_entries"] > 0
    with tarfile.open(out / "profile.tgz") as archive:
        meta = archive.extractfile("profile/profile.toml")
        assert meta is not None
        assert tomllib.loads(meta.read().decode())["gpu"] == "cpu"
    assert stages["validate"]["result"]["twin"]["identical"]
    assert "profile" in stages["validate"]["command"][-3]
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    assert done.stdout.startswith("stage ")


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cuda"], "this machine has 0 CUDA devices"),
        (["--device", "tpu", "--small"], "device 'tpu' is unknown"),
        (["--device", "cpu"], "on a CPU there is only --small"),
        (["--device", "cpu", "--small", "--stages", "smoke,fly"], "--stages names 'fly'; known are prepare, smoke"),
        (["--device", "cpu", "--small", "--stages", ","], "--stages names none; known are prepare, smoke"),
        (["--device", "cpu", "--small", "--budget-s", "3"], "--budget-s is 3, and the stages need at least 10"),
        (["--device", "cpu", "--small", "--budget-s", "nan"], "--budget-s is nan"),
        (["--device", "cpu", "--small", "--budget-s", "1e9"], "at most 86400"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(words: list[str], sentence: str, tmp_path: Path) -> None:
    import torch

    if words == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(InputError, match=sentence):
        cli(["--out", str(tmp_path / "out"), *words], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("toml", "words", "sentence"),
    [
        (False, [], "is no profile, for it has no profile.toml"),
        (True, ["--stages", "fit,smoke"], "leave calibrate and"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(toml: bool, words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    if toml:
        (tmp_path / "mine" / "profile.toml").write_text('gpu = "cpu"\n')
    how = ["--device", "cpu", "--small", "--profile", str(tmp_path / "mine"), *words]
    with pytest.raises(InputError, match=sentence):
        cli(["--out", str(tmp_path / "out"), *how], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "simpy" else find(name))
    with pytest.raises(InputError, match="the stages need simpy, not installed here"):
        cli(["--out", str(tmp_path / "out"), "--device", "cpu", "--small"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the folder"):
        ProveFolder(tmp_path / "file")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds summary.json of another run"):
        ProveFolder(tmp_path)


# ---- the files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ProveFolder]:
    made = ProveFolder(tmp_path / "out")
    yield made
    assert all(path.name in FILES and path.stat().st_size <= MOST_BYTES for path in made.path.iterdir())


def test_a_journal_that_is_too_long_ends_at_a_line(folder: ProveFolder, tmp_path: Path) -> None:
    source = tmp_path / "long"
    line = b'{"a": "' + b"x" * 991 + b'"}\n'
    source.write_bytes(line * 5000)
    folder.copy(source, "journal.jsonl")
    kept = (folder.path / "journal.jsonl").read_bytes()
    assert MOST_BYTES - len(line) < len(kept) <= MOST_BYTES
    assert len(kept) % len(line) == 0
    assert "journal.jsonl" in folder.left_out
    source.write_bytes(line)
    folder.copy(source, "journal.jsonl")
    assert (folder.path / "journal.jsonl").read_bytes() == line
    assert folder.left_out == {}


def test_an_archive_takes_what_has_room(folder: ProveFolder, tmp_path: Path) -> None:
    source = tmp_path / "validate"
    source.mkdir()
    (source / "large.bin").write_bytes(os.urandom(MOST_BYTES))
    (source / "validate.json").write_text("{}")
    folder.pack(source, "validate.tgz", first=("validate.json",))
    with tarfile.open(folder.path / "validate.tgz") as archive:
        assert archive.getnames() == ["validate/validate.json"]
    assert folder.left_out == {"validate.tgz": "without large.bin, for want of room"}


def test_what_is_too_large_is_left_out_and_told(folder: ProveFolder) -> None:
    folder.put("bench.json", b"small")
    folder.put("bench.json", b"x" * (MOST_BYTES + 1))
    assert (folder.path / "bench.json").read_bytes() == b"small"
    assert "more than" in folder.left_out["bench.json"]


# ---- what stages left -----------------------------------------------------------------------------------------------


def test_stages_are_found_by_name() -> None:
    assert [stage.name for stage in chosen("tests, prepare")] == ["prepare", "tests"]
    assert chosen("") == list(STAGES)
    assert set(outcomes.READERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_left_nothing_has_no_result_and_a_line(name: str, tmp_path: Path) -> None:
    result = outcomes.READERS[name](tmp_path)
    stage = {"name": name, "state": "cut", "box_s": 1.0, "seconds": 1.0, "finding": "", "reason": "late"}
    shown = lines({"stages": [{**stage, "result": result}], "bars": [], "left_out": {}})
    assert "late" in shown[1]
    (long,) = lines({"stages": [], "bars": [], "left_out": {"profile.tgz": "w" * 2 * WIDTH}})[1:]
    assert (len(long), long[-4:]) == (WIDTH, " ...")


def test_tests_under_way_do_not_count(tmp_path: Path) -> None:
    """As xdist prints them, and as one process does; names may hold blanks."""
    (tmp_path / "tests.stdout").write_text(
        "tests/a.py::test_begun[cuda-two words] \n"
        "[gw0] [  1%] PASSED tests/a.py::test_done[cuda-two words] \n"
        "tests/a.py::test_alone[x] SKIPPED (no card)   [ 50%]\n"
        "[gw1] [ 99%] FAILED tests/a.py::test_wrong[bf16, 3 rows] \n"
        "ERROR tests/b.py - ModuleNotFoundError: No module named 'ray'\n"
        "FAILED tests/a.py::test_wrong[bf16, 3 rows] - assert 1 == 2\n"
    )
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="test_begun[cuda-two words]"/>'
        '<testcase classname="tests.a" name="test_wrong[bf16, 3 rows]"><failure message="assert 1 == 2"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = outcomes.tests(tmp_path)
    assert found["counts"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert found["failed"] == ["tests/a.py::test_wrong[bf16, 3 rows]: assert 1 == 2", "tests/b.py: "]


def test_benchmarks_are_merged_and_a_measured_bar_wins() -> None:
    def document(rows: int, state: str, found: float | None) -> outcomes.Document:
        bar = {"name": "decode", "asked": "", "state": state, "found": found, "why": ""}
        return {"schema": "s", "bars": [bar], "rows": [{}] * rows, "cliffs": {}, "unfinished": {}, "clocks": {},
                "seconds": 2.0, "finished": state == "met"}  # fmt: skip

    whole = outcomes.merged([document(1, "not measured", None), document(2, "met", 4.2)])
    assert whole is not None
    assert (len(whole["rows"]), whole["seconds"], whole["finished"]) == (3, 4.0, False)
    assert [(bar["state"], bar["found"]) for bar in whole["bars"]] == [("met", 4.2)]
    assert outcomes.merged([]) is None


def test_a_validation_is_held_against_the_profile_just_made(tmp_path: Path) -> None:
    (stage,) = chosen("validate")
    place = ProvePlace("cuda", False, tmp_path)
    assert "--profile" not in stage.command(place, 60.0)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.toml").write_text('gpu = "h200"\n')
    words = list(stage.command(place, 60.0))
    assert words[words.index("--profile") + 1] == str(tmp_path / "profile")
    assert words[words.index("--gpu") + 1] == "h200"


def test_without_pytest_the_tests_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (stage,) = chosen("tests")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert stage.command(ProvePlace("cuda", False, tmp_path), 60.0) == "pytest is not installed"
