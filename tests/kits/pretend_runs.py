"""Live runs on the pretended H200 beside the same runs on the CPU, and what that device refuses, as one JSON object.

`python tests/kits/pretend_runs.py RUN,...`: a process of its own, for nothing takes the pretended device away again.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pretend_gpu
import torch
from pretend_gpu import Device

pretend_gpu.install()

from backend.kernels import silu_and_mul  # noqa: E402  (the device has to be there before the backend looks for it)
from backend.kernels._launch import BoundKernel  # noqa: E402
from backend.live.packing import Stage  # noqa: E402
from calibrate import ranks  # noqa: E402
from calibrate.cases import Case, Range  # noqa: E402
from calibrate.latent import LatentBench  # noqa: E402
from calibrate.messages import VALUE, Message, Orders  # noqa: E402
from sim import api  # noqa: E402
from sim.catalog import load_model  # noqa: E402

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,15,8\n0,31,6\n0.02,5,3\n"
BASE = {
    "executor": "live",
    "model": "tiny-llama",
    "kv.blocks": 64,
    "engine.max_num_batched_tokens": 32,
    "engine.max_num_seqs": 3,
    "engine.max_model_len": 128,
}
DRAFT = {
    "model": "byte-target",
    "policy": "speculative",
    "speculation.drafter": "draft-model",
    "speculation.draft_model": "byte-draft",
}
RUNS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "eager": {"engine.cuda_graphs": False},
    "prefix": {"allocator": "prefix"},
    "swap": {"kv.blocks": 4, "kv.swap_gib": 0.01},
    "window": {"allocator.name": "windowed", "allocator.window_tokens": 16, "allocator.sink_tokens": 4},
    "fp8": {"dtype": "bf16", "kv.dtype": "fp8", "weights": "fp8"},
    "int8": {"dtype": "bf16", "kv.dtype": "int8", "weights": "int8"},
    "sampled": {"live.temperature": 0.8, "live.top_k": 50, "live.top_p": 0.9},
    "n-grams": {"policy": "speculative", "speculation.drafter": "ngram"},
    "draft model": DRAFT,
    "draft model sampled": {**DRAFT, "live.temperature": 0.8},
}


def answers(device: str, settings: dict[str, Any]) -> tuple[list[list[int]], api.Result]:
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        trace.write_text(TRACE)
        result = api.run(trace=str(trace), device=device, **{**BASE, **settings})
    assert result.tokens is not None
    return [list(map(int, ids)) for ids in result.tokens["token_ids"]], result


def compared(settings: dict[str, Any]) -> dict[str, Any]:
    Device.launches.clear()
    there, result = answers("cuda", settings)
    kernels = sorted(set(Device.launches))
    here, _ = answers("cpu", settings)
    preempted = 0 if result.preempted is None else len(result.preempted)
    return {"cuda": there, "cpu": here, "kernels": kernels, "preempted": preempted}


def refusals() -> dict[str, str]:
    """What each mistake gives; nothing where it is not noticed."""
    x, y = torch.ones(4, device="cuda"), torch.ones(4)

    def captured(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                work()

        return run

    def hurried() -> None:
        stage = Stage(x.device)
        one = np.arange(3, dtype=np.int32)
        stage.send([one])
        stage.send([one + 1])
        torch.cuda.synchronize()

    def early() -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.cuda._sleep(10**9)
        end.record()
        begin.elapsed_time(end)

    mistakes: dict[str, Callable[[], Any]] = {
        "numpy": x.numpy,
        "mixed devices": lambda: x + y,
        "item in a capture": captured(x.sum().item),
        "copy down in a capture": captured(x.cpu),
        "pageable memory in a capture": captured(lambda: x.copy_(y)),
        "mask in a capture": captured(lambda: x[x > 0]),
        "pinned memory changed too early": hurried,
        "event read too early": early,
    }
    told = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
            told[name] = ""
        except (RuntimeError, TypeError) as error:
            told[name] = str(error)
        Device.unread.clear()
        Device.done_s = 0.0
    return told


def collectives() -> dict[str, list[float]]:
    """Microseconds of each collective in a process of a group, as `calibrate.ranks` tells them."""
    wanted = tuple(Message(op, 2, 4096) for op in VALUE)
    told = io.StringIO()
    sys.stdin = io.StringIO(Orders(0, 2, "cuda", "nowhere", wanted).text())
    with contextlib.redirect_stdout(told):
        ranks.main()
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    return {line["op"]: line["us"] for line in lines}


def latent_attention() -> dict[str, list[float]]:
    """Microseconds of latent attention of prompts, of chunks and of decode rows, by case."""
    spec = replace(load_model("deepseek-v2-lite"), heads=2, kv_heads=2).with_dtypes("bf16", "bf16")
    bench = LatentBench(spec, torch.device("cuda", 0), Range(32, 4, 64, 256), seed=0)
    told = {}
    for case in (Case(((16, 0),)), Case(((8, 32),) * 2), Case(decodes=(40,) * 3)):
        with bench.prepared(case, 0, timed=True) as measure:
            told[case.name] = [1e6 * one.seconds for one in measure().readings]
    return told


def launches() -> dict[str, list[bool]]:
    """Of a bound kernel's first and second launch: whether the launcher is given what Triton's own launch gives it."""
    seen: list[tuple[Any, ...]] = []
    call = pretend_gpu.PretendLauncher.__call__

    def spied(self: Any, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        seen.append((id(self), x, y, z, stream, function, rest[0], *map(id, rest[4:9]), *rest[9:]))
        call(self, x, y, z, stream, function, *rest)

    kernel = silu_and_mul._silu_and_mul_kernel
    constants: dict[str, Any] = {"BLOCK": 64, "INTERPRETED": False, "num_warps": 4}
    bound, out = BoundKernel(kernel, **constants), torch.empty(4, 32, device="cuda", dtype=torch.bfloat16)
    rows = torch.ones(5, 80, device="cuda", dtype=torch.bfloat16)
    inputs = {
        "dense": rows[:4, :64], "of another type": rows.half(), "of another stride": rows.view(-1)[:292].view(4, 73),
        "not aligned": rows.view(-1)[1:321].view(4, 80), "dense again": rows[:4, :64],
    }  # fmt: skip
    told = {}
    pretend_gpu.PretendLauncher.__call__ = spied  # type: ignore[method-assign]
    for name, x in inputs.items():
        seen.clear()
        kernel[(4, 1, 1)](x, out, 32, x.stride(0), **constants)
        for _ in range(2):
            bound((4, 1, 1), x, out, 32, x.stride(0))
        told[name] = [one == seen[0] for one in seen[1:]]
    told["kernels"] = [len(bound._known) == 3]
    pretend_gpu.PretendLauncher.__call__ = call  # type: ignore[method-assign]
    return told


if __name__ == "__main__":
    found = {name: compared(RUNS[name]) for name in sys.argv[1].split(",")}
    measured = {**collectives(), **latent_attention()}
    print(json.dumps({"runs": found, "refused": refusals(), "measured": measured, "launched": launches()}))
