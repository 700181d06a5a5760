"""Seconds of single GPU kernels by roofline: the slower of arithmetic and memory, above a floor. It knows no model.

All methods take exact sizes and return seconds; every one is monotone in each size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from sim.cost.attend import Affine, Decode, Prefill
from sim.cost.collectives import Collectives
from sim.cost.efficiency import Efficiency
from sim.cost.experts import ExpertLoad, Grouped, Routing, even_load
from sim.cost.gemm import Product, ProductRates
from sim.cost.interpolation import Guide
from sim.cost.schema import NO_CACHE
from sim.cost.tables import Floats, Ints, Row
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, weight_type
from sim.specs.gpu import GpuSpec

_MOST_POINTS = 1024
_HALF = 0.5


class Kernels:
    """What one GPU does with activations of type `dtype`, KV of type `kv_dtype` and matrices of type `weights`.

    fp8 matrices meet fp8 activations where the GPU has fp8 units; all other quantised ones are widened inside the
    kernel, which then computes in `dtype` (Marlin, arXiv 2408.11743, which reads at nearly the rate of a dense one).
    """

    __slots__ = (
        "_attention_flops_per_s", "_decode_flops_per_s", "_element_bytes", "_grouped", "_input_bytes", "_kv",
        "_kv_bytes_per_s", "_linear_flops_per_s", "_peak", "_products", "_rates",
        "_stream_bytes_per_s", "_swap_bytes_per_s", "_weights", "collectives", "computes_fp8", "dtype", "eff", "gpu",
        "kv_dtype", "linear_rates", "weights",
    )  # fmt: skip

    def __init__(self, gpu: GpuSpec, eff: Efficiency, dtype: str, kv_dtype: str, weights: str | None = None) -> None:
        self.gpu, self.eff = gpu, eff
        self.dtype, self.kv_dtype, self.weights = dtype, kv_dtype, weights or dtype
        peak, memory = gpu.flops_per_s(dtype), gpu.memory_bytes_per_s
        self._peak = peak
        self.computes_fp8 = weights in ("fp8", "mxfp8") and gpu.fp8_flops_per_s > 0
        self._rates = _rates(gpu, eff, peak, peak * eff.gemm_compute, eff.gemm_floor_s)
        if self.computes_fp8:
            linear, expert = gpu.fp8_flops_per_s * eff.gemm_compute_fp8, gpu.fp8_flops_per_s * eff.expert_compute_fp8
            self.linear_rates = _rates(gpu, eff, peak, linear, eff.gemm_floor_s_fp8)
        else:
            linear, expert = peak * eff.gemm_compute, peak * eff.expert_compute
            self.linear_rates = self._rates
        self._linear_flops_per_s = linear * eff.sustained_compute
        self._grouped = Grouped(
            expert, memory * eff.expert_memory, gpu.sms, eff.expert_floor_s, eff.expert_tile_s, eff.expert_exposed
        )
        self._attention_flops_per_s = peak * eff.prefill_attention_compute
        self._decode_flops_per_s = peak * eff.decode_attention_compute
        self._stream_bytes_per_s = memory * eff.stream_memory
        self._kv_bytes_per_s = memory * _kv_share(eff, kv_dtype)
        self.collectives = Collectives(gpu, eff)
        self._swap_bytes_per_s = gpu.pcie_bytes_per_s * eff.host_link
        self._element_bytes = DTYPE_BYTES[dtype]
        self._input_bytes = 1 if self.computes_fp8 else self._element_bytes
        self._kv = KV_TYPES[kv_dtype]
        self._weights = weight_type(weights or dtype)
        self._products: dict[tuple[int, int, bool], Product] = {}

    @property
    def element_bytes(self) -> int:
        """Bytes of one activation."""
        return self._element_bytes

    def gemm_s(self, m: float, k: int, n: int) -> float:
        """[m, k] times [k, n], never quantised."""
        product = self._products.get((k, n, False)) or self._product(k, n, linear=False)
        return product.seconds(m)

    def linear_s(self, m: float, k: int, n: int) -> float:
        """The same with a matrix in the weights' type, scales included, and for fp8 with quantising the input."""
        product = self._products.get((k, n, True)) or self._product(k, n, linear=True)
        return product.seconds(m)

    def linear_each_s(self, sizes: Ints, k: int, n: int) -> Floats:
        """`linear_s` of so many rows each."""
        product = self._products.get((k, n, True)) or self._product(k, n, linear=True)
        return product.each_s(sizes)

    def quantise_s(self, k: int) -> float:
        """Seconds to narrow a row of an input of `k` elements to fp8, by a kernel of its own; 0 where that is not done.

        Its launch is in `gemm_floor_s_fp8`: tables time both together.
        """
        if not self.computes_fp8:
            return 0.0
        return self.eff.quantise_row_s + k * (self._element_bytes + 1) / self._stream_bytes_per_s

    def _product(self, k: int, n: int, *, linear: bool) -> Product:
        element = self._element_bytes
        if linear:
            matrix_bytes = self._weights.matrix_bytes(k, n)
            made = Product(self.linear_rates, k, n, matrix_bytes, self._input_bytes, element, self.quantise_s(k))
        else:
            made = Product(self._rates, k, n, element * k * n, element, element)
        self._products[k, n, linear] = made
        return made

    def expert_gemm_s(self, load: ExpertLoad, k: int, n: int) -> float:
        """One launch over all experts, each of which has a matrix [k, n]."""
        row_bytes = self._input_bytes * k + self._element_bytes * n
        return self._grouped.seconds(load, k, n, self._weights.matrix_bytes(k, n), row_bytes)

    def expert_layer_s(self, load: ExpertLoad, hidden: int, ffn: int) -> float:
        """All routed experts of a layer: both products, a gated activation between and adding up after them."""
        element = self._element_bytes
        products_s = self.expert_gemm_s(load, hidden, 2 * ffn) + self.expert_gemm_s(load, ffn, hidden)
        moved_bytes = load.rows * (3 * ffn + 2 * hidden) * element
        return products_s + 2.0 * self.eff.small_kernel_floor_s + self.moved_s(moved_bytes)

    def prefill_attention(self, heads: int, kv_heads: int, head_dim: int) -> Prefill:
        """Price of prompts in one layer, the launch (`prefill_attention_floor_s`, once a layer) not included.

        Work is 4 * head_dim FLOPs for each query head, row of a tile and key that the tile visits, the masked half of
        each diagonal tile included (FlashAttention).
        """
        eff, sms = self.eff, self.gpu.sms
        rate = self._peak * _by_width(head_dim, eff.prefill_attention_compute_64, eff.prefill_attention_compute) / sms
        packed = eff.prefill_packed >= _HALF
        moving = self.gpu.memory_bytes_per_s * eff.prefill_memory
        decode = self.decode_attention(heads, kv_heads, head_dim)
        return Prefill(
            key_s=4.0 * head_dim * eff.prefill_tile_tokens / rate,
            tile_s=eff.prefill_tile_s,
            tile_tokens=max(1.0, eff.prefill_tile_tokens * kv_heads / heads) if packed else eff.prefill_tile_tokens,
            tile_heads=kv_heads if packed else heads,
            sms=sms,
            chain=eff.prefill_chain,
            token_s=2.0 * heads * head_dim * self._element_bytes / moving,
            context_s=2.0 * kv_heads * self._kv.vector_bytes(head_dim) / moving,
            exposed=eff.prefill_exposed,
            row_s=decode.row_s,
            row_context_s=decode.token_s,
            rows_floor_s=max(0.0, decode.floor_s + decode.swap_s - eff.prefill_attention_floor_s),
        )

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

    def decode_attention(self, heads: int, kv_heads: int, head_dim: int) -> Decode:
        """Rows in one layer.

        Reading K and V binds: even 16 query heads to a KV head need 16 FLOPs a byte, far below any GPU's ridge.
        """
        eff = self.eff
        return Decode(
            floor_s=eff.decode_attention_floor_s,
            row_s=eff.decode_program_s * kv_heads / self.gpu.sms,
            token_s=2.0 * kv_heads * self._kv.vector_bytes(head_dim) / self._kv_bytes_per_s,
            exposed=eff.decode_exposed,
            idle_rows=eff.decode_idle * self.gpu.sms / kv_heads,
            swap_s=eff.decode_swap_s if heads > kv_heads > 1 else 0.0,
            split_s=eff.decode_split_s,
            split_tokens=eff.decode_split_tokens,
        )

    def latent_decode_attention(self, heads: int, kv_lora_rank: int, latent_width: int) -> Decode:
        """The same with a latent cache, in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

        All heads share one read of the latent and do 2 (latent + rank) FLOPs each with it: the slower binds.
        """
        read_s = self._kv.vector_bytes(latent_width) / self._kv_bytes_per_s
        product_s = 2.0 * heads * (latent_width + kv_lora_rank) / self._decode_flops_per_s
        row_s = self.eff.decode_program_s / self.gpu.sms
        return Decode(self.eff.decode_attention_floor_s, row_s, max(read_s, product_s))

    def attention_of(self, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> Affine:
        """As `prefill_attention`, of keys and values that may differ in width."""
        vectors = self._kv.vector_bytes(key_dim) + self._kv.vector_bytes(value_dim)
        return self._prefill(heads, key_dim + value_dim, kv_heads * vectors / self._stream_bytes_per_s)

    def decode_of(self, kv_heads: int, key_dim: int, value_dim: int) -> Decode:
        """As `decode_attention`, of keys and values that may differ in width; nothing overlaps."""
        vectors = self._kv.vector_bytes(key_dim) + self._kv.vector_bytes(value_dim)
        row_s = self.eff.decode_program_s * kv_heads / self.gpu.sms
        return Decode(self.eff.decode_attention_floor_s, row_s, kv_heads * vectors / self._kv_bytes_per_s)

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

    def small_s(self, moved_bytes: Any) -> Any:
        """An elementwise or reduction kernel that moves so many bytes; of an array each."""
        return self.eff.small_kernel_floor_s + moved_bytes / self._stream_bytes_per_s

    def low_rank_s(self, flops: float, moved_bytes: float) -> float:
        """A product one of whose sides is a few elements wide, never quantised: the slower of arithmetic and memory."""
        compute_s = flops / (self._peak * self.eff.gemm_compute * self.eff.sustained_compute)
        return self.eff.small_kernel_floor_s + max(compute_s, moved_bytes / self._stream_bytes_per_s)

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

    def token_bytes(self, hidden: int, *, quantised: bool) -> float:
        """A token on its way to experts: as they read it, one fp32 scale for 128 fp8 values; or as it is."""
        if quantised and self.computes_fp8:
            return hidden * (1.0 + 4.0 / 128.0)
        return float(hidden * self._element_bytes)

    def copy_s(self, copied_bytes: float) -> float:
        """Copy inside the device: read once, written once."""
        return float(self.small_s(2.0 * copied_bytes))

    def swap_s(self, swapped_bytes: float) -> float:
        """Copy between device and host memory over PCIe."""
        return self.eff.small_kernel_floor_s + swapped_bytes / self._swap_bytes_per_s

    def stream_s(self, moved_bytes: float) -> float:
        """Bytes that stream between device and host memory beside other work."""
        return moved_bytes / self._swap_bytes_per_s


def _rates(gpu: GpuSpec, eff: Efficiency, peak: float, reached: float, floor_s: float) -> ProductRates:
    """Of products at `reached` FLOP/s; L2 feeds them by the 16-bit `peak`."""
    return ProductRates(
        flops_per_s=reached,
        memory_bytes_per_s=gpu.memory_bytes_per_s * eff.gemm_memory,
        feed_bytes_per_s=peak * eff.gemm_feed,
        sms=gpu.sms,
        floor_s=floor_s,
        tile_s=eff.gemm_tile_s,
        split_s=eff.gemm_split_s,
        exposed=eff.gemm_exposed,
        sustained=eff.sustained_compute,
        sustained_after_s=eff.sustained_after_s,
    )


def _by_width(head_dim: int, of_64: float, of_128: float) -> float:
    """A constant that was fitted to heads of 64 and of 128 elements; straight between, and held outside."""
    return of_64 + (of_128 - of_64) * min(1.0, max(0.0, (head_dim - 64) / 64))


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

    def seconds(point: Any) -> Any:
        tokens = point[0]
        return kernels.linear_each_s(tokens, k, n) if isinstance(tokens, np.ndarray) else kernels.linear_s(tokens, k, n)

    return seconds


def _experts(kernels: Kernels, group: Row) -> Guide:
    experts, visited = int(group["experts"]), int(group["experts_per_token"])
    k, n = int(group["k"]), int(group["n"])

    routing = Routing()
    return lambda point: kernels.expert_gemm_s(routing.load(point[0], experts, visited), k, n)


def _expert_layer(kernels: Kernels, group: Row) -> Guide:
    hidden, ffn, visited = int(group["hidden"]), int(group["ffn"]), int(group["experts_per_token"])
    return lambda point: kernels.expert_layer_s(even_load(point[0] * visited, point[1]), hidden, ffn)


def _prefill(kernels: Kernels, group: Row) -> Guide:
    slices = kernels.prefill_attention(int(group["heads"]), int(group["kv_heads"]), int(group["head_dim"]))
    floor_s, window = kernels.eff.prefill_attention_floor_s, int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, past, new = point
        # Sizes may lie between whole numbers, where only the window's clipping needs them whole.
        one = (round(new), round(past)) if window else (new, past)
        return floor_s + slices.launch_s(((one),), window, sequences)  # type: ignore[arg-type]

    return seconds


def _decode(kernels: Kernels, group: Row) -> Guide:
    heads, kv_heads = int(group["heads"]), int(group["kv_heads"])
    rows, window = kernels.decode_attention(heads, kv_heads, int(group["head_dim"])), int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, context = point
        return rows.seconds(sequences, sequences * (min(context, window) if window else context))

    return seconds


class _Mixed:
    """Prompts and decode rows in one launch; around one point all lines of a grid share either part."""

    __slots__ = ("_decode", "_prefill")

    def __init__(self, kernels: Kernels, group: Row) -> None:
        self._prefill = lru_cache(_MOST_POINTS)(_prefill(kernels, group))
        self._decode = lru_cache(_MOST_POINTS)(_decode(kernels, group))

    def __call__(self, point: tuple[float, ...]) -> float:
        return self._prefill((1.0, point[2], point[3])) + self._decode((point[0], point[1]))

    def along(self, before: tuple[float, ...]) -> Callable[[float], float]:
        """The same along the last axis."""
        prefill, past, decode_s = self._prefill, before[2], self._decode((before[0], before[1]))
        return lambda new: prefill((1.0, past, new)) + decode_s


def _latent_prefill(kernels: Kernels, group: Row) -> Guide:
    heads, rank, rope, nope, value = (
        int(group[name]) for name in ("heads", "rank", "rope_dim", "nope_dim", "value_dim")
    )
    slices = kernels.latent_prefill_attention(heads, nope + rope, value, rank, rank + rope)
    floor_s = kernels.eff.prefill_attention_floor_s
    return lambda point: floor_s + point[0] * slices.slice_s(point[2], point[1])


def _latent_decode(kernels: Kernels, group: Row) -> Guide:
    rank = int(group["rank"])
    rows = kernels.latent_decode_attention(int(group["heads"]), rank, rank + int(group["rope_dim"]))
    return lambda point: rows.seconds(point[0], point[0] * point[1])


def _elementwise(kernels: Kernels, group: Row) -> Guide:
    width = int(group["width"])

    def seconds(point: Any) -> Any:
        # Every one of them reads about as much as it writes; ratios do not depend on how often.
        return kernels.small_s(4.0 * point[0] * width)

    return seconds


def _collective(kernels: Kernels, group: Row) -> Guide:
    gpus, op = int(group["gpus"]), group["op"]
    if op == "all_to_all":
        return lambda point: kernels.collectives.all_to_all_s(point[0], gpus, 1.0, 1.0)
    prices = {"all_reduce": kernels.all_reduce_s, "reduce_scatter": kernels.collectives.scatter_s}
    price = prices.get(str(op), kernels.gather_s)

    def seconds(point: Any) -> Any:
        size = point[0]
        if isinstance(size, np.ndarray):
            return np.array([price(one, gpus) for one in size.tolist()])
        return price(size, gpus)

    return seconds


def _sampling(kernels: Kernels, group: Row) -> Guide:
    vocab = int(group["vocab"])
    return lambda point: kernels.sampling_s(int(point[0]), vocab)


def _copy(kernels: Kernels, group: Row) -> Guide:
    return lambda point: kernels.copy_s(point[0])


def _swap(kernels: Kernels, group: Row) -> Guide:
    return lambda point: kernels.swap_s(point[0])


def _launch(kernels: Kernels, group: Row) -> Guide:
    return lambda point: 1.0 + point[0]


def _host(kernels: Kernels, group: Row) -> Guide:
    return lambda point: kernels.eff.host_step_s + kernels.eff.host_row_s * point[0]


_GUIDES: Mapping[str, Callable[[Kernels, Row], Guide]] = {
    "gemm": _gemm,
    "expert_gemm": _experts,
    "expert_layer": _expert_layer,
    "prefill_attention": _prefill,
    "decode_attention": _decode,
    "mixed_attention": _Mixed,
    "latent_prefill_attention": _latent_prefill,
    "latent_decode_attention": _latent_decode,
    "elementwise": _elementwise,
    "sampling": _sampling,
    "copy": _copy,
    "swap": _swap,
    "all_reduce": _collective,
    "launch": _launch,
    "host": _host,
}
