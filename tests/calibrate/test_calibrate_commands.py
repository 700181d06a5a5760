"""`calibrate`'s commands as a user types them: what each prints and writes, and refuses before it writes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import PATIENCE_S
from profile_kit import llama_profile

from calibrate import device
from calibrate.cli import cli
from sim.cost.profile import Profile, find, write
from sim.cost.tables import Table
from traces.schema import InputError

SMALL = ("--gpu", "cpu", "--max-tokens", "64", "--max-rows", "4", "--max-context", "128", "--quiet")


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def refused(*words: object) -> str:
    done = command(*words)
    assert isinstance(done.exception, InputError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A profile of an H100 in which one product is four times its neighbours."""
    made = llama_profile(1.3)
    rows = [dict(row) for row in made.tables["gemm"].rows()]
    (odd,) = [row for row in rows if (row["k"], row["n"], row["tokens"]) == (4096, 6144, 64)]
    odd["us"] = 4.0 * float(odd["us"])
    kept = [{key: value for key, value in row.items() if key != "origin"} for row in rows]
    write(replace(made, tables={**made.tables, "gemm": Table.of("gemm", kept)}), tmp_path / "h100-mine")
    return tmp_path / "h100-mine"


# ---- a profile of another GPU -------------------------------------------------------------------------------------


def test_a_profile_is_scaled_to_another_gpu(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("derive", "--from", measured, "--to", "h200")
    assert done.exception is None, done.output
    (folder,) = tmp_path.glob("h200-from-*")
    assert done.stderr == f"wrote {folder.name}\n"
    assert "Derived from another GPU's measurements by data-sheet ratios" in " ".join(done.stdout.split())
    made = find(str(folder))
    assert (made.meta.kind, made.meta.gpu, made.meta.name) == ("derived", "h200", folder.name)
    assert "already" in refused("derive", "--from", measured, "--to", "h200", "--out", folder)
    there = Profile(replace(made.meta, name="truth", kind="measured"), dict(made.tables))
    write(there, tmp_path / "truth")
    again = ("derive", "--from", measured, "--to", "h200", "--out", folder, "--check", tmp_path / "truth", "--replace")
    assert command(*again).exception is None
    assert find(str(folder)).meta.accuracy["gemm"].mean == pytest.approx(0.0, abs=1e-5)


def test_rows_that_neighbours_contradict_are_listed(measured: Path) -> None:
    lines = command("check", measured).stdout.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("suspect ")] == ["suspect gemm: dtype bf16"]
    assert "tokens 64" in next(line for line in lines if line.startswith("suspect "))


# ---- what is measured ---------------------------------------------------------------------------------------------


def test_a_plan_is_told_in_lines() -> None:
    lines = command(*SMALL, "--dry-run", "--layers", "3").stdout.splitlines()
    told = dict(line.split(": ", 1) for line in lines)
    assert float(told["expected_s"]) > 0.0
    assert "'rows': 4" in told["limits"]
    assert "tiny-llama@3" in lines[-1] or any("tiny-llama@3" in line for line in lines)


@pytest.mark.parametrize("limit", [("--max-context", "32"), ("--max-tokens", "-1"), ("--max-rows", "-1")])
def test_limits_that_hold_no_case_are_refused(limit: tuple[str, str]) -> None:
    done = command("--gpu", "cpu", "--dry-run", *limit)
    assert done.exit_code != 0
    assert not done.stdout


def test_without_torch_it_says_what_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from calibrate.cli import main; main()"
    words = [sys.executable, "-c", code, *SMALL, "--out", str(tmp_path / "p")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (2, "error: measuring needs the package torch: install foretoken[live]\n")
    assert list(tmp_path.iterdir()) == []


def test_one_gpu_has_no_collectives_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured: the bench that would be next is never made."""

    def none(*_: object) -> None:
        raise InputError("as far as that")

    monkeypatch.setattr("calibrate.collectives.nothing_to_measure", lambda *_, **__: "one GPU is here")
    monkeypatch.setattr("calibrate.harness.Harness", none)
    done = command("--gpu", "cpu", "--max-tokens", "64", "--max-rows", "4", "--max-context", "128", "--out",
                   tmp_path / "p")  # fmt: skip
    assert str(done.exception) == "as far as that"
    first, second = done.stderr.splitlines()[:2]
    assert first == "one GPU is here"
    assert second.startswith(f"measuring {device.target('cpu').name}, about ")
