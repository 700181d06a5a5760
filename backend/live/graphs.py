"""Decode steps recorded once for each size class and replayed on buffers that stay where they are (CUDA graphs).

Launching a step's few hundred kernels one by one takes longer than running them on small batches; a graph is one
launch. It knows no requests: a step comes packed, and whose rows these are is the live executor's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.live.packing import Packed, Stage, staged_bytes
from backend.live.sampling import Sampler
from backend.model.model import DecodePart, ForwardBatch, Model
from sim.cost.roofline import MAX_GRAPH_TOKENS, graph_tokens


class Recording(NamedTuple):
    """`replay()` does the recorded work again on what its inputs hold by then, and writes `result` anew."""

    replay: Callable[[], None]
    result: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]
"""Runs some work and records it. The work reads and writes the same memory whenever it is replayed."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory for what they compute in between."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Recording:
        """Runs the work once beside the current stream, so that nothing is compiled or chosen within the capture."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return Recording(graph.replay, result)


def size_classes(most: int) -> list[int]:
    """The batch sizes that are recorded for decode steps of up to `most` sequences: those that a prediction prices."""
    return sorted({graph_tokens(rows) for rows in range(1, min(most, MAX_GRAPH_TOKENS) + 1)})


class DecodeGraphs:
    """Recorded decode steps, one for each size class; a step runs as the next larger one, its spare rows as padding.

    All of them read one buffer for ids, positions, slots, lengths and seeds, each at places of its own, and one array
    of block tables. Padding rows have no context (kv_len 0), no slot (-1), and draw tokens that nobody reads.

    Args:
        most_sequences: sizes are recorded up to this one (and at most `MAX_GRAPH_TOKENS`).
        most_blocks: the longest block table.
    """

    def __init__(
        self, model: Model, cache: KvCache, sample: Sampler, recorder: Recorder, most_sequences: int, most_blocks: int
    ) -> None:
        self._sizes = size_classes(most_sequences)
        largest = self._sizes[-1]
        self._tables = torch.zeros((largest, most_blocks), dtype=torch.int32, device=model.device)
        room = staged_bytes(Packed.idle(largest, most_blocks).arrays())
        self._inputs = torch.zeros(room, dtype=torch.uint8, device=model.device)
        stage = Stage(model.device)
        self._recordings: dict[int, Recording] = {}
        # The largest first: the smaller ones fit into the memory that it took.
        for size in reversed(self._sizes):
            batch, seeds, positions = self._place(Packed.idle(size, 1), stage)

            def work(batch: ForwardBatch = batch, seeds: Tensor = seeds, positions: Tensor = positions) -> Tensor:
                return sample(model.forward(batch, cache), seeds, positions)

            self._recordings[size] = recorder(work)

    def serves(self, packed: Packed) -> bool:
        """Is this a decode step that draws from each of its rows, and is there a size class for it?"""
        only = packed.q_starts is None and not packed.verifies
        return only and packed.rows is None and len(packed.tokens) <= self._sizes[-1]

    def run(self, packed: Packed, stage: Stage) -> Tensor:
        """The drawn tokens, int64 [size class]: those of the step's rows first. Good until the next run."""
        rows = len(packed.tokens)
        size = next(size for size in self._sizes if size >= rows)
        self._place(packed.padded(size), stage)
        recording = self._recordings[size]
        recording.replay()
        return recording.result

    def _place(self, packed: Packed, stage: Stage) -> tuple[ForwardBatch, Tensor, Tensor]:
        """Bring a step to where the recorded one of its size reads it."""
        tensors = stage.send(packed.arrays(), into=self._inputs)
        batch, seeds, positions = packed.on_device(tensors)
        assert batch.decode is not None
        rows, columns = batch.decode.block_tables.shape
        self._tables[:rows, :columns].copy_(batch.decode.block_tables)
        decode = DecodePart(1, batch.decode.kv_lens, self._tables[:rows])
        return ForwardBatch(batch.tokens, batch.positions, batch.slots, None, None, decode), seeds, positions
