"""One request: what was asked for, how far it has come, and when. It knows no queue, no clock and no memory pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

NEVER_S = math.nan


class SharedPrefix(NamedTuple):
    """What is known of a prompt's content: equal ids mean equal tokens up to the end of that unit."""

    ids: Sequence[int]
    """One for each `unit_tokens` tokens from the start of the prompt, each naming its unit and all before it."""
    unit_tokens: int
    known_tokens: int = 0
    """Tokens that the ids speak for where that is more than the prompt: the answer is part of a later prompt."""


SAMPLE_BITS = 40
"""A sequence's id is its request's index plus the number of the sequence (0 for the first) times 2 ** SAMPLE_BITS."""


Ids = TypeVar("Ids", int, npt.NDArray[np.int64])


def index_of(id: Ids) -> Ids:
    """Index of the request that a sequence answers."""
    return id & ((1 << SAMPLE_BITS) - 1)


BeamDraw = Callable[[int], Sequence[int]]
"""Of each of so many beams: how many of the next ones continue it. The counts add up to the number of beams."""


class Group:
    """The sequences that answer one request: parallel samples or the beams of a beam search.

    The request itself is the first of them; the others are forked from it when its prompt is computed.
    `draw_beams` is given for a beam search.
    """

    __slots__ = ("draw_beams", "members", "size", "unfinished")

    def __init__(self, first: Request, size: int, draw_beams: BeamDraw | None = None) -> None:
        self.size = size
        self.unfinished = size
        self.draw_beams = draw_beams
        self.members = [first]

    def fork(self) -> list[Request]:
        """All sequences but the first: new ones, or those of the last time where a beam search is forked anew."""
        first = self.members[0]
        while len(self.members) < self.size:
            number = len(self.members)
            child = Request(
                first.id + (number << SAMPLE_BITS),
                first.arrival_s,
                first.prompt_tokens,
                first.output_tokens,
                first.priority,
                first.prefix,
            )
            child.group = self
            child.first_scheduled_s = first.first_scheduled_s
            self.members.append(child)
        return self.members[1:]

    @property
    def searching(self) -> bool:
        """Is this a beam search whose beams have been forked? They compute their share of every step all, or none."""
        return self.draw_beams is not None and self.size > 1 and self.members[0].seats == 1


class Request:
    """Counters instead of phases: `computed` of `known` tokens have their KV; the rest is to be computed.

    Prefill, a chunk, recomputation after a preemption and decoding are all "compute these n more tokens"
    (vLLM V1, `Scheduler.schedule`). `known` is the prompt plus the output tokens sampled so far, a token that a
    batch in flight is about to sample included. While a request decodes in lockstep with others, its two counters
    are kept by `sim.engine.lockstep.Lockstep` and stand still here.
    """

    __slots__ = (
        "arrival_s",
        "base",
        "block_keys",
        "blocks",
        "cached_blocks",
        "certain_tokens",
        "computed",
        "confirmed",
        "drafts",
        "drain_tick",
        "drained",
        "final_kv_tokens",
        "finish_s",
        "finished",
        "first_scheduled_s",
        "first_token_s",
        "granted_step",
        "group",
        "id",
        "in_flight",
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
        "saturation_tick",
        "seats",
        "seq",
        "swapped_tokens",
        "withdrawn_tokens",
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
        self.group: Group | None = None
        self.seats = 1
        self.computed = 0
        self.known = prompt_tokens
        # Of a drafting engine: tokens proposed and not verified yet, output tokens that are certain, and batches
        # under way that sample for this request (of any other engine: those at its last preemption).
        self.drafts = 0
        self.confirmed = 0
        self.in_flight = 0
        # The last sampled token is never fed back, so its KV is never written.
        self.final_kv_tokens = prompt_tokens + output_tokens - 1
        self.blocks: list[int] = []
        self.block_keys: list[int] | None = None
        self.cached_blocks = 0
        # All that was known at the last admission: nobody is readmitted while a token of his is in flight.
        self.certain_tokens = prompt_tokens
        self.phase: list[Request] = []
        self.seq = -1
        self.base = 0
        self.drain_tick = -1
        self.saturation_tick = -1
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.swapped_tokens = 0
        # While it is preempted: its share of the very step, which is not computed though memory was taken for it.
        self.withdrawn_tokens = 0
        self.granted_step = -1
        self.drained = False
        self.finished = False
        self.first_scheduled_s = NEVER_S
        self.first_token_s = NEVER_S
        self.finish_s = NEVER_S
        self.run_first_step = -1
        self.last_token_step = -1

    def split(self, size: int, draw_beams: BeamDraw | None = None) -> Request:
        """Ask for `size` sequences instead of one; returns the request."""
        self.group = Group(self, size, draw_beams)
        self.seats = size
        return self

    @property
    def pending(self) -> int:
        """Tokens that are known or proposed and not yet computed."""
        return self.known + self.drafts - self.computed

    @property
    def generated(self) -> int:
        """Output tokens sampled so far, those of batches in flight included."""
        return self.known - self.prompt_tokens

    def __repr__(self) -> str:
        return f"Request({self.id}: {self.computed}/{self.known} computed, {self.generated}/{self.output_tokens} out)"


def completed(sequences: Sequence[Request], end_s: float) -> list[Request]:
    """The requests whose last sequence is among these, which end at `end_s`."""
    done = []
    for req in sequences:
        if req.group is None:
            done.append(req)
            continue
        req.group.unfinished -= 1
        if not req.group.unfinished:
            first = req.group.members[0]
            first.finish_s = end_s
            first.preemptions = sum(member.preemptions for member in req.group.members)
            done.append(first)
    return done
