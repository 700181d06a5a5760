"""The device that is calibrated: is it there, what is it called, is it free, how hot does it run. It times nothing."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import backend
from backend.bench.record import version_of
from backend.cache.memory import device_bytes
from backend.smi import smi
from calibrate.sheet import CPU
from sim import catalog
from traces.schema import InputError
from traces.version import product_version

_QUERY = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}
_REASONS = {"hw_slowdown": "hw_slowdown", "sw_thermal_slowdown": "thermal_slowdown"}
"""Why a GPU slows itself down, by nvidia-smi's names: of heat, or of a lack of power. A cap on power is no fault: it is
what a GPU has under heavy work, and in service too."""
_REASON_PREFIXES = ("clocks_throttle_reasons", "clocks_event_reasons")
"""Of older drivers and of newer ones."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device to calibrate: torch's, its name in the catalog ("cpu" for a CPU), and what it calls itself."""

    device: torch.device
    gpu: str
    name: str

    @property
    def is_cpu(self) -> bool:
        return self.gpu == CPU


def target(name: str) -> Target:
    """The device of this name: "cpu", "auto" (CUDA where there is one), or a GPU of the catalog.

    Raises:
        InputError: it is not here; says which is, and how to do without.
    """
    there = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    if name == CPU or (name == "auto" and not there):
        return Target(torch.device("cpu"), CPU, _cpu_name())
    instead = "take others' measurements with `calibrate import`, or scale a profile with `calibrate derive`"
    if name == "auto":
        return Target(torch.device("cuda"), _catalog_name(there), there)
    wanted = catalog.load_gpu(name).name
    if not there:
        raise InputError(f"this machine has no CUDA device, so {wanted} cannot be measured (only cpu); {instead}")
    if _catalog_name(there) != wanted:
        raise InputError(f"this machine has an {there}, not {wanted}; choose --gpu auto, {instead}")
    return Target(torch.device("cuda"), wanted, there)


def count(goal: Target) -> int:
    """How many devices of the kind are here; 0 of a GPU that need not be."""
    if goal.is_cpu:
        return 1
    return torch.cuda.device_count() if goal.device.type == "cuda" else 0


def planned(name: str) -> Target:
    """The device of this name as a plan needs it: a GPU of the catalog need not be here."""
    if name in (CPU, "auto"):
        return target(name)
    sheet = catalog.load_gpu(name)
    return Target(torch.device("meta"), sheet.name, sheet.description)


def _catalog_name(there: str) -> str:
    try:
        return catalog.load_gpu(there).name
    except InputError:
        raise InputError(
            f"this machine's {there} is not in the catalog; write its data sheet as a TOML file (docs/profiles.md), "
            f"with that alias, into sim/catalog/gpus"
        ) from None


def others(goal: Target) -> str:
    """Which process but this one is on the GPU, as far as nvidia-smi tells; empty where there is none.

    Within a container nvidia-smi tells processes by the host's numbers, so that this may well be this very process.
    """
    if goal.is_cpu:
        return ""
    told = smi("--query-compute-apps=pid,process_name")
    return next((line for line in told if line.split(",")[0].strip() != str(os.getpid())), "")


def telemetry(goal: Target) -> dict[str, float]:
    """Clocks (MHz), power (W) and temperature of the GPU, and 1 or 0 by reason for which it slows itself down; the load
    of a CPU's machine. Without what is not told.
    """
    if goal.is_cpu:
        return {"load": os.getloadavg()[0]}
    for prefix in (*_REASON_PREFIXES, ""):
        names = {**_QUERY, **({f"{prefix}.{reason}": key for reason, key in _REASONS.items()} if prefix else {})}
        lines = smi(f"--query-gpu={','.join(names)}")
        if lines:
            parts = zip(names.values(), (part.strip() for part in lines[0].split(",")), strict=False)
            numbers = ((key, _number(text)) for key, text in parts)
            return {key: number for key, number in numbers if number is not None}
    return {}


def _number(text: str) -> float | None:
    """What nvidia-smi says of a quantity or a reason; None where it does not know ("[N/A]", "[Not Supported]")."""
    if text in ("Active", "Not Active"):
        return float(text == "Active")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def software(goal: Target) -> dict[str, str]:
    """Versions of what was measured, and the hash of the kernels' source."""
    packages = {
        "foretoken": product_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    folder = "torch_ops" if goal.is_cpu else "kernels"
    versions = {**packages, "kernels_sha256": source_hash(Path(backend.__file__).parent, folder)}
    if goal.is_cpu:
        return {**versions, "threads": "1"}  # which `Harness` sees to
    drivers = smi("--query-gpu=driver_version")
    return {
        **versions,
        "triton": version_of("triton") or "unknown",
        "cuda": str(torch.version.cuda),
        "driver": (drivers or ["unknown"])[0],
    }


def source_hash(package: Path, folder: str) -> str:
    """SHA-256 over the kernels' files and the model that launches them: another hash, other prices."""
    digest = hashlib.sha256()
    for path in sorted(
        [*(package / folder).glob("*.py"), package / "model" / "model.py", package / "model" / "layers.py"]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def memory_bytes(goal: Target, *, free: bool = False) -> int:
    """Of the device, all or what is free now; of a GPU that is not here its data sheet's."""
    if not goal.is_cpu and (not free or goal.device.type == "meta"):
        return catalog.load_gpu(goal.gpu).memory_bytes
    return device_bytes(goal.device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, one thread"
