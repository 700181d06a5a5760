"""Metrics against numpy on expanded arrays, hand-worked examples and the edges where nothing is defined."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import CAPACITY_TOKENS, make_run

from sim import api, scenario
from sim.results import metrics, percentiles
from sim.results.kv import KV_KINDS, KvFacts, busy_s, kv_integrals
from sim.results.percentiles import (
    STATISTICS,
    distribution,
    distribution_in_parts,
    itl_from_segments,
    weighted_percentiles,
)
from traces.rows import from_frame
from traces.schema import InputError

FACTS = KvFacts(capacity_tokens=CAPACITY_TOKENS, block_tokens=16)
pairs = st.lists(st.tuples(st.floats(0, 1e3, allow_nan=False), st.integers(0, 6)), min_size=1, max_size=40).filter(
    lambda items: any(weight for _, weight in items)
)


@given(pairs, st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_weighted_percentiles_are_numpys_on_the_expansion(
    items: list[tuple[float, int]], percents: list[float]
) -> None:
    values, weights = np.array([v for v, _ in items]), np.array([w for _, w in items])
    expected = np.percentile(np.repeat(values, weights), percents)
    np.testing.assert_array_equal(weighted_percentiles(values, weights, percents), expected)
    np.testing.assert_array_equal(percentiles.percentiles(np.repeat(values, weights), percents), expected)


@given(pairs)
def test_distribution_with_weights_is_that_of_the_expansion(items: list[tuple[float, int]]) -> None:
    values, weights = np.array([v for v, _ in items]), np.array([w for _, w in items])
    assert distribution(values, weights) == pytest.approx(distribution(np.repeat(values, weights)))


def test_distribution_ignores_nan_and_says_none_for_nothing() -> None:
    assert distribution([np.nan, 1.0, 3.0])["mean"] == 2.0
    assert set(distribution([np.nan]).values()) == {None}
    assert set(distribution(np.array([1.0]), np.array([0])).values()) == {None}
    assert tuple(distribution([])) == STATISTICS
    with pytest.raises(ValueError, match="no values"):
        weighted_percentiles(np.array([1.0]), np.array([0]), [50])


@st.composite
def token_steps(draw: st.DrawFn) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    """A step clock, and for each request the disjoint runs of steps that gave it a token."""
    durations = draw(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=25))
    requests = []
    for _ in range(draw(st.integers(0, 5))):
        steps = sorted(draw(st.sets(st.integers(0, len(durations) - 1), min_size=1)))
        starts = [s for i, s in enumerate(steps) if i == 0 or steps[i - 1] != s - 1]
        stops = [s for i, s in enumerate(steps) if i == len(steps) - 1 or steps[i + 1] != s + 1]
        requests.append(list(zip(starts, stops, strict=True)))
    return np.cumsum(durations), requests


@given(token_steps())
def test_itl_from_segments_gives_every_gap_between_tokens(
    case: tuple[np.ndarray, list[list[tuple[int, int]]]],
) -> None:
    clock, requests = case
    expected: list[float] = []
    joins: list[float] = []
    for runs in requests:
        times = np.concatenate([clock[a : b + 1] for a, b in runs])
        expected += list(np.diff(times))
        joins += [clock[a] - clock[b] for (_, b), (a, _) in pairwise(runs)]
    first = np.array([a for runs in requests for a, _ in runs], dtype=np.int64)
    last = np.array([b for runs in requests for _, b in runs], dtype=np.int64)
    gaps, weights = itl_from_segments(clock, first, last, np.array(joins))
    assert (weights > 0).all()
    np.testing.assert_allclose(np.sort(np.repeat(gaps, weights)), np.sort(expected), rtol=0, atol=0)


def test_itl_refuses_segments_outside_the_clock() -> None:
    clock, one = np.array([1.0, 2.0]), np.array([1])
    with pytest.raises(ValueError, match="2 steps"):
        itl_from_segments(clock, one, np.array([2]), np.empty(0))
    with pytest.raises(ValueError, match="before it begins"):
        itl_from_segments(clock, one, np.array([0]), np.empty(0))
    gaps, weights = itl_from_segments(np.empty(0), one[:0], one[:0], np.empty(0))
    assert len(gaps) == len(weights) == 0


def test_itl_and_tpot_agree_on_the_mean_of_a_run() -> None:
    """The gaps add up to the sum over requests of (last token - first token)."""
    run = make_run(200, rate=12.0, replicas=2)
    done = run.requests[run.requests["status"] == "completed"]
    assert np.dot(*run.itl) == pytest.approx((done["finish_s"] - done["first_token_s"]).sum())
    assert run.itl[1].sum() == (done["output_tokens"] - 1).sum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft_p99=0.5,tpot_p99=0.05", [("ttft", "p99", 0.5), ("tpot", "p99", 0.05)]),
        (" ttft = 1 ", [("ttft", "max", 1.0)]),
        (
            "itl_mean=1e-2,queue_max=3,e2e=9",
            [("itl", "mean", 0.01), ("queue", "max", 3.0), ("e2e", "max", 9.0)],
        ),
    ],
)
def test_slo_is_parsed(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert [(x.metric, x.statistic, x.limit_s) for x in metrics.parse_slo(text)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tftt=1", "unknown metric 'tftt'.*ttft, tpot, itl, e2e, queue"),
        ("ttft_p98=1", "_p90, _p95"),
        ("", "unknown metric"),
        ("ttft=1,,", "unknown metric ''"),
        ("ttft_=1", "unknown metric 'ttft_'"),
        ("ttft", "positive number of seconds, not ''"),
        ("ttft=fast", "not 'fast'"),
        ("ttft=nan", "not 'nan'"),
        ("ttft=-1", "not '-1'"),
        ("ttft=inf", "not 'inf'"),
        ("ttft=1,ttft=2", "given twice"),
    ],
)
def test_a_wrong_slo_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        metrics.parse_slo(text)
    assert "\n" not in str(caught.value)


def hand_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two requests on one replica of 100 tokens; the numbers are worked out in the test."""
    nan = float("nan")
    requests = pd.DataFrame(
        {
            "arrival_s": [1.0, 2.0, 2.5],
            "prompt_tokens": [10, 20, 90],
            "output_tokens": [3, 1, 50],
            "status": ["completed", "completed", "rejected"],
            "first_scheduled_s": [1.0, 3.0, nan],
            "queue_s": [0.0, 1.0, nan],
            "ttft_s": [1.0, 2.0, nan],
            "tpot_s": [1.5, nan, nan],
            "e2e_s": [4.0, 2.0, nan],
            "finish_s": [5.0, 4.0, nan],
            "max_itl_s": [2.0, nan, nan],
            "preemptions": [1, 0, 0],
            "prefix_hit_tokens": [0, 15, 0],
            "prefix_hit_blocks": [0, 3, 0],
            "prefix_blocks": [1, 4, 9],
            "samples": [4, 1, 1],
        }
    )
    steps = pd.DataFrame(
        {
            "replica": [0, 0],
            "repeats": [1, 3],
            "start_s": [1.0, 3.0],
            "end_s": [2.0, 6.0],
            "prefill_tokens": [10, 0],
            "decode_requests": [0, 2],
            "draft_tokens": [0, 0],
            "padding_tokens": [4, 0],
            "swapped_bytes": [3, 4],
            "copied_bytes": [0, 64],
            "kv_used_tokens": [20, 34],
            "kv_shared_tokens": [0, 6],
            "kv_reserved_tokens": [10, 6],
            "kv_internal_tokens": [5, 5],
            "kv_external_tokens": [5, 9],
            "kv_free_tokens": [60, 40],
            "kv_saved_tokens": [0, 12],
            # Two requests gain four tokens in three steps, out of free blocks and what was reserved.
            "kv_used_mean_tokens": [20, 32],
            "kv_reserved_mean_tokens": [10, 7],
            "kv_internal_mean_tokens": [5, 4],
            "kv_free_mean_tokens": [60, 42],
        }
    )
    return requests, steps


