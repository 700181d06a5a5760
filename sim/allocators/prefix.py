"""Paged blocks that requests with an equal prefix share, and that stay findable after their owner ends.

As vLLM V1 does it (`block_pool.py`, `kv_cache_manager.py`): a block is named by its content and all before it; one
whose last holder leaves goes to the end of the free queue, and the queue's order is the order of eviction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from mypy_extensions import mypyc_attr

from sim.allocators.paged import Holding, Paged, taken_from
from sim.engine.memory import NULL_BLOCK, Ids, KvPool, ids_between, ids_of
from sim.engine.names import Names
from sim.engine.request import Request, index_of
from sim.engine.runs import BlockRun, Found, IdleQueue, Place


@mypyc_attr(allow_interpreted_subclasses=True)
class Prefix(Paged):
    """Prefix caching with reference counts and LRU eviction.

    A hit covers whole blocks and at most all known tokens but one, since a token must be computed to sample the
    next. Blocks enter the cache when their tokens are allocated, before the step that computes them has run, so that
    a request admitted later in the same step hits them.

    Args:
        keep_uncomputed: leave blocks findable whose computation was taken back by a preemption in the same step.
            vLLM 0.19 does, and may then hit KV that no step wrote; off, they are forgotten.
    """

    finds_prefixes: ClassVar[bool] = True
    has_tiers: ClassVar[bool] = True
    no_swap: ClassVar[str] = "a dropped prefix stays findable"
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
        self._begin(keep_uncomputed=keep_uncomputed)

    def _begin(self, *, keep_uncomputed: bool) -> None:
        """Nothing is cached. Apart, as what follows a growth, a fork and a release is, for `sim.allocators.mixed`: a
        compiled `super()` is the class before this one, whatever else a subclass inherits from."""
        self._forget = not keep_uncomputed
        # Blocks that nobody holds, in the order in which they will be taken: first those that never were.
        self._fresh = 1
        self._runs = Found()
        self._idle = IdleQueue(self._runs)
        self._by_runs = True
        """Do the runs tell which blocks have several holders, and lead a holder where they led it before? Not once a
        sequence was forked, or a name taken back."""
        self._unnamed = ids_of(())
        """Of those, the ones to take before all others, the last one first."""
        self._awaiting: set[Request] = set()
        """Who holds room for KV that is not there yet."""
        self._helped = 0
        """How often blocks got a name, or those with one a holder: a newcomer may have fewer blocks to ask for then."""
        self._refused: tuple[Request, int, int] | None = None
        """Who was refused last, what had helped by then, and how many blocks were asked for."""

    @property
    def findable(self) -> Collection[int]:
        """The blocks that have a name."""
        return set(self._runs.blocks())

    def match(self, req: Request) -> int:
        if not self._runs.heads:
            return 0
        stop = (req.known - 1) // self.pool.block_tokens
        hits = self._runs.hits(self._names(req), stop)
        if self.drops_last_hit and hits:
            hits -= 1
        return hits * self.pool.block_tokens

    def admit(self, req: Request, tokens: int) -> bool:
        hits = req.computed // self.pool.block_tokens
        if not hits:
            if not self._has_room(req, self._asked_blocks(req, tokens)):
                return False
            self._open(req).certain_tokens = req.known
            return self._admitted(req, tokens)
        pieces = self._runs.hit(self._names(req), hits)
        # A hit block that nobody holds leaves the free queue like a new one.
        idle: list[list[Place]] = []
        unheld = 0
        for piece in pieces:
            places = self._idle.of(piece)
            idle.append(places)
            for _, _, blocks in places:
                unheld += len(blocks)
        if not self._has_room(req, self._asked_blocks(req, tokens) - hits + unheld):
            return False
        self._helped += 1
        shared = ids_of(())
        for (run, start, stop), places in zip(pieces, idle, strict=True):
            blocks = run.blocks[: stop - start]
            shared += blocks
            if not places:
                self._share(run, blocks)
                continue
            free = [block for _, _, some in places for block in some]
            if len(free) < len(blocks):
                run.shared = True
                held = _without(blocks, free)
                self._sharing.share(held, len(held) * self.pool.block_tokens)
            for place in places:
                self._idle.leave(*place)
        self.free_blocks -= unheld
        holding = self._open(req)
        holding.blocks = shared
        holding.pieces = pieces
        holding.cached_blocks = hits
        holding.certain_tokens = req.known
        return self._admitted(req, tokens)

    def _share(self, run: BlockRun, blocks: Ids) -> None:
        """One holder more of a run's first blocks, which all have one."""
        count = len(blocks)
        if count == run.width:
            run.crowd += 1
            self._sharing.saved_tokens += count * self.pool.block_tokens
            return
        self._disperse(run)
        self._sharing.share(blocks, count * self.pool.block_tokens)
        run.shared = True
        if self._by_runs:
            run.width = count

    def _disperse(self, run: BlockRun) -> None:
        """Let each block of a run count all who hold it."""
        if run.crowd:
            holders = self._sharing.holders
            for block in run.blocks[: run.width]:
                holders[block] += run.crowd
            run.crowd = 0
        run.width = 0

    def _go_by_blocks(self) -> None:
        """From now on runs do not tell who holds what."""
        if self._by_runs:
            self._by_runs = False
            for run in self._runs.heads.values():
                self._disperse(run)

    def _has_room(self, req: Request, blocks: int) -> bool:
        if blocks <= self._free_for_admission():
            return True
        self._refused = req, self._helped, blocks
        return False

    def still_refuses(self, req: Request) -> bool:
        """Whether `admit` would refuse it as it did last, since no block has been named, held again or freed for it."""
        if self._refused is None or not self._reserve_full_prompt or self.lookahead_tokens:
            return False
        refused, helped, blocks = self._refused
        return refused is req and helped == self._helped and blocks > self._free_for_admission()

    def grow(self, req: Request, tokens: int) -> bool:
        if not Paged.grow(self, req, tokens):
            return False
        self._enter_grown(req, tokens)
        return True

    def _enter_grown(self, req: Request, tokens: int) -> None:
        if tokens > 1 or req.computed < req.prompt_tokens or self.drafting:
            # Drafts may turn out wrong, so blocks that hold some are not entered, those still under way included.
            certain = req.prompt_tokens + req.confirmed if self.drafting else req.known
            if self.hashes_look_ahead:
                certain -= 1
            slots = req.computed + tokens
            self._enter(req, (slots if slots < certain else certain) // self.pool.block_tokens)

    def names_ahead(self, req: Request, pasts: list[int]) -> list[tuple[int, int]] | None:
        shareable, size = self._shareable(req), self.pool.block_tokens
        if self._holdings[req].cached_blocks >= shareable:
            return None
        certain, named = 0 if self.hashes_look_ahead else 1, 0
        grown: list[tuple[int, int]] = []
        while named < shareable:
            at = bisect_left(pasts, (named + 1) * size - certain)
            if at == len(pasts):
                break
            named = min((pasts[at] + certain) // size, shareable)
            grown.append((at, named))
        return grown

    def name(self, req: Request, blocks: int) -> None:
        self._enter(req, blocks)

    def settle(self, req: Request, certain: int) -> None:
        self._enter(req, (certain - self.hashes_look_ahead) // self.pool.block_tokens)

    def fork(self, parent: Request, child: Request) -> None:
        self._go_by_blocks()
        Paged.fork(self, parent, child)
        self._share_names(parent, child)

    def _share_names(self, parent: Request, child: Request) -> None:
        own = self._holdings[child]
        own.cached_blocks = self._holdings[parent].cached_blocks
        own.certain_tokens = child.prompt_tokens

    def release(self, req: Request) -> None:
        self._enter_last(req)
        Paged.release(self, req)

    def _enter_last(self, req: Request) -> None:
        """Name what others may find of a request that is about to give its blocks back, where it has any."""
        holding = self._holdings.get(req)
        if holding is None:
            return
        if req in self._awaiting:
            self._awaiting.remove(req)
        elif not req.finished:
            self._enter_own(req, holding)
        elif (not self.drafting or self._named_with_outputs) and (
            self.unhashed_blocks_first or self._shareable(req) > holding.cached_blocks
        ):
            # Drafts that the last step found right are named by the next allocation, which never comes.
            self._enter(req, req.computed // self.pool.block_tokens)

    # ---- KV from tiers below (`sim.engine.tiers.TieredAllocator`) ---------------------------------------------------

    def tell_evicted(self, told: Callable[[Sequence[int]], None]) -> None:
        self._idle.tell_lost = told

    def names(self, req: Request, first: int) -> Sequence[int]:
        return self._names(req).between(first, self.pool.blocks_for(req.known) - 1)

    def hold(self, req: Request, tokens: int) -> bool:
        self._awaiting.add(req)
        if self.admit(req, tokens):
            return True
        self._awaiting.remove(req)
        return False

    def arrived(self, req: Request, tokens: int) -> None:
        self._awaiting.remove(req)
        self._enter(req, tokens // self.pool.block_tokens)

    def _enter(self, req: Request, blocks: int) -> None:
        """Count the request's first `blocks` blocks as findable, and enter those that another request could find."""
        holding = self._holdings[req]
        if blocks > holding.cached_blocks and req not in self._awaiting:
            if req.prefix is not None and (last := min(blocks, self._names(req).told)) > holding.cached_blocks:
                self._name(req, holding, holding.cached_blocks, last)
            holding.cached_blocks = blocks

    def _enter_own(self, req: Request, holding: Holding) -> None:
        """At a preemption, name the full blocks that only this request will ever look for, its outputs' included.

        Blocks of a prompt count from the moment of their allocation; one filled by decoding from then on or, where its
        last token was still to be sampled then, from the moment at which that is known.
        """
        size = self.pool.block_tokens
        computed = req.computed // size
        if self._forget and computed < holding.cached_blocks:
            self._unname(req, holding, computed, holding.cached_blocks)
            holding.cached_blocks = computed
        settled = self._settled(req, holding) // size
        known = max(holding.cached_blocks, min(settled, computed if self._forget else len(holding.blocks)))
        if req.group is not None and req.group.draw_beams:
            # A beam's place goes on with another beam's tokens, so only the prompt keeps its name.
            known = min(known, req.prompt_tokens // size)
        self._name(req, holding, min(self._shareable(req), holding.cached_blocks), known)
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
        if first < last:
            self._helped += 1
            led = holding.pieces if self._by_runs else []
            holding.pieces = self._runs.name(self._names(req), holding.blocks, first, last, led)

    def _unname(self, req: Request, holding: Holding, first: int, last: int) -> None:
        """Let nobody find a request's blocks from `first` to before `last`."""
        self._go_by_blocks()
        for run, start, stop in self._runs.pieces(self._names(req), last):
            if stop > first:
                begin = max(start, first)
                self._runs.forget(run, begin - start, holding.blocks[begin:stop])

    def _take(self, count: int) -> Ids:
        self.free_blocks -= count
        end = self.pool.blocks + 1
        if self._fresh == end and not self._unnamed:
            return self._idle.take(count)
        taken = taken_from(self._unnamed, count)
        if len(taken) < count:
            first = self._fresh
            self._fresh = min(first + count - len(taken), end)
            taken += ids_between(first, self._fresh)
        return taken if len(taken) == count else taken + self._idle.take(count - len(taken))

    def _return(self, req: Request, holding: Holding) -> None:
        blocks, cached = holding.blocks, holding.cached_blocks
        cached = cached if cached < len(blocks) else len(blocks)
        pieces = holding.pieces if self._by_runs else self._runs.pieces(self._names(req), cached)
        named = pieces[-1][2] if pieces else 0
        if self.unhashed_blocks_first and cached < len(blocks):
            self._unnamed.extend(self._unheld(blocks[cached:]))
            blocks = blocks[:cached]
        if named < len(blocks):
            self._idle.put_unnamed(self._unheld(blocks[named:] if named else blocks))
        for run, start, stop in reversed(pieces):
            self._lay_idle(run, blocks[start:stop])

    def _unheld(self, blocks: Ids) -> Ids:
        """Give back one holder's share of blocks that are in no run; returns those that are free now."""
        if not self._by_runs and self._sharing.holders:
            blocks = ids_of(self._sharing.drop(blocks))
        self.free_blocks += len(blocks)
        return blocks

    def _lay_idle(self, run: BlockRun, blocks: Ids) -> None:
        """Give back one holder's share of a run's first blocks; those that nobody holds now are free."""
        count = len(blocks)
        if self._sharing.holders and (run.shared or not self._by_runs):
            if run.crowd and count == run.width and blocks == run.blocks[:count]:
                run.crowd -= 1
                self._sharing.saved_tokens -= count * self.pool.block_tokens
                return
            self._disperse(run)
            free = self._sharing.drop(blocks)
            if not free:
                return
            if len(free) < count:
                apart, count = set(free), len(free)
                blocks = ids_of(block if block in apart else NULL_BLOCK for block in blocks)
        self.free_blocks += count
        self._idle.put(run, blocks, count)

    def _names(self, req: Request) -> Names:
        size = self.pool.block_tokens
        names = req.block_names
        if names is None or names.rule[0] != size:
            req.block_names = names = _names_of(req, size, ahead=self.hashes_look_ahead)
        return names

    def _shareable(self, req: Request) -> int:
        """Leading blocks of a request that another may have too."""
        return self._names(req).told if req.prefix is not None else 0


def _names_of(req: Request, block_tokens: int, *, ahead: bool = False) -> Names:
    """Names of a sequence's blocks, those that its prefix ids cover re-blocked from their unit to the engine's block.

    An id names its unit and everything before it, so a block is told by the unit of its last token and its index; with
    `ahead` by the unit of the token behind it, as far as that is covered. With an adapter the same prompt has other KV
    and so other names (vLLM, `_gen_lora_extra_hash_keys`).
    """
    adapter = req.adapter.number if req.adapter is not None else 0
    # The prompt is the same for all sequences of a request, what follows is each one's own.
    owner, prompt = index_of(req.id), req.prompt_tokens // block_tokens
    if req.prefix is None:
        return Names((block_tokens, 1, 1, adapter), [], 0, owner, req.id, prompt)
    ids, unit, known = req.prefix
    # Of several answers to one prompt, the next turn goes on from one, and nobody says from which.
    named = req.prompt_tokens if req.group else min(max(known, req.prompt_tokens), req.final_kv_tokens)
    told = max(0, (min(len(ids) * unit, named) - ahead) // block_tokens)
    rule = block_tokens, unit, 0 if ahead else 1, adapter
    return Names(rule, ids if isinstance(ids, list) else list(ids), told, owner, req.id, prompt)


def _without(blocks: Sequence[int], others: Sequence[int]) -> Sequence[int]:
    apart = set(others)
    return [block for block in blocks if block not in apart]
