"""The data sheet that a calibration has: the catalog's of a GPU, one made of what was measured of a CPU."""

from __future__ import annotations

from calibrate.header import CPU
from sim import catalog
from sim.specs.gpu import GpuSpec

__all__ = ["CPU", "cpu_text", "sheet"]

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


def cpu_text(device: str, memory_bytes: int, flops_per_s: float, bytes_per_s: float) -> str:
    """A CPU as a data sheet (the catalog's TOML): one thread, rates as measured."""
    return CPU_SHEET.format(
        description=device.replace('"', "'"),
        memory_bytes=memory_bytes,
        memory_bytes_per_s=bytes_per_s,
        flops_per_s=flops_per_s,
    )


def sheet(gpu: str, device: str) -> GpuSpec:
    """The catalog's data sheet of a GPU; of a CPU rough rates, good for estimating how long measuring takes."""
    if gpu != CPU:
        return catalog.load_gpu(gpu)
    return GpuSpec(
        name=CPU,
        description=device,
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
