"""The KV memory of a scenario: how many blocks, and whether its layers are kept by kind or alike. It builds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sim.catalog import presets
from sim.cost.adapters import AdapterShape
from sim.cost.capacity import GIB, MemorySettings, kv_capacity
from sim.cost.offload import Offload
from sim.engine.memory import KvPool
from sim.engine.pages import mixed_layers
from sim.load import MIXED, OURS, installed, names
from sim.scenario import Scenario
from sim.serving.startup_log import logged_room
from sim.specs.bounds import MAX_BLOCKS
from sim.specs.model import GpuSpec, ModelSpec
from sim.speculation.drafters import Drafter
from traces.schema import InputError


def allocator_package(scenario: Scenario, model: ModelSpec) -> str:
    """The package that the allocator's name is looked up in: that for layers that do not keep alike, or the other."""
    layers, _ = mixed_layers(model.kv_kinds(model.together(scenario.parallel)))
    return MIXED if layers and not why_alike(scenario) else "sim.allocators"


def why_alike(scenario: Scenario) -> str:
    """Why an allocator is given all layers as if every one kept every token, whatever the model; "" if it is not."""
    name = scenario.allocator.name
    if scenario.engine.name != OURS and not installed(scenario.engine.name):
        return f"the engine {scenario.engine.name} brings its own KV manager"
    if scenario.executor == "live":
        return "the tensors of a live run hold every layer alike"
    if name not in names(MIXED):
        return f"the {name} allocator is given blocks of all layers"
    if scenario.offload.kv_layers:
        return "KV of offloaded layers is counted by layers that are alike"
    return ""


@dataclass(frozen=True, slots=True)
class KvRoom:
    """Blocks of a replica's KV cache, the fewest and the most that they may be, and how that is known (for people)."""

    blocks: int
    least: int
    most: int
    source: str = ""

    @property
    def is_estimate(self) -> bool:
        return self.least < self.most


def kv_room(
    scenario: Scenario,
    model: ModelSpec,
    gpu: GpuSpec,
    offload: Offload,
    drafter: Drafter | None,
    adapters: AdapterShape | None = None,
) -> KvRoom:
    """How many blocks a replica's KV cache has: as they are given or logged, or derived from the memory.

    Raises:
        InputError: the model does not fit, a line that says no size, an accounting that is not known.
    """
    parallel, kv, engine = model.together(scenario.parallel), scenario.kv, scenario.engine
    if kv.blocks:
        return KvRoom(kv.blocks, kv.blocks, kv.blocks)
    if kv.from_log:
        own_bytes = drafter.kv_bytes_per_token(parallel) if drafter else 0
        block_bytes = kv.block_tokens * (offload.gpu_kv_bytes_per_token(model, parallel) + own_bytes)
        blocks, line = _logged(kv.from_log, kv.block_tokens, block_bytes)
        return KvRoom(blocks, blocks, blocks, line)
    accounting = presets.accounting_of(kv.accounting, engine.preset)
    room = kv_capacity(
        model,
        gpu,
        MemorySettings(
            kv.block_tokens,
            kv.gpu_memory_utilization,
            engine.max_num_batched_tokens,
            engine.max_num_seqs,
            engine.cuda_graphs,
            accounting,
        ),
        parallel=parallel,
        offload=offload,
        drafter=drafter,
        adapters=adapters,
        pools_states=allocator_package(scenario, model) == MIXED,
    )
    taken = {"expected": room.blocks, "least": room.least_blocks, "most": room.most_blocks}[kv.estimate]
    if taken < 1:
        raise InputError(
            f"kv.estimate is least, and at the least end of its band the KV cache of {model.name} on {gpu.name} has no "
            "block (docs/kv.md)"
        )
    whose = f"accounted as {accounting.name} does" if accounting.name else "a plain estimate, of no engine"
    if adapters is not None:
        slots = adapters.slot_bytes(parallel) / GIB
        whose += f", beside {slots:.2f} GiB of each GPU for the slots of {scenario.lora.max_loras:,} adapters"
    return KvRoom(taken, room.least_blocks, room.most_blocks, whose)


def _logged(told: str, block_tokens: int, block_bytes: int) -> tuple[int, str]:
    """(blocks, the line) of what a server wrote."""
    room = logged_room(told)
    if room.unit == "GiB" and not block_bytes:
        raise InputError(f"kv.from_log: {room.line!r} is a size in bytes, and the model keeps no KV")
    whole = {"blocks": 1.0, "tokens": block_tokens, "GiB": block_bytes / GIB}[room.unit]
    blocks = int(room.amount / whole) - room.null_blocks
    if blocks < 1:
        raise InputError(f"kv.from_log: {room.line!r} is less than a block of kv.block_tokens = {block_tokens} tokens")
    return blocks, room.line


def kv_pool(scenario: Scenario, model: ModelSpec, room: KvRoom, drafter: Drafter | None, longest: int) -> KvPool:
    """The memory of a replica's allocator, for requests of at most `longest` tokens.

    Raises:
        InputError: more blocks than are simulated.
    """
    parallel, kv = model.together(scenario.parallel), scenario.kv
    mixed = allocator_package(scenario, model) == MIXED
    _check_blocks(scenario, room.blocks)
    own_bytes = drafter.kv_bytes_per_token(parallel) if drafter else 0
    layers, state_bytes = mixed_layers(model.kv_kinds(parallel), own_bytes) if mixed else ((), 0)
    native = model.attention_window
    return KvPool(
        room.blocks,
        kv.block_tokens,
        longest,
        kv.block_tokens * (model.gpu_kv_bytes_per_token(parallel) + own_bytes),
        max_step_tokens=scenario.engine.max_num_batched_tokens,
        window_tokens=native.recent_tokens if native else 0,
        full_layers=model.full_layers,
        window_layers=model.sliding_layers,
        layers=layers,
        state_bytes=state_bytes,
    )


def _check_blocks(scenario: Scenario, blocks: int) -> None:
    """Refuse more KV blocks than this machine can keep account of."""
    caches = scenario.replicas * scenario.dp
    if blocks * caches > MAX_BLOCKS:
        what = "replicas" if scenario.dp == 1 else "ranks"
        whose = f"{caches:,} {what} of {blocks:,}" if caches > 1 else "a replica of so many"
        raise InputError(
            f"kv.blocks comes to {blocks * caches:,} ({whose}), and at most {MAX_BLOCKS:,} are simulated; "
            "set a larger kv.block_tokens or fewer replicas"
        )
