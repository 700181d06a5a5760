"""How many KV blocks a GPU has room for, by the accounting that vLLM does at start-up. It knows no allocator.

vLLM (v1/worker/gpu_worker.py, determine_available_memory) runs one step of `max_num_batched_tokens` tokens and
`max_num_seqs` logits rows, and gives the cache what is left of `gpu_memory_utilization` of the memory. Weights here
are exact; activations and what lies outside the framework are estimates, made below. CUDA graphs are captured
afterwards and do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sim.cost.offload import Offload
from sim.specs.model import MAX_TP, GpuSpec, ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

GIB = 2**30
# nvidia-smi's total less what CUDA offers: on an H100 81559 MiB less 79.10 GiB.
DRIVER_BYTES = int(0.55 * GIB)
# CUDA context and libraries; vLLM logs non_torch_memory 0.14 GiB on one H100.
CONTEXT_BYTES = int(0.15 * GIB)
# NCCL's buffers once there is a second GPU: 342 to 392 MiB (aiconfigurator, h100_sxm.yaml, nccl_mem).
COLLECTIVE_BYTES = 392 * 2**20
# Sampling holds, for each logit, its 16-bit and fp32 value (2 + 4), sorted values and their indices (4 + 8),
# probabilities and their running sum (4 + 4).
SAMPLING_BYTES_PER_LOGIT = 26


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """Where one GPU's memory goes, in bytes, and the blocks that fit in what is left.

    With layers offloaded, `weight_bytes` and `block_bytes` are what stays on the GPU, buffers included; the
    blocks that the host memory left beside the offloaded weights can hold are `host_blocks`, None without a limit.
    `state_bytes` is the constant state (linear attention, Mamba) of every seat, set aside for all of them; where the
    pool holds states, it is 0, and one of them has `pooled_state_bytes`. Where no layer keeps anything of a token,
    blocks hold no bytes, and there are `seat_blocks`: what all seats can name at most.
    """

    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    overhead_bytes: int
    block_bytes: int
    block_tokens: int
    host_blocks: int | None = None
    state_bytes: int = 0
    pooled_state_bytes: int = 0
    seat_blocks: int = 0

    @property
    def fits(self) -> bool:
        """Is there room for a block, and for the state of a sequence?"""
        return self.blocks >= 1 and self.blocks * self.block_bytes >= self.pooled_state_bytes + self.block_bytes

    @property
    def needed_bytes(self) -> int:
        """What must fit before the first block."""
        return self.weight_bytes + self.activation_bytes + self.overhead_bytes + self.state_bytes

    @property
    def blocks(self) -> int:
        """KV blocks, each holding `block_tokens` tokens of all layers; below 1 the model does not fit."""
        left = self.usable_bytes - self.needed_bytes
        if not self.block_bytes:
            return self.seat_blocks if left >= 0 else 0
        blocks = left // self.block_bytes
        return blocks if self.host_blocks is None else min(blocks, self.host_blocks)

    @property
    def tokens(self) -> int:
        """Tokens whose KV fits."""
        return self.blocks * self.block_tokens


class DrafterMemory(Protocol):
    """What a drafter keeps on each of so many GPUs."""

    def weight_bytes(self, parallel: Parallel) -> int: ...
    def kv_bytes_per_token(self, parallel: Parallel) -> int: ...


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The settings of an engine that decide how large its KV cache is, named and with the defaults as in vLLM.

    Raises:
        InputError: one is impossible.
    """

    block_tokens: int = 16
    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InputError(f"gpu_memory_utilization = {self.gpu_memory_utilization} must be above 0 and at most 1")
        for name in ("block_tokens", "max_num_batched_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")


DEFAULTS = MemorySettings()


