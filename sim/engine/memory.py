"""What the engine asks of a KV-cache allocator, and how its bytes are classed. It knows no policy and no clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np

from sim.engine.request import Request
from traces.schema import InputError

MAX_POOL_TOKENS = (1 << 31) - 1
NULL_BLOCK = 0
"""Block id that no request owns; padding rows of a live kernel may point at it (vLLM's null block)."""
Ids: TypeAlias = "array[int]"
"""Block ids side by side. A list refers to numbers that lie anywhere, and whoever copies or drops it touches each."""


def ids_of(numbers: Iterable[int]) -> Ids:
    return array("I", numbers)  # signed ones are taken in at four times the price, by way of a format string


_counted = ids_of(())
"""0, 1, 2 and so on, as far as anybody has asked."""


def ids_between(first: int, end: int) -> Ids:
    """The ids from `first` to before `end`: a slice of an array, since one takes numbers of a range one by one, at
    twenty times the price."""
    if end > (known := len(_counted)):
        _counted.frombytes(np.arange(known, max(end, 2 * known), dtype=np.uintc).tobytes())
    return _counted[first:end]


class KvLayers(NamedTuple):
    """Layers that keep alike: `token_bytes` of each token, all of them together, for the newest `window_tokens`."""

    token_bytes: int
    window_tokens: int
    """0: for all tokens."""


class KvGroups(NamedTuple):
    """Groups of layers that keep alike: a row of `KvPool.block_tokens` tokens takes `blocks` blocks, one for each."""

    blocks: int
    window_tokens: int
    """Newest tokens that are kept; 0 for all."""


@dataclass(frozen=True, slots=True)
class KvPool:
    """The memory that an allocator hands out: `blocks` blocks of `block_tokens` tokens, ids 1 to `blocks`.

    `max_request_tokens` is the longest that any request may become, `max_step_tokens` the most that one may compute
    in a step; 0 where nothing limits it but the memory. A block has `block_bytes` bytes.

    `window_tokens` is the model's attention window, 0 without one. Where only some layers have it, `full_layers` and
    `window_layers` stand in the proportion of both; without a window they are (1, 0).

    `layers` tells what they keep where it is not alike (a window, a state of `state_bytes` a sequence), for an
    allocator that makes groups of them (`sim.engine.pages`); empty where every layer keeps every token, or is to.
    """

    blocks: int
    block_tokens: int = 16
    max_request_tokens: int = 0
    block_bytes: int = 0
    max_step_tokens: int = 0
    window_tokens: int = 0
    full_layers: int = 1
    window_layers: int = 0
    layers: tuple[KvLayers, ...] = ()
    state_bytes: int = 0

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise InputError(f"kv.block_tokens is {self.block_tokens}; it must be at least 1")
        if self.tokens > MAX_POOL_TOKENS:
            raise InputError(
                f"a KV cache of {self.blocks} blocks of {self.block_tokens} tokens is taken for a mistake; "
                f"at most {MAX_POOL_TOKENS} tokens are possible"
            )
        if self.blocks < 1:
            raise InputError(f"the KV cache has {self.blocks} blocks; it must have at least 1")

    @property
    def tokens(self) -> int:
        return self.blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens start, the last one perhaps partly filled."""
        return -(-tokens // self.block_tokens)


class Layout(NamedTuple):
    """What an allocator makes of the memory that it is given: its own blocks, and what it keeps of a request."""

    pool: KvPool
    recent_tokens: int = 0
    """Newest tokens of a request that are kept, where the layers have a window or else in all; 0 for all tokens."""
    sink_tokens: int = 0
    """First tokens that stay beside them."""
    groups: tuple[KvGroups, ...] = ()
    """Groups of layers whose tables it keeps; empty where one table is all."""
    state_blocks: int = 0
    """Blocks of the constant state of one sequence."""

    @property
    def row_blocks(self) -> int:
        """Blocks that `pool.block_tokens` tokens take in all groups."""
        return sum(group.blocks for group in self.groups) or 1

    def most_blocks(self, rows: int, steps: int = 1) -> int:
        """Blocks held at most by a sequence of so many rows, `steps` steps of the most tokens under way."""
        if not self.groups:
            return rows
        return self.state_blocks + sum(group.blocks * self.most_rows(group, rows, steps) for group in self.groups)

    def most_rows(self, group: KvGroups, rows: int, steps: int = 1) -> int:
        """Rows of such groups held at most: those of the window and of what a step computes, and one for two edges."""
        pool = self.pool
        if not group.window_tokens or not pool.max_step_tokens:
            return rows
        kept = group.window_tokens + steps * pool.max_step_tokens
        return min(rows, pool.blocks_for(self.sink_tokens) + pool.blocks_for(kept) + 1)


class Usage(NamedTuple):
    """KV slots by class; all but `saved` add up to the pool (vLLM paper, figure 2, and classes for shared and free)."""

    used: int
    """Slots that hold a token's KV for one request alone."""
    shared: int
    """Slots that hold a token's KV for two requests or more."""
    reserved: int
    """Slots held by a request for tokens that it will still compute."""
    internal: int
    """Slots held by a request that it will never fill."""
    external: int
    """Free slots in holes that are too small to be of use to any request now waiting or to come."""
    free: int
    saved: int = 0
    """Slots that would be needed as well if nothing were shared: for each shared one, its holders but the first."""


usage_of: Callable[[tuple[Any, ...]], Usage] = MethodType(tuple.__new__, Usage)
"""A usage from all of its fields, in their order (see `sim.engine.batch.shape_of`)."""


class Drift(NamedTuple):
    """How many slots more a class had before and between several steps than it has after them, summed over the steps.

    The classes that are not told stay as they are while requests take a token a step, so these add up to 0.
    """

    used: int = 0
    """Those of shared slots that stopped being shared or held included."""
    reserved: int = 0
    internal: int = 0
    free: int = 0


drift_of: Callable[[tuple[Any, ...]], Drift] = MethodType(tuple.__new__, Drift)
"""A drift from all of its fields, in their order (see `usage_of`)."""


class Allocator(Protocol):
    """Decides which blocks a request holds. Every method counts first and acts after: `False` changed nothing."""

    pool: KvPool
    free_blocks: int
    """Blocks that nobody holds."""

    def refusal(self, req: Request) -> str | None:
        """Why this request could not be served even alone, or None. Whoever fits, shorter requests fit too."""
        ...

    def match(self, req: Request) -> int:
        """Leading tokens of `req.known` whose KV is already in the cache."""
        ...

    def admit(self, req: Request, tokens: int) -> bool:
        """Room for `tokens` more than `req.computed` (the tokens matched) for a request that holds nothing."""
        ...

    def grow(self, req: Request, tokens: int) -> bool:
        """Room for `tokens` more than `req.computed`."""
        ...

    def release(self, req: Request) -> None:
        """Take back all that the request holds."""
        ...

    def table(self, req: Request) -> Sequence[int]:
        """Physical block ids in token order: what a live kernel reads."""
        ...

    def usage(self, computed_tokens: int) -> Usage:
        """The pool by class, where the requests hold `computed_tokens` tokens' KV in all."""
        ...


class ForkingAllocator(Allocator, Protocol):
    """An allocator that can serve several sequences of one request (parallel sampling, beam search)."""

    copies: list[tuple[int, int]]
    """(source, target) of the block copies that the next step must make, in this order, before it computes; the
    engine takes them out."""

    def fork(self, parent: Request, child: Request) -> None:
        """Give `child` the KV of `parent`, to go on from by itself; what `child` held before is given back.

        Never refused: room that this takes was set aside when the request for several sequences was admitted.
        """
        ...

    def owns_tail(self, req: Request) -> bool:
        """May the request's next token be written without a copy? Lockstep members must."""
        ...


class CannotFork:
    """Stands in for the forking of an allocator that has none; no request for several sequences gets so far."""

    def __init__(self) -> None:
        self.copies: list[tuple[int, int]] = []

    def fork(self, parent: Request, child: Request) -> None:
        raise TypeError("the allocator cannot fork")

    def owns_tail(self, req: Request) -> bool:
        return True


class LockstepAllocator(Allocator, Protocol):
    """An allocator that can serve many one-token steps of many requests at once, which is what makes spans cheap.

    An allocator without these methods works as well, one step and one `grow` at a time.
    """

    def join(self, req: Request, tick: int) -> None:
        """From now on `req` (its `computed` true at this moment) takes one token in every tick."""
        ...

    def leave(self, req: Request) -> None: ...

    def headroom(self, tick: int, limit: int) -> int:
        """How many ticks, at most `limit`, all joined requests can take from `tick` on."""
        ...

    def step(self, tick: int) -> None:
        """Take the blocks of one tick; never without headroom."""
        ...

    def advance(self, tick: int, steps: int) -> Drift:
        """Take the blocks of `steps` ticks from `tick` on; never more than the headroom.

        Returns how the pool was before and between them, against what it is after them.
        """
        ...


def forking(allocator: Allocator) -> ForkingAllocator | None:
    """The allocator, where it has all that forking takes."""
    able = all(hasattr(allocator, name) for name in ("copies", "fork", "owns_tail"))
    return cast("ForkingAllocator", allocator) if able else None


def in_lockstep(allocator: Allocator) -> LockstepAllocator | None:
    """The allocator, where it has all that serving many steps at once takes."""
    able = all(hasattr(allocator, name) for name in ("join", "leave", "headroom", "step", "advance"))
    return cast("LockstepAllocator", allocator) if able else None
