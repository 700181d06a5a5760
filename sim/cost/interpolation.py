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
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sim.cost.tables import Floats, Ints

Prices: TypeAlias = tuple[Floats, Ints]
"""Seconds and ranks of many points."""
Point: TypeAlias = tuple[float, ...]
Guide: TypeAlias = Callable[[Point], float]
"""Of a kernel whose only axis goes with a step's tokens it takes an array of them as well."""
Curve: TypeAlias = Callable[[float], float]

SOURCES = ("measured", "interpolated", "fitted", "derived", "extrapolated", "roofline")
"""From the best to the worst; what is made of several is as good as the worst of them. `fitted` is a form whose
constants were fitted to tables measured on this card."""
MEASURED, INTERPOLATED, FITTED, DERIVED, EXTRAPOLATED, ROOFLINE = range(len(SOURCES))

FORMS = ("linear", "sqrt", "efficiency")
"""Seconds linear along the axis; their square root linear (quadratic growth, as prefill attention has it); or their
ratio to the guide linear."""
_STRAIGHT = ("linear", "sqrt")
"""Those that the guide is no part of."""


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


class Measured(NamedTuple):
    """Points, no two alike, with their prices: the coordinates along each axis, seconds, ranks."""

    axes: tuple[Floats, ...]
    seconds: Floats
    ranks: Ints

    @classmethod
    def of(cls, points: Mapping[Point, Price]) -> Measured:
        """Of at least one point."""
        axes = np.array(list(points), np.float64).T
        seconds, ranks = zip(*points.values(), strict=True)
        return cls(tuple(axes), np.array(seconds, np.float64), np.array(ranks, np.intp))

    def points(self) -> dict[Point, Price]:
        """The price at each."""
        places = zip(*(axis.tolist() for axis in self.axes), strict=True)
        return dict(zip(places, map(Price, self.seconds.tolist(), self.ranks.tolist()), strict=True))


class PriceGrid:
    """Seconds on a grid that may have holes: along each axis, what was measured there differs from line to line."""

    __slots__ = ("_lines", "root")

    def __init__(self, points: Mapping[Point, Price] | Measured, forms: Sequence[str], guide: Guide) -> None:
        """`points` all have as many coordinates as there are forms; the first is the outermost axis.

        Raises ValueError for no points, and for an unknown form.
        """
        if not points or not set(forms) <= set(FORMS):
            raise ValueError(f"a grid needs a point, and of each axis one of {', '.join(FORMS)}")
        self._lines = _Lines(points if isinstance(points, Measured) else Measured.of(points), forms, guide)
        self.root = self._lines.line(0, 0, ())

    def at(self, point: Point) -> Price:
        """The price at a point, which has one coordinate per axis."""
        return price_of(self.root.at(point))

    def each(self, point: Sequence[Floats | Ints]) -> Prices:
        """The prices at many points, of which `point` has the coordinates along each axis: to the bit those of each."""
        seconds, ranks = self._lines.each(0, np.zeros(len(point[0]), np.intp), point)
        left = np.isnan(seconds)
        if left.any():
            rest = [axis[left] for axis in point]
            if isinstance(self.root, LastAxis) and self.root.form in _STRAIGHT:
                seconds[left], ranks[left] = self.root.beyond(rest[0])
            else:
                places = list(zip(*(axis.tolist() for axis in rest), strict=True))
                known = {place: self.root.at(place) for place in set(places)}
                seconds[left], ranks[left] = zip(*(known[place] for place in places), strict=True)
        return seconds, ranks

    def last_values(self, outer: Point) -> list[float]:
        """Where the innermost lines around these outer coordinates have points, sorted."""
        return self.root.last_values(outer)


