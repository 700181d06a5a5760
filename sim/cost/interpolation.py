"""Between and beyond measured points: nested interpolation on ragged grids, and straight pieces over whole numbers.

A point that was measured has its own value. Between points the price is interpolated, axis by axis from the last one
outwards, in one of the `FORMS`. Outside the grid the efficiency at its edge is held: the price is the edge's, times
what a `guide` (the operation's roofline) says for the point over what it says for the edge.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import NamedTuple, TypeAlias

import numpy as np

from sim.cost.tables import Floats

Point: TypeAlias = tuple[float, ...]
Guide: TypeAlias = Callable[[Point], float]
Curve: TypeAlias = Callable[[float], float]

SOURCES = ("measured", "interpolated", "fitted", "derived", "extrapolated", "roofline")
"""From the best to the worst; what is made of several is as good as the worst of them. `fitted` is a form whose
constants were fitted to tables measured on this card."""
MEASURED, INTERPOLATED, FITTED, DERIVED, EXTRAPOLATED, ROOFLINE = range(len(SOURCES))

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


price_of = partial(tuple.__new__, Price)
"""A price from (seconds, rank); without the Python frame of a NamedTuple's own constructor."""


class PriceGrid:
    """Seconds on a grid that may have holes: along each axis, what was measured there differs from line to line."""

    __slots__ = ("_root",)

    def __init__(self, points: Mapping[Point, Price], forms: Sequence[str]) -> None:
        """`points` all have as many coordinates as there are forms; the first is the outermost axis.

        Raises ValueError for no points, and for an unknown form.
        """
        if not points or not set(forms) <= set(FORMS):
            raise ValueError(f"a grid needs a point, and of each axis one of {', '.join(FORMS)}")
        self._root = _axis(points, forms, ())

    def at(self, point: Point, guide: Guide) -> Price:
        """The price at a point, which has one coordinate per axis."""
        return price_of(self._root.at(point, guide))

    def last_values(self, outer: Point) -> list[float]:
        """Where the innermost lines around these outer coordinates have points, sorted."""
        return self._root.last_values(outer)


class _Axis:
    """An axis of a grid and all behind it: sorted values, and what stands at each; `before` are those of the axes
    before, at which it stands.

    Most of what pricing steps costs is spent in `at`: one call for each line that the point lies between, no more, and
    the two frequent forms written out.
    """

    __slots__ = ("axis", "before", "children", "form", "values")

    def __init__(self, points: Mapping[Point, Price], forms: Sequence[str], before: Point) -> None:
        parts: dict[float, dict[Point, Price]] = {}
        for point, price in points.items():
            parts.setdefault(point[0], {})[point[1:]] = price
        self.form, self.values = forms[0], sorted(parts)
        self.axis, self.before = len(before), before
        self.children = [_axis(parts[value], forms[1:], (*before, value)) for value in self.values]

    def at(self, point: Point, guide: Guide) -> tuple[float, int]:
        """(seconds, rank) along this and the further axes."""
        x, values, children = point[self.axis], self.values, self.children
        above, last = bisect_left(values, x), len(values)
        if above < last and (right := values[above]) == x:
            return children[above].at(point, guide)
        if 0 < above < last:
            left = values[above - 1]
            low, low_rank = children[above - 1].at(point, guide)
            high, high_rank = children[above].at(point, guide)
            if self.form == "linear":
                seconds = low + (high - low) * ((x - left) / (right - left))
            elif self.form == "sqrt":
                root = sqrt(low)
                seconds = (root + (sqrt(high) - root) * ((x - left) / (right - left))) ** 2
            else:
                curve = _along(self.axis, self.before, point, guide)
                seconds = _by_guide((left, right), (low, high), x, curve)
            rank = low_rank if low_rank > high_rank else high_rank
            return seconds, rank if rank > INTERPOLATED else INTERPOLATED
        edge = min(above, last - 1)
        seconds, rank = children[edge].at(point, guide)
        curve = _along(self.axis, self.before, point, guide)
        return seconds * (curve(x) / curve(values[edge])), max(rank, EXTRAPOLATED)

    def last_values(self, outer: Point) -> list[float]:
        """As `PriceGrid.last_values`."""
        above = bisect_left(self.values, outer[0])
        beside = {min(above, len(self.values) - 1)}
        if above == len(self.values) or self.values[above] != outer[0]:
            beside.add(max(0, above - 1))
        return sorted({value for at in beside for value in self.children[at].last_values(outer[1:])})


