"""Drafts by a smaller model with a KV cache of its own, whose blocks go by the ids of the target's.

One block id is one block in both caches: what shares, swaps or frees a block of the target does so to the drafter's.
It knows no schedule and never decides what stays: a draft that it makes of wrong keys would be wrong, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.cache.moves import Mover
from backend.drafting.drafting import DraftingRow, Ground, by_width
from backend.drafting.rejection import distribution, drawn
from backend.live.graphs import DecodeGraphs, PieceGraphs, Recorder
from backend.live.live import Pair
from backend.live.packing import DrawRows, Ints, Ints32, Packed, Stage, pack
from backend.live.sampling import Sampler, Sampling
from backend.live.sequences import DRAFT, uniforms
from backend.model.model import DecodePart, ForwardBatch, Model
from sim.engine.batch import Batch, Entry
from sim.engine.memory import NULL_BLOCK, Allocator
from sim.engine.request import Request
from sim.speculation.adaptive import RequestMap
from traces.schema import InputError


@dataclass(slots=True)
class Held:
    """What the drafter has of a request: the first `valid` tokens' KV, in this life (admission number `seq`).

    Of the `made` last drafts, all but the last have theirs too, should they stay. `q` are their distributions.
    """

    seq: int = -1
    valid: int = 0
    made: int = 0
    blocks: int = 0
    """Of its table, those whose content has been accounted for."""
    parked: int = 0
    """Valid tokens when it was swapped out."""
    q: list[Tensor] = field(default_factory=list)


class Proposal(NamedTuple):
    """A round of drafting as arrays: first all that the drafter has not seen, then one token a row and step.

    R rows draft, in the order of their draws; [steps, R] are positions, slots and lengths of the later steps, a row
    that drafts no more has no slot (-1) and no context (0).
    """

    feed: Packed
    requests: list[Request]
    firsts: Ints
    """[R] position of the first draft."""
    counts: Ints
    positions: Ints32
    slots: Ints32
    lens: Ints32
    tables: Ints32


class DraftModel:
    """Runs the draft model behind each step of the target.

    It prefills what the target prefills, but for what its cache has already. Then it takes as many steps of one token
    as there are drafts. After a step in which all drafts were right it lacks the last one's KV, which it computes
    together with the target's own token.

    A request has slots for its drafts behind its last token, but in the step that admits it, where it drafts no more
    than fit into its last block.

    Args:
        cache: as many blocks as the target's.
        most: drafts of one row at most.
        eager: keep up with the target though nothing is drafted, where KV that is not there yet could not be computed
            later (an attention window, behind which blocks are given away).
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        ground: Ground,
        allocator: Allocator,
        sampling: Sampling,
        most_rows: int,
        *,
        host_blocks: int = 0,
        eager: bool = False,
    ) -> None:
        self.samples = sampling.temperature > 0
        self._model, self._cache, self._ground = model, cache, ground
        self._allocator = allocator
        self._sampling = sampling
        self._greedy = Sampler(model.ops, Sampling(), most_rows, model.device)
        self._eager = eager
        self._mover = Mover(model.ops, cache, host_blocks)
        self._stage, self._steps_stage = Stage(model.device), Stage(model.device)
        self._held = RequestMap(lambda req: Held())
        self._filled = np.zeros(cache.blocks + 1, np.int64)
        self._graphs: DecodeGraphs | None = None
        self._pieces: PieceGraphs | None = None

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """As `Proposing.warm_up`, on the null block."""
        self._mover.warm_up()
        self._rehearse([(most_tokens, 0)], [], [])
        self._rehearse([], [], [(2, 1)])
        for rows in (1, most_sequences):
            self._rehearse([], [(1, 1)] * rows, [])

    def capture(self, recorder: Recorder, most_sequences: int, most_tokens: int, step_tokens: int) -> None:
        """As `Proposing.capture`: one graph for a step that drafts the best token; drawn ones want logits."""
        if not self.samples:
            blocks = -(-most_tokens // self._cache.block_tokens)
            self._graphs = DecodeGraphs(self._model, self._cache, self._greedy, recorder, most_sequences, blocks)
        if step_tokens:
            self._pieces = PieceGraphs(self._model, self._cache, recorder, step_tokens)

    def _rehearse(self, prefills: list[Pair], single: list[Pair], several: list[Pair]) -> None:
        zero = np.zeros(1, np.int64)
        prefill, decode, verify = (self._ground.part([], pairs) for pairs in (prefills, single, several))
        feed = pack(prefill, decode, DrawRows(zero, zero, zero), self._cache.block_tokens, verify)
        self._ground.timed(lambda: self._feed(feed, zero))

    def move(self, batch: Batch) -> None:
        self._mover.move(batch)
        copied = 0
        for swap in batch.swaps:
            self._copied(batch.copies[copied : swap.after])
            copied = swap.after
            held = self._held[swap.request]
            if swap.out:
                held.parked = self._found(swap.blocks, len(swap.blocks) * self._cache.block_tokens)
            else:
                self._mark(swap.blocks, 0, len(swap.blocks), held.parked)
        self._copied(batch.copies[copied:])

    def _copied(self, pairs: Iterable[tuple[int, int]]) -> None:
        for source, target in pairs:
            self._filled[target] = self._filled[source]

    def _found(self, table: Sequence[int], tokens: int) -> int:
        """Of the first `tokens` tokens of a table, how many have their KV before the first that has not."""
        size, held = self._cache.block_tokens, 0
        for at in range(-(-tokens // size)):
            held += min(int(self._filled[table[at]]), tokens - at * size)
            if held < min((at + 1) * size, tokens):
                break
        return held

    def _mark(self, table: Sequence[int], first: int, last: int, valid: int) -> None:
        """Note that of the blocks from `first` to before `last` those tokens are filled that are before `valid`."""
        size = self._cache.block_tokens
        for at in range(first, last):
            if table[at] != NULL_BLOCK:
                self._filled[table[at]] = max(0, min(size, valid - at * size))

    def propose(self, rows: Sequence[DraftingRow]) -> tuple[list[int], float]:
        counts, entries = [], []
        for row in rows:
            entry, count = self._follow(row)
            counts.append(count)
            if entry is not None:
                entries.append(entry)
        if not entries:
            return counts, 0.0
        wanted = {row.request: (row.certain, count) for row, count in zip(rows, counts, strict=True) if count}
        proposal = self._lay_out(entries, wanted)
        tokens, device_s = self._ground.timed(lambda: self._run(proposal))
        if tokens.size and int(tokens.min()) < 0:
            raise InputError(
                f"the logits of draft model {self._model.spec.name!r} are not finite, so that nothing can be drafted; "
                "try another dtype, and see whether the weights are sound"
            )
        for at, req in enumerate(proposal.requests):
            place = self._ground.sequences.of(req).start + int(proposal.firsts[at])
            count = int(proposal.counts[at])
            self._ground.sequences.put(slice(place, place + count), tokens[:count, at])
        return counts, device_s

    def distributions(self, req: Request, drafts: int) -> Iterator[Tensor]:
        yield from self._held[req].q[:drafts]

    def _follow(self, row: DraftingRow) -> tuple[Entry | None, int]:
        """(what the drafter has to compute of a request before it drafts, how many drafts it makes)."""
        req, size = row.request, self._cache.block_tokens
        held, table = self._held[req], self._allocator.table(req)
        if held.seq != req.seat.seq:
            held.seq, held.valid, held.blocks = req.seat.seq, self._found(table, row.past), -(-row.past // size)
        else:
            held.valid += min(row.right, max(held.made - 1, 0))
        slots = min(len(table) * size, self._model.spec.max_context_tokens or len(table) * size)
        count = max(0, min(row.wanted, slots - row.certain))
        goal = held.valid
        if count:
            goal = row.certain + 1
        elif self._eager or (not row.drafts and (row.tokens > 1 or not row.past)):
            goal = max(goal, min(row.certain, slots))
        first = min(held.valid // size, held.blocks)
        self._mark(table, first, min(-(-goal // size), len(table)), goal)
        self._mark(table, max(held.blocks, -(-goal // size)), len(table), goal)
        entry = Entry(req, goal - held.valid, held.valid) if goal > held.valid else None
        held.valid, held.made, held.blocks, held.q = goal, count, len(table), []
        return entry, count

    def _lay_out(self, entries: list[Entry], wanted: dict[Request, tuple[int, int]]) -> Proposal:
        prefills, single, several = by_width(entries, lambda entry: entry.past > 0, self._model.windows)
        part, sequences, size = self._ground.part, self._ground.sequences, self._cache.block_tokens
        ends, drafting, end = [], [], 0
        for entry in (*prefills, *single, *several):
            end += entry.tokens
            if entry.request in wanted:
                ends.append(end - 1)
                drafting.append(entry.request)
        certain, counts = np.array([wanted[req] for req in drafting], np.int64).reshape(-1, 2).T
        seeds = np.array([sequences.of(req).seed for req in drafting], np.int64)
        draws = DrawRows(np.array(ends, np.int64), seeds, certain + 1)
        feed = pack(part(prefills, []), part(single, []), draws, size, part(several, []))
        steps = int(counts.max(initial=1)) - 1
        at = certain + 1 + np.arange(steps)[:, None]
        drafts = np.arange(1, steps + 1)[:, None] < counts
        tables = np.zeros((0, 1), np.int32)
        if drafting:
            tables = self._ground.blocks([Entry(req, 1, 0) for req in drafting], certain + counts)
        columns = np.minimum(at // size, tables.shape[1] - 1)
        slots = tables[np.arange(len(drafting)), columns].astype(np.int64) * size + at % size
        return Proposal(
            feed,
            drafting,
            certain + 1,
            counts,
            at.astype(np.int32),
            np.where(drafts, slots, -1).astype(np.int32),
            np.where(drafts, at + 1, 0).astype(np.int32),
            tables,
        )

    def _run(self, proposal: Proposal) -> Tensor:
        """Drafts int64 [most drafts, R]; -1 where logits were not finite."""
        chosen = [self._feed(proposal.feed, proposal.firsts, proposal.requests)]
        if not proposal.requests or not len(proposal.positions):
            return torch.stack(chosen)
        steps = list(zip(proposal.positions, proposal.slots, proposal.lens, strict=True))
        tables, *sent = self._steps_stage.send([proposal.tables, *chain(*steps)])
        for at in range(len(steps)):
            positions, slots, lens = sent[3 * at : 3 * at + 3]
            part, tokens = DecodePart(1, lens, tables), chosen[-1].clamp(min=0)
            if self._graphs is not None:
                chosen.append(self._graphs.draw(tokens, positions, slots, part).clone())
                continue
            logits = self._forward(ForwardBatch(tokens, positions, slots, None, None, part))
            chosen.append(self._choose(logits, proposal.feed, proposal.firsts + at + 1, proposal.requests))
        return torch.stack(chosen)

    def _feed(self, feed: Packed, positions: Ints, requests: Sequence[Request] = ()) -> Tensor:
        batch, _, _ = feed.on_device(self._stage.send(feed.arrays()))
        return self._choose(self._forward(batch), feed, positions, requests)

    def _forward(self, batch: ForwardBatch) -> Tensor:
        if self._pieces is not None and self._pieces.serves(len(batch.tokens)):
            return self._pieces.forward(batch)
        return self._model.forward(batch, self._cache)

    def _choose(self, logits: Tensor, feed: Packed, positions: Ints, requests: Sequence[Request]) -> Tensor:
        """A draft for each row of logits [R, vocab] and its position: the best one, or drawn as the target draws."""
        if not self.samples:
            zeros = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            return self._greedy(logits, zeros, zeros.int())
        numbers = uniforms(feed.seeds, positions, DRAFT).to(logits.device)
        q = distribution(logits, self._sampling)
        for req, masses in zip(requests, q, strict=False):
            self._held[req].q.append(masses)
        return torch.where(q.isfinite().all(-1), drawn(q, numbers), -1)
