"""Runs paired by request: intervals that cover, signs, what is left out, what is kept, and how it is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import make_run
from scipy.signal import lfilter

from sim import api
from sim.report import terminal
from sim.report.compare import paired as paired_view
from sim.report.compare.page import render_comparison, summaries_of
from sim.report.compare.variant import Failure, Variant, differences
from sim.results.paired import FEWEST_PAIRS, PAIRED, PerRequest, difference, paired


def correlated(rng: np.random.Generator, count: int, phi: float) -> np.ndarray:
    """AR(1) with mean and median 0, in its steady state: neighbours are correlated by phi."""
    noise = rng.standard_normal(count + 400)
    return lfilter([1.0], [1.0, -phi], noise)[400:]


def table(**columns: object) -> pd.DataFrame:
    """Three columns of lengths and a completed status for each row, with the latencies given or 1 s."""
    count = len(next(iter(columns.values())))  # type: ignore[arg-type]
    whole = {"prompt_tokens": np.arange(count), "output_tokens": np.ones(count, np.int64), "status": "completed"}
    return pd.DataFrame({**whole, **dict.fromkeys(PAIRED, 1.0), **columns})


# --- the intervals ---


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_the_intervals_cover_as_often_as_they_claim(phi: float) -> None:
    """400 draws with a true difference of 0.3: 95 % +- 3.3 standard errors; i.i.d. intervals cover half of them."""
    rng = np.random.default_rng(1)
    found = [difference(0.3 + correlated(rng, 1000, phi)) for _ in range(400)]
    for statistic in ("mean", "median"):
        intervals = [getattr(one, statistic) for one in found]
        covered = np.mean([one.low_s <= 0.3 <= one.high_s for one in intervals])
        assert 0.914 <= covered <= 0.986, statistic
    assert np.mean([one.drifts for one in found]) < 0.03


def test_an_interval_of_neighbours_taken_for_independent_would_be_too_narrow() -> None:
    values = correlated(np.random.default_rng(2), 5000, 0.9)
    naive_s = 1.96 * values.std() / np.sqrt(len(values))
    found = difference(values).mean
    assert found.low_s is not None
    assert found.value_s - found.low_s > 2.5 * naive_s


def test_a_shift_is_found_and_swapping_turns_the_sign() -> None:
    rng = np.random.default_rng(3)
    base = rng.exponential(2.0, 600)
    slower = base + 0.5 + 0.1 * rng.standard_normal(600)
    there, here = (PerRequest.of(table(e2e_s=values)) for values in (base, slower))
    one, turned = (paired("x", *two).differences["e2e_s"] for two in ((there, here), (here, there)))
    assert one.verdict == "longer"
    assert turned.verdict == "shorter"
    assert one.mean.value_s == pytest.approx(0.5, abs=0.02)
    assert turned.mean.value_s == -one.mean.value_s
    assert (turned.mean.low_s, turned.mean.high_s) == pytest.approx((-one.mean.high_s, -one.mean.low_s))  # type: ignore[operator]
    assert (turned.median.low_s, turned.median.high_s) == pytest.approx((-one.median.high_s, -one.median.low_s))  # type: ignore[operator]


def test_noise_without_a_shift_is_chance() -> None:
    found = difference(correlated(np.random.default_rng(4), 2000, 0.5))
    assert found.mean.holds_zero
    assert found.verdict == "no difference beyond chance"


def test_a_difference_that_grows_drifts() -> None:
    assert difference(np.linspace(0.0, 9.0, 500)).verdict == "drifts along the trace"


@given(st.lists(st.floats(-1e4, 1e4), min_size=FEWEST_PAIRS, max_size=300))
def test_estimates_lie_in_their_intervals(values: list[float]) -> None:
    found = difference(np.array(values))
    for one in (found.mean, found.median):
        assert one.low_s is not None
        assert one.high_s is not None
        assert one.low_s <= one.value_s <= one.high_s
    assert found.median.value_s == np.median(values)


def test_a_median_with_ties_stays_where_most_are() -> None:
    """60 % of the requests are the same in both runs: the median is 0, and so are both of its ends."""
    values = np.random.default_rng(5).permutation(np.repeat([-2.0, 0.0, 3.0], [100, 300, 100]))
    assert difference(values).median == (0.0, 0.0, 0.0)


def test_too_few_pairs_have_no_interval() -> None:
    found = difference(np.linspace(1.0, 2.0, FEWEST_PAIRS - 1))
    assert found.mean == (1.5, None, None)
    assert found.mean.holds_zero is None
    assert found.verdict == "too few pairs to tell"
    assert paired_view.interval_text(found.median, 1.0) == "-"


# --- what is paired ---


def test_identical_runs_differ_by_exactly_nothing() -> None:
    runs = [Variant.of(name, make_run(300, rate=14.0)) for name in ("a", "b")]
    found = differences(runs)["b"]
    assert (found.against, found.pairs, found.left_out) == ("a", 299, 1)
    assert list(found.differences) == list(PAIRED)
    for one in found.differences.values():
        assert one.mean == one.median == (0.0, 0.0, 0.0)
        assert one.verdict == "the same in every request"


def test_requests_that_did_not_complete_in_both_are_counted_and_left_out() -> None:
    status = [
        ["completed", "completed", "completed", "completed", "rejected", "unfinished", "completed"],
        ["completed", "completed", "unfinished", "completed", "completed", "unfinished", "rejected"],
    ]
    values = [[1.0, 2, 3, 4, np.nan, np.nan, 5], [1.5, 3, 9, 4, 7, np.nan, np.nan]]
    first, second = (
        PerRequest.of(table(status=some, e2e_s=times, ttft_s=times)) for some, times in zip(status, values, strict=True)
    )
    found = paired("first", first, second)
    counts = (found.pairs, found.completed_there_only, found.completed_here_only, found.completed_in_neither)
    assert counts == (3, 2, 1, 1)
    assert found.differences["e2e_s"].pairs == 3
    assert found.differences["e2e_s"].mean.value_s == 0.5
    assert found.differences["ttft_s"].mean.value_s == 0.5, "a first token of an unfinished request does not count"
    text = "3 requests paired, 4 left out (2 completed in first alone, 1 completed here alone, 1 completed in neither)"
    assert paired_view.pairs_text(found) == text


def test_a_latency_that_a_request_does_not_have_is_no_pair() -> None:
    tpot_s = [np.nan, 0.1, 0.2]
    one = PerRequest.of(table(tpot_s=tpot_s))
    found = paired("x", one, one)
    assert found.pairs == 3
    assert found.differences["tpot_s"].pairs == 2
    none = PerRequest.of(table(tpot_s=[np.nan] * 3))
    assert "tpot_s" not in paired("x", none, none).differences


def test_other_requests_are_not_paired() -> None:
    there = PerRequest.of(table(prompt_tokens=np.arange(5)))
    for other in (table(prompt_tokens=np.arange(6)), table(prompt_tokens=np.arange(5) * 2)):
        found = paired("x", there, PerRequest.of(other))
        assert "not the same requests" in found.reason
        assert found.as_table() == {"against": "x", "reason": found.reason}
    assert not paired("x", there, PerRequest.of(table(prompt_tokens=np.arange(5), ttft_s=2.0))).reason


def test_a_request_takes_sixteen_bytes() -> None:
    kept = PerRequest.of(make_run(500).requests)
    assert sum(one.nbytes for one in kept.latencies_s.values()) == 16 * 500


def test_requests_of_several_samples_are_paired_by_request(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{0.05 * place},{50 + 7 * place % 90},{1 + place % 30}" for place in range(150)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    runs = [
        Variant.of(str(count), api.run(trace=str(path), **{"workload.samples": count, "engine.max_model_len": 4096}))
        for count in (1, 4)
    ]
    found = differences(runs)["4"]
    assert (found.pairs, found.left_out) == (150, 0)
    assert found.differences["e2e_s"].verdict == "longer"
    assert found.differences["tpot_s"].pairs == sum(1 + place % 30 > 1 for place in range(150))


# --- how it is told ---


@pytest.fixture(scope="module")
def rows() -> list[Variant | Failure]:
    slow, fast = (Variant.of(name, make_run(300, rate=rate)) for name, rate in (("slow", 4.0), ("fast", 14.0)))
    other = Variant.of("other", make_run(200, rate=14.0))
    return [Failure("broken", "no"), slow, fast, other]


def test_the_first_that_ran_is_what_others_are_compared_with(rows: list[Variant | Failure]) -> None:
    found = differences(rows)
    assert {name: one.against for name, one in found.items()} == {"fast": "slow", "other": "slow"}
    assert found["other"].reason
    assert differences(rows[:2]) == {}
    assert differences([replace(rows[1], per_request=None)]) == {}  # type: ignore[type-var]


def test_json_has_the_differences_and_the_summary_stays_what_it_was(rows: list[Variant | Failure]) -> None:
    found = summaries_of(rows)
    json.dumps(found, allow_nan=False)
    assert "paired" not in found["slow"]
    assert "paired" not in rows[2].summary  # type: ignore[union-attr]
    paired_with = found["fast"]["paired"]
    assert paired_with["against"] == "slow"
    assert paired_with["pairs"] == 299
    mean = paired_with["ttft_s"]["mean"]
    both = [row.summary["ttft_s"]["mean"] for row in rows[1:3]]  # type: ignore[union-attr]
    assert mean["value_s"] == pytest.approx(both[1] - both[0], rel=1e-4)
    assert mean["low_s"] < mean["value_s"] < mean["high_s"]
    assert set(found["other"]["paired"]) == {"against", "reason"}


def test_the_terminal_says_it_in_80_columns(rows: list[Variant | Failure]) -> None:
    pairs = differences(rows)
    text = terminal.render(terminal.compare_view({}, pairs=pairs))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "fast against slow: 299 requests paired, 1 left out (1 completed in neither)" in lines
    assert [line.split()[0] for line in lines if re.match(r"(TTFT|TPOT|E2E|Queue)", line)] == [
        "TTFT",
        "TPOT",
        "E2E",
        "Queue",
    ]
    assert "not the same requests" in text
    many = terminal.render(terminal.compare_view({}, pairs=dict.fromkeys("abcd", pairs["fast"])))
    assert many.startswith("E2E against slow, paired by request\n")
    assert [line[0] for line in many.splitlines()[2:6]] == list("abcd")
    assert many.count("1 left out") == 4
    assert max(map(len, many.splitlines())) <= 80


def test_the_page_draws_each_interval_around_zero(rows: list[Variant | Failure]) -> None:
    text = render_comparison(rows)
    section = text[text.index("Request by request, against slow") :].partition("</section>")[0]
    assert section.count('role="img"') == len(PAIRED)
    assert "nan" not in section.lower()
    places = [float(place) for place in re.findall(r'x[12]="([\d.]+)%"', section)]
    assert all(4 <= place <= 96 for place in places)
    assert "other: not the same requests" in section
    assert "Request by request" not in render_comparison(rows[:2])


def test_names_are_escaped() -> None:
    evil = "<script>&\"'"
    page = render_comparison(
        [Variant.of(evil, make_run(300, rate=4.0)), Variant.of(evil * 2, make_run(300, rate=14.0))]
    )
    section = page[page.index("Request by request, against ") :].partition("</section>")[0]
    assert "<script" not in section
    assert section.count("&lt;script&gt;") >= 3 * len(PAIRED)
