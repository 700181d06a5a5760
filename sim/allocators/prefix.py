"""Paged blocks that requests with an equal prefix share, and that stay findable after their owner ends.

As vLLM V1 does it (`block_pool.py`, `kv_cache_manager.py`): a block is named by its content and all before it; one
whose last holder leaves goes to the end of the free queue, and the queue's order is the order of eviction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sim.allocators.paged import Holding, Paged, taken_from
from sim.engine.memory import KvPool
from sim.engine.request import Request, index_of

_INDEX_BITS = 24


class Prefix(Paged):
    """Prefix caching with reference counts and LRU eviction.

    A hit covers whole blocks and at most all known tokens but one, since a token must be computed to sample the
    next. Blocks enter the cache when their tokens are allocated, before the step that computes them has run, so that
    a request admitted later in the same step hits them.

    Args:
        keep_uncomputed: leave blocks findable whose computation was taken back by a preemption in the same step.
            vLLM 0.19 does, and may then hit KV that no step wrote; off, they are forgotten.
    """

    finds_prefixes = True
    no_swap = "a dropped prefix stays findable"
    late_outputs = False
    """Set where the next step is planned before the last one's tokens are known (vLLM V1, `AsyncScheduler`): a block
    that right drafts filled then enters the cache when that is known."""

    drafting = False
    """Set where a step's tokens are certain only after it: as a rule a block then enters the cache with the next
    allocation."""
    names_right_drafts_at_once = False
    """As `sim.engine.rules.Rules` has it; with `late_outputs` it is so in any case."""
    drops_last_hit = False
    """Set where a drafter needs the target's hidden states of the last block (vLLM V1, EAGLE)."""
    hashes_look_ahead = False
    """Instead of that, as `sim.engine.rules.Rules` has it."""

    def __init__(
        self,
        pool: KvPool,
        *,
        watermark: float = 0.0,
        reserve_full_prompt: bool = True,
        keep_uncomputed: bool = False,
    ) -> None:
        super().__init__(pool, watermark=watermark, reserve_full_prompt=reserve_full_prompt)
        self._forget = not keep_uncomputed
        # Blocks that nobody holds, in the order in which they will be taken: first those that never were.
        self._fresh = 1
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._unnamed: list[int] = []
        """Of those, the ones to take before all others, the last one first."""
        self._key_of: dict[int, int] = {}
        self._found: dict[int, int] = {}
        # Content computed twice stands in two blocks; look-ups find the one entered first, then the next.
        self._duplicates: dict[int, list[int]] = {}

    def match(self, req: Request) -> int:
        found, hits = self._found, 0
        for key in self._keys(req, 0, (req.known - 1) // self.pool.block_tokens):
            if key not in found:
                break
            hits += 1
        if self.drops_last_hit and hits:
            hits -= 1
        return hits * self.pool.block_tokens

    def admit(self, req: Request, tokens: int) -> bool:
        hits = req.computed // self.pool.block_tokens
        shared = [self._found[key] for key in self._keys(req, 0, hits)]
        # A hit block that nobody holds leaves the free queue like a new one.
        unheld = [block for block in shared if block in self._idle]
        if self._asked_blocks(req, tokens) - hits + len(unheld) > self._free_for_admission():
            return False
        if len(unheld) < len(shared):
            held = [block for block in shared if block not in self._idle]
            self._sharing.share(held, len(held) * self.pool.block_tokens)
        for block in unheld:
            del self._idle[block]
        self.free_blocks -= len(unheld)
        holding = self._open(req)
        holding.blocks = shared
        holding.cached_blocks = hits
        holding.certain_tokens = req.known
        return self._admitted(req, tokens)

    def grow(self, req: Request, tokens: int) -> bool:
        if not super().grow(req, tokens):
            return False
        if tokens > 1 or req.computed < req.prompt_tokens or self.drafting:
            # Drafts may turn out wrong, so blocks that hold some are not entered, those still under way included.
            certain = req.prompt_tokens + req.confirmed if self.drafting else req.known
            if self.hashes_look_ahead:
                certain -= 1
            self._enter(req, min(req.computed + tokens, certain) // self.pool.block_tokens)
        return True

    def room(self, req: Request) -> int:
        return 0  # any share may give blocks their names

    def fork(self, parent: Request, child: Request) -> None:
        super().fork(parent, child)
        own = self._holdings[child]
        own.cached_blocks = self._holdings[parent].cached_blocks
        own.certain_tokens = child.prompt_tokens

    def release(self, req: Request) -> None:
        holding = self._holdings.get(req)
        if holding is None:
            return
        if not req.finished:
            self._enter_own(req, holding)
        elif (self._named_with_outputs or not self.drafting) and (
            self.unhashed_blocks_first or len(self._shareable(req)) > holding.cached_blocks
        ):
            # Drafts that the last step found right are named by the next allocation, which never comes.
            self._enter(req, req.computed // self.pool.block_tokens)
        super().release(req)

    def _enter(self, req: Request, blocks: int) -> None:
        """Count the request's first `blocks` blocks as findable, and enter those that another request could find."""
        holding = self._holdings[req]
        if blocks > holding.cached_blocks:
            self._name(req, holding, holding.cached_blocks, min(blocks, len(self._shareable(req))))
            holding.cached_blocks = blocks

    def _enter_own(self, req: Request, holding: Holding) -> None:
        """At a preemption, name the full blocks that only this request will ever look for, its outputs' included.

        Blocks of a prompt count from the moment of their allocation; one filled by decoding from then on or, where its
        last token was still to be sampled then, from the moment at which that is known.
        """
        size = self.pool.block_tokens
        computed = req.computed // size
        if self._forget and computed < holding.cached_blocks:
            self._unname(holding, computed, holding.cached_blocks)
            holding.cached_blocks = computed
        settled = self._settled(req, holding) // size
        known = max(holding.cached_blocks, min(settled, computed if self._forget else len(holding.blocks)))
        if req.group is not None and req.group.draw_beams:
            # A beam's place goes on with another beam's tokens, so only the prompt keeps its name.
            known = min(known, req.prompt_tokens // size)
        self._name(req, holding, min(len(self._shareable(req)), holding.cached_blocks), known)
        holding.cached_blocks = known

    def _settled(self, req: Request, holding: Holding) -> int:
        """Of the tokens for which a preempted request was given memory, those that are known by now."""
        if not self.drafting:
            given = min(req.computed + req.seat.withdrawn_tokens, req.known)
            # What was known at the last admission was never waited for, though its last token may have come alone.
            return max(given - req.seat.in_flight, min(given, holding.certain_tokens))
        return min(req.computed, req.prompt_tokens + req.confirmed - 1) if self._named_with_outputs else 0

    @property
    def _named_with_outputs(self) -> bool:
        """Does a block that right drafts filled get its name when that is known, not with the next allocation?"""
        return self.late_outputs or self.names_right_drafts_at_once

    def _name(self, req: Request, holding: Holding, first: int, last: int) -> None:
        """Make the request's blocks from `first` to before `last` findable."""
        self._name_all(zip(self._keys(req, first, last), holding.blocks[first:last], strict=True))

    def _name_all(self, named: Iterable[tuple[int, int]]) -> None:
        found, key_of = self._found, self._key_of
        for key, block in named:
            if key_of.get(block) == key:
                continue
            key_of[block] = key
            if key in found:
                self._duplicates.setdefault(key, []).append(block)
            else:
                found[key] = block

    def _unname(self, holding: Holding, first: int, last: int) -> None:
        """Let nobody find a request's blocks from `first` to before `last`."""
        for block in holding.blocks[first:last]:
            if block in self._key_of:
                self._drop_key(block)

    def _take(self, count: int) -> list[int]:
        self.free_blocks -= count
        first = taken_from(self._unnamed, count) if self._unnamed else []
        count -= len(first)
        fresh = self._fresh
        if fresh <= self.pool.blocks:
            self._fresh = min(fresh + count, self.pool.blocks + 1)
            count -= self._fresh - fresh
        pop = self._idle.popitem
        taken = [pop(last=False)[0] for _ in range(count)]
        for block in taken:
            if block in self._key_of:
                self._drop_key(block)
        return [*first, *range(fresh, self._fresh), *taken] if first or fresh < self._fresh else taken

    def _return(self, blocks: list[int], hashed: int = 0) -> None:
        if self.unhashed_blocks_first and (unhashed := len(blocks) - hashed):
            loose, blocks = blocks[:unhashed], blocks[unhashed:]
            if self._sharing.holders:
                loose = self._sharing.drop(loose)
            self._unnamed += reversed(loose)
            self.free_blocks += len(loose)
        if self._sharing.holders:
            blocks = self._sharing.drop(blocks)
        for block in blocks:
            self._idle[block] = None
        self.free_blocks += len(blocks)

    def _drop_key(self, block: int) -> None:
        key = self._key_of.pop(block)
        duplicates = self._duplicates.get(key)
        if self._found[key] != block:
            self._duplicates[key].remove(block)
        elif duplicates:
            self._found[key] = duplicates.pop(0)
        else:
            del self._found[key]
        if duplicates is not None and not duplicates:
            del self._duplicates[key]

    def _shareable(self, req: Request) -> list[int]:
        """Names of the leading blocks that another request may have too."""
        size = self.pool.block_tokens
        if req.block_names is None or req.block_names[0] != size:
            req.block_names = size, _prefix_keys(req, size, ahead=self.hashes_look_ahead)
        return req.block_names[1]

    def _keys(self, req: Request, first: int, last: int) -> list[int]:
        """The names of the request's blocks from `first` to before `last`."""
        keys = self._shareable(req)
        if last <= len(keys):
            return keys[first:last]
        # The prompt is the same for all sequences of a request, what follows is each one's own.
        prompt = max(len(keys), min(last, req.prompt_tokens // self.pool.block_tokens))
        names = keys[first:]
        for id, start, end in (
            (index_of(req.id), max(first, len(keys)), prompt),
            (req.id, max(first, prompt), last),
        ):
            own = -1 - (id << _INDEX_BITS)
            names += range(own - start, own - end, -1)
        return names


def _prefix_keys(req: Request, block_tokens: int, *, ahead: bool = False) -> list[int]:
    """Names of the blocks that the request's prefix ids cover, re-blocked from their unit to the engine's block.

    An id names its unit and everything before it, so a block is told by the unit of its last token and its index; with
    `ahead` by the unit of the token behind it, as far as that is covered.
    """
    if req.prefix is None:
        return []
    ids, unit, known = req.prefix
    # Of several answers to one prompt, the next turn goes on from one, and nobody says from which.
    named = req.prompt_tokens if req.group else min(max(known, req.prompt_tokens), req.final_kv_tokens)
    blocks = (min(len(ids) * unit, named) - ahead) // block_tokens
    if ahead or unit % block_tokens:
        behind = 0 if ahead else 1
        return [(ids[((at + 1) * block_tokens - behind) // unit] << _INDEX_BITS) + at for at in range(blocks)]
    per_unit = unit // block_tokens
    keys: list[int] = []
    for number, name in enumerate(ids):
        first = (name << _INDEX_BITS) + number * per_unit
        keys += range(first, first + per_unit)
    return keys[:blocks]
