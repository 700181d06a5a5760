"""Small files in the layouts of others, made by the tests: times are a stated multiple of what an H100 needs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrate.importers.build import Imported
from sim.catalog import load_gpu
from sim.cost.tables import Value

H100 = load_gpu("h100")
Cell = str | int | float

RTX_PRO_6000 = """
name = "rtx-pro-6000"
description = "NVIDIA RTX PRO 6000 Blackwell Server Edition 96 GB"
source = "NVIDIA RTX PRO 6000 Blackwell Server Edition data sheet"
memory_bytes = 102_641_958_912
memory_bytes_per_s = 1.597e12
fp16_flops_per_s = 503.8e12
bf16_flops_per_s = 503.8e12
fp8_flops_per_s = 1007.6e12
fp32_flops_per_s = 120e12
sms = 188
l2_bytes = 134_217_728
pcie_bytes_per_s = 64e9
link_bytes_per_s = 0
watts = 600
"""
"""As docs/profiles.md has it."""


def write_csv(path: Path, rows: Sequence[Mapping[str, Cell]]) -> Path:
    """Rows of one header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def gemm_us(m: int, k: int, n: int, times: float = 2.0) -> float:
    """`times` what the H100's data sheet needs for a bf16 product, and 4 us."""
    moved_bytes = 2.0 * (m * k + k * n + m * n)
    return 4.0 + times * 1e6 * max(moved_bytes / H100.memory_bytes_per_s, 2.0 * m * k * n / H100.bf16_flops_per_s)


def attention_us(kv_heads: int, head_dim: int, tokens: int) -> float:
    """Twice the reading of so many tokens' bf16 keys and values, and 8 us."""
    return 8.0 + 2e6 * 4.0 * kv_heads * head_dim * tokens / H100.memory_bytes_per_s


def aic_gemms(
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 64, 256, 1024, 4096), scale: float = 1e-3
) -> list[dict[str, Cell]]:
    """Rows of AIConfigurator's gemm_perf, in milliseconds unless `scale` says otherwise."""
    return [
        {
            "framework": "VLLM",
            "version": "0.22.0",
            "device": "NVIDIA H100 80GB HBM3",
            "op_name": "gemm",
            "kernel_source": "vllm_default",
            "gemm_dtype": "bfloat16",
            "m": m,
            "n": 4096,
            "k": 8192,
            "latency": gemm_us(m, 8192, 4096) * scale,
        }
        for m in sizes
    ]


def op_profile(folder: Path, shots: int = 3, scale: float = 3.0) -> Path:
    """An LLMServingSim profile of Llama-3.1-8B; skew.csv has `scale` times attention.csv's times."""
    shapes = {
        "qkv_proj": (4096, 6144),
        "o_proj": (4096, 4096),
        "gate_up_proj": (4096, 28672),
        "down_proj": (14336, 4096),
    }
    dense: list[dict[str, Cell]] = [
        {"layer": layer, "tokens": tokens, "time_us": gemm_us(tokens, *shape)}
        for layer, shape in shapes.items()
        for tokens in (1, 16, 256, 2048)
    ]
    small = ("layernorm", "final_layernorm", "rotary_emb", "act_fn", "embedding")
    dense += [
        {"layer": layer, "tokens": tokens, "time_us": 3.0 + tokens / 16}
        for layer in small
        for tokens in (1, 16, 256, 2048)
    ]
    write_csv(folder / "dense.csv", dense)
    heads = [{"layer": "lm_head", "sequences": n, "time_us": gemm_us(n, 4096, 128256)} for n in (1, 16, 256)]
    samplers = [{"layer": "sampler", "sequences": n, "time_us": 25.0 + n / 2} for n in (1, 16, 256)]
    write_csv(folder / "per_sequence.csv", [*heads, *samplers])
    sizes = [(0, 0, n, kv) for n in (1, 8) for kv in (128, 1024)] + [(64, 0, 0, 0), (64, 512, 0, 0), (64, 512, 8, 1024)]
    rows: list[dict[str, Cell]] = [
        {
            "prefill_chunk": new,
            "kv_prefill": past,
            "n_decode": n,
            "kv_decode": kv,
            "time_us": _launch(new, past, n * kv),
        }
        for new, past, n, kv in sizes
    ]
    write_csv(folder / "attention.csv", rows)
    common = {"n": 8, "nb": 2, "ratio": 0.25, "skew": 8.0, "kvs": 128, "kv_big": 1024, "kv_mean": 352}
    times = {"t_mean_us": scale * _launch(0, 0, 8 * 352), "t_max_us": scale * _launch(0, 0, 8 * 1024)}
    uneven = {"t_skew_us": 1.1 * scale * _launch(0, 0, 8 * 352), "alpha": 0.1}
    pure: dict[str, Cell] = {"regime": "pure", "pc": 0, "kp": 0, **common, **times, **uneven}
    write_csv(folder / "skew.csv", [pure, {**pure, "regime": "mixed", "pc": 64, "kp": 512}])
    (folder / "meta.yaml").write_text(
        "vllm_version: 0.19.0\ngpu: NVIDIA H100 80GB HBM3\nprofiled_at: '2026-04-24'\nmodel: meta-llama/Llama-3.1-8B\n"
        f"variant: bf16\ntp_degrees: [1, 2]\nengine:\n  model: /tmp/other\nmeasurement_iterations: {shots}\n"
    )
    return folder


