"""From a profile's tables to the price of one launch of one kernel: its own grid, or its nearest relatives' efficiency.

A kernel of a shape that was not measured (a matrix of another size, other heads) is priced in efficiency space: what
its nearest measured relatives take over what the roofline says of them, weighted by distance, times what the roofline
says of it. It knows no model and no step.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import (
    DERIVED,
    EXTRAPOLATED,
    FORMS,
    INTERPOLATED,
    MEASURED,
    Guide,
    Line,
    Measured,
    Point,
    Price,
    PriceGrid,
    Prices,
)
from sim.cost.kernels import guide_of
from sim.cost.planes import Planes
from sim.cost.profile import Profile
from sim.cost.schema import DERIVED as DERIVED_ROW
from sim.cost.schema import TABLES
from sim.cost.tables import Floats, Ints, Picked, Row, Table, Value, apart
from sim.specs.gpu import GpuSpec
from traces.schema import InputError

NEIGHBOURS = 4
"""Relatives that price a kernel of another shape; the weight of each falls with the square of the distance."""
_RELATED: Mapping[str, tuple[str, ...]] = {
    "gemm": ("k", "n"),
    "expert_gemm": ("experts", "experts_per_token", "k", "n"),
    "expert_layer": ("experts", "experts_per_token", "hidden", "ffn"),
    "prefill_attention": ("heads", "kv_heads"),
    "decode_attention": ("heads", "kv_heads", "width"),
    "mixed_attention": ("heads", "kv_heads"),
    "latent_prefill_attention": ("heads",),
    "latent_decode_attention": ("heads",),
    "elementwise": ("width",),
    "sampling": ("vocab",),
}
"""Group columns in which relatives of a kernel may differ from it."""
_DEFAULT_FORMS: Mapping[str, str] = {"prefill_attention.new_tokens": "sqrt"}
"""AIConfigurator's leave-one-out (KV interpolation design): along prefill length the square root; else linear."""
MEAN, LONGEST = "mean_context_tokens", "max_context_tokens"


class Uneven(NamedTuple):
    """What decode batches of uneven contexts cost beyond even ones of their mean: part of the way to even ones as long
    as the longest. Few rows leave a kernel waiting for the longest, many fill the chip whatever their lengths: the part
    depends on their number above all (LLMServingSim's skew profile is binned by it as well, `profiler/`, `skew_fit`).

    Shares from 0 (work is shared out evenly) to 1 (rows are padded to the longest), by rising numbers of rows."""

    rows: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def at(self, rows: float) -> float:
        """The share of a batch of so many rows: straight between those measured, the nearest's beyond; 0 of none."""
        if not self.rows:
            return 0.0
        above = bisect_left(self.rows, rows)
        if above in (0, len(self.rows)):
            return self.shares[min(above, len(self.rows) - 1)]
        left, right = self.rows[above - 1], self.rows[above]
        low, high = self.shares[above - 1], self.shares[above]
        return low + (high - low) * ((rows - left) / (right - left))


class Kernel:
    """Prices of one kernel: `parts` are grids of measured kernels with their guides and weights.

    `uneven` is what of attention's time follows the longest context of decode rows instead of the mean.
    """

    __slots__ = ("_guide", "_least_rank", "_own", "_parts", "_planes", "uneven")

    def __init__(
        self, guide: Guide, parts: Sequence[tuple[PriceGrid, Guide, float]], least_rank: int, uneven: Uneven
    ) -> None:
        self.uneven = uneven
        self._guide = guide
        self._parts = parts
        self._least_rank = least_rank
        self._own = parts[0][0] if least_rank == MEASURED else None
        self._planes = Planes(self._own) if self._own is not None else None

    def at(self, *point: float) -> Price:
        """Seconds of one launch at a point of the table's axes."""
        if self._own is not None:
            return self._own.at(point)
        share, rank = 0.0, self._least_rank
        for grid, guide, weight in self._parts:
            seconds, part_rank = grid.at(point)
            share += weight * seconds / guide(point)
            rank = max(rank, part_rank)
        return Price(share * self._guide(point), rank)

    def both(self, point: Point, other: float) -> tuple[float, int, float, int]:
        """Seconds and rank of `at` at a point of four axes, and at the one whose second coordinate is `other`."""
        if self._planes is not None:
            return self._planes.both(point, other)
        price, more = self.at(*point), self.at(point[0], other, *point[2:])
        return price.seconds, price.rank, more.seconds, more.rank

    def each(self, xs: Ints) -> Prices:
        """`at` of so many points of a table with one axis, to the bit."""
        if self._own is not None:
            return self._own.each((xs,))
        share: Any = 0.0
        ranks = np.full(len(xs), self._least_rank)
        for grid, part_guide, weight in self._parts:
            seconds, part_ranks = grid.each((xs,))
            among: Any = part_guide
            share = share + weight * seconds / among((xs,))
            ranks = np.maximum(ranks, part_ranks)
        guide: Any = self._guide
        return share * guide((xs,)), ranks

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


