"""What the engine's executor asks of a cost model, and the simplest one. It knows no GPU and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sim.batch import Shape


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of a step's time: seconds, and where they come from."""

    seconds: float
    source: str


class StepCost(Protocol):
    """Seconds of a step as a pure function of its shape."""

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """(device seconds of each repeat, host seconds per step)."""
        ...

    def explain(self, shape: Shape) -> Mapping[str, Term]:
        """The terms of the first repeat by name; the device's add up to `span_s(shape, 1)[0][0]`."""
        ...


@dataclass(frozen=True, slots=True)
class FixedCost:
    """base + per token + per context token, all on the device: for oracles and recorded schedules.

    The context of a slice is all its KV tokens, the new ones included.
    """

    base_s: float
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        tokens, context = shape.decodes, shape.decode_context
        for new, past in shape.prefills:
            tokens += new
            context += new + past
        first = self.base_s + self.per_token_s * tokens
        each, rows = self.per_context_token_s, shape.decodes
        return [first + each * (context + rows * at) for at in range(repeats)], 0.0

    def explain(self, shape: Shape) -> Mapping[str, Term]:
        return {"fixed": Term(self.span_s(shape, 1)[0][0], "roofline")}
