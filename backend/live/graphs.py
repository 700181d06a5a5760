"""Steps recorded once for each size class and replayed on buffers that stay where they are (CUDA graphs).

Launching a step's few hundred kernels one by one takes longer than running them on small batches; a graph is one
launch. Steps whose rows have equally many new tokens are one graph, others one between two attention launches. It knows
no requests: a step comes packed, and whose rows these are is the live executor's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.live.packing import Packed, Stage, staged_bytes
from backend.live.sampling import Sampler
from backend.model.model import Activations, DecodePart, ForwardBatch, Model
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


def size_classes(most: int, width: int = 1) -> list[int]:
    """The numbers of rows that are recorded for steps of up to `most` rows of `width` tokens each.

    Together they have the tokens that a prediction pads to, or up to `width` - 1 more.
    """
    rows = range(1, min(most, MAX_GRAPH_TOKENS // width) + 1)
    return sorted({-(-graph_tokens(count * width) // width) for count in rows})


class DecodeGraphs:
    """Recorded steps of rows of equally many new tokens, one for each size class; a step runs as the next larger one,
    its spare rows as padding.

    All of them read one buffer for ids, positions, slots, lengths and seeds, each at places of its own, and one array
    of block tables. Padding rows have no context (kv_len 0), no slot (-1), and draw tokens that nobody reads.

    Args:
        most_sequences: sizes are recorded up to this one (and at most `MAX_GRAPH_TOKENS` tokens).
        most_blocks: the longest block table.
        width: new tokens of a row, more than 1 where drafts are verified.
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        sample: Sampler,
        recorder: Recorder,
        most_sequences: int,
        most_blocks: int,
        width: int = 1,
    ) -> None:
        self._sizes, self._width = size_classes(most_sequences, width), width
        largest = self._sizes[-1]
        self._tables = torch.zeros((largest, most_blocks), dtype=torch.int32, device=model.device)
        room = staged_bytes(Packed.idle(largest, most_blocks, width).arrays())
        self._inputs = torch.zeros(room, dtype=torch.uint8, device=model.device)
        stage = Stage(model.device)
        self._recordings: dict[int, Recording] = {}
        self._batches: dict[int, ForwardBatch] = {}
        # The largest first: the smaller ones fit into the memory that it took.
        for size in reversed(self._sizes):
            batch, seeds, positions = self._place(Packed.idle(size, 1, width), stage)

            def work(batch: ForwardBatch = batch, seeds: Tensor = seeds, positions: Tensor = positions) -> Tensor:
                return sample(model.forward(batch, cache), seeds, positions)

            self._recordings[size], self._batches[size] = recorder(work), batch

    def serves(self, packed: Packed) -> bool:
        """Does this step draw from each of its rows, which have the recorded width, and is there a size for it?"""
        return packed.uniform(self._width) is not None and len(packed.tokens) <= self._sizes[-1] * self._width

    def run(self, packed: Packed, stage: Stage) -> Tensor:
        """The drawn tokens of the step's rows, int64 [R]. Good until the next run."""
        step = packed.uniform(self._width)
        assert step is not None
        size = self._size(len(packed.tokens))
        self._place(step.padded(size), stage)
        self._recordings[size].replay()
        return self._recordings[size].result[: len(packed.tokens)]

    def draw(self, tokens: Tensor, positions: Tensor, slots: Tensor, part: DecodePart) -> Tensor:
        """The same of a step that is on the device already: rows of one token each, whose seeds are 0."""
        rows = len(tokens)
        size = self._size(rows)
        batch = self._batches[size]
        assert batch.decode is not None
        batch.slots.fill_(-1)
        batch.decode.kv_lens.zero_()
        own = (batch.tokens, batch.positions, batch.slots, batch.decode.kv_lens)
        for there, here in zip(own, (tokens, positions, slots, part.kv_lens), strict=True):
            there[:rows].copy_(here)
        self._tables[:rows, : part.block_tables.shape[1]].copy_(part.block_tables)
        self._recordings[size].replay()
        return self._recordings[size].result[:rows]

    def _size(self, tokens: int) -> int:
        return next(size for size in self._sizes if size * self._width >= tokens)

    def _place(self, packed: Packed, stage: Stage) -> tuple[ForwardBatch, Tensor, Tensor]:
        """Bring a step to where the recorded one of its size reads it."""
        tensors = stage.send(packed.arrays(), into=self._inputs)
        batch, seeds, positions = packed.on_device(tensors)
        assert batch.decode is not None
        rows, columns = batch.decode.block_tables.shape
        self._tables[:rows, :columns].copy_(batch.decode.block_tables)
        decode = DecodePart(self._width, batch.decode.kv_lens, self._tables[:rows])
        return ForwardBatch(batch.tokens, batch.positions, batch.slots, None, None, decode), seeds, positions


