"""Constants of the roofline from a card's kernel tables: each kind of kernel by itself, by least mean error.

The forms are the product's own (`sim.cost.gemm`, `attend`, `experts`), so that what is fitted is what prices a step.
Tables are measured by launching one kernel again and again; on cards with a large L2 cache a part of its operands then
stays there, which it does not in a model whose layers follow one another. Where that explains a table better, the part
is fitted beside and forgotten: prices are those of operands in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from sim.cost.efficiency import Efficiency
from sim.cost.experts import TOLD, ExpertLoad, Routing, even_load
from sim.cost.gemm import Product
from sim.cost.kernels import Kernels
from sim.cost.tables import Table, Value
from sim.specs.gpu import GpuSpec

Floats = npt.NDArray[np.float64]
STEPS = 900
"""Evaluations of one search; more gain less than a tenth of a point."""
ROUNDS = 2
CACHE_GAIN, CACHE_FROM = 0.01, 0.08
"""Mean error that a share in L2 must explain to be believed, and what the form must be off to ask whether it does."""
_SIXTEEN = ("bf16", "fp16")
_L2_RATE = 3.0


@dataclass(frozen=True, slots=True)
class FormSearch:
    """Where a fit starts, the values of constants that are tried one by one, and whether operands may be in L2."""

    start: Mapping[str, float]
    tried: Sequence[Mapping[str, float]] = ({},)
    cached: bool = False


SEARCHES: Mapping[str, FormSearch] = {
    "gemm": FormSearch(
        {
            "gemm_compute": 0.85, "gemm_memory": 0.8, "gemm_floor_s": 3e-6, "gemm_feed": 0.03, "gemm_tile_s": 1e-6,
            "gemm_split_s": 2e-6, "gemm_exposed": 0.35, "sustained_compute": 0.8, "sustained_after_s": 7e-4,
        },
        cached=True,
    ),
    "gemm_fp8": FormSearch({"gemm_compute_fp8": 0.6, "gemm_floor_s_fp8": 4e-6, "quantise_row_s": 5e-9}),
    "decode_attention": FormSearch(
        {
            "decode_attention_memory": 0.85, "decode_attention_floor_s": 9e-6, "decode_program_s": 3e-6,
            "decode_exposed": 0.4, "decode_idle": 0.5, "decode_split_s": 5e-6, "decode_split_tokens": 1500.0,
            "decode_swap_s": 2e-6,
        },
        cached=True,
    ),
    "prefill_attention": FormSearch(
        {
            "prefill_attention_compute": 0.65, "prefill_attention_floor_s": 9e-6, "prefill_tile_s": 2e-6,
            "prefill_memory": 0.6, "prefill_chain": 0.8, "prefill_exposed": 0.5,
        },
        [
            {"prefill_tile_tokens": 64.0, "prefill_packed": 0.0},
            {"prefill_tile_tokens": 128.0, "prefill_packed": 0.0},
            {"prefill_tile_tokens": 128.0, "prefill_packed": 1.0},
        ],
    ),
    "prefill_attention_64": FormSearch({"prefill_attention_compute_64": 0.5}),
    "experts": FormSearch(
        {
            "expert_compute": 0.6, "expert_memory": 0.85, "expert_floor_s": 8e-6, "expert_tile_s": 2e-6,
            "expert_exposed": 0.3,
        },
        cached=True,
    ),
    "experts_fp8": FormSearch({"expert_compute_fp8": 0.5}),
}  # fmt: skip
"""By operation, in the order in which they are fitted: later ones rest on the constants of earlier ones."""


class KernelFit(NamedTuple):
    """Constants of one operation, how many rows, (predicted - measured) / measured of each, and bytes that a table kept
    in L2 (0: none)."""

    constants: dict[str, float]
    errors: Floats
    cached_bytes: float


Seconds = Callable[[Efficiency, float, float], Floats]
"""Of all rows, by the constants, bytes that stay in L2 and how many times faster than memory it is read."""


def fit_all(tables: Mapping[str, Table], gpu: GpuSpec, base: Efficiency) -> Iterator[tuple[str, KernelFit]]:
    """Each operation that the tables have rows of."""
    eff = base
    for name, search in SEARCHES.items():
        rows = _rows(tables, name)
        if not rows:
            continue
        fitted = _fit(search, eff, *_PRICES[name](rows, gpu), gpu)
        eff = eff.changed(fitted.constants, "this fit")
        yield name, fitted
        if name == "decode_attention" and (narrow := _rows(tables, "decode_attention_64")):
            seconds, measured = _decode(narrow, gpu)
            yield (
                "decode_attention_64",
                KernelFit({}, seconds(eff, fitted.cached_bytes, _L2_RATE) / measured - 1.0, 0.0),
            )


def _fit(search: FormSearch, eff: Efficiency, seconds: Seconds, measured: Floats, gpu: GpuSpec) -> KernelFit:
    best: tuple[float, dict[str, float], float, float] | None = None
    for cached in (0.0, 0.2, 1.0):
        if cached and (not search.cached or (best is not None and best[0] < CACHE_FROM)):
            break
        for tried in search.tried if not cached else [_tried(search, best)]:
            found = _search(search, eff.changed(tried, "tried"), seconds, measured, gpu, cached)
            if best is None or found[0] < best[0] - (CACHE_GAIN if cached else 0.0):
                best = found[0], {**found[1], **tried}, found[2], found[3]
    assert best is not None
    _, constants, kept, rate = best
    constants = {name: float(f"{value:.4g}") for name, value in constants.items()}
    predicted = seconds(eff.changed(constants, "fit"), kept, rate)
    return KernelFit(constants, predicted / measured - 1.0, kept)


def _tried(search: FormSearch, best: tuple[float, dict[str, float], float, float] | None) -> dict[str, float]:
    assert best is not None
    return {name: best[1][name] for name in search.tried[0]}


def _search(
    search: FormSearch, eff: Efficiency, seconds: Seconds, measured: Floats, gpu: GpuSpec, cached: float
) -> tuple[float, dict[str, float], float, float]:
    """(mean error, constants, bytes in L2, times memory's rate) by Nelder and Mead, in logarithms."""
    names, kept = list(search.start), cached * gpu.l2_bytes
    starts = [*search.start.values(), *((kept, _L2_RATE) if kept else ())]
    shares = {name for name in names if not _limitless(name)}

    def unpack(point: Floats) -> tuple[dict[str, float], float, float]:
        values = np.exp(point)
        return dict(zip(names, map(float, values), strict=False)), *((values[-2], values[-1]) if kept else (0.0, 1.0))

    def error(point: Floats) -> float:
        constants, stays, rate = unpack(point)
        beyond = sum(max(0.0, constants[name] - 1.0) for name in shares) + max(0.0, stays / gpu.l2_bytes - 1.5)
        if beyond or max(constants.values()) > 1e8:
            return 1.0 + beyond
        predicted = seconds(eff.changed(constants, "search"), stays, rate)
        return float(np.mean(np.abs(np.log(predicted / measured))))

    point = np.log(starts)
    for _ in range(ROUNDS):
        corners = [point, *(point + 0.25 * axis for axis in np.eye(len(point)))]
        for corner, name in zip(corners[1:], names, strict=False):
            if name in shares:
                corner[names.index(name)] -= 0.5
        made: Any = minimize(
            error, point, method="Nelder-Mead",
            options={"maxfev": STEPS, "adaptive": True, "initial_simplex": np.array(corners)},
        )  # fmt: skip
        point = made.x
    return (float(made.fun), *unpack(point))


def _limitless(name: str) -> bool:
    """Whether a constant is no share of something."""
    return "_s" in (name[-2:], name[-6:-4]) or name in (
        "gemm_feed",
        "prefill_chain",
        "decode_idle",
        "decode_split_tokens",
    )


def _rows(tables: Mapping[str, Table], operation: str) -> list[dict[str, Value]]:
    table = tables.get(TABLE_OF[operation])
    if table is None:
        return []
    eight = operation.endswith("_fp8")
    dim = 64 if operation.endswith("_64") else 128
    rows = []
    for row in table.rows():
        if row["dtype"] not in _SIXTEEN:
            continue
        if "weight_dtype" in row and row["weight_dtype"] != ("fp8" if eight else row["dtype"]):
            continue
        if "head_dim" in row and (row["head_dim"] != dim or row["kv_dtype"] not in _SIXTEEN or row["window"]):
            continue
        if row.get("width", 1) != 1 or row.get("max_context_tokens", 0) != row.get("mean_context_tokens", 0):
            continue
        rows.append(dict(row))
    return rows


def _column(rows: Sequence[Mapping[str, Value]], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])


