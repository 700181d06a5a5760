"""Results of real servers: every known file of a benchmark tool, and the mistakes that a file can hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_kit import sim

from sim import scenario
from sim.validate.against import read
from sim.validate.served import against
from sim.validate.verdict import Bounds
from traces.schema import InputError


def serving(**more: Any) -> dict[str, Any]:
    stamps = {"queued_ts": 100.0, "scheduled_ts": 100.25, "first_token_ts": 101.0, "last_token_ts": 103.0}
    return {"request_id": "a", "input_toks": 8, "output_toks": 5, **stamps, **more}


VLLM = {
    "input_lens": [8, 6, 4], "output_lens": [3, 2, 0], "ttfts": [0.5, 0.25, 0.0], "itls": [[0.5, 0.25], [0.5], []],
    "errors": ["", "", "no answer"], "start_times": [20.0, 20.5, 21.0], "num_prompts": 3, "mean_ttft_ms": 375.0,
}  # fmt: skip
GUIDELLM = {
    "benchmarks": [
        {
            "requests": {
                "successful": [
                    {"prompt_tokens": 8, "output_tokens": 3, "start_time": 1e9, "end_time": 1e9 + 9,
                     "first_token_time": 1e9 + 0.5, "last_token_time": 1e9 + 1.25, "time_to_first_token_ms": 500.0},
                    {"prompt_tokens": 6, "output_tokens": 2, "request_start_time": 1e9 + 0.5,
                     "request_end_time": 1e9 + 1.25, "time_to_first_token_ms": 250.0},
                ],
                "incomplete": [], "errored": [{}],
            },
            "metrics": {"request_totals": {"successful": 2, "incomplete": 0, "errored": 1, "total": 3}},
        }
    ]
}  # fmt: skip


def aiperf(start_ns: int, prompt: int, output: int, ttft_ms: float, e2e_ms: float, **more: Any) -> dict[str, Any]:
    metrics = {
        "input_sequence_length": {"value": prompt, "unit": "tokens"},
        "output_sequence_length": {"value": output, "unit": "tokens"},
        "time_to_first_token": {"value": ttft_ms, "unit": "ms"},
        "request_latency": {"value": e2e_ms / 1e3, "unit": "s"},
    }
    end_ns = start_ns + int(e2e_ms * 1e6)
    told = {"request_start_ns": start_ns, "request_end_ns": end_ns, "benchmark_phase": "profiling"}
    return {"metadata": told | more, "metrics": metrics, "error": None}


AIPERF = [
    aiperf(5, 1, 1, 1.0, 1.0, benchmark_phase="warmup"),
    aiperf(10**18, 8, 3, 500.0, 1250.0),
    aiperf(10**18 + 500_000_000, 6, 2, 250.0, 750.0),
    aiperf(10**18, 1, 1, 1.0, 1.0, was_cancelled=True),
]


@pytest.mark.parametrize(
    "text",
    [json.dumps(VLLM), json.dumps(GUIDELLM), "\n".join(map(json.dumps, AIPERF))],
    ids=["vllm", "guide", "aiperf"],
)
def test_the_same_requests_in_every_format(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    served = read(path)
    seen = served.latencies.requests
    assert seen[["prompt_tokens", "output_tokens"]].to_numpy().tolist() == [[8, 3], [6, 2]]
    assert seen["arrival_s"].tolist() == pytest.approx([0.0, 0.5])
    assert seen["ttft_s"].tolist() == [0.5, 0.25]
    assert seen["e2e_s"].tolist() == pytest.approx([1.25, 0.75])
    assert seen["tpot_s"].tolist() == pytest.approx([0.375, 0.5])
    assert "1 of 3 requests failed" in served.notes[-1]
    measures = served.latencies.measures()
    assert measures["duration_s"]["all"] == pytest.approx(1.25)
    assert measures["throughput"]["output_tokens_per_s"] == pytest.approx(5 / 1.25)
    if "itls" in text:
        assert sorted(served.latencies.itl[0].tolist()) == [0.25, 0.5, 0.5]


def test_llmservingsim_counts_from_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [serving(), serving(queued_ts=99.0, scheduled_ts=99.5, first_token_ts=100.5, last_token_ts=102.5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    seen = read(path).latencies.requests
    assert seen["arrival_s"].tolist() == [0.0, 1.0]
    assert seen["queue_s"].tolist() == [0.5, 0.25]
    assert seen["ttft_s"].tolist() == [1.5, 1.0]
    assert seen["tpot_s"].tolist() == [0.5, 0.5]


def guidellm(**changed: Any) -> str:
    """A report whose first request is changed."""
    document = json.loads(json.dumps(GUIDELLM))
    first = document["benchmarks"][0]["requests"]["successful"][0]
    first |= changed
    return json.dumps(document)


def test_vllm_requests_that_failed_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(VLLM | {"errors": ["", "", ""]}))
    assert "1 of 3 requests failed" in read(path).notes[-1]


def test_pieces_of_several_tokens_tell_no_gaps_between_tokens(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(VLLM | {"itls": [[0.75], [0.5], []]}))
    served = read(path)
    assert "In 1 of 2 answers several tokens came at once" in served.notes[-1]
    assert served.latencies.measures()["itl_s"]["p50"] is None
    assert served.latencies.requests["e2e_s"].tolist() == [1.25, 0.75]


def test_aiperf_tells_gaps_and_why_a_request_failed(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.jsonl"
    good, bad = json.loads(json.dumps(AIPERF[1])), json.loads(json.dumps(AIPERF[2]))
    good["metrics"]["inter_chunk_latency"] = {"value": [500.0, 250.0], "unit": "ms"}
    path.write_text(json.dumps(good))
    assert sorted(read(path).latencies.itl[0].tolist()) == [0.25, 0.5]
    path.write_text(json.dumps(bad | {"error": {"code": 500, "message": "out of memory"}}))
    with pytest.raises(InputError, match="the first failed because: out of memory"):
        read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "known tool"),
        ("{}", "known tool; known: llmservingsim, vllm_bench, guidellm, aiperf"),
        ('{"a": 1}\nno', "line 2"),
        (json.dumps(serving(first_token_ts=99.0)), "clock runs backwards in line 1"),
        (json.dumps(serving(last_token_ts=100.5)), "clock runs backwards in line 1"),
        (json.dumps(serving(output_toks=0)), "0 output tokens"),
        (json.dumps(serving(queued_ts=None)), "LLMServingSim"),
        (json.dumps(VLLM | {"start_times": None}), "start_times"),
        (json.dumps(VLLM | {"ttfts": [1.0]}), "vllm bench serve"),
        (json.dumps(VLLM | {"errors": ["gone"] * 3}), "no request was answered; the first failed because: gone"),
        (json.dumps({"benchmarks": GUIDELLM["benchmarks"] * 2}), "2 benchmarks"),
        (json.dumps(VLLM | {"mean_ttft_ms": 0.375}), "mean_ttft_ms is 0.375"),
        (json.dumps(VLLM | {"num_prompts": 4}), "num_prompts 4 and holds 3 requests"),
        (guidellm(start_time=1e12), "no seconds since 1970"),
        (guidellm(time_to_first_token_ms=0.5), "after 0.5 s and after 0.5 ms"),
        (guidellm(first_token_time=None, time_to_first_token_ms=None), "without streaming"),
        (guidellm(end_time=None, last_token_time=None), "last_token_time or end_time"),
        (guidellm(prompt_tokens=None), "a GuideLLM report"),
        (json.dumps(GUIDELLM).replace('"successful": 2', '"successful": 20'), "a sample cannot be sent again"),
        (json.dumps(AIPERF[1]).replace('"ms"', '"furlong"'), "furlong"),
        (json.dumps(AIPERF[1]).replace('"tokens"', '"characters"'), "not in tokens"),
        (json.dumps(AIPERF[1]).replace("profiling", "cooling"), "phase 'cooling'; known: warmup, profiling"),
        (json.dumps(AIPERF[1]).replace('"s"', '"ms"').replace("1.25", "12500.0"), "ended after 1.25 s"),
    ],
)
def test_bad_results_in_one_sentence(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told.replace("(", r"\(")) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "none.json")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    rows = [serving(), serving(queued_ts=101.0, scheduled_ts=101.0, first_token_ts=101.5, last_token_ts=102.5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_block_count_is_asked_for(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = sim(capsys, "validate", "--against", results)
    assert code == 2
    assert "--kv-blocks" in err
    code, _, err = sim(capsys, "validate", "--against", results, "--kv-blocks", 100, "--rate", 3)
    assert code == 2
    assert "as they were recorded" in err


def test_results_of_another_trace(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "arrival_s,prompt_tokens,output_tokens\n"
    trace = tmp_path / "trace.csv"
    for rows, told in (("0,8,5\n", "results of 2"), ("0,8,5\n1,7,5\n", "request 1 has 8 prompt_tokens, and 7")):
        trace.write_text(head + rows)
        code, _, err = sim(capsys, "validate", "--against", results, "--kv-blocks", 100, "--trace", trace)
        assert code == 2
        assert told in err


def test_against_results_by_hand(results: Path) -> None:
    plan = scenario.build({}, {"kv_blocks": 100, "gpu": "h100"})
    found = against(plan, read(results), Bounds.all_within(0.5))
    document = found.document
    assert document["twin"]["identical"] is None
    # First token 1 s after 0 and 0.5 s after 1; an H100 answers eight tokens within milliseconds.
    assert document["requests"]["ttft_s"]["mean"]["live"] == pytest.approx(0.75)
    assert document["requests"]["queue_s"]["mean"]["live"] == pytest.approx(0.125)
    assert -1 < document["requests"]["ttft_s"]["mean"]["error"] < -0.9
    assert document["attribution"]["kv_blocks"]["moved_by"]["fewer"]["e2e_s"] == 0.0
    assert not document["verdict"]["good"]


@pytest.mark.shared
def test_a_real_server(shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shared / "measured" / "vllm_rtxpro6000_llama31_8b"
    told = ("--against", folder / "requests.jsonl", "--trace", folder / "workload.blockhash.jsonl", "--gpu", "h100")
    engine = ("--set", "engine.max_num_seqs=128", "--set", "engine.max_num_batched_tokens=2048")
    code, out, _ = sim(capsys, "validate", *told, *engine, "--kv-blocks", 34_000, "--allocator", "prefix", "--json")
    document = json.loads(out)
    assert code == 1  # an H100 is another GPU than the one that was measured
    # The figures that the record's own summary.txt gives for vLLM, in ms.
    live = {key: document["requests"][key] for key in ("ttft_s", "tpot_s", "e2e_s")}
    assert 1e3 * live["ttft_s"]["mean"]["live"] == pytest.approx(7097.2, abs=0.05)
    assert 1e3 * live["tpot_s"]["p99"]["live"] == pytest.approx(37.3, abs=0.05)
    assert 1e3 * live["e2e_s"]["p50"]["live"] == pytest.approx(29615.6, abs=0.05)
