"""Seconds of single GPU kernels by roofline: the slower of arithmetic and memory, above a floor. It knows no model.

All methods take exact sizes and return seconds; every one is monotone in each size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from sim.cost.collectives import Collectives
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import Guide
from sim.cost.schema import NO_CACHE
from sim.cost.tables import Row
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, weight_type
from sim.specs.gpu import GpuSpec

_MOST_POINTS = 1024


@dataclass(frozen=True, slots=True)
class Affine:
    """Prefill attention of a slice: pair_s * (query, key) pairs + token_s * new + context_s * (past + new) + past_s *
    past seconds."""

    pair_s: float
    token_s: float
    context_s: float
    past_s: float = 0.0

    def slice_s(self, new: int, past: int) -> float:
        """Seconds for `new` tokens on top of `past` ones; token i attends `past + i` keys (causal)."""
        seconds = new * (self.pair_s * (past + 0.5 * (new + 1)) + self.token_s) + self.context_s * (past + new)
        return seconds + self.past_s * past if self.past_s else seconds

    def window_s(self, new: int, past: int, span: int) -> float:
        """The same where no token attends more than `span` keys, itself included."""
        if past + new <= span:
            return self.slice_s(new, past)
        context = min(past, span)
        pairs = attended(past + new, span) - attended(past, span)
        return self.pair_s * pairs + self.token_s * new + self.context_s * (context + new) + self.past_s * context


def attended(tokens: int, span: int) -> int:
    """(query, key) pairs of the first `tokens` tokens of a sequence, each attending at most `span` keys."""
    growing = min(tokens, span)
    return growing * (growing + 1) // 2 + (tokens - growing) * span


class Kernels:
    """What one GPU does with activations of type `dtype`, KV of type `kv_dtype` and matrices of type `weights`.

    fp8 matrices meet fp8 activations where the GPU has fp8 units; all other quantised ones are widened inside the
    kernel, which then computes in `dtype` (Marlin, arXiv 2408.11743, which reads at nearly the rate of a dense one).
    """

    __slots__ = (
        "_attention_flops_per_s", "_decode_flops_per_s", "_element_bytes", "_flops_per_s", "_input_bytes", "_kv",
        "_kv_bytes_per_s", "_linear_flops_per_s", "_stream_bytes_per_s", "_swap_bytes_per_s", "_weight_bytes_per_s",
        "_weights", "collectives", "computes_fp8", "eff", "gpu",
    )  # fmt: skip

    def __init__(self, gpu: GpuSpec, eff: Efficiency, dtype: str, kv_dtype: str, weights: str | None = None) -> None:
        self.gpu, self.eff = gpu, eff
        peak, memory = gpu.flops_per_s(dtype), gpu.memory_bytes_per_s
        self.computes_fp8 = weights in ("fp8", "mxfp8") and gpu.fp8_flops_per_s > 0
        self._flops_per_s = peak * eff.gemm_compute
        self._linear_flops_per_s = (gpu.fp8_flops_per_s if self.computes_fp8 else peak) * eff.gemm_compute
        self._attention_flops_per_s = peak * eff.prefill_attention_compute
        self._decode_flops_per_s = peak * eff.decode_attention_compute
        self._weight_bytes_per_s = memory * eff.gemm_memory
        self._stream_bytes_per_s = memory * eff.stream_memory
        self._kv_bytes_per_s = memory * _kv_share(eff, kv_dtype)
        self.collectives = Collectives(gpu, eff)
        self._swap_bytes_per_s = gpu.pcie_bytes_per_s * eff.host_link
        self._element_bytes = DTYPE_BYTES[dtype]
        self._input_bytes = 1 if self.computes_fp8 else self._element_bytes
        self._kv = KV_TYPES[kv_dtype]
        self._weights = weight_type(weights or dtype)

    def gemm_s(self, m: float, k: int, n: int) -> float:
        """[m, k] times [k, n], never quantised: both operands read and the result written once."""
        moved_bytes = self._element_bytes * (m * k + k * n + m * n)
        return self.eff.gemm_floor_s + max(moved_bytes / self._weight_bytes_per_s, 2.0 * m * k * n / self._flops_per_s)

    def linear_s(self, m: float, k: int, n: int) -> float:
        """The same with a matrix in the weights' type, scales included; quantising the input is left out."""
        moved_bytes = self._input_bytes * m * k + self._weights.matrix_bytes(k, n) + self._element_bytes * m * n
        return self.eff.gemm_floor_s + max(
            moved_bytes / self._weight_bytes_per_s, 2.0 * m * k * n / self._linear_flops_per_s
        )

    def expert_gemm_s(self, assigned: float, touched: float, k: int, n: int) -> float:
        """One launch for all experts: `assigned` rows spread over `touched` experts.

        Each expert's rows are padded to whole tiles, which wastes half a tile on average.
        """
        computed = assigned + touched * 0.5 * self.eff.expert_tile_tokens
        rows_bytes = assigned * (self._input_bytes * k + self._element_bytes * n)
        moved_bytes = touched * self._weights.matrix_bytes(k, n) + rows_bytes
        return self.eff.gemm_floor_s + max(
            moved_bytes / self._weight_bytes_per_s, 2.0 * computed * k * n / self._linear_flops_per_s
        )

    def prefill_attention(self, heads: int, kv_heads: int, head_dim: int) -> Affine:
        """Price of a slice in one layer, the launch (`prefill_attention_floor_s`, once a layer) not included.

        Work is 4 * head_dim FLOPs for each query head and causal pair, and for the masked half of each diagonal
        tile (FlashAttention); queries, outputs, keys and values move once; each tile of queries has a start and end.
        """
        kv_s = 2.0 * kv_heads * self._kv.vector_bytes(head_dim) / self._stream_bytes_per_s
        return self._prefill(heads, 2 * head_dim, kv_s)

    def latent_prefill_attention(
        self, heads: int, query_dim: int, value_dim: int, kv_lora_rank: int, latent_width: int
    ) -> Affine:
        """The same with a latent cache: keys and values are made from it, for the past as well, and then attended.

        The products of the new tokens' latents belong to the GEMMs; those of the past's are counted here
        (vLLM, v1/attention/backends/mla/common.py, "compute friendly approach").
        """
        expanded = heads * (query_dim + value_dim) * self._element_bytes
        latent_bytes = self._kv.vector_bytes(latent_width)
        # Made keys and values are written and read; what a key has beyond the latent part is copied into it.
        kv_s = (2.0 * expanded + latent_bytes) / self._stream_bytes_per_s
        made = heads * (query_dim - (latent_width - kv_lora_rank) + value_dim)
        attention = self._prefill(heads, query_dim + value_dim, kv_s)
        return replace(attention, past_s=2.0 * kv_lora_rank * made / self._linear_flops_per_s)

    def _prefill(self, heads: int, dims: int, kv_s: float) -> Affine:
        """`dims` are those of a query head and a value head together."""
        eff = self.eff
        pair_s = 2.0 * heads * dims / self._attention_flops_per_s
        tile_s = eff.prefill_tile_s * heads / (self.gpu.sms * eff.prefill_tile_tokens)
        io_s = heads * dims * self._element_bytes / self._stream_bytes_per_s
        return Affine(pair_s, pair_s * 0.5 * eff.prefill_tile_tokens + tile_s + io_s, kv_s)

    def decode_attention(self, kv_heads: int, head_dim: int) -> tuple[float, float]:
        """(seconds per row, seconds per token of context) of one layer, the launch not included.

        Reading K and V binds: even 16 query heads to a KV head need 16 FLOPs a byte, far below any GPU's ridge.
        """
        row_s = self.eff.decode_program_s * kv_heads / self.gpu.sms
        return row_s, 2.0 * kv_heads * self._kv.vector_bytes(head_dim) / self._kv_bytes_per_s

    def latent_decode_attention(self, heads: int, kv_lora_rank: int, latent_width: int) -> tuple[float, float]:
        """The same with a latent cache, in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

        All heads share one read of the latent and do 2 (latent + rank) FLOPs each with it: the slower binds.
        """
        read_s = self._kv.vector_bytes(latent_width) / self._kv_bytes_per_s
        product_s = 2.0 * heads * (latent_width + kv_lora_rank) / self._decode_flops_per_s
        return self.eff.decode_program_s / self.gpu.sms, max(read_s, product_s)

    def attention_of(self, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> Affine:
        """As `prefill_attention`, of keys and values that may differ in width."""
        vectors = self._kv.vector_bytes(key_dim) + self._kv.vector_bytes(value_dim)
        return self._prefill(heads, key_dim + value_dim, kv_heads * vectors / self._stream_bytes_per_s)

    def decode_of(self, kv_heads: int, key_dim: int, value_dim: int) -> tuple[float, float]:
        """As `decode_attention`, of keys and values that may differ in width."""
        vectors = self._kv.vector_bytes(key_dim) + self._kv.vector_bytes(value_dim)
        row_s = self.eff.decode_program_s * kv_heads / self.gpu.sms
        return row_s, kv_heads * vectors / self._kv_bytes_per_s

    def index_of(self, heads: int, dim: int, key_bytes: int) -> tuple[Affine, float]:
        """(a slice, a token of a decode row's context) of an indexer: each of its heads scores each key, which is read
        once (DeepSeek-V3.2, arXiv 2512.02556, equation 1)."""
        pair_s = 2.0 * heads * dim / self._attention_flops_per_s
        read_s = key_bytes / self._kv_bytes_per_s
        return Affine(pair_s, 0.0, key_bytes / self._stream_bytes_per_s), max(pair_s, read_s)

    def moved_s(self, moved_bytes: float) -> float:
        """Bytes that stream between a kernel and the device's memory, without its launch."""
        return moved_bytes / self._stream_bytes_per_s

    def attention_flops_s(self, flops: float) -> float:
        """FLOPs at the rate of prefill attention."""
        return flops / self._attention_flops_per_s

    def small_s(self, moved_bytes: float) -> float:
        """An elementwise or reduction kernel that moves so many bytes."""
        return self.eff.small_kernel_floor_s + moved_bytes / self._stream_bytes_per_s

    def sampling_s(self, rows: int, vocab: int) -> float:
        """Greedy choice of a token for each of `rows` rows of logits."""
        moved_bytes = self.eff.sampling_bytes_per_logit * rows * vocab
        return self.eff.sampling_floor_s + moved_bytes / self._stream_bytes_per_s

    def all_reduce_s(self, message_bytes: float, gpus: int) -> float:
        """As `Collectives.all_reduce_s`."""
        return self.collectives.all_reduce_s(message_bytes, gpus)

    def gather_s(self, message_bytes: float, gpus: int) -> float:
        """As `Collectives.gather_s`."""
        return self.collectives.gather_s(message_bytes, gpus)

    def copy_s(self, copied_bytes: float) -> float:
        """Copy inside the device: read once, written once."""
        return self.small_s(2.0 * copied_bytes)

    def swap_s(self, swapped_bytes: float) -> float:
        """Copy between device and host memory over PCIe."""
        return self.eff.small_kernel_floor_s + swapped_bytes / self._swap_bytes_per_s

    def stream_s(self, moved_bytes: float) -> float:
        """Bytes that stream between device and host memory beside other work."""
        return moved_bytes / self._swap_bytes_per_s


def _kv_share(eff: Efficiency, kv_dtype: str) -> float:
    """What decode attention reaches of the memory's rate, dequantising included."""
    quantised = {
        "fp8": eff.decode_attention_memory_fp8,
        "int8": eff.decode_attention_memory_int8,
        "int4": eff.decode_attention_memory_int4,
    }
    return quantised.get(kv_dtype, eff.decode_attention_memory)


def guide_of(table: str, group: Row, gpu: GpuSpec, efficiency: Efficiency) -> Guide:
    """The seconds of the kernel of a profile's `table` whose group columns are `group`, by a point of the table's axes.

    Prices follow its shape outside of what was measured; only ratios are used, so what it leaves out cancels.
    """
    dtype, kv_dtype = str(group.get("dtype", "fp16")), str(group.get("kv_dtype", NO_CACHE))
    weights = str(group["weight_dtype"]) if "weight_dtype" in group else None
    return _GUIDES[table](Kernels(gpu, efficiency, dtype, dtype if kv_dtype == NO_CACHE else kv_dtype, weights), group)


def _gemm(kernels: Kernels, group: Row) -> Guide:
    k, n = int(group["k"]), int(group["n"])
    return lambda point: kernels.linear_s(point[0], k, n)


def _experts(kernels: Kernels, group: Row) -> Guide:
    experts, visited = int(group["experts"]), int(group["experts_per_token"])
    k, n = int(group["k"]), int(group["n"])

    def seconds(point: tuple[float, ...]) -> float:
        touched = experts * (1.0 - (1.0 - visited / experts) ** point[0])
        return kernels.expert_gemm_s(point[0] * visited, touched, k, n)

    return seconds


def _prefill(kernels: Kernels, group: Row) -> Guide:
    slice_ = kernels.prefill_attention(int(group["heads"]), int(group["kv_heads"]), int(group["head_dim"]))
    floor_s, window = kernels.eff.prefill_attention_floor_s, int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, past, new = point
        # Sizes may lie between whole numbers, where only the window's clipping needs them whole.
        if window:
            return floor_s + sequences * slice_.window_s(round(new), round(past), window)
        return floor_s + sequences * slice_.slice_s(new, past)  # type: ignore[arg-type]

    return seconds


def _decode(kernels: Kernels, group: Row) -> Guide:
    row_s, token_s = kernels.decode_attention(int(group["kv_heads"]), int(group["head_dim"]))
    floor_s, window = kernels.eff.decode_attention_floor_s, int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, context = point
        return floor_s + sequences * (row_s + token_s * (min(context, window) if window else context))

    return seconds


def _mixed(kernels: Kernels, group: Row) -> Guide:
    # Around one point all lines of a grid share either part.
    prefill, decode = map(lru_cache(_MOST_POINTS), (_prefill(kernels, group), _decode(kernels, group)))
    return lambda point: prefill((1.0, point[2], point[3])) + decode((point[0], point[1]))


def _elementwise(kernels: Kernels, group: Row) -> Guide:
    # Every one of them reads about as much as it writes; ratios do not depend on how often.
    return lambda point: kernels.small_s(4.0 * point[0] * int(group["width"]))


def _collective(kernels: Kernels, group: Row) -> Guide:
    gpus = int(group["gpus"])
    price = kernels.all_reduce_s if group["op"] == "all_reduce" else kernels.gather_s
    return lambda point: price(point[0], gpus)


_GUIDES: Mapping[str, Callable[[Kernels, Row], Guide]] = {
    "gemm": _gemm,
    "expert_gemm": _experts,
    "prefill_attention": _prefill,
    "decode_attention": _decode,
    "mixed_attention": _mixed,
    "elementwise": _elementwise,
    "sampling": lambda kernels, group: lambda point: kernels.sampling_s(int(point[0]), int(group["vocab"])),
    "copy": lambda kernels, _: lambda point: kernels.copy_s(point[0]),
    "swap": lambda kernels, _: lambda point: kernels.swap_s(point[0]),
    "all_reduce": _collective,
    "launch": lambda _, __: lambda point: 1.0 + point[0],
    "host": lambda kernels, _: lambda point: kernels.eff.host_step_s + kernels.eff.host_row_s * point[0],
}
