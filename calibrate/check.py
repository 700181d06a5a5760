"""Is a profile sound: single rows that their neighbours contradict, and errors told anew from what it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from calibrate.evaluate import Checked, leave_one_out, placed, steps
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import Point, left_out
from sim.cost.lookup import MeasuredKernel, forms_of, measured_kernels
from sim.cost.profile import Profile
from sim.cost.tables import Table, Value

LEAST_ERROR, TIMES_USUAL = 0.5, 6.0
"""A row is suspect when it is further than this from what its neighbours tell, and so many times what is usual."""
TIMES_RELATED = 4.0
"""Or when it takes so many times as long as kernels of other shapes do at the same point, of which there must be
`_LEAST_RELATED`, each over what the roofline says of it: so are those found that have neighbours on one side alone, or
none that is right."""
_LEAST_RELATED = 4


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that its neighbours contradict: what they make of it over what it says, less one."""

    table: str
    where: str
    us: float
    error: float

    def __str__(self) -> str:
        return (
            f"{self.table}: {self.where}: {self.us:,.4g} us; its neighbours make it {1.0 + self.error:.2g} times that"
        )


def _where(table: Table, kernel: MeasuredKernel, point: Point) -> str:
    """The kernel's sizes (k and n of a matrix) and the point, as the table's columns call them."""
    group = ", ".join(f"{name} {value}" for name, value in kernel.group.items())
    return ", ".join(part for part in (group, placed(table, point)) if part)


def suspects(profile: Profile) -> list[Suspect]:
    """Rows that stick out along every axis along which they have neighbours on both sides, or beside kernels of other
    shapes at the same point; worst first."""
    suspect_rows = [
        Suspect(name, _where(profile.tables[name], kernel, point), 1e6 * kernel.points[point].seconds, error)
        for name, kernel, point, error in outliers(profile)
    ]
    return sorted(suspect_rows, key=lambda one: -max(one.error, 1.0 / (1.0 + one.error) - 1.0))


def outliers(profile: Profile) -> Iterator[tuple[str, MeasuredKernel, Point, float]]:
    """(table, kernel, point, error) of each suspect: what its neighbours make of it over what it says, less one."""
    gpu = profile.gpu()
    for name, table in profile.tables.items():
        if name == "steps":
            continue
        forms = forms_of(profile, name)
        kernels = list(measured_kernels(table, gpu, Efficiency.of(gpu)))
        errors = [
            [dict(left_out(kernel.points, kernel.guide, axis, form)) for axis, form in enumerate(forms)]
            for kernel in kernels
        ]
        usual = statistics.median([abs(error) for one in errors for axis in one for error in axis.values()] or [0.0])
        related = _slower_than_relatives(kernels)
        for kernel, axes, slow in zip(kernels, errors, related, strict=True):
            found = dict(_sticking_out(axes, max(LEAST_ERROR, TIMES_USUAL * usual), slow))
            for point, error in (found | slow).items():
                yield name, kernel, point, error


def _slower_than_relatives(kernels: list[MeasuredKernel]) -> list[dict[Point, float]]:
    """Of each kernel, points that take `TIMES_RELATED` times as long as the median kernel does there, both over what
    the roofline says, and what that median makes of them over what they say, less one."""
    ratios: dict[tuple[tuple[Value, ...], Point], list[float]] = {}
    for kernel in kernels:
        for point, price in kernel.points.items():
            ratios.setdefault((_kind(kernel), point), []).append(price.seconds / kernel.guide(point))
    usual = {where: statistics.median(known) for where, known in ratios.items() if len(known) >= _LEAST_RELATED}
    return [
        {
            point: share - 1.0
            for point, price in kernel.points.items()
            if (middle := usual.get((_kind(kernel), point))) is not None
            and (share := middle * kernel.guide(point) / price.seconds) < 1.0 / TIMES_RELATED
        }
        for kernel in kernels
    ]


def _sticking_out(
    axes: list[dict[Point, float]], limit: float, slow: Mapping[Point, float]
) -> Iterator[tuple[Point, float]]:
    """Points whose least error over the axes is above the limit, and that are worse than their neighbours.

    A bad point, such as those that are `slow` for sure, makes its neighbours look bad as well, but less.
    """
    least: dict[Point, float] = {}
    for errors in axes:
        for point, error in errors.items():
            # In octaves: twice too long and half too long are as bad.
            size = max(error, 1.0 / (1.0 + error) - 1.0)
            least[point] = min(least.get(point, size), size)
    least.update(dict.fromkeys(slow, math.inf))
    told = set(slow)
    for errors in axes:
        lines: dict[tuple[int, Point], list[Point]] = {}
        for point in {**errors, **slow}:
            for line in _lines(point):
                lines.setdefault(line, []).append(point)
        for point, error in errors.items():
            if (
                least[point] > limit
                and point not in told
                and all(least[near] <= least[point] for line in _lines(point) for near in lines[line])
            ):
                yield point, error
                told.add(point)


def _lines(point: Point) -> list[tuple[int, Point]]:
    """The lines through a point, one along each axis."""
    return [(axis, (*point[:axis], *point[axis + 1 :])) for axis in range(len(point))]


def _kind(kernel: MeasuredKernel) -> tuple[Value, ...]:
    """What kernels of other shapes have in common with it: operation and types."""
    return tuple(value for value in kernel.group.values() if isinstance(value, str))


def predictions(profile: Profile) -> tuple[list[Checked], list[Checked]]:
    """(points of all tables left out one at a time, whole steps), as the profile predicts them now."""
    operations = [one for name in profile.tables if name != "steps" for one in leave_one_out(profile, name)]
    return operations, steps(profile)
