"""How many KV blocks a GPU has room for, by the accounting that an engine does at its start. It knows no allocator.

vLLM (v1/worker/gpu_worker.py, determine_available_memory) runs one step of `max_num_batched_tokens` tokens and
`max_num_seqs` logits rows, and gives the cache what is left of `gpu_memory_utilization` of the memory. Weights here
are exact; what else is held then (`sim.cost.profile_run`) is an estimate with a least and a most, and so is the number
of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sim.cost.offload import Offload
from sim.cost.profile_run import activations, overheads
from sim.specs.accounting import PLAIN, Accounting, total
from sim.specs.model import GpuSpec, ModelSpec
from sim.specs.parallel import MAX_DP, MAX_TP, SINGLE, Parallel
from traces.schema import InputError

GIB = 2**30
DRIVER_BYTES = int(0.55 * GIB)
"""nvidia-smi's total less what CUDA offers: on an H100 81559 MiB less 79.10 GiB."""
DRIVER_SPREAD_BYTES = int(0.1 * GIB)
"""By so much that differs from card to card; an RTX 4090 has 24564 MiB less 25,250,627,584 B, 0.47 GiB."""


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """Where one GPU's memory goes, in bytes, and the blocks that fit in what is left.

    With layers offloaded, `weight_bytes` and `block_bytes` are what stays on the GPU, buffers included; the
    blocks that the host memory left beside the offloaded weights can hold are `host_blocks`, None without a limit.
    `state_bytes` is the constant state (linear attention, Mamba) of every seat, set aside for all of them; where the
    pool holds states, it is 0, and one of them has `pooled_state_bytes`. Where no layer keeps anything of a token,
    blocks hold no bytes, and there are `seat_blocks`: what all seats can name at most.
    What is held beside weights and states may be `less_bytes` less than told here, or `more_bytes` more.
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
    less_bytes: int = 0
    more_bytes: int = 0
    null_blocks: int = 0
    """Blocks that the engine has and gives to no request."""

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
        return self._blocks_with(0)

    @property
    def least_blocks(self) -> int:
        """The fewest blocks that there may be: all that is estimated is as large as it may be."""
        return max(0, self._blocks_with(self.more_bytes))

    @property
    def most_blocks(self) -> int:
        """The most blocks that there may be."""
        return max(0, self._blocks_with(-self.less_bytes))

    def _blocks_with(self, more_bytes: int) -> int:
        left = self.usable_bytes - self.needed_bytes - more_bytes
        if not self.block_bytes:
            return self.seat_blocks if left >= 0 else 0
        blocks = left // self.block_bytes - self.null_blocks
        return blocks if self.host_blocks is None else min(blocks, self.host_blocks)

    @property
    def tokens(self) -> int:
        """Tokens whose KV fits."""
        return self.blocks * self.block_tokens


class DrafterMemory(Protocol):
    """What a drafter keeps on each of so many GPUs."""

    def weight_bytes(self, parallel: Parallel) -> int: ...
    def kv_bytes_per_token(self, parallel: Parallel) -> int: ...


class AdapterMemory(Protocol):
    """What slots for adapters take of each of so many GPUs."""

    def slot_bytes(self, parallel: Parallel) -> int: ...


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The settings of an engine that decide how large its KV cache is, named as in vLLM, and how it accounts for them.

    Raises:
        InputError: one is impossible.
    """

    block_tokens: int = 16
    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    cuda_graphs: bool = True
    accounting: Accounting = PLAIN

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
    adapters: AdapterMemory | None = None,
    pools_states: bool = False,
) -> KvCapacity:
    """The memory plan of each of `tp` GPUs, of the fullest stage; below 1 block the model does not fit.

    With `pools_states` a sequence's constant state is taken from the blocks, where there are any; else it is set aside
    for every seat.

    Raises:
        InputError: the model cannot be split so, or more layers are offloaded than there are.
    """
    model.check_parallel(parallel)
    if parallel.pp > 1:
        one = replace(parallel, pp=1)
        assert adapters is None, "of stages none is modelled"
        planned = [
            memory_plan(stage, gpu, settings, parallel=one, offload=offload, drafter=drafter, pools_states=pools_states)
            for stage in model.stages(parallel)
        ]
        # Every stage keeps its layers' part of every block: the one with room for fewest decides.
        return min(planned, key=lambda plan: plan.blocks)
    moved = offload or Offload()
    moved.check(model)
    state_bytes = model.gpu_state_bytes(parallel) if model.blocks else 0
    drafter_bytes = drafter.kv_bytes_per_token(parallel) if drafter else 0
    block_bytes = (moved.gpu_kv_bytes_per_token(model, parallel) + drafter_bytes) * settings.block_tokens
    pooled = pools_states and block_bytes > 0
    accounting, step = settings.accounting, (settings.max_num_batched_tokens, settings.max_num_seqs)
    peak = activations(model, parallel, *step, accounting)
    outside = total(overheads(model, gpu, parallel, *step, accounting, graphs=settings.cuda_graphs).values())
    driver_bytes = int(DRIVER_SPREAD_BYTES * settings.gpu_memory_utilization)
    both = peak.plus(outside)
    return KvCapacity(
        int((gpu.memory_bytes - DRIVER_BYTES) * settings.gpu_memory_utilization),
        moved.gpu_weight_bytes(model, parallel)
        + (drafter.weight_bytes(parallel) if drafter else 0)
        + (adapters.slot_bytes(parallel) if adapters else 0),
        peak.expected,
        outside.expected,
        block_bytes,
        settings.block_tokens,
        moved.host_blocks(model, parallel, settings.block_tokens),
        0 if pooled else settings.max_num_seqs * state_bytes,
        state_bytes if pooled else 0,
        settings.max_num_seqs * -(-model.max_context_tokens // settings.block_tokens),
        both.expected - both.least + driver_bytes,
        both.most - both.expected + driver_bytes,
        accounting.null_blocks,
    )


def kv_capacity(
    model: ModelSpec,
    gpu: GpuSpec,
    settings: MemorySettings = DEFAULTS,
    *,
    parallel: Parallel = SINGLE,
    offload: Offload | None = None,
    drafter: DrafterMemory | None = None,
    adapters: AdapterMemory | None = None,
    pools_states: bool = False,
) -> KvCapacity:
    """The memory plan of each of `tp` GPUs, as `memory_plan`, of a model that fits.

    Raises:
        InputError: the model does not fit; says what is needed and the smallest parallelism that would do.
    """

    def capacity(split: Parallel) -> KvCapacity:
        return memory_plan(
            model, gpu, settings, parallel=split, offload=offload, drafter=drafter, adapters=adapters,
            pools_states=pools_states,
        )  # fmt: skip

    planned = capacity(parallel)
    (offload or Offload()).host_bytes(model, parallel, settings.block_tokens)
    if planned.fits:
        return planned
    doubling = range(11 if parallel.ep > 1 and parallel.dp > 1 else 1)
    wider = [parallel.dp << times for times in doubling if parallel.dp << times <= MAX_DP]
    splits = possible_splits(model, gpu, pp=parallel.pp, dp=wider, whole_experts=parallel.ep > 1)
    fitting = next((split for split in splits if capacity(split).fits), None)
    least_bytes = planned.needed_bytes + planned.block_bytes + planned.pooled_state_bytes
    states = ", a sequence's state" if planned.pooled_state_bytes else ""
    drafts = f" (the drafter's {drafter.weight_bytes(parallel) / GIB:.1f} GiB of weights included)" if drafter else ""
    slots = f" (slots for adapters: {adapters.slot_bytes(parallel) / GIB:.1f} GiB)" if adapters else ""
    plain = parallel == Parallel(parallel.tp)
    if fitting is not None:
        advice = f"the smallest tp that fits is {fitting.tp}" if plain else f"the fewest GPUs that fit are {fitting}"
    else:
        advice = f"no tp up to {splits[-1].tp} fits" if plain else f"nothing up to {splits[-1]} fits"
    raise InputError(
        f"model {model.name!r} does not fit on GPU {gpu.name!r} with {parallel}: "
        f"weights, activations{states} and a block need {least_bytes / GIB:.1f} GiB of each GPU{drafts}{slots}, "
        f"{planned.usable_bytes / GIB:.1f} GiB are usable (gpu_memory_utilization "
        f"{settings.gpu_memory_utilization:g}); {advice}"
    )


def possible_splits(
    model: ModelSpec, gpu: GpuSpec, *, pp: int = 1, dp: Sequence[int] = (1,), whole_experts: bool = False
) -> list[Parallel]:
    """Every `tp` over which the model can be split and so many of these GPUs can be joined, rising in GPUs.

    With so many stages, each number of ranks, and whole experts placed over all GPUs of a stage or each cut.
    """
    made = (Parallel(tp, pp, ranks, tp * ranks if whole_experts else 1) for ranks in dp for tp in range(1, MAX_TP + 1))
    joined = (split for split in made if gpu.network_bytes_per_s or gpu.nodes(model.together(split).gpus) == 1)
    return sorted((split for split in joined if model.divides(split)), key=lambda split: (split.gpus, split.tp))
