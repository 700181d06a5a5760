"""Of two replicas drawn at random the one with fewer unfinished requests, the first drawn among equals.

Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (IEEE TPDS 2001).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot


class PowerOfTwo:
    def __init__(self, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 0x74776F])  # apart from what else is drawn from such a seed

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        first = int(self._rng.integers(len(replicas)))
        second = int(self._rng.integers(len(replicas) - 1))
        one, other = replicas[first], replicas[second + (second >= first)]
        return other if other.outstanding < one.outstanding else one