def test_hand_worked_summary() -> None:
    requests, steps = hand_tables()
    summary = metrics.summarise(
        requests,
        steps,
        distribution([1.0, 2.0]),
        KvFacts(100, 16),
        slo=metrics.parse_slo("ttft_p50=1.5,tpot=2"),
        dropped=4,
        source_seconds={"measured": 3, "roofline": 1},
        simulator={"steps": np.int64(4)},
        inputs={"trace": "t", "seed": 0},
    )
    assert summary["requests"] == {"total": 3, "completed": 2, "rejected": 1, "unfinished": 0, "dropped": 4}
    assert summary["duration_s"] == 5.0
    rates = {"requests_per_s": 2 / 5, "output_tokens_per_s": 13 / 5, "total_tokens_per_s": 43 / 5}
    assert summary["throughput"] == pytest.approx(rates)
    assert summary["ttft_s"]["mean"] == 1.5
    assert summary["itl_s"]["p50"] == 1.5
    # The second request breaks the TTFT limit and has no TPOT to break; a rejected one meets nothing.
    assert summary["goodput"] == {
        "slo": {"ttft_p50": 1.5, "tpot": 2.0},
        "requests_per_s": 1 / 5,
        "fraction": pytest.approx(1 / 3),
    }
    assert [(v.name, v.measured_s, v.met) for v in metrics.verdicts(summary)] == [
        ("ttft_p50", 1.5, True),
        ("tpot", 1.5, True),
    ]
    kv = summary["kv"]
    # Span 1: 20 used for 1 s. Span 2: a mean of 32 used and 6 shared for 3 s.
    assert kv["mean_used"] == pytest.approx((20 * 1 + 38 * 3) / 500)
    assert (kv["peak_used"], kv["peak_held"]) == (0.4, 0.6)
    expected = {
        "used": ((20 + 32 * 3) / 500, 0.34),
        "shared": (6 * 3 / 500, 0.06),
        "reserved": ((10 + 7 * 3) / 500, 0.1),
        "internal": ((5 + 4 * 3) / 500, 0.05),
        "external": ((5 + 27) / 500, 0.09),
        "free": (1 - (134 + 31 + 17 + 32) / 500, 0.6),
    }
    assert list(kv["classes"]) == list(expected)
    for kind, (mean, peak) in expected.items():
        assert kv["classes"][kind] == {"mean": pytest.approx(mean), "peak": peak}, kind
    # Three hold each shared slot, so that two more would be needed: 12 for 3 s.
    assert kv["shared"] == {**kv["classes"]["shared"], "saving_mean": pytest.approx(36 / (134 + 36))}
    assert kv["waste"]["reserved"] == pytest.approx((10 * 1 + 7 * 3) / 500)
    assert kv["waste"]["internal"] == pytest.approx((5 + 4 * 3) / 500)
    assert kv["waste"]["external"] == pytest.approx((5 + 27) / 500)
    held = 134 + 31 + 17 + 32
    assert kv["useful"] == pytest.approx(134 / held)
    of_held = {"used": 116, "shared": 18, "reserved": 31, "internal": 17, "external": 32}
    assert kv["waste"]["of_held"] == pytest.approx({kind: part / held for kind, part in of_held.items()})
    # The rejected request looked nothing up.
    assert (kv["prefix_hit_rate"], kv["prefix_hit_rate_blocks"]) == (15 / 30, 3 / 5)
    assert (kv["preemptions"], kv["swapped_bytes"], kv["copied_bytes"]) == (1, 7, 64)
    assert summary["computed"] == {"tokens": 10 + 3 * 2, "padding_fraction": 4 / 16}
    assert summary["cost_sources"] == {
        "measured": 0.75,
        "interpolated": 0.0,
        "derived": 0.0,
        "extrapolated": 0.0,
        "fitted": 0.0,
        "roofline": 0.25,
    }
    assert list(summary) == [
        "requests",
        "duration_s",
        "throughput",
        "ttft_s",
        "tpot_s",
        "itl_s",
        "e2e_s",
        "queue_s",
        "engine_ttft_s",
        "engine_tpot_s",
        "engine_itl_s",
        "engine_e2e_s",
        "goodput",
        "computed",
        "kv",
        "bill",
        "cost_sources",
        "simulator",
        "inputs",
    ]


