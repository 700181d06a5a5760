"""Seconds of single GPU kernels by roofline: the slower of arithmetic and memory, above a floor. It knows no model.

All methods take exact sizes and return seconds; every one is monotone in each size.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.cost.efficiency import Efficiency
from sim.specs import KV_DTYPE_BYTES, GpuSpec


@dataclass(frozen=True, slots=True)
class Affine:
    """Prefill attention of a slice: pair_s * (query, key) pairs + token_s * new + context_s * (past + new) seconds."""

    pair_s: float
    token_s: float
    context_s: float

    def slice_s(self, new: int, past: int) -> float:
        """Seconds for `new` tokens on top of `past` ones; token i attends `past + i` keys (causal)."""
        return new * (self.pair_s * (past + 0.5 * (new + 1)) + self.token_s) + self.context_s * (past + new)


class Kernels:
    """What one GPU does with weights of type `dtype` and KV of type `kv_dtype`."""

    __slots__ = (
        "_attention_flops_per_s",
        "_element_bytes",
        "_flops_per_s",
        "_kv_bytes_per_s",
        "_kv_element_bytes",
        "_link_bytes_per_s",
        "_stream_bytes_per_s",
        "_swap_bytes_per_s",
        "_weight_bytes_per_s",
        "eff",
        "gpu",
    )

    def __init__(self, gpu: GpuSpec, eff: Efficiency, dtype: str, kv_dtype: str) -> None:
        self.gpu, self.eff = gpu, eff
        peak, memory = gpu.flops_per_s(dtype), gpu.memory_bytes_per_s
        kv_share = eff.decode_attention_memory_fp8 if kv_dtype == "fp8" else eff.decode_attention_memory
        self._flops_per_s = peak * eff.gemm_compute
        self._attention_flops_per_s = peak * eff.prefill_attention_compute
        self._weight_bytes_per_s = memory * eff.gemm_memory
        self._stream_bytes_per_s = memory * eff.stream_memory
        self._kv_bytes_per_s = memory * kv_share
        self._link_bytes_per_s = gpu.peer_bytes_per_s * eff.all_reduce_link
        self._swap_bytes_per_s = gpu.pcie_bytes_per_s * eff.host_link
        self._element_bytes = KV_DTYPE_BYTES[dtype]
        self._kv_element_bytes = KV_DTYPE_BYTES[kv_dtype]

    def gemm_s(self, m: float, k: int, n: int) -> float:
        """[m, k] times [k, n]: both operands read and the result written once."""
        moved_bytes = self._element_bytes * (m * k + k * n + m * n)
        return self.eff.gemm_floor_s + max(moved_bytes / self._weight_bytes_per_s, 2.0 * m * k * n / self._flops_per_s)

    def expert_gemm_s(self, assigned: float, touched: float, k: int, n: int) -> float:
        """One launch for all experts: `assigned` rows spread over `touched` experts.

        Each expert's rows are padded to whole tiles, which wastes half a tile on average.
        """
        computed = assigned + touched * 0.5 * self.eff.expert_tile_tokens
        moved_bytes = self._element_bytes * (touched * k * n + assigned * (k + n))
        return self.eff.gemm_floor_s + max(
            moved_bytes / self._weight_bytes_per_s, 2.0 * computed * k * n / self._flops_per_s
        )

    def prefill_attention(self, heads: int, kv_heads: int, head_dim: int) -> Affine:
        """Price of a slice in one layer, the launch (`prefill_attention_floor_s`, once a layer) not included.

        Work is 4 * head_dim FLOPs for each query head and causal pair, and for the masked half of each diagonal
        tile (FlashAttention); queries, outputs, keys and values move once; each tile of queries has a start and end.
        """
        eff = self.eff
        pair_s = 4.0 * heads * head_dim / self._attention_flops_per_s
        tile_s = eff.prefill_tile_s * heads / (self.gpu.sms * eff.prefill_tile_tokens)
        io_s = 2.0 * heads * head_dim * self._element_bytes / self._stream_bytes_per_s
        kv_s = 2.0 * kv_heads * head_dim * self._kv_element_bytes / self._stream_bytes_per_s
        return Affine(pair_s, pair_s * 0.5 * eff.prefill_tile_tokens + tile_s + io_s, kv_s)

    def decode_attention(self, kv_heads: int, head_dim: int) -> tuple[float, float]:
        """(seconds per row, seconds per token of context) of one layer, the launch not included.

        Reading K and V binds: even 16 query heads to a KV head need 16 FLOPs a byte, far below any GPU's ridge.
        """
        row_s = self.eff.decode_program_s * kv_heads / self.gpu.sms
        return row_s, 2.0 * kv_heads * head_dim * self._kv_element_bytes / self._kv_bytes_per_s

    def small_s(self, moved_bytes: float) -> float:
        """An elementwise or reduction kernel that moves so many bytes."""
        return self.eff.small_kernel_floor_s + moved_bytes / self._stream_bytes_per_s

    def sampling_s(self, rows: int, vocab: int) -> float:
        """Greedy choice of a token for each of `rows` rows of logits."""
        moved_bytes = self.eff.sampling_bytes_per_logit * rows * vocab
        return self.eff.sampling_floor_s + moved_bytes / self._stream_bytes_per_s

    def all_reduce_s(self, message_bytes: float, gpus: int) -> float:
        """Sum over `gpus` GPUs: each sends 2 (gpus - 1) / gpus of the message (ring), but at least one latency."""
        sent_bytes = 2.0 * (gpus - 1) / gpus * message_bytes
        return self.eff.all_reduce_floor_s + sent_bytes / self._link_bytes_per_s

    def gather_s(self, message_bytes: float, gpus: int) -> float:
        """All-gather of a message of which every GPU has an equal part."""
        return self.eff.all_reduce_floor_s + (gpus - 1) / gpus * message_bytes / self._link_bytes_per_s

    def copy_s(self, copied_bytes: float) -> float:
        """Copy inside the device: read once, written once."""
        return self.small_s(2.0 * copied_bytes)

    def swap_s(self, swapped_bytes: float) -> float:
        """Copy between device and host memory over PCIe."""
        return self.eff.small_kernel_floor_s + swapped_bytes / self._swap_bytes_per_s
