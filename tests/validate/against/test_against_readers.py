"""Each tool's file read back: the requests that were written down, and the statistics that hand arithmetic gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import result_files as made
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import Asked

from sim.validate.against import Served, read


def reading(text: str, **how: object) -> Served:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        path.write_text(text)
        return read(path, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*made.TIMED, *made.UNTIMED])
@settings(max_examples=12)
@given(rows=made.some)
def test_what_is_written_is_read(name: str, rows: list[Asked]) -> None:
    write: Callable[[Sequence[Asked]], str] = (made.TIMED | made.UNTIMED)[name]
    served = reading(write(rows))
    assert served.trace is not None
    assert served.latencies is not None
    seen = served.latencies.requests
    assert served.trace.requests["prompt_tokens"].tolist() == [row.prompt for row in rows]
    assert served.trace.requests["output_tokens"].tolist() == [row.output for row in rows]
    near = {"abs": 2e-6, "rel": 1e-9}
    told = not name.startswith("inference_perf")
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        expected = [getattr(row, key) for row in rows]
        assert seen[key].tolist() == pytest.approx(expected, nan_ok=True, **near), key
    assert served.trace.has_arrivals == (name in made.TIMED)
    if name in made.TIMED:
        first_s = rows[0].start_s
        assert seen["arrival_s"].tolist() == pytest.approx([row.start_s - first_s for row in rows], **near)
    assert (served.load is None) == (name in made.TIMED)
    measures = served.measures()
    assert measures["ttft_s"]["mean"] == pytest.approx(np.mean([row.ttft_s for row in rows]), **near)
    assert measures["e2e_s"]["p90"] == pytest.approx(np.percentile([row.e2e_s for row in rows], 90), **near)
    gaps = [gap for row in rows for gap in row.gaps_s]
    with_gaps = told and not name.startswith(("guidellm", "llmservingsim")) and gaps
    if with_gaps:
        assert measures["itl_s"]["p50"] == pytest.approx(np.median(gaps), abs=2e-6)


@pytest.mark.parametrize("name", made.TIMED)
def test_rates_by_hand(name: str) -> None:
    measures = reading(made.TIMED[name](made.HAND)).measures()
    # From 0 s to the last token at 0 + 1.25 s, which is that of the second request as well: five tokens.
    assert measures["duration_s"]["all"] == pytest.approx(1.25, abs=1e-6)
    assert measures["throughput"]["output_tokens_per_s"] == pytest.approx(5 / 1.25, rel=1e-5)


def test_an_answer_of_no_tokens_counts_in_the_tools_mean_and_is_left_out() -> None:
    record = made.vllm(made.HAND, output_lens=[3, 0], itls=[[0.5, 0.25], []])
    served = reading(json.dumps(record))
    assert served.measures()["ttft_s"]["mean"] == 0.5
    notes = " ".join(served.notes)
    assert "1 of 2 requests had an answer of no tokens, left out on both sides (request 1: no tokens)" in notes
    assert "The tool's own mean TTFT counts the answers of no tokens too." in notes  # 375 ms in the file
    without = reading(json.dumps(record | {"mean_ttft_ms": 500.0}))
    assert "counts the answers" not in " ".join(without.notes)


def test_statistics_alone() -> None:
    summary = {
        "num_prompts": 4, "completed": 4, "duration": 2.0, "total_input_tokens": 400, "total_output_tokens": 40,
        "request_rate": 3.5, "burstiness": 4.0, "max_concurrency": None, "mean_ttft_ms": 150.0, "median_ttft_ms": 120.0,
        "p99.9_ttft_ms": 300.0, "std_ttft_ms": 9.0, "mean_e2el_ms": 900.0, "output_throughput": 20.0,
    }  # fmt: skip
    served = reading(json.dumps(summary))
    assert served.trace is None
    assert served.load is not None
    assert (served.load.rate, served.load.cv, served.load.concurrency) == (3.5, 0.5, 0)
    assert served.mean_tokens == (100.0, 10.0)
    measures = served.measures()
    assert measures["ttft_s"] == {"mean": 0.15, "p50": 0.12, "p99.9": 0.3}
    assert measures["e2e_s"] == {"mean": 0.9}
    assert measures["throughput"] == {"output_tokens_per_s": 20.0, "requests_per_s": 2.0}
    assert any("--save-detailed" in note for note in served.notes)


@pytest.mark.parametrize(
    ("record", "lengths"),
    [
        ({"dataset_name": "random", "random_range_ratio": 0.5}, ((512, 1024), (64, 128))),
        ({"dataset_name": "random", "random_range_ratio": 0.0}, ((1, 1024), (1, 128))),
        ({"dataset_name": "sharegpt", "random_range_ratio": 0.5}, None),  # the options have defaults there too
        ({"dataset_name": "random", "random_range_ratio": 2.0}, None),
    ],
)
def test_the_lengths_that_sglang_names(record: dict[str, object], lengths: object) -> None:
    options = {"random_input_len": 1024, "random_output_len": 128, "mean_ttft_ms": 1.0, "completed": 2}
    found = reading(json.dumps(options | record)).lengths
    assert (None if found is None else (found.prompt, found.output)) == lengths


def test_a_sample_with_the_statistics_of_all() -> None:
    summary = {"mean": 70.0, "max": 90.0, "percentiles": {"p50": 65.0, "p95": 80.0}}
    metrics = {
        "request_totals": {"successful": 20},
        "time_to_first_token_ms": {"successful": summary},
        "inter_token_latency_ms": {"successful": {"mean": 20.0, "percentiles": {"p50": 19.0}}},
        "request_latency": {"successful": {"mean": 2.5}},
        "requests_per_second": {"successful": {"mean": 4.0}},
    }
    benchmark = made.guidellm_benchmark(made.HAND, {"type_": "concurrent", "streams": 8}) | {"metrics": metrics}
    served = reading(json.dumps(made.guidellm(benchmark)))
    assert served.sampled
    assert served.load is not None
    assert (served.answered, served.load.concurrency, served.label) == (20, 8, "concurrent 8")
    measures = served.measures()
    assert measures["ttft_s"]["p95"] == pytest.approx(0.08)
    assert measures["ttft_s"]["p90"] == pytest.approx(0.475)  # of the sample: 0.25 + 0.9 x 0.25
    assert measures["e2e_s"]["mean"] == 2.5
    assert measures["itl_s"] == {"mean": 0.02, "p50": None, "p90": None, "p95": None, "p99": None, "max": None}
    assert "holds 2 of 20 successful requests, a sample" in " ".join(served.notes)


@pytest.mark.parametrize(
    ("strategy", "load"),
    [
        ({"type_": "synchronous"}, (0.0, 1.0, 1)),
        ({"type_": "throughput", "max_concurrency": None}, (math.inf, 1.0, 0)),
        ({"type_": "throughput", "max_concurrency": 64}, (math.inf, 1.0, 64)),
        ({"type_": "constant", "rate": 2.5}, (2.5, 0.0, 0)),
        ({"type_": "poisson", "rate": 2.5, "max_concurrency": 16}, (2.5, 1.0, 16)),
    ],
)
def test_the_strategies_of_guidellm(strategy: dict[str, object], load: tuple[float, float, int]) -> None:
    found = reading(json.dumps(made.guidellm(made.guidellm_benchmark(made.HAND, strategy, total=3)))).load
    assert found is not None
    assert (found.rate, found.cv, found.concurrency) == load


def test_warm_up_and_cool_down_of_guidellm_are_told() -> None:
    benchmark = made.guidellm_benchmark(made.HAND, warmup_duration=5.0, cooldown_duration=2.5)
    notes = reading(json.dumps(made.guidellm(benchmark))).notes
    assert "GuideLLM leaves out the requests of its warm-up, 5 s long, whose load the server had." in notes
    assert any("cool-down, 2.5 s long" in note for note in notes)


@pytest.mark.parametrize("tool", ["genai", "aiperf"])
def test_the_statistics_of_genai_perf_and_aiperf(tool: str) -> None:
    document = {
        "time_to_first_token": {"unit": "ms", "avg": 150.0, "p50": 120.0, "p99": 300.0, "std": 1.0},
        "inter_token_latency": {"unit": "us", "avg": 9000.0},
        "request_latency": {"unit": "s", "avg": 1.5, "p90": 2.0},
        "request_throughput": {"unit": "requests/sec", "avg": 4.0},
        "input_sequence_length": {"unit": "tokens", "avg": 550.0},
        "output_sequence_length": {"unit": "tokens", "avg": 128.0},
        "request_count": {"unit": "requests", "avg": 40.0},
        "input_config": {"perf_analyzer": {"stimulus": {"concurrency": 8}}} if tool == "genai" else {},
    }
    served = reading(json.dumps(document))
    assert served.measures() == {
        "ttft_s": {"mean": 0.15, "p50": 0.12, "p99": 0.3},
        "tpot_s": {"mean": pytest.approx(0.009)},
        "e2e_s": {"mean": 1.5, "p90": 2.0},
        "throughput": {"requests_per_s": 4.0},
    }
    assert served.load is not None
    assert served.load.concurrency == (8 if tool == "genai" else 0)
    assert (served.answered, served.mean_tokens) == (40, (550.0, 128.0))


def test_tokens_of_genai_perf_are_counted_where_no_usage_is_told(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"word": 0}, unk_token="word"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    served = reading(json.dumps(made.genai_perf(made.HAND, usage=False)), tokenizer=str(tmp_path / "tokenizer.json"))
    assert served.trace is not None
    assert served.trace.requests[["prompt_tokens", "output_tokens"]].to_numpy().tolist() == [[8, 3], [6, 2]]


def test_an_event_that_comes_in_two_pieces() -> None:
    document = made.genai_perf(made.HAND[:1])
    request = document["experiments"][0]["requests"][0]
    text = request["response_outputs"][1]["response"]
    request["response_outputs"][1:2] = [{"response": text[:9]}, {"response": text[9:]}]
    request["response_timestamps"].insert(1, request["response_timestamps"][0] + 1)
    served = reading(json.dumps(document))
    assert served.latencies is not None
    assert served.latencies.requests["e2e_s"].tolist() == pytest.approx([1.25])
    assert served.trace is not None
    assert len(served.trace) == 1


def test_events_that_end_without_an_empty_line() -> None:
    document = made.genai_perf(made.HAND)
    for request in document["experiments"][0]["requests"]:
        for output in request["response_outputs"]:
            output["response"] = output["response"].strip()
        request["response_outputs"].append({"response": "data: [DONE]"})
        request["response_timestamps"].append(request["response_timestamps"][-1] + 1000)
    served = reading(json.dumps(document))
    assert served.latencies is not None
    assert served.latencies.requests["e2e_s"].tolist() == pytest.approx([1.25, 0.75])


def test_the_summary_of_inference_perf() -> None:
    latency = {
        "request_latency": {"mean": 2.0, "median": 1.9, "p99": 3.0, "min": 1.0},
        "time_to_first_token": {"mean": 0.2, "p99.9": 0.4},
        "time_per_output_token": None,
    }
    document = {
        "load_summary": {"count": 9, "requested_rate": 2.0},
        "successes": {"count": 8, "latency": latency, "throughput": {"output_tokens_per_sec": 50.0},
                      "prompt_len": {"mean": 100.0}, "output_tokens": {"mean": 32.0}},
        "failures": {"count": 1},
    }  # fmt: skip
    served = reading(json.dumps(document))
    assert served.measures() == {
        "e2e_s": {"mean": 2.0, "p50": 1.9, "p99": 3.0},
        "ttft_s": {"mean": 0.2, "p99.9": 0.4},
        "throughput": {"output_tokens_per_s": 50.0},
    }
    assert served.load is not None
    assert (served.load.rate, served.load.cv, served.mean_tokens, served.answered) == (2.0, 0.0, (100.0, 32.0), 8)
    assert any("does not say whether its rate was constant" in note for note in served.notes)


METRICS = """# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 9.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 2.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 10.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="2.0",model_name="m"} 10.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m"} 12.0
vllm:e2e_request_latency_seconds_count{engine="0",model_name="m"} 10.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 1000.0
vllm:request_prompt_tokens_count{engine="0",model_name="m"} 10.0
process_cpu_seconds_total 8.0
"""


def test_the_histograms_of_a_server() -> None:
    served = reading(METRICS)
    ttft = {statistic: value for (key, statistic), value in served.stated.items() if key == "ttft_s"}
    assert ttft["mean"].value == 0.25
    # The fifth of ten lies in the second bucket, of 5: one fifth of the way from 0.1 to 0.5.
    assert (ttft["p50"].value, ttft["p50"].low, ttft["p50"].high) == (pytest.approx(0.18), 0.1, 0.5)
    assert ttft["p90"].value == pytest.approx(0.5)
    assert "p99" not in ttft
    assert any("p99 of vllm:time_to_first_token_seconds lies above its highest bucket" in note for note in served.notes)
    assert served.stated["e2e_s", "p50"].value == pytest.approx(1.0)
    assert served.answered == 10
    assert served.mean_tokens[0] == 100.0
    two = METRICS + METRICS.replace('engine="0"', 'engine="1"')
    both = reading(two).stated["ttft_s", "p50"]
    assert (both.value, both.low, both.high) == (ttft["p50"].value, 0.1, 0.5)
    assert reading(two).answered == 20


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(1, 10_000).map(lambda value: value / 1000), min_size=1, max_size=40),
    edges=st.sets(st.integers(1, 12).map(float), min_size=1, max_size=8),
)
def test_a_percentile_lies_in_its_bucket(values: list[float], edges: set[float]) -> None:
    name = "vllm:e2e_request_latency_seconds"
    lines = [f'{name}_bucket{{le="{edge}"}} {sum(value <= edge for value in values)}' for edge in sorted(edges)]
    lines += [f'{name}_bucket{{le="+Inf"}} {len(values)}', f"{name}_count {len(values)}", f"{name}_sum {sum(values)}"]
    stated = reading("\n".join(lines)).stated
    assert stated["e2e_s", "mean"].value == pytest.approx(np.mean(values))
    for statistic, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        true = float(np.percentile(values, percent, method="inverted_cdf"))
        found = stated.get(("e2e_s", statistic))
        if found is None:
            assert true > max(edges)
        else:
            assert found.low < true <= found.high
            assert found.low <= found.value <= found.high
