"""What a decode step asks of the host: `python -m tests.benchmarks.step_launches`.

On the pretended H200 (`tests/kits/pretend_gpu.py`; no GPU is needed): how many kernels of Triton a layer launches, by
name, and how long the launchers of this project take, Triton's real binder included and the launch itself left out, in
CPU time and as a ratio to `torch.empty` beside them. Products and what else torch does itself are not in it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPEATS = 30
SPENT = {"s": 0.0}


def watched(launcher: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begun_s = time.thread_time()
        try:
            return launcher(*args, **kwargs)
        finally:
            SPENT["s"] += time.thread_time() - begun_s

    return call


def main() -> None:
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "kits")]
    import pretend_gpu
    from pretend_gpu import Device

    twinned = pretend_gpu._twinned
    pretend_gpu._twinned = lambda name, kernel, twin: twinned(name, watched(kernel), twin)
    pretend_gpu.install()
    from backend.bench.model import _step
    from backend.cache.kvcache import KvCache
    from backend.model.loader import random_model
    from sim.catalog import load_model

    spec, device = load_model("tiny-llama").with_dtypes(dtype="bf16"), torch.device("cuda:0")
    model = random_model(spec, device)
    cache = KvCache.allocate(spec, 64, 16, device)
    bench: Any = type("Device", (), {"device": device, "ops": model.ops, "small": True})
    work = _step(bench, model, cache, 4, 128)
    work(0)
    Device.launches.clear()
    SPENT["s"] = 0.0
    for _ in range(REPEATS):
        work(0)
    counts = Counter(Device.launches)
    step_s = SPENT["s"] / REPEATS
    begun_s = time.thread_time()
    for _ in range(1000):
        torch.empty(64, device=device)
    empty_s = (time.thread_time() - begun_s) / 1000
    for name, count in sorted(counts.items()):
        print(f"{count / REPEATS:5.0f}  {name}")
    total = sum(counts.values()) / REPEATS
    print(f"{total:5.0f}  launches a step of {spec.layers} layers, {total / spec.layers:.1f} a layer")
    print(
        f"launchers: {1e6 * step_s:.0f} us a step, {1e6 * step_s / total:.0f} us each; torch.empty "
        f"{1e6 * empty_s:.1f} us: {step_s / total / empty_s:.1f} of it each"
    )


if __name__ == "__main__":
    main()
