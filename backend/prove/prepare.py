"""The first stage: what is installed, what card is there, and its ceilings: a large copy and a large matrix product.

`python -m backend.prove.prepare --device cuda --out FILE.json`; each ceiling is the median of a few timed executions on
random data.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from backend.atomic import replace_file
from backend.bench.record import environment, version_of
from backend.smi import smi
from traces.version import product_version

PACKAGES = ("simpy", "tomli-w", "pandas", "scipy", "pyarrow", "click", "rich", "jinja2", "pytest", "pytest-xdist",
            "hypothesis", "transformers", "safetensors")  # fmt: skip
REPEATS, WARM = 10, 3
_SMI = ("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem",
        "power.draw", "power.limit", "temperature.gpu")  # fmt: skip


def seconds(work: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of REPEATS executions after WARM that warm up."""
    taken = []
    for turn in range(WARM + REPEATS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            work()
            end.record()
            end.synchronize()
            spent_s = begin.elapsed_time(end) / 1e3
        else:
            started = time.perf_counter()
            work()
            spent_s = time.perf_counter() - started
        if turn >= WARM:
            taken.append(spent_s)
    return taken


def copy_bytes_per_s(device: torch.device, size: int) -> float:
    """Bytes read and written a second of a copy of `size` bytes within the device."""
    origin = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    goal = torch.empty_like(origin)
    return 2 * size / statistics.median(seconds(lambda: goal.copy_(origin), device))


def matrix_flops_per_s(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """FLOPs a second of a product of two random square matrices."""
    left, right = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / statistics.median(seconds(lambda: torch.mm(left, right, out=out), device))


def card() -> dict[str, str]:
    """What nvidia-smi tells, by its names; empty where there is none or it fails."""
    values = [part.strip() for line in smi(f"--query-gpu={','.join(_SMI)}")[:1] for part in line.split(",")]
    return dict(zip(_SMI, values, strict=True)) if len(values) == len(_SMI) else {}


def write(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file at once. Raises InputError."""
    replace_file(path, (json.dumps(document, indent=1) + "\n").encode())


@click.command()
@click.option("--device", required=True)
@click.option("--small", is_flag=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(device: str, small: bool, out: Path) -> None:
    """Write what is here, first without and then with the ceilings."""
    place = torch.device(device)
    facts = environment(place, small, sys.argv)
    facts["packages"] |= {name: version_of(name) for name in PACKAGES}
    facts |= {"foretoken": product_version(), "nvidia_smi": card(), "cores": os.cpu_count()}
    write(out, facts)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    facts["copy_bytes_per_s"] = copy_bytes_per_s(place, 1 << 22 if small else 4 << 30)
    write(out, facts)
    facts["matrix_flops_per_s"] = matrix_flops_per_s(place, 256 if small else 8192, dtype)
    facts["nvidia_smi_after"] = card()
    write(out, facts)
    copied, multiplied = facts["copy_bytes_per_s"] / 1e12, facts["matrix_flops_per_s"] / 1e12
    click.echo(f"copy {copied:.3f} TB/s, {dtype} product {multiplied:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
