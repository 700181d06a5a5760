"""The lines of what is made of operations: a CUDA graph, and short live runs of a small model in each mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from backend.live.graphs import CudaRecorder
from backend.prove.smoke.case import SkipError, SmokeCase, SmokeGround, SmokeResult, distance, generator
from sim import api, scenario
from traces.rows import from_frame

MODEL = "tiny-llama"
STEPS = 20
SWAPPED = {"kv.blocks": 6, "kv.swap_gib": 0.01}
"""Two answers do not fit beside each other, so that one is moved to the host."""
DRAFTING = {"policy.name": "speculative", "speculation.drafter": "ngram"}


def cases() -> list[SmokeCase]:
    return [
        SmokeCase("live, launched one by one", lambda ground: _live(ground, {"engine.cuda_graphs": False})),
        SmokeCase("CUDA graph, captured and replayed", _graph),
        SmokeCase("live, CUDA graphs", lambda ground: _live(ground, _graphs(ground))),
        SmokeCase("live, fp8 cache", lambda ground: _live(ground, {"kv.dtype": "fp8"})),
        SmokeCase("live, prefix cache", lambda ground: _live(ground, {"allocator.name": "prefix"})),
        SmokeCase("live, preempted and swapped", lambda ground: _live(ground, SWAPPED, moved=True)),
        SmokeCase("live, drafting by n-grams", lambda ground: _live(ground, DRAFTING)),
        SmokeCase("live, int8 cache", lambda ground: _live(ground, {"kv.dtype": "int8"})),
        SmokeCase("live, fp8 weights", lambda ground: _live(ground, {"dtype": "bf16", "weights": "fp8"})),
        SmokeCase("live, int8 weights", lambda ground: _live(ground, {"dtype": "bf16", "weights": "int8"})),
        SmokeCase(
            "live, window and sinks",
            lambda ground: _live(ground, {"allocator.name": "windowed", "allocator.window_tokens": 32}),
        ),
        SmokeCase(
            "live, temperature and top-p", lambda ground: _live(ground, {"live.temperature": 0.8, "live.top_p": 0.9})
        ),
    ]


def _graph(ground: SmokeGround) -> SmokeResult:
    """A norm and an activation recorded on one input, replayed on another."""
    if not ground.cuda:
        raise SkipError("CUDA graphs need CUDA")
    first, second = (torch.randn((8, 1024), generator=generator(seed)).to(ground.kind) for seed in (1, 2))
    held, weight = first.to(ground.device), torch.ones(1024, dtype=ground.kind, device=ground.device)

    def work() -> torch.Tensor:
        return ground.ops.silu_and_mul(ground.ops.rms_norm(held, weight, 1e-5)[0])

    recording = CudaRecorder()(work)
    held.copy_(second.to(ground.device))
    recording.replay()
    torch.cuda.synchronize(ground.device)
    replayed = recording.result.clone()
    return SmokeResult(distance(replayed, work()), 0.0, "beside the same launched one by one")


def _graphs(ground: SmokeGround) -> dict[str, Any]:
    if not ground.cuda:
        raise SkipError("CUDA graphs need CUDA")
    return {"engine.cuda_graphs": True}


def _live(ground: SmokeGround, settings: Mapping[str, Any], *, moved: bool = False) -> SmokeResult:
    """Three requests of a model of two layers served to their ends; the error is the share that did not get there.

    `moved`: some of their blocks must have been swapped to the host.
    """
    given: dict[str, Any] = {
        "executor": "live",
        "device": str(ground.device),
        "model": MODEL,
        "dtype": ground.dtype,
        "kv.blocks": 64,
        "kv.block_tokens": 16,
        "engine.max_num_seqs": 4,
        "engine.max_num_batched_tokens": 128,
        "engine.max_model_len": 128,
    }
    arrivals = pd.DataFrame({"arrival_s": [0.0, 0.0, 0.001], "prompt_tokens": [40, 30, 20], "output_tokens": STEPS})
    trace = from_frame(arrivals, name="smoke", synthetic=True)
    result = api.simulate(scenario.build({}, {**given, **settings}), trace=trace)
    summary = result.summary
    served = summary["requests"]["completed"] / len(arrivals)
    if moved and not summary["kv"]["swapped_bytes"]:
        return SmokeResult(1.0, 0.0, "nothing was swapped")
    return SmokeResult(1.0 - served, 0.0, f"{len(result.steps)} steps")
