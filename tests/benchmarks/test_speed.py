"""How fast a replay is. Out of the default run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import traces
from sim import api, scenario
from traces.rows import from_frame
from traces.schema import Trace

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"


@pytest.fixture(scope="module")
def azure() -> Trace:
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    return traces.read(path)


def repeated(trace: Trace, requests: int) -> Trace:
    """The trace end to end until there are that many requests."""
    rows = trace.requests[["arrival_s", "prompt_tokens", "output_tokens"]]
    copies = -(-requests // len(rows))
    period_s = trace.span_s * (1 + 1 / len(rows))
    parts = [rows.assign(arrival_s=rows["arrival_s"] + period_s * copy) for copy in range(copies)]
    return from_frame(pd.concat(parts, ignore_index=True).iloc[:requests], name=f"{trace.name} x {copies}")


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle"])
def test_azure_conv(benchmark, azure: Trace, allocator: str) -> None:
    plan = scenario.build({"allocator": allocator})
    result = benchmark.pedantic(api.simulate, (plan,), {"trace": azure}, rounds=5, warmup_rounds=1)
    speed = result.summary["simulator"]
    benchmark.extra_info |= {"requests_per_cpu_s": round(speed["requests_per_cpu_s"]), "steps": speed["steps"]}
    assert result.summary["requests"]["completed"] == len(azure)


def test_drafting_beside_a_plain_run(benchmark, azure: Trace) -> None:
    """Four drafts a step, of which 70 % are right: in CPU seconds of this process, in turns with a plain run."""
    plain = scenario.build({})
    drafts = scenario.build({"policy": "speculative", "speculation.drafter": "eagle", "speculation.k": 4})

    def ratio() -> float:
        seconds: dict[str, list[float]] = {"plain": [], "drafts": []}
        for _ in range(3):
            for name, plan in (("plain", plain), ("drafts", drafts)):
                started_s = time.process_time()
                api.simulate(plan, trace=azure)
                seconds[name].append(time.process_time() - started_s)
        return min(seconds["drafts"]) / min(seconds["plain"])

    found = benchmark.pedantic(ratio, rounds=1)
    benchmark.extra_info["ratio"] = round(found, 2)
    assert found < 3, f"a run with drafts takes {found:.1f} times the seconds of a plain one"


def test_run_time_is_linear(benchmark, azure: Trace) -> None:
    """Four times the requests take four times the seconds, those of this process alone; a square law takes sixteen."""
    plan = scenario.build({})
    four = repeated(azure, 4 * len(azure))

    def cpu_s(trace: Trace) -> float:
        started_s = time.process_time()
        api.simulate(plan, trace=trace)
        return time.process_time() - started_s

    def ratio() -> float:
        return min(cpu_s(four) for _ in range(2)) / min(cpu_s(azure) for _ in range(3)) / 4

    found = benchmark.pedantic(ratio, rounds=1)
    benchmark.extra_info["ratio"] = round(found, 2)
    assert found < 1.5, f"a request takes {found:.2f} times the seconds where there are four times as many"


def test_one_million_requests(benchmark, azure: Trace) -> None:
    plan = scenario.build({})
    million = repeated(azure, 1_000_000)
    result = benchmark.pedantic(api.simulate, (plan,), {"trace": million}, rounds=1)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    benchmark.extra_info |= {"peak_gib": round(peak_bytes / 2**30, 2), "steps": result.summary["simulator"]["steps"]}
    assert np.isfinite(result.requests["finish_s"]).all()
