"""One request: what was asked for, how far it has come, and when. It knows no queue, no clock and no memory pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.engine.names import Names

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


def index_of(id: int) -> int:
    """Index of the request that a sequence answers."""
    return id & ((1 << SAMPLE_BITS) - 1)


def indices_of(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """As `index_of`, of each of many sequences."""
    return ids & ((1 << SAMPLE_BITS) - 1)


class Handover(NamedTuple):
    """The KV of a request's first `tokens` tokens, `bytes` in all, that left `source` for `target`.

    While a request waits with one, that KV is what its admission finds, and need not be computed anew.
    """

    tokens: int
    bytes: int
    source: str
    target: str
    found_tokens: int = 0
    """Those whose KV the target's cache held when it made room: they need not be sent."""


class Adapter(NamedTuple):
    """A low-rank adapter (LoRA) that requests may ask for; `number` tells it from all others, from 1 on."""

    number: int
    name: str
    rank: int


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
            child.adapter = first.adapter
            child.first_scheduled_s = first.first_scheduled_s
            self.members.append(child)
        return self.members[1:]

    @property
    def searching(self) -> bool:
        """Is this a beam search whose beams have been forked? They compute their share of every step all, or none."""
        return self.draw_beams is not None and self.size > 1 and self.members[0].seats == 1


class Seat:
    """What the engine that serves a sequence keeps of it, from when it queues there to its end."""

    __slots__ = (
        "drafts",
        "drained",
        "granted_step",
        "in_flight",
        "last_token_step",
        "prefill_tokens",
        "run_first_step",
        "seq",
        "withdrawn_tokens",
    )

    def __init__(self) -> None:
        self.seq = -1
        """Its place in the order of admission; -1 while it waits."""
        self.drained = False
        """Its last token is computed by a batch that is planned."""
        self.granted_step = -1
        """The last step that it got a share of."""
        self.drafts = 0
        """Tokens proposed and not verified yet."""
        self.prefill_tokens = 0
        """All that was known at its last admission: what it computes before it decodes."""
        self.in_flight = 0
        """Batches under way that sample for it, where it drafts; else those at its last preemption."""
        self.withdrawn_tokens = 0
        """While it is preempted: its share of the very step, which is not computed though memory was taken for it."""
        # Its open run of tokens, of `sim.engine.tokens`.
        self.run_first_step = -1
        self.last_token_step = -1


NO_SEAT = Seat()
"""Of a sequence that no engine has; nobody writes there (`Roster.check`)."""


class Request:
    """Counters instead of phases: `computed` of `known` tokens have their KV; the rest is to be computed.

    Prefill, a chunk, recomputation after a preemption and decoding are all "compute these n more tokens"
    (vLLM V1, `Scheduler.schedule`). `known` is the prompt plus the output tokens sampled so far, a token that a
    batch in flight is about to sample included. While a request decodes in lockstep with others, its two counters
    are kept by `sim.engine.lockstep.Lockstep` and stand still here.

    Here stands what was asked and what is known. What the engine that serves it keeps stands in `seat`, what an
    allocator keeps in the allocator.
    """

    __slots__ = (
        "adapter",
        "arrival_s",
        "block_names",
        "computed",
        "confirmed",
        "final_kv_tokens",
        "finish_s",
        "finished",
        "first_scheduled_s",
        "first_token_s",
        "group",
        "handover",
        "id",
        "known",
        "output_tokens",
        "preemptions",
        "prefix",
        "prefix_hit_tokens",
        "priority",
        "prompt_tokens",
        "seat",
        "seats",
        "session",
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
        self.session = id
        """The same number for all requests of a session, where somebody asks for it."""
        self.adapter: Adapter | None = None
        """None: the model as it is."""
        self.group: Group | None = None
        self.seats = 1
        """Sequences that are to be served in its place: those of its group until they are forked, else 1."""
        self.computed = 0
        self.known = prompt_tokens
        self.confirmed = 0
        """Output tokens that are certain, where drafts may be wrong."""
        # The last sampled token is never fed back, so its KV is never written.
        self.final_kv_tokens = prompt_tokens + output_tokens - 1
        self.block_names: Names | None = None
        """Names of its blocks, once an allocator has asked."""
        self.handover: Handover | None = None
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.finished = False
        self.first_scheduled_s = NEVER_S
        self.first_token_s = NEVER_S
        self.finish_s = NEVER_S
        self.seat = NO_SEAT

    def split(self, size: int, draw_beams: BeamDraw | None = None) -> Request:
        """Ask for `size` sequences instead of one; returns the request."""
        self.group = Group(self, size, draw_beams)
        self.seats = size
        return self

    @property
    def pending(self) -> int:
        """Tokens that are known or proposed and not yet computed."""
        return self.known + self.seat.drafts - self.computed

    @property
    def generated(self) -> int:
        """Output tokens sampled so far, those of batches in flight included."""
        return self.known - self.prompt_tokens

    def __repr__(self) -> str:
        return f"Request({self.id}: {self.computed}/{self.known} computed, {self.generated}/{self.output_tokens} out)"
