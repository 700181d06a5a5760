"""Errors, splits and verdicts of a validation, worked out by hand on records made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from validate_kit import hand_record

from sim.cost.fixed import FixedCost
from sim.cost.step import device_seconds
from sim.engine.batch import Shape
from sim.report.validation.sentences import notes
from sim.validate import attribution, fitted
from sim.validate.requests import compare, paired
from sim.validate.retime import as_recorded, retimed
from sim.validate.steps import errors, kind_of, priced, step_report, step_rows
from sim.validate.verdict import ON_GPU, Bounds, judge

seconds = st.floats(1e-4, 10.0)


def test_errors_by_hand() -> None:
    found = errors(np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0]))
    assert found == {
        "steps": 3,
        "bias": pytest.approx(6.5 / 7 - 1),
        "mape": pytest.approx(0.25),
        "p90": pytest.approx(0.45),
    }
    assert errors(np.array([0.0]), np.array([1.0]))["mape"] is None
    assert errors(np.empty(0), np.empty(0)) == {"steps": 0, "bias": None, "mape": None, "p90": None}


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ({"measured": 1.0, "extrapolated": 0.0, "roofline": 0.0}, ""),
        ({"roofline": 1.0}, "Step times come from data-sheet rooflines, not from a calibration"),
        (
            {"interpolated": 0.05, "extrapolated": 0.83, "roofline": 0.12},
            "Of the predicted step seconds 83.0 % lie outside the calibrated range and are extrapolated from it and "
            "12.0 % are estimates by data-sheet rates, where errors of 30 % and more are normal.",
        ),
        ({"measured": 0.9, "extrapolated": 0.1}, "Of the predicted step seconds 10.0 % lie outside the calibrated"),
    ],
)
def test_what_no_calibration_covers_is_told_by_its_share(sources: dict[str, float], sentence: str) -> None:
    steps = {"sources": sources, "model": "my-cpu"}
    document = {"died": [], "steps": steps, "attribution": {}, "lives": 2, "twin": {"identical": None}}
    texts = list(notes(document))
    assert len(texts) == bool(sentence)
    assert all(text.startswith(sentence) for text in texts)
    fitted_here = {**document, "steps": {**steps, "model": "fitted-here"}}
    assert not any("calibrated range" in text for text in notes(fitted_here))


def test_steps_by_kind_and_size() -> None:
    record = hand_record()
    rows = step_rows([record], FixedCost(0.5, per_token_s=0.1))
    assert rows["kind"].tolist() == ["prefill", "decode", "prefill", "decode"]
    assert rows["predicted_device_s"].tolist() == pytest.approx([0.9, 0.6, 1.1, 0.6])
    report = step_report(rows)
    # Measured 1, 0.5, 1, 0.25 s in all; predicted 0.9, 0.6, 1.1, 0.6 s.
    assert report["all"]["bias"] == pytest.approx(3.2 / 2.75 - 1)
    assert report["by_kind"]["prefill"]["mape"] == pytest.approx(0.1)
    assert report["by_kind"]["decode"]["mape"] == pytest.approx((0.2 + 1.4) / 2)
    assert list(report["by_tokens"]) == ["1", "4-7"]
    assert report["by_part"]["host"]["bias"] == -1.0
    assert report["worst"][0] == {
        "live": 0, "step": 3, "kind": "decode", "tokens": 1, "measured_s": 0.25, "predicted_s": pytest.approx(0.6),
    }  # fmt: skip


def test_kinds() -> None:
    assert kind_of(Shape(((4, 0),))) == "prefill"
    assert kind_of(Shape((), 3, 9)) == "decode"
    assert kind_of(Shape(((4, 0),), 3, 9)) == "mixed"
    assert kind_of(Shape(((4, 0),), 3, 9, verifies=((3, 1, 5, 0),))) == "verify"


def test_a_record_retimed_by_hand() -> None:
    record = hand_record()
    own = as_recorded(record, 16)
    assert own.requests["ttft_s"].tolist() == [1.0, 1.0]
    assert own.requests["e2e_s"].tolist() == [1.5, 1.25]
    assert own.requests["tpot_s"].tolist() == own.requests["max_itl_s"].tolist() == [0.5, 0.25]
    # Twice as slow: the second request still comes at 3.0 s, when the first has just ended.
    slow = retimed(record, np.array([2.0, 1.0, 2.0, 0.5]), 16)
    assert slow.requests["finish_s"].tolist() == [3.0, 5.5]
    # Five times as slow: it waits until 7.5 s.
    slower = retimed(record, np.array([5.0, 2.5, 5.0, 1.25]), 16)
    assert slower.requests["first_scheduled_s"].tolist() == [0.0, 7.5]
    assert slower.requests["queue_s"].tolist() == [0.0, 4.5]
    assert sorted(slower.itl[0].tolist()) == [1.25, 2.5]


def test_a_policy_that_waited_waits_as_long() -> None:
    # The third step began 0.25 s after its request had come, with nothing else to do (a static batch filling up).
    record = hand_record()
    late = replace(record, steps=record.steps.assign(start_s=[0.0, 1.0, 3.25, 4.25], end_s=[1.0, 1.5, 4.25, 4.5]))
    assert as_recorded(late, 16).requests["first_scheduled_s"].tolist() == [0.0, 3.25]
    fast = retimed(late, np.array([0.5, 0.5, 0.5, 0.5]), 16)
    assert fast.requests["first_scheduled_s"].tolist() == [0.0, 3.25]


def test_a_request_that_answers_an_end_moves_with_it() -> None:
    # Request 1 comes 1.5 s after the second step, at another time than the trace says: a turn of a session.
    record = hand_record()
    followed = replace(record, requests=record.requests.assign(arrival_s=[0.0, 99.0]))
    slow = retimed(followed, np.array([2.0, 1.0, 2.0, 0.5]), 16)
    assert slow.requests["arrival_s"].tolist() == [0.0, 4.5]
    assert slow.requests["ttft_s"].tolist() == [2.0, 2.0]


@given(st.lists(seconds, min_size=4, max_size=4), st.floats(0.0, 2.0))
def test_slower_steps_end_later(spent: list[float], more: float) -> None:
    record = hand_record()
    base = retimed(record, np.array(spent), 16)
    slow = retimed(record, np.array(spent) + more, 16)
    assert (slow.requests["finish_s"] >= base.requests["finish_s"]).all()
    assert (base.requests["first_scheduled_s"] >= base.requests["arrival_s"]).all()


def test_requests_side_by_side() -> None:
    lives = [{"ttft_s": {"p50": 1.0}}, {"ttft_s": {"p50": 3.0}}]
    inside = compare(lives, {"ttft_s": {"p50": 2.5}})["ttft_s"]["p50"]
    assert inside == {"live": 2.0, "predicted": 2.5, "error": 0.25, "spread": [1.0, 3.0], "inside": True}
    assert compare(lives, {"ttft_s": {"p50": 3.5}})["ttft_s"]["p50"]["inside"] is False
    alone = compare(lives[:1], {"ttft_s": {"p50": 0.5}})["ttft_s"]
    assert alone["p50"] == {"live": 1.0, "predicted": 0.5, "error": -0.5}
    assert alone["p99"] == {"live": None, "predicted": None, "error": None}
    assert compare([{"queue_s": {"p50": 0.0}}], {"queue_s": {"p50": 1.0}})["queue_s"]["p50"]["error"] is None


def test_pairs_of_requests() -> None:
    live = pd.DataFrame({"ttft_s": [1.0, 2.0, np.nan], "tpot_s": [np.nan] * 3, "e2e_s": [2.0, 4.0, 1.0]})
    ours = pd.DataFrame({"ttft_s": [1.5, 2.0, 1.0], "tpot_s": [np.nan] * 3, "e2e_s": [1.0, 4.0, np.nan]})
    found = paired(live, ours)
    assert found["ttft_s"] == {"requests": 2, "p50": pytest.approx(0.25), "p90": pytest.approx(0.45)}
    assert found["tpot_s"] == {"requests": 0, "p50": None, "p90": None}
    assert found["e2e_s"]["requests"] == 2


@given(st.lists(seconds, min_size=1, max_size=3), st.lists(seconds, min_size=5, max_size=5))
def test_the_parts_add_up(lives: list[float], after: list[float]) -> None:
    stages = {name: {"e2e_s": {"mean": one}} for name, one in zip(attribution.STAGES, after, strict=True)}
    split = attribution.split([{"e2e_s": {"mean": one}} for one in lives], stages)["e2e_s.mean"]
    assert sum(split["parts"].values()) == pytest.approx(split["error"], abs=1e-9)
    assert split["live"] + split["error"] == pytest.approx(split["predicted"])


def test_a_split_by_hand() -> None:
    after = zip(attribution.STAGES, [10.0, 10.5, 13.5, 12.5, 15.0], strict=True)
    lives = [{"e2e_s": {"mean": 9.0}}, {"e2e_s": {"mean": 11.0}}]
    split = attribution.split(lives, {name: {"e2e_s": {"mean": one}} for name, one in after})
    parts = split["e2e_s.mean"]["parts"]
    assert parts == {"engine": 0.0, "batching": 0.5, "kernels": 3.0, "host": -1.0, "capacity": 2.5}
    assert attribution.largest(parts) == "kernels"
    assert "ttft_s.mean" not in split


@settings(max_examples=30)
@given(st.lists(seconds, min_size=10, max_size=10), st.integers(0, 1000))
def test_a_fit_finds_what_made_the_steps(each: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = fitted.Fitted({"device": tuple(each)}, (0.1,) + (0.0,) * 9)
    shapes = []
    for _ in range(160):
        new, past, rows, context = rng.integers(1, 500, 4).tolist()
        verify = ((3, 1, past, 0), (5, 2, new, 0)) if rng.random() < 0.3 else ()
        prefills = ((new, past),) * int(rng.integers(0, 4))
        longest = int(rng.integers(context, 900))
        shapes.append(
            Shape(prefills, rows, rows * context, verifies=verify, proposals=(1, past, 2), decode_longest=longest)
        )
    device_s, host_s = priced(shapes, made)
    found = fitted.fit(shapes, {"device": device_s}, host_s)
    predicted_s, predicted_host_s = priced(shapes, found)
    np.testing.assert_allclose(predicted_s, device_s, rtol=1e-5)
    np.testing.assert_allclose(predicted_host_s, 0.1, rtol=1e-6)


def test_a_fitted_cost_keeps_the_contract_of_costs() -> None:
    each = tuple(0.01 * k for k in range(1, 11))
    cost = fitted.Fitted({"attention": each, "rest": each}, (0.5,) + (0.0,) * 9)
    shape = Shape(((7, 3),), 2, 30, decode_longest=20)
    spans, host_s = cost.span_s(shape, 3)
    assert host_s == 0.5
    assert spans[2] == cost.span_s(shape._replace(decode_context=34, decode_longest=22), 1)[0][0]
    assert device_seconds(cost.explain(shape).values()) == pytest.approx(spans[0])
    assert len(cost.describe()) == 3 * len(fitted.COUNTS)


def _report(**errors: float) -> dict[str, dict[str, dict[str, float]]]:
    names = {("tpot_s", "p50"), *ON_GPU.requests}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, name in names:
        found.setdefault(key, {})[name] = {"error": errors.get(f"{key}_{name}", 0.0)}
    return found


def test_verdicts() -> None:
    same, steps = {"identical": True}, {"all": {"bias": 0.01}, "by_kind": {"decode": {"mape": 0.04}}}
    assert judge(same, steps, _report(), {}, ON_GPU).good
    differs = {"identical": False, "first_difference": {"sentence": "step 3, entries: live 1, simulated 2"}}
    assert "step 3" in judge(differs, steps, _report(), {}, ON_GPU).reason
    slow = {"all": {"bias": 0.03}, "by_kind": {"decode": {"mape": 0.06}}}
    split = {"e2e_s.mean": {"error": 1.0, "parts": {"kernels": 0.2, "host": -0.9, "batching": 0.3}}}
    out = judge(same, slow, _report(tpot_s_p50=0.031), split, ON_GPU)
    assert not out.good
    assert [text.split(" ")[0] for text in out.out] == ["step", "decode", "TPOT"]
    assert out.reason.startswith("step bias +3.0 % (at most 2 %)")
    assert "host seconds" in out.reason
    late = _report(ttft_s_p90=0.2)
    assert not judge(same, steps, late, {}, ON_GPU).good
    late["ttft_s"]["p90"]["inside"] = True
    assert judge(same, steps, late, {}, ON_GPU).good
    assert judge(None, None, _report(), {}, Bounds.all_within(0.1)).good
