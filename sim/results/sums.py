"""Sums of many numbers that come to the same bit on any number of cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# The most products that OpenBLAS sums in one thread. More are shared out among threads: their sum then depends on how
# many there are, and waiting for one another takes a hundred times as long as the sum.
_BLOCK = 10_000


def dot(values: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
    """The sum of the products, (n,) and (n,)."""
    blocks = range(0, len(values), _BLOCK)
    return sum((float(np.dot(values[at : at + _BLOCK], weights[at : at + _BLOCK])) for at in blocks), 0.0)
