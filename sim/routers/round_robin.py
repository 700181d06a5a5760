"""Replicas in turn, whatever their load."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.serving.snapshot import Snapshot


class RoundRobin:
    def __init__(self) -> None:
        self._sent = 0

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        self._sent += 1
        return replicas[(self._sent - 1) % len(replicas)]
