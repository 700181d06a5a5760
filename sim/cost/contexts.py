"""Decode attention along contexts: of one step, and of the steps of a span bit for bit alike. It knows no tables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.cost.interpolate import INTERPOLATED, Line, Price
from sim.cost.tables import Floats
from sim.engine.batch import Shape

# From these lengths on numpy beats a list comprehension, where contexts are even and where they are not; both give the
# same bits.
_VECTOR_SPAN, _UNEVEN_VECTOR_SPAN = 64, 12


class ContextCost(NamedTuple):
    """Decode attention of so many rows by the sum of their contexts.

    `line` is for rows that are alike. Uneven ones cost `uneven` of the way from rows of their mean to rows that are
    all as long as the longest: 0 for kernels that share work out evenly, 1 for those that pad.
    """

    line: Line
    uneven: float

    def at(self, context: int, longest: int) -> float:
        """Seconds where contexts add up to `context`, and would to `longest` were all as the longest; 0: unknown."""
        seconds = self.line.at(context)
        if longest <= context or not self.uneven:
            return seconds
        return seconds + self.uneven * (self.line.at(longest) - seconds)

    def along(self, contexts: Floats, longest: Floats) -> Floats:
        """The same of a span's steps, bit for bit."""
        seconds = self.line.along(contexts)
        if not self.uneven or not longest[-1]:
            return seconds
        # Once all rows fill their window both sums are alike, and the longest must not become the lesser.
        return seconds + self.uneven * (self.line.along(np.maximum(longest, contexts)) - seconds)

    def price(self, context: int, longest: int) -> Price:
        """The same with its source."""
        ranks = [self.line.rank(context)]
        if longest > context and self.uneven:
            ranks.append(max(self.line.rank(longest), INTERPOLATED))
        return Price(self.at(context, longest), max(ranks))

    def span_s(self, shape: Shape, repeats: int, fixed_s: float, least_s: float) -> list[float]:
        """Seconds of each of a span's steps: `fixed_s` and attention, at least `least_s`."""
        decodes, context, longest = shape.decodes, shape.decode_context, shape.decode_longest * shape.decodes
        last = context + decodes * (repeats - 1)
        start, value, slope, end = self.line.piece(context)
        even = longest <= context or not self.uneven
        if even and last < end and repeats < _VECTOR_SPAN:
            steps_s = [fixed_s + (value + slope * (tokens - start)) for tokens in range(context, last + 1, decodes)]
            return steps_s if steps_s[0] > least_s else [max(step_s, least_s) for step_s in steps_s]
        if repeats < _UNEVEN_VECTOR_SPAN:
            grown = range(0, decodes * repeats, decodes)
            bent_s = [fixed_s + self.at(context + more, longest + more if longest else 0) for more in grown]
            return [step_s if step_s > least_s else least_s for step_s in bent_s]
        steps = decodes * np.arange(repeats, dtype=np.float64)
        seconds = fixed_s + self.along(context + steps, longest + steps if longest else 0 * steps)
        times_s: list[float] = np.maximum(seconds, least_s).tolist()
        return times_s
