"""Laws of interpolation: exact where measured, between neighbours, monotone where the data are, honest outside."""

from __future__ import annotations

import math
import random
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.interpolation import (
    DERIVED,
    EXTRAPOLATED,
    FORMS,
    INTERPOLATED,
    MEASURED,
    Line,
    Point,
    Price,
    PriceGrid,
    left_out,
)
from sim.cost.planes import Planes

AXIS = st.lists(st.integers(1, 5000), min_size=2, max_size=7, unique=True).map(sorted)
SECONDS = st.floats(1e-6, 10.0)
FORM = st.sampled_from(FORMS)


def guide(point: Point) -> float:
    """Some law that rises in every coordinate."""
    return 1e-5 + 1e-6 * math.prod(1.0 + x for x in point)


@st.composite
def grids(draw: st.DrawFn) -> tuple[dict[Point, Price], list[str]]:
    """A grid of two axes, whose lines differ."""
    points = {}
    for x in draw(AXIS):
        for y in draw(AXIS):
            points[float(x), float(y)] = Price(draw(SECONDS), MEASURED)
    return points, [draw(FORM), draw(FORM)]


@given(grids())
def test_exact_where_measured(made: tuple[dict[Point, Price], list[str]]) -> None:
    points, forms = made
    grid = PriceGrid(points, forms, guide)
    for point, price in points.items():
        assert grid.at(point) == price
        assert grid.at(point).source == "measured"


def blend(form: str, share: float, ends: tuple[float, float], guides: tuple[float, float, float]) -> float:
    """Seconds `share` of the way between two points; `guides` are the guide's at left end, point and right end."""
    low, high = ends
    if form == "linear":
        return low + (high - low) * share
    if form == "sqrt":
        return (math.sqrt(low) + (math.sqrt(high) - math.sqrt(low)) * share) ** 2
    left, here, right = guides
    return here * (low / left + (high / right - low / left) * share)


def nested(points: dict[Point, Price], forms: list[str], at: Point, before: Point = ()) -> Price:
    """A grid of any axes, holes and all, without a word of speed: one axis after the other."""
    axis = len(before)
    if axis == len(at):
        return points[before]
    x, values = at[axis], sorted({point[axis] for point in points if point[:axis] == before})

    def told(value: float) -> Price:
        return nested(points, forms, at, (*before, value))

    def curve(value: float) -> float:
        return guide((*before, value, *at[axis + 1 :]))

    if x in values:
        return told(x)
    if not values[0] < x < values[-1]:
        edge = min(max(x, values[0]), values[-1])
        return Price(told(edge).seconds * (curve(x) / curve(edge)), max(told(edge).rank, EXTRAPOLATED))
    left, right = _beside(values, x)
    low, high = told(left), told(right)
    seconds = blend(
        forms[axis], (x - left) / (right - left), (low.seconds, high.seconds), (curve(left), curve(x), curve(right))
    )
    return Price(seconds, max(low.rank, high.rank, INTERPOLATED))


@st.composite
def holed(draw: st.DrawFn) -> tuple[dict[Point, Price], list[str], list[Point]]:
    """A grid of up to four axes with holes, and points on, between and beyond its own."""
    axes = draw(st.integers(1, 4))
    values = [draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)) for _ in range(axes)]
    whole = [tuple(map(float, point)) for point in product(*values)]
    kept = [at for at in whole if draw(st.integers(0, 5))] or whole
    points = {at: Price(draw(SECONDS), draw(st.sampled_from((MEASURED, DERIVED)))) for at in kept}
    coordinate = st.integers(0, 10) | st.floats(0.0, 10.0)
    asked = draw(st.lists(st.tuples(*[coordinate] * axes), min_size=1, max_size=12))
    return points, draw(st.lists(FORM, min_size=axes, max_size=axes)), asked


