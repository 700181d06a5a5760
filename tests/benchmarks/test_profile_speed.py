"""What pricing steps from tables costs a replay. Out of the default run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

import traces
from sim import api, scenario
from sim.cost.profile import write
from traces.schema import Trace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from profile_kit import llama_profile

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
MOST = 1.5
"""Issue 5: with a measured profile a replay takes at most so many times what it takes with the roofline."""


@pytest.fixture(scope="module")
def azure() -> Trace:
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    return traces.read(path)


def cpu_s(azure: Trace, settings: dict[str, Any]) -> float:
    """CPU seconds of a replay, reading the profile included."""
    plan = scenario.build(settings)
    began = time.process_time()
    api.simulate(plan, trace=azure)
    return time.process_time() - began


def test_a_profile_prices_nearly_as_fast_as_the_roofline(benchmark: Any, azure: Trace, tmp_path: Path) -> None:
    """Turn by turn, the least of each, since others use the machine too."""
    write(llama_profile(1.3), tmp_path / "p")
    profiled = {"gpu": "h100", "cost.profile": str(tmp_path / "p")}

    def ratio() -> float:
        pairs = [(cpu_s(azure, {"gpu": "h100"}), cpu_s(azure, profiled)) for _ in range(4)]
        return min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)

    benchmark.extra_info["ratio"] = found = benchmark.pedantic(ratio, rounds=1)
    assert found < MOST