def _launch(new: int, past: int, tokens: int) -> float:
    return attention_us(8, 128, tokens + past + new)


def splitwise_rows(tp: int = 2, repeats: int = 3) -> list[dict[str, Cell]]:
    """Llama-2-70B on A100s: a prompt of 512 tokens alone, and 64 of them in a time that no two A100s can keep."""
    told: list[dict[str, Cell]] = []
    for batch, prompt_ms in ((1, 196.0), (64, 794.0)):
        for repeat in range(repeats):
            told.append(
                {
                    "model": "llama2-70b",
                    "hardware": "a100-80gb",
                    "prompt_size": 512,
                    "batch_size": batch,
                    "token_size": 128,
                    "peak_power": 1.0,
                    "prompt_time": prompt_ms + repeat,
                    "token_time": 54.0 + repeat / 10,
                    "tensor_parallel": tp,
                }
            )
    return told


def vidur_folder(folder: Path) -> Path:
    """Vidur's three files for Llama-2-7B's sizes, as its profiler lays them out; written for the test, not copied."""
    stats = ("min", "max", "mean", "median", "std")

    def timed(**times: float) -> dict[str, Cell]:
        return {f"time_stats.{name}.{stat}": time for name, time in times.items() for stat in stats}

    mlp: list[dict[str, Cell]] = [
        {
            **timed(
                emb=0.006,
                input_layernorm=0.005,
                attn_pre_proj=gemm_us(tokens, 4096, 12288 // tp) / 1e3,
                attn_rope=0.006,
                attn_post_proj=gemm_us(tokens, 4096 // tp, 4096) / 1e3,
                post_attention_layernorm=0.005,
                mlp_up_proj=gemm_us(tokens, 4096, 22016 // tp) / 1e3,
                mlp_act=0.008,
                mlp_down_proj=gemm_us(tokens, 11008 // tp, 4096) / 1e3,
                add=0.004,
            ),
            "n_head": 32,
            "n_kv_head": 32,
            "n_embd": 4096,
            "n_expanded_embd": 11008,
            "vocab_size": 32768,
            "use_gated_mlp": True,
            "num_tokens": tokens,
            "num_tensor_parallel_workers": tp,
        }
        for tp in (1, 2)
        for tokens in (1, 64, 512)
    ]
    write_csv(folder / "mlp.csv", mlp)
    attention: list[dict[str, Cell]] = []
    for prefill, batch, new, past in ((True, 1, 128, 0), (True, 1, 128, 256), (False, 4, 0, 255)):
        us = attention_us(32, 128, batch * (new + past))
        both: dict[str, Cell] = {"time_stats.attn_prefill.median": "", "time_stats.attn_decode.median": ""}
        both[f"time_stats.attn_{'prefill' if prefill else 'decode'}.median"] = us / 1e3
        sizes: dict[str, Cell] = {"batch_size": batch, "prefill_chunk_size": new, "kv_cache_size": past}
        model: dict[str, Cell] = {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 32, "num_tensor_parallel_workers": 1}
        attention.append({**both, **model, "block_size": 16, **sizes, "is_prefill": str(prefill)})
    write_csv(folder / "attention.csv", attention)
    collectives: list[dict[str, Cell]] = [
        {**timed(all_reduce=0.02), "rank": 0, "num_workers": gpus, "size": 8192, "collective": "all_reduce", **where}
        for gpus, where in (
            (2, {"devices_per_node": 2, "max_devices_per_node": 8}),
            (8, {"devices_per_node": 4, "max_devices_per_node": 4}),
        )
    ]
    write_csv(folder / "all_reduce.csv", collectives)
    return folder


def rows_of(found: Imported, table: str) -> list[dict[str, Value]]:
    """The rows of a table of an imported profile."""
    return list(found.profile.tables[table].rows())


def left_out(found: Imported) -> dict[tuple[str, str], int]:
    """Rows left out by table and reason."""
    return {(one.table, one.reason.split(":")[0]): one.rows for one in found.left_out}
