"""From a scenario to the parts of its replicas: model, GPU, memory, policy, allocator, cost. It runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim import catalog
from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.allocators.windowed import Windowed
from sim.cost import profile as profiles
from sim.cost.capacity import kv_capacity
from sim.cost.efficiency import Efficiency
from sim.cost.offload import Offload
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost
from sim.engine.batch import Limits
from sim.engine.drafting import DraftingEngine
from sim.engine.engine import Engine
from sim.engine.memory import Allocator, KvPool
from sim.load import build
from sim.scenario import Scenario
from sim.serving.executor import Accepting, Executor, Predicted
from sim.specs.bounds import MAX_BLOCKS
from sim.specs.model import AttentionWindow, GpuSpec, ModelSpec
from sim.specs.parallel import Parallel
from sim.speculation.acceptance import Acceptance, acceptance_rates, found_shares
from sim.speculation.adaptive import Adaptive
from sim.speculation.drafters import Drafted, Drafter, FixedDrafts
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Parts:
    """What all replicas of a scenario share. Frozen: only `engine()` makes something that changes."""

    plan: Scenario
    model: ModelSpec
    gpu: GpuSpec
    memory: KvPool
    """What allocators are given."""
    pool: KvPool
    """The blocks that the allocator makes of it, which may be smaller."""
    limits: Limits
    cost: StepCost
    asynchronous: bool
    host_blocks: int
    window: AttentionWindow | None
    drafter: Drafter | None
    offloaded_bytes: int
    """Host memory that each GPU's offloaded weights and KV take."""

    def engine(self, *, spans: bool = True) -> Engine:
        """A fresh engine with a policy and an allocator of its own."""
        policy = build("sim.policies", self.plan.policy.name, self.plan.policy.parameters)
        allocator = build("sim.allocators", self.plan.allocator.name, self.plan.allocator.parameters, self.memory)
        if self.asynchronous and hasattr(allocator, "late_outputs"):
            allocator.late_outputs = True
        span_tokens = self.window.span_tokens if self.window else 0
        if self.drafter is None:
            return Engine(
                policy,
                allocator,
                self.limits,
                spans=spans,
                host_blocks=self.host_blocks,
                window_tokens=span_tokens,
                ranks=bool(getattr(self.cost, "needs_longest", False)),
            )
        told = self.plan.speculation
        if self.drafter.has_cache and isinstance(allocator, Paged):
            allocator.lookahead_tokens = told.shape.drafts
        if self.drafter.kind == "eagle" and isinstance(allocator, Prefix):
            allocator.drops_last_hit = True
        return DraftingEngine(
            policy,
            allocator,
            self.limits,
            Adaptive(told.k, self.cost, span_tokens) if told.adaptive else FixedDrafts(told.shape.drafts),
            tree=told.shape if told.tree else None,
            early=self.asynchronous,
            host_blocks=self.host_blocks,
            window_tokens=span_tokens,
            ranks=bool(getattr(self.cost, "needs_longest", False)),
        )

    def executor(self, acceptance: Sequence[float] | None = None) -> Executor:
        """Prices batches for one replica, and says which drafts are right; `acceptance` is that of each request."""
        predicted = Predicted(self.cost, overlap_host=self.asynchronous)
        if self.drafter is None:
            return predicted
        told = self.plan.speculation
        rates, tree = acceptance_rates(told.acceptance), told.shape if told.tree else None
        found = found_shares(told.acceptance) if self.drafter.kind == "ngram" else ()
        draw = Acceptance(rates, self.plan.seed, acceptance, tree, found)
        return Accepting(predicted, draw, draw.found if found else None)

    @property
    def depth(self) -> int:
        """Batches in flight."""
        return 2 if self.asynchronous else 1


