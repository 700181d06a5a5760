"""What steps ask of the host: `python -m tests.benchmarks.step_launches`.

How many kernels of Triton a decode step launches, by name, and how long each operation of this project takes on the
host, and those of prompts and of narrow weights by themselves: in CPU time, the best of several turns, and as a ratio
to `torch.empty` beside them. Tensors are the CPU's and only say
that they are CUDA's; Triton's binder and its compiler for sm_90 are the real ones, and its launcher launches nothing,
so that what the driver itself takes is left out, and so are products and what else torch does.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TURNS, CALLS = 5, 300


def cpu_us(call: Callable[[], Any]) -> float:
    """Microseconds of one call, the best of TURNS."""
    best = float("inf")
    for _ in range(TURNS):
        begun_s = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, time.thread_time() - begun_s)
    return 1e6 * best / CALLS


class Recorded:
    """The operations, each remembering how it was called; products are not ours."""

    def __init__(self, ops: Any) -> None:
        self._ops, self.calls = ops, list[tuple[str, Callable[[], Any]]]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "linear":
                self.calls.append((name, lambda: operation(*args, **kwargs)))
            return operation(*args, **kwargs)

        return call


def without_a_device() -> list[str]:
    """Lets kernels be launched on the CPU's tensors and not run; their names come into the list."""
    os.environ["TRITON_INTERPRET"] = "0"
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "kits")]
    import pretend_gpu
    from triton.runtime.driver import driver

    launches: list[str] = []

    class Quiet(pretend_gpu.PretendLauncher):
        def __call__(self, *_: Any) -> None:
            launches.append(self._name)

    class Driver(pretend_gpu.PretendDriver):
        launcher_cls = Quiet

    driver.set_active(Driver())
    cuda: Any = torch.cuda
    cuda.get_device_properties, cuda.get_device_capability = pretend_gpu._facts, lambda *_: (9, 0)
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment, misc]
    return launches


def other_steps() -> dict[str, Callable[[], Any]]:
    """What no such step asks for: attention of prompts, gathered and by the copy engine, and narrow products."""
    from backend.cache.kvcache import LayerCache
    from backend.kernels import linear, prefill_attention
    from backend.model.weights import quantised

    device, bf16 = torch.device("cpu"), torch.bfloat16
    calls: dict[str, Callable[[], Any]] = {}
    starts, lens = (torch.tensor(values, dtype=torch.int32) for values in ([0, 2048], [2048]))
    q = torch.zeros(2048, 32, 128, dtype=bf16)
    for block_tokens in (16, 64):
        cache = LayerCache.allocate(2, block_tokens, 8, 128, device=device, dtype=bf16)
        tables = torch.zeros(1, 2048 // block_tokens, dtype=torch.int32)

        def prefill(cache: LayerCache = cache, tables: torch.Tensor = tables) -> Any:
            return prefill_attention.prefill_attention(q, cache, tables, starts, lens, max_q=2048, scale=0.1)

        calls[f"prefill_attention, blocks of {block_tokens}"] = prefill
    x, weight = torch.zeros(16, 1024, dtype=bf16), torch.zeros(256, 1024, dtype=bf16)
    narrow = quantised(weight, "int8")
    return calls | {
        "linear in int8": lambda: linear.linear(x, narrow),
        "rows in fp8 before a product": lambda: linear.quantise_rows(x),
    }


@torch.inference_mode()
def main() -> None:
    launches = without_a_device()
    from backend import ops
    from backend.bench.model import _step
    from backend.cache.kvcache import KvCache
    from backend.model.loader import random_model
    from sim.catalog import load_model

    spec, device = load_model("tiny-llama").with_dtypes(dtype="bf16"), torch.device("cpu")
    model = random_model(spec, device)
    recorded: Any = Recorded(ops.kernel_ops())
    model.ops = recorded
    cache = KvCache.allocate(spec, 64, 16, device)
    bench: Any = type("Device", (), {"device": device, "ops": recorded, "small": True})
    work = _step(bench, model, cache, 4, 128)
    work(0)
    recorded.calls.clear()
    launches.clear()
    work(0)
    kernels, calls = Counter(launches), list(recorded.calls)
    for name, count in sorted(kernels.items()):
        print(f"{count:5}  {name}")
    total = sum(kernels.values())
    print(f"{total:5}  launches a step of {spec.layers} layers")
    empty_us, step_us, seen = cpu_us(lambda: torch.empty(64, device=device)), 0.0, Counter(name for name, _ in calls)
    for name, call in dict(calls).items():
        us = cpu_us(call)
        step_us += us * seen[name]
        print(f"{us:5.1f} us, {us / empty_us:4.1f} of torch.empty  {name}, {seen[name]} a step")
    print(f"{step_us:5.0f} us a step, {step_us / total / empty_us:.1f} of torch.empty ({empty_us:.1f} us) a launch")
    for name, call in other_steps().items():
        us = cpu_us(call)
        print(f"{us:5.1f} us, {us / empty_us:4.1f} of torch.empty  {name}")


if __name__ == "__main__":
    main()