class _LastAxis:
    """The innermost axis, whose points have prices; of tens of thousands only numbers are kept."""

    __slots__ = ("axis", "before", "form", "pieces", "ranks", "seconds", "values")

    def __init__(self, points: Mapping[Point, Price], forms: Sequence[str], before: Point) -> None:
        self.form, self.values = forms[0], sorted(value for (value,) in points)
        self.axis, self.before = len(before), before
        prices = [points[value,] for value in self.values]
        self.seconds = [seconds for seconds, _ in prices]
        self.ranks = [rank for _, rank in prices]
        self.pieces: list[tuple[float, float, float, float, int]] = []
        """Of each piece between two values (where it begins, its width, what stands there, the rise to its end, rank);
        made when first asked for, since most lines of a great grid never are."""

    def at(self, point: Point, guide: Guide) -> tuple[float, int]:
        """As `_Axis.at`."""
        x, values = point[self.axis], self.values
        above, last = bisect_left(values, x), len(values)
        if above < last and values[above] == x:
            return self.seconds[above], self.ranks[above]
        if 0 < above < last:
            left, width, start, rise, rank = (self.pieces or self._made())[above - 1]
            if self.form == "sqrt":
                return (start + rise * ((x - left) / width)) ** 2, rank
            if self.form == "linear":
                return start + rise * ((x - left) / width), rank
            ends = self.seconds[above - 1], self.seconds[above]
            curve = _along(self.axis, self.before, point, guide)
            return _by_guide((left, values[above]), ends, x, curve), rank
        edge = min(above, last - 1)
        ratio = guide((*self.before, x)) / guide((*self.before, values[edge]))
        return self.seconds[edge] * ratio, max(self.ranks[edge], EXTRAPOLATED)

    def _made(self) -> list[tuple[float, float, float, float, int]]:
        heights = [sqrt(seconds) for seconds in self.seconds] if self.form == "sqrt" else self.seconds
        here = zip(self.values, heights, self.ranks, strict=True)
        self.pieces = [
            (left, right - left, low, high - low, max(low_rank, high_rank, INTERPOLATED))
            for (left, low, low_rank), (right, high, high_rank) in pairwise(here)
        ]
        return self.pieces

    def last_values(self, _outer: Point) -> list[float]:
        """As `PriceGrid.last_values`."""
        return self.values


def _axis(points: Mapping[Point, Price], forms: Sequence[str], before: Point) -> _Axis | _LastAxis:
    return _Axis(points, forms, before) if len(forms) > 1 else _LastAxis(points, forms, before)


def _along(axis: int, before: Point, point: Point, guide: Guide) -> Curve:
    """The guide along one axis, the axes before held where a line stands, those behind as the point has them."""
    rest = point[axis + 1 :]
    return lambda x: guide((*before, x, *rest))


def _by_guide(ends: tuple[float, float], seconds: tuple[float, float], x: float, curve: Curve) -> float:
    """Seconds at `x` from those at both ends of a piece, their ratio to the guide being linear between them."""
    left, right = ends
    low, high = seconds[0] / curve(left), seconds[1] / curve(right)
    return curve(x) * (low + (high - low) * ((x - left) / (right - left)))


class Line:
    """Seconds as straight pieces over whole numbers, the last one endless.

    One number and an array of them give the same bits, so that a span of steps costs what its steps cost.
    """

    __slots__ = ("_beyond", "_pieces", "_ranks", "_slopes", "_starts", "_values", "_vectors")

    def __init__(self, points: Sequence[tuple[float, Price]], last_slope: float, *, beyond: int = EXTRAPOLATED) -> None:
        """`points` rise in their first coordinate; beyond the last, where prices are at best `beyond`, the seconds grow
        by `last_slope` per one."""
        self._beyond = beyond
        self._starts = [x for x, _ in points]
        self._values = [price.seconds for _, price in points]
        self._slopes = [
            (there.seconds - here.seconds) / (right - left) for (left, here), (right, there) in pairwise(points)
        ] + [last_slope]
        self._ranks = [price.rank for _, price in points]
        ends = (*self._starts[1:], math.inf)
        self._pieces = list(zip(self._starts, self._values, self._slopes, ends, strict=True))
        self._vectors = tuple(np.array(part) for part in (self._starts, self._values, self._slopes))

    def piece(self, x: int) -> tuple[float, float, float, float]:
        """(start, seconds there, slope, where the next begins) of the piece at `x`, at least the first start."""
        return self._pieces[bisect_right(self._starts, x) - 1]

    def at(self, x: int) -> float:
        """Seconds at `x`."""
        start, value, slope, _ = self._pieces[bisect_right(self._starts, x) - 1]
        return value + slope * (x - start)

    def each(self, xs: Sequence[int], fixed_s: float = 0.0) -> list[float]:
        """Seconds at each of `xs`, of which the first is the least and the last the greatest, on top of `fixed_s`."""
        start, value, slope, end = self.piece(xs[0])
        if xs[-1] >= end:
            return [fixed_s + self.at(x) for x in xs]
        return [fixed_s + (value + slope * (x - start)) for x in xs]

    @property
    def rate(self) -> float:
        """Seconds per one at the far end of what was measured."""
        return self._slopes[-2] if len(self._slopes) > 1 else self._slopes[-1]

    def along(self, xs: Floats) -> Floats:
        """Seconds at each of `xs`."""
        starts, values, slopes = self._vectors
        at = np.searchsorted(starts, xs, side="right") - 1
        seconds: Floats = values[at] + slopes[at] * (xs - starts[at])
        return seconds

    def rank(self, x: int) -> int:
        """Where the seconds at `x` are from."""
        at = bisect_right(self._starts, x) - 1
        if self._starts[at] == x:
            return self._ranks[at]
        if at + 1 == len(self._starts):
            return max(self._ranks[at], self._beyond)
        return max(self._ranks[at], self._ranks[at + 1], INTERPOLATED)


def left_out(points: Mapping[Point, Price], guide: Guide, axis: int, form: str) -> Iterator[tuple[Point, float]]:
    """(point, relative error) of each that lies between two others along the axis, predicted from those two."""
    lines: dict[Point, list[float]] = {}
    for point in points:
        lines.setdefault(point[:axis] + point[axis + 1 :], []).append(point[axis])
    for rest, values in lines.items():
        values.sort()
        for left, here, right in zip(values, values[1:], values[2:], strict=False):
            point = (*rest[:axis], here, *rest[axis:])
            ends: dict[Point, Price] = {(x,): points[(*rest[:axis], x, *rest[axis:])] for x in (left, right)}
            seconds, _ = _LastAxis(ends, [form], rest[:axis]).at(point, guide)
            yield point, seconds / points[point].seconds - 1.0
