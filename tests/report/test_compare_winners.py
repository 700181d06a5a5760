"""Who may win a comparison: nobody whose queue grows or who misses the SLO; the nearest is named."""

from __future__ import annotations

from typing import Any

from sim.report.compare.winners import holds, nearest_words


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
