"""Puts our engine together from its parts: here alone, for runs, validations, recorded schedules and the tests."""

from __future__ import annotations

from typing import Any

from sim.engine.batch import Limits
from sim.engine.drafting import DraftingEngine
from sim.engine.engine import Engine
from sim.engine.foreseeing import Proposer
from sim.engine.memory import Allocator
from sim.engine.rules import OF_VLLM_0_19, Rules
from sim.engine.staged import StagedEngine
from sim.engine.step import Policy
from sim.specs.tree import DraftTree


def wire(
    policy: Policy,
    allocator: Allocator,
    limits: Limits,
    *,
    ahead: bool = False,
    proposer: Proposer | None = None,
    tree: DraftTree | None = None,
    lookahead_tokens: int = 0,
    needs_last_hit: bool = False,
    rules: Rules = OF_VLLM_0_19,
    staged: bool = False,
    **settings: Any,
) -> Engine:
    """An engine of these parts, which are its own from now on; an allocator is told what it has a trait for.

    Args:
        ahead: the next step is planned before the last one's output is there (asynchronous scheduling).
        proposer: how many drafts each request proposes; None for an engine without drafts.
        tree: what the drafts of one proposal are to each other; None for a chain.
        lookahead_tokens: slots that a drafter's own KV takes ahead of what is computed.
        needs_last_hit: the drafter needs the target's last block computed, found or not.
        rules: those of the engine's version.
        staged: batches pass the stages of a pipeline.
        settings: `spans`, `host_blocks`, `window_tokens`, `ranks`, `lengths` of the engine.
    """
    _tell(
        allocator,
        drafting=proposer is not None,
        unhashed_blocks_first=rules.unhashed_blocks_first,
        watermark_beside_others=rules.watermark_beside_others,
    )
    settings["rules"] = rules
    if proposer is None:
        made = StagedEngine if staged else Engine
        return made(policy, allocator, limits, **settings)
    looks_ahead = needs_last_hit and rules.hashes_look_ahead
    _tell(
        allocator,
        late_outputs=ahead,
        lookahead_tokens=lookahead_tokens,
        lookahead_at_admission=rules.lookahead_at_admission,
        drops_last_hit=needs_last_hit and not looks_ahead,
        hashes_look_ahead=looks_ahead,
        names_right_drafts_at_once=rules.names_right_drafts_at_once,
    )
    settings.pop("spans", None)  # how many tokens a step with drafts gives is known only after it
    return DraftingEngine(policy, allocator, limits, proposer, tree=tree, early=ahead, **settings)


def _tell(allocator: Allocator, **facts: Any) -> None:
    for trait, value in facts.items():
        if hasattr(allocator, trait):
            setattr(allocator, trait, value)
