"""Where the KV of evicted prefixes is kept, and what is loaded from there. It knows no clock and no link.

A tier is an LRU of block names (`Allocator.names`): what the cache on the device evicts goes to the first, what a tier
has no room for to the next, and what the last has none for is lost. A load leaves what it reads where it is. As with
vLLM's KV connectors, a request whose KV is loaded holds its blocks meanwhile, and no seat.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from sim.engine.memory import Allocator
from sim.engine.request import Request

Pieces = Sequence[tuple[int, list[int]]]
"""(place of a tier, names of blocks that follow one another there)."""


class TieredAllocator(Allocator, Protocol):
    """An allocator that names what it evicts, and can hold room for KV that is to come."""

    def tell_evicted(self, told: Callable[[Sequence[int]], None]) -> None:
        """From now on call `told` with the names of blocks that nobody finds any more, in the order of eviction."""
        ...

    def names(self, req: Request, first: int) -> Sequence[int]:
        """Names of the request's known full blocks from number `first` on, the one of its last token left out."""
        ...

    def hold(self, req: Request, tokens: int) -> bool:
        """As `admit`, for KV that is yet to come: nothing of it is found before `arrived`."""
        ...

    def arrived(self, req: Request, tokens: int) -> None:
        """The first `tokens` tokens of a request that holds room are there."""
        ...


def tiered(allocator: Allocator) -> TieredAllocator | None:
    """The allocator, where it has all that tiers below it take."""
    able = all(hasattr(allocator, name) for name in ("tell_evicted", "names", "hold", "arrived"))
    return cast("TieredAllocator", allocator) if able else None


class Tier:
    """Room for `blocks` blocks, the one that was used longest ago leaving first.

    Args:
        instant: whether loading takes no time.
    """

    def __init__(self, blocks: int, *, instant: bool) -> None:
        self.blocks = blocks
        self.instant = instant
        self.evictions = 0
        self.peak_blocks = 0
        self._names: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, name: int) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def put(self, names: Iterable[int]) -> list[int]:
        """Keep these, the last one the longest; returns those that have no room any more, in the order of leaving."""
        kept, gone = self._names, []
        for name in names:
            kept[name] = None
            kept.move_to_end(name)
            if len(kept) > self.blocks:
                gone.append(kept.popitem(last=False)[0])
        self.evictions += len(gone)
        self.peak_blocks = max(self.peak_blocks, len(kept))
        return gone

    def use(self, names: Sequence[int]) -> None:
        """These are read: first tokens stay longest, as a later block is of no use without those before it."""
        for name in reversed(names):
            self._names.move_to_end(name)


@dataclass(frozen=True, slots=True)
class KvLoad:
    """KV on its way to a request: behind the `found_tokens` that the device had, so many blocks of each tier."""

    request: Request
    found_tokens: int
    blocks: tuple[int, ...]
    tokens: int


class Tiers:
    """The tiers below one engine's cache, the fastest first. The last may be below others' too."""

    def __init__(self, tiers: Sequence[Tier], allocator: TieredAllocator) -> None:
        self.tiers = tiers
        self._allocator = allocator
        self._block_tokens = allocator.pool.block_tokens
        self.begun: list[KvLoad] = []
        """Loads that whoever moves KV has not taken out yet; instant ones are there already."""
        allocator.tell_evicted(self._put)

    def _put(self, names: Sequence[int]) -> None:
        falling: Sequence[int] = names
        for tier in self.tiers:
            falling = tier.put(falling)
            if not falling:
                return

    def find(self, req: Request, hit_tokens: int) -> Pieces:
        """The longest run of blocks behind `hit_tokens` tokens that are in some tier.

        Each is of the fastest tier that has it; nothing is used yet.
        """
        pieces: list[tuple[int, list[int]]] = []
        for name in self._allocator.names(req, hit_tokens // self._block_tokens):
            at = next((at for at, tier in enumerate(self.tiers) if name in tier), -1)
            if at < 0:
                break
            if pieces and pieces[-1][0] == at:
                pieces[-1][1].append(name)
            else:
                pieces.append((at, [name]))
        return pieces

    def instant(self, pieces: Pieces) -> bool:
        """Whether loading these takes no time."""
        return all(self.tiers[at].instant for at, _ in pieces)

    def tokens(self, pieces: Pieces) -> int:
        return sum(len(names) for _, names in pieces) * self._block_tokens

    def begin(self, req: Request, hit_tokens: int, pieces: Pieces) -> None:
        """Note that these are read from now on, for a request that holds room for them."""
        blocks = [0] * len(self.tiers)
        for at, names in reversed(pieces):
            blocks[at] += len(names)
            # What was evicted to make the room may have pushed some out, which is read all the same.
            self.tiers[at].use([name for name in names if name in self.tiers[at]])
        self.begun.append(KvLoad(req, hit_tokens, tuple(blocks), self.tokens(pieces)))
