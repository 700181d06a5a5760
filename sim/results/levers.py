"""Which setting of a scenario would move what binds, as a key and in words. It knows no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sim.results.binding import BUDGET, FRONT_END, KV, NOTHING, POLICY, SEATS, SLOTS
from sim.results.resources import COMPUTE, HOST, LINK, MEMORY
from sim.scenario import Scenario

REPLICA = "another replica"
NARROW = ("fp8", "int8", "int4")


class Lever(NamedTuple):
    """`setting` is the first to try, "" for none; `words` name it and others, for a sentence."""

    setting: str
    words: str


def lever(by: str, scenario: Scenario) -> Lever:
    """What would move the limit or resource that binds."""
    known = LEVERS.get(by)
    return known(scenario) if known else Lever("gpu", f"a faster GPU or {REPLICA}")


def _engine(key: str) -> Callable[[Scenario], Lever]:
    def lever_of(scenario: Scenario) -> Lever:
        return Lever(f"engine.{key}", f"a larger engine.{key} (now {getattr(scenario.engine, key):,})")

    return lever_of


def _bandwidth(scenario: Scenario) -> Lever:
    wide = scenario.weights not in NARROW
    others = f"a GPU with faster memory, a larger tp or {REPLICA}"
    return Lever("weights", f"fp8 weights, {others}") if wide else Lever("gpu", others)


def _memory(scenario: Scenario) -> Lever:
    own = scenario.kv.blocks > 0 or bool(scenario.kv.from_log)
    first = "kv.blocks" if own else "kv.gpu_memory_utilization"
    words = [f"a larger {first}"] if own or scenario.kv.gpu_memory_utilization < 1 else []
    narrow = scenario.kv.dtype in NARROW
    words += [] if narrow else ["an fp8 KV cache (kv.dtype)"]
    setting = first if words and words[0].endswith(first) else "replicas" if narrow else "kv.dtype"
    return Lever(setting, " or ".join(filter(None, [", ".join(words), REPLICA])))


def _policy(scenario: Scenario) -> Lever:
    if scenario.policy.name == "static":
        return Lever("policy.name", "a policy that lets requests join between steps (chunked), or policy.batch_size")
    return Lever("policy.name", "another policy")


def _host(scenario: Scenario) -> Lever:
    if scenario.engine.async_scheduling is False:
        return Lever("engine.async_scheduling", f"engine.async_scheduling, a faster host or {REPLICA}")
    if not scenario.engine.cuda_graphs:
        return Lever("engine.cuda_graphs", f"engine.cuda_graphs, a faster host or {REPLICA}")
    return Lever("replicas", f"a faster host or {REPLICA}")


def _front_end(scenario: Scenario) -> Lever:
    return Lever("front_end.processes", f"more front_end.processes (now {scenario.front_end.processes:,}) or {REPLICA}")


def _link(scenario: Scenario) -> Lever:
    if scenario.offload.weight_layers or scenario.offload.kv_layers:
        key = "offload.weight_layers" if scenario.offload.weight_layers else "offload.kv_layers"
        return Lever(key, f"fewer {key} or a faster host link")
    if scenario.tp > 1:
        return Lever("tp", "a smaller tp with more replicas, or a GPU with a faster link")
    return Lever("kv.swap_gib", "less swapping, or a faster host link")


LEVERS: Mapping[str, Callable[[Scenario], Lever]] = {
    SEATS: _engine("max_num_seqs"),
    BUDGET: _engine("max_num_batched_tokens"),
    KV: _memory,
    POLICY: _policy,
    SLOTS: lambda scenario: Lever("lora.max_loras", f"a larger lora.max_loras (now {scenario.lora.max_loras:,})"),
    COMPUTE: lambda _: Lever("gpu", f"a GPU with more arithmetic, a larger tp or {REPLICA}"),
    MEMORY: _bandwidth,
    HOST: _host,
    LINK: _link,
    FRONT_END: _front_end,
    NOTHING: lambda _: Lever("", ""),
}
