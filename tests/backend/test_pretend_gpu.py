"""The CUDA path to its last line, on a pretended H200 (`pretend_gpu`): live runs, calibration, benchmark, GPU tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
KITS = ROOT / "tests" / "kits"
QUICK = ("graphs", "swap", "fp8", "draft model")
"""In every run of the suite: steps by graph, moves, narrow values, drafts; what is left is for rehearsals."""
REST = ("eager", "prefix", "window", "sampled", "int8", "n-grams", "draft model sampled")
RUNS = [
    *((QUICK, name) for name in QUICK),
    *(pytest.param(REST, name, marks=pytest.mark.rehearsal) for name in REST),
]


def process(script: str, *arguments: str, statuses: tuple[int, ...] = (0,)) -> str:
    """What a process of its own prints; it has the pretended device, whatever this process has."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT), str(KITS)]))
    done = subprocess.run(
        [sys.executable, str(KITS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in statuses, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@cache
def told(names: tuple[str, ...]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(process("pretend_runs.py", ",".join(names)).splitlines()[-1])
    return answer


@pytest.mark.parametrize(("names", "name"), RUNS)
def test_a_live_run_answers_as_on_the_cpu(names: tuple[str, ...], name: str) -> None:
    run = told(names)["runs"][name]
    assert run["cuda"] == run["cpu"]
    assert {"prefill_kernel", "decode_kernel", "filter_kernel"} <= set(run["kernels"])
    assert ("copy_kernel" in run["kernels"]) and bool(run["preempted"]) == (name == "swap")  # noqa: PT018


@pytest.mark.parametrize(
    ("names", "name", "kernel"),
    [
        (QUICK, "fp8", "_quantise_rows_kernel"),
        pytest.param(REST, "int8", "_int8_matmul_kernel", marks=pytest.mark.rehearsal),
    ],
)
def test_eight_bits_run_their_own_kernels(names: tuple[str, ...], name: str, kernel: str) -> None:
    assert kernel in told(names)["runs"][name]["kernels"]


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    for mistake, sentence in told(QUICK)["refused"].items():
        assert sentence, mistake
        assert ("captur" in sentence) == ("capture" in mistake), (mistake, sentence)


def test_collectives_and_latent_attention_are_timed_on_it() -> None:
    measured = dict(told(QUICK)["measured"])
    for op in ("all_reduce", "all_gather", "all_to_all", "reduce_scatter"):
        us = measured.pop(op)  # of those readings in which the device did not wait for the host
        assert us == pytest.approx([10.0] * len(us)), "the pretended device takes so long for each"
        assert us
    assert len(measured) == 3
    assert all(us and min(us) > 0.0 for us in measured.values())


def test_a_bound_launch_is_tritons_own() -> None:
    """Of what is asked of tensors and of descriptors for the copy engine; prefill and products are launched so."""
    launched = told(QUICK)["launched"]
    assert launched.pop("kernels") == [True, True]
    assert launched == {name: [True, True] for name in launched}
    assert len(launched) == 14
    assert {"prefill, blocks of 64", "tiles of 32 x 32 of fp16", "int8"} <= set(launched)


def calibrated(folder: Path) -> Path:
    """A profile of the pretended device; of a busy machine a longer time is asked for, until something was measured."""
    sizes = ("--max-tokens", "16", "--max-rows", "2", "--max-context", "64")
    options = ("--gpu", "auto", "--models", "tiny-llama", "--dtype", "bf16", *sizes, "--quiet")
    for budget_s in (40, 120, 360):
        profile = folder / f"profile-{budget_s}"
        asked = (*options, "--budget-s", str(budget_s), "--out", str(profile))
        process("pretend_gpu.py", "calibrate.cli", *asked, statuses=(0, 2) if budget_s < 360 else (0,))
        if (profile / "profile.toml").is_file():
            break
    return profile


@pytest.mark.rehearsal
def test_it_is_calibrated_and_predicted(tmp_path: Path) -> None:
    """From the measuring of whole steps, eager and by graph, to a validation against a live run."""
    out, trace = tmp_path / "out", tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,15,4\n0.1,31,4\n")
    profile = calibrated(tmp_path)
    assert json.loads(process("pretend_gpu.py", "calibrate.cli", "show", str(profile), "--json"))
    limits = {"max_num_batched_tokens": 32, "max_num_seqs": 2, "max_model_len": 128}
    settings = [part for key, value in limits.items() for part in ("--set", f"engine.{key}={value}")]
    text = process(
        "pretend_gpu.py", "sim.cli.main", "validate", "--trace", str(trace), "--device", "cuda",
        "--model", "tiny-llama", "--set", "dtype=bf16", "--kv-blocks", "64", *settings, "--profile", str(profile),
        "--gpu", "h200", "--json", "--quiet", "--out", str(out), statuses=(0, 1),
    )  # fmt: skip
    assert json.loads(text)["twin"]["identical"]


@pytest.mark.rehearsal
def test_the_benchmark_measures_ours(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    process(
        "pretend_gpu.py", "backend.bench", "--small", "--only", "decode,prefill,step,cliff,swap", "--out", str(report)
    )
    rows = json.loads(report.read_text())["rows"]
    ours = [row for row in rows if row["ours"]]
    assert {row["contender"] for row in ours} >= {"ours, planned before", "ours, CUDA graph", "ours, block 128"}
    assert [row for row in ours if row["state"] != "measured"] == []


SESSION = """
import sys
sys.path[:0] = {paths!r}
import pretend_gpu
pretend_gpu.install()
from backend.prove.smoke import driver
driver.LANES, driver.MOST_S["cuda"] = 1, {patience}
chosen = [one for one in driver.all_cases() if one.name == "live, CUDA graphs" or not one.name.startswith("live, ")]
driver.all_cases = lambda: chosen
"""
"""What Python runs as it starts, in the command's process and in those of its stages."""


@pytest.mark.rehearsal
def test_a_session_is_proved_on_it(tmp_path: Path) -> None:
    """The one command and its first two stages; the others, and all but one of the live runs, have tests above."""
    out = tmp_path / "out"
    (tmp_path / "sitecustomize.py").write_text(SESSION.format(paths=[str(ROOT), str(KITS)], patience=PATIENCE_S))
    done = subprocess.run(
        [sys.executable, "-m", "backend.prove", "--small", "--stages", "prepare,smoke", "--budget-s", "10000",
         "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
             "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=3 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    prepare, smoke = json.loads((out / "summary.json").read_text())["stages"]
    assert prepare["result"]["device"] == "NVIDIA H200"
    lines = smoke["result"]["operations"]
    assert {line["state"] for line in lines} == {"ok"}, [line for line in lines if line["state"] != "ok"]
    assert len(lines) > 40


GPU_TESTS = (
    "tests/backend/live/test_live_graphs.py",
    "tests/backend/live/test_live_moves.py",
    "tests/backend/test_backend_model.py",
    "tests/backend/kernels/test_kernel_attention.py::test_a_captured_decode_serves_other_lengths",
)


@pytest.mark.rehearsal
def test_the_tests_that_want_a_gpu_run_on_it() -> None:
    """Those of the host's own work; a kernel's numbers are its twin's here."""
    options = ("-q", "-m", "gpu", "-n", "0", "-p", "no:randomly", "-k", "not live_run")
    last = process("pretend_gpu.py", "pytest", *options, *GPU_TESTS).splitlines()[-1]
    assert " passed" in last
    assert "skipped" not in last