def assemble(plan: Scenario) -> Parts:
    """Look up and check everything that the scenario names.

    Raises:
        InputError: an unknown name, a model that does not fit, a setting that contradicts another.
    """
    profile = profiles.find(plan.cost.profile) if plan.cost.profile != "roofline" else None
    # A device that is in no catalog (a CPU) has its data sheet in the profile that was measured on it.
    gpu = profile.device if profile and profile.device else catalog.load_gpu(plan.gpu)
    model = catalog.load_model(plan.model)
    model = model.with_dtypes(_chosen(plan.dtype), _chosen(plan.kv.dtype), _chosen(plan.weights))
    parallel = Parallel(plan.tp)
    model.check_parallel(parallel)
    offload = _offload(plan, model)
    engine = plan.engine
    longest = engine.max_model_len or model.max_context_tokens
    limits = Limits(engine.max_num_seqs, engine.max_num_batched_tokens, longest, engine.chunked_prefill)
    if engine.max_model_len > model.max_context_tokens:
        raise InputError(
            f"engine.max_model_len is {engine.max_model_len} and {model.name} has positions for "
            f"{model.max_context_tokens} tokens"
        )
    policy = build("sim.policies", plan.policy.name, plan.policy.parameters)
    drafter = _drafter(plan, model) if getattr(policy, "drafts", False) else None
    blocks = (
        plan.kv.blocks
        or kv_capacity(
            model,
            gpu,
            parallel=parallel,
            block_tokens=plan.kv.block_tokens,
            gpu_memory_utilization=plan.kv.gpu_memory_utilization,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            offload=offload,
            drafter=drafter,
        ).blocks
    )
    own_bytes = drafter.kv_bytes_per_token(parallel) if drafter else 0
    block_bytes = plan.kv.block_tokens * (model.gpu_kv_bytes_per_token(parallel) + own_bytes)
    native = model.attention_window
    _check_blocks(plan, blocks)
    memory = KvPool(
        blocks,
        plan.kv.block_tokens,
        longest,
        block_bytes,
        max_step_tokens=engine.max_num_batched_tokens,
        window_tokens=native.recent_tokens if native else 0,
        full_layers=model.full_layers,
        window_layers=model.sliding_layers,
    )
    offloaded_bytes = offload.host_bytes(model, parallel, memory.tokens)
    allocator: Allocator = build("sim.allocators", plan.allocator.name, plan.allocator.parameters, memory)
    host_blocks = _host_blocks(plan, memory)
    efficiency = Efficiency.of(gpu, plan.cost.efficiency)
    window = _window(model, allocator)
    graphs = engine.cuda_graphs
    shared: dict[str, Any] = {"parallel": parallel, "efficiency": efficiency, "cuda_graphs": graphs, "window": window}
    if profile is None:
        target = Roofline(model, gpu, offload=offload, **shared)
    else:
        target = Profiled(model, gpu, profile, offload=offload, **shared)
    cost: StepCost = target
    if drafter is not None:
        own = drafter.model if drafter.has_cache else None
        draft = Roofline(own, gpu, parallel=parallel, efficiency=efficiency, cuda_graphs=graphs) if own else None
        cost = Drafted(target, drafter, draft)
    _check_no_cache(plan, allocator)
    chosen = plan.engine.async_scheduling
    asynchronous = chosen if isinstance(chosen, bool) else bool(getattr(policy, "async_by_default", False))
    if plan.live.stop_at_eos and (plan.executor != "live" or drafter is not None):
        raise InputError(
            "live.stop_at_eos is true, and where an answer ends is known to a live run without drafting alone"
        )
    if plan.executor == "live":
        if chosen is True:
            raise InputError("engine.async_scheduling is true, and a live run has one batch in flight at a time")
        asynchronous = False
    if drafter is not None and asynchronous and drafter.kind == "ngram":
        raise InputError("engine.async_scheduling needs drafts before the last tokens are known; ngram has none then")
    return Parts(
        plan,
        model,
        gpu,
        memory,
        allocator.pool,
        limits,
        cost,
        asynchronous,
        host_blocks,
        window,
        drafter,
        offloaded_bytes,
    )


def _check_blocks(plan: Scenario, blocks: int) -> None:
    """Refuse more KV blocks than this machine can keep account of."""
    if blocks * plan.replicas > MAX_BLOCKS:
        whose = f"{plan.replicas:,} replicas of {blocks:,}" if plan.replicas > 1 else "a replica of so many"
        raise InputError(
            f"kv.blocks comes to {blocks * plan.replicas:,} ({whose}), and at most {MAX_BLOCKS:,} are simulated; set "
            "a larger kv.block_tokens or fewer replicas"
        )


def _offload(plan: Scenario, model: ModelSpec) -> Offload:
    """What the scenario offloads, checked against the model and the other settings."""
    told = plan.offload
    offload = Offload(told.weight_layers, told.kv_layers, int(told.host_gib * 2**30))
    offload.check(model)
    if told.kv_layers and plan.kv.swap_gib:
        raise InputError(
            "kv.swap_gib and offload.kv_layers exclude one another: offloaded KV is in host memory already"
        )
    return offload


def _drafter(plan: Scenario, model: ModelSpec) -> Drafter:
    told = plan.speculation
    return Drafter.of(told, model, catalog.load_model(told.draft_model) if told.draft_model else None)


def _window(model: ModelSpec, allocator: Allocator) -> AttentionWindow | None:
    """The window that the allocator keeps to, in the layers that have one or else in all; or the model's own."""
    if isinstance(allocator, Windowed):
        return AttentionWindow(allocator.recent_tokens, allocator.sink_tokens, model.sliding_layers or model.layers)
    return model.attention_window


def _host_blocks(plan: Scenario, memory: KvPool) -> int:
    blocks = int(plan.kv.swap_gib * 2**30) // memory.block_bytes
    why = {"prefix": "a dropped prefix stays findable", "windowed": "what fell out of the window is gone"}
    if blocks and plan.allocator.name in why:
        name = plan.allocator.name
        raise InputError(f"kv.swap_gib and the {name} allocator exclude one another: {why[name]}")
    return blocks


def _check_no_cache(plan: Scenario, allocator: Allocator) -> None:
    if getattr(allocator, "keeps_nothing", False) and plan.policy.parameters.get("long_prefill_token_threshold"):
        raise InputError(
            "policy.long_prefill_token_threshold cuts prompts, and without a KV cache nothing of a cut prompt stays"
        )


def _chosen(dtype: str) -> str | None:
    return None if dtype == "auto" else dtype


def resolved(plan: Scenario, parts: Parts) -> Scenario:
    """The scenario with what was derived spelled out, so that it runs the same on another version's defaults."""
    return replace(
        plan,
        engine=replace(plan.engine, max_model_len=parts.limits.max_model_len, async_scheduling=parts.asynchronous),
        kv=replace(plan.kv, blocks=parts.memory.blocks),
    )
