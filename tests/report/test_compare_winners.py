"""Who may win a comparison: nobody whose queue grows or who misses the SLO; the nearest is named."""

from __future__ import annotations

from typing import Any

from sim.report.compare.winners import holds, nearest_words, turned_words, unlike_clients


def run_that(stable: bool | None, **of_limits: float) -> dict[str, Any]:
    clauses = [{"name": name, "of_limit": share, "met": share <= 1} for name, share in of_limits.items()]
    missed = any(share > 1 for share in of_limits.values())
    slo = "none asked" if not clauses else "missed" if missed or stable is False else "met"
    return {"verdict": {"slo": slo, "stable": stable, "clauses": clauses}}


def test_only_a_stable_run_that_meets_its_slo_may_win() -> None:
    assert holds(run_that(True, ttft_p99=0.9))
    assert holds(run_that(None))
    assert holds({})
    assert not holds(run_that(True, ttft_p99=1.1))
    assert not holds(run_that(False, ttft_p99=0.5))
    assert not holds(run_that(False))


def test_the_nearest_is_named_with_what_it_misses() -> None:
    far, near = run_that(True, ttft_p99=3.0, tpot_p99=0.2), run_that(True, ttft_p99=0.5, tpot_p99=1.25)
    text = nearest_words({"far": far, "near": near, "growing": run_that(False, ttft_p99=0.1)})
    assert text == "None is stable and meets the SLO; nearest: near misses tpot_p99 by 25.0 %."
    assert nearest_words({"far": far, "fine": run_that(True, ttft_p99=1.0)}) == ""
    assert "Every queue grows" in nearest_words({"one": run_that(False, ttft_p99=0.5), "other": run_that(False)})


def run_with(tpot_s: float, gpu: str = "h100", **parts: float) -> dict[str, Any]:
    """A run whose errors are those of `products` and `host`, of the source roofline."""
    told = [{"of": of, "source": "roofline", "common": part} for of, part in parts.items()]
    return {
        "tpot_s": {"p50": tpot_s},
        "inputs": {"gpu": gpu, "profile": "roofline"},
        "band": {"parts": told, "elasticity": None},
    }


def test_common_errors_of_one_gpu_turn_no_difference() -> None:
    one = run_with(0.020, products=0.1, host=0.02)
    assert turned_words({"one": one, "same shares": run_with(0.021, products=0.1, host=0.02)}) == ""
    assert turned_words({"one": one, "alike": run_with(0.020, products=0.05)}) == ""
    shifted = turned_words({"one": one, "shifted": run_with(0.021, products=0.06, host=0.05)})
    # 1.645 sqrt(0.04^2 + 0.03^2) = 8.2 %
    assert shifted == (
        "The errors of step times may turn the difference in median TPOT between one and shifted "
        "(5.0 % of up to 8.6 %)."
    )
    assert turned_words({"one": one, "far": run_with(0.023, products=0.06, host=0.05)}) == ""


def test_errors_of_two_gpus_are_independent() -> None:
    one, other = run_with(0.020, products=0.1), run_with(0.024, "l40s", products=0.1)
    assert "other (20.0 % of up to 26.2 %)" in turned_words({"one": one, "other": other})
    assert turned_words({"one": one, "no band": {**other, "band": None}}) == ""
    loaded = run_with(0.027, "l40s", products=0.1)
    assert turned_words({"one": one, "loaded": loaded}) == ""
    loaded["band"]["elasticity"] = 2.0
    assert "loaded" in turned_words({"one": one, "loaded": loaded})


def test_latencies_of_clients_and_of_engines_are_told_apart() -> None:
    assert unlike_clients({"one": True, "other": True}) == unlike_clients({"one": False}) == unlike_clients({}) == ""
    assert unlike_clients({"vllm": True, "sglang": False}).startswith("Only vllm is behind a front end")
    many = dict.fromkeys("abcde", True) | {"f": False}
    assert unlike_clients(many).startswith("Only a, b, c and 2 more are behind a front end")
