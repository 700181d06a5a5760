"""How fast a sweep is, on two cores. Out of the default run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sim import api
from sim.serving import run as serving
from sim.serving.run import Result

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
POINTS = 100


def test_what_a_point_takes_beside_its_loop(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assembling, bands, table and page of 8 points in this process: at most 30 % of their loops' CPU time."""
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    loops_s, simulate = [], serving.simulate

    def watched(*given: Any, **named: Any) -> Result:
        result = simulate(*given, **named)
        loops_s.append(result.summary["simulator"]["cpu_s"])
        return result

    monkeypatch.setattr(serving, "simulate", watched)
    asked = {"trace": str(path), "policy": ["chunked", "sjf"], "rate": [5, 10, 20, 40], "out": tmp_path, "workers": 1}
    began = time.process_time()
    benchmark.pedantic(api.sweep, (), asked, rounds=1)
    overhead = (time.process_time() - began) / sum(loops_s) - 1
    benchmark.extra_info["overhead"] = round(overhead, 3)
    assert len(loops_s) == 8
    assert overhead < 0.3


def test_one_hundred_points_of_azure_conv(benchmark, tmp_path: Path) -> None:
    """Two policies at fifty rates from far below capacity to twice as much, each point behind a front end and with its
    band: under 120 s on two idle cores."""
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    asked = {"trace": str(path), "policy": ["chunked", "sjf"], "rate": list(range(1, 51))}
    table = benchmark.pedantic(api.sweep, (), {"out": tmp_path / "out", "workers": 2, **asked}, rounds=1)
    assert len(table) == POINTS
    assert (table["status"] == "ok").all()
    benchmark.extra_info["points_per_s"] = POINTS / benchmark.stats.stats.mean
    assert benchmark.stats.stats.mean < 120
