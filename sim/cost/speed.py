"""What no kernel can beat: bytes over the memory's peak rate, FLOPs over the chip's. It knows no prices.

A row below these bounds was measured wrong, is in another unit, or is of another device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sim.cost.tables import Table, Value
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, weight_type
from sim.specs.gpu import GpuSpec

LEAST_US = 0.5
"""No launch on a GPU is shorter: an empty kernel takes about 2 us between events, 1.3 us within a graph (estimate)."""
L2_RATE = 8.0
"""The L2 cache moves at most so many times what memory does (an estimate above every chip of the catalog: an RTX 4090's
reaches 5, an H100's 2)."""

Fields = Mapping[str, Value]


def too_fast(table: Table, gpu: GpuSpec) -> Iterator[tuple[int, str]]:
    """(row number from 0, why) of each row that is faster than `gpu` can be."""
    bound_of = _BOUNDS.get(table.spec.name)
    if bound_of is None:
        return
    for number, row in enumerate(table.rows()):
        least_s, bound = bound_of(gpu, row)
        for key in ("us", "burst_us"):
            if key in row and float(row[key]) * 1e-6 < least_s:
                yield number, f"{key} {row[key]} is faster than {gpu.name} can be: {bound} takes {least_s * 1e6:.3g} us"
                break


def least_seconds(gpu: GpuSpec, flops: float, moved_bytes: float, dtype: str) -> tuple[float, str]:
    """(seconds, what needs them): the least for one launch; what fits in L2 need not come from memory."""
    peak = _PEAKS[dtype](gpu)
    memory_s = max(moved_bytes - gpu.l2_bytes, moved_bytes / L2_RATE, 0.0) / gpu.memory_bytes_per_s
    return max(
        (flops / peak, f"{flops:.3g} FLOPs at {peak / 1e12:.4g} TFLOP/s"),
        (memory_s, f"{moved_bytes:.3g} bytes at {gpu.memory_bytes_per_s / 1e12:.3g} TB/s"),
        (LEAST_US * 1e-6, "a launch"),
    )


_PEAKS: Mapping[str, Callable[[GpuSpec], float]] = {
    # On tensor cores fp32 products run as TF32, at half the rate of 16 bits.
    "fp32": lambda gpu: max(gpu.fp32_flops_per_s, gpu.fp16_flops_per_s / 2),
    "fp16": lambda gpu: gpu.fp16_flops_per_s,
    "bf16": lambda gpu: max(gpu.bf16_flops_per_s, gpu.fp32_flops_per_s),
    # Eight bits, floating or integer, are at most twice as fast as sixteen.
    "fp8": lambda gpu: max(gpu.fp8_flops_per_s, 2 * gpu.fp16_flops_per_s),
}
_Work = tuple[float, float, str]


def _n(row: Fields, name: str) -> float:
    return float(row[name])


def _gemm(row: Fields) -> _Work:
    m, k, n = _n(row, "tokens"), _n(row, "k"), _n(row, "n")
    weight, dtype = str(row["weight_dtype"]), str(row["dtype"])
    moved = weight_type(weight).matrix_bytes(int(k), int(n)) + _input_bytes(row) * m * k + DTYPE_BYTES[dtype] * m * n
    return 2.0 * m * k * n, moved, "fp8" if weight in ("fp8", "int8") else dtype


def _input_bytes(row: Fields) -> int:
    """Activations may be handed over in 8 bits where the weights have them."""
    return 1 if row["weight_dtype"] in ("fp8", "int8") else DTYPE_BYTES[str(row["dtype"])]


def _experts(row: Fields) -> _Work:
    """Only what every routing needs: the rows' FLOPs, and the weights of the experts that one token visits."""
    rows, k, n = _n(row, "tokens") * _n(row, "experts_per_token"), _n(row, "k"), _n(row, "n")
    weight = str(row["weight_dtype"])
    moved = _n(row, "experts_per_token") * weight_type(weight).matrix_bytes(int(k), int(n))
    return 2.0 * rows * k * n, moved, "fp8" if weight in ("fp8", "int8") else str(row["dtype"])


def _expert_layer(row: Fields) -> _Work:
    """Every row's FLOPs, and the weights of every expert that is touched."""
    hidden, ffn, weight = int(row["hidden"]), int(row["ffn"]), str(row["weight_dtype"])
    matrices = weight_type(weight).matrix_bytes(hidden, 2 * ffn) + weight_type(weight).matrix_bytes(ffn, hidden)
    flops = 6.0 * hidden * ffn * _n(row, "tokens") * _n(row, "experts_per_token")
    # What is left over of expectations that were rounded up is no sign of a bad row.
    touched = max(_n(row, "experts_per_token"), 0.9 * _n(row, "touched"))
    return flops, touched * matrices, "fp8" if weight in ("fp8", "int8") else str(row["dtype"])


def _attention(row: Fields, pairs: float, contexts: float) -> _Work:
    """`pairs` (query, key) and `contexts` keys read; 8-bit caches may be multiplied in 8 bits."""
    kv = str(row["kv_dtype"])
    vectors = 2.0 * contexts * _n(row, "kv_heads")
    moved = vectors * KV_TYPES[kv].vector_bytes(int(_n(row, "head_dim")))
    flops = 4.0 * _n(row, "heads") * _n(row, "head_dim") * pairs
    return flops, moved, "fp8" if KV_TYPES[kv].bits == 8 else str(row["dtype"])


def _seen(row: Fields, context: float) -> float:
    window = _n(row, "window")
    return min(context, window) if window else context


def _slice(row: Fields) -> tuple[float, float]:
    """(pairs, keys) of one slice; with a window every query sees at most so many keys."""
    new, past = _n(row, "new_tokens"), _n(row, "past_tokens")
    window = _n(row, "window")
    causal = new * past + new * (new + 1) / 2
    if not window:
        return causal, past + new
    # A lower bound: the first queries of a sequence see fewer keys than the window.
    return min(causal, max(0.0, new - window) * window), min(past, window) + new


def _prefill(row: Fields) -> _Work:
    pairs, keys = _slice(row)
    sequences = _n(row, "sequences")
    return _attention(row, sequences * pairs, sequences * keys)


def _decode(row: Fields) -> _Work:
    keys = _n(row, "sequences") * _n(row, "mean_context_tokens")
    if _n(row, "window"):  # of uneven contexts, how many lie beyond the window is not known
        even = row["max_context_tokens"] == row["mean_context_tokens"]
        keys = _n(row, "sequences") * _seen(row, _n(row, "mean_context_tokens")) if even else 0.0
    width = _n(row, "width")
    return _attention(row, max(0.0, width * keys - _n(row, "sequences") * width * (width - 1) / 2), keys)


def _mixed(row: Fields) -> _Work:
    pairs, keys = _slice(row)
    if _n(row, "window"):
        return _attention(row, pairs, keys)
    decoded = _n(row, "decodes") * _n(row, "mean_context_tokens")
    return _attention(row, pairs + decoded, keys + decoded)


def _latent_prefill(row: Fields) -> _Work:
    heads, dims = _n(row, "heads"), _n(row, "rope_dim") + _n(row, "nope_dim") + _n(row, "value_dim")
    new, past = _n(row, "new_tokens"), _n(row, "past_tokens")
    made = 2.0 * _n(row, "rank") * heads * (_n(row, "nope_dim") + _n(row, "value_dim")) * past
    flops = 2.0 * heads * dims * (new * past + new * (new + 1) / 2) + made
    return _latent(row, _n(row, "sequences") * flops, _n(row, "sequences") * past)


def _latent_decode(row: Fields) -> _Work:
    keys = _n(row, "sequences") * _n(row, "mean_context_tokens")
    return _latent(row, 2.0 * _n(row, "heads") * (2.0 * _n(row, "rank") + _n(row, "rope_dim")) * keys, keys)


def _latent(row: Fields, flops: float, latents: float) -> _Work:
    kv = KV_TYPES[str(row["kv_dtype"])]
    moved = latents * kv.vector_bytes(int(_n(row, "rank") + _n(row, "rope_dim")))
    return flops, moved, "fp8" if kv.bits == 8 else str(row["dtype"])


def _streamed(row: Fields, moved_bytes: float) -> _Work:
    return 0.0, moved_bytes, "fp16"


def _swap(gpu: GpuSpec, row: Fields) -> tuple[float, str]:
    return _n(row, "bytes") / gpu.pcie_bytes_per_s, f"{row['bytes']} bytes at {gpu.pcie_bytes_per_s / 1e9:.3g} GB/s"


def _collective(gpu: GpuSpec, row: Fields) -> tuple[float, str]:
    """Each GPU must receive what it has not, even where the switch adds up (NVLink SHARP)."""
    moved = _n(row, "bytes") * (_n(row, "gpus") - 1) / _n(row, "gpus")
    return moved / gpu.peer_bytes_per_s, f"{moved:.3g} bytes at {gpu.peer_bytes_per_s / 1e9:.3g} GB/s"


def _kernel(work: Callable[[Fields], _Work]) -> Callable[[GpuSpec, Fields], tuple[float, str]]:
    return lambda gpu, row: least_seconds(gpu, *work(row))


_BOUNDS: Mapping[str, Callable[[GpuSpec, Fields], tuple[float, str]]] = {
    "gemm": _kernel(_gemm),
    "expert_gemm": _kernel(_experts),
    "expert_layer": _kernel(_expert_layer),
    "prefill_attention": _kernel(_prefill),
    "decode_attention": _kernel(_decode),
    "mixed_attention": _kernel(_mixed),
    "latent_prefill_attention": _kernel(_latent_prefill),
    "latent_decode_attention": _kernel(_latent_decode),
    "elementwise": _kernel(
        lambda row: _streamed(row, _n(row, "tokens") * _n(row, "width") * DTYPE_BYTES[str(row["dtype"])])
    ),
    "sampling": _kernel(lambda row: _streamed(row, 2.0 * _n(row, "rows") * _n(row, "vocab"))),
    "copy": _kernel(lambda row: _streamed(row, 2.0 * _n(row, "bytes"))),
    "swap": _swap,
    "all_reduce": _collective,
}
