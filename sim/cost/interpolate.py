"""Between and beyond measured points: nested interpolation on ragged grids, and which form of it is best.

A point that was measured has its own value. Between points the price is interpolated, axis by axis from the last one
outwards, in one of the `FORMS`. Outside the grid the efficiency at its edge is held: the price is the edge's, times
what a `guide` (the operation's roofline) says for the point over what it says for the edge. It knows no operation.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from sim.cost.tables import Floats

Point: TypeAlias = tuple[float, ...]
Guide: TypeAlias = Callable[[Point], float]

SOURCES = ("measured", "interpolated", "derived", "extrapolated", "roofline")
"""From the best to the worst; what is made of several is as good as the worst of them."""
MEASURED, INTERPOLATED, DERIVED, EXTRAPOLATED, ROOFLINE = range(len(SOURCES))

FORMS = ("linear", "sqrt", "efficiency")
"""Seconds linear along the axis; their square root linear (quadratic growth, as prefill attention has it); or their
ratio to the guide linear."""


class Price(NamedTuple):
    """Seconds and, as an index into `SOURCES`, where they are from."""

    seconds: float
    rank: int

    @property
    def source(self) -> str:
        """The name of the source."""
        return SOURCES[self.rank]


class Grid:
    """Seconds on a grid that may have holes: along each axis, what was measured there differs from line to line."""

    __slots__ = ("_children", "_form", "_innermost", "_values")

    def __init__(self, points: Mapping[Point, Price], forms: Sequence[str]) -> None:
        """`points` all have as many coordinates as there are forms; the first is the outermost axis.

        Raises ValueError for no points.
        """
        if not points:
            raise ValueError("a grid needs a point")
        self._form = forms[0]
        parts: dict[float, dict[Point, Price]] = {}
        for point, price in points.items():
            parts.setdefault(point[0], {})[point[1:]] = price
        self._values = sorted(parts)
        self._innermost = len(forms) == 1
        self._children: list[Grid | Price] = [
            Grid(parts[value], forms[1:]) if len(forms) > 1 else parts[value][()] for value in self._values
        ]

    def at(self, point: Point, guide: Guide) -> Price:
        """The price at a point, which has one coordinate per axis."""
        return Price(*self._at((), point, guide))

    def _at(self, outer: Point, point: Point, guide: Guide) -> tuple[float, int]:
        x, values = point[0], self._values
        above = bisect_left(values, x)
        last = len(values)
        if above < last and values[above] == x:
            return self._child(above, outer, point, guide)
        if 0 < above < last:
            return self._between(above, outer, point, guide)
        edge = min(above, last - 1)
        seconds, rank = self._child(edge, outer, point, guide)
        known = guide((*outer, values[edge], *point[1:]))
        return seconds * (guide((*outer, *point)) / known), max(rank, EXTRAPOLATED)

    def _between(self, above: int, outer: Point, point: Point, guide: Guide) -> tuple[float, int]:
        left, right = self._values[above - 1], self._values[above]
        low, low_rank = self._child(above - 1, outer, point, guide)
        high, high_rank = self._child(above, outer, point, guide)
        share = (point[0] - left) / (right - left)
        if self._form == "linear":  # the most frequent by far, and as `blend` has it
            seconds = low + (high - low) * share
        else:
            rest = point[1:]
            seconds = blend(
                self._form,
                share,
                (low, high),
                lambda: (guide((*outer, left, *rest)), guide((*outer, *point)), guide((*outer, right, *rest))),
            )
        return seconds, max(low_rank, high_rank, INTERPOLATED)

    def _child(self, at: int, outer: Point, point: Point, guide: Guide) -> tuple[float, int]:
        child = self._children[at]
        if self._innermost:
            return child  # type: ignore[return-value]
        return child._at((*outer, self._values[at]), point[1:], guide)  # type: ignore[union-attr]

    def last_values(self, outer: Point) -> list[float]:
        """Where the innermost lines around these outer coordinates have points, sorted."""
        if len(outer) == 0:
            return self._values
        above = bisect_left(self._values, outer[0])
        beside = {min(above, len(self._values) - 1)}
        if above == len(self._values) or self._values[above] != outer[0]:
            beside.add(max(0, above - 1))
        found: set[float] = set()
        for at in beside:
            child = self._children[at]
            assert isinstance(child, Grid)
            found.update(child.last_values(outer[1:]))
        return sorted(found)

    def reach(self) -> list[tuple[float, float]]:
        """(least, greatest) coordinate measured on each axis."""
        own = (self._values[0], self._values[-1])
        inner = [child.reach() for child in self._children if isinstance(child, Grid)]
        return [own, *((min(one[0] for one in axis), max(one[1] for one in axis)) for axis in zip(*inner, strict=True))]


def blend(
    form: str, share: float, ends: tuple[float, float], guides: Callable[[], tuple[float, float, float]]
) -> float:
    """Seconds `share` of the way between two points; `guides` gives the guide's at left end, point and right end."""
    low, high = ends
    if form == "linear":
        return low + (high - low) * share
    if form == "sqrt":
        root = math.sqrt(low)
        return (root + (math.sqrt(high) - root) * share) ** 2
    if form == "efficiency":
        left, here, right = guides()
        return here * (low / left + (high / right - low / left) * share)
    raise ValueError(f"unknown form {form!r}; known are {', '.join(FORMS)}")


