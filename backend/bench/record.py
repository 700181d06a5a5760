"""What a benchmark run found: rows of times, and where they were taken. Written whole after every case.

It times nothing and judges nothing (`backend.bench.verdict` does).
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backend.atomic import replace_file
from backend.smi import smi

SCHEMA = "foretoken-bench/1"

MEASURED, ABSENT, FAILED, SKIPPED = "measured", "absent", "failed", "skipped"
"""States of a row: it has times; its package is not there; it raised or disagreed; it was not tried."""

PACKAGES = ("torch", "triton", "numpy", "transformers", "flashinfer-python", "fa3-fwd")


@dataclass(frozen=True, slots=True)
class Stats:
    """Seconds of repeated executions: the median, and the 10th and 90th percentile."""

    median_s: float
    low_s: float
    high_s: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Stats:
        """Of at least one sample."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
        return cls(statistics.median(ordered), low, high, len(ordered))

    @property
    def spread(self) -> float:
        """Half the distance between the percentiles, as a share of the median."""
        return (self.high_s - self.low_s) / 2 / self.median_s if self.median_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One contender in one case.

    `sizes` are the case's numbers. `bytes`, `flops` and `tokens` are what one execution must move, compute and give (0:
    not counted); `error` is |out - reference| / |reference| against float64, None where nothing was compared;
    `peak_bytes` is what was allocated on top of the inputs, None where that was not measured. `notes` are facts beside.
    """

    group: str
    case: str
    contender: str
    state: str
    ours: bool = False
    reason: str = ""
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    time: Stats | None = None
    bytes: int = 0
    flops: int = 0
    tokens: int = 0
    error: float | None = None
    peak_bytes: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def rate(self, count: int) -> float:
        """`count` per second; 0 where there is no time."""
        return count / self.time.median_s if self.time is not None and self.time.median_s > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the rates that follow."""
        rates = {"gb_per_s": self.bytes / 1e9, "tflop_per_s": self.flops / 1e12, "tokens_per_s": self.tokens}
        reached = {name: self.rate(1) * amount for name, amount in rates.items() if amount and self.time is not None}
        return {**asdict(self), **reached}


@dataclass(slots=True)
class Report:
    """A run so far. `cliffs` are the verdicts on lines of decode times; `unfinished`: case to why not."""

    environment: Mapping[str, Any]
    rows: list[BenchRow] = field(default_factory=list)
    cliffs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    bars: list[Mapping[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the schema's name first."""
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "finished": self.finished,
            "seconds": round(self.seconds, 2),
            "bars": [dict(bar) for bar in self.bars],
            "cliffs": {line: dict(values) for line, values in self.cliffs.items()},
            "unfinished": self.unfinished,
            "clocks": {case: dict(values) for case, values in self.clocks.items()},
            "rows": [row.as_dict() for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Replaces the file at once, so that a run that is killed leaves the last case whole. Raises InputError."""
        replace_file(path, (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode())


def environment(device: torch.device, small: bool, command: Sequence[str]) -> dict[str, Any]:
    """Device, driver, versions, date, commit: what a time is worth nothing without."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "small": small,
        "device_type": device.type,
        "device": device_name(device),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "source_sha256": _source_hash(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
    }
    if device.type != "cuda":
        return {**facts, "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        **facts,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes(device),
        "cuda": torch.version.cuda,
        "driver": next(iter(smi("--query-gpu=driver_version")), None),
        "power_limit_w": next(iter(smi("--query-gpu=power.limit")), None),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def l2_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 cache; 0 on a CPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def _source_hash() -> str:
    """Over all of this package: times of other kernels, of another model or timed otherwise are others."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git says about the checkout that this file lies in; None where it says nothing."""
    if shutil.which("git") is None:
        return None
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class ClockLog:
    """Clocks, power and temperature of the GPU while something runs, as nvidia-smi tells them four times a second."""

    QUERY: Mapping[str, str] = {
        "clocks.sm": "sm_mhz",
        "clocks.mem": "memory_mhz",
        "power.draw": "power_w",
        "temperature.gpu": "celsius",
    }

    def __init__(self) -> None:
        self._told: list[tuple[float, list[float]]] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Nothing happens where there is no nvidia-smi."""
        if shutil.which("nvidia-smi") is None:
            return
        command = ["nvidia-smi", f"--query-gpu={','.join(self.QUERY)}", "--format=csv,noheader,nounits"]
        self._process = subprocess.Popen(
            [*command, "-lms", "250"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                try:
                    values = [float(part) for part in line.split(",")]
                except ValueError:
                    continue  # "[N/A]" of a GPU that does not tell
                self._told.append((time.monotonic(), values))

    def since(self, start_s: float) -> dict[str, list[float]]:
        """(least, median, most) of each quantity since a moment of the monotonic clock; empty where none was told."""
        readings = [values for at, values in list(self._told) if at >= start_s and len(values) == len(self.QUERY)]
        if not readings:
            return {}
        columns = zip(self.QUERY.values(), zip(*readings, strict=True), strict=True)
        return {name: [min(column), statistics.median(column), max(column)] for name, column in columns}

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
