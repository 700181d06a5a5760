"""What a run is made of: TOML and `key=value` settings become a few small dataclasses, strictly. It runs nothing."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from datetime import date
from datetime import time as clock_time
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from sim.load import OURS, plug_in
from sim.specs.bounds import EFFICIENCY, MAX_BLOCKS, MAX_SEED, Bound
from sim.specs.fleet import ROLES, RoutingSettings, TransferSettings
from sim.specs.front_end import AUTO, CUSTOM, OFF, FrontEndSettings
from sim.specs.lora import LoraSettings
from sim.specs.operations import AdmissionSettings, AutoscaleSettings, FailureSettings, RetrySettings
from sim.specs.parallel import MAX_DP, MAX_PP, MAX_TP, Parallel
from sim.specs.settings import Setting, Where, check, section, setting, word
from sim.specs.tiers import TierSettings
from sim.specs.workload import WorkloadSettings
from sim.speculation.settings import SpeculationSettings
from traces import documents
from traces.schema import InputError

_SHORT = {
    "trace": "workload.trace",
    "limit": "workload.limit",
    "rate": "workload.rate",
    "rate_scale": "workload.rate_scale",
    "concurrency": "workload.concurrency",
    "skip_bad": "workload.skip_bad",
    "kv_blocks": "kv.blocks",
    "policy": "policy.name",
    "allocator": "allocator.name",
    "router": "router.name",
    "profile": "cost.profile",
}
"""Keys that may be written without their section."""


_PARTS = ("policy", "allocator", "router")
"""Sections whose texts may name code, such as policy.name and policy.base."""


_OF_THE_FLEET = (
    "workload", "front_end", "replicas", "seed", "slo", "executor", "device", "live", "routing", "transfer", "pools",
    "admission", "retry", "failures",
)  # fmt: skip
"""Settings that no pool has of its own."""
_BEFORE_POOLS = ("routing", "transfer", "admission", "retry", "failures")
"""Those of them that no pool reads, and that depend on there being several."""
_MOST_REPLICAS = 10_000


class UnknownSettingError(InputError):
    """A key that no scenario has."""


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
    replicas: int = setting(1, "Replicas behind the router.", Bound(1, _MOST_REPLICAS))
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


def refuse_unread(scenarios: Iterable[Scenario]) -> None:
    """Raise InputError for a setting that is not the default's and that none of these scenarios reads.

    Only as many scenarios are looked at as it takes.
    """
    unread: dict[str, str] | None = None
    for scenario in scenarios:
        own = _unread(scenario)
        unread = own if unread is None else {key: why for key, why in unread.items() if key in own}
        if not unread:
            return
    for sentence in (unread or {}).values():
        raise InputError(sentence)


def _unread(scenario: Scenario) -> dict[str, str]:
    """By key of a setting that is not the default's and that the scenario does not read, the sentence that says so.

    Of a fleet, one of its own is read where any pool reads it; one that a pool says otherwise, where that pool does.
    """
    pools = {name: pool.scenario for name, pool in scenario.pools.items()}
    shared = {key: value for key, value, _ in settings_of(scenario)} if pools else {}

    def told(label: str, value: Any, where: Where) -> dict[str, str]:
        return {label: f"{label} is {word(value)}, and it is read only where {where.words}"}

    found: dict[str, str] = {}
    for key, value, about in settings_of(scenario):
        where = about.where
        if where and value != SETTINGS[key][0] and not any(map(where.holds, (scenario, *pools.values()))):
            found |= told(key, value, where)
    for name, pool in pools.items():
        for key, value, about in settings_of(pool):
            where = about.where
            if where and value not in (SETTINGS[key][0], shared.get(key)) and not where.holds(pool):
                found |= told(f"pools.{name}.{key}", value, where)
    return found


def load(
    base: Scenario | str | Path | None, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False
) -> Scenario:
    """A scenario, a TOML file's or the default's, with settings on top; raises as `read` and `build`."""
    return build(tables_of(base, settings, allow_code=allow_code), settings)


def tables_of(
    base: Scenario | str | Path | None, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False
) -> dict[str, Any]:
    """The settings of a scenario, of a TOML file or of nothing, as nested tables; raises as `read`."""
    if isinstance(base, Scenario):
        return as_tables(base)
    return read(base, settings, allow_code=allow_code) if base is not None else {}


def read(path: str | Path, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """The settings in a TOML file, or in the scenario of that name that comes along, as nested tables.

    Args:
        settings: what will win over the file, by key.
        allow_code: let the file name code to import (`module:object`), which `settings` always may.

    Raises:
        InputError: no such file, or it is not TOML, or it names code; the sentence names file and line.
    """
    from sim.catalog import bundles  # noqa: PLC0415

    tables = documents.toml(bundles.located(path))
    if not allow_code:
        refuse_code(tables, str(path), settings or {})
    if {key for key, _ in leaves(tables)} >= ENGINE_KEYS:
        # As results were written before engines had names, and front ends: nothing is left that one could set.
        tables["engine"].setdefault("preset", OURS)
        tables.setdefault("front_end", {"name": OFF})
    return tables


def refuse_code(tables: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise InputError where a file's settings name code to import that `settings` do not overrule.

    A file may come from anyone, and a module runs as soon as it is imported. Names of what is installed are no code:
    whoever installed it has said so.
    """
    overruled = {key for key, _ in leaves(settings or {})}
    for key, value in leaves(tables):
        if key in overruled or not (key.partition(".")[0] in _PARTS or key in ("workload.format", "engine.name")):
            continue
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and ":" in name:
                shown = name if len(name) <= 100 else f"{name[:100]}..."
                raise InputError(
                    f"{where}: {key} is {shown!r}, code that would be run; if you trust this file, add --allow-code "
                    f"(allow_code=True from Python), or name the code yourself: --set {key}={shown}"
                )


