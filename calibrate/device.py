"""The device that is calibrated: is it there, what is it called, is it free, how hot does it run. It times nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import backend
from backend.bench.record import version_of
from backend.cache.memory import device_bytes
from sim import catalog
from sim.specs.gpu import GpuSpec
from traces.schema import InputError
from traces.version import product_version

CPU = "cpu"
CPU_SHEET = """\
name = "cpu"
description = "{description}"
source = "the fastest product and the fastest read of this calibration"
memory_bytes = {memory_bytes}
memory_bytes_per_s = {memory_bytes_per_s:.6g}
fp16_flops_per_s = {flops_per_s:.6g}
bf16_flops_per_s = {flops_per_s:.6g}
fp8_flops_per_s = 0
fp32_flops_per_s = {flops_per_s:.6g}
sms = 1
l2_bytes = 0
pcie_bytes_per_s = {memory_bytes_per_s:.6g}
link_bytes_per_s = 0
watts = 0

[sources]
watts = "not measured"
"""
_QUERY = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
    "clocks_throttle_reasons.hw_slowdown": "hw_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown": "thermal_slowdown",
}


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


def check_free(goal: Target) -> None:
    """Raise InputError where another process computes on the GPU, as far as nvidia-smi tells."""
    if goal.is_cpu:
        return
    others = [line for line in _smi("--query-compute-apps=pid,process_name") if line.split(",")[0] != str(os.getpid())]
    if others:
        raise InputError(f"another process is on the GPU ({others[0]}); what is measured beside it would be wrong")


def telemetry(goal: Target) -> dict[str, float]:
    """Clocks (MHz), power (W) and temperature of the GPU; the load of a CPU's machine. Empty where nothing tells.

    Raises:
        InputError: the GPU slows itself down because of heat or lack of power.
    """
    if goal.is_cpu:
        return {"load": os.getloadavg()[0]}
    lines = _smi(f"--query-gpu={','.join(_QUERY)}")
    if not lines:
        return {}
    values = dict(zip(_QUERY.values(), (part.strip() for part in lines[0].split(",")), strict=False))
    for key in ("hw_slowdown", "thermal_slowdown"):
        if values.pop(key, "") == "Active":
            raise InputError(
                f"{goal.name} throttles itself ({key} at {values.get('celsius')} C); cool it, then --resume"
            )
    return {key: float(value) for key, value in values.items() if value.replace(".", "", 1).isdigit()}


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
        return {**versions, "threads": str(torch.get_num_threads())}
    drivers = _smi("--query-gpu=driver_version")
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


def cpu_sheet(goal: Target, flops_per_s: float, bytes_per_s: float) -> str:
    """A CPU as a data sheet (the catalog's TOML): one thread, rates as measured."""
    return CPU_SHEET.format(
        description=goal.name.replace('"', "'"),
        memory_bytes=device_bytes(goal.device),
        memory_bytes_per_s=bytes_per_s,
        flops_per_s=flops_per_s,
    )


def sheet(goal: Target) -> GpuSpec:
    """The catalog's data sheet of a GPU; of a CPU rough rates, good for estimating how long measuring takes."""
    if not goal.is_cpu:
        return catalog.load_gpu(goal.gpu)
    return GpuSpec(
        name=CPU,
        description=goal.name,
        source="a guess, for estimates of time",
        memory_bytes=2**33,
        memory_bytes_per_s=6e9,
        fp16_flops_per_s=30e9,
        bf16_flops_per_s=30e9,
        fp8_flops_per_s=0.0,
        fp32_flops_per_s=30e9,
        sms=1,
        l2_bytes=0,
        pcie_bytes_per_s=6e9,
        link_bytes_per_s=0.0,
        watts=0.0,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, one thread"


def _smi(*query: str) -> list[str]:
    """Lines that nvidia-smi answers; none where there is no nvidia-smi, or it does not know."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *query, "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
