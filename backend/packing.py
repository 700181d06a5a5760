"""From the engine's batch and the allocator's tables to the tensors of one forward pass. It launches nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from backend.model import DecodePart, ForwardBatch, PrefillPart

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slice:
    """`tokens` new ids of one sequence on top of `past` computed ones; `table` are its blocks in token order.

    A padding slice has no table: what it computes is kept nowhere and attends the null block.
    """

    tokens: Ints
    past: int
    table: npt.NDArray[np.int32]
    padding: bool = False


@dataclass(frozen=True, slots=True)
class Packer:
    """Lays slices out as `ForwardBatch`: prefill slices first, each part's block tables padded with the null block."""

    block_tokens: int
    device: torch.device

    def pack(self, prefills: list[Slice], decodes: list[Slice], rows: Ints) -> ForwardBatch:
        """`rows` are the tokens, counted over all slices in their order, whose logits are wanted."""
        slices = [*prefills, *decodes]
        counts = np.array([len(one.tokens) for one in slices], np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        positions = np.concatenate([np.arange(one.past, one.past + len(one.tokens)) for one in slices])
        prefill = decode = None
        if prefills:
            prefill = PrefillPart(
                self._int32(starts[: len(prefills) + 1]),
                self._int32(np.array([one.past + len(one.tokens) for one in prefills])),
                self._tables(prefills),
                int(counts[: len(prefills)].max()),
            )
        if decodes:
            lengths = np.array([one.past + len(one.tokens) for one in decodes])
            decode = DecodePart(int(counts[-1]), self._int32(lengths), self._tables(decodes))
        return ForwardBatch(
            self._int64(np.concatenate([one.tokens for one in slices])),
            self._int64(positions),
            self._int32(np.concatenate([self._slots(one) for one in slices])),
            self._int64(rows),
            prefill,
            decode,
        )

    def _slots(self, one: Slice) -> Ints:
        if one.padding:
            return np.full(len(one.tokens), -1)
        at = np.arange(one.past, one.past + len(one.tokens))
        return one.table[at // self.block_tokens].astype(np.int64) * self.block_tokens + at % self.block_tokens

    def _tables(self, slices: list[Slice]) -> torch.Tensor:
        widest = max(-(-(one.past + len(one.tokens)) // self.block_tokens) for one in slices)
        tables = np.zeros((len(slices), widest), np.int32)
        for row, one in zip(tables, slices, strict=True):
            used = min(len(one.table), widest)
            row[:used] = one.table[:used]
        return torch.from_numpy(tables).to(self.device, non_blocking=True)

    def _int32(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(self.device, non_blocking=True)

    def _int64(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device, non_blocking=True)
