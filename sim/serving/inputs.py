"""What a summary's `inputs` say of a run: what was simulated, and in sentences how, and what it cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.cost.efficiency import Efficiency
from sim.load import OURS
from sim.scenario import Scenario, as_tables, leaves, policies_of
from sim.serving.adapters import adapter_notes
from sim.serving.assemble import Parts
from sim.serving.fleet import pool_inputs, pool_notes, scales, shared
from sim.serving.hooks import LiveSession
from sim.serving.noise import noise_notes
from sim.serving.notes import front_end_notes, kv_notes
from sim.serving.pool import Pool, by_model
from sim.serving.tiers import tier_notes
from sim.specs.settings import word
from traces.schema import Trace
from traces.version import product_version


def inputs(
    scenario: Scenario, pools: Sequence[Pool], trace: Trace, session: LiveSession | None, died: str, noise: float
) -> dict[str, Any]:
    """What ran, by name, with its notes; `died` says why a live run ended early, `noise` how much step times vary."""
    parts = pools[0].parts
    measured = {} if session is None else {"device": session.device_name}
    spanning = parts.gpu.group_note(parts.parallel) if session is None else ""
    ended = [f"Cut short: {died}."] if died else []
    return {
        "executor": scenario.executor,
        **measured,
        "trace": trace.name,
        "trace_kind": trace.kind,
        "synthetic": trace.synthetic,
        "profile": scenario.cost.profile,
        **_sustained(parts, session),
        "model": " and ".join(by_model(pools)),
        "gpu": shared(pool.parts.gpu.name for pool in pools) if session is None else None,
        "tp": shared(pool.parts.scenario.tp for pool in pools),
        "replicas": sum(pool.count for pool in pools),
        **{
            key: shared(getattr(pool.parts.scenario, key) for pool in pools)
            for key in ("pp", "dp", "ep")
            if any(getattr(pool.parts.scenario, key) > 1 for pool in pools)
        },
        **pool_inputs(pools),
        **(scales(pools[0]) if not scenario.pools else {}),
        "engine": shared(pool.parts.engine_name for pool in pools),
        "policy": shared(pool.parts.scenario.policy.name for pool in pools),
        "allocator": shared(pool.parts.scenario.allocator.name for pool in pools),
        "seed": scenario.seed,
        "version": product_version(),
        "notes": [
            *dict.fromkeys(note for pool in pools for note in _engine_notes(pool.parts)),
            *filter(None, [spanning]),
            *dict.fromkeys(filter(None, (_fit_note(pool.parts) for pool in pools if session is None))),
            *front_end_notes(parts),
            *pool_notes(pools),
            *tier_notes(scenario),
            *adapter_notes(pools),
            *noise_notes(scenario, noise),
            *dict.fromkeys(note for pool in pools for note in kv_notes(pool.parts, trace.table)),
            *trace.notes,
            *ended,
        ],
    }


def _engine_notes(parts: Parts) -> list[str]:
    """Whose defaults these are, what was set otherwise, and what of the engine is not modelled."""
    preset, scenario = parts.preset, parts.scenario
    if preset.name == OURS:
        return []
    values = dict(leaves(as_tables(scenario)))
    own = preset.defaults(parts.gpu, {"tp": scenario.tp})
    other = [key for key, value in own.items() if key in values and values[key] != value]
    changed = [f"{key} {word(values[key])} (its own: {word(own[key])})" for key in other]
    told = f"its defaults on {parts.gpu.name}{', but ' + ', '.join(changed) if changed else ''}."
    if parts.mixed:
        why = preset.refusal(policies_of(as_tables(scenario)), scenario.allocator.name)
        return [f"No engine of that name: {why}. Foretoken runs it with {preset.name}'s rules and {told}"]
    if parts.engine_class is not None and "==" not in scenario.engine.name:
        return [f"Engine {scenario.engine.name} decides; what it reads of limits and memory is {preset.name}'s: {told}"]
    return [
        f"Engine {preset.name}: {preset.description}; {told}",
        f"Not modelled of {preset.name}: {'; '.join(preset.lacks)}.",
    ]


def _fit_note(parts: Parts) -> str:
    """Whose tables the roofline's constants were fitted to, where they are not the GPU's own."""
    fit = Efficiency.of(parts.gpu, fit=parts.scenario.cost.fit).fit
    return fit.sentence if fit is not None else ""


def _sustained(parts: Parts, session: LiveSession | None) -> dict[str, float]:
    """The share of its rate that the GPU keeps under long products, where it loses some."""
    if session is not None:
        return {}
    cost = parts.scenario.cost
    share = Efficiency.of(parts.gpu, cost.efficiency, cost.fit).sustained_compute
    return {"sustained_compute": share} if share < 1.0 else {}
