"""Replicas that are alike: a run is a list of pools, of which there is one today."""

from __future__ import annotations

from dataclasses import dataclass

from sim.engine.protocol import ServingEngine
from sim.serving.assemble import Parts


@dataclass(frozen=True, slots=True)
class Pool:
    """`count` replicas of the same parts, whose `role` is "both": they serve requests from the prompt to the end."""

    parts: Parts
    count: int
    role: str = "both"

    def engines(self, *, spans: bool) -> list[ServingEngine]:
        """A fresh engine for each replica."""
        return [self.parts.engine(spans=spans) for _ in range(self.count)]
