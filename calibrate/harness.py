"""Runs cases on the live backend: a model, a cache full of random keys and values, and the live executor itself.

A whole step is what `Live` executes and measures, so that calibration and live runs tell the same seconds.
It decides nothing about what is measured.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backend.cache.kvcache import KvCache, block_bytes
from backend.live.graphs import CudaRecorder
from backend.live.live import Live
from backend.live.packing import Ints, Packed
from backend.live.prompts import Prompts
from backend.live.sampling import Sampling
from backend.model.loader import random_model
from backend.model.packed import packed
from backend.ops import Ops
from calibrate.cases import Case, Range
from calibrate.journal import Operation
from calibrate.measure import Reading, Sample
from calibrate.routed import DrawnExperts, Untimed
from calibrate.timed import EventClock, Holds, OperationClock, ThreadClock, TimedOps, held
from sim.allocators.paged import Paged
from sim.cost.roofline import MAX_GRAPH_TOKENS
from sim.engine.batch import Batch, Entry
from sim.engine.memory import KvPool
from sim.engine.request import Request, Seat
from sim.specs.model import ModelSpec
from traces.schema import InputError

BLOCK_TOKENS = 16
MOVED_BLOCKS = (1, 4, 16, 64)
_IDS_PER_CASE = 1 << 16
UNTIMED, UNTIMED_S = 3, 0.1
"""So often a GPU's whole step is run for each time that its operations are timed, in so many seconds: timing them takes
several times as long, and a single step may meet anything on the host (on an H200 one of 12 ms once took 66)."""
WAKE_S = 0.3
"""So long a GPU multiplies before it is measured: an idle one runs at a fraction of its clock."""
ATTEMPTS = 3
"""So often a step is timed where the device waited for an operation's launch in every layer; it is held longer then."""


