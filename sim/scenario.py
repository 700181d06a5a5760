"""What a run is told: TOML and `key=value` settings become a few small dataclasses, strictly. It runs nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from datetime import time as clock_time
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import tomli_w

from sim.specs import bounds
from sim.speculation.drafters import SpeculationSettings
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


class UnknownSettingError(InputError):
    """A key that no scenario has."""


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """Which requests come, and when.

    `rate` sets the mean arrival rate in requests per second: a trace's own times are stretched to it, and a trace
    without times gets Poisson arrivals. `rate_scale` multiplies the trace's rate instead. `concurrency` replaces
    arrival times by a closed loop of so many users. With `sessions` a turn starts after the answer before it plus
    the think time; without, at its recorded time.

    `arrivals` "trace" keeps the trace's times; "poisson" and "gamma", with a coefficient of variation of
    `arrivals_cv` for the gaps, draw them anew from the seed at the mean rate asked for (the trace's own where none
    is). `resample` replaces the requests by so many sessions of the trace (requests where it has none), drawn with
    replacement from the seed; 0 keeps them.

    `samples` asks for so many answers to every prompt, 0 for as many as the trace says. With `beam_search` they are
    the beams of one search: after every token each place keeps its beam or, with probability `beam_churn`, goes on
    from one drawn at random (no logits are simulated that could choose it; 0.07 is nearest to what the vLLM paper
    measured, figure 15, and no value meets all of it).
    """

    trace: str = ""
    format: str = ""
    limit: int = 0
    rate: float = 0.0
    rate_scale: float = 1.0
    concurrency: int = 0
    arrivals: str = "trace"
    arrivals_cv: float = 1.0
    resample: int = 0
    sessions: bool = True
    side: str = "both"
    tokenizer: str = ""
    skip_bad: bool = False
    samples: int = 0
    beam_search: bool = False
    beam_churn: float = 0.07

    def __post_init__(self) -> None:
        bounds.check("workload", self)
        if (self.rate > 0) + (self.rate_scale != 1.0) + (self.concurrency > 0) > 1:
            raise InputError("workload.rate, workload.rate_scale and workload.concurrency exclude one another")
        self._check_arrivals()

    def _check_arrivals(self) -> None:
        if self.arrivals not in ("trace", "poisson", "gamma"):
            raise InputError(f"workload.arrivals is {self.arrivals!r}; known: trace, poisson, gamma")
        if self.arrivals_cv != 1.0 and self.arrivals != "gamma":
            raise InputError(f"workload.arrivals_cv is of gamma arrivals, and workload.arrivals is {self.arrivals}")
        if self.arrivals != "trace" and self.concurrency:
            raise InputError("workload.arrivals and workload.concurrency exclude one another: users come by themselves")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of a step, named as in vLLM.

    `max_model_len` 0 takes the model's own. `async_scheduling` plans a step while the last one runs; "auto" leaves
    it to the policy. Without `cuda_graphs` every kernel of a step is launched by itself (vLLM's `enforce_eager`).
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 0
    chunked_prefill: bool = True
    async_scheduling: bool | str = "auto"
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        bounds.check("engine", self)
        if not isinstance(self.async_scheduling, bool) and self.async_scheduling != "auto":
            raise InputError(f'engine.async_scheduling is {self.async_scheduling!r}; it must be true, false or "auto"')


@dataclass(frozen=True, slots=True)
class KvSettings:
    """The KV cache. `blocks` 0 derives their number from the GPU's memory, the weights and the activations.

    `swap_gib` of host memory, per GPU, take the KV of preempted requests; what does not fit there is recomputed.
    `dtype` is the type of the cache: fp32, fp16, bf16, fp8, int8, int4, or "auto", that of the activations.
    """

    blocks: int = 0
    block_tokens: int = 16
    gpu_memory_utilization: float = 0.9
    swap_gib: float = 0.0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        bounds.check("kv", self)


@dataclass(frozen=True, slots=True)
class OffloadSettings:
    """Layers that live in host memory and stream over the host link in every step (FlexGen, ZeRO-Inference).

    The weights of `weight_layers` layers and the KV of `kv_layers`; two layers' buffers of each stay on the GPU.
    `host_gib` of host memory, per GPU, must hold them; 0 does not limit it.
    """

    weight_layers: int = 0
    kv_layers: int = 0
    host_gib: float = 0.0

    def __post_init__(self) -> None:
        bounds.check("offload", self)
        if self.host_gib and not (self.weight_layers or self.kv_layers):
            raise InputError(f"offload.host_gib is {self.host_gib}, and nothing is offloaded")


@dataclass(frozen=True, slots=True)
class Part:
    """Something found by name, with parameters of its own."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Where the seconds come from; `efficiency` overrides constants of the roofline by name."""

    profile: str = "roofline"
    efficiency: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.efficiency.items():
            bounds.EFFICIENCY.check(f"cost.efficiency.{name}", value)


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """What a GPU costs and draws; 0 takes the catalog's number.

    `watts_per_gpu` is drawn while steps run, `idle_watts_per_gpu` between them; without the latter, which no data
    sheet tells, GPUs count as busy all the time.
    """

    usd_per_gpu_hour: float = 0.0
    watts_per_gpu: float = 0.0
    idle_watts_per_gpu: float = 0.0

    def __post_init__(self) -> None:
        bounds.check("price", self)


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How a live run draws tokens, and its clock.

    A `temperature` of 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in. The clock is "virtual" (measured
    seconds advance simulated time, nobody waits) or "wall" (requests are sent when their time has really come).
    With `stop_at_eos` an answer ends at the model's end-of-sequence token, if that comes before the trace's length.
    `prompts` that the trace does not tell are "random" tokens, or passages of "text" for a model whose tokens are
    bytes; "auto" is text where it can be.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    clock: str = "virtual"
    stop_at_eos: bool = False
    prompts: str = "auto"

    def __post_init__(self) -> None:
        bounds.check("live", self)
        if self.clock not in ("virtual", "wall"):
            raise InputError(f"live.clock is {self.clock!r}; known: virtual, wall")
        if self.prompts not in ("auto", "random", "text"):
            raise InputError(f"live.prompts is {self.prompts!r}; known: auto, random, text")


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run depends on. The same scenario gives the same bytes.

    `dtype` is the type of activations (fp32, fp16, bf16), "auto" the model's own. `weights` is that of the weight
    matrices: the same, fp8, int8 or int4; "auto" is the model's own, which for most models follows `dtype`.

    The `executor` supplies the seconds: "predicted" by a cost model, or "live" by running the model on `device`
    ("cpu", "cuda"; "auto" is CUDA where there is one).
    """

    model: str = "llama-3.1-8b"
    dtype: str = "auto"
    weights: str = "auto"
    gpu: str = "h100"
    tp: int = 1
    replicas: int = 1
    seed: int = 0
    slo: str = ""
    executor: str = "predicted"
    device: str = "auto"
    workload: WorkloadSettings = field(default_factory=WorkloadSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    kv: KvSettings = field(default_factory=KvSettings)
    offload: OffloadSettings = field(default_factory=OffloadSettings)
    policy: Part = field(default_factory=lambda: Part("chunked"))
    allocator: Part = field(default_factory=lambda: Part("paged"))
    router: Part = field(default_factory=lambda: Part("round-robin"))
    cost: CostSettings = field(default_factory=CostSettings)
    price: PriceSettings = field(default_factory=PriceSettings)
    live: LiveSettings = field(default_factory=LiveSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)

    def __post_init__(self) -> None:
        bounds.check("", self)
        if self.executor not in ("predicted", "live"):
            raise InputError(f"executor is {self.executor!r}; known: predicted, live")
        if self.executor == "predicted" and self.device != "auto":
            raise InputError(f"device is {self.device!r}, and only a live run has a device; add --executor live")
        if self.policy.name != "speculative" and self.speculation != SpeculationSettings():
            raise InputError(f"speculation is set, and policy {self.policy.name} drafts nothing; use speculative")


def read(path: str | Path, settings: Mapping[str, Any] | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """The settings in a TOML file, as nested tables.

    Args:
        settings: what will win over the file, by key.
        allow_code: let the file name code to import (`module:object`), which `settings` always may.

    Raises:
        InputError: no such file, or it is not TOML, or it names code; the sentence names file and line.
    """
    tables = documents.toml(Path(path))
    if not allow_code:
        refuse_code(tables, str(path), settings or {})
    return tables


def refuse_code(tables: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise InputError where a file's settings name code to import that `settings` do not overrule.

    A file may come from anyone, and a module runs as soon as it is imported. Names of what is installed are no code:
    whoever installed it has said so.
    """
    overruled = {key for key, _ in _leaves(settings or {})}
    for key, value in _leaves(tables):
        if key in overruled or not (key.partition(".")[0] in _PARTS or key == "workload.format"):
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and ":" in one:
                shown = one if len(one) <= 100 else f"{one[:100]}..."
                raise InputError(
                    f"{where}: {key} is {shown!r}, code that would be run; if you trust this file, add --allow-code "
                    f"(allow_code=True from Python), or name the code yourself: --set {key}={shown}"
                )


