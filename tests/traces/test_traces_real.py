"""The real traces beside the checkout, against the exact numbers that their README states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import traces
from traces import servegen
from traces.reuse import reuse
from traces.schema import Trace
from traces.stats import describe

pytestmark = pytest.mark.shared

AZURE = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake-fast25/conversation_trace.jsonl.gz"
# file: format, rows, span, rate, CV, then mean / p50 / p90 / p99 / max of prompts and of outputs; None: not stated
FACTS = {
    AZURE: ("azure", 19_366, 3501.722, 5.530, 1.09, (1154.7, 1020, 2734.5, 4142, 14050), (211.1, 129, 424, 601, 1000)),
    "vidur/splitwise_conv.csv": (
        *("vidur", 19_366, 3501.722, 5.530, 1.09),
        *((1154.7, 1020, 2734.5, 4142, 14050), (211.1, 129, 424, 601, 1000)),
    ),
    MOONCAKE: (
        *("mooncake", 12_031, 3536.999, 3.401, 3.03),
        *((12035.1, 6909, 27367, 85400, 126195), (342.6, 350, 597, 1118.5, 2000)),
    ),
    "vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv": (
        *("vidur", 28_257, None, None, None),
        *((2588.1, 2730, 3702, 3933, 4054), (291.4, 167, 372, 3271, 4056)),
    ),
    "llmservingsim/example_trace.jsonl": (
        *("llmservingsim", 10, 0.980, 9.18, 0.83),
        *((12.0, 14, 18, 22, 22), (59.1, 66, 97, 103, 104)),
    ),
    "llmservingsim/workload_me2_01_mixed.jsonl": (
        *("llmservingsim", 608, 60.898, 9.97, 0.99),
        *((9217.8, 2909.5, 24418, 28447, 31383), (3021.4, 873.5, 11809, 15039, 15890)),
    ),
    "ragpulse/0_trace_rows_1-3800.jsonl": (
        *("ragpulse", 3_800, 604_371, 0.0063, 3.16),
        *((3020.8, 3166, 3922, 5269, 6467), (255.9, 201, 508, 795, 1843)),
    ),
    "weka-agentic": ("weka", 39, 5983, None, None, (38097, 28042, 75482, 92801, 95855), (589, None, None, None, None)),
}


def decimals(stated: float) -> float:
    """Half of the last digit that a number is stated with."""
    text = repr(stated)
    return 0.5 * 10 ** -len(text.partition(".")[2]) if "." in text and not text.endswith(".0") else 0.51


@pytest.mark.parametrize("file", FACTS)
def test_stated_numbers(shared: Path, file: str) -> None:
    kind, rows, span, rate, cv, prompt, output = FACTS[file]
    trace = traces.read(shared / "traces" / file)
    found = describe(trace)
    assert (trace.kind, len(trace), trace.dropped) == (kind, rows, 0)
    for column, stated in (("prompt_tokens", prompt), ("output_tokens", output)):
        for name, value in zip(("mean", "p50", "p90", "p99", "max"), stated, strict=True):
            if value is not None:
                assert found[column][name] == pytest.approx(value, abs=decimals(value) * 1.02), (column, name)
    assert trace.has_arrivals is (span is not None)
    for name, value in (("span_s", span), ("rate_per_s", rate), ("cv", cv)):
        if value is not None:
            assert found["arrivals"][name] == pytest.approx(value, abs=decimals(value) * 1.02), name


def test_mooncake_reuse(shared: Path) -> None:
    trace = traces.read(shared / "traces" / MOONCAKE)
    found = reuse(trace.requests)
    assert found is not None
    assert (found.reused_blocks, found.blocks) == (105_710, 288_500)
    assert (found.reused_tokens, found.tokens) == (54_098_411, 144_793_823)
    assert found.covered_prompts == 118
    assert trace.requests["arrival_s"].nunique() == 1_180


def test_azure_and_vidur_are_the_same_requests(shared: Path) -> None:
    one = traces.read(shared / "traces" / AZURE).requests
    other = traces.read(shared / "traces" / "vidur/splitwise_conv.csv").requests
    assert np.abs(one["arrival_s"] - other["arrival_s"]).max() < 1e-6
    for column in ("prompt_tokens", "output_tokens", "source_row"):
        assert one[column].equals(other[column])


def test_ragpulse_sessions(shared: Path) -> None:
    trace = traces.read(shared / "traces/ragpulse/0_trace_rows_1-3800.jsonl")
    sizes = trace.requests.groupby("session").size()
    assert len(sizes) == 2_215
    assert sizes.max() == 25
    assert (sizes == 1).mean() == pytest.approx(0.607, abs=5e-4)
    gaps = trace.requests["think_s"][trace.requests["after"] >= 0]
    assert np.percentile(gaps, [10, 50, 90, 99]) == pytest.approx([16, 44, 297, 22554], abs=1)
    template = trace.requests["prompt_tokens"] // 16 - trace.requests["prefix_blocks"].map(len)
    assert template.between(0, 1).all()  # 6 to 12 template tokens are no part


def test_weka_files(shared: Path) -> None:
    sizes = {"trace_0019.json": 24, "trace_0102.json": 7, "trace_0130.json": 4, "trace_0288.json": 4}
    for name, rows in sizes.items():
        table = traces.read(shared / "traces/weka-agentic" / name).requests
        assert len(table) == rows
        assert table["after"].tolist() == list(range(-1, rows - 1))
        assert (table["prefix_blocks"].map(len) == table["prompt_tokens"] // 64).all()


def test_llmservingsim_token_ids_and_block_hashes(shared: Path) -> None:
    table = traces.read(shared / "traces/llmservingsim/example_trace.jsonl").requests
    assert (table["token_ids"].map(len) == table["prompt_tokens"]).all()
    assert (table["output_token_ids"].map(len) == table["output_tokens"]).all()
    path = shared / "measured/vllm_rtxpro6000_llama31_8b/workload.blockhash.jsonl"
    hashed = traces.read(path).requests
    assert len(hashed) == 300
    assert (hashed["prefix_blocks"].map(len) == hashed["prompt_tokens"] // 16).all()
    assert hashed["prefix_block_tokens"].unique().tolist() == [16]


@pytest.fixture(scope="module")
def clients(shared: Path) -> list[servegen.Client]:
    return servegen.read_clients(shared / "traces/servegen/deepseek-r1.tar.xz")


def test_servegen_parameters(clients: list[servegen.Client]) -> None:
    assert len(clients) == 73
    assert all(len(client.windows) == 144 for client in clients)
    rates = dict.fromkeys(range(0, 86_400, 600), 0.0)
    for client in clients:
        for window in client.windows:
            rates[window.start_s] += window.rate_per_s
    assert sum(rates.values()) / len(rates) == pytest.approx(16.0, abs=0.05)
    assert max(rates.values()) == pytest.approx(42.5, abs=0.05)


def test_servegen_trace_has_the_stated_lengths(clients: list[servegen.Client]) -> None:
    trace = servegen.synthesise(clients, np.random.default_rng(1), duration_s=86_400)
    assert len(trace) / 86_400 == pytest.approx(16.0, rel=0.01)
    stated = {"prompt_tokens": (1268, 208, 2092, 23423), "output_tokens": (1527, 792, 3432, 12607)}
    for column, (mean, *percentiles) in stated.items():
        assert trace.requests[column].mean() == pytest.approx(mean, rel=0.02)
        assert np.percentile(trace.requests[column], [50, 90, 99]) == pytest.approx(percentiles, rel=0.03)


def test_servegen_is_seeded(clients: list[servegen.Client]) -> None:
    def make(seed: int) -> Trace:
        return servegen.synthesise(clients, np.random.default_rng(seed), start_s=36_000, duration_s=300)

    assert make(1).requests.equals(make(1).requests)
    assert not make(1).requests.equals(make(2).requests)
    assert make(1).requests["arrival_s"].iloc[0] == 0
    assert make(1).span_s <= 300
