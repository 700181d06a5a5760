"""What is done on the device, in the order of its worth: the stages, their shares of the time and their commands.

It runs nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.names import names_of

ROOT = Path(__file__).resolve().parents[2]
"""Where the product's source lies, and its tests."""

LLAMA = "llama-3.1-8b"
SERVED = (
    "--set", "engine.max_num_seqs=64", "--set", "engine.max_num_batched_tokens=2048",
    "--set", "engine.max_model_len=4096",
)  # fmt: skip
"""A validation's engine: few enough sizes to record as graphs within its box."""


@dataclass(frozen=True, slots=True)
class ProvePlace:
    """Where a run happens: the device, whether in small shapes, and the folder that stages work in."""

    device: str
    small: bool
    work: Path

    @property
    def on_cpu(self) -> bool:
        return self.device.startswith("cpu")

    def file(self, name: str) -> Path:
        return self.work / name


@dataclass(frozen=True, slots=True)
class ProveStage:
    """One subprocess. `share_s` is its box of a budget of 540 s; unused seconds go to the stages after it.

    `command` is made when the stage begins, of its box; a text instead of words says why it cannot run. `answers` are
    exit codes that are findings and no failures.
    """

    name: str
    share_s: float
    about: str
    command: Callable[[ProvePlace, float], Sequence[str] | str]
    answers: dict[int, str] = field(default_factory=dict)


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _prepare(place: ProvePlace, _box_s: float) -> Sequence[str]:
    small = ["--small"] if place.small else []
    return python("backend.prove.prepare", "--device", place.device, "--out", place.file("prepare.json"), *small)


def _smoke(place: ProvePlace, box_s: float) -> Sequence[str]:
    small = ["--small"] if place.small else []
    out = place.file("smoke.json")
    return python(
        "backend.prove.smoke", "--device", place.device, "--out", out, "--until", time.time() + 0.8 * box_s, *small
    )


def _bench(file: str, groups: str) -> Callable[[ProvePlace, float], Sequence[str]]:
    def command(place: ProvePlace, box_s: float) -> Sequence[str]:
        small = ["--small"] if place.small else []
        # No peer may take a large part of the box to compile: flex_attention took over 20 s on an H200.
        ready_s = max(1.0, min(10.0, 0.2 * box_s))
        limits = ("--budget-s", 0.85 * box_s, "--ready-s", ready_s)
        return python(
            "backend.bench", "--device", place.device, "--only", groups, *limits, "--out", place.file(file), *small
        )

    return command


def _calibrate(place: ProvePlace, box_s: float) -> Sequence[str]:
    budget_s = max(1.0, box_s - max(20.0, 0.2 * box_s))
    if place.on_cpu:
        what: list[object] = ["--gpu", "cpu", "--models", "tiny-llama"]
        if place.small:
            budget_s = 3.0
            what += ["--max-tokens", 64, "--max-rows", 2, "--max-context", 128]
    else:
        what = ["--gpu", "auto", "--models", "tiny-llama" if place.small else LLAMA, "--dtype", "bf16"]
    how = ("--budget-s", budget_s, "--out", place.file("profile"), "--keep-journal", "--json", "--quiet")
    return python("calibrate.cli", *what, *how)


def _fit(place: ProvePlace, _box_s: float) -> Sequence[str] | str:
    journal = place.file("profile.journal.jsonl")
    if place.file("profile").is_dir():
        return "calibrate has written its profile"
    if not journal.is_file():
        return "there is no journal"
    return python("calibrate.cli", "fit", journal, "--out", place.file("profile"), "--json")


def _validate(place: ProvePlace, _box_s: float) -> Sequence[str]:
    profile = place.file("profile")
    what: list[object] = ["--trace", "chatbot_arena.jsonl", "--device", place.device, "--json", "--quiet"]
    if place.small or place.on_cpu:
        what += ["--model", "tiny-llama", "--limit", 2, "--rate", 20, "--set", "engine.max_num_seqs=4"]
        what += ["--kv-blocks", 400]
    else:
        what += ["--model", LLAMA, "--limit", 80, "--rate", 10, "--kv-blocks", 8192, *SERVED]
    # Without a profile the steps are priced by a fit to half of the run itself, which the document tells.
    gpu = _gpu_of(profile)
    what += ["--profile", profile] if gpu else []
    what += ["--gpu", gpu] if gpu and not place.on_cpu else []
    return python("sim.cli", "validate", *what, "--out", place.file("validate"))


def _gpu_of(profile: Path) -> str:
    """The GPU that a finished profile is of; "" where there is none."""
    try:
        return str(tomllib.loads(profile.joinpath("profile.toml").read_text(encoding="utf-8"))["gpu"])
    except (OSError, ValueError, KeyError):
        return ""


def _tests(place: ProvePlace, box_s: float) -> Sequence[str] | str:
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    if not (ROOT / "tests").is_dir():
        return f"no tests beside the source: {ROOT / 'tests'} is absent"
    chosen = (
        ["tests/backend/test_backend_kvcache.py"]
        if place.on_cpu
        else ["-m", "gpu", "--continue-on-collection-errors", "tests/backend"]
    )
    more: list[object] = []
    if importlib.util.find_spec("xdist") is not None and not place.on_cpu:
        more += ["-n", 8, "--dist", "load"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        more += ["--timeout", int(max(20.0, 0.6 * box_s))]
    # Eight processes of as many threads as there are cores took ten times as long on an H200's 16 cores.
    threads = ["env", f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // 8)}"] if more[:1] == ["-n"] else []
    return threads + python(
        "pytest", "-v", "--tb=short", "-rfE", f"--junit-xml={place.file('tests.xml')}", *more, *chosen
    )


STAGES: tuple[ProveStage, ...] = (
    ProveStage("prepare", 15, "versions, the card, copy and matrix ceilings", _prepare),
    ProveStage("smoke", 45, "each operation once beside its reference", _smoke, {1: "operations failed"}),
    ProveStage("bench", 120, "the cases of the bars", _bench("bench.json", "copy,decode,prefill,step,chunk")),
    ProveStage("calibrate", 140, "a profile of this device", _calibrate),
    ProveStage("fit", 5, "the profile of a calibration that was cut", _fit),
    ProveStage("validate", 70, "a live run against the simulation by that profile", _validate, {1: "out of bounds"}),
    ProveStage("tests", 90, "pytest -m gpu", _tests, {1: "tests failed", 5: "no test was found"}),
    ProveStage("cliffs", 30, "decode times of neighbouring shapes", _bench("cliffs.json", "cliff")),
    ProveStage("generate", 20, "tokens a second", _bench("generate.json", "generate")),
    ProveStage(
        "rest", 10, "the other operations", _bench("rest.json", "gemm,cache,swap,norms,sampling,standard")
    ),
)  # fmt: skip
MAKE_PROFILE = ("calibrate", "fit")
BENCHES = ("bench.json", "cliffs.json", "generate.json", "rest.json")


def chosen(names: str) -> list[ProveStage]:
    """The stages named, separated by commas, in their own order; all where it is empty. Raises InputError."""
    wanted = names_of("--stages", names, [stage.name for stage in STAGES])
    return [stage for stage in STAGES if stage.name in wanted]


def box_s(stages: Sequence[ProveStage], at: int, left_s: float) -> float:
    """Seconds of the `at`-th stage when `left_s` are left for it and those after it: its share of them."""
    return left_s * stages[at].share_s / sum(stage.share_s for stage in stages[at:])
