"""What one step computes: facts handed from the engine to whoever supplies the seconds. It prices nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

from mypy_extensions import mypyc_attr

from sim.engine.adapters import AdapterLoad
from sim.engine.lockstep import Lengths, Members
from sim.engine.memory import Drift
from sim.engine.request import Request
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may hold; the names are vLLM's.

    `max_model_len` 0 means no limit but memory. With `chunked_prefill` off no prompt is ever cut.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 0
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"engine.{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_model_len < 0:
            raise InputError(f"engine.max_model_len is {self.max_model_len}; it must be at least 0 (no limit)")


class AdapterWork(NamedTuple):
    """What of a step low-rank adapters take part in."""

    tokens: int = 0
    """Tokens that are computed with one."""
    adapters: int = 0
    """How many different ones there are."""
    loads: tuple[tuple[int, bool], ...] = ()
    """(rank, whether it comes from a disk) of each that is put into a slot before the step."""


NO_ADAPTERS = AdapterWork()

Verifies = tuple[tuple[int, int, int, int], ...]
"""Rows that verify drafts, in groups of rows of equally many tokens, the longest rows first: (tokens of each row: its
last known one and its drafts; rows; KV tokens already there of all of them together; of these, each row's counted up to
its attention window, 0 where there is no window)."""


class Shape(NamedTuple):
    """All that the duration of a step depends on.

    A batch may repeat: step i of a span (i = 0 .. n-1) has `decode_context + decodes * i`,
    `decode_window_context + decode_window_growth * i`, and is the same otherwise.
    A step samples at most one token for each slice, so its logits rows are `len(prefills) + decodes`, and one for each
    token of the rows that verify drafts.
    """

    prefills: tuple[tuple[int, int], ...] = ()
    """(new tokens, KV tokens already there) of each multi-token slice; padded lengths under static batching."""
    decodes: int = 0
    """Rows with one new token of a request that is past its prompt."""
    decode_context: int = 0
    """Sum over the decode rows of the KV tokens attended, the new token included, in the first repeat."""
    copied_bytes: int = 0
    """KV bytes copied from block to block (copy on write)."""
    swapped_bytes: int = 0
    """KV bytes moved between device and host."""
    decode_window_context: int = 0
    """The same sum as `decode_context`, each row counted up to its attention window; 0 where there is no window."""
    decode_window_growth: int = 0
    """Decode rows that are still shorter than the window: each attends one token more in every repeat."""
    verifies: Verifies = ()
    """The rows that verify drafts."""
    proposals: tuple[int, int, int] = (0, 0, 0)
    """After this step: (rows that propose drafts, drafts of all together, most drafts of one)."""
    proposal_context: int = 0
    """KV tokens of the proposing rows, all together."""
    decode_longest: int = 0
    """Most KV tokens that one decode row attends in the first repeat, one more in each that follows; 0: unknown."""
    decode_lengths: Lengths = ()
    """The decode rows' contexts in the first repeat, where they are all in lockstep and somebody asks; else unknown."""
    ranks: tuple[int, int] = (0, 0)
    """Tokens of the data-parallel rank that computes most in this step, and of all ranks; 0: all are as this one."""
    adapters: AdapterWork = NO_ADAPTERS
    """Of the first repeat; no later one loads any."""
    drafting_ranks: tuple[int, int] = (0, 0)
    """Rows that propose drafts on the data-parallel rank with most of them, and on all; 0: all are as this one."""


NOTHING = Shape()
DECODES_ONLY: tuple[Any, ...] = tuple(NOTHING[3:])
"""What a shape ends with, after its prompts and decode rows, where there is nothing else in it."""
shape_of: Callable[[tuple[Any, ...]], Shape] = MethodType(tuple.__new__, Shape)
"""A shape from all of its fields, in their order; without the Python frame of a NamedTuple's own constructor, and
without a `partial`, which calls a method of C's by way of one tuple more."""
NO_WINDOW = (0, 0)
_BEFORE_RANKS, _BEHIND_RANKS = tuple(NOTHING[1:12]), tuple(NOTHING[13:])


