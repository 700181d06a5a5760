"""What a result file can hold that is not right: a row costs itself and is named; every sentence is true."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import result_files as made
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import HAND

from sim.validate.against import read, read_all
from traces.schema import InputError

FIVE = tuple(made.Asked(float(at), 10 + at, 0.5, (0.25, 0.25)) for at in range(5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def aiperf_lines(at: int, **changed: Any) -> str:
    """Five records, one of which is changed: a key of its metrics, its metadata or itself, None to leave it out."""
    records = [made.aiperf(row) for row in FIVE]
    for key, value in changed.items():
        holder = next(one for one in (records[at]["metrics"], records[at]["metadata"], records[at]) if key in one)
        if value is None:
            del holder[key]
        else:
            holder[key] = value
    return made.lines(records)


def tokens(value: Any) -> dict[str, Any]:
    return {"value": value, "unit": "tokens"}


def guidellm_text(**changed: Any) -> str:
    """Five requests, the third of which is changed, in itself or in its times."""
    benchmark = made.guidellm_benchmark(FIVE)
    request = benchmark["requests"]["successful"][2]
    for key, value in changed.items():
        (request if key in request else request["info"]["timings"])[key] = value
    return json.dumps(made.guidellm(benchmark))


LEFT_OUT = {
    "a key is missing": (aiperf_lines(2, request_latency=None), "line 3: request_latency is missing"),
    "no length": (aiperf_lines(1, output_sequence_length=None), "line 2: output_sequence_length is missing"),
    "no time": (aiperf_lines(1, request_start_ns=None), "line 2: request_start_ns or timestamp_ns is missing"),
    "no tokens": (aiperf_lines(4, output_sequence_length=tokens(0)), "line 5: no tokens"),
    "no prompt": (aiperf_lines(4, input_sequence_length=tokens(0)), "line 5: its prompt has no tokens"),
    "half a token": (
        aiperf_lines(0, input_sequence_length=tokens(1.5)),
        "line 1: input_sequence_length: value is 1.5; it must be a whole number of at least 0",
    ),
    "text": (
        aiperf_lines(0, request_latency={"value": "soon", "unit": "ms"}),
        "line 1: request_latency: value is 'soon'; it must be a number of seconds, 0 or more",
    ),
    "another unit": (
        aiperf_lines(0, request_latency={"value": 1.0, "unit": "furlong"}),
        "line 1: request_latency is in 'furlong'; known units: ns, us, ms, s, sec",
    ),
    "characters": (
        aiperf_lines(0, input_sequence_length={"value": 10, "unit": "characters"}),
        "line 1: input_sequence_length is in 'characters', not in tokens",
    ),
    "backwards": (
        aiperf_lines(3, time_to_first_token={"value": 1001.0, "unit": "ms"}),
        "line 4: its clock runs backwards: first token after 1.001000 s, last after 1.000000 s",
    ),
    "too late": (
        aiperf_lines(0, request_latency={"value": 9.0, "unit": "s"}),
        "line 1: its request_latency is 9 s, and it ended after 1 s",
    ),
    "another phase": (aiperf_lines(0, benchmark_phase="warmup"), "(line 1: 'warmup')"),
    "an error": (aiperf_lines(1, error={"code": 500, "message": "out of memory"}), "(line 2: out of memory)"),
    "no object": ("\n".join([*aiperf_lines(0).split("\n")[:4], "7"]), "line 5: it is 7; it must be an object"),
    "cut off": (aiperf_lines(0)[:-20], "line 5: it is not JSON ("),
    "an empty line": ("\n\n" + aiperf_lines(2, request_latency=None), "line 5: request_latency is missing"),
    "vllm": (json.dumps(made.vllm(FIVE, errors=["", "", "gone", "", ""])), "were not answered, left out on both"),
    "vllm, no number": (
        json.dumps(made.vllm(FIVE, input_lens=[10, "many", 12, 13, 14])),
        "request 1: input_len is 'many'; it must be a whole number of at least 0",
    ),
    "vllm, no list": (
        json.dumps(made.vllm(FIVE, itls=[[0.25, 0.25], 3] + [[0.25, 0.25]] * 3)),
        "request 1: itl is 3; it must be a list of numbers",
    ),
    "guidellm": (
        json.dumps(made.guidellm(made.guidellm_benchmark(FIVE))).replace(
            '"prompt_tokens": 12', '"prompt_tokens": null'
        ),
        "successful request 2: prompt_tokens is missing",
    ),
    "guidellm, ms": (
        guidellm_text(request_start=1760000003.0e3),
        "successful request 2: request_start is 1760000003000.0; as seconds that is more than 100 years; it looks like "
        "milliseconds since 1970",
    ),
    "guidellm, another clock": (
        guidellm_text(request_start=12.0),
        "successful request 2: it starts at 12, which are no seconds since 1970",
    ),
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_row_costs_itself_and_is_named(fault: str, path: Path) -> None:
    text, told = LEFT_OUT[fault]
    path.write_text(text)
    served = read(path)
    assert served.trace is not None
    assert len(served.trace) == 4
    (note,) = [note for note in served.notes if note.startswith("1 of 5 requests ")]
    assert told in note
    assert "left out on both sides" in note


def test_a_row_without_a_first_token_is_sent_and_named(path: Path) -> None:
    path.write_text(aiperf_lines(2, time_to_first_token=None))
    served = read(path)
    assert served.trace is not None
    assert served.latencies is not None
    assert len(served.trace) == 5
    assert served.latencies.requests["ttft_s"].isna().tolist() == [False, False, True, False, False]
    assert any("1 of 5 answers (line 3), which TTFT and TPOT leave out on both sides" in note for note in served.notes)
    path.write_text(made.lines([made.inference_perf(row) | {"info": {"input_tokens": 3, "output_tokens": 2}}
                                for row in FIVE]))  # fmt: skip
    assert any("No answer tells when its first token came" in note for note in read(path).notes)


def test_pieces_of_several_tokens_tell_no_gaps_between_tokens(path: Path) -> None:
    path.write_text(json.dumps(made.vllm(HAND, itls=[[0.75], [0.5]])))
    served = read(path)
    assert "In 1 of 2 answers the pieces that came are not one for each token" in served.notes[-1]
    assert served.measures()["itl_s"]["p50"] is None
    assert served.measures()["e2e_s"]["max"] == 1.25
    path.write_text(aiperf_lines(2, inter_chunk_latency=None))
    assert "Without gaps between tokens: 1 of 5 answers" in read(path).notes[-1]


def test_more_bad_rows_than_good_ones_are_refused_unless_asked_for(path: Path) -> None:
    good = made.aiperf(FIVE[0])
    bad = {"metadata": good["metadata"], "metrics": {}}
    path.write_text(made.lines([good, bad, bad]))
    with pytest.raises(InputError, match=r"line 2: input_sequence_length is missing \(2 of 3 records") as caught:
        read(path)
    assert str(caught.value).endswith("; --skip-bad leaves such records out")
    served = read(path, skip_bad=True)
    assert "2 of 3 requests had a record that cannot be used" in served.notes[1]
    path.write_text(made.lines([bad, bad]))
    with pytest.raises(InputError) as caught:
        read(path, skip_bad=True)
    assert "--skip-bad" not in str(caught.value)  # where nothing is left it helps nobody


def at_rate(rate: float) -> dict[str, Any]:
    return made.guidellm_benchmark(HAND, {"type_": "constant", "rate": rate})


REFUSED = {
    "nothing": ("", "not the results of a known tool; known: llmservingsim, vllm_bench, sglang_bench, guidellm, aip"),
    "no key": ("{}", "not the results of a known tool; known"),
    "other keys": ('{"a": 1, "b": 2}', "not the results of a known tool (its keys: a, b); known"),
    "a number": ("7", "not the results of a known tool; known"),
    "no JSON": ('{"a": 1}\n{no', "line 2 is not JSON ("),
    "one request backwards": (
        made.lines([made.llmservingsim(HAND[0], first_token_ts=90.0)]),
        "read as LLMServingSim's records of vLLM, line 1: its clock runs backwards",
    ),
    "no stamp": (made.lines([made.llmservingsim(HAND[0], queued_ts=None)]), "line 1: queued_ts is None; it must be"),
    "no tokens": (
        made.lines([made.llmservingsim(HAND[0], output_toks=0)]),
        "no request was answered; the first (line 1) had an answer of no tokens",
    ),
    "all failed": (
        json.dumps(made.vllm(HAND, errors=["gone", "gone"])),
        "no request was answered; the first (request 0) says: gone",
    ),
    "lists of other lengths": (
        json.dumps(made.vllm(HAND, ttfts=[1.0], num_prompts=1)),
        "input_lens has 2 entries and ttfts has 1: they are not of the same requests",
    ),
    "requests missing": (json.dumps(made.vllm(HAND, num_prompts=4)), "num_prompts is 4, and it holds 2 requests"),
    "not in seconds": (
        json.dumps(made.vllm(HAND, mean_ttft_ms=0.375)),
        "mean_ttft_ms is 0.375, and its ttfts make 375 ms if they are seconds",
    ),
    "a line of no object": ("\n".join([json.dumps(made.sglang(HAND)), "3"]), "line 2 is 3; it must be an object"),
    "several runs": (
        json.dumps(made.guidellm(*map(at_rate, (1, 2)))),
        "holds 2 runs: 1 (constant 1/s), 2 (constant 2/s); choose one by its number (--run 1), or --run all",
    ),
    "no benchmark": (
        json.dumps({"benchmarks": [{"requests": {"successful": 3}}]}),
        "benchmark 1: requests.successful is 3; it must be a list",
    ),
    "two clocks": (
        json.dumps(made.guidellm(made.guidellm_benchmark(HAND[:1]))).replace(': 500.0', ": 0.5"),
        "its first token came after 0.5 s by its stamp and after 0.5 ms as told",
    ),
    "no usage": (
        json.dumps(made.genai_perf(HAND, usage=False)),
        "its answer tells no usage, so that its tokens are not known; give --tokenizer",
    ),
    "another endpoint": (
        json.dumps(made.genai_perf(HAND) | {"endpoint": "v1/embeddings"}),
        "it is of 'openai' 'v1/embeddings'; read are openai with v1/chat/completions or v1/completions",
    ),
    "no latency": (json.dumps({"mean_ttft_ms": -1.0}), "holds no latency, neither of a request nor of all"),
    "statistics of another unit": (
        json.dumps({"request_latency": {"unit": "days", "avg": 1}}),
        "request_latency is in 'days'; known units: ns, us, ms, s, sec",
    ),
    "no metrics line": (
        'vllm:e2e_request_latency_seconds_sum{model_name="m"} many',
        "many'; it must be a name, its labels and a number",
    ),
    "no edge": ('vllm:e2e_request_latency_seconds_bucket{le="wide"} 1', "has a bucket up to 'wide'; it must be"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_result_in_one_true_sentence(fault: str, path: Path) -> None:
    text, told = REFUSED[fault]
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    sentence = str(caught.value)
    assert told in sentence
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert "Error" not in sentence


def test_a_run_is_chosen_by_number_or_label(path: Path) -> None:
    records = [made.sglang(HAND, request_rate=rate) for rate in (1.0, 2.0, 2.0)]
    path.write_text(made.lines(records))
    assert read(path, "1").label == "rate 1.0 (line 1)"
    assert read(path, "rate 2.0 (line 3)").label == "rate 2.0 (line 3)"
    with pytest.raises(InputError, match=r"--run 4: .* has no such run: 1 \(rate 1.0 \(line 1\)\), 2"):
        read(path, "4")


def test_a_run_of_a_sweep_that_cannot_be_used_costs_itself(path: Path) -> None:
    records = [made.sglang(HAND), made.sglang(HAND, errors=["gone", "gone"])]
    path.write_text(made.lines(records))
    good, bad = read_all(path).values()
    assert not isinstance(good, InputError)
    assert isinstance(bad, InputError)
    assert "the first (request 0) says: gone" in str(bad)
    path.write_text(made.lines(records[1:]))
    with pytest.raises(InputError, match="no request was answered"):
        read_all(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SUMMARIES: list[dict[str, Any]] = [
    {"time_to_first_token": {"unit": "ms", "avg": 1.0}, "request_count": {"unit": "requests", "avg": 4.0},
     "input_config": {"perf_analyzer": {"stimulus": {"concurrency": 8}}}},
    {"load_summary": {"requested_rate": 2.0}, "failures": {},
     "successes": {"count": 2, "latency": {"request_latency": {"mean": 1.0}}, "throughput": {"requests_per_sec": 1.0}}},
    {"num_prompts": 2, "mean_ttft_ms": 1.0, "p99_ttft_ms": 2.0, "duration": 1.0, "completed": 2, "burstiness": 1.0},
    made.guidellm(made.guidellm_benchmark(HAND, total=9)),
]  # fmt: skip
TEXTS = [*(write(FIVE) for write in (made.TIMED | made.UNTIMED).values()), *map(json.dumps, SUMMARIES)]


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        found += places(one, (*way, key))
    return found


@settings(max_examples=120)
@given(data=st.data(), text=st.sampled_from(TEXTS), value=json_values)
def test_any_damage_is_read_or_told_in_a_sentence(data: st.DataObject, text: str, value: Any) -> None:
    """Any value in any place: never an error of Python's own."""
    records = [json.loads(line) for line in text.split("\n")]
    *way, last = data.draw(st.sampled_from(places(records)))
    holder: Any = records
    for key in way:
        holder = holder[key]
    holder[last] = value

    with NamedTemporaryFile("w", suffix=".json") as file:
        file.write("\n".join(map(json.dumps, records)))
        file.flush()
        told = ""
        try:
            read(Path(file.name), skip_bad=True)
        except InputError as error:
            told = str(error)
        assert "\n" not in told
        assert not any(word in told for word in ("KeyError", "TypeError", "ValueError"))
