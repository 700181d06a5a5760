"""The block tables that a step's kernels read, as rows of arrays. It knows neither tokens nor a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.engine.batch import Batch
from sim.engine.request import Request

Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class _Row:
    index: int
    step: int
    seq: int = -1
    blocks: int = 0


class BlockTables:
    """The block tables of running sequences as rows of one array, of which a step reads only what was added.

    Args:
        appends: tables change at their ends alone, but for copies that a batch lists; others are read whole every step.
    """

    def __init__(self, *, appends: bool) -> None:
        self._appends = appends
        self._step = -1
        self._table: Callable[[Request], Sequence[int]] | None = None
        self._blocks = np.zeros((16, 64), np.int32)
        self._rows: dict[Request, _Row] = {}
        self._free = list(range(16))

    @property
    def paged(self) -> bool:
        return self._table is not None

    def begin(self, batch: Batch) -> None:
        self._step, self._table = batch.first_step, batch.table
        if batch.copies:  # blocks within tables may have been exchanged
            for row in self._rows.values():
                row.seq = -1

    def row(self, req: Request) -> int:
        """The number of the row of a request of the batch, brought up to date."""
        assert self._table is not None
        row = self._rows.get(req) or self._open(req)
        table = self._table(req)
        count = len(table)
        known = row.blocks if self._appends and row.seq == req.seat.seq >= 0 else 0
        if known < count:
            if count > self._blocks.shape[1]:
                self._widen(count)
            self._blocks[row.index, known:count] = table[known:]
        if not known:
            self._blocks[row.index, count:] = 0
        row.seq, row.blocks, row.step = req.seat.seq, count, self._step
        return row.index

    def take(self, rows: Sequence[int], columns: int) -> Ints32:
        """[rows, columns]: the first blocks of these rows, 0 behind their ends."""
        if columns > self._blocks.shape[1]:
            self._widen(columns)
        return self._blocks[np.asarray(rows, np.int64), :columns]

    def _open(self, req: Request) -> _Row:
        if not self._free:
            others = [req for req, row in self._rows.items() if row.step != self._step]
            self._free += [self._rows.pop(req).index for req in others]
        if not self._free:
            rows = len(self._blocks)
            self._blocks = np.concatenate([self._blocks, np.zeros_like(self._blocks)])
            self._free += range(rows, 2 * rows)
        row = self._rows[req] = _Row(self._free.pop(), self._step)
        return row

    def _widen(self, columns: int) -> None:
        rows, before = self._blocks.shape
        wider = np.zeros((rows, max(columns, 2 * before)), np.int32)
        wider[:, :before] = self._blocks
        self._blocks = wider


def scratch_tables(lengths: Ints, block_tokens: int) -> Ints32:
    """[S, M]: consecutive blocks from 1 on for sequences of so many tokens, none shared, 0 behind their ends."""
    needed = -(-lengths // block_tokens)
    column = np.arange(int(needed.max()))
    firsts = np.cumsum(needed) - needed + 1
    return np.where(column < needed[:, None], firsts[:, None] + column, 0).astype(np.int32)
