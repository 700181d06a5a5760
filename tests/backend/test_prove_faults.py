"""What goes wrong within `python -m backend.prove`: each stage, operation and file is told, and the rest goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from patience import PATIENCE_S

from backend.prove import outcomes, stages, table
from backend.prove.command import cli
from backend.prove.folder import MOST_BYTES, ProveFolder
from backend.prove.run import ProveRun
from backend.prove.smoke import driver, worker
from backend.prove.smoke.case import SmokeCase, SmokeGround, SmokeResult, distance
from backend.prove.stages import ROOT, STAGES, ProvePlace
from traces.schema import InputError

# ---- stages ---------------------------------------------------------------------------------------------------------


def staged(tmp_path: Path, *codes: str, budget_s: float) -> dict[str, Any]:
    """The summary's stages of a run of Python texts, the last of which has the largest share."""
    made = [
        replace(STAGES[at], share_s=10.0**at, command=lambda _place, _box_s, code=code: [sys.executable, "-c", code])
        for at, code in enumerate(codes)
    ]
    folder = ProveFolder(tmp_path / "out")
    work = tmp_path / "work"
    work.mkdir()
    ProveRun(ProvePlace("cpu", True, work), folder, made, budget_s, lambda _: None, time.monotonic()).run()
    told = json.loads((folder.path / "summary.json").read_text())["stages"]
    return {stage["name"]: stage for stage in told}


def test_a_stage_that_fails_says_its_last_words(tmp_path: Path) -> None:
    found = staged(tmp_path, "print('early'); raise SystemExit('no such card')", "raise SystemExit(7)", budget_s=1e4)
    assert (found["prepare"]["state"], found["prepare"]["reason"]) == ("failed", "status 1: no such card")
    assert (found["smoke"]["state"], found["smoke"]["reason"]) == ("failed", "status 7: no message")


def test_a_stage_that_its_box_ends_is_cut(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1e4)"
    found = staged(tmp_path, deaf, budget_s=8.0)
    assert (found["prepare"]["state"], found["prepare"]["status"]) == ("cut", -9)
    assert found["prepare"]["reason"] == f"its {found['prepare']['box_s']:.0f} s were over"


def words(name: str, place: ProvePlace) -> Sequence[str] | str:
    (stage,) = stages.chosen(name)
    return stage.command(place, 100.0)


def test_what_stages_run_on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that no CPU runs; the options are those that each takes."""
    card, work = ProvePlace("cuda", False, tmp_path), " ".join
    assert "--gpu auto --models llama-3.1-8b --dtype bf16" in work(words("calibrate", card))
    assert "--models tiny-llama" in work(words("calibrate", replace(card, small=True)))
    assert words("fit", card) == "there is no journal"
    (tmp_path / "profile.journal.jsonl").write_text("{}\n")
    assert work(words("fit", card)[2:5]) == f"calibrate.cli fit {tmp_path / 'profile.journal.jsonl'}"
    validated = work(words("validate", card))
    assert "--model llama-3.1-8b" in validated
    assert "--profile" not in validated
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.toml").write_text('gpu = "h200"\n')
    assert f"--profile {tmp_path / 'profile'} --gpu h200" in work(words("validate", card))
    find = stages.importlib.util.find_spec
    known = {"xdist": object(), "pytest_timeout": object()}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: known.get(name) or find(name))
    tested = words("tests", card)
    assert tested[0] == "env"
    assert "-n 8 --dist load --timeout 60 -m gpu --continue-on-collection-errors tests/backend" in work(tested)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    assert words("tests", card) == f"no tests beside the source: {tmp_path / 'tests'} is absent"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert words("tests", card) == "pytest is not installed"


def test_a_profile_made_before_is_validated_against(tmp_path: Path) -> None:
    """Its copy is packed, and neither calibrate nor fit is among the stages; no time is left for those that are."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "profile.toml").write_text('gpu = "cpu"\n')
    options = ["--device", "cpu", "--small", "--profile", str(mine), "--budget-s", "10", "--out", str(out)]
    code = "import backend.prove.run as run; run.LEAST_BOX_S = 1e9; from backend.prove.command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "summary.json").read_text())["stages"]
    assert [stage["name"] for stage in told] == [one.name for one in STAGES if one.name not in ("calibrate", "fit")]
    assert {stage["state"] for stage in told} == {"skipped"}
    with tarfile.open(out / "profile.tgz") as archive:
        assert archive.getnames() == ["profile/profile.toml"]


