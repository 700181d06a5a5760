"""The live executor: runs the engine's batches on a real model over a real paged cache, and says how long they took.

The engine decides, the allocator's tables address the memory, and nothing here schedules. A run on the virtual clock
needs no waiting: the seconds measured advance simulated time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from backend.kvcache import KvCache
from backend.model import ForwardBatch, Model
from backend.moves import Mover
from backend.packing import Packer, Slice
from backend.prompts import Prompts, Tokens
from sim.batch import Batch, Entry
from sim.engine import Engine
from sim.executor import StepResult
from sim.request import Request

EMPTY_TABLE: npt.NDArray[np.int32] = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: greedy at temperature 0, else by (seed, sequence, position) alone."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Sequences:
    """The token ids of every sequence so far, prompt first."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._tokens: dict[int, tuple[int, Tokens]] = {}

    def tokens(self, req: Request) -> Tokens:
        """[prompt_tokens + output_tokens] ids; those not sampled yet are not to be read."""
        found = self._tokens.get(req.id)
        if found is None:
            tokens = np.concatenate([self._prompts.tokens(req), np.zeros(req.output_tokens, np.int64)])
            found = self._tokens[req.id] = (req.prompt_tokens, tokens)
        return found[1]

    def outputs(self) -> Iterator[tuple[int, int, Tokens]]:
        """(sequence id, prompt tokens, ids of prompt and answer) of all sequences that ran."""
        for id, (prompt, tokens) in sorted(self._tokens.items()):
            yield id, prompt, tokens


