"""How wrong an imported table is for points that it has not seen: a tenth at a time is left out. It imports nothing.

On a grid of powers of two a point left out is predicted from neighbours four times apart, while in use they are two
times apart: the errors are those of a coarser profile than the one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from calibrate.fit import form_errors
from sim.cost.description import Accuracy
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import EXTRAPOLATED, FORMS, Guide, Point, Price, PriceGrid
from sim.cost.lookup import measured_kernels
from sim.cost.tables import Table
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
    errors = {name: accuracy(table, gpu) for name, table in tables.items() if name not in _UNPRICED}
    return {name: one for name, one in errors.items() if one is not None}


def accuracy(table: Table, gpu: GpuSpec) -> Accuracy | None:
    """The error of one table, with the form of each axis that leave-one-out along it finds best; None for too few."""
    measured = measured_kernels(table, gpu, Efficiency.of(gpu))
    kernels = [kernel for kernel in measured if len(kernel.points) >= _LEAST_POINTS]
    if not kernels:
        return None
    forms = []
    for axis in range(len(table.spec.axes)):
        form_error = form_errors(kernels, axis)
        forms.append(min(FORMS, key=form_error.__getitem__))
    errors = _Errors()
    for kernel in kernels:
        _leave_out(kernel.points, kernel.guide, forms, errors)
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


def _leave_out(points: Mapping[Point, Price], guide: Guide, forms: list[str], errors: _Errors) -> None:
    """Predict each point from a grid without its tenth."""
    order = sorted(points)
    fold = np.random.default_rng(0).permutation(len(order)) % min(FOLDS, len(order))
    for number in range(min(int(fold.max()) + 1, max(1, round(FOLDS * _ENOUGH / len(order))))):
        others = {at: points[at] for at, of in zip(order, fold, strict=True) if of != number}
        grid = PriceGrid(others, forms, guide)
        for at, of in zip(order, fold, strict=True):
            if of == number:
                price = grid.at(at)
                side = errors.edge if price.rank >= EXTRAPOLATED else errors.inside
                side.append(price.seconds / points[at].seconds - 1.0)
