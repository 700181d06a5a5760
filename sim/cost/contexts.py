"""Decode attention along the contexts of its rows, equal ones and unequal ones. It knows no table."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.cost.interpolation import INTERPOLATED, Line, Price
from sim.cost.splits import Tail, two_lengths
from sim.cost.tables import Floats
from sim.engine.batch import Shape
from sim.engine.lockstep import Lengths

# From these lengths on numpy beats a list comprehension, where contexts are even and where they are not; both give the
# same bits.
_VECTOR_SPAN, _UNEVEN_VECTOR_SPAN = 64, 12


class ContextCost:
    """Decode attention of so many rows by the sum of their contexts.

    `line` is for rows that are alike. Uneven ones cost, where the kernel's rule is known, at least its `tail`; else
    `uneven` of the way from rows of their mean to rows that are all as long as the longest: 0 for kernels that share
    work out evenly, 1 for those that pad.
    """

    __slots__ = ("line", "tail", "uneven")

    def __init__(self, line: Line, uneven: float = 0.0, tail: Tail | None = None) -> None:
        self.line = line
        self.uneven = uneven
        self.tail = tail

    def at(self, context: int, longest: int, lengths: Lengths = (), step: int = 0) -> float:
        """Seconds where contexts add up to `context`, and would to `longest` were all as the longest; 0: unknown.

        `lengths` are those of a span of which this is step number `step`.
        """
        line, uneven, tail = self.line, self.uneven, self.tail
        seconds = line.at(context)
        if longest <= context:
            return seconds
        if tail is not None:
            tail_s = tail.at(context, lengths, step) if lengths else 0.0
            return tail_s if tail_s > seconds else seconds
        return seconds + uneven * (line.at(longest) - seconds) if uneven else seconds

    def along(self, contexts: Floats, longest: Floats, lengths: Lengths = (), steps: Any = None) -> Floats:
        """The same of a span's steps, bit for bit."""
        seconds = self.line.along(contexts)
        if not longest[-1]:
            return seconds
        if self.tail is not None:
            if not lengths:
                return seconds
            tails_s = np.where(longest > contexts, self.tail.along(contexts, lengths, steps), 0.0)
            both: Floats = np.maximum(seconds, tails_s)
            return both
        if not self.uneven:
            return seconds
        # Once all rows fill their window both sums are alike, and the longest must not become the lesser.
        return seconds + self.uneven * (self.line.along(np.maximum(longest, contexts)) - seconds)

    def price(self, context: int, longest: int, lengths: Lengths = ()) -> Price:
        """The same with its source."""
        ranks = [self.line.rank(context)]
        if longest > context and self.tail is not None:
            ranks.append(INTERPOLATED)
        elif longest > context and self.uneven:
            ranks.append(max(self.line.rank(longest), INTERPOLATED))
        return Price(self.at(context, longest, lengths), max(ranks))

    def span_s(self, shape: Shape, repeats: int, fixed_s: float, least_s: float) -> list[float]:
        """Seconds of each of a span's steps: `fixed_s` and attention, at least `least_s`."""
        line, uneven, tail = self.line, self.uneven, self.tail
        decodes, context = shape[1], shape[2]
        last = context + decodes * (repeats - 1)
        start, value, slope, end = line.piece(context)
        longest, even = 0, True
        if uneven or tail is not None:
            longest = shape.decode_longest * decodes
            even = longest <= context
            if not even and tail is not None and last < end:
                first_s, last_s = value + slope * (context - start), value + slope * (last - start)
                even = tail.is_hidden(context, decodes, shape.decode_longest, repeats - 1, first_s, last_s)
        if even and last < end:
            if repeats < _VECTOR_SPAN:
                steps_s = [fixed_s + (value + slope * (tokens - start)) for tokens in range(context, last + 1, decodes)]
                return steps_s if steps_s[0] > least_s else [max(step_s, least_s) for step_s in steps_s]
            straight = fixed_s + (value + slope * (np.arange(context, last + 1, decodes) - start))
            straight_s: list[float] = np.maximum(straight, least_s).tolist()
            return straight_s
        lengths = self.lengths(shape) if tail is not None else ()
        if not even and last < end and repeats < _VECTOR_SPAN:
            contexts = range(context, last + 1, decodes)
            if tail is not None and lengths:
                floor_s, token_s = tail.floor_s, tail.token_s
                steps_s = [
                    fixed_s
                    + (
                        tail_s
                        if (tail_s := floor_s + token_s * (tokens + idle))
                        > (here_s := value + slope * (tokens - start))
                        else here_s
                    )
                    for tokens, idle in zip(contexts, tail.cut.idle_each(lengths, 0, repeats), strict=True)
                ]
                return steps_s if min(steps_s) > least_s else [max(step_s, least_s) for step_s in steps_s]
            more = longest - context
            far_start, far_value, far_slope, far_end = line.piece(longest)
            if tail is not None:
                steps_s = [fixed_s + (value + slope * (tokens - start)) for tokens in contexts]
            elif last + more < far_end:
                steps_s = [
                    fixed_s
                    + (
                        (here_s := value + slope * (tokens - start))
                        + uneven * (far_value + far_slope * (tokens + more - far_start) - here_s)
                    )
                    for tokens in contexts
                ]
            else:
                steps_s = [
                    fixed_s
                    + ((here_s := value + slope * (tokens - start)) + uneven * (line.at(tokens + more) - here_s))
                    for tokens in contexts
                ]
            return steps_s if min(steps_s) >= least_s else [max(step_s, least_s) for step_s in steps_s]
        if repeats < _UNEVEN_VECTOR_SPAN:
            bent_s = [
                fixed_s + self.at(context + decodes * i, longest + decodes * i if longest else 0, lengths, i)
                for i in range(repeats)
            ]
            return [step_s if step_s > least_s else least_s for step_s in bent_s]
        steps = np.arange(repeats)
        grown = (decodes * steps).astype(np.float64)
        seconds = fixed_s + self.along(context + grown, longest + grown if longest else 0 * grown, lengths, steps)
        times_s: list[float] = np.maximum(seconds, least_s).tolist()
        return times_s

    def lengths(self, shape: Shape) -> Lengths:
        """The rows' contexts as the shape tells them, or as its sum and its longest do; none where nobody asks."""
        if self.tail is None or not shape.decode_longest:
            return ()
        return shape.decode_lengths or two_lengths(shape.decodes, shape.decode_context, shape.decode_longest)