class _Lines:
    """All lines of a grid as numbers, from which those that a price asks for are made.

    The first axis is one line. Each value on a line of an axis has a line of the next axis behind it; an axis is a list
    of its lines' values one after the other, so that a value's place there is the number of the line behind it.
    """

    __slots__ = ("_begins", "_values", "forms", "guide", "last", "ranks", "seconds")

    def __init__(self, measured: Measured, forms: Sequence[str], guide: Guide) -> None:
        self.forms, self.guide, self.last = forms, guide, len(forms) - 1
        order = np.lexsort(measured.axes[::-1])
        self.seconds, self.ranks = measured.seconds[order], measured.ranks[order]
        self._values: list[Floats] = []
        self._begins: list[Ints] = []
        """Of each axis: where its lines begin, and the last one ends."""
        before = np.zeros(1, np.intp)
        new = np.arange(len(order)) == 0
        for axis in measured.axes:
            values = axis[order]
            new[1:] |= values[1:] != values[:-1]
            rows = np.flatnonzero(new)
            self._values.append(values[rows])
            self._begins.append(np.append(np.searchsorted(rows, before), len(rows)))
            before = rows

    def line(self, axis: int, number: int, before: Point) -> OuterAxis | LastAxis:
        """One line of an axis; `before` are the coordinates at which it stands on the axes before."""
        begin, end = self._begins[axis][number : number + 2].tolist()
        values = self._values[axis][begin:end].tolist()
        return (OuterAxis if axis < self.last else LastAxis)(self, axis, begin, values, before)

    def each(self, axis: int, lines: Ints, point: Sequence[Floats | Ints]) -> Prices:
        """The prices at many points from an axis on, each on a line of that axis; seconds are nan of those that lie
        beyond one but for the last of several, or on one whose form is made of the guide."""
        values, begins, x = self._values[axis], self._begins[axis], point[axis]
        different = np.unique(values)
        stride = len(different) + 1
        places = np.repeat(np.arange(len(begins) - 1), np.diff(begins)) * stride + np.searchsorted(different, values)
        above = np.searchsorted(places, lines * stride + np.searchsorted(different, x))
        end = begins[lines + 1]
        right = np.minimum(above, end - 1)
        apart = values[right] != x
        inside = apart & (above > begins[lines]) & (above < end)
        seconds, ranks = self._behind(axis, right, point)
        if self.forms[axis] in _STRAIGHT and inside.any():
            left = above[inside] - 1
            low, low_ranks = self._behind(axis, left, [one[inside] for one in point])
            high = seconds[inside]
            if self.forms[axis] == "sqrt":
                low, high = np.sqrt(low), np.sqrt(high)
            here = low + (high - low) * ((x[inside] - values[left]) / (values[left + 1] - values[left]))
            # An array's square is rounded otherwise than a number's.
            seconds[inside] = [root**2 for root in here.tolist()] if self.forms[axis] == "sqrt" else here
            ranks[inside] = np.maximum(np.maximum(low_ranks, ranks[inside]), INTERPOLATED)
            apart &= ~inside
        beyond = apart & ((above == begins[lines]) | (above == end))
        if axis == self.last > 0 and beyond.any():
            seconds[beyond], ranks[beyond] = zip(
                *self._beyond(lines[beyond], right[beyond].tolist(), x[beyond].tolist()), strict=True
            )
            apart &= ~beyond
        seconds[apart] = np.nan
        return seconds, ranks

    def _beyond(self, lines: Ints, edges: list[int], xs: list[float]) -> list[tuple[float, int]]:
        """(seconds, rank) of places beyond these ends of lines of the last axis."""
        axes: list[list[float]] = []
        """Where the lines stand on the axes before, the nearest first."""
        for values, begins in zip(self._values[-2::-1], self._begins[-2::-1], strict=True):
            axes.append(values[lines].tolist())
            lines = np.searchsorted(begins, lines, "right") - 1
        curves: dict[int, tuple[Curve, float, float, int]] = {}
        """Of each end: the guide along its line, what it says there, what was measured there, the rank."""
        known: dict[tuple[int, float], tuple[float, int]] = {}
        for before, edge, x in zip(zip(*reversed(axes), strict=True), edges, xs, strict=True):
            if (edge, x) in known:
                continue
            if edge not in curves:
                curve = _guided(self.guide, before)
                value, seconds = self._values[self.last][edge].item(), self.seconds[edge].item()
                curves[edge] = curve, curve(value), seconds, max(self.ranks[edge].item(), EXTRAPOLATED)
            curve, at_edge, seconds, rank = curves[edge]
            known[edge, x] = seconds * (curve(x) / at_edge), rank
        return [known[place] for place in zip(edges, xs, strict=True)]

    def _behind(self, axis: int, at: Ints, point: Sequence[Floats | Ints]) -> Prices:
        """What stands at these values of an axis."""
        if axis == self.last:
            return self.seconds[at], self.ranks[at]
        return self.each(axis + 1, at, point)


