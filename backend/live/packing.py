"""From token counts and block tables to the arrays of one forward pass, and on to the device. It launches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backend.model.model import DecodePart, ForwardBatch, PrefillPart

Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

ALIGNMENT_BYTES = 64
"""Arrays on the device start at multiples of it, so that kernels compiled for aligned pointers serve all of them."""


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Work on S sequences: `counts` [S] new tokens each, on top of `pasts` [S] computed ones.

    `tokens` are the ids of all, sequence by sequence; `tables` [S, M] their blocks in token order, 0 behind. Only the
    first `real` sequences are somebody's: what the others compute is kept nowhere and attends the null block.
    """

    counts: Ints
    pasts: Ints
    tokens: Ints32
    tables: Ints32
    real: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Sequences of up to `width` new tokens each: their lengths with these [S], and blocks [S, M].

    Where some have fewer, `spread` and `kept` are as of `DecodePart`.
    """

    width: int
    lens: Ints32
    tables: Ints32
    spread: Ints32 | None = None
    kept: Ints32 | None = None

    def arrays(self) -> list[Array]:
        return [array for array in (self.lens, self.tables, self.spread, self.kept) if array is not None]


@dataclass(frozen=True, slots=True)
class Packed:
    """A `ForwardBatch` on its way to the device, and what its rows of logits draw with; each field as there.

    `rows` None wants all tokens' logits. `seeds` and `draw_positions` are [R], as are the rows.
    """

    tokens: Ints32
    positions: Ints32
    slots: Ints32
    rows: Ints32 | None
    seeds: Ints
    draw_positions: Ints32
    q_starts: Ints32 | None
    prefill_lens: Ints32 | None
    prefill_tables: Ints32 | None
    max_q: int
    decode_lens: Ints32 | None
    decode_tables: Ints32 | None
    verify: Verify | None = None

    def arrays(self) -> list[Array]:
        """All arrays that are there, the decode part's tables last."""
        verify = [] if self.verify is None else self.verify.arrays()
        return verify + [array for array in self._fields() if array is not None]

    def on_device(self, tensors: Iterable[Tensor]) -> tuple[ForwardBatch, Tensor, Tensor]:
        """(batch, seeds, draw positions) from tensors of `arrays`, in their order."""
        given = iter(tensors)
        verify = None
        if self.verify is not None:
            verify = DecodePart(self.verify.width, *(next(given) for _ in self.verify.arrays()))
        placed = [None if array is None else next(given) for array in self._fields()]
        seeds, tokens, positions, slots, rows, drawn, q_starts, prefill_lens, prefill_tables, lens, tables = placed
        prefill = decode = None
        if q_starts is not None and prefill_lens is not None and prefill_tables is not None:
            prefill = PrefillPart(q_starts, prefill_lens, prefill_tables, self.max_q)
        if lens is not None and tables is not None:
            decode = DecodePart(1, lens, tables)
        assert seeds is not None and tokens is not None and positions is not None  # noqa: PT018
        assert slots is not None and drawn is not None  # noqa: PT018
        return ForwardBatch(tokens, positions, slots, rows, prefill, decode, verify), seeds, drawn

    def uniform(self, width: int) -> Packed | None:
        """The step as a decode step of rows of `width` new tokens each, all drawn from; None where it is no such."""
        if self.q_starts is not None or self.rows is not None:
            return None
        if width == 1:
            return None if self.verify else self
        verify = self.verify
        if self.decode_lens is not None or verify is None or verify.width != width or verify.spread is not None:
            return None
        return replace(self, decode_lens=verify.lens, decode_tables=verify.tables, verify=None)

    def padded(self, rows: int) -> Packed:
        """A decode step with padding behind it, up to so many rows: no context (kv_len 0), no slot (-1)."""
        assert self.decode_lens is not None and self.decode_tables is not None  # noqa: PT018
        known = len(self.decode_lens)
        if rows == known:
            return self

        def pad(values: Array, value: int = 0) -> Array:
            more = (rows - known) * len(values) // known
            return np.concatenate([values, np.full((more, *values.shape[1:]), value, values.dtype)])

        return replace(
            self,
            tokens=pad(self.tokens),
            positions=pad(self.positions),
            slots=pad(self.slots, -1),
            seeds=pad(self.seeds),
            draw_positions=pad(self.draw_positions),
            decode_lens=pad(self.decode_lens),
            decode_tables=pad(self.decode_tables),
        )

    @classmethod
    def idle(cls, rows: int, columns: int, width: int = 1) -> Packed:
        """A decode step of padding rows alone, of `width` tokens each, their tables so wide."""
        zeros = np.zeros(rows * width, np.int32)
        tables = np.zeros((rows, columns), np.int32)
        seeds = np.zeros(rows * width, np.int64)
        return cls(zeros, zeros, zeros - 1, None, seeds, zeros, None, None, None, 0, zeros[:rows], tables)

    def _fields(self) -> tuple[Array | None, ...]:
        return (
            self.seeds,
            self.tokens,
            self.positions,
            self.slots,
            self.rows,
            self.draw_positions,
            self.q_starts,
            self.prefill_lens,
            self.prefill_tables,
            self.decode_lens,
            self.decode_tables,
        )