def leaves(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key in full, value) of every setting."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield full_key(prefix + key), value


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as (key, value); a value that is no TOML literal is taken as text.

    Raises:
        InputError: there is no `=`, or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r}: expected section.key=value")
    exact = literal(value)
    return key.strip(), value.strip() if exact is None else exact


def literal(text: str) -> Any:
    """The TOML value that a text is, or None: also for dates and times, which no setting is (`10:50:20` is a range)."""
    try:
        table = documents.toml_of(f"value = {text}", "")
    except InputError:
        return None
    value = table["value"] if list(table) == ["value"] else None
    return None if isinstance(value, date | clock_time) else value


def variants(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every combination of settings whose value is a list in text, such as `paged,prefix`: name -> settings.

    The name tells the values that vary; without any there is one variant, called "run". (An SLO is no such list.)
    """
    varied = {
        key: [parse_setting(f"{key}={text}")[1] for text in value.split(",")]
        for key, value in settings.items()
        if isinstance(value, str) and "," in value and key != "slo"
    }
    combinations = {}
    for values in itertools.product(*varied.values()):
        name = " ".join(map(str, values)) or "run"
        combinations[name] = {**settings, **dict(zip(varied, values, strict=True))}
    return combinations


def build(tables: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario from nested tables and dotted settings, which win.

    Raises:
        InputError: an unknown key or a value of the wrong type; the sentence lists the known keys.
    """
    tables = merge(tables, settings or {})
    pools = tables.pop("pools", {})
    scenario = _made(tables)
    made = _pools(tables, pools) if pools else {}
    front_end = scenario.front_end
    if _at(tables, "front_end.name") == AUTO:  # that of the pools' engines, where it is one and can stand before them
        each = [pool.scenario for pool in made.values()] or [scenario]
        own = {one.front_end for one in each}
        apart = any(pool.role == "prefill" for pool in made.values())
        none = apart or any(one.dp > 1 for one in each)
        front_end = FrontEndSettings(OFF) if none or len(own) > 1 else own.pop()
    return with_front_end(dataclasses.replace(scenario, pools=made), front_end)


def with_front_end(scenario: Scenario, front_end: FrontEndSettings) -> Scenario:
    """The scenario with another front end, before all of its pools."""
    pools = {
        name: dataclasses.replace(pool, scenario=dataclasses.replace(pool.scenario, front_end=front_end))
        for name, pool in scenario.pools.items()
    }
    return dataclasses.replace(scenario, front_end=front_end, pools=pools)


def _made(tables: dict[str, Any]) -> Scenario:
    return _make(Scenario, _with_front_end(_with_preset(tables)), "")  # type: ignore[no-any-return]


def _pools(tables: Mapping[str, Any], pools: Any) -> dict[str, PoolSettings]:
    """The pools of a scenario whose other tables these are: what a pool does not say is taken from there."""
    if not isinstance(pools, Mapping) or not all(isinstance(own, Mapping) for own in pools.values()):
        raise InputError("pools is no table of pools; a pool is a section [pools.NAME] of role, count and settings")
    if "replicas" in tables:
        raise InputError("replicas stands beside pools, and each pool says its own count (pools.NAME.count)")
    shared = {key: value for key, value in tables.items() if key not in _BEFORE_POOLS}
    made = {}
    for name, own in pools.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"pools.{name}: a pool's name is made of letters, digits, - and _")
        settings = merge(own)
        role, count, serves = settings.pop("role", "both"), settings.pop("count", 1), settings.pop("serves", ())
        if fleet := [key for key in settings if key in _OF_THE_FLEET]:
            raise InputError(f"pools.{name}.{fleet[0]} is no pool's own; say it for all of them ({fleet[0]})")
        if type(count) is not int or not 1 <= count <= _MOST_REPLICAS:
            raise InputError(f"pools.{name}.count is {count!r}; it must be a whole number from 1 to {_MOST_REPLICAS:,}")
        serves = (serves,) if isinstance(serves, str) else tuple(serves) if isinstance(serves, list | tuple) else None
        if serves is None or not all(isinstance(one, str) and one for one in serves):
            raise InputError(f"pools.{name}.serves must be the name of a model, or a list of names")
        try:
            made[name] = PoolSettings(_made(merge(shared, settings, {"replicas": count})), role, serves)
        except InputError as error:
            raise type(error)(f"pools.{name}: {error}") from None
    return made