class MeasuredKernel(NamedTuple):
    """One kernel of a table: its group columns, the rows that are its, its even ones as points, its guide."""

    group: Row
    rows: Picked
    points: Mapping[Point, Price]
    guide: Guide


def measured_kernels(table: Table, gpu: GpuSpec, efficiency: Efficiency) -> Iterator[MeasuredKernel]:
    """Those of a table that have a point."""
    for group, rows, measured in _kernels(table):
        guide = guide_of(table.spec.name, group, gpu, efficiency)
        yield MeasuredKernel(group, rows, measured.points(), guide)


def _kernels(table: Table) -> Iterator[tuple[Row, Picked, Measured]]:
    """(group columns, rows, points) of each kernel of a table that has a point."""
    for key, rows in table.grouped().items():
        measured = measured_of(table, rows)
        if measured is not None:
            yield {column.name: value for column, value in zip(table.spec.groups, key, strict=True)}, rows, measured


class _Priced(NamedTuple):
    """A measured kernel ready to be asked."""

    group: Row
    grid: PriceGrid
    guide: Guide
    uneven: Uneven


class Tables:
    """The kernels of a profile, by table and shape."""

    def __init__(self, profile: Profile, gpu: GpuSpec, efficiency: Efficiency) -> None:
        self._profile, self._gpu, self._efficiency = profile, gpu, efficiency
        self._known: dict[str, dict[tuple[Value, ...], _Priced]] = {}

    def table(self, name: str) -> Table | None:
        """The profile's table of that name."""
        return self._profile.tables.get(name)

    def kernel(self, name: str, **group: Value) -> Kernel | None:
        """The kernel whose group columns are `group`, made of relatives where it was not measured itself.

        None where the profile has no table for it, or none of its relatives in it. A table does not say on how many
        nodes a collective was measured: of a group that needs several, its prices are extrapolated.
        """
        table = self._profile.tables.get(name)
        if table is None:
            return None
        known = self._of(table)
        own = known.get(tuple(group[column.name] for column in table.spec.groups))
        if own is not None:
            across = name == "all_reduce" and self._gpu.nodes(int(group["gpus"])) > 1
            return Kernel(own.guide, [(own.grid, own.guide, 1.0)], EXTRAPOLATED if across else MEASURED, own.uneven)
        return self._related(name, group, guide_of(name, group, self._gpu, self._efficiency), list(known.values()))

    def _related(
        self, name: str, group: Row, guide: Guide, known: Sequence[_Priced], least_rank: int = INTERPOLATED
    ) -> Kernel | None:
        free = _RELATED.get(name, ())
        near = [one for one in known if all(one.group[key] == group[key] for key in group if key not in free)]
        if not near and group.get("window"):
            # The same kernel without its window, at what the roofline says that the window saves.
            return self._related(name, {**group, "window": 0}, guide, known, EXTRAPOLATED) if free else None
        if not near:
            return None
        sizes = [math.log(float(group[key])) for key in free]
        ranked = sorted(
            ((math.dist(sizes, [math.log(float(one.group[key])) for key in free]), at) for at, one in enumerate(near))
        )[:NEIGHBOURS]
        if ranked[0][0] == 0.0:
            ranked = ranked[:1]
        weights = [1.0 / max(distance, 1e-9) ** 2 for distance, _ in ranked]
        parts = [(near[at], weight / sum(weights)) for (_, at), weight in zip(ranked, weights, strict=True)]
        inside = all(
            min(float(one.group[key]) for one in near)
            <= float(group[key])
            <= max(float(one.group[key]) for one in near)
            for key in free
        )
        return Kernel(
            guide,
            [(part.grid, part.guide, weight) for part, weight in parts],
            least_rank if inside else EXTRAPOLATED,
            mean_shares([(part.uneven, weight) for part, weight in parts]),
        )

    def _of(self, table: Table) -> dict[tuple[Value, ...], _Priced]:
        name = table.spec.name
        if name not in self._known:
            forms = forms_of(self._profile, name)
            known = self._known[name] = {}
            for group, rows, measured in _kernels(table):
                guide = guide_of(name, group, self._gpu, self._efficiency)
                grid = PriceGrid(measured, forms, guide)
                known[tuple(group.values())] = _Priced(group, grid, guide, uneven_shares(table, rows, grid))
        return self._known[name]