@given(holed())
def test_speed_changes_no_bit(made: tuple[dict[Point, Price], list[str], list[Point]]) -> None:
    points, forms, asked = made
    grid = PriceGrid(points, forms, guide)
    for at in asked:
        assert grid.at(at) == nested(points, forms, at)
    seconds, ranks = grid.each([np.array(axis, np.float64) for axis in zip(*asked, strict=True)])
    assert list(map(Price, seconds.tolist(), ranks.tolist())) == [nested(points, forms, at) for at in asked]


def test_an_array_is_squared_as_its_numbers_are() -> None:
    """Squares of one in a thousand differ in their last bit."""
    grid = PriceGrid({(0.0,): Price(0.3, MEASURED), (20_000.0,): Price(7.1, MEASURED)}, ["sqrt"], guide)
    assert grid.each([np.arange(20_000)])[0].tolist() == [grid.at((x,)).seconds for x in range(20_000)]


@given(st.floats(0.0, 1.0), SECONDS, SECONDS)
def test_between_its_neighbours(share: float, low: float, high: float) -> None:
    for form in ("linear", "sqrt"):
        seconds = (
            PriceGrid({(0.0,): Price(low, MEASURED), (1.0,): Price(high, MEASURED)}, [form], guide).at((share,)).seconds
        )
        assert min(low, high) * (1 - 1e-12) <= seconds <= max(low, high) * (1 + 1e-12)


@given(AXIS, st.data(), st.sampled_from(["linear", "sqrt"]))
def test_monotone_where_the_data_are(values: list[int], data: st.DataObject, form: str) -> None:
    rising = sorted(data.draw(st.lists(SECONDS, min_size=len(values), max_size=len(values))))
    grid = PriceGrid(
        {(float(x),): Price(seconds, MEASURED) for x, seconds in zip(values, rising, strict=True)}, [form], guide
    )
    probes = sorted({data.draw(st.integers(1, 9000)) for _ in range(6)} | set(values))
    prices = [grid.at((float(x),)).seconds for x in probes]
    for here, there in pairwise(prices):
        assert there >= here * (1 - 1e-9)


@given(grids(), st.integers(1, 9000), st.integers(1, 9000))
def test_sources_and_sign(made: tuple[dict[Point, Price], list[str]], x: int, y: int) -> None:
    points, forms = made
    price = PriceGrid(points, forms, guide).at((float(x), float(y)))
    assert 0.0 < price.seconds < math.inf
    outer = sorted({point[0] for point in points})
    if (x, y) in points:
        assert price.rank == MEASURED
    elif not outer[0] <= x <= outer[-1]:
        assert price.rank == EXTRAPOLATED
    else:
        assert price.rank in (INTERPOLATED, EXTRAPOLATED)
        lines = [sorted(b for a, b in points if a == near) for near in _beside(outer, x)]
        inside = all(line[0] <= y <= line[-1] for line in lines)
        assert (price.rank == INTERPOLATED) == inside


def _beside(values: list[float], x: float) -> list[float]:
    if x in values:
        return [x]
    above = next(at for at, value in enumerate(values) if value > x)
    return values[above - 1 : above + 1]


@given(AXIS, SECONDS, st.floats(1.0, 50.0))
def test_efficiency_is_held_outside(values: list[int], seconds: float, further: float) -> None:
    grid = PriceGrid({(float(x),): Price(seconds, MEASURED) for x in values}, ["linear"], guide)
    for edge, x in ((values[-1], values[-1] * further), (values[0], values[0] / further)):
        expected = seconds * guide((x,)) / guide((float(edge),))
        assert grid.at((x,)).seconds == pytest.approx(expected, rel=1e-12)


@given(AXIS, st.data(), st.floats(0.0, 1.0))
def test_a_number_and_an_array_give_the_same_bits(values: list[int], data: st.DataObject, slope: float) -> None:
    seconds = data.draw(st.lists(SECONDS, min_size=len(values), max_size=len(values)))
    line = Line([(float(x), Price(s, MEASURED)) for x, s in zip(values, seconds, strict=True)], slope)
    xs = sorted(data.draw(st.lists(st.integers(values[0], 20_000), min_size=1, max_size=20)))
    assert line.along(np.array(xs, np.float64)).tolist() == [line.at(x) for x in xs]
    for x, s in zip(values, seconds, strict=True):
        assert line.at(x) == s
        assert line.rank(x) == MEASURED
    assert line.rank(values[-1] + 1) == EXTRAPOLATED