class Live:
    """Runs batches one at a time.

    The output's length is the trace's: an end-of-sequence token does not end an answer, so that a run on random
    weights and its simulation serve the same work. With an allocator that keeps nothing, a step's KV lives in scratch
    blocks that the next step overwrites.

    Args:
        engine: whose lockstep members and block tables a batch refers to.
        cache: at least as many blocks as the allocator hands out, or scratch blocks where it keeps nothing.
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        engine: Engine,
        prompts: Prompts,
        sampling: Sampling,
        *,
        host_blocks: int = 0,
    ) -> None:
        self.model = model
        self.sequences = Sequences(prompts)
        self._cache = cache
        self._engine = engine
        self._sampling = sampling
        self._packer = Packer(cache.block_tokens, model.device)
        self._mover = Mover(model.ops, cache, host_blocks)
        self._cuda = model.device.type == "cuda"

    def execute(self, batch: Batch) -> StepResult:
        """Run one step; the device's seconds are the forward pass and the draw, the host's all the rest.

        Raises ValueError for a batch that is to repeat: what a step samples is needed by the next.
        """
        if batch.repeats != 1:
            raise ValueError("a live step cannot be repeated unasked; plan without spans")
        started = time.perf_counter()
        self._mover.move(batch)
        members = self._lockstep(batch)
        prefills, decodes = self._slices(batch, members)
        samplers = self._samplers(batch, prefills, decodes)
        forward = self._packer.pack(
            [one for _, one in prefills],
            [one for _, one in decodes],
            np.array([row for row, _, _ in samplers], np.int64),
        )
        drawn, device_s = self._compute(forward, samplers)
        for (_, req, position), token in zip(samplers, drawn, strict=True):
            self.sequences.tokens(req)[position] = token
        total_s = time.perf_counter() - started
        return StepResult([total_s], [device_s], total_s - device_s)

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """Run prefill and decode steps of every size class once, on the null block, so that nothing is built later."""
        sizes = [1 << power for power in range(max(most_tokens, most_sequences).bit_length())]
        for size in sizes:
            if size <= most_tokens:
                self._rehearse([_padding(size, 0)], [])
            if size <= most_sequences:
                self._rehearse([], [_padding(1, 0)] * size)
        self._rehearse([_padding(2, 0)], [_padding(1, 0)])

    def _rehearse(self, prefills: list[Slice], decodes: list[Slice]) -> None:
        rows = np.zeros(1, np.int64)
        req = Request(0, 0.0, 1, 1)
        self._compute(self._packer.pack(prefills, decodes, rows), [(0, req, 0)])

    def _compute(self, forward: ForwardBatch, samplers: Sequence[tuple[int, Request, int]]) -> tuple[list[int], float]:
        """(sampled tokens, device seconds) of one forward pass; waits for both."""
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            tokens = self._sample(self.model.forward(forward, self._cache), samplers)
            end.record()
            drawn = tokens.tolist()
            return drawn, begin.elapsed_time(end) / 1e3
        started = time.perf_counter()
        drawn = self._sample(self.model.forward(forward, self._cache), samplers).tolist()
        return drawn, time.perf_counter() - started

    def _sample(self, logits: torch.Tensor, samplers: Sequence[tuple[int, Request, int]]) -> torch.Tensor:
        rows, how, device = len(samplers), self._sampling, logits.device
        return self.model.ops.sample(
            logits,
            temperature=torch.full((rows,), how.temperature, device=device),
            top_k=torch.full((rows,), how.top_k, dtype=torch.int32, device=device),
            top_p=torch.full((rows,), how.top_p, device=device),
            seeds=torch.tensor([_seed(how.seed, req.id) for _, req, _ in samplers], dtype=torch.int64, device=device),
            positions=torch.tensor([position for _, _, position in samplers], dtype=torch.int32, device=device),
        )

    def _lockstep(self, batch: Batch) -> list[Entry]:
        """The batch's members that the engine counts as sums, each as an entry of its own."""
        if not batch.lockstep:
            return []
        own = {entry.request for entry in batch.entries}
        lockstep = self._engine.lockstep
        return [Entry(req, 1, lockstep.computed(req) - 1) for req in lockstep if req not in own]

    def _slices(
        self, batch: Batch, members: list[Entry]
    ) -> tuple[list[tuple[Entry | None, Slice]], list[tuple[Entry | None, Slice]]]:
        """(prefills, decodes) of the step, those that compute for nobody (static batching) at their end."""
        prefills: list[tuple[Entry | None, Slice]] = []
        decodes: list[tuple[Entry | None, Slice]] = []
        scratch = self._scratch() if self._engine.forgets else None
        for entry in (*batch.entries, *members):
            req, count, past = entry
            tokens = self.sequences.tokens(req)[past : past + count]
            table = next_blocks(scratch, past + count, self._packer.block_tokens) if scratch else self._table(req)
            part = decodes if count == 1 and past > 0 else prefills
            part.append((entry, Slice(tokens, past, table)))
        if batch.padding_tokens:
            self._pad(batch, prefills, decodes)
        return prefills, decodes

    def _pad(
        self,
        batch: Batch,
        prefills: list[tuple[Entry | None, Slice]],
        decodes: list[tuple[Entry | None, Slice]],
    ) -> None:
        """Compute what the rows of a static batch compute for nobody: the rest of short prompts, rows that ended."""
        shape = batch.shape
        if shape.decodes:
            context = shape.decode_context // shape.decodes
            decodes += [(None, _padding(1, context - 1))] * batch.padding_tokens
            return
        longest = shape.prefills[0][0]
        short = [longest - len(one.tokens) for _, one in prefills]
        prefills += [(None, _padding(missing, 0)) for missing in short if missing]

    def _table(self, req: Request) -> npt.NDArray[np.int32]:
        return np.fromiter(self._engine.allocator.table(req), np.int32)

    def _scratch(self) -> Iterator[int]:
        return iter(range(1, self._cache.blocks + 1))

    def _samplers(
        self,
        batch: Batch,
        prefills: list[tuple[Entry | None, Slice]],
        decodes: list[tuple[Entry | None, Slice]],
    ) -> list[tuple[int, Request, int]]:
        """(row among the step's tokens, sequence, position of the token that it draws) of all that draw one."""
        found: list[tuple[int, Request, int]] = []
        end = 0
        listed = {entry.request for entry in batch.entries}
        for entry, one in (*prefills, *decodes):
            end += len(one.tokens)
            if entry is None:
                continue
            req, position = entry.request, entry.past + entry.tokens
            if req in listed and req.last_token_step != batch.first_step:
                continue  # a chunk that does not reach the last known token
            found.append((end - 1, req, position))
            if req.group is not None and position == req.prompt_tokens:
                # Sequences forked in this step draw their first token from the same logits.
                found += [
                    (end - 1, child, position)
                    for child in req.group.members[1:]
                    if child not in listed and child.last_token_step == batch.first_step and child.generated == 1
                ]
        return found


def next_blocks(scratch: Iterator[int], tokens: int, block_tokens: int) -> npt.NDArray[np.int32]:
    """The next blocks of `scratch` for so many tokens."""
    return np.fromiter((next(scratch) for _ in range(-(-tokens // block_tokens))), np.int32)


def _padding(tokens: int, past: int) -> Slice:
    return Slice(np.zeros(tokens, np.int64), past, EMPTY_TABLE, padding=True)


def _seed(seed: int, sequence: int) -> int:
    """One number of 63 bits for a run's seed and a sequence's id."""
    return int(np.random.SeedSequence([seed, sequence]).generate_state(1, np.uint64)[0] >> np.uint64(1))