def test_the_classes_of_every_span_add_up_to_the_pool() -> None:
    _, steps = hand_tables()
    token_s = kv_integrals(steps)
    assert token_s["saved"] == 12 * 3
    assert sum(token_s[kind] for kind in KV_KINDS) == pytest.approx(100 * 4)


@pytest.mark.parametrize("spans", [True, False])
def test_the_rows_of_ended_members_of_a_static_batch_hold_what_they_held(spans: bool) -> None:
    """Four prompts of 16 in blocks of 16; one answer has 101 tokens, the others 1, whose rows are padded to the end.

    Step n of 0 to 100 leaves 3 x 16 + 16 + n tokens in 3 + 1 + ceil(n / 16) blocks.
    """
    trace = from_frame(
        pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": 16, "output_tokens": [1, 1, 1, 101]}, index=range(4))
    )
    together = {"policy": "static", "policy.batch_size": 4, "kv.blocks": 100, "front_end.name": "off"}
    plan = scenario.build({}, together)
    # The steps of so small a batch take nearly the same time.
    kv = api.simulate(plan, trace=trace, hooks=api.Hooks(spans=spans)).summary["kv"]
    used = np.array([64 + step for step in range(101)])
    blocks = np.array([4 + -(-step // 16) for step in range(101)])
    assert kv["mean_used"] == pytest.approx(used.mean() / 1600, rel=1e-3)
    assert kv["useful"] == pytest.approx(used.sum() / (16 * blocks.sum()), rel=1e-4)
    in_the_last_block = 12 * 4
    assert kv["waste"]["internal"] == pytest.approx(in_the_last_block / 101 / 1600, rel=0.02)


def test_overlapping_steps_count_their_time_once() -> None:
    steps = pd.DataFrame({"replica": [0, 1, 0], "start_s": [0.0, 0.0, 1.0], "end_s": [2.0, 5.0, 3.0]})
    np.testing.assert_allclose(busy_s(steps), [2.0, 5.0, 1.0])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_requests_give_a_summary_without_nan(count: int) -> None:
    run = make_run(count, slo="ttft=1")
    text = json.dumps(run.summary, allow_nan=False)
    assert json.loads(text) == run.summary
    assert run.summary["requests"]["completed"] == count
    assert (run.summary["ttft_s"]["p99"] is None) == (count == 0)
    assert run.summary["throughput"]["requests_per_s"] is None or count


def test_nothing_completed() -> None:
    requests, steps = hand_tables()
    rejected = requests[requests["status"] == "rejected"]
    summary = metrics.summarise(
        rejected,
        steps[:0],
        distribution([]),
        FACTS,
        slo=metrics.parse_slo("ttft_p99=1"),
        source_seconds={},
        simulator={},
        inputs={},
    )
    json.dumps(summary, allow_nan=False)
    assert summary["goodput"] == {"slo": {"ttft_p99": 1.0}, "requests_per_s": None, "fraction": 0.0}
    assert metrics.verdicts(summary)[0].met is None
    assert set(summary["e2e_s"].values()) == {None}
    assert set(summary["cost_sources"].values()) == {0.0}
    assert summary["computed"] == {"tokens": 0, "padding_fraction": None}


def test_one_output_token_has_no_tpot_and_no_itl() -> None:
    requests, _ = hand_tables()
    one = requests[requests["output_tokens"] == 1]
    assert metrics.met_slo(one, metrics.parse_slo("tpot=1e-9,itl=1e-9")).all()
    assert not metrics.met_slo(one, metrics.parse_slo("queue=0.5")).any()


def test_an_unknown_cost_source_is_refused() -> None:
    with pytest.raises(ValueError, match="guessed"):
        metrics.source_shares({"guessed": 1.0})


def test_plain_leaves_only_json() -> None:
    assert metrics.plain({"a": np.float64("inf"), "b": (np.int64(1), None), "c": np.arange(2), "d": "x"}) == {
        "a": None,
        "b": [1, None],
        "c": [0, 1],
        "d": "x",
    }


@given(pairs, st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_percentiles_in_little_memory_are_the_same(items: list[tuple[float, int]], percents: list[float]) -> None:
    values, weights = np.array([v for v, _ in items]), np.array([w for _, w in items])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(percentiles, "_SORTED_WHOLE", 7)
        patch.setattr(percentiles, "_BUCKETS", 5)
        little = weighted_percentiles(values, weights, percents)
    np.testing.assert_array_equal(little, np.percentile(np.repeat(values, weights), percents))


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 6)), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_a_distribution_in_parts_is_that_of_all_of_them(items: list[tuple[float, int]], cuts: list[int]) -> None:
    values, weights = np.array([v for v, _ in items]), np.array([w for _, w in items])
    edges = [0, *sorted(min(cut, len(items)) for cut in cuts), len(items)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(percentiles, "_SORTED_WHOLE", 7)
        patch.setattr(percentiles, "_BUCKETS", 5)
        whole = distribution(values, weights)
        in_parts = distribution_in_parts(lambda: [(values[a:b], weights[a:b]) for a, b in pairwise(edges)])
    assert in_parts == whole
    assert set(distribution_in_parts(lambda: []).values()) == {None}