def middle_run(run: Callable[[], tuple[float, float]], often: int) -> tuple[float, float]:
    """The middle of up to `often` (device, host) seconds, by their sum; the first alone of what takes long."""
    runs = [run()]
    while len(runs) < often and sum(map(sum, runs)) < UNTIMED_S:
        runs.append(run())
    return sorted(runs, key=sum)[(len(runs) - 1) // 2]


class _ThreadTimed(Live):
    """A live executor that also tells for how long the thread ran while it computed.

    On a shared CPU a step's wall time holds whatever else was run meanwhile, and varies tenfold.
    """

    computing_s = 0.0

    def _compute(self, packed: Packed, batch: Batch | None) -> tuple[Ints, float]:
        begun_s = time.thread_time()
        output = super()._compute(packed, batch)
        self.computing_s = time.thread_time() - begun_s
        return output


class Harness:
    """A model with random weights on a device, and a cache for the cases of a range, full of random content."""

    def __init__(self, spec: ModelSpec, device: torch.device, limits: Range, seed: int) -> None:
        self.troubles: list[str] = []
        """What it has to do without."""
        if device.type == "cpu":
            # Two threads under contention run 5 to 20 times slower than one (OpenMP barriers).
            torch.set_num_threads(1)
        else:
            torch.cuda.empty_cache()  # what another model's harness held
        self.spec = spec
        self._model = packed(random_model(spec, device, seed=seed))
        # Every row may leave most of its last block empty.
        sequences = limits.rows + 8
        blocks = max(-(-limits.cached_tokens // BLOCK_TOKENS) + 2 * sequences, 2 * max(MOVED_BLOCKS))
        self._cache = KvCache.allocate(spec, blocks, BLOCK_TOKENS, device)
        _fill(self._cache, seed)
        self._clock: OperationClock = EventClock(device) if device.type == "cuda" else ThreadClock()
        self._plain = self._model.ops
        self._cuda = device.type == "cuda"
        self._holds = Holds()
        self._timed = TimedOps(self._plain, self._clock)
        self._drawn = None
        if spec.experts:
            self._drawn = DrawnExperts(spec, limits.tokens + 2 * sequences, device, seed)
        self._use(self._plain)
        self._allocator = Paged(KvPool(blocks, BLOCK_TOKENS))
        prompts = Prompts(spec.vocab, seed)

        def live(ops: Ops) -> _ThreadTimed:
            self._use(ops)
            return _ThreadTimed(self._model, self._cache, prompts, Sampling(), most_sequences=sequences, appends=True)

        self._live_timed = live(cast(Ops, self._timed))
        self._live = live(self._plain)
        self._live_graph: _ThreadTimed | None = None
        if self._cuda:
            if self._model.graphable:
                self._live_graph = self._captured(live(self._plain), limits)
            wake(device)

    def _use(self, ops: Ops) -> None:
        """Let the model compute with these operations, its experts visited as they were drawn."""
        self._model.ops = ops
        if self._drawn is not None:
            timing = self._timed if ops is self._timed else Untimed()
            self._model.mlp = partial(self._drawn.mlp, timing, self._plain)

    def _captured(self, live: _ThreadTimed, limits: Range) -> _ThreadTimed | None:
        """The executor with its steps as CUDA graphs; None, and a trouble, where they cannot be captured."""
        gc.collect()
        gc.freeze()  # some versions of torch collect garbage before every capture
        try:
            live.capture(CudaRecorder(), limits.rows, limits.context, limits.tokens)
            torch.cuda.synchronize()
        except (RuntimeError, InputError) as error:
            lines = str(error).splitlines() or ["no message"]
            self.troubles.append(f"steps could not be captured as CUDA graphs: {lines[0][:200]}")
            return None
        finally:
            gc.unfreeze()
        return live

    @contextmanager
    def prepared(self, case: Case, number: int, *, timed: bool) -> Iterator[Callable[[], Sample]]:
        """What measures the case, which has run once then; its KV blocks are given back at the end.

        `number` tells the case from all others; operations are timed only where asked for.
        """
        slices = [*case.prefills, *((1, context - 1) for context in case.decodes)]
        requests = [Request(number * _IDS_PER_CASE + at, 0.0, past + new, 1) for at, (new, past) in enumerate(slices)]
        for at, req in enumerate(requests):
            req.seat = Seat()
            # Every slice ends its sequence, so that every one draws a token.
            req.seat.seq, req.seat.last_token_step = at, 0
            if not self._allocator.grow(req, req.prompt_tokens):
                raise RuntimeError(f"the cache was made for every case, and {case.name} does not fit")
        entries = [Entry(req, new, past) for req, (new, past) in zip(requests, slices, strict=True)]

        def execute(live: _ThreadTimed, ops: Ops) -> tuple[float, float]:
            batch = Batch(0, 0.0, entries, 0, [])
            batch.shape, batch.table = case.shape, self._allocator.table
            self._use(ops)
            try:
                begun_s = time.thread_time()
                result = live.execute(batch)
                busy_s = time.thread_time() - begun_s
            finally:
                self._use(self._plain)
            if self._cuda:
                return result.device_s[0], result.host_s
            return live.computing_s, busy_s - live.computing_s

        tokens = sum(new for new, _ in case.prefills) + len(case.decodes)
        graph = self._live_graph if tokens <= MAX_GRAPH_TOKENS else None

        def measure() -> Sample:
            timed_s, readings = 0.0, list[Reading]()
            for _ in range(ATTEMPTS if timed else 0):
                self._timed.case = case
                self._timed.forget()
                timed_s, _ = execute(self._live_timed, cast(Ops, self._timed))
                readings = self._timed.readings()
                sound = {one.operation for one in readings if not one.waited}
                if all(one.operation in sound for one in readings):
                    break
            often = UNTIMED if self._cuda else 1
            graphed = middle_run(lambda: execute(graph, self._plain), often) if graph else (None, None)
            plain = middle_run(lambda: execute(self._live, self._plain), often)
            return Sample(readings, timed_s, *plain, *graphed)

        try:
            execute(self._live, self._plain)
            if graph is not None:
                execute(graph, self._plain)  # which has staging memory of its own, made at the first step
            yield measure
        finally:
            for req in requests:
                self._allocator.release(req)
                req.finished = True

    def moves(self) -> Iterator[Reading]:
        """Copies within the cache and swaps to the host and back, each of some numbers of blocks of one layer, once."""
        host = self._cache.host(max(MOVED_BLOCKS))
        layer, twin, ops = self._cache.layers[0], host.layers[0], self._plain
        layer_bytes = block_bytes(self.spec, BLOCK_TOKENS, self._cache.dtype) // self.spec.layers
        for blocks in MOVED_BLOCKS:
            ids = np.arange(1, blocks + 1, dtype=np.int32)
            there, other = self._ids(ids), self._ids(ids + blocks)
            for table, direction, call, pair in (
                ("copy", "", ops.copy_blocks, (layer, there, other)),
                ("swap", "out", ops.swap_out, (layer, twin, there, there)),
                ("swap", "in", ops.swap_in, (layer, twin, there, there)),
            ):
                call(*pair)
                row = (("direction", direction), ("bytes", blocks * layer_bytes))
                operation = Operation(table, row if direction else row[1:])
                _, begin, end, waited = held(self._clock, self._holds, table, partial(call, *pair))
                yield Reading(operation, self._clock.seconds(begin, end), waited)

    def _ids(self, blocks: npt.NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(blocks).to(self._cache.device)


def wake(device: torch.device) -> None:
    """Brings the device's clock up."""
    x = torch.full((1024, 1024), 1e-3, dtype=torch.bfloat16, device=device)
    until = time.monotonic() + WAKE_S
    while time.monotonic() < until:
        x @ x
        torch.cuda.synchronize(device)


def _fill(cache: KvCache, seed: int) -> None:
    """Normal random keys and values: zeros make kernels draw less power and run faster than they do in service."""
    generator = torch.Generator(cache.device).manual_seed(seed)
    for layer in cache.layers:
        for stored in (layer.k, layer.v):
            for block in torch.split(stored, 1024):
                values = torch.empty(block.shape, device=cache.device).normal_(generator=generator)
                if stored.dtype == torch.int8:
                    values = (values * 40.0).clamp(-127.0, 127.0)
                if stored.dtype == torch.float8_e4m3fn:
                    block.view(torch.uint8).copy_(values.to(stored.dtype).view(torch.uint8))
                else:
                    block.copy_(values)
        for scale in (layer.k_scale, layer.v_scale):
            if scale is not None and scale.ndim:
                scale.fill_(1.0 / 40.0)