def _measured(rows: Sequence[Mapping[str, Value]]) -> Floats:
    return 1e-6 * _column(rows, "us")


def _from_l2(memory_s: Floats, moved: Floats, kept: float, rate: float) -> Floats:
    """Memory seconds where operands of up to about `kept` bytes are read `rate` times as fast."""
    if not kept:
        return memory_s
    share = np.clip(1.5 - moved / kept, 0.0, 1.0)
    return memory_s * (1.0 - share + share / rate)


def _gemm(rows: Sequence[Mapping[str, Value]], gpu: GpuSpec) -> tuple[Seconds, Floats]:
    m, k, n = (_column(rows, name) for name in ("tokens", "k", "n"))
    dtype, weights = str(rows[0]["dtype"]), str(rows[0]["weight_dtype"])
    size = 1 if weights == "fp8" else 2
    moved = size * (m * k + k * n) + 2 * m * n

    def seconds(eff: Efficiency, kept: float, rate: float) -> Floats:
        kernels = Kernels(gpu, eff, dtype, dtype, weights)
        rates, quantise_s = kernels.linear_rates, kernels.quantise_s(k)  # type: ignore[arg-type]
        product = Product(rates, k, n, size * k * n, size, 2)  # type: ignore[arg-type]
        burst_s = np.minimum.reduce(product.ways_s(m))  # type: ignore[arg-type]
        arithmetic_s = np.asarray(rates.sustain_s(burst_s))
        memory_s = _from_l2(np.asarray(product.memory_s(m)), moved, kept, rate)  # type: ignore[arg-type]
        longer = np.maximum(arithmetic_s, memory_s)
        shorter = np.minimum(arithmetic_s, memory_s)
        return np.asarray(rates.floor_s + longer + rates.exposed * shorter + quantise_s * m, np.float64)

    return seconds, _measured(rows)