def memory_plan(
    model: ModelSpec,
    gpu: GpuSpec,
    settings: MemorySettings = DEFAULTS,
    *,
    parallel: Parallel = SINGLE,
    offload: Offload | None = None,
    drafter: DrafterMemory | None = None,
    pools_states: bool = False,
) -> KvCapacity:
    """The memory plan of each of `tp` GPUs; below 1 block the model does not fit.

    With `pools_states` a sequence's constant state is taken from the blocks, where there are any; else it is set aside
    for every seat.

    Raises:
        InputError: the model cannot be split so, or more layers are offloaded than there are.
    """
    model.check_parallel(parallel)
    moved = offload or Offload()
    moved.check(model)
    state_bytes = model.gpu_state_bytes(parallel) if model.blocks else 0
    drafter_bytes = drafter.kv_bytes_per_token(parallel) if drafter else 0
    block_bytes = (moved.gpu_kv_bytes_per_token(model, parallel) + drafter_bytes) * settings.block_tokens
    pooled = pools_states and block_bytes > 0
    return KvCapacity(
        int((gpu.memory_bytes - DRIVER_BYTES) * settings.gpu_memory_utilization),
        moved.gpu_weight_bytes(model, parallel) + (drafter.weight_bytes(parallel) if drafter else 0),
        activation_bytes(model, parallel, settings.max_num_batched_tokens, settings.max_num_seqs),
        CONTEXT_BYTES + (COLLECTIVE_BYTES if parallel.tp > 1 else 0),
        block_bytes,
        settings.block_tokens,
        moved.host_blocks(model, parallel, settings.block_tokens),
        0 if pooled else settings.max_num_seqs * state_bytes,
        state_bytes if pooled else 0,
        settings.max_num_seqs * -(-model.max_context_tokens // settings.block_tokens),
    )


def kv_capacity(
    model: ModelSpec,
    gpu: GpuSpec,
    settings: MemorySettings = DEFAULTS,
    *,
    parallel: Parallel = SINGLE,
    offload: Offload | None = None,
    drafter: DrafterMemory | None = None,
    pools_states: bool = False,
) -> KvCapacity:
    """The memory plan of each of `tp` GPUs, as `memory_plan`, of a model that fits.

    Raises:
        InputError: the model does not fit; says what is needed and the smallest `tp` that would do.
    """

    def capacity(split: Parallel) -> KvCapacity:
        return memory_plan(
            model, gpu, settings, parallel=split, offload=offload, drafter=drafter, pools_states=pools_states
        )

    planned = capacity(parallel)
    (offload or Offload()).host_bytes(model, parallel, settings.block_tokens)
    if planned.fits:
        return planned
    splits = possible_splits(model, gpu)
    fitting = [split.tp for split in splits if capacity(split).fits]
    least_bytes = planned.needed_bytes + planned.block_bytes + planned.pooled_state_bytes
    states = ", a sequence's state" if planned.pooled_state_bytes else ""
    drafts = f" (the drafter's {drafter.weight_bytes(parallel) / GIB:.1f} GiB of weights included)" if drafter else ""
    advice = f"the smallest tp that fits is {fitting[0]}" if fitting else f"no tp up to {splits[-1].tp} fits"
    raise InputError(
        f"model {model.name!r} does not fit on GPU {gpu.name!r} with tp = {parallel.tp}: "
        f"weights, activations{states} and a block need {least_bytes / GIB:.1f} GiB of each GPU{drafts}, "
        f"{planned.usable_bytes / GIB:.1f} GiB are usable (gpu_memory_utilization "
        f"{settings.gpu_memory_utilization:g}); {advice}"
    )


def possible_splits(model: ModelSpec, gpu: GpuSpec) -> list[Parallel]:
    """Every `tp` over which the model can be split and so many of these GPUs can be joined, rising."""
    joined = (tp for tp in range(1, MAX_TP + 1) if gpu.network_bytes_per_s or gpu.nodes(tp) == 1)
    return [split for split in map(Parallel, joined) if model.divides(split)]


def activation_bytes(model: ModelSpec, parallel: Parallel, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Estimated peak of one GPU's activations: a full step's widest layer, or sampling after it, whichever is more.

    A layer holds the residual stream and its input, plus the widest of: projected and attended heads; the MLP's
    projection and activation; the same for every expert a token visits.
    """
    widest = (
        max(block.activation_width(parallel) for block in model.blocks) if model.blocks else _widest(model, parallel)
    )
    forward = max_num_batched_tokens * (2 * model.hidden + widest) * model.element_bytes
    rows = min(max_num_seqs, max_num_batched_tokens)
    sampling = (
        max_num_batched_tokens * model.hidden * model.element_bytes + rows * model.vocab * SAMPLING_BYTES_PER_LOGIT
    )
    return max(forward, sampling)


def _widest(model: ModelSpec, parallel: Parallel) -> int:
    """Values that the widest part of a layer makes of one token."""
    heads = sum(gemm.n for gemm in model.attention_gemms(parallel)[:-1]) + model.attention_gemms(parallel)[-1].k
    dense, shared, expert = (
        sum(gemm.n if gemm.k == model.hidden else gemm.k for gemm in gemms)
        for gemms in (model.mlp_gemms(parallel), model.shared_gemms(parallel), model.expert_gemms(parallel))
    )
    experts = model.experts_per_token * (expert + model.hidden) if model.experts else 0
    return max(heads, dense, shared + experts)