def points_of(table: Table, picked: Picked) -> dict[Point, Price]:
    """`measured_of` by the coordinates of the axes."""
    measured = measured_of(table, picked)
    return {} if measured is None else measured.points()


def measured_of(table: Table, picked: Picked) -> Measured | None:
    """The points of those rows of a table that `picked` counts, which are of one kernel; None where there are none.

    Only of even batches, whose contexts are all alike; of points that are there several times the mean. Behind a window
    all contexts of decode rows are one.
    """
    rows = picked[even_rows(table, picked)]
    if not len(rows):
        return None
    axes = [table.numbers(column.name)[rows] for column in table.spec.axes]
    if table.spec.name == "decode_attention" and (window := table.numbers("window")[rows[0]]):
        axes[1] = np.minimum(axes[1], window)
    ranks = np.full(len(rows), MEASURED)
    if "origin" in table.columns and DERIVED_ROW in table.texts("origin"):
        ranks = np.array([DERIVED if table.texts("origin")[at] == DERIVED_ROW else MEASURED for at in rows])
    measured = Measured(tuple(axes), table.numbers("us")[rows] * 1e-6, ranks)
    return measured if apart(axes) else _merged(measured)


def _merged(measured: Measured) -> Measured:
    """Points of which some are alike: of these one, with their mean."""
    alike: dict[Point, list[Price]] = {}
    prices = map(Price, measured.seconds.tolist(), measured.ranks.tolist())
    for point, price in zip(zip(*(axis.tolist() for axis in measured.axes), strict=True), prices, strict=True):
        alike.setdefault(point, []).append(price)
    return Measured.of(
        {
            point: Price(sum([price.seconds for price in same]) / len(same), max(price.rank for price in same))
            for point, same in alike.items()
        }
    )


def forms_of(profile: Profile, name: str) -> list[str]:
    """How each axis of a table is interpolated: as its description says ("linear, sqrt"), else as is usual.

    Raises:
        InputError: the description names an unknown form, or not one for each axis.
    """
    axes = [column.name for column in TABLES[name].axes]
    known = profile.meta.accuracy.get(name)
    if known is None or not known.form:
        return [_DEFAULT_FORMS.get(f"{name}.{axis}", "linear") for axis in axes]
    forms = [form.strip() for form in known.form.split(",")]
    if len(forms) != len(axes) or not set(forms) <= set(FORMS):
        raise InputError(
            f"profile {profile.meta.name!r}: [accuracy.{name}] form {known.form!r} must name one of {', '.join(FORMS)} "
            f"for each of {', '.join(axes)}"
        )
    return forms


def even_rows(table: Table, picked: Picked) -> npt.NDArray[np.bool_]:
    """Of some rows of a table, which are not of decode rows whose contexts differ."""
    if LONGEST not in table.columns:
        return np.ones(len(picked), np.bool_)
    even: npt.NDArray[np.bool_] = table.numbers(LONGEST)[picked] == table.numbers(MEAN)[picked]
    return even


def uneven_shares(table: Table, picked: Picked, grid: PriceGrid) -> Uneven:
    """The shares that the uneven ones of a kernel's rows tell; `grid` prices even ones at a point of the table's axes,
    the first of which is the number of rows.

    Of batches with equally many rows it is the share with the least mean relative error: the median of their shares,
    each weighted by how much it matters.
    """
    rows = picked[~even_rows(table, picked)]
    if not len(rows):
        return Uneven()
    axes = [column.name for column in table.spec.axes]
    low, high = (
        1e6 * grid.each([table.numbers(longest if axis == MEAN else axis)[rows] for axis in axes])[0]
        for longest in (MEAN, LONGEST)
    )
    us, counts = table.numbers("us")[rows], table.numbers(axes[0])[rows]
    more = high > low
    shares, weights = (us - low)[more] / (high - low)[more], (high - low)[more] / us[more]
    medians = {}
    for count in np.unique(counts[more]).tolist():
        same = counts[more] == count
        medians[count] = round(min(max(_weighted_median(shares[same], weights[same]), 0.0), 1.0), 4)
    return Uneven(tuple(medians), tuple(medians.values()))


def mean_shares(parts: Sequence[tuple[Uneven, float]]) -> Uneven:
    """Of a kernel priced from several, each of a weight: the mean of their shares."""
    counts = tuple(sorted({count for part, _ in parts for count in part.rows}))
    return Uneven(counts, tuple(sum([weight * part.at(count) for part, weight in parts]) for count in counts))


def _weighted_median(values: Floats, weights: Floats) -> float:
    """The least value up to which half of the weight lies."""
    order = np.lexsort((weights, values))
    below = np.cumsum(weights[order])
    median: float = values[order][np.searchsorted(below, below[-1] / 2)].item()
    return median
