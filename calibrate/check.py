"""Is a profile sound: single rows that their neighbours contradict, and errors told anew from what it holds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from calibrate.evaluate import Checked, leave_one_out, placed, steps
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import Point, left_out
from sim.cost.lookup import forms_of, measured_kernels
from sim.cost.profile import Profile

LEAST_ERROR, TIMES_USUAL = 0.5, 6.0
"""A row is suspect when it is further than this from what its neighbours tell, and so many times what is usual."""


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


def suspects(profile: Profile) -> list[Suspect]:
    """Rows that stick out along every axis along which they have neighbours on both sides, worst first."""
    gpu = profile.gpu()
    suspect_rows = []
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
        for kernel, axes in zip(kernels, errors, strict=True):
            for point, error in _sticking_out(axes, max(LEAST_ERROR, TIMES_USUAL * usual)):
                suspect_rows.append(Suspect(name, placed(table, point), 1e6 * kernel.points[point].seconds, error))
    return sorted(suspect_rows, key=lambda one: -abs(one.error))


def _sticking_out(axes: list[dict[Point, float]], limit: float) -> Iterator[tuple[Point, float]]:
    """Points whose least error over the axes is above the limit, and that are worse than their neighbours.

    A bad point makes its neighbours look bad as well, but less.
    """
    least: dict[Point, float] = {}
    for errors in axes:
        for point, error in errors.items():
            # In octaves: twice too long and half too long are as bad.
            size = max(error, 1.0 / (1.0 + error) - 1.0)
            least[point] = min(least.get(point, size), size)
    for errors in axes:
        for point, error in errors.items():
            others = [least[near] for near in errors if near != point and _neighbours(near, point)]
            if least[point] == max([least[point], *others]) and least[point] > limit:
                yield point, error
                least[point] = 0.0


def _neighbours(one: Point, other: Point) -> bool:
    return sum(left != right for left, right in zip(one, other, strict=True)) == 1


def predictions(profile: Profile) -> tuple[list[Checked], list[Checked]]:
    """(points of all tables left out one at a time, whole steps), as the profile predicts them now."""
    operations = [one for name in profile.tables if name != "steps" for one in leave_one_out(profile, name)]
    return operations, steps(profile)
