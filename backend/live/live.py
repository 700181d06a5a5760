"""The live executor: runs the engine's batches on a real model over a real paged cache, and says how long they took.

The engine decides, the allocator's tables address the memory, and nothing here schedules. A run on the virtual clock
needs no waiting: the seconds measured advance simulated time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend.cache.block_tables import BlockTables, scratch_tables
from backend.cache.kvcache import KvCache
from backend.cache.memory import no_memory
from backend.cache.moves import Mover
from backend.live.graphs import DecodeGraphs, PieceGraphs, Recorder
from backend.live.packing import BatchPart, DrawRows, Ints, Ints32, Packed, Stage, pack
from backend.live.prompts import Prompts
from backend.live.sampling import Sampler, Sampling
from backend.live.sequences import Sequences
from backend.model.model import Model
from sim.cost.roofline import graph_tokens
from sim.engine.batch import Batch, Entry, Outcome
from sim.engine.request import Request, index_of
from traces.schema import InputError

Pair = tuple[int, int]


class Padding(NamedTuple):
    """(new tokens, tokens before) of each row of a prefill or of a decode step that is computed for nobody."""

    prefills: list[Pair]
    decodes: list[Pair]


NO_PADDING = Padding([], [])


class Draw(NamedTuple):
    """A token to draw: from the logits of the step's `row`-th token, for `position` of a sequence."""

    row: int
    request: Request
    position: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A step as arrays, and where in `Sequences` its tokens go; `picked` are their rows where all rows are drawn."""

    packed: Packed
    requests: list[Request]
    places: Ints
    picked: Ints | None


class Live:
    """Runs batches one at a time.

    The output's length is the trace's, so that a run on random weights and its simulation serve the same work, or
    shorter where a token of `stop` comes before. With an allocator that keeps nothing, a step's KV lives in scratch
    blocks that the next step overwrites.

    Args:
        cache: at least as many blocks as the allocator hands out, or scratch blocks where it keeps nothing.
        most_sequences: of one step.
        appends: block tables change at their ends alone, but for copies that a batch lists.
        drafts: most of one sequence in one step.
        host_blocks: blocks of host memory that preempted requests are swapped to.
        stop: tokens that end an answer, which keeps them.
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        prompts: Prompts,
        sampling: Sampling,
        *,
        most_sequences: int,
        appends: bool = False,
        drafts: int = 0,
        host_blocks: int = 0,
        stop: Collection[int] = (),
    ) -> None:
        self.model = model
        self.sequences = Sequences(prompts, sampling.seed, room=2 * drafts + 1 if drafts else 0)
        self._cache = cache
        self._tables = BlockTables(appends=appends)
        self._mover = Mover(model.ops, cache, host_blocks)
        self._stage = Stage(model.device)
        most_rows = graph_tokens(most_sequences * (drafts + 1)) + drafts
        self._sample = Sampler(model.ops, sampling, most_rows, model.device)
        self._graphs: list[DecodeGraphs] = []
        self._pieces: PieceGraphs | None = None
        self._cuda = model.device.type == "cuda"
        self._stop = np.array(sorted(stop), np.int64)

    def execute(self, batch: Batch) -> Outcome:
        """Run one step. Packing is the host's time; moving blocks, the forward pass and the draw are the device's.

        Raises:
            ValueError: the batch is to repeat, and what a step samples is needed by the next.
            InputError: the model's logits are not finite, or the device has too little memory.
        """
        if batch.repeats != 1:
            raise ValueError("a live step cannot be repeated unasked; plan without spans")
        started = time.perf_counter()
        plan = self._plan(batch)
        try:
            drawn, device_s = self._compute(plan.packed, batch)
        except torch.OutOfMemoryError:
            raise no_memory(
                self.model.device, f"a step of {len(plan.packed.tokens)} tokens", self._cache.blocks
            ) from None
        tokens = drawn[: len(plan.places)] if plan.picked is None else drawn[plan.picked]
        check_drawn(plan.requests, tokens)
        self.sequences.put(plan.places, tokens)
        ended = self._ended(plan, tokens) if len(self._stop) else ()
        total_s = time.perf_counter() - started
        return Outcome([total_s], [device_s], max(total_s - device_s, 0.0), ended=ended)

    def _ended(self, plan: Plan, tokens: Ints) -> tuple[int, ...]:
        """Ids of the sequences that drew a token to stop at, which ends them."""
        places = np.flatnonzero(np.isin(tokens, self._stop)).tolist()
        for at in places:
            self.sequences.end(plan.requests[at], int(plan.places[at]))
        return tuple(plan.requests[at].id for at in places)

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """Run prefill and decode steps of every size class once, on the null block, so that nothing is built later."""
        self._mover.warm_up()
        for size in _doublings(most_tokens):
            self._rehearse([(size, 0)], [])
        for size in _doublings(most_sequences):
            self._rehearse([], [(1, 0)] * size)
        self._rehearse([(2, 0)], [(1, 0)])

    def capture(self, recorder: Recorder, most_sequences: int, most_tokens: int, step_tokens: int) -> None:
        """Record steps as graphs, and replay them from now on: decode steps of up to `most_sequences` sequences each as
        one, all others of up to `step_tokens` tokens (none where it is 0) but for their attention.

        `most_tokens` is the longest that a sequence may become.
        """
        self._graphs = [self._recorded(recorder, most_sequences, most_tokens, 1)]
        if step_tokens:
            self._pieces = PieceGraphs(self.model, self._cache, recorder, step_tokens)

    def _recorded(self, recorder: Recorder, most_sequences: int, most_tokens: int, width: int) -> DecodeGraphs:
        blocks = -(-most_tokens // self._cache.block_tokens)
        return DecodeGraphs(self.model, self._cache, self._sample, recorder, most_sequences, blocks, width)

    def _graphs_of(self, packed: Packed) -> DecodeGraphs | None:
        """Those that run this step and draw its tokens."""
        return next((graphs for graphs in self._graphs if graphs.serves(packed)), None)

    def _rehearse(self, prefills: list[Pair], decodes: list[Pair], several: list[Pair] | None = None) -> None:
        zero = np.zeros(1, np.int64)
        prefill, decode = self._part([], prefills), self._part([], decodes)
        verify = self._part([], several or [])
        self._compute(pack(prefill, decode, DrawRows(zero, zero, zero), self._cache.block_tokens, verify), None)

    def _compute(self, packed: Packed, batch: Batch | None) -> tuple[Ints, float]:
        """(sampled tokens, device seconds) of a step's moves, forward pass and draw; waits for them."""
        return self._timed(lambda: self._launch(packed, batch))

    def _timed(self, work: Callable[[], Tensor]) -> tuple[Ints, float]:
        """(what the work gives, the device's seconds for it); waits for it."""
        if not self._cuda:
            started = time.perf_counter()
            drawn = work()
            return drawn.numpy(), time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        drawn = work()
        end.record()
        tokens: Ints = drawn.cpu().numpy()
        return tokens, begin.elapsed_time(end) / 1e3

    def _launch(self, packed: Packed, batch: Batch | None) -> Tensor:
        if batch is not None:
            self._mover.move(batch)
        graphs = self._graphs_of(packed)
        if graphs is not None:
            return graphs.run(packed, self._stage)
        forward, seeds, positions = packed.on_device(self._stage.send(packed.arrays()))
        if self._pieces is not None and self._pieces.serves(len(packed.tokens)):
            return self._draw(self._pieces.forward(forward), seeds, positions)
        return self._draw(self.model.forward(forward, self._cache), seeds, positions)

    def _draw(self, logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        return self._sample(logits, seeds, positions)

    def _plan(self, batch: Batch) -> Plan:
        self._tables.begin(batch)
        listed = {entry.request for entry in batch.entries}
        forked = [req for req in batch.first_tokens if req not in listed]
        prefills: list[Entry] = []
        decodes: list[Entry] = []
        for entry in batch.rows:
            (decodes if entry.tokens == 1 and entry.past > 0 else prefills).append(entry)
        padding = self._padding(batch, prefills, decodes) if batch.padding_tokens else NO_PADDING
        prefill, decode = self._part(prefills, padding.prefills), self._part(decodes, padding.decodes)
        draws = _draws(batch, listed, forked, prefills, 0)
        before = 0 if prefill is None else len(prefill.tokens)
        draws += _draws(batch, listed, forked, decodes, before)
        return self._packed(prefill, decode, draws)

    def _packed(
        self, prefill: BatchPart | None, decode: BatchPart | None, draws: list[Draw], verify: BatchPart | None = None
    ) -> Plan:
        own = [self.sequences.of(draw.request) for draw in draws]
        rows = np.array([draw.row for draw in draws], np.int64)
        positions = np.array([draw.position for draw in draws], np.int64)
        seeds = np.array([sequence.seed for sequence in own], np.int64)
        places = positions + np.array([sequence.start for sequence in own], np.int64)
        picked = None
        alone = prefill is None and verify is None
        if alone and decode is not None and len(set(rows.tolist())) == len(rows):
            # All rows of a decode step are drawn, whoever needs it, so that a graph serves it.
            picked, count = rows, len(decode.tokens)
            rows = np.arange(count)
            seeds, positions = _spread(seeds, picked, count), _spread(positions, picked, count)
        packed = pack(prefill, decode, DrawRows(rows, seeds, positions), self._cache.block_tokens, verify)
        return Plan(packed, [draw.request for draw in draws], places, picked)

    def _part(self, entries: list[Entry], padding: list[Pair]) -> BatchPart | None:
        """The work on these requests and then on rows of (tokens, past) that are nobody's; None without any."""
        pairs = [(entry.tokens, entry.past) for entry in entries] + padding
        if not pairs:
            return None
        counts, pasts = np.array(pairs, np.int64).T
        starts = np.array([self.sequences.of(entry.request).start for entry in entries], np.int64)
        real = len(entries)
        firsts = starts + pasts[:real] + counts[:real] - np.cumsum(counts[:real])
        places = np.repeat(firsts, counts[:real])
        ids = self.sequences.tokens(places + np.arange(len(places)))
        tokens = np.concatenate([ids, np.zeros(counts[real:].sum(), np.int32)]) if padding else ids
        return BatchPart(counts, pasts, tokens, self._blocks(entries, counts + pasts), real)

    def _blocks(self, entries: list[Entry], lengths: Ints) -> Ints32:
        """[S, M] blocks of sequences of these lengths, the entries' first; those of padding are null."""
        real, block_tokens = len(entries), self._cache.block_tokens
        tables = np.zeros((len(lengths), -(-int(lengths.max()) // block_tokens)), np.int32)
        if not real:
            return tables
        if not self._tables.paged:
            own = scratch_tables(lengths[:real], block_tokens)
            tables[:real, : own.shape[1]] = own
        else:
            tables[:real] = self._tables.take([self._tables.row(entry.request) for entry in entries], tables.shape[1])
        return tables

    def _padding(self, batch: Batch, prefills: list[Entry], decodes: list[Entry]) -> Padding:
        """What a static batch computes for nobody: the rest of rows shorter than the longest, and rows that ended."""
        shape = batch.shape
        if not shape.prefills:
            context = shape.decode_context // shape.decodes
            return Padding([], [(1, context - 1)] * batch.padding_tokens)
        longest, past = shape.prefills[0]
        entries = (*prefills, *decodes)
        short = [(longest - entry.tokens, entry.past + entry.tokens) for entry in entries if entry.tokens < longest]
        return Padding(short + [(longest, past)] * (len(shape.prefills) - len(entries)), [])


def _doublings(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({1 << power for power in range(most.bit_length())} | {most})


def _draws(batch: Batch, listed: set[Request], forked: list[Request], entries: list[Entry], first: int) -> list[Draw]:
    """The draws from these entries' rows of logits, whose tokens are the step's from the `first`-th on."""
    draws: list[Draw] = []
    end = first
    for req, tokens, past in entries:
        end += tokens
        if req in listed and not batch.samples(req):
            continue  # a chunk that does not reach the last known token
        position = past + tokens
        draws.append(Draw(end - 1, req, position))
        if req.group is not None and position == req.prompt_tokens:
            # Sequences forked in this step draw their first token from the same logits.
            draws += [Draw(end - 1, child, position) for child in forked if child.group is req.group]
    return draws


def _spread(values: Ints, at: Ints, count: int) -> Ints:
    spread = np.zeros(count, np.int64)
    spread[at] = values
    return spread


def check_drawn(requests: Sequence[Request], tokens: Ints) -> None:
    """Raises InputError where a row's logits were not finite."""
    if len(tokens) and int(tokens.min()) < 0:
        req = requests[int(tokens.argmin())]
        raise InputError(
            f"the model's logits for request {index_of(req.id)} are not finite, so that no token can be drawn; try "
            "another dtype, and see whether the weights are sound"
        )
