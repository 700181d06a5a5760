"""From a profile's tables to the price of one launch of one kernel: its own grid, or its nearest relatives' efficiency.

A kernel of a shape that was not measured (a matrix of another size, other heads) is priced in efficiency space: what
its nearest measured relatives take over what the roofline says of them, weighted by distance, times what the roofline
says of it. It knows no model and no step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import numpy as np

from sim.cost.efficiency import Efficiency
from sim.cost.guides import guide_of
from sim.cost.interpolate import DERIVED, EXTRAPOLATED, FORMS, INTERPOLATED, MEASURED, Grid, Guide, Line, Point, Price
from sim.cost.profile import Profile
from sim.cost.schema import DERIVED as DERIVED_ROW
from sim.cost.schema import TABLES
from sim.cost.tables import Picked, Row, Table, Value
from sim.cost.uneven import Uneven, even_rows, measured, mixed
from sim.specs.gpu import GpuSpec
from traces.schema import InputError

NEIGHBOURS = 4
"""Relatives that price a kernel of another shape; the weight of each falls with the square of the distance."""
_RELATED: Mapping[str, tuple[str, ...]] = {
    "gemm": ("k", "n"),
    "expert_gemm": ("experts", "experts_per_token", "k", "n"),
    "prefill_attention": ("heads", "kv_heads"),
    "decode_attention": ("heads", "kv_heads", "width"),
    "mixed_attention": ("heads", "kv_heads"),
    "elementwise": ("width",),
    "sampling": ("vocab",),
}
"""Group columns in which relatives of a kernel may differ from it."""
_DEFAULT_FORMS: Mapping[str, str] = {"prefill_attention.new_tokens": "sqrt"}
"""AIConfigurator's leave-one-out (KV interpolation design): along prefill length the square root; else linear."""


class Kernel:
    """Prices of one kernel: `parts` are grids of measured kernels with their guides and weights.

    `uneven` is what of attention's time follows the longest context of decode rows instead of the mean.
    """

    __slots__ = ("_exact", "_guide", "_least_rank", "_parts", "uneven")

    def __init__(
        self, guide: Guide, parts: Sequence[tuple[Grid, Guide, float]], least_rank: int, uneven: Uneven
    ) -> None:
        self.uneven = uneven
        self._guide = guide
        self._parts = parts
        self._least_rank = least_rank
        self._exact = least_rank == MEASURED

    def at(self, *point: float) -> Price:
        """Seconds of one launch at a point of the table's axes."""
        if self._exact:
            grid, guide, _ = self._parts[0]
            return grid.at(point, guide)
        share, rank = 0.0, self._least_rank
        for grid, guide, weight in self._parts:
            price = grid.at(point, guide)
            share += weight * price.seconds / guide(point)
            rank = max(rank, price.rank)
        return Price(share * self._guide(point), rank)

    def context_line(self, sequences: int, times: int) -> Line:
        """Of decode attention: `times` launches with `sequences` rows, by the sum of their contexts, from 0 on."""
        knots = sorted({0.0}.union(*(grid.last_values((sequences,)) for grid, _, _ in self._parts)))
        prices = [self.at(sequences, knot) for knot in knots]
        last = knots[-1]
        known = self._guide((sequences, last))
        # The guide is straight beyond the grid, so that two of its points tell the slope.
        slope = times * prices[-1].seconds * ((self._guide((sequences, 2 * last)) - known) / known) / (last * sequences)
        points = [
            (knot * sequences, Price(times * price.seconds, price.rank))
            for knot, price in zip(knots, prices, strict=True)
        ]
        return Line(points, slope)


class _Group(NamedTuple):
    row: Row
    grid: Grid
    uneven: Uneven


def _even_s(grid: Grid, guide: Guide, point: Point) -> float:
    return grid.at(point, guide).seconds


def _alike(groups: Sequence[_Group], group: Row, free: Sequence[str]) -> list[_Group]:
    return [one for one in groups if all(one.row[key] == value for key, value in group.items() if key not in free)]


