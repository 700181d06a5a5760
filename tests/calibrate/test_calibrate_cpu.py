"""Calibration of this very CPU, in a small form: the whole loop, killed and gone on with, and every kind of model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_kit import LawBench
from click.testing import CliRunner, Result
from law_ops import told_time
from patience import wait_for

from calibrate import cases
from calibrate import device as devices
from calibrate.cases import Case, Range
from calibrate.cli import cli, main
from calibrate.harness import Harness
from calibrate.timed import EventClock
from sim.catalog import load_model
from sim.cost.profile import find
from sim.cost.profiled import Profiled
from sim.specs.model import ModelSpec
from traces.schema import InputError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--gpu", "cpu", "--max-tokens", "64", "--max-rows", "4", "--max-context", "128", "--quiet"]


def command(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of this CPU, made by a calibration that was killed and gone on with."""
    out = tmp_path_factory.mktemp("cpu") / "here"
    args = [sys.executable, "-m", "calibrate.cli", *SMALL, "--budget-s", "12", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    journal = out.parent / "here.journal.jsonl"
    with subprocess.Popen(args, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as first:
        wait_for(lambda: first.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") > 8))
        assert first.poll() is None, first.stderr and first.stderr.read()
        first.send_signal(signal.SIGKILL)
    assert not out.exists()
    kept = len(journal.read_bytes().splitlines())
    refused = command(*SMALL, "--budget-s", "12", "--out", str(out))
    assert isinstance(refused.exception, InputError)
    assert "--resume" in str(refused.exception)
    done = command(*SMALL, "--budget-s", "12", "--out", str(out), "--resume", "--json")
    assert done.exception is None, done.output
    assert kept > 8
    assert not journal.exists()
    assert [path.name for path in out.parent.iterdir()] == ["here"]
    return out


def test_the_profile_is_whole_and_prices_this_model_alone(folder: Path) -> None:
    profile = find(str(folder))
    assert profile.meta.synchronous
    assert {"gemm", "prefill_attention", "decode_attention", "elementwise", "launch", "host", "steps"} <= set(
        profile.tables
    )
    assert profile.meta.accuracy["gemm"].points > 0
    assert profile.meta.step_accuracy["all"].points == len(profile.tables["steps"])
    page = (folder / "report.html").read_text()
    assert "Predicted against measured" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


STEPS = [
    Case(((20, 0),)),
    Case(((16, 5),), (40, 20)),
    Case(((8, 30), (20, 0))),
    Case(decodes=(50,)),
    Case(decodes=(100, 30, 30)),
]
"""No points of the grid."""


def test_the_whole_loop_recovers_a_known_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a CPU's own seconds prove nothing: here the same operations take the seconds of a law.

    All is straight but attention over prompts, of which this coarsest grid has few points.
    """
    monkeypatch.setattr(cases, "DENSITIES", cases.DENSITIES[-1:])
    with told_time():
        done = command(*SMALL, "--budget-s", "500", "--out", str(tmp_path / "law"))
    assert done.exception is None, done.output
    profile, spec = find(str(tmp_path / "law")), load_model("tiny-llama")
    for name, told in profile.meta.accuracy.items():
        assert told.mean < (0.12 if name == "prefill_attention" else 1e-3), name
    for name, told in profile.meta.step_accuracy.items():
        assert told.max < 0.01, name
    cost, law = Profiled(spec, profile.gpu(), profile), LawBench(spec)
    for case in STEPS:
        with law.prepared(case, 0, timed=False) as measure:
            truth = measure()
        (device_s,), host_s = cost.span_s(case.shape, 1)
        assert device_s == pytest.approx(truth.device_s, rel=0.03), case
        assert host_s == pytest.approx(truth.host_s, rel=0.015), case


def test_the_harness_reads_what_operations_and_steps_take() -> None:
    spec = load_model("tiny-llama")
    with told_time():
        harness, law = Harness(spec, torch.device("cpu"), Range(64, 4, 128, 512), 0), LawBench(spec)
        for case in STEPS:
            with harness.prepared(case, 0, timed=True) as measure, law.prepared(case, 0, timed=True) as known:
                found, truth = measure(), known()
            assert (found.device_s, found.host_s) == pytest.approx((truth.device_s, truth.host_s), rel=1e-9)
            assert found.timed_s == pytest.approx(found.device_s, rel=1e-9)
            taken = [
                sorted((one.operation.table, one.seconds) for one in sample.readings if one.operation.table != "other")
                for sample in (found, truth)
            ]
            assert [table for table, _ in taken[0]] == [table for table, _ in taken[1]]
            assert [took for _, took in taken[0]] == pytest.approx([took for _, took in taken[1]], rel=1e-9)
        moved = [reading.seconds for reading in harness.moves()]
    swap_s = [1e-5 + blocks / 5e5 for blocks in (1, 4, 16, 64)]
    assert moved == pytest.approx([s for one in swap_s for s in ((one + 1e-5) / 2, one, one)], rel=1e-9)


def test_show_and_check(folder: Path) -> None:
    shown = command("show", str(folder))
    assert shown.exit_code == 0
    assert "where the grid ends" in shown.output
    assert "steps: all" in shown.output
    told = json.loads(command("show", str(folder), "--json").output)
    assert told["operations"]["gemm"]["points"] > 0
    checked = command("check", str(folder), "--json")
    assert checked.exit_code == 0
    assert json.loads(checked.output)["errors"]["gemm"]["points"] > 0
    assert "rows are possible on" in command("check", str(folder)).output
    assert command("check", str(folder), "--limit", "0").exit_code == 1


def test_a_dry_run_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for gpu in ("cpu", "h200"):
        told = json.loads(command("--gpu", gpu, "--dry-run", "--json").output)
        assert 0.0 < told["expected_s"] < 300.0
        assert "fitted" in told["cases"]
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[list[str], str]] = {
    "no such device": (["--gpu", "h100"], "no CUDA device, so h100 cannot be measured .*import.*derive"),
    "no such GPU": (["--gpu", "h101"], "unknown GPU 'h101'; known are a100-40"),
    "no such model": (["--gpu", "cpu", "--models", "llama-9"], "unknown model 'llama-9'"),
    "layers of several kinds": (["--gpu", "cpu", "--models", "glm-5"], "layers of several kinds, which no live model"),
    "too large": (["--gpu", "cpu", "--models", "llama-3.1-405b", "--max-context", "100000"], "has room for"),
    "an unknown profile": (["show", "nope"], "unknown profile 'nope'"),
    "derive from a CPU": (["derive", "--from", "nope", "--to", "h200"], "unknown profile 'nope'"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_mistakes_are_one_sentence(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, message = REFUSED[what]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        cli(args, standalone_mode=False)
    monkeypatch.setattr(sys, "argv", ["calibrate", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_a_profile_that_is_there_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        cli([*SMALL, "--out", str(folder)], standalone_mode=False)


def test_without_arguments_help_is_shown() -> None:
    assert "calibrate --gpu cpu" in command().output
    assert "import" in command("--help").output


# ---- what runs on the backend -------------------------------------------------------------------------------------


def tiny(**changed: Any) -> ModelSpec:
    return replace(load_model("tiny-llama"), layers=2, **changed)


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8", "fp8"])
def test_every_operation_of_a_step_is_read(kv_dtype: str) -> None:
    spec = tiny(kv_dtype=kv_dtype, qk_norm=True, sliding_window_tokens=32)
    harness = Harness(spec, torch.device("cpu"), Range(64, 4, 64, 256), 0)
    case = Case(((16, 5),), (40, 20))
    with harness.prepared(case, 0, timed=True) as measure:
        sample = measure()
    tables = [reading.operation.table for reading in sample.readings]
    assert {name: tables.count(name) for name in set(tables)} == {
        "gemm": 4 * 2 + 1,
        "elementwise": 2 * 2 + 1 + 2 + 2 + 2 * 2,
        "prefill_attention": 2,
        "decode_attention": 2,
        "sampling": 1,
    }
    decode = dict(next(one.operation.row for one in sample.readings if one.operation.table == "decode_attention"))
    assert (decode["sequences"], decode["mean_context_tokens"], decode["max_context_tokens"]) == (2, 30, 40)
    assert (decode["kv_dtype"], decode["window"]) == (kv_dtype, 32)
    work_s = sum(reading.seconds for reading in sample.readings)
    assert work_s > 0.0
    assert sample.device_s > 0.0
    assert sample.host_s > 0.0
    assert sample.graph_device_s is None
    assert {reading.operation.table for reading in harness.moves()} == {"copy", "swap"}


def test_slices_that_differ_are_no_point_of_the_grid() -> None:
    harness = Harness(tiny(), torch.device("cpu"), Range(64, 4, 64, 256), 0)
    with harness.prepared(Case(((16, 5), (8, 0))), 0, timed=True) as measure:
        assert "prefill_attention" not in {reading.operation.table for reading in measure().readings}
    with harness.prepared(Case(((8, 0),)), 1, timed=False) as measure:
        assert measure().readings == []


# ---- devices that are not here, by fakes ----------------------------------------------------------------------------


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A machine with an H100, as far as torch and nvidia-smi tell; what the latter answers, by the start of a query."""
    answers = {
        "--query-gpu=driver_version": ["580.1"],
        "--query-gpu=clocks.sm": ["1980, 2619, 412.5, 61, Not Active, Not Active"],
        "--query-compute-apps": [f"{os.getpid()}, python"],
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(
        devices, "smi", lambda query: next((lines for key, lines in answers.items() if query.startswith(key)), [])
    )
    return answers


def test_a_gpu_is_known_by_what_it_calls_itself(hopper: dict[str, list[str]]) -> None:
    assert devices.target("auto") == devices.target("h100") == devices.target("H100-SXM")
    goal = devices.target("auto")
    assert (goal.gpu, goal.is_cpu) == ("h100", False)
    with pytest.raises(InputError, match="this machine has an NVIDIA H100 80GB HBM3, not h200"):
        devices.target("h200")
    calm = {"sm_mhz": 1980, "memory_mhz": 2619, "watts": 412.5, "celsius": 61, "hw_slowdown": 0, "thermal_slowdown": 0}
    assert devices.telemetry(goal) == calm
    assert devices.software(goal)["driver"] == "580.1"
    assert devices.others(goal) == ""


def test_a_busy_or_throttled_gpu_is_told(hopper: dict[str, list[str]]) -> None:
    goal = devices.target("auto")
    hopper["--query-compute-apps"] = [f"{os.getpid()}, python", "4711, trainer"]
    assert devices.others(goal) == "4711, trainer"
    hopper["--query-gpu=clocks.sm"] = ["1200, 2619, 700, 91, Not Active, Active"]
    told = devices.telemetry(goal)
    assert (told["hw_slowdown"], told["thermal_slowdown"], told["celsius"]) == (0, 1, 91)


def test_what_nvidia_smi_does_not_tell_is_left_out(hopper: dict[str, list[str]]) -> None:
    """A card may not know its power, a driver may not know a field by this name, and a container may have neither."""
    goal = devices.target("auto")
    hopper["--query-gpu=clocks.sm"] = ["1980, [N/A], [Not Supported], 61, [N/A], Active"]
    assert devices.telemetry(goal) == {"sm_mhz": 1980, "celsius": 61, "thermal_slowdown": 1}
    del hopper["--query-gpu=clocks.sm"]
    assert devices.telemetry(goal) == {}
    plain = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu"
    hopper[f"{plain},clocks_event_reasons"] = ["1, 2, 3, 4, Active"]
    assert devices.telemetry(goal)["hw_slowdown"] == 1
    hopper[f"{plain},clocks_event_reasons"] = []
    hopper["--query-compute-apps"] = []
    assert (devices.telemetry(goal), devices.others(goal)) == ({}, "")


def test_a_gpu_that_no_catalog_has_is_refused(hopper: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Acme X1")
    with pytest.raises(InputError, match="this machine's Acme X1 is not in the catalog"):
        devices.target("auto")


def test_the_cuda_clock_holds_the_device_before_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("record")

        def synchronize(self) -> None:
            happened.append("wait")

        def elapsed_time(self, _end: Event) -> float:
            return 2.5

        def query(self) -> bool:
            return True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append(f"sleep {cycles}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: happened.append("all done"))
    clock = EventClock(torch.device("cuda"))
    clock.hold(60e-6)
    begin, end = clock.mark(), clock.mark()
    assert clock.seconds(begin, end) == pytest.approx(2.5e-3)
    assert clock.passed(begin)
    assert happened == ["all done", "sleep 120000", "record", "record", "wait"]
