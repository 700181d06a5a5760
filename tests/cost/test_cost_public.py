"""The roofline beside public measurements.

`pytest tests/cost/test_cost_public.py -sq` prints the errors that docs/profiles.md reports; the bounds here keep
them from growing unnoticed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from sim.catalog import load_gpu, load_model
from sim.cost.capacity import kv_capacity
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import Kernels
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel

pytestmark = pytest.mark.shared

H100 = load_gpu("h100")
KERNELS = Kernels(H100, Efficiency.of(H100), "bf16", "bf16")


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Its rows as named tuples."""
    return iter(table.itertuples(index=False))


def report(what: str, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> tuple[float, float]:
    """(mean absolute error, bias), both relative; prints them with the 90th percentile."""
    error = np.asarray(predicted, float) / np.asarray(measured, float) - 1.0
    mean, bias = float(np.abs(error).mean()), float(error.mean())
    p90 = float(np.quantile(np.abs(error), 0.9))
    sys.stdout.write(
        f"\n{what}: {len(error)} points, mean error {mean:.1%}, 90th percentile {p90:.1%}, bias {bias:+.1%}"
    )
    return mean, bias


CARDS = {"h100": "h100", "a100-80": "a100", "l40s": "l40s", "b200": "b200"}
LIMITS = {
    "GEMM": {"h100": 0.065, "a100-80": 0.065, "l40s": 0.18, "b200": 0.07},
    "prefill attention": {"h100": 0.08, "a100-80": 0.08, "l40s": 0.12, "b200": 0.08},
    "decode attention": {"h100": 0.07, "a100-80": 0.065, "l40s": 0.6, "b200": 0.08},
}
"""Mean errors by card. The L40S's tables were measured with operands in its L2 of 96 MB, which prices leave out."""


@pytest.mark.parametrize("gpu", CARDS)
def test_kernel_tables(shared: Path, gpu: str) -> None:
    """The card's own constants against its own tables, and (printed) those of each other card."""
    spec, folder = load_gpu(gpu), shared / f"measured/{CARDS[gpu]}_kernels"
    gemm, prefill, decode = (
        pd.read_csv(folder / f"{name}_bf16.csv") for name in ("gemm", "context_attention", "generation_attention")
    )

    def seconds(fit: str) -> dict[str, tuple[list[float], Any]]:
        kernels = Kernels(spec, Efficiency.of(spec, fit=fit), "bf16", "bf16")
        floor_s = kernels.eff.prefill_attention_floor_s
        launches, batches = [], []
        for row in rows_of(prefill):
            heads = kernels.prefill_attention(row.num_heads, row.num_key_value_heads, row.head_dim)
            launches.append(floor_s + heads.launch_s(((row.isl, 0),), 0, row.batch_size))
        for row in rows_of(decode):
            heads_of = kernels.decode_attention(row.num_heads, row.num_key_value_heads, row.head_dim)
            batches.append(heads_of.seconds(row.batch_size, row.batch_size * (row.step + 1)))
        products = [kernels.gemm_s(row.m, row.k, row.n) for row in rows_of(gemm)]
        return {
            "GEMM": (products, gemm.latency_ms / 1e3),
            "prefill attention": (launches, prefill.latency_ms / 1e3),
            "decode attention": (batches, decode.latency_ms / 1e3),
        }

    for what, pair in seconds("auto").items():
        mean, _ = report(f"{gpu} {what}, fitted", *pair)
        assert mean < LIMITS[what][gpu]
    for other in CARDS:
        if other != gpu:
            for what, pair in seconds(other).items():
                report(f"{gpu} {what}, by the constants of the {other}", *pair)


def test_all_reduce(shared: Path) -> None:
    """Against whichever of vLLM's custom kernel and NCCL is faster, as vLLM chooses by size.

    The table's message sizes are elements: an int8 message of 2 n takes what a half one of n does.
    """
    folder = shared / "measured/h100_kernels"
    custom, nccl = (
        pd.read_csv(folder / name) for name in ("vllm0.24.0_custom_allreduce.csv", "nccl2.29.2_collectives.csv")
    )
    keys = ["num_gpus", "message_size"]
    nccl = nccl[(nccl.op_name == "all_reduce") & (nccl.nccl_dtype == "half")]
    table = custom[custom.backend == "vllm_graph"].merge(nccl, on=keys)
    measured = table[["latency_ms_x", "latency_ms_y"]].min(axis=1) / 1e3
    seconds = [KERNELS.all_reduce_s(2 * row.message_size, row.num_gpus) for row in rows_of(table)]
    mean, bias = report("H100 all-reduce, from its points", seconds, measured)
    assert mean < 0.02
    assert abs(bias) < 0.02


def test_qwen3_32b_served_by_vllm_on_h100(shared: Path) -> None:
    """Mean TPOT at fixed concurrency, in the steady state: a decode step, and while a request makes its tokens every
    other one is replaced once, so that each step carries (concurrency - 1) / output_tokens prompts.

    vLLM 0.12 plans a step when the last has ended, so the host's time adds. Runs whose requests do not fit in the
    cache together are left out: there requests wait, which no step time shows.
    """
    table = pd.read_csv(shared / "measured/silicon_h100_qwen3_32b_vllm/silicon.csv")
    table = table[table.gemm_quant_mode != "fp8"]
    model = load_model("qwen3-32b")
    predicted, measured, left_out = [], [], 0
    for row in rows_of(table):
        users, prompt, output, tp = int(row.batch_size), int(row.isl), int(row.osl), int(row.tp_size)
        if users * (prompt + output) > kv_capacity(model, H100, parallel=Parallel(tp)).tokens:
            left_out += 1
            continue
        cost = Roofline(model, H100, parallel=Parallel(tp))
        step, host_s = cost.span_s(Shape(decodes=users, decode_context=users * (prompt + output // 2)), 1)
        prefill, _ = cost.span_s(Shape(((prompt, 0),)), 1)
        predicted.append(step[0] + host_s + (users - 1) / output * prefill[0])
        measured.append(row.silicon_tpot_ms / 1e3)
    mean, bias = report(f"Qwen3-32B on H100, vLLM 0.12, TPOT ({left_out} runs left out)", predicted, measured)
    assert left_out < 10
    assert mean < 0.11
    assert abs(bias) < 0.08


def test_llama2_70b_on_a100(shared: Path) -> None:
    """Medians of prompt and token times. Batched prompts are left out: there the table has per-batch and odd rows."""
    table = pd.read_csv(shared / "measured/splitwise_llama2_70b_a100/perf_model.csv")
    keys = ["tensor_parallel", "batch_size", "prompt_size", "token_size"]
    table = table[table.batch_size == 1].groupby(keys)[["prompt_time", "token_time"]].median().reset_index()
    prompts: dict[int, tuple[list[float], list[float]]] = {}
    tokens: dict[int, tuple[list[float], list[float]]] = {}
    for row in rows_of(table):
        tp, prompt = int(row.tensor_parallel), int(row.prompt_size)
        cost = Roofline(load_model("llama-2-70b"), load_gpu("a100-80"), parallel=Parallel(tp), cuda_graphs=False)
        seconds, _ = cost.span_s(Shape(((prompt, 0),)), 1)
        context = prompt + int(row.token_size) // 2
        step, host_s = cost.span_s(Shape(decodes=1, decode_context=context), 1)
        for found, ours, theirs in (
            (prompts, seconds[0] + host_s, row.prompt_time),
            (tokens, step[0] + host_s, row.token_time),
        ):
            found.setdefault(tp, ([], []))[0].append(ours)
            found[tp][1].append(theirs / 1e3)
    for tp, pair in prompts.items():
        mean, _ = report(f"Llama-2-70B on {tp} A100, prompt", *pair)
        token_mean, _ = report(f"Llama-2-70B on {tp} A100, token", *tokens[tp])
        assert mean < {2: 0.2, 4: 0.3, 8: 0.45}[tp]
        assert token_mean < {2: 0.3, 4: 0.5, 8: 0.5}[tp]
