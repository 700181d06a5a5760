"""Runs cases of latent attention: the operation alone, since no live model here has such layers.

Of a step only its attention in one layer is timed, over the caches of a few layers in turn, so that none lies in a
GPU's L2 from the time before. It decides nothing about what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backend.cache.kvcache import KV_DTYPES
from backend.torch_ops.latent import latent_decode, latent_prefill
from calibrate.cases import Case, Range
from calibrate.harness import ATTEMPTS, BLOCK_TOKENS, wake
from calibrate.journal import Operation
from calibrate.measure import Reading, Sample
from calibrate.timed import EventClock, Holds, OperationClock, ThreadClock, held
from sim.cost.tables import Value
from sim.specs.model import ModelSpec
from traces.schema import InputError

LAYERS = 4
"""Caches that are read in turn."""


def cache_bytes(spec: ModelSpec) -> int:
    """Bytes of one token in all caches of a bench."""
    return LAYERS * spec.latent_width * spec.element_bytes


def check_measured(spec: ModelSpec) -> None:
    """Raises InputError for a cache of another type than the activations, which nothing here attends."""
    if spec.kv_dtype != spec.dtype:
        raise InputError(
            f"model {spec.name!r}: latent attention is measured with a cache of the activations' type, {spec.dtype}, "
            f"and not with one in {spec.kv_dtype}"
        )


class LatentBench:
    """What `calibrate.harness.Harness` is to whole steps: random latents, queries and matrices on a device."""

    troubles: tuple[str, ...] = ()

    def __init__(self, spec: ModelSpec, device: torch.device, limits: Range, seed: int) -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)
        self.spec, self._device = spec, device
        self._generator = torch.Generator(device).manual_seed(seed)
        blocks = -(-limits.cached_tokens // BLOCK_TOKENS) + limits.rows + 4
        shape = (blocks, BLOCK_TOKENS, spec.latent_width)
        self._caches = [self._random(*shape) for _ in range(LAYERS)]
        self._up = self._random(spec.heads * (spec.qk_nope_head_dim + spec.v_head_dim), spec.kv_lora_rank)
        self._order = torch.from_numpy(_scattered(blocks, seed)).to(device)
        self._scale = spec.head_dim**-0.5
        self._clock: OperationClock = EventClock(device) if device.type == "cuda" else ThreadClock()
        self._holds = Holds()
        if device.type == "cuda":
            wake(device)

    @contextmanager
    def prepared(self, case: Case, number: int, *, timed: bool) -> Iterator[Callable[[], Sample]]:
        """As of `CaseRunner`: slices or rows that are alike, and nothing but their attention."""
        operation, attend = self._decode(case) if case.decodes else self._prefill(case)
        caches = cycle(self._caches)

        def once(cache: Tensor) -> Reading:
            # Launching it takes another number of kernels with a past than without.
            with torch.inference_mode():
                _, begin, end, waited = held(self._clock, self._holds, case.name, lambda: attend(cache))
            return Reading(operation, self._clock.seconds(begin, end), waited)

        def measure() -> Sample:
            for _ in range(ATTEMPTS):
                reading = once(next(caches))
                if not reading.waited:
                    break
            return Sample([reading], 0.0, 0.0, 0.0)

        measure()
        yield measure

    def moves(self) -> Iterator[Reading]:
        """Blocks of latents are moved as any others are: nothing of their own."""
        return iter(())

    def _decode(self, case: Case) -> tuple[Operation, Callable[[Tensor], Tensor]]:
        rows, context, spec = len(case.decodes), case.decodes[0], self.spec
        q, tables = self._random(rows, spec.heads, spec.latent_width), self._tables(rows, context)
        row = self._kernel() | {"sequences": rows, "mean_context_tokens": context}
        rank, scale = spec.kv_lora_rank, self._scale
        return Operation("latent_decode_attention", tuple(row.items())), lambda cache: latent_decode(
            q, cache, tables, context, rank=rank, scale=scale
        )

    def _prefill(self, case: Case) -> tuple[Operation, Callable[[Tensor], Tensor]]:
        (new, past), rows, spec = case.prefills[0], len(case.prefills), self.spec
        q, k = (self._random(rows, spec.heads, new, spec.head_dim) for _ in range(2))
        v = self._random(rows, spec.heads, new, spec.v_head_dim)
        tables = self._tables(rows, past)
        row = self._kernel() | {"nope_dim": spec.qk_nope_head_dim, "value_dim": spec.v_head_dim}
        row |= {"sequences": rows, "past_tokens": past, "new_tokens": new}
        return Operation("latent_prefill_attention", tuple(row.items())), lambda cache: latent_prefill(
            q, k, v, self._up, cache, tables, past, scale=self._scale
        )

    def _kernel(self) -> dict[str, Value]:
        spec = self.spec
        types: dict[str, Value] = {"dtype": spec.dtype, "kv_dtype": spec.kv_dtype, "heads": spec.heads}
        return types | {"rank": spec.kv_lora_rank, "rope_dim": spec.qk_rope_head_dim}

    def _tables(self, rows: int, tokens: int) -> Tensor:
        """Blocks [rows, M] of so many tokens each, no block in two rows."""
        each = -(-tokens // BLOCK_TOKENS)
        return self._order[: rows * each].view(rows, each)

    def _random(self, *shape: int) -> Tensor:
        kind = KV_DTYPES[self.spec.dtype]
        return torch.empty(shape, dtype=kind, device=self._device).normal_(generator=self._generator)


def _scattered(blocks: int, seed: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng([seed, 19]).permutation(blocks).astype(np.int32)