class Line:
    """Seconds as straight pieces over whole numbers, the last one endless.

    One number and an array of them give the same bits, so that a span of steps costs what its steps cost.
    """

    __slots__ = ("_ranks", "_slopes", "_starts", "_values", "_vectors")

    def __init__(self, points: Sequence[tuple[float, Price]], last_slope: float) -> None:
        """`points` rise in their first coordinate; beyond the last the seconds grow by `last_slope` per one."""
        self._starts = [x for x, _ in points]
        self._values = [price.seconds for _, price in points]
        self._slopes = [
            (there.seconds - here.seconds) / (right - left) for (left, here), (right, there) in pairwise(points)
        ] + [last_slope]
        self._ranks = [price.rank for _, price in points]
        self._vectors = tuple(np.array(part) for part in (self._starts, self._values, self._slopes))

    def piece(self, x: int) -> tuple[float, float, float, float]:
        """(start, seconds there, slope, where the next begins) of the piece at `x`, at least the first start."""
        at = bisect_right(self._starts, x) - 1
        end = self._starts[at + 1] if at + 1 < len(self._starts) else math.inf
        return self._starts[at], self._values[at], self._slopes[at], end

    def at(self, x: int) -> float:
        """Seconds at `x`."""
        start, value, slope, _ = self.piece(x)
        return value + slope * (x - start)

    def along(self, xs: Floats) -> Floats:
        """Seconds at each of `xs`."""
        starts, values, slopes = self._vectors
        at = np.searchsorted(starts, xs, side="right") - 1
        found: Floats = values[at] + slopes[at] * (xs - starts[at])
        return found

    def rank(self, x: int) -> int:
        """Where the seconds at `x` are from."""
        at = bisect_right(self._starts, x) - 1
        if self._starts[at] == x:
            return self._ranks[at]
        if at + 1 == len(self._starts):
            return max(self._ranks[at], EXTRAPOLATED)
        return max(self._ranks[at], self._ranks[at + 1], INTERPOLATED)


def best_forms(points: Mapping[Point, float], guide: Guide, kept: Mapping[int, str] | None = None) -> list[str]:
    """Of each axis the form with the least leave-one-out error, "linear" where nothing can be left out.

    `kept` fixes the form of some axes.
    """
    axes = len(next(iter(points)))
    chosen = []
    for axis in range(axes):
        if kept and axis in kept:
            chosen.append(kept[axis])
            continue
        errors = {form: [abs(error) for _, error in left_out(points, guide, axis, form)] for form in FORMS}
        chosen.append(min(FORMS, key=lambda form: (sum(errors[form]), FORMS.index(form))))
    return chosen


def left_out(points: Mapping[Point, float], guide: Guide, axis: int, form: str) -> Iterator[tuple[Point, float]]:
    """(point, relative error) of each that lies between two others along the axis, predicted from those two."""
    lines: dict[Point, list[float]] = {}
    for point in points:
        lines.setdefault(point[:axis] + point[axis + 1 :], []).append(point[axis])
    for rest, values in lines.items():
        values.sort()
        for left, here, right in zip(values, values[1:], values[2:], strict=False):
            three = [(*rest[:axis], value, *rest[axis:]) for value in (left, here, right)]
            ends = points[three[0]], points[three[2]]
            told = tuple(guide(point) for point in three)
            seconds = blend(form, (here - left) / (right - left), ends, lambda told=told: told)  # type: ignore[misc]
            yield three[1], seconds / points[three[1]] - 1.0
