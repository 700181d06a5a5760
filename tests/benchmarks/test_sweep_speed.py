"""How fast a sweep is, on two cores. Out of the default run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import api

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
POINTS = 100


def test_one_hundred_points_of_azure_conv(benchmark, tmp_path: Path) -> None:
    """Two policies at fifty rates from far below capacity to twice as much: under 100 s on two idle cores."""
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    asked = {"trace": str(path), "policy": ["chunked", "sjf"], "rate": list(range(1, 51))}
    table = benchmark.pedantic(api.sweep, (), {"out": tmp_path / "out", "workers": 2, **asked}, rounds=1)
    assert len(table) == POINTS
    assert (table["status"] == "ok").all()
    benchmark.extra_info["points_per_s"] = POINTS / benchmark.stats.stats.mean
    assert benchmark.stats.stats.mean < 100
