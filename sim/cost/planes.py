"""Two prices at once from a grid of four axes, of points that differ in the second coordinate alone.

Of attention in one launch each step asks two, for its rows' mean context and for the longest. It knows no table.
"""

from __future__ import annotations

from bisect import bisect_left
from math import sqrt

from sim.cost.interpolation import INTERPOLATED, MEASURED, LastAxis, OuterAxis, Point, PriceGrid

_MOST_PLANES = 4_096
_BEYOND = -1
_LAST_OF_FOUR = 3


class Planes:
    """Those of a grid that were asked for."""

    __slots__ = ("_grid", "_known")

    def __init__(self, grid: PriceGrid) -> None:
        self._grid = grid
        self._known: dict[tuple[float, float], _Plane | None] = {}

    def both(self, point: Point, other: float) -> tuple[float, int, float, int]:
        """Seconds and rank at a point of four axes, and at the one whose second coordinate is `other`: to the bit what
        `at` says of each."""
        root, place = self._grid.root, (point[0], point[2])
        plane = self._known.get(place)
        if plane is None and place not in self._known and len(self._known) < _MOST_PLANES:
            plane = self._known[place] = _plane_of(root, point[0], point[2])
        if plane is not None:
            seconds, rank = plane.at(point[1], point)
            others, other_rank = plane.at(other, point)
            if rank > _BEYOND < other_rank:
                return seconds, rank, others, other_rank
        seconds, rank = root.at(point)
        others, other_rank = root.at((point[0], other, *point[2:]))
        return seconds, rank, others, other_rank


class _Plane:
    """Prices along the second and the last of four axes, at one place of the first and at one of the third where points
    were measured: to the bit what `OuterAxis.at` says, which asks eleven lines, most of which are alike in where a
    coordinate lies.
    """

    __slots__ = ("_beside", "_columns", "_share", "_single", "_third", "_values")

    def __init__(self, beside: tuple[OuterAxis, OuterAxis], share: float, third: float) -> None:
        """`beside` are those of the first axis that the place lies between, `share` of the way from one to the other;
        the same one twice where it is one's own."""
        self._beside, self._share, self._third = beside, share, third
        self._single = beside[0] is beside[1]
        self._values = beside[0].values
        self._columns: list[_Column | None] = [None] * len(self._values)

    def at(self, x: float, point: Point) -> tuple[float, int]:
        """(seconds, rank) where the second coordinate is `x` and the last one the point's; `_BEYOND` for the rank where
        another is to be asked."""
        values = self._values
        above = bisect_left(values, x)
        if above == len(values) or (not above and values[0] != x):
            return 0.0, _BEYOND
        column = self._columns[above] or self._column(above)
        first, second, rank = column.at(point)
        right = values[above]
        if right != x:
            column = self._columns[above - 1] or self._column(above - 1)
            low, other, low_rank = column.at(point)
            if low_rank == _BEYOND:
                return 0.0, _BEYOND
            left = values[above - 1]
            share = (x - left) / (right - left)
            first = low + (first - low) * share
            second = other + (second - other) * share
            if low_rank > rank > _BEYOND:
                rank = low_rank
            if rank == MEASURED:
                rank = INTERPOLATED
        if self._single or rank == _BEYOND:
            return first, rank
        root = sqrt(first)
        seconds = (root + (sqrt(second) - root) * self._share) ** 2
        return seconds, rank if rank > INTERPOLATED else INTERPOLATED

    def _column(self, at: int) -> _Column:
        lines: list[LastAxis] = []
        for axis in self._beside:
            across = axis.children[at] or axis.child(at)
            assert isinstance(across, OuterAxis)
            place = bisect_left(across.values, self._third)
            if place == len(across.values) or across.values[place] != self._third:
                break
            line = across.children[place] or across.child(place)
            assert isinstance(line, LastAxis)
            lines.append(line)
        made = self._columns[at] = _Column(lines)
        return made


class _Column:
    """The two lines of the last axis that a plane has at one of its values; none where one is missing."""

    __slots__ = ("_alike", "_lines")

    def __init__(self, lines: list[LastAxis]) -> None:
        self._lines = lines if len(lines) == 2 else []
        self._alike = bool(self._lines) and lines[0].values == lines[1].values and lines[0].form == "sqrt"

    def at(self, point: Point) -> tuple[float, float, int]:
        """Seconds on either line, and the worse rank."""
        lines = self._lines
        if not lines:
            return 0.0, 0.0, _BEYOND
        first, second = lines
        x, values = point[3], first.values
        above = bisect_left(values, x)
        if self._alike and 0 < above < len(values) and values[above] != x:
            left, width, start, rise, rank = first.pieces[above - 1]
            share = (x - left) / width
            _, _, other, others_rise, other_rank = second.pieces[above - 1]
            rank = rank if rank > other_rank else other_rank
            return (start + rise * share) ** 2, (other + others_rise * share) ** 2, rank
        seconds, rank = first.at(point)
        others, other_rank = second.at(point)
        return seconds, others, rank if rank > other_rank else other_rank


def _plane_of(root: OuterAxis | LastAxis, first: float, third: float) -> _Plane | None:
    """The plane at such a place; None where none is: beyond the first axis, or where its form is another."""
    if not isinstance(root, OuterAxis) or root.lines.last != _LAST_OF_FOUR:
        return None
    values, above = root.values, bisect_left(root.values, first)
    if above == len(values) or (not above and values[0] != first):
        return None
    below = above if values[above] == first else above - 1
    axes: list[OuterAxis] = []
    for at in (below, above):
        axis = root.children[at] or root.child(at)
        assert isinstance(axis, OuterAxis)
        axes.append(axis)
    if (root.form, axes[0].form) != ("sqrt", "linear") or axes[0].values != axes[1].values:
        return None
    share = (first - values[below]) / (values[above] - values[below]) if below < above else 0.0
    return _Plane((axes[0], axes[1]), share, third)
