"""From a scenario to the parts of its replicas: model, GPU, memory, policy, allocator, cost. It runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim import catalog
from sim.cost.capacity import kv_capacity
from sim.cost.efficiency import Efficiency
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost
from sim.engine import Engine, Limits
from sim.executor import Predicted
from sim.load import build
from sim.memory import KvPool
from sim.scenario import Scenario
from sim.specs import GpuSpec, ModelSpec
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Parts:
    """What all replicas of a scenario share. Frozen: only `engine()` makes something that changes."""

    plan: Scenario
    model: ModelSpec
    gpu: GpuSpec
    pool: KvPool
    limits: Limits
    cost: StepCost
    asynchronous: bool
    reserves_ahead: bool
    host_blocks: int

    def engine(self, *, spans: bool = True) -> Engine:
        """A fresh engine with a policy and an allocator of its own."""
        policy = build("sim.policies", self.plan.policy.name, self.plan.policy.parameters)
        allocator = build("sim.allocators", self.plan.allocator.name, self.plan.allocator.parameters, self.pool)
        if self.asynchronous and hasattr(allocator, "late_outputs"):
            allocator.late_outputs = True
        return Engine(policy, allocator, self.limits, spans=spans, host_blocks=self.host_blocks)

    def executor(self) -> Predicted:
        """Prices batches for one replica."""
        return Predicted(self.cost, overlap_host=self.asynchronous)

    @property
    def depth(self) -> int:
        """Batches in flight."""
        return 2 if self.asynchronous else 1


def assemble(plan: Scenario) -> Parts:
    """Look up and check everything that the scenario names.

    Raises:
        InputError: an unknown name, a model that does not fit, a setting that contradicts another.
    """
    model, gpu = catalog.load_model(plan.model), catalog.load_gpu(plan.gpu)
    model = model.with_dtypes(_chosen(plan.dtype), _chosen(plan.kv.dtype))
    model.check_tp(plan.tp)
    engine = plan.engine
    longest = engine.max_model_len or model.max_context_tokens
    limits = Limits(engine.max_num_seqs, engine.max_num_batched_tokens, longest, engine.chunked_prefill)
    if engine.max_model_len > model.max_context_tokens:
        raise InputError(
            f"engine.max_model_len is {engine.max_model_len} and {model.name} has positions for "
            f"{model.max_context_tokens} tokens"
        )
    blocks = (
        plan.kv.blocks
        or kv_capacity(
            model,
            gpu,
            tp=plan.tp,
            block_tokens=plan.kv.block_tokens,
            gpu_memory_utilization=plan.kv.gpu_memory_utilization,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
        ).blocks
    )
    block_bytes = plan.kv.block_tokens * model.gpu_kv_bytes_per_token(plan.tp)
    pool = KvPool(blocks, plan.kv.block_tokens, longest, block_bytes)
    host_blocks = int(plan.kv.swap_gib * 2**30) // block_bytes
    if host_blocks and plan.allocator.name == "prefix":
        raise InputError("kv.swap_gib and the prefix allocator exclude one another: a dropped prefix stays findable")
    if plan.cost.profile != "roofline":
        raise InputError(f"unknown profile {plan.cost.profile!r}; known: roofline")
    efficiency = Efficiency.of(gpu, plan.cost.efficiency)
    cost = Roofline(model, gpu, tp=plan.tp, efficiency=efficiency, cuda_graphs=engine.cuda_graphs)
    policy = build("sim.policies", plan.policy.name, plan.policy.parameters)
    allocator = build("sim.allocators", plan.allocator.name, plan.allocator.parameters, pool)
    chosen = plan.engine.async_scheduling
    asynchronous = chosen if isinstance(chosen, bool) else bool(getattr(policy, "async_by_default", False))
    reserves_ahead = bool(getattr(allocator, "reserves_ahead", False))
    return Parts(plan, model, gpu, pool, limits, cost, asynchronous, reserves_ahead, host_blocks)


def _chosen(dtype: str) -> str | None:
    return None if dtype == "auto" else dtype


def resolved(plan: Scenario, parts: Parts) -> Scenario:
    """The scenario with what was derived spelled out, so that it runs the same on another version's defaults."""
    return replace(
        plan,
        engine=replace(plan.engine, max_model_len=parts.limits.max_model_len, async_scheduling=parts.asynchronous),
        kv=replace(plan.kv, blocks=parts.pool.blocks),
    )
