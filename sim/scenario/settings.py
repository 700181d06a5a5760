"""Every setting, at its field: default, bound, meaning, and who reads it. It reads no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.load import plug_in
from sim.specs.bounds import EFFICIENCY, MAX_BLOCKS, MAX_SEED, Bound
from sim.specs.fleet import ROLES, RoutingSettings, TransferSettings
from sim.specs.front_end import FrontEndSettings
from sim.specs.lora import LoraSettings
from sim.specs.operations import AdmissionSettings, AutoscaleSettings, FailureSettings, RetrySettings
from sim.specs.parallel import MAX_DP, MAX_PP, MAX_TP, Parallel
from sim.specs.settings import Setting, Where, check, section, setting
from sim.specs.tiers import TierSettings
from sim.specs.workload import WorkloadSettings
from sim.speculation.settings import SpeculationSettings
from traces.schema import InputError

MOST_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """Something found by name, with parameters of its own."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which engine, and the limits of a step, named as in vLLM."""

    name: str = setting("foretoken", "The engine: foretoken, or module:object of one that brings its own policy.")
    preset: str = setting("vllm-0.33", "Whose defaults and rules hold where nothing else is set (sim list engines).")
    allow_mix: bool = setting(
        False, "Run policies and allocators that the engine has not, with its defaults and rules."
    )
    max_num_seqs: int = setting(1024, "Sequences that run at once, at most.", Bound(1, 1_000_000))
    max_num_batched_tokens: int = setting(8192, "Tokens of a step, at most.", Bound(1, 10**9))
    max_model_len: int = setting(0, "Tokens of prompt and answer, at most.", Bound(0, 10**9, "the model's own"))
    chunked_prefill: bool = setting(True, "A prompt may be cut to what a step has left.")
    async_scheduling: bool | str = setting(
        "auto", "Plan a step while the last one runs; auto leaves it to the policy.", choices=(True, False, "auto")
    )
    cuda_graphs: bool = setting(True, "Launch a decode step's kernels together; off is vLLM's enforce_eager.")

    def __post_init__(self) -> None:
        check("engine", self)


_PREDICTED = Where("executor is predicted", lambda scenario: scenario.executor == "predicted")


_DERIVED = _PREDICTED & Where(
    "neither kv.blocks nor kv.from_log is set", lambda scenario: not (scenario.kv.blocks or scenario.kv.from_log)
)


@dataclass(frozen=True, slots=True)
class KvSettings:
    """The KV cache."""

    blocks: int = setting(0, "KV blocks of each replica.", Bound(0, MAX_BLOCKS, "derived from the memory"))
    block_tokens: int = setting(16, "Tokens of a block.", Bound(1, 1_000_000))
    gpu_memory_utilization: float = setting(0.92, "Share of a GPU to derive blocks from.", Bound(0.0, 1.0, above=True))
    from_log: str = setting(
        "", "A line that the server wrote at its start, or a file with one: blocks are as it says.", where=_PREDICTED
    )
    accounting: str = setting(
        "auto",
        "Whose start-up accounting blocks are derived by: auto is engine.preset's (docs/kv.md).",
        where=_DERIVED & _PREDICTED,
    )
    estimate: str = setting(
        "expected",
        "The end of the capacity's band that is taken.",
        choices=("expected", "least", "most"),
        where=_DERIVED,
    )
    swap_gib: float = setting(0.0, "Host memory per GPU for KV of preempted requests.", Bound(0.0, 1e6, "none"))
    dtype: str = setting("auto", "Type of the cache: fp32, fp16, bf16, fp8, int8, int4; auto is the activations'.")
    allow_short: bool = setting(False, "Run where the cache cannot hold a request of max_model_len tokens.")

    def __post_init__(self) -> None:
        check("kv", self)
        if self.blocks and self.from_log:
            raise InputError("kv.blocks and kv.from_log both say how many KV blocks there are; leave one out")


