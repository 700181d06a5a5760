"""Warm-up, intervals and growing queues against slow definitions, known distributions and exact queues."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sim.study.statistics import (
    SPANS,
    Growth,
    by_replications,
    by_skewed_replications,
    growth,
    mser5,
    student_t,
)


def slow_mser5(series: np.ndarray) -> int | None:
    """White's rule as it is written down: every truncation point by itself."""
    count = len(series) // 5
    means = [series[5 * at : 5 * at + 5].mean() for at in range(count)]
    half = count // 2
    errors = [np.var(means[cut:]) / (count - cut) for cut in range(half + 1)]
    best = int(np.argmin(errors))
    return None if best == half else 5 * best


@settings(max_examples=60)
@given(npst.arrays(np.float64, st.integers(20, 120), elements=st.floats(-100, 100, width=16)))
def test_mser5_is_whites_rule(series: np.ndarray) -> None:
    fast, slow = mser5(series), slow_mser5(series)
    if fast != slow:  # only where two truncation points are as good, but for rounding
        means = np.array([series[5 * at : 5 * at + 5].mean() for at in range(len(series) // 5)])
        errors = [np.var(means[cut:]) / (len(means) - cut) for cut in range(len(means) // 2 + 1)]
        places = [len(means) // 2 if one is None else one // 5 for one in (fast, slow)]
        assert errors[places[0]] == pytest.approx(errors[places[1]], rel=1e-6, abs=1e-9)


def test_mser5_finds_where_a_start_from_empty_ends() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 2000)
    start = 20 * np.exp(-np.arange(2000) / 40)
    cut = mser5(start + noise)
    assert cut is not None
    assert 80 <= cut <= 300  # the start has fallen to between 2.7 and 0.01
    assert mser5(np.arange(2000.0)) is None  # it never settles
    assert mser5(np.ones(19)) is None
    assert mser5(np.concatenate([np.full(50, np.nan), noise])) is not None


def test_student_quantiles() -> None:
    # Any table of the t distribution.
    assert student_t(0.95, 9) == pytest.approx(2.262157, abs=1e-6)
    assert student_t(0.95, 1) == pytest.approx(12.706205, abs=1e-5)
    assert student_t(0.99, 30) == pytest.approx(2.749996, abs=1e-5)


def test_replications_give_students_interval() -> None:
    values = [1.20, 1.50, 1.68, 1.89, 0.95, 1.49, 1.58, 1.55, 0.50, 1.09]  # Law 2014, example 4.26
    found = by_replications(values, 0.90)
    assert found.mean == pytest.approx(1.34, abs=0.005)
    assert found.half_width == pytest.approx(0.24, abs=0.01)
    assert by_replications([2.0]).half_width == math.inf
    flat = by_replications([2.0, 2.0, 2.0])
    assert (flat.low, flat.high, flat.relative) == (2.0, 2.0, 0.0)


def test_skewed_intervals_cover_where_students_do_not() -> None:
    # Shares of rare events: mostly nothing, now and then much; the mean is 1.
    rng = np.random.default_rng(0)
    draws = rng.gamma(0.25, 4.0, (4000, 10))
    plain, skewed = ([rule(row) for row in draws] for rule in (by_replications, by_skewed_replications))
    covers = [np.mean([one.low <= 1 <= one.high for one in some]) for some in (plain, skewed)]
    assert covers[0] < 0.86
    assert covers[1] > covers[0] + 0.06
    symmetric = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert by_skewed_replications(symmetric) == by_replications(symmetric)
    assert by_skewed_replications([1.0, 1.0, 1.0]) == by_replications([1.0, 1.0, 1.0])


@settings(max_examples=50)
@given(npst.arrays(np.float64, st.integers(3, 20), elements=st.floats(0, 1, width=32)))
def test_skewed_intervals_hold_the_mean(values: np.ndarray) -> None:
    found = by_skewed_replications(values)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


def md1(load: float, count: int, seed: int) -> Growth:
    """The growth of an M/D/1 queue of service time 1 after the first quarter."""
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(1 / load, count))
    steps = np.arange(count)
    finish_s = np.maximum.accumulate(arrival_s - steps) + steps + 1.0
    return growth(arrival_s, finish_s, np.ones(count), float(arrival_s[count // 4]), float(arrival_s[-1]))


@pytest.mark.parametrize("load", [0.5, 0.9, 0.95])
def test_a_busy_queue_is_not_called_unstable(load: float) -> None:
    for count in (1000, 5000):
        assert sum(md1(load, count, seed).unstable for seed in range(100)) == 0


def test_a_queue_above_capacity_is_called_unstable() -> None:
    assert sum(md1(1.1, 5000, seed).unstable for seed in range(100)) >= 95
    assert all(md1(1.3, 2000, seed).unstable for seed in range(50))
    shares = [md1(1.25, 5000, seed).share for seed in range(50)]
    assert np.mean(shares) == pytest.approx(1 - 1 / 1.25, abs=0.01)


def test_growth_of_exact_queues() -> None:
    # Arrivals each second; service takes 1 s or 2 s, so that the backlog stands still or grows by a half.
    arrival_s = np.arange(1000.0)
    work = np.ones(1000)
    still = growth(arrival_s, arrival_s + 1.0, work, 100.0, 900.0)
    assert (still.share, still.unstable) == (pytest.approx(0.0, abs=1e-3), False)
    grows = growth(arrival_s, 2 * arrival_s + 2.0, work, 100.0, 900.0)
    assert grows.unstable
    assert grows.share == pytest.approx(0.5, abs=0.01)
    never = growth(arrival_s, np.full(1000, np.nan), work, 100.0, 900.0)
    assert never.share == pytest.approx(1.0, abs=0.01)
    assert SPANS == 20
    assert growth(arrival_s, arrival_s, work, 2000.0, 3000.0) == Growth(0.0, 0.0)
