"""The simplest price: a step costs so much, and each of its tokens.

Not compiled (`setup.py`): dataclasses with slots inherit from it, which mypyc's classes do not let them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.cost.step import Constant, Term, shape_context, shape_tokens
from sim.engine.batch import Shape
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class FixedCost:
    """`base_s` a step, plus `per_token_s` a token and `per_context_token_s` a token attended: for oracles and tests.

    A slice attends its past and its new tokens. The host costs nothing. With whole numbers (a virtual clock that
    counts nanoseconds) every result is exact. A step that computes nothing costs nothing.
    """

    base_s: float
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("base_s", "per_token_s", "per_context_token_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} = {getattr(self, name)} must be finite and not negative")

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        tokens = shape_tokens(shape)
        if tokens == 0:
            return [0.0] * repeats, 0.0
        fixed = self.base_s + self.per_token_s * tokens
        context, slope = shape_context(shape), self.per_context_token_s
        return [fixed + slope * (context + i * shape.decodes) for i in range(repeats)], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        tokens = shape_tokens(shape)
        return {
            "step": Term(self.base_s if tokens else 0.0, "fixed"),
            "tokens": Term(self.per_token_s * tokens, "fixed"),
            "context": Term(self.per_context_token_s * shape_context(shape) if tokens else 0.0, "fixed"),
        }

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        names = ("base_s", "per_token_s", "per_context_token_s")
        return [Constant(name, getattr(self, name), "given") for name in names]