def _leaves(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key in full, value) of every setting."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
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
    found = literal(value)
    return key.strip(), value.strip() if found is None else found


def literal(text: str) -> Any:
    """The TOML value that a text is, or None: also for dates and times, which no setting is (`10:50:20` is a range)."""
    try:
        found = documents.toml_of(f"value = {text}", "")
    except InputError:
        return None
    value = found["value"] if list(found) == ["value"] else None
    return None if isinstance(value, date | clock_time) else value


def variants(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every combination of settings whose value is a list in text, such as `paged,prefix`: name -> settings.

    The name tells the values that vary; without any there is one variant, called "run". (An SLO is no such list.)
    """
    varied = {
        key: [parse_setting(f"{key}={one}")[1] for one in value.split(",")]
        for key, value in settings.items()
        if isinstance(value, str) and "," in value and key != "slo"
    }
    found = {}
    for values in itertools.product(*varied.values()):
        name = " ".join(map(str, values)) or "run"
        found[name] = {**settings, **dict(zip(varied, values, strict=True))}
    return found


def build(tables: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario from nested tables and dotted settings, which win.

    Raises:
        InputError: an unknown key or a value of the wrong type; the sentence lists the known keys.
    """
    return _make(Scenario, merge(tables, settings or {}), "")  # type: ignore[no-any-return]


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
        if isinstance(value, Part):
            value = {"name": value.name, **value.parameters}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        tables[entry.name] = value
    return tables


def _put(tables: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        section = _section(tables, key.split("."), key)
        for name, one in value.items():
            section[name] = one
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


def _make(target: type, tables: Mapping[str, Any], where: str) -> Any:
    if target is Part:
        return _part(tables, where)
    hints = get_type_hints(target)
    made: dict[str, Any] = {}
    for key, value in tables.items():
        label = f"{where}.{key}" if where else key
        if key not in hints:
            raise UnknownSettingError(f"unknown setting {label!r}; {where or 'a scenario'} has {', '.join(hints)}")
        made[key] = _value(hints[key], value, label)
    return target(**made)


def _part(tables: Mapping[str, Any], where: str) -> Part:
    defaults = {"policy": "chunked", "allocator": "paged", "router": "round-robin"}
    parameters = dict(tables)
    name = parameters.pop("name", defaults[where])
    if not isinstance(name, str):
        raise InputError(f"{where}.name is {name!r}; it must be a text")
    return Part(name, parameters)


def _value(kind: Any, value: Any, label: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{label} is {value!r}; it must be a section")
        return _make(kind, value, label)  # type: ignore[arg-type]
    if isinstance(kind, UnionType):
        if any(type(value) is one for one in get_args(kind)):
            return value
        if float in get_args(kind) and type(value) is int:
            return float(value)
    elif kind is float and type(value) is int:
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    elif not isinstance(kind, type) and isinstance(value, Mapping):
        return {key: _value(get_args(kind)[1], one, f"{label}.{key}") for key, one in value.items()}
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise InputError(f"{label} is {value!r}; it must be of type {name}")