def _prefill(rows: Sequence[Mapping[str, Value]], gpu: GpuSpec) -> tuple[Seconds, Floats]:
    points = [
        tuple(int(row[name]) for name in ("heads", "kv_heads", "head_dim", "sequences", "past_tokens", "new_tokens"))
        for row in rows
    ]
    dtype = str(rows[0]["dtype"])

    def seconds(eff: Efficiency, _kept: float, _rate: float) -> Floats:
        kernels = Kernels(gpu, eff, dtype, dtype)
        launches = {heads: kernels.prefill_attention(*heads) for heads in {point[:3] for point in points}}
        floor_s = eff.prefill_attention_floor_s
        return np.array(
            [floor_s + launches[point[:3]].launch_s(((point[5], point[4]),), 0, point[3]) for point in points]
        )

    return seconds, _measured(rows)


def _decode(rows: Sequence[Mapping[str, Value]], gpu: GpuSpec) -> tuple[Seconds, Floats]:
    heads, kv_heads, dims = (_column(rows, name) for name in ("heads", "kv_heads", "head_dim"))
    batch, context = (_column(rows, name) for name in ("sequences", "mean_context_tokens"))
    dtype = str(rows[0]["dtype"])
    moved = 4.0 * batch * context * kv_heads * dims

    def seconds(eff: Efficiency, kept: float, rate: float) -> Floats:
        kernels = Kernels(gpu, eff, dtype, dtype)
        predicted = np.empty(len(batch))
        for shape in {(int(h), int(k), int(d)) for h, k, d in zip(heads, kv_heads, dims, strict=True)}:
            one = kernels.decode_attention(*shape)
            chosen = (heads == shape[0]) & (kv_heads == shape[1]) & (dims == shape[2])
            count, tokens = batch[chosen], context[chosen]
            start_s = one.row_s * np.maximum(0.0, count - one.idle_rows)
            memory_s = _from_l2(one.token_s * count * tokens, moved[chosen], kept, rate)
            longer = np.maximum(start_s, memory_s) + one.exposed * np.minimum(start_s, memory_s)
            split_s = one.split_s * np.minimum(1.0, tokens / one.split_tokens)
            predicted[chosen] = one.floor_s + one.swap_s * (count > 1) + split_s + longer
        return predicted

    return seconds, _measured(rows)


def _experts(rows: Sequence[Mapping[str, Value]], gpu: GpuSpec) -> tuple[Seconds, Floats]:
    loads = [_load(row) for row in rows]
    shapes = [(int(row["hidden"]), int(row["ffn"])) for row in rows]
    dtype, weights = str(rows[0]["dtype"]), str(rows[0]["weight_dtype"])
    matrices = np.array([3.0 * hidden * ffn * (1 if weights == "fp8" else 2) for hidden, ffn in shapes])
    moved = matrices * np.array([load.touched for load in loads])

    def seconds(eff: Efficiency, kept: float, rate: float) -> Floats:
        kernels = Kernels(gpu, eff, dtype, dtype, weights)
        predicted = np.array([kernels.expert_layer_s(load, *shape) for load, shape in zip(loads, shapes, strict=True)])
        memory_s = moved / (gpu.memory_bytes_per_s * eff.expert_memory)
        return np.asarray(np.maximum(predicted - (memory_s - _from_l2(memory_s, moved, kept, rate)), 1e-6), np.float64)

    return seconds, _measured(rows)


def _load(row: Mapping[str, Value]) -> ExpertLoad:
    tokens, visited = float(row["tokens"]), int(row["experts_per_token"])
    if row["routing"] == TOLD:
        return even_load(tokens * visited, float(row["touched"]))
    return Routing(str(row["routing"])).load(tokens, int(row["experts"]), visited)


_PRICES: Mapping[str, Callable[[Sequence[Mapping[str, Value]], GpuSpec], tuple[Seconds, Floats]]] = {
    "gemm": _gemm,
    "gemm_fp8": _gemm,
    "prefill_attention": _prefill,
    "prefill_attention_64": _prefill,
    "decode_attention": _decode,
    "decode_attention_64": _decode,
    "experts": _experts,
    "experts_fp8": _experts,
}
TABLE_OF = {
    "gemm": "gemm", "gemm_fp8": "gemm",
    "prefill_attention": "prefill_attention", "prefill_attention_64": "prefill_attention",
    "decode_attention": "decode_attention", "decode_attention_64": "decode_attention",
    "experts": "expert_layer", "experts_fp8": "expert_layer",
}  # fmt: skip