LAWS = {
    "linear": lambda x: 3e-6 + 2e-7 * x,
    "sqrt": lambda x: (1e-3 + 4e-6 * x) ** 2,
    "efficiency": lambda x: guide((x,)) * 1.7,
}


@pytest.mark.parametrize("name", sorted(LAWS))
def test_leaving_points_out_tells_the_law(name: str) -> None:
    """Of each law its own form predicts what was left out, and another form does not."""
    bent = name == "efficiency"
    points = {(float(2**power),): Price(LAWS[name](2.0**power), MEASURED) for power in range(12)}
    curve = (lambda point: guide(point) + 1e-9 * point[0] ** 2) if bent else guide
    if bent:
        points = {point: Price(1.7 * curve(point), MEASURED) for point in points}
    errors = {form: max(abs(error) for _, error in left_out(points, curve, 0, form)) for form in FORMS}
    assert errors[name] < 1e-9
    assert max(errors[form] for form in FORMS if form != name) > 0.01


def test_an_unknown_form_and_no_points_are_refused() -> None:
    for points, form in (({(1.0,): Price(1.0, MEASURED)}, "cubic"), ({}, "linear")):
        with pytest.raises(ValueError, match="needs a point, and of each axis one of linear, sqrt, efficiency"):
            PriceGrid(points, [form], guide)


def four_axes(rng: random.Random) -> dict[Point, Price]:
    """A grid as those of attention in one launch: two regular ones that share ends, with holes now and then."""
    points = {}
    for seconds, thirds, lasts in (((8, 64), (0, 32), (16, 64, 256)), ((8, 24), (0, 16), (16, 81, 180))):
        for outer in product((2, 5), seconds):
            for inner in product(thirds, lasts) if rng.random() < 0.9 else ():
                if rng.random() < 0.98:
                    rank = rng.choice([MEASURED, MEASURED, DERIVED])
                    points[tuple(map(float, (*outer, *inner)))] = Price(rng.uniform(1e-6, 10.0), rank)
    return points


@pytest.mark.parametrize("seed", range(8))
def test_two_points_at_once_are_each_to_the_bit(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        points, forms = four_axes(rng), rng.choice([["sqrt", "linear", "linear", "sqrt"], rng.choices(FORMS, k=4)])
        together, alone = Planes(PriceGrid(points, forms, guide)), PriceGrid(points, forms, guide)
        for _ in range(40):
            first, other = rng.choice([2.0, 3.0, 5.0, 6.0]), rng.choice([7.0, 8.0, 40.5, 64.0, 70.0])
            third, last = rng.choice([0.0, 16.0, 20.0, 32.0]), rng.choice([16.0, 64.0, 81.0, rng.uniform(10.0, 300.0)])
            point = (first, rng.choice([5.0, 8.0, 24.0, 30.0, 64.0]), third, last)
            found = together.both(point, other)
            assert found == (*alone.at(point), *alone.at((first, other, third, last)))


@pytest.mark.parametrize("seed", range(4))
def test_many_points_of_four_axes_are_each_to_the_bit(seed: int) -> None:
    rng = random.Random(seed)
    places = ((2.0, 3.0, 5.0, 6.0), (5.0, 8.0, 30.0, 64.0), (0.0, 16.0, 20.0, 40.0), (10.0, 64.0, 81.0, 200.0, 300.0))
    asked = list(product(*places))
    for _ in range(20):
        grid = PriceGrid(four_axes(rng), ["sqrt", "linear", "linear", "sqrt"], guide)
        found = grid.each([np.array(axis) for axis in zip(*asked, strict=True)])
        assert list(zip(*(part.tolist() for part in found), strict=True)) == [tuple(grid.at(point)) for point in asked]
