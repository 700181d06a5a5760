"""The spans that a run records for what is told of them afterwards, most as a few numbers. It prices nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np

from sim.engine.batch import DECODES_ONLY, Shape, shape_of, verifying

Span = tuple[int, Shape, int]
"""(row of the steps table, shape, repeats)."""


class RecordedSpans(Sequence[Span]):
    """Spans in the order in which they were recorded.

    A tuple for each would take some 350 bytes, for as long as the run lasts: more than all else that is kept of a span.

    Attributes:
        packed: four numbers of each: row, repeats, and of decode rows alone how many and their context; else -1 and the
            place among `others`. Of one step of rows that verify drafts, the place as a number below 1 stands for the
            repeats, before what differs from the shape there (`sim.engine.batch.verifying`).
        others: the shapes of the others.
    """

    __slots__ = ("others", "packed")

    def __init__(self) -> None:
        self.packed = array("q")
        self.others: list[Shape] = []

    def __len__(self) -> int:
        return len(self.packed) // 4

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> list[Span]: ...
    def __getitem__(self, index: int | slice) -> Span | list[Span]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def _at(self, place: int) -> Span:
        row, repeats, decodes, context = self.packed[4 * place : 4 * place + 4]
        if repeats < 1:
            return row, verifying(self.others[-repeats], decodes, context), 1
        if decodes < 0:
            return row, self.others[context], repeats
        return row, shape_of(((), decodes, context, *DECODES_ONLY)), repeats

    def thin(self) -> None:
        """Drop every second, the first of them stays."""
        rest = np.frombuffer(self.packed, np.int64).reshape(-1, 4)[::2].copy()
        _, repeats, decodes, context = rest.T
        along = repeats < 1
        apart = ~along & (decodes < 0)
        kept, places = np.unique(np.concatenate([-repeats[along], context[apart]]), return_inverse=True)
        repeats[along], context[apart] = np.split(places, [np.count_nonzero(along)])
        repeats[along] *= -1
        self.others[:] = [self.others[place] for place in kept.tolist()]
        del self.packed[:]
        self.packed.frombytes(rest.tobytes())
