"""The contract between whoever prices a step and whoever runs it, and the simplest price. It knows no hardware."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, Protocol

from sim.engine.batch import Courses, Shape
from sim.engine.lockstep import Lengths

MEMO_SIZE = 65_536
"""Cost models remember prices of so many different sizes; beyond, they are computed anew."""


class Term(NamedTuple):
    """A named part of a step's cost. Terms on the host may overlap the device's and are no part of its sum."""

    seconds: float
    source: str
    on_host: bool = False


class Constant(NamedTuple):
    """A number that prices depend on, and where it is from."""

    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class HostGap:
    """Seconds between steps in which the device waits for the host though scheduling is asynchronous: `step_s`, and
    `row_s` for each row of logits."""

    step_s: float = 0.0
    row_s: float = 0.0

    def of(self, shape: Shape) -> float:
        """Seconds after a step of this shape; none after one that samples nothing."""
        prefills, rows, _, _, _, _, _, verifies = shape[:8]
        if verifies:
            rows = shape_rows(shape)
        elif prefills:
            rows += len(prefills)
        return self.step_s + self.row_s * rows if rows else 0.0


HIDDEN = HostGap()
"""All of the host's time is hidden that the device outlasts."""


class StepCost(Protocol):
    """A pure function of a step's shape: the same shape costs the same, whatever was asked before."""

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """Device seconds of each of `repeats` steps, and host seconds per step.

        Step i costs exactly, to the bit, what `advanced(shape, i)` costs.
        """
        ...

    def explain(self, shape: Shape) -> dict[str, Term]:
        """The parts by name; those on the device sum to `span_s(shape, 1)[0][0]`."""
        ...

    def describe(self) -> list[Constant]:
        """Every constant that the prices rest on, with its source."""
        ...


def advanced(shape: Shape, steps: int) -> Shape:
    """The shape of a span's step number `steps`, counted from 0: every decode row attends so many tokens more, those
    whose window is full the same number."""
    return shape._replace(
        decode_context=shape.decode_context + steps * shape.decodes,
        decode_window_context=shape.decode_window_context + steps * shape.decode_window_growth,
        decode_longest=shape.decode_longest + steps if shape.decode_longest else 0,
        decode_lengths=_advanced_lengths(shape.decode_lengths, steps),
    )


def _advanced_lengths(lengths: Lengths, steps: int) -> Lengths:
    later = list(lengths)
    for at in range(0, len(later), 2):
        later[at + 1] += steps * later[at]
    return tuple(later)


def shape_tokens(shape: Shape) -> int:
    """Tokens that the step computes."""
    prefills, tokens, _, _, _, _, _, verifies = shape[:8]
    for new, _ in prefills:
        tokens += new
    for new, rows, _, _ in verifies:
        tokens += new * rows
    return tokens


def shape_rows(shape: Shape) -> int:
    """Rows of logits that the step computes: one for each slice, and one for each token of those that verify drafts."""
    rows = len(shape.prefills) + shape.decodes
    return rows + sum([tokens * each for tokens, each, _, _ in shape.verifies]) if shape.verifies else rows


def shape_context(shape: Shape) -> int:
    """KV tokens attended, new ones included, summed over the slices and rows of the first repeat."""
    verified = sum([tokens * rows + past for tokens, rows, past, _ in shape.verifies])
    return shape.decode_context + sum([new + past for new, past in shape.prefills]) + verified


def device_seconds(terms: Iterable[Term]) -> float:
    """Sum of the terms that run on the device."""
    return math.fsum(term.seconds for term in terms if not term.on_host)


def at_least(rising: list[float], least: float) -> list[float]:
    """Numbers that do not fall, each at least so great."""
    return rising if rising[0] >= least else [max(one, least) for one in rising]


def course_s(cost: StepCost, courses: Courses) -> tuple[list[float], float]:
    """Device seconds of steps that follow one another, and host seconds of each.

    Steps from the first one on whose host seconds are others are left out. A cost may have a quicker way, of the same
    seconds.
    """
    quick = getattr(cost, "course_s", None)
    if quick is not None:
        priced: tuple[list[float], float] = quick(courses)
        return priced
    return each_course_s(cost, courses)


def each_course_s(cost: StepCost, courses: Courses) -> tuple[list[float], float]:
    """As `course_s`, each step priced by itself."""
    each = [cost.span_s(courses.shape(step), 1) for step in range(len(courses.pasts))]
    host_s = each[0][1]
    return [device[0] for device, _ in takewhile(lambda one: one[1] == host_s, each)], host_s