class PieceGraphs:
    """Steps of any parts, recorded between their attention launches: by tokens alone, as vLLM's piecewise graphs are.

    A piece reaches from one layer's attention to the next one's; attention, which knows prompts from rows, runs between
    them on the step's own tokens, and logits of the wanted rows behind the last. Spare tokens have no slot (-1); what
    they bring from layer to layer is nobody's.

    Pieces hand on by buffers that all sizes share, so that a graph keeps no memory but what it works with. That costs
    two copies a layer: of its queries and of the residual.

    Args:
        most_tokens: sizes are recorded up to this one (and at most `MAX_GRAPH_TOKENS`).
    """

    @torch.inference_mode()
    def __init__(self, model: Model, cache: KvCache, recorder: Recorder, most_tokens: int) -> None:
        self._model, self._cache, spec = model, cache, model.spec
        self._sizes = size_classes(most_tokens)
        largest = self._sizes[-1]

        def room(*shape: int, dtype: torch.dtype = model.dtype) -> Tensor:
            return torch.zeros((largest, *shape), dtype=dtype, device=model.device)

        self._tokens, self._positions, self._slots = (room(dtype=torch.int32) for _ in range(3))
        self._slots.fill_(-1)
        self._q, self._attended = room(spec.heads, spec.head_dim), room(spec.heads * spec.head_dim)
        self._hidden, self._residual = room(spec.hidden), room(spec.hidden)
        angles = model.embed(self._tokens[:1], self._positions[:1]).cos
        self._angles = [room(angles.shape[-1], dtype=angles.dtype) for _ in range(2)]
        pieces = range(spec.layers + 1)
        self._recordings = {
            size: [recorder(partial(self._piece, at, size)) for at in pieces] for size in reversed(self._sizes)
        }

    def serves(self, tokens: int) -> bool:
        return tokens <= self._sizes[-1]

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """`Model.forward` of a batch that this serves."""
        model, count = self._model, len(batch.tokens)
        size = next(size for size in self._sizes if size >= count)
        self._slots[:size].fill_(-1)
        for there, here in (
            (self._tokens, batch.tokens), (self._positions, batch.positions), (self._slots, batch.slots)
        ):  # fmt: skip
            there[:count].copy_(here)
        plans = model.plans(batch, self._cache)
        for at, piece in enumerate(self._recordings[size]):
            piece.replay()
            if at < model.spec.layers:
                attended = model.attend(at, self._q[:count], batch, self._cache, plans)
                self._attended[:count].copy_(attended.reshape(count, -1))
        return model.logits(self._hidden[:count], self._residual[:count], batch.logits_rows)

    def _piece(self, at: int, size: int) -> Tensor:
        """From the attention of the layer before `at` to that of `at`, or to the end."""
        model, residual = self._model, self._residual[:size]
        cos, sin = (angles[:size] for angles in self._angles)
        if at:
            attended = self._attended[:size]
            stream = model.after_attention(at - 1, attended, Activations(attended, residual, cos, sin))
        else:
            stream = model.embed(self._tokens[:size], self._positions[:size])
            cos.copy_(stream.cos)
            sin.copy_(stream.sin)
        if at < model.spec.layers:
            q, stream = model.before_attention(at, stream, self._slots[:size], self._cache)
            self._q[:size].copy_(q)
        else:
            self._hidden[:size].copy_(stream.hidden)
        assert stream.residual is not None
        residual.copy_(stream.residual)
        return self._q[:size]
