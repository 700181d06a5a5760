"""A column of numbers that grows for as long as a run lasts, and takes no more memory than its numbers."""

from __future__ import annotations

from mmap import mmap

import numpy as np
import numpy.typing as npt

_FIRST_BYTES = 1 << 18


class Growing:
    """Floats that are added behind those there are.

    They lie in pages of their own, of which twice as many are asked for whenever they are full: pages that nothing was
    written to are none. An array in the heap would move at every sixteenth more, and where many grow by turns leave as
    much behind in holes as they hold.
    """

    __slots__ = ("_count", "_memory")

    def __init__(self) -> None:
        self._memory: mmap | None = None
        self._count = 0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Add these, (n,)."""
        count = self._count + len(values)
        if not len(values):
            return
        if self._memory is None or 8 * count > len(self._memory):
            whole = self.whole()
            self._memory = mmap(-1, max(16 * count, _FIRST_BYTES))
            np.frombuffer(self._memory, np.float64, len(whole))[:] = whole
        np.frombuffer(self._memory, np.float64, len(values), 8 * self._count)[:] = values
        self._count = count

    def whole(self) -> npt.NDArray[np.float64]:
        """All of them so far, (n,), where they lie."""
        if self._memory is None:
            return np.empty(0)
        return np.frombuffer(self._memory, np.float64, self._count)