class Entry(NamedTuple):
    """One request's share of one step: `tokens` more, on top of `past` tokens computed before."""

    request: Request
    tokens: int
    past: int


entry_of: Callable[[tuple[Any, ...]], Entry] = MethodType(tuple.__new__, Entry)
"""A share from all of its fields, in their order (see `shape_of`)."""


class Sampled(NamedTuple):
    """A request that samples in this step after `drafts` drafts, and then proposes `next_drafts`."""

    request: Request
    drafts: int
    next_drafts: int
    real: bool = True
    """False of drafts that nobody proposed: placeholders, all wrong (`Rules.pads_one_token_admissions`)."""


class Swap(NamedTuple):
    """A preempted request's KV on its way to host memory (`out`) or back, after `after` of the batch's copies.

    `blocks` are the device blocks, in token order.
    """

    request: Request
    blocks: Sequence[int]
    out: bool
    after: int


def verifying(first: Shape, past: int, within: int) -> Shape:
    """The shape of a step with the same rows as `first`, of equally many drafts each: that they have computed `past`
    before it, `within` counted up to their windows, is all in which it differs."""
    ((width, rows, _, _),) = first.verifies
    verifies = ((width, rows, past, within),)
    return shape_of((*first[:7], verifies, first.proposals, past + width * rows, *first[10:]))


def proposing(shape: Shape, proposals: tuple[int, int, int], context: int) -> Shape:
    """The same step, after which drafts are proposed."""
    return shape_of((*shape[:8], proposals, context, *shape[10:]))


def prompts_alone(shape: Shape) -> Shape:
    """The prompts of a step, and nothing else of it but what other ranks compute."""
    return shape_of((shape.prefills, *_BEFORE_RANKS, shape.ranks, *_BEHIND_RANKS))