@dataclass(frozen=True, slots=True)
class OffloadSettings:
    """Layers that live in host memory and stream over the host link in every step (FlexGen, ZeRO-Inference).

    Two layers' buffers of weights and of KV stay on the GPU.
    """

    weight_layers: int = setting(0, "Layers whose weights are in host memory.", Bound(0, 10_000, "none"))
    kv_layers: int = setting(0, "Layers whose KV is in host memory.", Bound(0, 10_000, "none"))
    host_gib: float = setting(
        0.0,
        "Host memory per GPU that must hold them.",
        Bound(0.0, 1e6, "not limited"),
        where=Where(
            "offload.weight_layers or offload.kv_layers is set",
            lambda scenario: scenario.offload.weight_layers or scenario.offload.kv_layers,
        ),
    )

    def __post_init__(self) -> None:
        check("offload", self)


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Where the seconds come from."""

    profile: str = setting("roofline", "Where step times come from (sim list profiles), or a profile's folder.")
    efficiency: Mapping[str, float] = setting({}, "Constants of the roofline, by name.", EFFICIENCY)
    fit: str = setting(
        "auto",
        "Whose kernel tables the roofline's constants are fitted to: auto (the GPU's own, else those of the nearest "
        "generation), a GPU with tables, or a file that calibrate fit-roofline wrote.",
    )
    routing: str = setting(
        "uniform",
        "How tokens spread over experts: uniform, balanced, power-law:1.2, or each one's share, separated by commas.",
    )
    noise: float | str = setting(
        "auto",
        "Standard deviation of a step's seconds as a share of them, drawn from the seed; auto is how the profile's own "
        "repeats vary for a closed loop of equal requests, and none otherwise.",
        Bound(0.0, 1.0),
    )

    def __post_init__(self) -> None:
        check("cost", self)
        if isinstance(self.noise, str) and self.noise != "auto":
            raise InputError(f"cost.noise is {self.noise!r}; it must be auto, or at least 0 and at most 1")


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """What a GPU costs and draws; without its power between steps, which no data sheet tells, it counts as busy."""

    usd_per_gpu_hour: float = setting(0.0, "Dollars per GPU and hour.", Bound(0.0, 1e6, "the catalog's"))
    watts_per_gpu: float = setting(0.0, "Watts per GPU while steps run.", Bound(0.0, 1e6, "the catalog's"))
    idle_watts_per_gpu: float = setting(0.0, "Watts per GPU between steps.", Bound(0.0, 1e6, "not known"))

    def __post_init__(self) -> None:
        check("price", self)


_SAMPLED = Where("live.temperature is above 0", lambda scenario: scenario.live.temperature > 0)


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How a live run draws tokens, and its clock."""

    temperature: float = setting(0.0, "Temperature of the sampling.", Bound(0.0, 1e6, "greedy"))
    top_k: int = setting(0, "Sample from the K likeliest tokens.", Bound(0, 10**9, "all tokens"), where=_SAMPLED)
    top_p: float = setting(1.0, "Likelihood of the tokens to sample from.", Bound(0.0, 1.0, above=True), where=_SAMPLED)
    clock: str = setting(
        "virtual",
        "virtual: measured seconds advance simulated time; wall: requests are sent when their time has really come.",
        choices=("virtual", "wall"),
    )
    threads: int = setting(1, "Threads of a live run on a CPU.", Bound(1, 1024))
    stop_at_eos: bool = setting(False, "The model's end-of-sequence token ends an answer before the trace's length.")
    prompts: str = setting(
        "auto",
        "Prompts that the trace does not tell: random tokens, or text for a model of bytes; auto is text where it can.",
        choices=("auto", "random", "text"),
    )

    def __post_init__(self) -> None:
        check("live", self)


_LIVE = Where("executor is live", lambda scenario: scenario.executor == "live")