def test_what_a_device_has_no_use_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.cache.memory.check_device", torch.device)
    with pytest.raises(InputError, match="device 'mps' is not supported; known are cpu and cuda"):
        cli(["--out", str(tmp_path / "out"), "--device", "mps"], standalone_mode=False)
    find = stages.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else find(name))
    with pytest.raises(InputError, match="which need the package triton, not installed here"):
        cli(["--out", str(tmp_path / "out"), "--device", "cuda", "--cache", str(tmp_path)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


# ---- what stages left -----------------------------------------------------------------------------------------------


def test_a_whole_document_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    folder = ProveFolder(tmp_path / "out")
    (tmp_path / "tests.xml").write_bytes(b"x" * (MOST_BYTES + 1))
    folder.copy(tmp_path / "tests.xml", "tests.xml")
    assert folder.left_out == {"tests.xml": "more than 4,000,000 bytes"}
    assert list(folder.path.iterdir()) == []


def test_outputs_that_were_cut_tell_what_they_can(tmp_path: Path) -> None:
    (tmp_path / "fit.stdout").write_text('wrote {"errors": 1')
    assert outcomes.READERS["fit"](tmp_path) == {}
    (tmp_path / "tests.stdout").write_text("tests/a.py::test_wrong FAILED [ 50%]\n")
    (tmp_path / "tests.xml").write_text("<testsuites><tests")
    assert outcomes.tests(tmp_path)["failed"] == ["tests/a.py::test_wrong: "]


def test_of_many_failures_the_first_are_shown() -> None:
    failed = [{"name": f"case {at}", "state": "failed", "reason": "off"} for at in range(table.MOST_FAILURES + 3)]
    smoke = {"name": "smoke", "state": "done", "box_s": 1.0, "seconds": 1.0, "finding": "", "reason": ""}
    lines = table.lines({"stages": [{**smoke, "result": {"operations": failed}}], "bars": [], "left_out": {}})
    assert sum(line.startswith("smoke case ") for line in lines) == table.MOST_FAILURES
    assert lines[-1] == "and 3 more failures, in summary.json"


# ---- operations -----------------------------------------------------------------------------------------------------

WORKER = """#!{python}
import json, os, signal, sys, time
for name in json.loads(sys.argv[-1]):
    print(json.dumps({{"operation": name, "state": "begun"}}), flush=True)
    if name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("ends"):
        print("a trap of the driver")
        sys.exit(3)
    if name.startswith("hangs"):
        time.sleep(1e4)
    print(json.dumps({{"operation": name, "state": "ok"}}), flush=True)
"""


@pytest.fixture
def smoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lines by name of a run whose processes do what the names of operations say."""
    script = tmp_path / "worker"
    script.write_text(WORKER.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(driver.sys, "executable", str(script))

    def run(*names: str, most_s: float = PATIENCE_S, left_s: float = 1e4) -> dict[str, Any]:
        made = driver.SmokeRun(names, tmp_path / "smoke.json", "cpu", True, time.monotonic() + left_s)
        made._most_s = most_s
        made.run(1)
        told = json.loads((tmp_path / "smoke.json").read_text())
        assert told["operations"] == made.lines
        return {line["name"]: line for line in made.lines}

    return run


def test_an_operation_that_ends_its_process_is_told_and_the_others_go_on(smoked: Any) -> None:
    lines = smoked("first", "killed", "second", "ends", "third")
    assert [lines[name]["state"] for name in ("first", "second", "third")] == ["ok"] * 3
    assert lines["killed"]["reason"] == "its process ended with signal SIGKILL"
    assert lines["ends"]["reason"] == "its process ended with status 3: a trap of the driver"
    assert {lines[name]["state"] for name in ("killed", "ends")} == {"failed"}


def test_an_operation_that_hangs_is_ended(smoked: Any) -> None:
    lines = smoked("hangs", "after", most_s=10.0)
    assert (lines["hangs"]["state"], lines["hangs"]["reason"]) == ("failed", "did not end within 10 s")
    assert lines["after"]["state"] == "ok"


def test_what_the_stage_has_no_time_for_is_told(smoked: Any) -> None:
    lines = smoked("hangs", "after", left_s=6.0)
    assert lines["hangs"]["reason"] == "did not end in the time of this stage"
    assert lines["after"] == {"name": "after", "state": "skipped", "reason": "no time left"}


def ground(device: str = "cpu") -> SmokeGround:
    return SmokeGround(torch.device(device), SimpleNamespace(), (4, 2, 64), "fp32")  # type: ignore[arg-type]


def test_an_operation_that_is_off_or_raises_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: SmokeGround) -> SmokeResult:
        raise ValueError("two\n  lines")

    off = SmokeCase("off", lambda _: SmokeResult(0.25, 0.001, "a note"))
    line, alive = worker.outcome(off, ground())
    assert alive
    assert (line["state"], line["reason"]) == ("failed", "is 0.25 off, 0.001 is allowed")
    line, alive = worker.outcome(SmokeCase("raises", raises), ground())
    assert alive
    assert (line["state"], line["reason"]) == ("failed", "ValueError: two lines")
    assert distance(torch.ones(2), torch.ones(3)) == distance(torch.tensor([torch.nan]), torch.ones(1)) == float("inf")

    def lost(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    line, alive = worker.outcome(SmokeCase("raises", raises), ground("cuda"))
    assert not alive
    assert line["reason"] == "ValueError: two lines; the device was lost: CUDA error: an illegal memory access"
    line, _ = worker.outcome(replace(off, run=lambda _: SmokeResult(0.0, 0.0)), ground("cuda"))
    assert (line["state"], line["reason"]) == ("failed", "the device was lost: CUDA error: an illegal memory access")


def test_a_process_ends_where_its_device_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        worker, "all_cases", lambda: [SmokeCase(name, lambda _: SmokeResult(0.0, 0.0)) for name in "ab"]
    )
    monkeypatch.setattr(worker, "outcome", lambda case, _: ({"state": "failed"}, case.name != "a"))
    monkeypatch.setattr(worker, "for_device", lambda _: None)
    worker.work(["a", "b"], "cpu", True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["operation"], line["state"]) for line in told] == [("a", "begun"), ("a", "failed")]


def test_a_stage_without_a_file_says_so() -> None:
    done = CliRunner().invoke(driver.main, ["--device", "cpu", "--small"])
    assert done.exit_code == 2
    assert "--out is missing" in done.stderr