class OuterAxis:
    """An axis of a grid and all behind it: sorted values, and what stands at each; `before` are those of the axes
    before, at which it stands.

    Most of what pricing steps costs is spent in `at`: one call for each line that the point lies between, no more, and
    the two frequent forms of `_between` written out.
    """

    __slots__ = ("axis", "before", "begin", "children", "form", "lines", "values")

    def __init__(self, lines: _Lines, axis: int, begin: int, values: list[float], before: Point) -> None:
        self.lines, self.axis, self.begin, self.values, self.before = lines, axis, begin, values, before
        self.form = lines.forms[axis]
        self.children: list[OuterAxis | LastAxis | None] = [None] * len(values)
        """Made when first asked for, since most lines of a great grid never are."""

    def child(self, at: int) -> OuterAxis | LastAxis:
        made = self.lines.line(self.axis + 1, self.begin + at, (*self.before, self.values[at]))
        self.children[at] = made
        return made

    def at(self, point: Point) -> tuple[float, int]:
        """(seconds, rank) along this and the further axes."""
        x, values, children = point[self.axis], self.values, self.children
        above, last = bisect_left(values, x), len(values)
        if above < last and (right := values[above]) == x:
            return (children[above] or self.child(above)).at(point)
        if 0 < above < last:
            left = values[above - 1]
            low, low_rank = (children[above - 1] or self.child(above - 1)).at(point)
            high, high_rank = (children[above] or self.child(above)).at(point)
            if self.form == "linear":
                seconds = low + (high - low) * ((x - left) / (right - left))
            elif self.form == "sqrt":
                root = sqrt(low)
                seconds = (root + (sqrt(high) - root) * ((x - left) / (right - left))) ** 2
            else:
                seconds = _between(self.form, (left, right), (low, high), x, self._curve(point))
            rank = low_rank if low_rank > high_rank else high_rank
            return seconds, rank if rank > INTERPOLATED else INTERPOLATED
        edge = min(above, last - 1)
        seconds, rank = (children[edge] or self.child(edge)).at(point)
        curve = self._curve(point)
        return seconds * (curve(x) / curve(values[edge])), max(rank, EXTRAPOLATED)

    def _curve(self, point: Point) -> Curve:
        """The guide along this axis, the axes behind held as the point has them."""
        return _line(self.lines.guide, self.before, point[self.axis + 1 :])

    def last_values(self, outer: Point) -> list[float]:
        """As `PriceGrid.last_values`."""
        above = bisect_left(self.values, outer[0])
        beside = {min(above, len(self.values) - 1)}
        if above == len(self.values) or self.values[above] != outer[0]:
            beside.add(max(0, above - 1))
        lines = [self.children[at] or self.child(at) for at in beside]
        return sorted({value for line in lines for value in line.last_values(outer[1:])})


