"""`sim validate --against`: results of real servers beside a simulation; what files hold: tests/validate/against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import result_files
from command_kit import sim

from sim import scenario
from sim.validate.against import read
from sim.validate.served import against
from sim.validate.verdict import Bounds
from traces.schema import InputError


def serving(**more: Any) -> dict[str, Any]:
    stamps = {"queued_ts": 100.0, "scheduled_ts": 100.25, "first_token_ts": 101.0, "last_token_ts": 103.0}
    return {"request_id": "a", "input_toks": 8, "output_toks": 5, **stamps, **more}


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
    code, _, err = sim(capsys, "validate", "--against", results, "--kv-blocks", 100, "--limit", 3)
    assert code == 2
    assert "--limit is of a trace" in err


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


FRONT_END = {"front_end.name": "custom", "front_end.request_s": 0.125, "front_end.step_s": 0.001}


def test_a_file_of_the_engine_s_is_compared_with_the_engine(results: Path, tmp_path: Path) -> None:
    """Its requests come to the engine when they did, so that a front end before it changes nothing."""
    bounds, settings = Bounds.all_within(0.5), {"kv_blocks": 100, "gpu": "h100"}
    bare, behind = (
        against(scenario.build({}, settings | more), read(results), bounds).document for more in ({}, FRONT_END)
    )
    assert behind["requests"] == bare["requests"]
    note = "The file has the engine's latencies: compared with the engine's, and requests come to it when they did"
    assert any(told.startswith(note) for told in behind["inputs"]["notes"])
    # Histograms tell no times: requests go through the front end, and what the engine does is compared.
    metrics = tmp_path / "metrics.txt"
    lines = [f"vllm:time_to_first_token_seconds_{name}" for name in ('bucket{le="+Inf"} 4', "count 4", "sum 2.0")]
    metrics.write_text("\n".join(lines))
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at},8,5\n" for at in range(4)))
    told = settings | FRONT_END | {"trace": str(trace)}
    ttft = against(scenario.build({}, told), read(metrics), bounds).document["requests"]["ttft_s"]["mean"]
    assert ttft["live"] == 0.5
    assert ttft["predicted"] < 0.1


def test_a_file_of_a_client_s_is_compared_with_what_a_client_sees(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    asked = result_files.Asked(0.0, 8, 0.5, (0.1, 0.1, 0.1, 0.1))
    path.write_text(json.dumps(result_files.vllm([asked])))
    settings = {"kv_blocks": 100, "gpu": "h100"}
    bare, behind = (
        against(scenario.build({}, settings | more), read(path), Bounds.all_within(0.5)).document
        for more in ({"front_end.name": "off"}, FRONT_END)
    )
    told = [document["requests"]["ttft_s"]["mean"]["predicted"] for document in (bare, behind)]
    assert told[1] - told[0] == pytest.approx(0.126)
    assert any("no front end is simulated" in note for note in bare["inputs"]["notes"])
    assert any("behind the front end custom." in note for note in behind["inputs"]["notes"])


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
