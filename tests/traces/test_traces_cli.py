"""`sim trace` as a script meets it: numbers, files, exit codes, one sentence for a mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from trace_samples import SAMPLES

import traces
from sim.cli.main import main

CSV = "arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n1.0,50,1\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(CSV)
    return path


def sim(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sim trace WORDS`."""
    code = 0
    before = sys.argv
    sys.argv = ["sim", "trace", *map(str, words)]
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


def test_info_as_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("mooncake", "burstgpt-v2", "vidur-lengths"):
        path = tmp_path / SAMPLES[name].file
        path.write_text(SAMPLES[name].text)
        code, out, err = sim(capsys, "info", path)
        assert (code, err) == (0, "")
        assert SAMPLES[name].file in out
        assert "mean" in out


def test_info_as_json(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, out, _ = sim(capsys, "info", trace, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["requests"] == 3
    assert found["arrivals"] == {"span_s": 1.0, "rate_per_s": 2.0, "cv": 0.0, "distinct_times": 3}
    assert found["prompt_tokens"]["max"] == 200
    assert found["prefix"] is None
    assert found["sessions"] is None


def test_info_of_one_request_and_of_the_bundled(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, out, _ = sim(capsys, "info", trace, "--limit", 1, "--json")
    assert (code, json.loads(out)["arrivals"]["rate_per_s"]) == (0, None)
    assert sim(capsys, "info", trace, "--limit", 1)[0] == 0
    code, out, _ = sim(capsys, "info", "chatbot_arena.jsonl")
    assert code == 0
    assert "(synthetic)" in out


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz", "out.parquet"])
def test_convert(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path, name: str) -> None:
    code, out, err = sim(capsys, "convert", trace, tmp_path / name, "--rate-scale", 2)
    assert (code, out) == (0, "")
    assert "wrote 3 requests" in err
    assert traces.read(tmp_path / name).requests["arrival_s"].tolist() == [0.0, 0.25, 0.5]


def test_convert_edits(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for words, rows in (
        (["--merge", trace, "--merge", trace], 9),
        (["--between", 0.5, 2], 2),
        (["--resample", 50, "--seed", 3], 50),
        (["--first-turns"], 3),
        (["--spread"], 3),
        (["--session-blocks", 16], 3),
        (["--stagger", 1.0], 3),
        (["--rate", 5.0], 3),
        (["--limit", 2], 2),
    ):
        assert sim(capsys, "convert", trace, out, *words)[0] == 0, words
        assert len(traces.read(out)) == rows, words


def test_synth_requests_is_seeded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--count", 50, "--rate", 5, "--prompt", "lognormal:median=100,sigma=1", "--output", "fixed:9"]
    for name, seed in (("a.csv", 1), ("b.csv", 1), ("c.csv", 2)):
        assert sim(capsys, "synth", "requests", tmp_path / name, *words, "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c
    assert traces.read(tmp_path / "a.csv").synthetic


def test_synth_from_a_trace(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    words = ["--count", 40, "--rate", 5, "--lengths-from", trace, "--arrivals", "gamma", "--cv", 3]
    assert sim(capsys, "synth", "requests", tmp_path / "a.csv", *words)[0] == 0
    assert set(traces.read(tmp_path / "a.csv").requests["prompt_tokens"]) == {100, 200, 50}


def test_synth_arena(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sim(capsys, "synth", "arena", tmp_path / "a.jsonl.gz", "--votes", 20, "--days", 1)[0] == 0
    trace = traces.read(tmp_path / "a.jsonl.gz")
    assert trace.kind == "chatbot_arena"
    assert trace.synthetic
    assert trace.requests["source_row"].nunique() == 20


@pytest.mark.shared
def test_synth_servegen(capsys: pytest.CaptureFixture[str], tmp_path: Path, shared: Path) -> None:
    clients = shared / "traces/servegen/deepseek-r1.tar.xz"
    assert sim(capsys, "synth", "servegen", clients, tmp_path / "a.parquet", "--duration", 30)[0] == 0
    assert traces.read(tmp_path / "a.parquet").synthetic


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "gone.csv"], "gone.csv does not exist"),
        (["info", "{trace}", "--format", "magic"], "unknown trace format 'magic'"),
        (["info", "{trace}", "--side", "x"], "--side"),
        (["info", "{trace}", "--limit", "0"], "--limit"),
        (["info", "{trace}", "--colour"], "No such option"),
        (["convert", "{trace}", "out.txt"], "must end in .csv"),
        (["convert", "{trace}", "no/such/folder/out.csv"], "cannot be written"),
        (["convert", "{trace}", "out.csv", "--rate", "-1"], "rate is -1.0"),
        (["convert", "{trace}", "out.csv", "--between", "5", "9"], "no request is left"),
        (["synth", "requests", "out.csv", "--count", "3", "--rate", "1"], "lengths are missing"),
        (["synth", "arena", "out.jsonl", "--votes", "0"], "votes is 0"),
        (["synth", "servegen", "{trace}", "out.csv"], "not a tar file"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str],
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = sim(capsys, *(word.format(trace=trace) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("out*"))
