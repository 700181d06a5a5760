"""Profiles made of known laws, for tests of what reads, prices and fits them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sim.catalog import load_gpu, load_model
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import guide_of
from sim.cost.profile import Meta, Profile
from sim.cost.tables import Table, Value

GPU, MODEL = load_gpu("h100"), load_model("llama-3.1-8b")
EFFICIENCY = Efficiency.of(GPU)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HEADS: dict[str, Value] = {
    "dtype": "bf16",
    "kv_dtype": "bf16",
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "window": 0,
}
GEMMS = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256))
SMALL = (("norm", 4096), ("activation", 14336), ("embedding", 4096), ("rope", 5120), ("kv_write", 2048))
PARTS: tuple[Mapping[str, Value], ...] = tuple(
    {"parts": parts, "graph": graph} for parts in ("prefill", "decode", "mixed") for graph in (0, 1)
)

Law = Callable[[str, Mapping[str, Value], tuple[float, ...]], float]
"""Seconds of a kernel (table, group) at a point of the table's axes."""


def scaled_roofline(factor: float) -> Law:
    """A device that takes `factor` times what the roofline says."""
    return lambda name, group, point: factor * guide_of(name, group, GPU, EFFICIENCY)(point)


def table(name: str, groups: Iterable[Mapping[str, Value]], axes: Mapping[str, Sequence[int]], law: Law) -> Table:
    """A whole grid of a law."""
    rows = []
    for group in groups:
        for point in itertools.product(*axes.values()):
            row: dict[str, Value] = {**group, **dict(zip(axes, point, strict=True))}
            if name == "decode_attention":
                row["max_context_tokens"] = row["mean_context_tokens"]
            rows.append({**row, "us": 1e6 * law(name, group, tuple(map(float, point)))})
    return Table.of(name, rows)


def llama_tables(law: Law, *, mixed: bool = False) -> dict[str, Table]:
    """Every table that Llama-3.1-8B in bf16 on one GPU needs."""
    gemms = [{"dtype": "bf16", "weight_dtype": "bf16", "k": k, "n": n} for k, n in GEMMS]
    small = [
        {"op": op, "dtype": "bf16", "kv_dtype": "bf16" if op == "kv_write" else "none", "width": width}
        for op, width in SMALL
    ]
    contexts = (16, 64, 256, 1024, 4096, 16384)
    prefill = {"sequences": (1, 4), "past_tokens": (0, 512, 2048, 8192), "new_tokens": (16, 64, 256, 1024, 4096)}
    made = {
        "gemm": table("gemm", gemms, {"tokens": TOKENS}, law),
        "prefill_attention": table("prefill_attention", [HEADS], prefill, law),
        "decode_attention": table(
            "decode_attention",
            [{**HEADS, "width": 1}],
            {"sequences": (1, 4, 16, 64, 256), "mean_context_tokens": contexts},
            law,
        ),
        "elementwise": table("elementwise", small, {"tokens": TOKENS}, law),
        "sampling": table("sampling", [{"vocab": 128256}], {"rows": (1, 8, 64, 256)}, law),
        "copy": table("copy", [{}], {"bytes": (2**15, 2**25)}, law),
        "swap": table("swap", [{"direction": way} for way in ("out", "in")], {"bytes": (2**15, 2**25)}, law),
        "host": table("host", PARTS, {"rows": (1, 16, 256), "prefill_tokens": (0, 2048)}, law),
    }
    if mixed:
        axes = {
            "decodes": (1, 16, 256),
            "mean_context_tokens": contexts,
            "past_tokens": (0, 1024),
            "new_tokens": (16, 1024),
        }
        made["mixed_attention"] = table("mixed_attention", [HEADS], axes, law)
    return {name: made[name] for name in made}


def meta(**changed: Any) -> Meta:
    """A description of a profile of the H100."""
    told: dict[str, Any] = {
        "name": "made-up",
        "gpu": "h100",
        "device": "a law",
        "kind": "measured",
        "source": "tests",
        "date": "2026-01-01",
    }
    return Meta(**{**told, **changed})


def llama_profile(factor: float = 1.3, *, mixed: bool = False, **changed: Any) -> Profile:
    """A profile of a device `factor` times as slow as the roofline has it."""
    return Profile(meta(**changed), llama_tables(scaled_roofline(factor), mixed=mixed))