class Tables:
    """The kernels of a profile, by table and shape."""

    def __init__(self, profile: Profile, gpu: GpuSpec, efficiency: Efficiency) -> None:
        self._profile, self._gpu, self._efficiency = profile, gpu, efficiency
        self._groups: dict[str, dict[tuple[Value, ...], _Group]] = {}

    def kernel(self, name: str, **group: Value) -> Kernel | None:
        """The kernel whose group columns are `group`, made of relatives where it was not measured itself.

        None where the profile has no table for it, or none of its relatives in it.
        """
        table = self._profile.tables.get(name)
        if table is None:
            return None
        groups = self._of(table)
        guide = self._guide(name, group)
        own = groups.get(tuple(group[column.name] for column in table.spec.groups))
        if own is not None:
            return Kernel(guide, [(own.grid, guide, 1.0)], MEASURED, own.uneven)
        return self._related(name, group, guide, list(groups.values()))

    def _related(
        self, name: str, group: Row, guide: Guide, groups: Sequence[_Group], least_rank: int = INTERPOLATED
    ) -> Kernel | None:
        free = _RELATED.get(name, ())
        near = _alike(groups, group, free)
        if not near and group.get("window"):
            # The same kernel without its window, at what the roofline says that the window saves.
            return self._related(name, {**group, "window": 0}, guide, groups, EXTRAPOLATED) if free else None
        if not near:
            return None
        sizes = [math.log(float(group[key])) for key in free]
        ranked = sorted(
            ((math.dist(sizes, [math.log(float(one.row[key])) for key in free]), at) for at, one in enumerate(near))
        )[:NEIGHBOURS]
        if ranked[0][0] == 0.0:
            ranked = ranked[:1]
        weights = [1.0 / max(distance, 1e-9) ** 2 for distance, _ in ranked]
        parts = [
            (near[at].grid, self._guide(name, near[at].row), weight / sum(weights))
            for (_, at), weight in zip(ranked, weights, strict=True)
        ]
        inside = all(
            min(float(one.row[key]) for one in near) <= float(group[key]) <= max(float(one.row[key]) for one in near)
            for key in free
        )
        uneven = mixed([(near[at].uneven, part[2]) for (_, at), part in zip(ranked, parts, strict=True)])
        return Kernel(guide, parts, least_rank if inside else EXTRAPOLATED, uneven)

    def _guide(self, name: str, group: Row) -> Guide:
        return guide_of(name, group, self._gpu, self._efficiency)

    def _of(self, table: Table) -> dict[tuple[Value, ...], _Group]:
        name = table.spec.name
        if name not in self._groups:
            forms, found = forms_of(self._profile, name), {}
            for key, picked in table.grouped().items():
                points = points_of(table, picked)
                if points:
                    row = {column.name: value for column, value in zip(table.spec.groups, key, strict=True)}
                    grid, guide = Grid(points, forms), self._guide(name, row)
                    uneven = measured(table, picked, partial(_even_s, grid, guide))
                    found[key] = _Group(row, grid, uneven)
            self._groups[name] = found
        return self._groups[name]


def points_of(table: Table, picked: Picked) -> dict[Point, Price]:
    """Price by the coordinates of the axes, of those rows of a table that `picked` counts, which are of one kernel.

    Only of even batches, whose contexts are all alike. Behind a window all contexts of decode rows are one.
    """
    rows = picked[even_rows(table, picked)]
    if not len(rows):
        return {}
    axes = [table.numbers(column.name)[rows] for column in table.spec.axes]
    if table.spec.name == "decode_attention" and (window := table.numbers("window")[rows[0]]):
        axes[1] = np.minimum(axes[1], window)
    points = list(zip(*(axis.tolist() for axis in axes), strict=True))
    derived = "origin" in table.columns and DERIVED_ROW in table.texts("origin")
    ranks = [DERIVED if table.texts("origin")[at] == DERIVED_ROW else MEASURED for at in rows] if derived else []
    seconds = (table.numbers("us")[rows] * 1e-6).tolist()
    prices = list(map(Price, seconds, ranks or repeat(MEASURED)))
    found = dict(zip(points, prices, strict=True))
    return found if len(found) == len(points) else _means(points, prices)


def _means(points: Sequence[Point], prices: Sequence[Price]) -> dict[Point, Price]:
    """Of points that are there several times the mean."""
    found: dict[Point, list[Price]] = {}
    for point, price in zip(points, prices, strict=True):
        found.setdefault(point, []).append(price)
    return {
        point: Price(sum(price.seconds for price in same) / len(same), max(price.rank for price in same))
        for point, same in found.items()
    }


def forms_of(profile: Profile, name: str) -> list[str]:
    """How each axis of a table is interpolated: as its description says ("linear, sqrt"), else as is usual.

    Raises:
        InputError: the description names an unknown form, or not one for each axis.
    """
    axes = [column.name for column in TABLES[name].axes]
    told = profile.meta.accuracy.get(name)
    if told is None or not told.form:
        return [_DEFAULT_FORMS.get(f"{name}.{axis}", "linear") for axis in axes]
    forms = [form.strip() for form in told.form.split(",")]
    if len(forms) != len(axes) or not set(forms) <= set(FORMS):
        raise InputError(
            f"profile {profile.meta.name!r}: [accuracy.{name}] form {told.form!r} must name one of {', '.join(FORMS)} "
            f"for each of {', '.join(axes)}"
        )
    return forms
