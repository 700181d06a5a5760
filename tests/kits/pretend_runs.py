"""Live runs on the pretended H200 beside the same runs on the CPU, and what that device refuses, as one JSON object.

`python tests/kits/pretend_runs.py RUN,...`: a process of its own, for nothing takes the pretended device away again.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pretend_gpu
import torch
from pretend_gpu import Device

pretend_gpu.install()

import triton  # noqa: E402  (the device has to be there before the backend looks for it)
import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from backend.cache.kvcache import LayerCache  # noqa: E402
from backend.kernels import linear, prefill_attention, silu_and_mul  # noqa: E402
from backend.kernels._form import form_of  # noqa: E402
from backend.kernels._launch import BoundKernel, Grid  # noqa: E402
from backend.live.packing import Stage  # noqa: E402
from calibrate import ranks  # noqa: E402
from calibrate.cases import Case, Range  # noqa: E402
from calibrate.latent import LatentBench  # noqa: E402
from calibrate.messages import VALUE, Message, Orders  # noqa: E402
from sim import api  # noqa: E402
from sim.catalog import load_model  # noqa: E402

Launch = tuple[str, BoundKernel, Grid, tuple[Any, ...]]
"""A name, a bound kernel, and what it is launched with."""

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


def rows_launches() -> tuple[BoundKernel, list[Launch]]:
    """Of a kernel of rows, by what Triton compiles anew for and what it does not."""
    constants: dict[str, Any] = {"BLOCK": 64, "INTERPRETED": False, "num_warps": 4}
    out = torch.empty(4, 32, device="cuda", dtype=torch.bfloat16)
    rows = torch.ones(5, 80, device="cuda", dtype=torch.bfloat16)
    inputs = {
        "dense": rows[:4, :64], "of another type": rows.half(), "of another stride": rows.view(-1)[:292].view(4, 73),
        "not aligned": rows.view(-1)[1:321].view(4, 80), "dense again": rows[:4, :64],
    }  # fmt: skip
    bound = BoundKernel(silu_and_mul._silu_and_mul_kernel, **constants)
    return bound, [(name, bound, (4, 1, 1), (x, out, 32, x.stride(0))) for name, x in inputs.items()]


@triton.jit
def fetch_kernel(tiles, out, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # noqa: N803
    at = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(out + at, tl.reshape(tiles.load([0, 0]), (ROWS, WIDTH)).to(tl.float32))


def descriptor_launches() -> tuple[BoundKernel, list[Launch]]:
    """Of a kernel that the copy engine serves: by type and tile of what it fetches, and not by how much there is."""
    bound = BoundKernel(fetch_kernel, ROWS=16, WIDTH=64, num_warps=4)
    out = torch.empty(16, 64, device="cuda")
    kinds = [
        ("16 x 64 of bf16", torch.bfloat16, 128, [16, 64]), ("16 x 64 of fp16", torch.float16, 128, [16, 64]),
        ("32 x 32 of fp16", torch.float16, 128, [32, 32]), ("16 x 64 of fewer", torch.bfloat16, 64, [16, 64]),
    ]  # fmt: skip
    stored = {name: torch.ones(rows, 64, device="cuda", dtype=kind) for name, kind, rows, _ in kinds}
    return bound, [
        (f"tiles of {name}", bound, (1, 1, 1), (TensorDescriptor.from_tensor(stored[name], tile), out))
        for name, _, _, tile in kinds
    ]


def attention_launches() -> Iterator[Launch]:
    """Of prefill attention, gathered and by the copy engine, and of its merge."""
    for block_tokens in (16, 64):
        cache = LayerCache.allocate(8, block_tokens, 1, 128, device=torch.device("cuda"), dtype=torch.bfloat16)
        q = torch.zeros(64, 4, 128, device="cuda", dtype=torch.bfloat16)
        tables, starts, lens = (torch.zeros(size, device="cuda", dtype=torch.int32) for size in ((1, 8), (2,), (1,)))
        form = form_of(q.dtype, 4, cache, 0, 0.0)
        tile = prefill_attention.tile_for(form, 90, 4096)
        assert tile.tma == (block_tokens == 64)
        k, v = (prefill_attention._descriptor(x, tile.keys) if tile.tma else x for x in (cache.k, cache.v))
        out, lse = torch.empty_like(q), torch.empty(64, 4, device="cuda")
        args = (q, k, v, None, None, tables, starts, lens, out, lse, 1, q.stride(0), 8, 0.1, 0.0, 0, 0)
        yield f"prefill, blocks of {block_tokens}", prefill_attention._bound(form, tile), (4, 1, 1), args
    parts = torch.zeros(64, 4, 2, 128, device="cuda"), torch.zeros(64, 4, 2, device="cuda")
    yield "merge", prefill_attention._merge_bound(2, 128), (64, 1, 1), (*parts, out, lse, 256)


def product_launches() -> Iterator[Launch]:
    """Of products of narrow weights."""
    x, scales = torch.zeros(4, 64, device="cuda", dtype=torch.bfloat16), torch.ones(4, 1, device="cuda")
    narrow = torch.zeros(4, 64, device="cuda", dtype=torch.float8_e4m3fn)
    yield "quantise", linear._quantise_bound(64), (4, 1, 1), (x, narrow, scales, 64, x.stride(0))
    weight, out = torch.zeros(32, 64, device="cuda", dtype=torch.int8), torch.empty(4, 32, device="cuda", dtype=x.dtype)
    args = (x, weight, torch.ones(32, device="cuda"), out, 4, 32, 64, x.stride(0))
    yield "int8", linear._int8_bound(linear.int8_tile(4, x.dtype)), (1, 1, 1), args


def launches() -> dict[str, list[bool]]:
    """Of a bound kernel's first and second launch: whether the launcher is given what Triton's own launch gives it."""
    seen: list[tuple[Any, ...]] = []
    call = pretend_gpu.PretendLauncher.__call__

    def spied(self: Any, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        seen.append((id(self), x, y, z, stream, function, rest[0], *map(id, rest[4:9]), *rest[9:]))
        call(self, x, y, z, stream, function, *rest)

    (rows, by_rows), (tiles, by_tiles) = rows_launches(), descriptor_launches()
    told = {}
    pretend_gpu.PretendLauncher.__call__ = spied  # type: ignore[method-assign]
    for name, bound, grid, args in (*by_rows, *by_tiles, *attention_launches(), *product_launches()):
        seen.clear()
        bound._kernel[grid](*args, **bound._constants)
        for _ in range(2):
            bound(grid, *args)
        told[name] = [one == seen[0] for one in seen[1:]]
    told["kernels"] = [len(rows._known) == 3, len(tiles._known) == 3]
    pretend_gpu.PretendLauncher.__call__ = call  # type: ignore[method-assign]
    return told


if __name__ == "__main__":
    found = {name: compared(RUNS[name]) for name in sys.argv[1].split(",")}
    measured = {**collectives(), **latent_attention()}
    print(json.dumps({"runs": found, "refused": refusals(), "measured": measured, "launched": launches()}))
