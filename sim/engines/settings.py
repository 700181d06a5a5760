"""A scenario in the words of an installed vLLM, and refusals of what its scheduler is not driven with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim.engine.batch import Limits
from sim.engine.memory import KvPool, Layout
from sim.engine.pages import in_groups, mixed_layers
from sim.engines.drafts import VllmDraftingEngine
from sim.engines.environment import Installed
from sim.engines.pipe import SchedulerProcess
from sim.engines.vllm import VllmEngine
from sim.scenario import Part, Scenario
from sim.specs.model import ModelSpec
from sim.speculation.drafters import FixedDrafts
from sim.speculation.settings import SpeculationSettings
from traces.schema import InputError

POLICIES = {"chunked": "fcfs", "priority": "priority"}
"""vLLM's name of each policy that it has."""
CACHING = {"paged": False, "prefix": True}
"""Of each allocator that it has, whether prefixes are cached."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "policy": {
        "long_prefill_token_threshold": 0,
        "long_prefill_token_threshold_adaptive": False,
        "prefill_schedule_interval": 1,
    },
    "allocator": {"watermark": 0.0, "reserve_full_prompt": True},
}
"""Of both, the parameters that it reads, with their defaults."""
DEFAULTS: dict[str, Any] = {**PARAMETERS["policy"], **PARAMETERS["allocator"]}
DRAFTERS = ("ngram", "eagle", "medusa")
"""Those whose drafts it is driven with; a draft model's slots and KV are a group of their own there."""
OLD_LACKS = ("watermark", "long_prefill_token_threshold_adaptive", "prefill_schedule_interval")


def vllm_engine(scenario: Scenario, model: ModelSpec, asynchronous: bool) -> Callable[[Limits, KvPool], VllmEngine]:
    """What makes the engine of a scenario that names an installed vLLM.

    Raises:
        InputError: it is not installed, or the scenario sets what it has not; the sentence names the key.
    """
    installed = Installed.of(scenario.engine.name)
    if scenario.executor == "live":
        raise InputError(f"engine.name is {scenario.engine.name}: its scheduler decides here, and drives no kernels")
    if mixed_layers(model.kv_kinds(model.together(scenario.parallel)))[0]:
        raise InputError(
            f"engine.name is {installed}, which is driven with layers that all keep every token; those of "
            f"{model.name} do not"
        )
    policy, proposer, drafting = scenario.policy, None, None
    if policy.name == "speculative":
        more = dict(policy.parameters)
        policy = replace(policy, name=more.pop("base", "chunked"), parameters=more)
        _check_drafts(scenario.speculation, model, installed)
        proposer = FixedDrafts(scenario.speculation.k)
        drafting = {"method": scenario.speculation.drafter, "num_speculative_tokens": proposer.most}
    settings: dict[str, Any] = {
        "policy": _known("policy", policy, POLICIES, installed),
        "enable_prefix_caching": _known("allocator", scenario.allocator, CACHING, installed),
        "async_scheduling": asynchronous,
        "speculative": drafting,
        **DEFAULTS,
        **policy.parameters,
        **scenario.allocator.parameters,
    }
    settings["scheduler_reserve_full_isl"] = settings.pop("reserve_full_prompt")
    if installed.version.startswith("0.19"):
        for key in OLD_LACKS:
            if settings[key] != DEFAULTS[key]:
                raise InputError(f"{key} is {settings[key]}, and vLLM {installed.version} has no such setting")
    span = model.attended_window.span_tokens if model.attended_window else 0
    command, who = installed.command, f"{installed.name} {installed.version}"

    def made(limits: Limits, pool: KvPool) -> VllmEngine:
        layout = in_groups(pool) if pool.layers else Layout(pool)
        process = SchedulerProcess(command, who)
        if proposer is None:
            return VllmEngine(process, settings, limits, layout, window_tokens=span)
        return VllmDraftingEngine(process, settings, limits, layout, proposer, window_tokens=span)

    return made


def _check_drafts(speculation: SpeculationSettings, model: ModelSpec, installed: Installed) -> None:
    """Refuse drafts that its scheduler is not driven with; raises InputError."""
    who = f"engine.name is {installed}"
    if speculation.drafter not in DRAFTERS:
        raise InputError(
            f"{who}, which is driven with the drafters {', '.join(DRAFTERS)}, and speculation.drafter is "
            f"{speculation.drafter!r}"
        )
    for key in ("adaptive", "tree"):
        if getattr(speculation, key):
            raise InputError(f"{who}, whose drafts are a chain of one length: leave out speculation.{key}")
    if speculation.drafter == "eagle" and model.sliding_layers:
        raise InputError(
            f"{who}, which is driven with EAGLE's layer among layers that all keep every token; those of {model.name} "
            "do not"
        )


def _known(section: str, part: Part, ours: Mapping[str, Any], installed: Installed) -> Any:
    """vLLM's word for a part of a scenario; raises InputError for one, or a parameter of one, that it has not."""
    who = f"engine.name is {installed}"
    if part.name not in ours:
        raise InputError(f"{who}, which has no {section} {part.name!r}; it has {', '.join(ours)}")
    for key in part.parameters:
        if key not in PARAMETERS[section]:
            raise InputError(f"{who}, which reads no {section}.{key}; it reads {', '.join(PARAMETERS[section])}")
    return ours[part.name]
