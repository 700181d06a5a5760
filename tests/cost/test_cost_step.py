"""The fixed price: exact in whole numbers, and a span is its steps one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.fixed import FixedCost
from sim.cost.step import StepCost, Term, advanced, device_seconds, shape_context, shape_rows, shape_tokens
from sim.engine.batch import Shape
from traces.schema import InputError

SLICES = st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 100_000)), max_size=4).map(tuple)
WHOLE = st.integers(0, 10**6).map(float)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    decodes = draw(st.integers(0, 300))
    context = draw(st.integers(decodes, decodes * 10_000)) if decodes else 0
    return Shape(draw(SLICES), decodes, context)


def test_context_of_a_slice_is_its_past_and_its_new_tokens() -> None:
    shape = Shape(((100, 30), (5, 0)), 2, 50)
    assert shape_tokens(shape) == 107
    assert shape_context(shape) == 130 + 5 + 50
    assert FixedCost(1000.0, 10.0, 1.0).span_s(shape, 2) == ([1000.0 + 1070 + 185, 1000.0 + 1070 + 187], 0.0)


def test_every_draft_that_is_verified_has_a_row_of_logits() -> None:
    shape = Shape(((100, 30),), 2, 50, verifies=((4, 1, 90, 0), (1, 1, 7, 0)))
    assert shape_rows(shape) == 1 + 2 + 4 + 1
    assert shape_tokens(shape) == 100 + 2 + 4 + 1
    assert shape_context(shape) == 130 + 50 + 94 + 8


def test_a_later_step_of_a_span() -> None:
    shape = Shape(((3, 4),), 5, 100, 6, 7, 80, 2)
    assert advanced(shape, 0) == shape
    assert advanced(shape, 10) == Shape(((3, 4),), 5, 150, 6, 7, 100, 2)


def test_a_step_of_nothing_costs_nothing() -> None:
    assert FixedCost(5.0, 1.0, 1.0).span_s(Shape(), 3) == ([0.0, 0.0, 0.0], 0.0)
    assert device_seconds(FixedCost(5.0, 1.0, 1.0).explain(Shape()).values()) == 0.0


@given(shapes(), st.integers(1, 50), WHOLE, WHOLE, WHOLE)
def test_whole_numbers_stay_exact(shape: Shape, repeats: int, base: float, token: float, context: float) -> None:
    cost: StepCost = FixedCost(base, token, context)
    seconds, host_s = cost.span_s(shape, repeats)
    assert host_s == 0.0
    for i, step_s in enumerate(seconds):
        later = advanced(shape, i)
        exact = int(base) + int(token) * shape_tokens(shape) + int(context) * shape_context(later)
        assert step_s == (exact if shape_tokens(shape) else 0)
        assert cost.span_s(later, 1)[0][0] == step_s
        assert device_seconds(cost.explain(later).values()) == step_s


def test_host_terms_are_no_part_of_the_device() -> None:
    assert device_seconds([Term(1.0, "a"), Term(5.0, "b", on_host=True)]) == 1.0


def test_constants_are_described() -> None:
    described = FixedCost(1.0, 2.0).describe()
    assert [(constant.name, constant.value) for constant in described] == [
        ("base_s", 1.0),
        ("per_token_s", 2.0),
        ("per_context_token_s", 0.0),
    ]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_prices_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="per_token_s"):
        FixedCost(1.0, value)
