"""A replica drawn at random for each request, whatever their load; `seed` says which draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot


class Random:
    """Splits a Poisson stream into independent Poisson streams, so that each replica is a queue of its own."""

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 0x726F757465])  # apart from what else is drawn from such a seed

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return replicas[int(self._rng.integers(len(replicas)))]