def _with_preset(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables on top of what their engine sets on their GPU: the one that they name, or the default one.

    What would be refused of an engine by its name is allowed where nobody named it: policies and allocators that it
    has not, a number of KV blocks, which is a study's own, and swapping, for which its blocks are paged ones.
    """
    preset = _at(tables, "engine.preset", None)
    if not isinstance(preset, str | None):
        return tables
    from sim.catalog import load_model, presets  # noqa: PLC0415  (the start of every command would pay for it)
    from sim.cost import profile  # noqa: PLC0415

    found = presets.load(_unnamed(tables) if preset is None else preset or OURS)
    given = dict(leaves(tables))
    if preset is not None and found.keys <= set(given):
        return merge(tables, {"engine.preset": found.name})  # a resolved scenario: nothing is left to the engine
    gpu = profile.gpu_of(str(_at(tables, "cost.profile")), str(_at(tables, "gpu")))

    def longest() -> int:
        told = _at(tables, "engine.max_model_len")
        return told if told and isinstance(told, int) else load_model(str(_at(tables, "model"))).max_context_tokens

    made = merge(found.defaults(gpu, given, longest), tables, {"engine.preset": found.name})
    if preset is None:
        if _at(made, "kv.swap_gib") and "allocator.name" not in given and _at(made, "engine.name") == OURS:
            made = merge(made, {"allocator.name": "paged"})  # no prefix that stays findable is moved to the host
        mixed = found.refusal(policies_of(made), str(_at(made, "allocator.name")))
        made = merge({"engine.allow_mix": bool(mixed), "kv.allow_short": bool(_at(made, "kv.blocks"))}, made)
    return made


def _unnamed(tables: Mapping[str, Any]) -> str:
    """The preset where none is named: that of the version of an installed engine, or the default one."""
    from sim.catalog import presets  # noqa: PLC0415

    engine, _, version = str(_at(tables, "engine.name")).partition("==")
    own = presets.of_line(engine, version)
    return own if own in presets.names() else SETTINGS["engine.preset"][0]


def policies_of(tables: Mapping[str, Any]) -> list[str]:
    """The policy of a scenario's tables and the one that it is based on, by name."""
    named = (_at(tables, "policy.name"), _at(tables, "policy.base", ""))
    return [name for name in named if isinstance(name, str) and name]


def _at(tables: Mapping[str, Any], key: str, default: Any = MISSING) -> Any:
    """What nested tables have at a dotted key, or the default of the setting."""
    value: Any = tables
    for part in key.split("."):
        value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
    if value is not MISSING:
        return value
    return SETTINGS[key][0] if default is MISSING else default


def _with_front_end(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables with their front end named, on top of what the engine that has it has found it to cost."""
    name = _at(tables, "front_end.name")
    if name == AUTO:
        name = _own_front_end(tables)
    if not isinstance(name, str) or name in (OFF, CUSTOM):
        return merge(tables, {"front_end.name": name})
    from sim.catalog import presets  # noqa: PLC0415

    found = presets.with_front_end(name)
    return merge({"front_end": found.front_end}, tables, {"front_end.name": found.name})


def _own_front_end(tables: Mapping[str, Any]) -> str:
    """The name of the preset's front end, where it is known and steps are simulated: clients see what is behind it."""
    from sim.catalog import presets  # noqa: PLC0415

    preset = _at(tables, "engine.preset")
    predicted = _at(tables, "executor") == SETTINGS["executor"][0]
    return preset if predicted and isinstance(preset, str) and presets.load(preset).front_end else OFF


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables and dotted settings as nested tables, unchecked; the later of two wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            _put(merged, key, value)
    return merged


def full_key(key: str) -> str:
    """The dotted key that a short one stands for, such as workload.rate for rate; others stay as they are."""
    return _SHORT.get(key, key)


def dump(scenario: Scenario) -> str:
    """The scenario as TOML that `read` and `build` turn back into it."""
    return tomli_w.dumps(as_tables(scenario))


def as_tables(scenario: Scenario) -> dict[str, Any]:
    """The scenario as nested tables, every setting spelled out."""
    tables: dict[str, Any] = {}
    for entry in dataclasses.fields(scenario):
        value = getattr(scenario, entry.name)
        if entry.name == "pools":
            if value:
                tables["pools"] = {name: _pool_table(pool) for name, pool in value.items()}
                del tables["replicas"]
            continue
        if isinstance(value, Part):
            value = {"name": value.name, **value.parameters}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        tables[entry.name] = value
    return tables


def _pool_table(pool: PoolSettings) -> dict[str, Any]:
    own = {key: value for key, value in as_tables(pool.scenario).items() if key not in _OF_THE_FLEET}
    serves = {"serves": list(pool.serves)} if pool.serves else {}
    return {"role": pool.role, "count": pool.count, **serves, **own}


def _put(tables: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        _section(tables, key.split("."), key).update(value)
        return
    *path, last = full_key(key).split(".")
    _section(tables, path, key)[last] = value


def _section(tables: dict[str, Any], path: Sequence[str], key: str) -> dict[str, Any]:
    for part in path:
        inner = tables.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UnknownSettingError(f"setting {key!r}: {part!r} has a value and is no section")
        tables = inner
    return tables


_hints = cache(get_type_hints)


def _make(target: type, tables: Mapping[str, Any], where: str) -> Any:
    if target is Part:
        return _part(tables, where)
    hints = _hints(target)
    made: dict[str, Any] = {}
    for key, value in tables.items():
        label = f"{where}.{key}" if where else key
        if key not in hints:
            raise UnknownSettingError(f"unknown setting {label!r}; {where or 'a scenario'} has {', '.join(hints)}")
        made[key] = _value(hints[key], value, label)
    return target(**made)


def _part(tables: Mapping[str, Any], where: str) -> Part:
    parameters = dict(tables)
    name = parameters.pop("name", SETTINGS[f"{where}.name"][0])
    if not isinstance(name, str):
        raise InputError(f"{where}.name is {name!r}; it must be a text")
    return Part(name, parameters)


def _value(kind: Any, value: Any, label: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{label} is {value!r}; it must be a section")
        return _make(kind, value, label)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _tables(get_args(kind)[0], value, label)
    simple = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(value) in simple:
        return value
    if float in simple and type(value) is int:
        return float(value)
    if not isinstance(kind, type) and isinstance(value, Mapping):
        return {key: _value(get_args(kind)[1], inner, f"{label}.{key}") for key, inner in value.items()}
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise InputError(f"{label} is {value!r}; it must be of type {name}")


def _tables(kind: Any, value: Any, label: str) -> tuple[Any, ...]:
    if isinstance(value, list | tuple) and all(isinstance(inner, kind | Mapping) for inner in value):
        return tuple(inner if isinstance(inner, kind) else _make(kind, inner, label) for inner in value)
    raise InputError(f"{label} is {value!r}; it must be a list of tables of {', '.join(_hints(kind))}")