class LastAxis:
    """The innermost axis, whose points have prices."""

    __slots__ = ("_curve", "_edges", "axis", "before", "form", "guide", "pieces", "ranks", "seconds", "values")

    def __init__(self, lines: _Lines, axis: int, begin: int, values: list[float], before: Point) -> None:
        self.axis, self.values, self.before = axis, values, before
        self.form, self.guide = lines.forms[axis], lines.guide
        self.seconds: list[float] = lines.seconds[begin : begin + len(values)].tolist()
        self.ranks: list[int] = lines.ranks[begin : begin + len(values)].tolist()
        heights = [sqrt(seconds) for seconds in self.seconds] if self.form == "sqrt" else self.seconds
        here = zip(self.values, heights, self.ranks, strict=True)
        self.pieces = [
            (left, right - left, low, high - low, max(low_rank, high_rank, INTERPOLATED))
            for (left, low, low_rank), (right, high, high_rank) in pairwise(here)
        ]
        """Of each piece between two values: (its begin, its width, what stands there, the rise to its end, rank)."""
        self._curve: Curve | None = None
        self._edges: dict[int, float] = {}
        """What the guide says of the first and the last value, where a price was asked for beyond."""

    def at(self, point: Point) -> tuple[float, int]:
        """As `OuterAxis.at`."""
        x, values = point[self.axis], self.values
        above, last = bisect_left(values, x), len(values)
        if above < last and values[above] == x:
            return self.seconds[above], self.ranks[above]
        if 0 < above < last:
            left, width, start, rise, rank = self.pieces[above - 1]
            if self.form == "sqrt":
                return (start + rise * ((x - left) / width)) ** 2, rank
            if self.form == "linear":
                return start + rise * ((x - left) / width), rank
            ends = self.seconds[above - 1], self.seconds[above]
            return _between(self.form, (left, values[above]), ends, x, self._guided()), rank
        edge = 0 if not above else last - 1
        curve = self._curve or self._guided()
        known = self._edges.get(edge)
        if known is None:
            known = self._edges[edge] = curve(values[edge])
        rank = self.ranks[edge]
        return self.seconds[edge] * (curve(x) / known), rank if rank > EXTRAPOLATED else EXTRAPOLATED

    def _guided(self) -> Curve:
        """The guide along this line."""
        if self._curve is None:
            self._curve = _guided(self.guide, self.before)
        return self._curve

    def beyond(self, xs: Floats | Ints) -> Prices:
        """`at` of each of so many points outside of the line, which is the only one."""
        guide: Any = self.guide
        edge = (xs > self.values[0]).astype(np.intp)
        seconds, ranks = (np.array([values[0], values[-1]])[edge] for values in (self.seconds, self.ranks))
        known = np.array([self.guide((self.values[0],)), self.guide((self.values[-1],))])[edge]
        return seconds * (guide((xs,)) / known), np.maximum(ranks, EXTRAPOLATED)

    def last_values(self, _outer: Point) -> list[float]:
        """As `PriceGrid.last_values`."""
        return self.values


def _line(guide: Guide, before: Point, behind: Point) -> Curve:
    return lambda x: guide((*before, x, *behind))


def _guided(guide: Guide, before: Point) -> Curve:
    """The guide along the last axis, for which it may have a quicker way, of the same seconds."""
    along = getattr(guide, "along", None)
    curve: Curve = _line(guide, before, ()) if along is None else along(before)
    return curve


def _between(form: str, ends: tuple[float, float], seconds: tuple[float, float], x: float, curve: Curve) -> float:
    """Seconds at `x` from those at both ends of a piece; `curve` is the guide along it."""
    (left, right), (low, high) = ends, seconds
    share = (x - left) / (right - left)
    if form == "linear":
        return low + (high - low) * share
    if form == "sqrt":
        return (sqrt(low) + (sqrt(high) - sqrt(low)) * share) ** 2
    low, high = low / curve(left), high / curve(right)
    return curve(x) * (low + (high - low) * share)


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

    def each(self, xs: list[int], fixed_s: float = 0.0) -> list[float]:
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
            before, behind = rest[:axis], rest[axis:]
            point = (*before, here, *behind)
            low, high = (points[(*before, x, *behind)].seconds for x in (left, right))
            seconds = _between(form, (left, right), (low, high), here, _line(guide, before, behind))
            yield point, seconds / points[point].seconds - 1.0
