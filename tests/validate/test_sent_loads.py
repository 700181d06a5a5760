"""What is simulated beside results that do not tell when requests came, or which: the load that was asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import result_files as made
from command_kit import refused, sim
from result_files import HAND, Asked

from sim import scenario
from sim.validate.against import read
from sim.validate.sent import Sent, sent
from sim.validate.served import against
from sim.validate.verdict import Bounds
from traces.schema import InputError

MANY = tuple(Asked(0.0, 10 + at, 0.25, (0.125,)) for at in range(40))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    found = tmp_path / "trace.csv"
    rows = [f"{at},{row.prompt},{row.output}" for at, row in enumerate(MANY)]
    found.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return found


def sending(path: Path, record: Any, **settings: Any) -> Sent:
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return sent(scenario.build({}, {"kv_blocks": 1000, "gpu": "h100", **settings}), read(path))


def unstamped(**changed: Any) -> dict[str, Any]:
    return made.vllm(MANY, start_times=None, **changed)


def times_s(work: Sent) -> np.ndarray:
    return work.trace.requests["arrival_s"].to_numpy(np.float64)


def test_a_closed_loop(path: Path) -> None:
    work = sending(path, unstamped(max_concurrency=3))
    assert work.scenario.workload.concurrency == 3
    assert work.trace.requests["prompt_tokens"].tolist() == [row.prompt for row in MANY]
    assert "a closed loop of 3 is simulated" in work.notes[-1]


def test_all_at_once(path: Path) -> None:
    work = sending(path, unstamped(max_concurrency=None))
    assert not times_s(work).any()
    assert work.notes[-1] == "All requests are sent at once, as was asked for."


def test_a_rate_with_and_without_burstiness(path: Path) -> None:
    poisson = sending(path, unstamped(max_concurrency=None, request_rate=2.0))
    assert "Poisson arrivals at 2 a second are drawn anew" in poisson.notes[-1]
    assert times_s(poisson)[-1] == pytest.approx(20, abs=3)
    assert poisson.most == 0
    again = sending(path, unstamped(max_concurrency=None, request_rate=2.0))
    assert (times_s(poisson) == times_s(again)).all()
    other = sending(path, unstamped(max_concurrency=None, request_rate=2.0), seed=7)
    assert (times_s(poisson) != times_s(other)).any()
    calm = sending(path, unstamped(request_rate=2.0, burstiness=1e4))
    assert np.diff(times_s(calm)).std() < 0.05  # a shape of 10,000 is a hundredth of the mean gap
    assert calm.most == 2


def test_evenly_spaced(path: Path) -> None:
    benchmark = made.guidellm_benchmark(HAND, {"type_": "constant", "rate": 4.0}, total=5)
    work = sending(path, made.guidellm(benchmark))
    assert times_s(work).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert work.trace.requests["prompt_tokens"].tolist() == [8, 6, 8, 6, 8]
    assert "The 2 requests of the sample are sent in turn, 5 in all" in work.notes[0]


def test_a_load_of_ones_own_stands_before_the_files(path: Path) -> None:
    work = sending(path, unstamped(max_concurrency=3), concurrency=5)
    assert work.scenario.workload.concurrency == 5
    assert work.notes[-1].startswith("The load is the one asked for here")


def test_statistics_need_a_trace(path: Path, trace: Path) -> None:
    summary = {"num_prompts": 40, "completed": 40, "mean_ttft_ms": 1.0, "max_concurrency": 2, "request_rate": "inf",
               "total_input_tokens": 1180, "total_output_tokens": 80}  # fmt: skip
    with pytest.raises(InputError) as caught:
        sending(path, summary)
    assert str(caught.value) == (
        "results.json holds statistics and no requests: give what was sent as --trace (40 requests of 29.5 prompt and "
        "2.0 output tokens on average); sim trace synth requests makes one of given lengths, and --save-detailed, "
        "beside --save-result, writes down each request"
    )
    work = sending(path, summary, trace=str(trace))
    assert work.notes[:-1] == ()
    other = sending(path, summary | {"completed": 20}, trace=str(trace))
    assert other.notes[0] == "The trace has 40 requests, and the results are of 20."
    assert other.notes[1] == "The trace has 29.5 prompt tokens on average, and the results are of 59.0."


def test_random_lengths_are_drawn_as_the_file_names_them(path: Path) -> None:
    record = {"dataset_name": "random", "random_input_len": 100, "random_output_len": 10, "random_range_ratio": 0.5,
              "mean_ttft_ms": 1.0, "completed": 200, "request_rate": 5.0, "max_concurrency": None}  # fmt: skip
    work = sending(path, record)
    prompt = work.trace.requests["prompt_tokens"].to_numpy()
    assert (len(prompt), prompt.min(), prompt.max()) == (200, 50, 100)
    assert set(work.trace.requests["output_tokens"]) == {5, 6, 7, 8, 9, 10}
    assert "The lengths are drawn anew" in work.notes[0]


METRICS = 'vllm:e2e_request_latency_seconds_sum{model_name="m"} 4.0\nvllm:e2e_request_latency_seconds_count 2.0\n'


def test_without_any_load_the_trace_tells_it(path: Path, trace: Path, tmp_path: Path) -> None:
    text = METRICS.replace("_count", '_count{model_name="m"}')
    work = sending(path, text, trace=str(trace))
    assert times_s(work).tolist() == list(range(40))
    assert "they come at the times of the trace" in work.notes[-1]
    timeless = tmp_path / "lengths.csv"
    timeless.write_text("prompt_tokens,output_tokens\n8,3\n6,2\n")
    with pytest.raises(InputError, match="does not tell when requests came, nor at which rate or concurrency: give"):
        sending(path, text, trace=str(timeless))
    assert math.isinf(sending(path, text, trace=str(timeless), rate=math.inf).scenario.workload.rate)


def test_a_limit_beside_a_rate_is_told_and_whether_it_mattered(path: Path) -> None:
    notes = {}
    for most in (1, 40):
        path.write_text(json.dumps(unstamped(request_rate=1e4, max_concurrency=most)))
        plan = scenario.build({}, {"kv_blocks": 1000, "gpu": "h100"})
        document = against(plan, read(path), Bounds.all_within(0.1)).document
        (notes[most],) = [note for note in document["inputs"]["notes"] if "be under way" in note]
    assert "at most 1 requests be under way; simulated were up to 40, and here nothing holds" in notes[1]
    assert "up to 40, so that it changed nothing" in notes[40]


def test_a_first_token_that_is_unknown_counts_on_neither_side(path: Path) -> None:
    records = [made.aiperf(Asked(float(at), 4000 if at else 1, 0.5, (0.25,))) for at in range(4)]
    del records[0]["metrics"]["time_to_first_token"]
    path.write_text(made.lines(records))
    found = against(scenario.build({}, {"kv_blocks": 2000, "gpu": "h100"}), read(path), Bounds.all_within(0.1))
    ttft_s = found.predicted.requests["ttft_s"]
    assert ttft_s.isna().tolist() == [True, False, False, False]
    assert found.document["requests"]["ttft_s"]["mean"]["predicted"] == pytest.approx(ttft_s[1:].mean())
    assert found.document["requests"]["paired"]["ttft_s"]["requests"] == 3
    assert found.document["requests"]["paired"]["e2e_s"]["requests"] == 4


def test_a_percentile_that_is_known_by_its_bucket(path: Path, trace: Path) -> None:
    """All first tokens of the prediction are within a second: inside the one bucket, however far from its middle."""
    lines = [f'vllm:time_to_first_token_seconds_bucket{{le="{edge}"}} 40' for edge in ("1.0", "+Inf")]
    lines += ["vllm:time_to_first_token_seconds_sum 20", "vllm:time_to_first_token_seconds_count 40"]
    path.write_text("\n".join(lines) + "\n")
    plan = scenario.build({}, {"kv_blocks": 1000, "gpu": "h100", "trace": str(trace)})
    document = against(plan, read(path), Bounds.all_within(0.1)).document
    row = document["requests"]["ttft_s"]["p90"]
    assert (row["live"], row["spread"], row["inside"]) == (pytest.approx(0.9), [0.0, 1.0], True)
    assert row["error"] < -0.9
    (out,) = document["verdict"]["out"]
    assert out.startswith("TTFT mean -98")  # exact, and so judged as it is
    lines[0] = lines[0].replace("1.0", "0.0001").replace(" 40", " 0")
    lines.insert(1, 'vllm:time_to_first_token_seconds_bucket{le="0.001"} 40')
    path.write_text("\n".join(lines) + "\n")
    document = against(plan, read(path), Bounds.all_within(0.1)).document
    row = document["requests"]["ttft_s"]["p90"]
    assert row["inside"] is False
    assert row["least_error"] == pytest.approx(row["predicted"] / 0.001 - 1)
    assert row["error"] > row["least_error"]
    assert document["verdict"]["out"][0].startswith("TTFT p90 at least +")


def test_percentiles_that_are_not_of_the_usual_ones(
    path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(json.dumps({"num_prompts": 40, "mean_ttft_ms": 9.0, "p75_ttft_ms": 9.5, "p75_itl_ms": 5.0,
                                "max_concurrency": 1}))  # fmt: skip
    words = ("validate", "--against", path, "--kv-blocks", 1000, "--trace", trace)
    _, out, _ = sim(capsys, *words, "--json")
    found = json.loads(out)["requests"]
    single = found["ttft_s"]["mean"]["predicted"]
    assert found["ttft_s"]["p75"]["predicted"] == pytest.approx(single, rel=0.05)  # one at a time: all alike
    assert found["itl_s"]["p75"]["error"] == pytest.approx(found["itl_s"]["p75"]["predicted"] / 0.005 - 1)
    assert "paired" not in found
    _, out, _ = sim(capsys, *words)
    assert "TTFT p75, ms" in out
    assert "ITL p75, ms" in out


def test_a_sweep_as_a_table(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks = [made.guidellm_benchmark(HAND, {"type_": "constant", "rate": rate}) for rate in (1.0, 2.0)]
    path.write_text(json.dumps(made.guidellm(*benchmarks, made.guidellm_benchmark([]))))
    words = ("validate", "--against", path, "--kv-blocks", 1000)
    told = refused(capsys, *words)
    assert "holds 3 runs: 1 (constant 1/s), 2 (constant 2/s), 3 (synchronous); choose one" in told
    code, out, _ = sim(capsys, *words, "--run", "all", "--json")
    document = json.loads(out)
    assert code == 1
    assert list(document["runs"]) == ["1 constant 1/s", "2 constant 2/s"]
    assert list(document["unusable"]) == ["3 synchronous"]
    one = sim(capsys, *words, "--run", "2", "--json")[1]
    assert json.loads(one)["requests"] == document["runs"]["2 constant 2/s"]["requests"]
    out = sim(capsys, *words, "--run", "all")[1]
    assert "TTFT p50, ms" in out or "TTFT p50, s" in out
    assert "3 synchronous is not compared" in out
    assert out.count("Read as a GuideLLM report") == 1
    assert "give one of them (--run 1)" in refused(capsys, *words, "--run", "all", "--out", tmp_path / "out")
    assert "--run chooses a run of the results" in refused(capsys, "validate", "--run", "1")


def test_the_page_of_statistics_alone(
    path: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(json.dumps(made.guidellm(made.guidellm_benchmark(HAND, total=3))))
    for name, more in (("sample", ()), ("summary", ("--trace", trace))):
        if more:
            path.write_text(json.dumps({"num_prompts": 40, "mean_ttft_ms": 9.0, "p99_ttft_ms": 9.0, "request_rate": 9}))
        out = tmp_path / name
        sim(capsys, "validate", "--against", path, "--kv-blocks", 1000, *more, "--out", out)
        assert "Not possible: the server" in (out / "validate.html").read_text()
        events = json.loads((out / "trace.perfetto.json").read_text())["traceEvents"]
        assert events


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "ttft_ms", "told"),
    [
        ("vb_ok.json", 105.0, None),
        ("vb_zero_out.json", 320 / 3, "request 1: no tokens"),
        ("vb_no_start.json", 105.0, "a closed loop of 2 is simulated"),
        ("sglang_bench.jsonl", 150.0, "Poisson arrivals at 4 a second"),
        ("guidellm_050_full.json", 62.481, None),
        ("guidellm_050_sampled.json", 62.481, "holds 4 of 22 successful requests"),
        ("aiperf_2025_records.jsonl", 2510.544, "line 1: Request was cancelled"),
        ("aiperf_2026_records.jsonl", 259.914, None),
        ("aiperf_no_ttft_one.jsonl", 298.271, "(line 2)"),
        ("vllm_bench_summary_only.json", 215.536, "--save-detailed"),
    ],
)
def test_files_that_people_have(
    name: str, ttft_ms: float, told: str | None, shared: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--trace", trace) if "summary" in name else ()
    words = ("validate", "--against", shared / "cases" / "files" / name, "--kv-blocks", 2000, *more, "--json")
    document = json.loads(sim(capsys, *words)[1])
    assert 1e3 * document["requests"]["ttft_s"]["mean"]["live"] == pytest.approx(ttft_ms, abs=1e-3)
    assert told is None or any(told in note for note in document["inputs"]["notes"])


def test_a_trace_of_requests_some_of_which_were_not_answered(path: Path, trace: Path) -> None:
    errors = ["gone" if at in (3, 7) else "" for at in range(40)]
    work = sending(path, made.vllm(MANY, errors=errors, max_concurrency=2), trace=str(trace))
    assert work.trace.requests["prompt_tokens"].tolist() == [10 + at for at in range(40) if at not in (3, 7)]
    assert "2 of its 40 requests are left out, as in the results" in work.trace.notes[-1]
    with pytest.raises(InputError, match=r"has 40 requests, and results\.json results of 38"):
        sending(path, made.vllm(MANY, errors=errors, input_lens=[99] * 40), trace=str(trace))


def test_more_requests_than_a_trace_has_are_not_made_up(path: Path) -> None:
    benchmark = made.guidellm_benchmark(HAND, {"type_": "synchronous"}, total=10**12)
    with pytest.raises(InputError, match=r"is of 1,000,000,000,000 requests, and a trace has at most"):
        sending(path, made.guidellm(benchmark))
    with pytest.raises(InputError, match=r"workload\.concurrency"):
        sending(path, unstamped(max_concurrency=10**15))
