"""Rules that versions of an engine do not share: each a switch with a name, off as vLLM 0.19 has it.

Files of `sim/catalog/engines/` say which are on. Sources are files of vLLM 0.33.0: S `v1/core/sched/scheduler.py`, M
`v1/core/kv_cache_manager.py`, P `v1/core/block_pool.py`, U `v1/core/kv_cache_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Rules:
    """Of vLLM's scheduler and KV cache manager, what changed after 0.19."""

    lone_request_uncapped: bool = False
    """`long_prefill_token_threshold` does not cap the only request, running or waiting, at the start of a step (S)."""
    unhashed_blocks_first: bool = False
    """Of blocks that are handed back, those without a hash are the next to be taken; else all queue at the end (P)."""
    scan_outlives_self_preemption: bool = False
    """A running request that gives way itself does not end the serving of those behind it (S)."""
    pads_one_token_admissions: bool = False
    """An admission with one token left to compute is scheduled with so many placeholders of drafts as the drafter
    makes at most, if it was hit or the step has a share of one that ran before, unless one of these prefills or the
    model has no position for them; none of them is right (S)."""
    lookahead_at_admission: bool = False
    """The slots of a drafter's own KV are taken with the admission too, not only when a running request grows (S)."""
    hashes_look_ahead: bool = False
    """For a drafter that needs the target's hidden states: a block's name tells the token behind it too, and no block
    of a hit is dropped; else names are plain and the last block of a hit is computed anew (S, U)."""
    names_right_drafts_at_once: bool = False
    """Blocks that right drafts filled are named when that is known; else with the next allocation, unless outputs come
    late (S)."""
    watermark_beside_others: bool = False
    """A watermark binds an admission only while others hold blocks, so that nobody is too large for it (S); else it
    binds every admission, as in V0."""


def rules_of(on: Iterable[str]) -> Rules:
    """The rules with these switches on; raises InputError for one that there is not."""
    known = [switch.name for switch in fields(Rules)]
    for name in on:
        if name not in known:
            raise InputError(f"unknown rule {name!r}; known are {', '.join(known)}")
    return Rules(**dict.fromkeys(on, True))


OF_VLLM_0_19 = Rules()
OF_VLLM_0_33 = Rules(True, True, True, True, True, True, True, True)
