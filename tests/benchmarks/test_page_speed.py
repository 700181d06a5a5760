"""How fast pages and traces are written, and how large. Run: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import traces
from sim import api, scenario
from sim.report.run.page import render_page
from sim.report.run.perfetto import trace_json
from sim.report.sweep.page import render_sweep

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
TIMES = {"arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "start_s", "end_s"}


@pytest.fixture(scope="module")
def azure() -> api.Result:
    """A run of about 20,000 requests."""
    path = Path(__file__).parents[3] / "shared" / "traces" / AZURE
    if not path.exists():
        pytest.skip(f"needs the real trace {AZURE} beside the checkout")
    return api.simulate(scenario.build({"slo": "ttft_p99=0.5,tpot_p99=0.05"}), trace=traces.read(path))


def repeated(run: api.Result, copies: int) -> api.Result:
    """The tables of a run end to end: as many rows as a longer run has, without simulating it."""
    span_s = float(run.steps["end_s"].max()) + 1.0

    def tiled(table: pd.DataFrame) -> pd.DataFrame:
        columns = {}
        for name in table:
            values = table[name].to_numpy()
            later = np.repeat(span_s * np.arange(copies), len(values)) if name in TIMES else 0
            columns[name] = np.tile(values, copies) + later if name in TIMES else np.tile(values, copies)
        if "request" in columns:
            columns["request"] = np.arange(copies * len(table))
        return pd.DataFrame(columns, copy=False)

    gaps, weights = run.itl
    tables = {"requests": tiled(run.requests), "steps": tiled(run.steps)}
    longer = replace(run, **tables)
    vars(longer)["itl"] = np.tile(gaps, copies), np.tile(weights, copies)
    return longer


def test_the_page_of_20_000_requests(benchmark, azure: api.Result) -> None:
    text = benchmark.pedantic(render_page, (azure,), rounds=3)
    benchmark.extra_info |= {"requests": len(azure.requests), "megabytes": round(len(text) / 1e6, 2)}
    assert benchmark.stats.stats.max < 3.0


def test_page_and_trace_of_a_million_requests(benchmark, azure: api.Result, tmp_path: Path) -> None:
    """The page stays small; the trace goes to disk, and memory grows by less than a tenth of the file."""
    million = repeated(azure, -(-1_000_000 // len(azure.requests)))
    path, before_kib = tmp_path / "trace.json", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def write() -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(trace_json(million))

    benchmark.pedantic(write, rounds=1)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib)
    page = render_page(million)
    benchmark.extra_info |= {
        "requests": len(million.requests),
        "spans": len(million.steps),
        "page_megabytes": round(len(page) / 1e6, 2),
        "trace_gigabytes": round(path.stat().st_size / 1e9, 2),
        "trace_grew_gib": round(grown_bytes / 2**30, 2),
    }
    assert len(page) < 10_000_000
    assert "Thinned: " in page
    assert grown_bytes < path.stat().st_size / 4


def test_the_page_of_a_sweep_of_10_000_points(benchmark) -> None:
    rng, points = np.random.default_rng(0), 10_000
    axes = {"workload.rate": list(range(100)), "engine.max_num_seqs": list(range(100))}
    pairs = [(rate, seqs) for rate in axes["workload.rate"] for seqs in axes["engine.max_num_seqs"]]
    table = pd.DataFrame(pairs, columns=list(axes))
    table = table.assign(point=np.arange(points), seed=0, name="", status="ok", reason=None, stable=True)
    for name in ("throughput.requests_per_s", "throughput.output_tokens_per_s", "bill.usd_per_million_output_tokens"):
        table[name] = rng.random(points)
    for key in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        for statistic in ("mean", "p50", "p90", "p95", "p99"):
            table[f"{key}.{statistic}"] = rng.random(points)
    text = benchmark.pedantic(render_sweep, (table, axes, {}), rounds=1)
    benchmark.extra_info |= {"megabytes": round(len(text) / 1e6, 2)}
    assert len(text) < 10_000_000
