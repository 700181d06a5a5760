"""From who computes what to the shape that a step's price depends on. It knows no memory and no queue."""

from __future__ import annotations

from collections.abc import Collection

from sim.engine.batch import NO_ADAPTERS, AdapterWork, Batch, Shape, Verifies, shape_of
from sim.engine.lockstep import Lengths, Lockstep, Members
from sim.engine.request import Adapter

Moved = tuple[int, int]
"""Bytes (copied, swapped) in a step."""


def step_shape(batch: Batch, lockstep: Lockstep, moved: Moved, together: Verifies = ()) -> Shape:
    """The step as its entries and the lockstep's sums, with the rows that verify drafts `together`."""
    prefills: list[tuple[int, int]] = []
    verifying: dict[int, tuple[int, int, int]] = {}
    if together:
        verifying = {group[0]: group[1:] for group in together}
    window, ranks = lockstep.window_tokens, lockstep.ranks
    decodes, context, within, growing, longest = 0, 0, 0, 0, 0
    if lockstep.count:
        decodes, context = batch.lockstep, lockstep.context_tokens()
        if window:
            within, growing = lockstep.within_window()
        if ranks:
            longest = lockstep.longest()
    for req, tokens, past in batch.entries:
        if tokens == 1 and past > 0:
            decodes += 1
            context += past + 1
            if ranks:
                longest = max(longest, past + 1)
            if window:
                within += min(past + 1, window)
                growing += past + 1 < window
        elif req.computed > req.known:
            # Only drafts are computed before they are known.
            rows, pasts, inside = verifying.get(tokens, (0, 0, 0))
            verifying[tokens] = rows + 1, pasts + past, inside + min(past, window)
        else:
            prefills.append((tokens, past))
    lengths: Lengths = ()
    if ranks and decodes == lockstep.count > 0:
        lengths = lockstep.lengths(mixed=bool(prefills))
    verifies: Verifies = ()
    if verifying:
        verifies = tuple([(tokens, *verifying[tokens]) for tokens in sorted(verifying, reverse=True)])
    copied, swapped = moved
    nobody = (0, 0)
    return shape_of(
        (
            tuple(prefills), decodes, context, copied, swapped, within, growing, verifies, (0, 0, 0), 0, longest,
            lengths, nobody, NO_ADAPTERS, nobody,
        )
    )  # fmt: skip


def padded_shape(batch: Batch, rows: int, context_tokens: int, moved: Moved, window: int, *, forgets: bool) -> Shape:
    """The step as `rows` equal rows of `context_tokens` KV tokens each (static batching).

    With `forgets` there is no cache, so that all of them are computed in every step.
    """
    longest = context_tokens if forgets else max((entry.tokens for entry in batch.entries), default=0)
    if longest > 1:
        return Shape(((longest, context_tokens - longest),) * rows, 0, 0, *moved)
    growing = rows if context_tokens < window else 0
    within = rows * min(context_tokens, window)
    return Shape((), rows, rows * context_tokens, *moved, within, growing, decode_longest=context_tokens)


def adapter_work(batch: Batch, lockstep: Members, used: Collection[Adapter]) -> AdapterWork:
    """What adapters, `used` by who runs, take part in; to be asked while the lockstep is as it was planned."""
    busy: dict[Adapter, None] = {}
    tokens = 0
    for req, share, _ in batch.entries:
        if req.adapter is not None:
            busy[req.adapter] = None
            tokens += share
    if batch.lockstep and used:
        for req in lockstep:
            if req.adapter is not None:
                busy[req.adapter] = None
                tokens += lockstep.width
    return AdapterWork(tokens, len(busy), tuple((load.adapter.rank, load.disk) for load in batch.loads))


def computed_tokens(shape: Shape) -> int:
    """Tokens that each repeat of the step computes, padding included."""
    verified = sum([tokens * rows for tokens, rows, _, _ in shape.verifies])
    return shape.decodes + sum([tokens for tokens, _ in shape.prefills]) + verified