class Courses:
    """The steps of a span in which all rows verify equally many drafts, and it is known how many will be right.

    Each row computes its last known token and its drafts, keeps those that were right and the target's own token, and
    so on; the steps differ by what the rows have computed before, and nothing else.

    Attributes:
        first: the shape of the first step.
        pasts: what the rows have computed before each step, all together.
        withins: the same, each row counted up to its attention window; empty where there is none.
        slots: once the span is sealed, by step how many KV slots are taken in later steps of the span.
        unfilled: of these, those that are never to be filled.
    """

    __slots__ = ("first", "pasts", "slots", "unfilled", "withins")

    def __init__(self, first: Shape, pasts: list[int], withins: list[int]) -> None:
        self.first = first
        self.pasts = pasts
        self.withins = withins
        self.slots: list[int] = []
        self.unfilled: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens that all rows compute together in each step."""
        ((width, rows, _, _),) = self.first.verifies
        return width * rows

    def shape(self, step: int) -> Shape:
        """The shape of a step, counted from 0; all rows propose as many drafts as before."""
        return verifying(self.first, self.pasts[step], self.withins[step] if self.withins else 0)

    def until(self, steps: int) -> Courses:
        """The first `steps` of these steps."""
        return Courses(self.first, self.pasts[:steps], self.withins[:steps])


@mypyc_attr(allow_interpreted_subclasses=True)
class Batch:
    """One step of the engine, or a span of `repeats` steps that are alike but for one more token of context each.

    `entries` lists the requests that are not in lockstep; the `lockstep` ones (a count) each compute one token, or
    `together.width` where they verify drafts.
    Of a drafting engine, `sampled` are the entries that sample; `leaving` are those whose last step in lockstep is the
    last repeat, and how many of their drafts are right in it.
    `copies` are (source, target) blocks to copy and `swaps` blocks to move, in this order, before anything is computed.
    Where `courses` are told, the repeats verify drafts: how many are right is known, and each repeat has its own shape.
    `drift` is how the KV pool changed over the repeats; None where there was one.
    `first_tokens` are the sequences whose first token this step samples, `finishing` those whose last; a drafting
    engine knows neither before the output is there.
    `loads` are adapters to put into slots before anything is computed; `deferred` counts who waits for a slot.
    `repeats` is an upper bound until `Engine.seal` says how many steps the batch really ran; from then on nothing
    here changes.
    """

    __slots__ = (
        "copies",
        "courses",
        "deferred",
        "drift",
        "empty",
        "entries",
        "evicted",
        "finishing",
        "first_step",
        "first_tokens",
        "leaving",
        "loads",
        "lockstep",
        "padding_tokens",
        "planned_s",
        "repeats",
        "running",
        "sampled",
        "shape",
        "swaps",
        "table",
        "together",
        "waiting",
    )

    table: Callable[[Request], Sequence[int]] | None
    """Physical block ids of a request, in token order; None where nothing is kept."""

    def __init__(
        self, first_step: int, planned_s: float, entries: Sequence[Entry], lockstep: int, evicted: Sequence[Request]
    ) -> None:
        self.first_step = first_step
        self.planned_s = planned_s
        self.entries = entries
        self.lockstep = lockstep
        self.evicted = evicted
        self.copies: Sequence[tuple[int, int]] = ()
        self.swaps: Sequence[Swap] = ()
        self.loads: Sequence[AdapterLoad] = ()
        self.deferred = 0
        self.empty = not entries and not lockstep
        self.repeats = 1
        self.shape = NOTHING
        self.padding_tokens = 0
        self.sampled: Sequence[Sampled] = ()
        self.leaving: Sequence[tuple[Sampled, int]] = ()
        self.drift: Drift | None = None
        self.courses: Courses | None = None
        self.first_tokens: list[Request] = []
        self.finishing: list[Request] = []
        self.running = 0
        self.waiting = 0
        self.table = None
        self.together: Members | None = None

    @property
    def rows(self) -> Sequence[Entry]:
        """Each sequence's share of the first repeat, entries first. To be asked before the batch is sealed."""
        together = self.together
        if not self.lockstep or together is None:
            return self.entries
        # Who joined after the step was planned computes nothing of it: new sequences, and those that had no share.
        own = {entry.request for entry in self.entries}
        own.update(self.first_tokens)
        return [
            *self.entries,
            *(
                Entry(req, together.width, together.computed(req) - together.width)
                for req in together
                if req not in own and req.seat.run_first_step <= self.first_step
            ),
        ]

    def samples(self, req: Request) -> bool:
        """Does one of the entries' requests get a token of the step?"""
        return req.seat.last_token_step == self.first_step

    @property
    def tokens(self) -> int:
        """Tokens computed in each repeat, padding not counted."""
        each = self.together.width if self.together is not None else 1
        return self.lockstep * each + sum(entry.tokens for entry in self.entries)


@dataclass(slots=True)
class Outcome:
    """What running a batch gave: how long it took, when its output is there, and what an executor alone can know.

    The next step may start when the last repeat's seconds are over; the output is there `late_s` later, which is above
    0 where a step leaves the first stage of a pipeline before it is through the last. Nothing here changes, though to
    freeze it would double what it takes to make one.
    """

    seconds: list[float]
    """Of each repeat, from its start to when the next step may start."""
    device_s: list[float]
    """Of these, the device's share of each repeat."""
    host_s: float
    """Host seconds of each repeat, hidden behind the device or not."""
    accepted: list[int] | None = None
    """How many drafts of each entry of `Batch.sampled` were right; None where nothing is drafted."""
    ended: tuple[int, ...] = ()
    """Ids of the sequences whose answer ends with the token that this step sampled."""
    proposed: list[int] | None = None
    """How many drafts each entry of `Batch.sampled` has for the next step; None where all have what they were to."""
    drafting_s: float = 0.0
    """Of `device_s`, the drafter's share."""
    late_s: float = 0.0
    """From when the next step may start to when the output of the last repeat is there."""


@dataclass(slots=True)
class Committed:
    """Who got what from a batch whose output is in; nothing here changes."""

    first_tokens: Sequence[Request]
    """Sequences that got their first token."""
    ended: Sequence[Request]
    """Sequences that got their last."""
    finished: Sequence[Request]
    """Requests whose last sequence is among these."""
