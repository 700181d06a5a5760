"""How wrong an imported table is for points that it has not seen: a tenth at a time is left out. It imports nothing.

On a grid of powers of two a point left out is predicted from neighbours four times apart, while in use they are two
times apart: the errors are those of a coarser profile than the one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sim.cost.description import Accuracy
from sim.cost.efficiency import Efficiency
from sim.cost.guides import guide_of
from sim.cost.interpolate import EXTRAPOLATED, FORMS, Grid, Guide, Point, Price, left_out
from sim.cost.lookup import points_of
from sim.cost.tables import Row, Table
from sim.specs.gpu import GpuSpec

FOLDS = 10
_ENOUGH = 5000
"""Of a larger table only so many points are predicted, whole tenths of it."""
_LEAST_POINTS = 5
_UNPRICED = ("steps", "launch", "host")


@dataclass(slots=True)
class _Errors:
    """Relative errors of points that lie between others, and of those on the edge of what is left."""

    inside: list[float] = field(default_factory=list)
    edge: list[float] = field(default_factory=list)


def accuracies(tables: Mapping[str, Table], gpu: GpuSpec) -> dict[str, Accuracy]:
    """By table, the error of interpolation where at least one kernel has enough points to leave some out."""
    found = {name: accuracy(table, gpu) for name, table in tables.items() if name not in _UNPRICED}
    return {name: one for name, one in found.items() if one is not None}


def accuracy(table: Table, gpu: GpuSpec) -> Accuracy | None:
    """The error of one table, with the form of each axis that leave-one-out along it finds best; None for too few."""
    groups = _groups(table, gpu)
    if not groups:
        return None
    forms = _forms(groups, len(table.spec.axes))
    errors = _Errors()
    for points, guide in groups:
        _leave_out(points, guide, forms, errors)
    if not errors.inside:
        return None
    shares = np.array(errors.inside)
    how = f"a tenth left out at a time, points between others; {len(errors.edge)} on the edge"
    if errors.edge:
        how += f" are off by {np.abs(errors.edge).mean():.1%}"
    return Accuracy(
        points=len(shares),
        mean=round(float(np.abs(shares).mean()), 5),
        p90=round(float(np.quantile(np.abs(shares), 0.9)), 5),
        max=round(float(np.abs(shares).max()), 5),
        bias=round(float(shares.mean()), 5),
        form=", ".join(forms),
        how=how,
    )


_Group = tuple[dict[Point, Price], Guide]


def _groups(table: Table, gpu: GpuSpec) -> list[_Group]:
    """(price by point, guide) of each kernel with enough points."""
    name, found = table.spec.name, []
    for key, picked in table.grouped().items():
        points = points_of(table, picked)
        if len(points) >= _LEAST_POINTS:
            group: Row = {column.name: value for column, value in zip(table.spec.groups, key, strict=True)}
            found.append((points, guide_of(name, group, gpu, Efficiency.of(gpu))))
    return found


def _forms(groups: list[_Group], axes: int) -> list[str]:
    """Of each axis the form with the least error over all kernels together."""
    chosen = []
    for axis in range(axes):
        sums = {
            form: sum(
                abs(error)
                for points, guide in groups
                for _, error in left_out({at: price.seconds for at, price in points.items()}, guide, axis, form)
            )
            for form in FORMS
        }
        chosen.append(min(FORMS, key=lambda form: (sums[form], FORMS.index(form))))
    return chosen


def _leave_out(points: dict[Point, Price], guide: Guide, forms: list[str], errors: _Errors) -> None:
    """Predict each point from a grid without its tenth."""
    order = sorted(points)
    fold = np.random.default_rng(0).permutation(len(order)) % min(FOLDS, len(order))
    for number in range(min(int(fold.max()) + 1, max(1, round(FOLDS * _ENOUGH / len(order))))):
        kept = {at: points[at] for at, of in zip(order, fold, strict=True) if of != number}
        grid = Grid(kept, forms)
        for at, of in zip(order, fold, strict=True):
            if of == number:
                price = grid.at(at, guide)
                side = errors.edge if price.rank >= EXTRAPOLATED else errors.inside
                side.append(price.seconds / points[at].seconds - 1.0)
