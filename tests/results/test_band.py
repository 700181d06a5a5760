"""The laws of a band: what it contains, what it grows and shrinks with, and that its first order is what ends say."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import api
from sim.cost import errors
from sim.cost.errors import DECODE, MIXED, NORMAL_P90, PREFILL, Error
from sim.cost.fixed import FixedCost
from sim.cost.step import Term
from sim.engine.batch import Shape
from sim.report.run.band import band_lines, band_rows
from sim.results import band
from sim.results.band import Spread, StepErrors, first_order
from sim.scenario import Scenario, load
from sim.serving.hooks import Hooks
from sim.serving.run import simulate
from sim.study.band import Scaled, errors_of, with_band
from traces.schema import InputError

CHAT: dict[str, Any] = {"workload.limit": 200, "engine.preset": "foretoken"}
PARTS = (*band.LATENCIES, "throughput")
LOADS: dict[str, dict[str, Any]] = {
    "light": {"workload.rate": 5.0},
    "middling": {"workload.rate": 50.0},
    "seats full": {"workload.rate": 40.0, "engine.max_num_seqs": 16},
    "closed": {"workload.concurrency": 12},
    "at once": {"workload.rate": math.inf},
    "memory full": {"workload.rate": 60.0, "kv.blocks": 700},
    "front end": {"workload.rate": 20.0, "front_end.name": "vllm-0.33"},
}


@pytest.fixture(scope="module", autouse=True)
def _chat(tmp_path_factory: pytest.TempPathFactory) -> None:
    """200 requests of lognormal lengths."""
    rng = np.random.default_rng(1)
    prompts, outputs = (np.ceil(rng.lognormal(mean, 0.8, 200)).astype(int) for mean in (4.5, 4.8))
    path = tmp_path_factory.mktemp("band") / "chat.csv"
    rows = zip(np.arange(200) / 10, prompts, outputs, strict=True)
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    CHAT["workload.trace"] = str(path)


class Given(FixedCost):
    """Prices that are exact, as a stand-in measured without error would have them."""

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {name: term._replace(source="measured") for name, term in super().explain(shape).items()}

    def error_of(self, _term: str, _source: str) -> Error:
        return Error(0.0, 0.0, "exact")


def scenario(**own: Any) -> Scenario:
    return load(None, {**CHAT, **own}, allow_code=False)


class Pair(NamedTuple):
    """A run, and the summary that both of its ends give."""

    asked: Scenario
    result: api.Result
    both: dict[str, Any]


@cache
def pair(name: str) -> Pair:
    asked = scenario(**LOADS[name])
    result = simulate(asked)
    return Pair(asked, result, with_band(result, asked).summary)


def intervals(summary: dict[str, Any]) -> list[tuple[str, float, dict[str, float | None]]]:
    told = summary["band"]
    return [
        (f"{part}.{name}", summary[part][name], ends)
        for part in (*PARTS, "goodput")
        if part in told
        for name, ends in told[part].items()
    ]


def width(ends: dict[str, Any]) -> float:
    return float(ends["high"] - ends["low"])


def relative(summary: dict[str, Any], part: str, name: str) -> tuple[float, float]:
    ends, value = summary["band"][part][name], summary[part][name]
    return ends["low"] / value - 1, ends["high"] / value - 1


@pytest.mark.parametrize("name", LOADS)
def test_every_interval_contains_its_answer(name: str) -> None:
    _, result, both = pair(name)
    known = [(key, value, ends) for key, value, ends in intervals(result.summary) if ends["low"] is not None]
    assert known
    for key, value, ends in known:
        assert 0 <= ends["low"] <= value <= ends["high"], key
    assert both["band"]["how"] == band.SIMULATED
    for key, value, ends in intervals(both):
        assert 0 <= ends["low"] <= value <= ends["high"], key
        assert key.startswith("throughput") or ends["low"] < value < ends["high"], key


@pytest.mark.parametrize("name", ["light", "middling", "closed", "front end"])
def test_the_first_order_is_what_both_ends_say(name: str) -> None:
    """Within a quarter of its width; medians of TTFT hang on how arrivals fall between few steps."""
    _, result, both = pair(name)
    for part, statistic in [*product(band.LATENCIES, ["mean"]), ("tpot_s", "p50"), ("e2e_s", "p50")]:
        for one, other in zip(relative(result.summary, part, statistic), relative(both, part, statistic), strict=True):
            assert one == pytest.approx(other, rel=0.25), (part, statistic)


def test_where_users_wait_everything_moves_as_steps_do() -> None:
    """Requests at once, whose steps are all of the same error: every latency by exactly that."""
    asked, result, _ = pair("at once")
    same = {kind: Spread(1 / 3, 0.1, 0.0) for kind in (PREFILL, MIXED, DECODE)}
    known = StepErrors(same, {})
    for way in (-1, 1):
        factors = known.factors(way)
        moved = simulate(asked, hooks=Hooks(wrap=lambda executor, own=factors: Scaled(executor, own)))  # type: ignore[misc]
        np.testing.assert_allclose(
            moved.requests["e2e_s"], result.requests["e2e_s"] * math.exp(way * NORMAL_P90 * 0.1), rtol=1e-9
        )
    told = first_order(result.summary, known, 10**12, None)
    assert told["e2e_s"]["p99"]["high"] == pytest.approx(result.summary["e2e_s"]["p99"] * math.exp(NORMAL_P90 * 0.1))
    assert told["throughput"]["requests_per_s"]["low"] == pytest.approx(
        result.summary["throughput"]["requests_per_s"] * math.exp(-NORMAL_P90 * 0.1)
    )


def test_slower_steps_at_a_rate_are_a_higher_rate_in_slower_time() -> None:
    """The law behind the elasticity: all times times f are those of the same requests f times as fast, times f."""
    factor, cost = 1.25, Given(0.02, 1e-4, 1e-7)
    asked = scenario(**{"workload.rate": 30.0, "workload.limit": 200})
    trace = simulate(asked, hooks=Hooks(cost=cost)).trace
    slower = dict.fromkeys((PREFILL, MIXED, DECODE), factor)
    scaled = Hooks(cost=cost, wrap=lambda executor: Scaled(executor, slower))
    slow = simulate(asked, trace=trace, hooks=scaled)
    faster = replace(trace, requests=trace.requests.assign(arrival_s=trace.requests["arrival_s"] / factor))
    fast = simulate(asked, trace=faster, hooks=Hooks(cost=cost))
    for column in ("ttft_s", "tpot_s", "e2e_s"):
        np.testing.assert_allclose(slow.requests[column], factor * fast.requests[column], rtol=1e-6)


def test_only_steps_of_its_kind_take_a_factor() -> None:
    asked = scenario(**{"workload.rate": 30.0, "workload.limit": 100})
    plain = simulate(asked, hooks=Hooks(cost=Given(0.02)))
    for kind, name in ((DECODE, "decode"), (PREFILL, "prefill"), (MIXED, "mixed")):
        moved = simulate(
            asked,
            hooks=Hooks(cost=Given(0.02), wrap=lambda executor, own=kind: Scaled(executor, {own: 2.0})),  # type: ignore[misc]
        ).steps
        prompts, rows = moved["prefill_requests"] > 0, moved["decode_requests"] > 0
        mine = {"decode": ~prompts, "prefill": prompts & ~rows, "mixed": prompts & rows}[name]
        each_s = (moved["device_s"] / moved["repeats"]).to_numpy()
        assert mine.any()
        np.testing.assert_allclose(each_s, np.where(mine, 0.04, 0.02))
    assert (plain.steps["device_s"] / plain.steps["repeats"]).max() == pytest.approx(0.02)


def test_given_prices_have_no_band() -> None:
    result = simulate(scenario(**LOADS["light"]), hooks=Hooks(cost=Given(0.01)))
    assert result.summary["band"]["common"] == result.summary["band"]["independent"] == 0.0
    for key, value, ends in intervals(result.summary):
        assert ends == {"low": value, "high": value}, key


def test_a_larger_error_makes_no_interval_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, result, _ = pair("light")
    larger = {
        kind: figure._replace(found={card: (2 * one, 2 * other) for card, (one, other) in figure.found.items()})
        for kind, figure in errors.CLASSES["roofline"].items()
    }
    monkeypatch.setattr(errors, "CLASSES", {**errors.CLASSES, "roofline": larger})
    wider = simulate(asked).summary
    for (key, _, before), (_, _, after) in zip(intervals(result.summary), intervals(wider), strict=True):
        assert width(after) >= width(before), key
        assert key.startswith("throughput") or width(after) > width(before), key


def test_more_requests_average_out_what_steps_have_each_for_themselves() -> None:
    """Of the common error nothing goes with the number of steps; of the other its square root, and a tail has fewer."""
    summary = pair("closed").result.summary

    def of(common: float, independent: float, steps: int, statistic: str = "p50") -> float:
        known = StepErrors({DECODE: Spread(1.0, common, independent)}, {})
        return width(first_order(summary, known, steps, None)["tpot_s"][statistic])

    assert of(0.05, 0.0, 100) == of(0.05, 0.0, 10_000) > 0
    assert of(0.0, 0.05, 100) == pytest.approx(10 * of(0.0, 0.05, 10_000))
    assert of(0.05, 0.05, 10**12) == pytest.approx(of(0.05, 0.0, 1), rel=1e-3)
    tail = of(0.0, 0.05, 10_000, "p99") / summary["tpot_s"]["p99"]
    assert tail == pytest.approx(math.sqrt(50) * of(0.0, 0.05, 10_000) / summary["tpot_s"]["p50"])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*[st.floats(0.01, 1)] * 3), min_size=1, max_size=3),
    st.floats(1, 4),
    st.sampled_from(["p50", "p99"]),
)
def test_an_interval_is_no_narrower_than_its_parts(
    kinds: list[tuple[float, float, float]], value: float, statistic: str
) -> None:
    total = sum(share for share, _, _ in kinds)
    known = StepErrors(
        {
            kind: Spread(share / total, common, own)
            for kind, (share, common, own) in zip((DECODE, MIXED, PREFILL), kinds, strict=False)
        },
        {},
    )
    assert min(one.common for one in known.kinds.values()) - 1e-12 <= known.common
    assert known.common <= max(one.common for one in known.kinds.values()) + 1e-12
    low, high = value * math.exp(-NORMAL_P90 * known.common), value * math.exp(NORMAL_P90 * known.common)
    found = band.interval(value, low, high, known.independent, 100, statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= low
    assert found.high >= high


def test_a_queue_has_no_interval_of_first_order() -> None:
    for name in ("seats full", "memory full"):
        told = pair(name).result.summary["band"]
        assert told["ttft_s"]["p99"] == told["e2e_s"]["p50"] == {"low": None, "high": None}
        assert told["tpot_s"]["p50"]["low"] > 0
        assert told["elasticity"] == 1.0
        assert "--band simulates both ends" in band_lines(pair(name).result.summary)[-1][1]


def test_limits_that_fill_at_the_slow_end_have_none_either() -> None:
    """Nobody waits yet: of 160 seats most are taken at the peak, and slower steps would take more."""
    seats = scenario(**LOADS["middling"])
    peak = simulate(seats).summary["binding"]["peaks"]["seats"] * seats.engine.max_num_seqs
    tight = simulate(replace(seats, engine=replace(seats.engine, max_num_seqs=math.ceil(peak) + 2))).summary
    assert tight["queue_s"]["mean"] < tight["tpot_s"]["mean"]
    assert tight["band"]["ttft_s"]["p50"]["low"] is None
    assert tight["band"]["elasticity"] > 1.1


def test_steps_are_longer_by_more_than_their_prices_where_there_is_load() -> None:
    told = {name: pair(name).result.summary["band"]["elasticity"] for name in LOADS}
    assert told["closed"] == told["at once"] == 1.0
    assert 1.0 < told["light"] < 1.1 < told["middling"] < band.MOST_LOADED


def test_a_front_end_widens_ttft_by_its_part() -> None:
    asked, result, _ = pair("front end")
    without = simulate(replace(asked, front_end=type(asked.front_end)())).summary
    assert relative(result.summary, "ttft_s", "p50")[1] > relative(without, "ttft_s", "p50")[1]
    seen, engine = (result.summary[key]["mean"] for key in ("ttft_s", "engine_ttft_s"))
    part = (seen - engine) / seen
    known = StepErrors({DECODE: Spread(1.0, 0.0, 0.0)}, {})
    told = first_order(result.summary, known, 10**12, 1.0)["ttft_s"]["mean"]
    assert told["high"] == pytest.approx(seen + part * seen)  # twice the seconds of the front end
    assert told["low"] == pytest.approx(seen - part * seen / 2)


def test_pools_have_bands_by_simulation_alone() -> None:
    pools = {"a": {"gpu": "h100"}, "b": {"gpu": "l40s"}}
    asked = load(None, {**CHAT, "workload.limit": 200, "workload.rate": 10.0, "pools": pools}, allow_code=False)
    result = simulate(asked)
    told = result.summary["band"]
    assert told["elasticity"] is None
    assert told["tpot_s"]["p50"]["low"] is None
    both = with_band(result, asked).summary["band"]
    assert both["tpot_s"]["p50"]["low"] < result.summary["tpot_s"]["p50"] < both["tpot_s"]["p50"]["high"]
    one = simulate(scenario(**{"workload.limit": 200, "workload.rate": 10.0})).summary["band"]
    assert both["common"] > one["common"]  # an L40S's tables are fitted less well


def test_parts_add_up_to_the_common_error() -> None:
    known = errors_of(pair("closed").result)
    kinds: dict[str, float] = {}
    for (kind, _), part in known.parts.items():
        kinds[kind] = kinds.get(kind, 0.0) + part
    # Of one kind of step exactly; of several, whose parts differ, by no more than their common errors.
    assert math.sqrt(sum(part**2 for part in kinds.values())) == pytest.approx(known.common, rel=0.02)


def test_what_is_told_reads_as_it_is() -> None:
    _, result, both = pair("light")
    (label, known), (_, made) = band_lines(result.summary)
    low = 1e3 * result.summary["band"]["tpot_s"]["p50"]["low"]
    assert label == "Band 90%"
    assert f"TPOT p50 {low:.2f} to " in known
    assert "products (fitted)" in made
    assert "first order" in made
    rows = dict(band_rows(both))
    assert rows["How"] == "both ends simulated"
    assert band_lines({}) == band_rows({}) == []


def test_a_live_run_is_refused_a_band() -> None:
    with pytest.raises(InputError, match="the steps of a live run are measured"):
        api.run(scenario(), executor="live", band=True)
