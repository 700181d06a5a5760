"""Thinning keeps totals, extremes and percentiles: laws of what the plots are drawn from."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import CAPACITY_TOKENS, make_run

from sim.report.measures import LatencyUnits
from sim.report.run import charts, timeline
from sim.results import series, stability
from sim.results.percentiles import distribution
from sim.results.series import Pieces

lengths = st.lists(
    st.tuples(st.floats(0.01, 3), st.floats(0, 2), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=20
)


def pieces_of(rows: list[tuple[float, float, float, float]]) -> Pieces:
    """Rows of (length, idle before, first value, last value)."""
    start, end, now = [], [], 0.0
    for length, idle, _, _ in rows:
        start.append(now + idle)
        now = now + idle + length
        end.append(now)
    first, last = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    return Pieces(np.array(start), np.array(end), first, last)


@given(lengths, st.integers(1, 50))
def test_buckets_keep_the_integral_and_the_range(rows: list[tuple[float, float, float, float]], buckets: int) -> None:
    pieces = pieces_of(rows)
    edges = np.linspace(0.0, pieces.end_s[-1], buckets + 1)
    area = float(np.dot(pieces.end_s - pieces.start_s, (pieces.first + pieces.last) / 2))
    assert series.sum_of_means([pieces], edges).sum() * (edges[1] - edges[0]) == pytest.approx(area)
    found = series.busy_means([pieces], edges)
    known = ~np.isnan(found["mean"])
    assert (found["min"][known] <= found["mean"][known]).all()
    assert (found["mean"][known] <= found["max"][known]).all()
    if (pieces.end_s - pieces.start_s > 1e-6).all():
        assert np.nanmax(found["max"]) == max(pieces.first.max(), pieces.last.max())
        assert np.nanmin(found["min"]) == min(pieces.first.min(), pieces.last.min())


def test_idle_time_is_a_gap_and_not_a_zero() -> None:
    pieces = Pieces.constant(np.array([0.0, 3.0]), np.array([1.0, 4.0]), np.array([5.0, 7.0]))
    found = series.busy_means([pieces], np.linspace(0, 4, 5))
    np.testing.assert_array_equal(found["mean"], [5.0, np.nan, np.nan, 7.0])
    np.testing.assert_array_equal(series.sum_of_means([pieces, pieces], np.linspace(0, 4, 5)), [10.0, 0.0, 0.0, 14.0])


def test_a_slope_is_integrated_exactly() -> None:
    pieces = Pieces(np.array([0.0]), np.array([4.0]), np.array([0.0]), np.array([8.0]))
    np.testing.assert_allclose(series.sum_of_means([pieces], np.linspace(0, 4, 5)), [1.0, 3.0, 5.0, 7.0])


def test_levels_count_open_intervals() -> None:
    level = series.level(np.array([0.0, 1.0, 2.0]), np.array([1.0, np.nan, 3.0]), 5.0)
    np.testing.assert_array_equal(level.start_s, [0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(level.first, [1, 1, 2, 1])
    assert level.end_s[-1] == 5.0
    assert not len(series.level(np.empty(0), np.empty(0), 5.0).first)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=30), st.integers(1, 20))
def test_points_are_bucketed_as_a_loop_would(points: list[tuple[float, float]], buckets: int) -> None:
    points = sorted(points)
    at, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    edges = np.linspace(0.0, 10.0, buckets + 1)
    found = series.point_buckets(at, values, edges)
    for i, (low, high) in enumerate(pairwise(edges)):
        mine = values[(at >= low) & ((at < high) | (i == buckets - 1))]
        if not len(mine):
            assert np.isnan(found["mean"][i])
            continue
        assert found["mean"][i] == pytest.approx(mine.mean())
        assert (found["min"][i], found["max"][i]) == (mine.min(), mine.max())


def test_cdf_of_few_values_is_all_of_them_and_of_many_their_percentiles() -> None:
    x, percents = series.cdf(np.array([3.0, 1.0, 2.0]), np.array([1, 1, 1]))
    assert (list(x), list(percents)) == ([1.0, 2.0, 3.0], [0.0, 50.0, 100.0])
    values = np.random.default_rng(0).exponential(size=5000)
    x, percents = series.cdf(values, np.ones(5000, dtype=np.int64))
    np.testing.assert_array_equal(x, np.percentile(values, percents))
    assert len(x) < 1100
    assert (x[0], x[-1]) == (values.min(), values.max())
    assert not len(series.cdf(np.empty(0), np.empty(0, dtype=np.int64))[0])


def test_compact_keeps_four_digits() -> None:
    assert series.compact(np.array([1234.56, 0.000123456, np.nan, 7.0, 0.0])) == [1235, 0.0001235, None, 7, 0]


def test_the_kv_stack_adds_up_to_the_capacity_everywhere() -> None:
    run = make_run(200, rate=14.0, replicas=2)
    spec = timeline.kv_chart(run.summary["kv"], run.steps, timeline.TimeAxis.of(run)).spec
    total = np.sum([line["mean"] for line in spec["series"]], axis=0)
    np.testing.assert_allclose(total, 2 * CAPACITY_TOKENS, rtol=2e-3)
    used = np.mean(next(line["mean"] for line in spec["series"] if line["kind"] == "used"))
    assert used / (2 * CAPACITY_TOKENS) == pytest.approx(run.summary["kv"]["mean_used"], rel=1e-3)


def test_the_queue_obeys_littles_law() -> None:
    """Mean number waiting x duration = sum of the times waited; the same for those being served."""
    run = make_run(300, rate=16.0)
    spec = timeline.queue_chart(run.requests, timeline.TimeAxis.of(run)).spec
    duration = run.summary["duration_s"]
    served = (run.requests["finish_s"] - run.requests["first_scheduled_s"]).sum()
    for line, total in zip(spec["series"], (run.requests["queue_s"].sum(), served), strict=True):
        assert np.mean(line["mean"]) * duration == pytest.approx(total, rel=2e-3)


def test_the_phases_add_up_to_the_latency() -> None:
    run = make_run(300, rate=16.0)
    chart = charts.phases_chart(run.requests, LatencyUnits.of([run.summary])["e2e_s"])
    assert chart is not None
    first = chart.spec["rows"][0]
    assert sum(first["values"]) == pytest.approx(run.summary["e2e_s"]["mean"], rel=1e-3)
    counts = [int(row["note"].split(", ")[1].split()[0]) for row in chart.spec["rows"]]
    assert (counts[0], sum(counts[1:])) == (299, 299)


def test_sentences_state_the_summary() -> None:
    run = make_run(200, rate=14.0, slo="ttft_p99=0.05,ttft=0.2")
    ttft, *_ = charts.latency_charts(run, LatencyUnits.of([run.summary]))
    assert f"{run.summary['ttft_s']['p50'] * 1e3:.1f} ms" in ttft.sentence
    assert [limit["label"] for limit in ttft.spec["limits"]] == ["p99 limit 50 ms", "max limit 200 ms"]
    assert [limit["x"] for limit in ttft.spec["limits"]] == pytest.approx([50.0, 200.0])
    assert ttft.note == ""
    assert json.dumps(
        [chart.spec for chart in timeline.time_charts(run, LatencyUnits.of([run.summary]))], allow_nan=False
    )


def arrivals(rate: float, service_s: float, count: int = 800) -> pd.DataFrame:
    """A single server with constant service: an M/D/1 queue."""
    at = np.cumsum(np.random.default_rng(1).exponential(1 / rate, count))
    begin, free = np.empty(count), 0.0
    for i, arrival in enumerate(at):
        begin[i] = free = max(free, arrival)
        free += service_s
    return pd.DataFrame({"arrival_s": at, "first_scheduled_s": begin, "status": "completed"})


def test_a_queue_above_capacity_is_reported_and_one_below_is_not() -> None:
    assert stability.queue_warning(arrivals(10.0, 0.08)) is None
    assert stability.queue_warning(arrivals(10.0, 0.08, 50)) is None
    told = stability.queue_warning(arrivals(10.0, 0.13))
    assert told is not None
    assert "above capacity" in told
    never = arrivals(10.0, 0.13).assign(first_scheduled_s=float("nan"), status="unfinished")
    assert stability.queue_warning(never) is not None
    at = np.arange(800) / 10
    slowly = pd.DataFrame({"arrival_s": at, "first_scheduled_s": at * 1.005 + 0.6, "status": "completed"})
    assert stability.queue_warning(slowly) is None
    together = arrivals(10.0, 0.13).assign(arrival_s=0.0)
    assert stability.queue_warning(together) is None


def test_mean_waiting_is_the_time_spent_waiting() -> None:
    requests = arrivals(10.0, 0.09)
    edges = np.array([0.0, 1e6])
    waited = (requests["first_scheduled_s"] - requests["arrival_s"]).sum()
    assert stability.mean_waiting(requests, edges)[0] * 1e6 == pytest.approx(waited, rel=1e-6)


def test_itl_chart_reads_the_weights() -> None:
    run = make_run(50, rate=14.0)
    itl = charts.latency_charts(run, LatencyUnits.of([run.summary]))[2]
    assert itl.name == "itl"
    expanded = np.repeat(*run.itl) * 1e3
    assert itl.spec["series"][0]["x"][-1] == pytest.approx(expanded.max(), rel=1e-3)
    assert itl.spec["marks"][0]["x"] == pytest.approx(np.percentile(expanded, 50))
    assert distribution(*run.itl)["max"] == pytest.approx(expanded.max() / 1e3)