@dataclass(frozen=True, slots=True)
class DrawRows:
    """What the step's rows of logits draw with, [R] each: the row's token, a seed, the position that it draws for."""

    rows: Ints
    seeds: Ints
    positions: Ints


def pack(
    prefill: BatchPart | None,
    decode: BatchPart | None,
    draws: DrawRows,
    block_tokens: int,
    verify: BatchPart | None = None,
) -> Packed:
    """All parts side by side, prefill first, then decode, then rows of several tokens. `draws.rows` count the tokens of
    all.

    Where these are all tokens, in their order, no rows are picked.
    """
    parts = [part for part in (prefill, decode, verify) if part is not None]
    tokens = np.concatenate([part.tokens for part in parts])
    placed = [_places(part, block_tokens) for part in parts]
    positions, slots = (np.concatenate(arrays) for arrays in zip(*placed, strict=True))
    lens, tables = (None, None) if decode is None else ((decode.pasts + 1).astype(np.int32), decode.tables)
    every = len(draws.rows) == len(tokens) and bool((draws.rows == np.arange(len(tokens))).all())
    seeds, drawn = draws.seeds, draws.positions.astype(np.int32)
    starts = None if prefill is None else np.concatenate([[0], np.cumsum(prefill.counts)]).astype(np.int32)
    return Packed(
        tokens,
        positions.astype(np.int32),
        slots.astype(np.int32),
        None if every else draws.rows.astype(np.int32),
        seeds,
        drawn,
        starts,
        None if prefill is None else (prefill.pasts + prefill.counts).astype(np.int32),
        None if prefill is None else prefill.tables,
        0 if prefill is None else int(prefill.counts.max()),
        lens,
        tables,
        None if verify is None else _verify(verify),
    )


def _verify(part: BatchPart) -> Verify:
    """Rows of several tokens each; the shorter ones begin with queries that repeat their first token's."""
    counts, lens = part.counts, (part.pasts + part.counts).astype(np.int32)
    width = int(counts.max())
    if int(counts.min()) == width:
        return Verify(width, lens, part.tables)
    ends = np.cumsum(counts)[:, None]
    at = ends - width + np.arange(width)
    firsts = ends - counts[:, None]
    kept = np.flatnonzero((at >= firsts).ravel())
    return Verify(width, lens, part.tables, np.maximum(at, firsts).ravel().astype(np.int32), kept.astype(np.int32))


def _places(part: BatchPart, block_tokens: int) -> tuple[Ints, Ints]:
    """(position, slot) of each token."""
    owner = np.repeat(np.arange(len(part.counts)), part.counts)
    firsts = part.pasts + part.counts - np.cumsum(part.counts)
    positions = np.arange(len(owner)) + firsts[owner]
    slots = part.tables[owner, positions // block_tokens].astype(np.int64) * block_tokens + positions % block_tokens
    return positions, np.where(owner < part.real, slots, -1)


class Stage:
    """Brings arrays to the device in one copy, from host memory that a GPU reads by itself (pinned).

    What one `send` gave is good until the next: the caller lets no two steps overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = self._room(4096)

    def send(self, arrays: Sequence[Array], into: Tensor | None = None) -> list[Tensor]:
        """Tensors of the same shapes and types on the device, in memory of their own or, from its start, in `into`.

        Does not wait for the copy. `into` is uint8 [at least `staged_bytes(arrays)`] on the device.
        """
        starts = _starts(arrays)
        if starts[-1] > len(self._host):
            self._host = self._room(2 * starts[-1])
        host = self._host.numpy()
        for at, array in zip(starts, arrays, strict=False):
            host[at : at + array.nbytes].view(array.dtype)[:] = array.ravel()
        source = self._host[: starts[-1]]
        if into is None:
            there = source.to(self._device, non_blocking=True)
        else:
            there = into[: starts[-1]].copy_(source, non_blocking=True)
        return [
            there[at : at + array.nbytes].view(_TORCH_TYPES[array.dtype]).view(array.shape)
            for at, array in zip(starts, arrays, strict=False)
        ]

    def _room(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")


_TORCH_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


def staged_bytes(arrays: Sequence[Array]) -> int:
    return _starts(arrays)[-1]


def _starts(arrays: Sequence[Array]) -> list[int]:
    sizes = (-(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for array in arrays)
    return list(accumulate(sizes, initial=0))
