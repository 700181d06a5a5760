"""From a scenario to the parts of its replicas: model, GPU, memory, policy, allocator, cost. It runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim import catalog
from sim.catalog import presets
from sim.catalog.presets import EnginePreset
from sim.cost import profile as profiles
from sim.cost.adapters import Adapted, AdapterShape
from sim.cost.efficiency import Efficiency
from sim.cost.experts import Routing
from sim.cost.offload import Offload
from sim.cost.pipeline import Pipeline
from sim.cost.profile import Profile
from sim.cost.ranks import RankedRoofline
from sim.cost.roofline import Roofline
from sim.cost.step import HostGap, StepCost
from sim.engine.batch import Limits
from sim.engine.drafting import DraftingEngine
from sim.engine.foreseeing import Proposer
from sim.engine.memory import KvPool, Layout
from sim.engine.protocol import ServingEngine
from sim.engine.rules import Rules, rules_of
from sim.engine.wiring import wire
from sim.load import OURS, build, find, installed
from sim.results.kv import KvFacts
from sim.scenario import Scenario, as_tables, leaves, policies_of
from sim.serving.executor import Accepting, Executor, Pipelined, Predicted
from sim.serving.memory import KvRoom, allocator_package, kv_pool, kv_room
from sim.serving.startup import LONGEST, check_longest, check_refusals
from sim.specs.model import AttentionWindow, GpuSpec, ModelSpec
from sim.specs.parallel import Parallel
from sim.specs.traits import declared
from sim.speculation.acceptance import Acceptance
from sim.speculation.adaptive import Adaptive
from sim.speculation.drafters import Drafted, Drafter, FixedDrafts
from sim.speculation.rates import acceptance_rates, found_shares
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Parts:
    """What all replicas of a scenario share. Frozen: only `engine()` makes something that changes."""

    scenario: Scenario
    model: ModelSpec
    gpu: GpuSpec
    memory: KvPool
    """What allocators are given."""
    layout: Layout
    """What the allocator makes of it."""
    allocators: str
    """The package that the allocator's name is looked up in."""
    traits: Mapping[str, Any]
    """What the allocator declares of itself (`sim.specs.traits`)."""
    limits: Limits
    parallel: Parallel
    """How GPUs share what steps together: all of a replica, or one rank of a model without experts."""
    cost: StepCost
    asynchronous: bool
    host_blocks: int
    engine_class: Callable[[Limits, KvPool], ServingEngine] | None
    """Of another's engine; None for ours."""
    window: AttentionWindow | None
    drafter: Drafter | None
    offloaded_bytes: int
    """Host memory that each GPU's offloaded weights and KV take."""
    gap: HostGap
    """What of the host's work the device waits for between steps though scheduling is asynchronous."""
    preset: EnginePreset
    """Whose defaults hold."""
    mixed: bool
    """Whether it runs a policy or allocator that this engine has not."""
    rules: Rules
    """Of the engine's version."""
    room: KvRoom
    """How many blocks the memory has, and how that is known."""
    adapters: AdapterShape | None
    """What slots for adapters hold; None without."""

    def engine(self, *, spans: bool = True) -> ServingEngine:
        """A fresh engine, with a policy and an allocator of its own unless it is another's."""
        scenario = self.scenario
        if self.engine_class is not None:
            return self.engine_class(self.limits, self.memory)
        speculation = scenario.speculation
        span_tokens = self.window.span_tokens if self.window else 0
        proposer: Proposer | None = None
        lookahead_tokens = 0
        if self.drafter is not None:
            k, drafts = speculation.k, speculation.shape.drafts
            proposer = Adaptive(k, self.cost, span_tokens) if speculation.adaptive else FixedDrafts(drafts)
            lookahead_tokens = drafts if self.drafter.has_cache else 0
        engine = wire(
            build("sim.policies", scenario.policy.name, scenario.policy.parameters),
            build(self.allocators, scenario.allocator.name, scenario.allocator.parameters, self.memory),
            self.limits,
            ahead=self.asynchronous,
            proposer=proposer,
            tree=speculation.shape if speculation.tree else None,
            lookahead_tokens=lookahead_tokens,
            rules=self.rules,
            needs_last_hit=self.drafter is not None and self.drafter.kind == "eagle",
            spans=spans,
            host_blocks=self.host_blocks,
            window_tokens=span_tokens,
            ranks=bool(getattr(self.cost, "needs_longest", False)),
            staged=self.parallel.pp > 1,
            lengths=getattr(self.cost, "needs_lengths", "always"),
        )
        if self.adapters is not None:
            engine.adapt(scenario.lora.max_loras, scenario.lora.kept)
        return engine

    def executor(self, acceptance: Sequence[float] | None = None, engine: ServingEngine | None = None) -> Executor:
        """Prices batches for one replica, and says which drafts are right.

        Args:
            acceptance: that of each request.
            engine: may know beforehand how many drafts will be right, and repeat steps unasked.
        """
        if isinstance(self.cost, Pipeline):
            return Pipelined(self.cost)
        predicted = Predicted(self.cost, overlap_host=self.asynchronous, gap=self.gap)
        if self.drafter is None:
            return predicted
        speculation = self.scenario.speculation
        rates, tree = acceptance_rates(speculation.acceptance), speculation.shape if speculation.tree else None
        shares = found_shares(speculation.acceptance) if self.drafter.kind == "ngram" else ()
        draw = Acceptance(rates, self.scenario.seed, acceptance, tree, shares, speculation.k)
        if isinstance(engine, DraftingEngine) and not shares:
            engine.foresight = draw
        return Accepting(predicted, draw, draw.found if shares else None)

    @property
    def pool(self) -> KvPool:
        """The blocks that the allocator makes of the memory, which may be smaller."""
        return self.layout.pool

    @property
    def kv_facts(self) -> KvFacts:
        """The KV pool for the summary: its tokens, the band that these are in, and how they are known."""
        pool, room = self.pool, self.room
        band = (pool.tokens * room.least // room.blocks, pool.tokens * room.most // room.blocks)
        return KvFacts(
            pool.tokens,
            pool.block_tokens,
            self.scenario.replicas * self.scenario.dp,
            band if room.is_estimate else None,
            room.source,
        )

    @property
    def takes_only(self) -> bool:
        """Whether no block comes free within a span of steps: nothing leaves a window, and no draft is refused."""
        return not (self.engine_class or self.drafter or self.layout.recent_tokens or self.layout.groups)

    @property
    def engine_name(self) -> str:
        """What outputs call the engine: by name and version, if it is one."""
        if self.scenario.engine.name != OURS:
            return self.scenario.engine.name
        return f"{OURS} with {self.preset.name}'s defaults" if self.mixed else self.preset.name

    @property
    def depth(self) -> int:
        """Batches in flight."""
        return max(self.parallel.pp, 2 if self.asynchronous else 1)


def assemble(scenario: Scenario) -> Parts:
    """Look up and check everything that the scenario names.

    Raises:
        InputError: an unknown name, a model that does not fit, a setting that contradicts another.
    """
    profile = profiles.find(scenario.cost.profile) if scenario.cost.profile != "roofline" else None
    gpu = profiles.gpu_of(scenario.cost.profile, scenario.gpu)
    model = catalog.load_model(scenario.model)
    model = model.with_dtypes(_chosen(scenario.dtype), _chosen(scenario.kv.dtype), _chosen(scenario.weights))
    model.check_parallel(scenario.parallel)
    parallel = model.together(scenario.parallel)
    gpu.check_group(parallel)
    offload = _offload(scenario, model)
    engine = scenario.engine
    longest = engine.max_model_len or model.max_context_tokens
    limits = Limits(engine.max_num_seqs, engine.max_num_batched_tokens, longest, engine.chunked_prefill)
    if engine.max_model_len > model.max_context_tokens:
        raise InputError(
            f"engine.max_model_len is {engine.max_model_len} and {model.name} has positions for "
            f"{model.max_context_tokens} tokens"
        )
    allocators = allocator_package(scenario, model)
    preset = presets.load(engine.preset)
    mixed = _mixed(scenario, preset)
    engine_class, policy, traits = _schedulers(scenario, model, preset, allocators)
    drafter = _drafter(scenario, model) if policy["drafts"] else None
    _check_parallel(scenario, parallel, drafter)
    adapters = None
    if scenario.lora.on:
        _check_adapters(scenario, parallel, policy, drafter, profile, theirs=engine_class is not None)
        adapters = AdapterShape(scenario.lora, model)
    room = kv_room(scenario, model, gpu, offload, drafter, adapters)
    memory = kv_pool(scenario, model, room, drafter, longest)
    offloaded_bytes = offload.host_bytes(model, parallel, memory.tokens)
    lay_out = traits["layout"]
    layout = lay_out(memory, **scenario.allocator.parameters) if lay_out else Layout(memory)
    starts = engine_class is None and not traits["keeps_nothing"]
    _check_start(scenario, model, preset, limits, memory, starts=starts, mixed=mixed)
    host_blocks = _host_blocks(scenario, memory, traits["no_swap"])
    efficiency = Efficiency.of(gpu, scenario.cost.efficiency, scenario.cost.fit)
    window = _window(model, layout)
    shared: dict[str, Any] = {
        "parallel": parallel,
        "efficiency": efficiency,
        "cuda_graphs": engine.cuda_graphs,
        "window": window,
        "routing": Routing(scenario.cost.routing),
        "verify_tokens": drafter.tree.drafts + 1 if drafter else 0,
    }
    cost = _cost(model, gpu, profile, drafter, offload, shared)
    if adapters is not None:
        assert isinstance(cost, Roofline)
        cost = Adapted(cost, adapters)
    _check_no_cache(scenario, traits)
    asynchronous = _asynchronous(scenario, drafter, by_default=policy["async_by_default"] and parallel.pp == 1)
    if scenario.live.stop_at_eos and (scenario.executor != "live" or drafter is not None):
        raise InputError(
            "live.stop_at_eos is true, and where an answer ends is known to a live run without drafting alone"
        )
    return Parts(
        scenario,
        model,
        gpu,
        memory,
        layout,
        allocators,
        traits,
        limits,
        parallel,
        cost,
        asynchronous,
        host_blocks,
        engine_class,
        window,
        drafter,
        offloaded_bytes,
        HostGap(efficiency.host_gap_s, efficiency.host_gap_row_s),
        preset,
        mixed,
        rules_of(preset.rules),
        room,
        adapters,
    )


def _cost(
    model: ModelSpec,
    gpu: GpuSpec,
    profile: Profile | None,
    drafter: Drafter | None,
    offload: Offload,
    shared: Mapping[str, Any],
) -> StepCost:
    """What prices a step of one rank; `shared` are arguments of every roofline."""
    parallel: Parallel = shared["parallel"]
    if profile is not None and (parallel.gpus > parallel.tp or parallel.ep > 1):
        raise InputError(
            f"cost.profile is {profile.meta.name}, whose tables are of GPUs that share every matrix (tp), and the "
            f"replica has {parallel}; cost.profile=roofline prices it"
        )
    if parallel.pp > 1:
        return Pipeline(model, gpu, **shared)
    if profile is None:
        target = Roofline(model, gpu, offload=offload, **shared)
    else:
        from sim.cost.profiled import Profiled  # noqa: PLC0415 - look-ups that no roofline does

        target = Profiled(model, gpu, profile, offload=offload, **shared)
    ranked = _beside_ranks(target)
    if drafter is None:
        return ranked
    if not drafter.has_cache or drafter.model is None:
        return Drafted(ranked, drafter, None)
    alike = {key: shared[key] for key in ("efficiency", "cuda_graphs")}
    draft = Roofline(drafter.model, gpu, parallel=drafter.model.together(parallel), **alike)
    return Drafted(ranked, drafter, _beside_ranks(draft))


def _beside_ranks(price: Roofline) -> Roofline | RankedRoofline:
    return RankedRoofline(price) if price.parallel.dp > 1 else price


def _check_parallel(scenario: Scenario, parallel: Parallel, drafter: Drafter | None) -> None:
    """Refuse what is not modelled beside several ranks or stages."""
    if scenario.dp > 1 and scenario.front_end.on:
        raise InputError(
            f"front_end.name is {scenario.front_end.name} and dp is {scenario.dp}: a front end before ranks that share "
            "requests is not modelled"
        )
    if parallel.dp == parallel.pp == 1:
        return
    if parallel.dp > 1 and parallel.pp > 1:
        raise InputError(
            f"dp is {parallel.dp} and pp is {parallel.pp}: ranks that share experts are not modelled on several stages"
        )
    what = f"dp is {parallel.dp}" if parallel.dp > 1 else f"pp is {parallel.pp}"
    if parallel.pp > 1 and scenario.engine.async_scheduling is True:
        raise InputError(f"engine.async_scheduling is true and {what}: a pipeline has {parallel.pp} batches under way")
    if drafter is not None and parallel.pp > 1:
        raise InputError(f"policy.name is {scenario.policy.name} and {what}: drafts behind stages are not modelled")
    if scenario.engine.name != OURS:
        raise InputError(f"engine.name is {scenario.engine.name} and {what}: of another's engine one rank is modelled")
    if scenario.offload.weight_layers or scenario.offload.kv_layers:
        raise InputError(f"offload.* is set and {what}: layers in host memory of such replicas are not modelled")
    if scenario.kv.swap_gib and parallel.pp > 1:
        raise InputError(f"kv.swap_gib is set and {what}: swapping between batches under way is not modelled")


def _check_adapters(
    scenario: Scenario,
    parallel: Parallel,
    policy: Mapping[str, Any],
    drafter: Drafter | None,
    profile: Profile | None,
    *,
    theirs: bool,
) -> None:
    """Refuse what is not modelled beside adapters."""
    named = f"policy {scenario.policy.name}"
    why = {
        "executor is live, and a live run has no adapters": scenario.executor == "live",
        f"engine.name is {scenario.engine.name}, whose adapters are not modelled": theirs,
        f"{named} pads rows, which are of no one adapter": policy["holds_finished"],
        f"{named} drafts, and drafts beside adapters are not modelled": drafter is not None,
        f"adapters of replicas of several ranks or stages ({parallel}) are not modelled": (
            parallel.dp > 1 or parallel.pp > 1
        ),
        "offload.* is set, and adapters beside layers in host memory are not modelled": bool(
            scenario.offload.weight_layers or scenario.offload.kv_layers
        ),
        f"cost.profile is {scenario.cost.profile}, of a CPU, on which adapters have no price": (
            profile is not None and profile.meta.synchronous
        ),
    }
    for reason, holds in why.items():
        if holds:
            raise InputError(f"lora.max_loras is set, and {reason}")


def _mixed(scenario: Scenario, preset: EnginePreset) -> bool:
    """Does the scenario run a policy or an allocator that its engine has not? InputError where it may not."""
    why = preset.refusal(policies_of(as_tables(scenario)), scenario.allocator.name) if _ours(scenario) else None
    if why is not None and not scenario.engine.allow_mix:
        raise InputError(
            f"engine.preset is {preset.name}, and {why}; engine.allow_mix=true runs it all the same, with the "
            f"defaults and rules of {preset.name}"
        )
    return why is not None


def _ours(scenario: Scenario) -> bool:
    """Does the scenario's own policy decide, in our engine or in an installed one?"""
    return scenario.engine.name == OURS or installed(scenario.engine.name)


def _schedulers(
    scenario: Scenario, model: ModelSpec, preset: EnginePreset, allocators: str
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(the class of another's engine or None for ours, traits of the policy, traits of the allocator).

    Raises InputError where the scenario names what another's engine does not read.
    """
    if _ours(scenario):
        _, policy = find("sim.policies", scenario.policy.name, scenario.policy.parameters)
        _, allocator = find(allocators, scenario.allocator.name, scenario.allocator.parameters)
        if scenario.engine.name == OURS:
            return None, policy, allocator
        from sim.engines.settings import vllm_engine  # noqa: PLC0415  (few ask for it)

        drafter = _drafter(scenario, model) if policy["drafts"] else None
        asynchronous = _asynchronous(scenario, drafter, by_default=policy["async_by_default"])
        return vllm_engine(scenario, model, asynchronous), policy, allocator
    engine, traits = find("sim.engines", scenario.engine.name, {})
    told = dict(leaves(as_tables(scenario)))
    named = [
        section
        for section in ("policy", "allocator")
        if any(value != preset.settings.get(key) for key, value in told.items() if key.partition(".")[0] == section)
    ]
    named += ["kv.swap_gib"] if scenario.kv.swap_gib else []
    if named:
        raise InputError(f"engine.name is {scenario.engine.name}, which reads no {named[0]}: it brings its own")
    return engine, declared(None, "policy") | traits, declared(None, "allocator")


def _asynchronous(scenario: Scenario, drafter: Drafter | None, *, by_default: bool) -> bool:
    chosen = scenario.engine.async_scheduling
    if scenario.executor == "live":
        if chosen is True:
            raise InputError("engine.async_scheduling is true, and a live run has one batch in flight at a time")
        return False
    asynchronous = chosen if isinstance(chosen, bool) else by_default
    if drafter is not None and asynchronous and drafter.kind == "ngram":
        raise InputError("engine.async_scheduling needs drafts before the last tokens are known; ngram has none then")
    return asynchronous


def _check_start(
    scenario: Scenario,
    model: ModelSpec,
    preset: EnginePreset,
    limits: Limits,
    memory: KvPool,
    *,
    starts: bool,
    mixed: bool,
) -> None:
    """Refuse what the engine would not start with."""
    gpus = scenario.parallel.gpus
    whose = f"{scenario.model} on {f'{gpus} x ' if gpus > 1 else ''}{scenario.gpu}"
    who = f"{preset.name} with {whose}" if preset.name != OURS and not mixed else f"a server of {whose}"
    if not mixed:
        check_refusals(who, preset.refuses, limits, memory.max_request_tokens)
    asked = (
        LONGEST in preset.refuses
        and starts
        and not scenario.kv.allow_short
        and not (preset.name == OURS and scenario.kv.blocks)
    )
    # Twice the tokens are enough for whatever an allocator rounds up to.
    if asked and memory.tokens < 2 * memory.max_request_tokens:
        allocator = build(
            allocator_package(scenario, model), scenario.allocator.name, scenario.allocator.parameters, memory
        )
        check_longest(allocator, memory.max_request_tokens, who)


def _offload(scenario: Scenario, model: ModelSpec) -> Offload:
    """What the scenario offloads, checked against the model and the other settings."""
    settings = scenario.offload
    offload = Offload(settings.weight_layers, settings.kv_layers, int(settings.host_gib * 2**30))
    offload.check(model)
    if settings.kv_layers and scenario.kv.swap_gib:
        raise InputError(
            "kv.swap_gib and offload.kv_layers exclude one another: offloaded KV is in host memory already"
        )
    return offload


def _drafter(scenario: Scenario, model: ModelSpec) -> Drafter:
    speculation = scenario.speculation
    draft = catalog.load_model(speculation.draft_model) if speculation.draft_model else None
    return Drafter.of(speculation, model, draft)


def _window(model: ModelSpec, layout: Layout) -> AttentionWindow | None:
    """The window that the allocator keeps to, in the layers that have one or else in all; or the model's own."""
    if layout.recent_tokens:
        return AttentionWindow(layout.recent_tokens, layout.sink_tokens, model.sliding_layers or model.layers)
    return model.attended_window


def _host_blocks(scenario: Scenario, memory: KvPool, no_swap: str) -> int:
    if not memory.block_bytes:
        if scenario.kv.swap_gib:
            raise InputError(f"kv.swap_gib = {scenario.kv.swap_gib:g} is for a KV cache, and the model keeps none")
        return 0
    blocks = int(scenario.kv.swap_gib * 2**30) // memory.block_bytes
    if blocks and no_swap:
        raise InputError(f"kv.swap_gib and the {scenario.allocator.name} allocator exclude one another: {no_swap}")
    return blocks


def _check_no_cache(scenario: Scenario, traits: Mapping[str, Any]) -> None:
    if traits["keeps_nothing"] and scenario.policy.parameters.get("long_prefill_token_threshold"):
        raise InputError(
            "policy.long_prefill_token_threshold cuts prompts, and without a KV cache nothing of a cut prompt stays"
        )


def _chosen(dtype: str) -> str | None:
    return None if dtype == "auto" else dtype


def resolved(scenario: Scenario, parts: Parts) -> Scenario:
    """The scenario with what was derived spelled out, so that it runs the same on another version's defaults."""
    return replace(
        scenario,
        engine=replace(scenario.engine, max_model_len=parts.limits.max_model_len, async_scheduling=parts.asynchronous),
        kv=replace(scenario.kv, blocks=parts.memory.blocks, from_log="", accounting="auto", estimate="expected"),
    )
