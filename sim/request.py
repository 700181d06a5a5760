"""One request: what was asked for, how far it has come, and when. It knows no queue, no clock and no memory pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

NEVER_S = math.nan


class SharedPrefix(NamedTuple):
    """What is known of a prompt's content: equal ids mean equal tokens up to the end of that unit."""

    ids: Sequence[int]
    """One for each `unit_tokens` tokens from the start of the prompt, each naming its unit and all before it."""
    unit_tokens: int


class Request:
    """Counters instead of phases: `computed` of `known` tokens have their KV; the rest is to be computed.

    Prefill, a chunk, recomputation after a preemption and decoding are all "compute these n more tokens"
    (vLLM V1, `Scheduler.schedule`). `known` is the prompt plus the output tokens sampled so far, a token that a
    batch in flight is about to sample included. While a request decodes in lockstep with others, its two counters
    are kept by `sim.lockstep.Lockstep` and stand still here.
    """

    __slots__ = (
        "arrival_s",
        "base",
        "block_keys",
        "blocks",
        "cached_blocks",
        "computed",
        "drain_tick",
        "drained",
        "final_kv_tokens",
        "finish_s",
        "finished",
        "first_scheduled_s",
        "first_token_s",
        "granted_step",
        "id",
        "known",
        "last_token_step",
        "output_tokens",
        "phase",
        "preemptions",
        "prefix",
        "prefix_hit_tokens",
        "priority",
        "prompt_tokens",
        "run_first_step",
        "seq",
        "swapped_tokens",
    )

    def __init__(
        self,
        id: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        prefix: SharedPrefix | None = None,
    ) -> None:
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.prefix = prefix
        self.computed = 0
        self.known = prompt_tokens
        # The last sampled token is never fed back, so its KV is never written.
        self.final_kv_tokens = prompt_tokens + output_tokens - 1
        self.blocks: list[int] = []
        self.block_keys: list[int] | None = None
        self.cached_blocks = 0
        self.phase: list[Request] = []
        self.seq = -1
        self.base = 0
        self.drain_tick = -1
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.swapped_tokens = 0
        self.granted_step = -1
        self.drained = False
        self.finished = False
        self.first_scheduled_s = NEVER_S
        self.first_token_s = NEVER_S
        self.finish_s = NEVER_S
        self.run_first_step = -1
        self.last_token_step = -1

    @property
    def pending(self) -> int:
        """Tokens that are known and not yet computed."""
        return self.known - self.computed

    @property
    def generated(self) -> int:
        """Output tokens sampled so far, those of batches in flight included."""
        return self.known - self.prompt_tokens

    def __repr__(self) -> str:
        return f"Request({self.id}: {self.computed}/{self.known} computed, {self.generated}/{self.output_tokens} out)"
