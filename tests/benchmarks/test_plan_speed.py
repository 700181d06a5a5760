"""How fast a plan is, on two cores. Out of the default run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

from sim import api

MOST_S = 30.0


def test_a_plan_of_one_configuration(benchmark) -> None:
    """The bundled chat on Llama 3.1 8B and one H100, to +- 3 %: under 30 s on two idle cores."""
    asked = {"trace": "chatbot_arena.jsonl", "slo": "ttft_p99=0.5,tpot_p99=0.05"}
    found = benchmark.pedantic(api.plan, (), {"workers": 2, **asked}, rounds=1)
    assert found["capacity"]["relative"] <= 0.03
    assert found["capacity"]["narrow"]
    benchmark.extra_info["simulations"] = found["simulations"]
    assert benchmark.stats.stats.mean < MOST_S
