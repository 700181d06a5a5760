"""From the tables of a run to what its summary answers first: the load, what binds, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.results.binding import Load, StepLimits, binding
from sim.results.levers import lever
from sim.results.metrics import Limit, plain
from sim.results.resources import Resources
from sim.results.terms import StepTerms
from sim.results.verdict import stable, verdict
from sim.serving.assemble import Parts
from traces.table import Columns


def answered(
    summary: Mapping[str, Any],
    parts: Parts,
    requests: Columns,
    steps: Columns,
    terms: StepTerms | None,
    slo: Sequence[Limit],
    replicas: float,
) -> dict[str, Any]:
    """The summary of a run, `load` included, with its answer: `verdict` comes first, `load` and `binding` behind it."""
    load = summary["load"]
    binds = binding_of(summary, parts, requests, steps, terms, slo, replicas)
    told = {"load": load, "binding": plain(binds), **{key: summary[key] for key in summary if key != "load"}}
    first = verdict(told, is_stable=stable(requests, load))
    return {"verdict": plain(first), **told}


def binding_of(
    summary: Mapping[str, Any],
    parts: Parts,
    requests: Columns,
    steps: Columns,
    terms: StepTerms | None,
    slo: Sequence[Limit],
    replicas: float,
) -> dict[str, Any]:
    """What binds replicas of these parts, with the setting that would change it."""
    resources = Resources.measured(steps) if terms is None else Resources.predicted(terms)
    held_up = Load(closed=summary["load"]["kind"] in ("closed", "at once"), slo=slo)
    binds = binding(requests, steps, step_limits(parts, requests), resources, summary, held_up, replicas)
    return {**binds, **lever(binds["by"], parts.scenario)._asdict()}


def step_limits(parts: Parts, requests: Columns) -> StepLimits:
    """What a step of these parts may hold, and how much memory none of these requests could be refused for."""
    scenario, pool, policy = parts.scenario, parts.pool, parts.scenario.policy
    longest = int((requests["prompt_tokens"] + requests["output_tokens"]).max()) if len(requests) else 0
    own = scenario.allocator.name
    if own == "contiguous-max":
        longest = max(longest, pool.max_request_tokens)
    elif own == "contiguous-pow2":
        longest = 2 * longest
    spare = scenario.allocator.parameters.get("watermark", 0.0) * pool.tokens
    most = parts.layout.most_blocks(pool.blocks_for(longest + 1), 2 if parts.drafter is not None else 1)
    needed = most * pool.block_tokens + int(spare)
    widest = int(requests["samples"].max()) if len(requests) else 1
    base = policy.parameters.get("base", policy.name)
    return StepLimits(
        seats=parts.limits.max_num_seqs,
        budget_tokens=parts.limits.max_num_batched_tokens,
        request_tokens=0 if parts.traits["keeps_nothing"] else needed * widest,
        in_pieces=not own.startswith("contiguous"),
        whole_prompts=not parts.limits.chunked_prefill or base == "continuous",
        asks=base in ("chunked", "priority", "sjf") and parts.limits.chunked_prefill and parts.engine_class is None,
        batch=policy.parameters.get("batch_size", 8) if policy.name == "static" else 0,
        widest=widest,
    )