_DRAFTING = Where(  # whether a policy of the user's own drafts is not known before it is loaded
    "policy.name is speculative",
    lambda scenario: scenario.policy.name == "speculative" or plug_in("sim.policies", scenario.policy.name),
)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Replicas that are alike: a whole scenario with what the pool says otherwise."""

    scenario: Scenario
    """With `replicas` as many as the pool has."""
    role: str = setting("both", "What its replicas do: prefill, decode, or both.", choices=ROLES)
    serves: tuple[str, ...] = setting((), "Models, as the trace names them, that it answers; its own unless said.")

    def __post_init__(self) -> None:
        check("", self)

    @property
    def count(self) -> int:
        return self.scenario.replicas


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run depends on. The same scenario gives the same bytes.

    Defaults are those of the default engine on the default GPU; `build` takes those of the engine and GPU named.
    """

    model: str = setting("llama-3.1-8b", "Model (sim list models), a TOML file, or a Hugging Face config.json.")
    dtype: str = setting("auto", "Type of the activations: fp32, fp16, bf16; auto is the model's own.")
    weights: str = setting(
        "auto",
        "Type of the weights: the activations', fp8, int8, int4, nvfp4, mxfp4, int4-g32 ...; auto is the model's own.",
    )
    gpu: str = setting("h100", "GPU (sim list gpus), or a TOML file.")
    tp: int = setting(1, "GPUs that share each layer (tensor parallelism).", Bound(1, MAX_TP))
    pp: int = setting(1, "Stages of layers, each on GPUs of its own (pipeline parallelism).", Bound(1, MAX_PP))
    dp: int = setting(
        1, "Ranks of a replica that share its experts and have requests and a KV cache of their own.", Bound(1, MAX_DP)
    )
    ep: int = setting(
        1,
        "GPUs that whole experts are placed over: tp x dp, or 1, which cuts each expert over them.",
        Bound(1, MAX_TP * MAX_DP),
    )
    redundant_experts: int = setting(
        0,
        "Experts of each layer that have a copy, the busiest ones.",
        Bound(0, 100_000, "none"),
        where=Where("ep is above 1", lambda scenario: scenario.ep > 1),
    )
    replicas: int = setting(1, "Replicas behind the router.", Bound(1, MOST_REPLICAS))
    seed: int = setting(0, "Seed of everything random.", Bound(0, MAX_SEED))
    slo: str = setting("", "Limits in seconds for goodput, such as ttft=0.5,tpot=0.05.")
    executor: str = setting(
        "predicted",
        "Who supplies the seconds of a step: predicted by a cost model, or live, the model on a device.",
        choices=("predicted", "live"),
    )
    device: str = setting("auto", "Device of a live run: cpu, cuda; auto is CUDA where there is one.", where=_LIVE)
    workload: WorkloadSettings = section(WorkloadSettings)
    engine: EngineSettings = section(EngineSettings)
    front_end: FrontEndSettings = section(FrontEndSettings)
    kv: KvSettings = section(KvSettings)
    offload: OffloadSettings = section(OffloadSettings)
    tiers: TierSettings = section(TierSettings)
    lora: LoraSettings = section(LoraSettings)
    policy: Part = setting(Part("chunked"), "Batching policy (sim list policies).")
    allocator: Part = setting(Part("prefix"), "KV-cache allocator (sim list allocators).")
    router: Part = setting(Part("round-robin"), "Which replica gets a request (sim list routers).")
    cost: CostSettings = section(CostSettings)
    price: PriceSettings = section(PriceSettings)
    routing: RoutingSettings = section(RoutingSettings)
    transfer: TransferSettings = section(TransferSettings)
    admission: AdmissionSettings = section(AdmissionSettings)
    retry: RetrySettings = section(RetrySettings)
    failures: FailureSettings = section(FailureSettings)
    autoscale: AutoscaleSettings = section(AutoscaleSettings)
    live: LiveSettings = section(LiveSettings, _LIVE)
    speculation: SpeculationSettings = section(SpeculationSettings, _DRAFTING)
    pools: Mapping[str, PoolSettings] = field(default_factory=dict)
    """By name; none where all replicas are alike."""

    def __post_init__(self) -> None:
        check("", self)

    @property
    def kinds(self) -> tuple[Scenario, ...]:
        """Its pools, each as a scenario of its own; itself where it has none."""
        return tuple(pool.scenario for pool in self.pools.values()) or (self,)

    @property
    def parallel(self) -> Parallel:
        """How GPUs share a replica; raises InputError where the numbers do not go together."""
        copies = self.redundant_experts if self.ep > 1 else 0
        return Parallel(self.tp, self.pp, self.dp, self.ep, copies)


def settings_of(settings: Any, prefix: str = "", where: Where | None = None) -> Iterator[tuple[str, Any, Setting]]:
    """(dotted key, value, what it is) of every setting; of a part its name."""
    for entry in dataclasses.fields(settings):
        key, value = f"{prefix}{entry.name}", getattr(settings, entry.name)
        if "where" in entry.metadata:
            yield from settings_of(value, f"{key}.", entry.metadata["where"])
            continue
        if "setting" not in entry.metadata:
            continue
        about: Setting = entry.metadata["setting"]
        if where is not None:
            about = about._replace(where=where & about.where if about.where else where)
        yield (f"{key}.name", value.name, about) if isinstance(value, Part) else (key, value, about)


SETTINGS = {key: (default, about) for key, default, about in settings_of(Scenario())}
"""By dotted key the default of every setting of a scenario, and what it is."""


ENGINE_KEYS = frozenset(
    {
        "policy.name",
        "allocator.name",
        "kv.block_tokens",
        "kv.gpu_memory_utilization",
        "engine.chunked_prefill",
        "engine.cuda_graphs",
        "engine.max_num_seqs",
        "engine.max_num_batched_tokens",
    }
)
"""What every engine's file says (sim/catalog/engines)."""
