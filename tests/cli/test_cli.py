"""The command line as a person and a script meet it: output, files, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command_kit import refused, sim

from sim import scenario

CSV = "arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n1.0,50,1\n"
SUMMARY_KEYS = {
    "requests",
    "duration_s",
    "throughput",
    "ttft_s",
    "tpot_s",
    "itl_s",
    "e2e_s",
    "queue_s",
    "kv",
    "cost_sources",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(CSV)
    return path


def test_run_prints_a_table(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, out, err = sim(capsys, "run", "--trace", trace)
    assert code == 0
    assert err == ""
    assert all(word in out for word in ("TTFT", "TPOT", "ITL", "E2E", "roofline"))
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_the_summary_alone(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, out, _ = sim(capsys, "run", "--trace", trace, "--json", "--slo", "ttft=1")
    summary = json.loads(out)
    assert code == 0
    assert set(summary) >= SUMMARY_KEYS | {"goodput", "simulator", "inputs"}
    assert summary["requests"]["completed"] == 3
    assert summary["inputs"]["trace"] == "small.csv"
    assert summary["cost_sources"]["fitted"] + summary["cost_sources"]["roofline"] == pytest.approx(1.0)


def test_out_writes_every_file(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, _, _ = sim(capsys, "run", "--trace", trace, "--out", folder, "--perfetto")
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {
        "scenario.toml",
        "requests.parquet",
        "steps.parquet",
        "gaps.parquet",
        "preempted.parquet",
        "terms.parquet",
        "summary.json",
        "report.html",
        "trace.perfetto.json",
    }
    requests = pd.read_parquet(folder / "requests.parquet")
    assert requests["status"].eq("completed").all()
    steps = pd.read_parquet(folder / "steps.parquet")
    capacity = json.loads((folder / "summary.json").read_text())["kv"]["capacity_tokens"]
    assert steps.filter(regex="^kv_[a-z]*_tokens$").sum(axis=1).eq(capacity).all()
    again = scenario.build(scenario.read(folder / "scenario.toml"))
    assert again.kv.blocks * again.kv.block_tokens == capacity


def test_a_trace_for_perfetto_only_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path
) -> None:
    """One of an earlier run is no part of the next."""
    out = tmp_path / "out"
    words = ["run", "--trace", trace, "--out", out]
    assert sim(capsys, *words, "--perfetto", "--trace-window", "0:1")[0] == 0
    assert (out / "trace.perfetto.json").exists()
    assert sim(capsys, *words)[0] == 0
    assert not (out / "trace.perfetto.json").exists()
    for asked, said in (
        (["--out", out, "--trace-window", "0:1"], "give --perfetto too"),
        (["--perfetto"], "give --out too"),
    ):
        code, _, err = sim(capsys, "run", "--trace", trace, *asked)
        assert code == 2
        assert said in err


def test_a_written_scenario_runs_the_same_again(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path
) -> None:
    sim(capsys, "run", "--trace", trace, "--out", tmp_path / "one", "--set", "policy=sjf", "--set", "policy.by=output")
    code, _, _ = sim(capsys, "run", tmp_path / "one" / "scenario.toml", "--out", tmp_path / "two")
    assert code == 0
    for name in ("requests.parquet", "steps.parquet", "scenario.toml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "no-such.csv"], "no-such.csv does not exist"),
        (["--policy", "magic"], "known: chunked, continuous, priority, sjf, speculative, static"),
        (["--allocator", "magic"], "contiguous-max"),
        (["--model", "gpt-9"], "llama-3.1-8b"),
        (["--gpu", "h9000"], "h100"),
        (["--profile", "magic"], "roofline"),
        (["--set", "engine.max_seqs=3"], "max_num_seqs"),
        (["--set", "engine.max_num_seqs=many"], "must be of type int"),
        (["--set", "nonsense"], "section.key=value"),
        (["--set", "policy.by=output"], "long_prefill_token_threshold"),
        (["--policy", "sjf", "--set", "policy.by=luck"], "prompt, output and total"),
        (["--slo", "speed=3"], "ttft"),
        (["--rate", "-1"], "workload.rate"),
        (["--rate", "2", "--concurrency", "3"], "exclude one another"),
        (["--kv-blocks", "3"], "line 2"),
        (["--set", "engine.max_model_len=64"], "max_model_len 64"),
        (["--tp", "3"], "tp"),
        (["--model", "llama-3.1-405b"], "fit"),
        (["--seed", "-1"], "seed"),
        (["--limit", "x"], "--limit"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    given = [] if "--trace" in words else ["--trace", trace]
    code, out, err = sim(capsys, "run", *given, *words, "--out", tmp_path / "out")
    assert code == 2
    assert said in err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_skip_bad_counts_what_can_never_fit(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    code, out, _ = sim(capsys, "run", "--trace", trace, "--kv-blocks", 10, "--skip-bad", "--json")
    counts = json.loads(out)["requests"]
    assert code == 0
    assert counts == {"total": 3, "completed": 2, "rejected": 1, "unfinished": 0, "dropped": 0}


def test_a_full_disk_leaves_nothing(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code, _, err = sim(capsys, "run", "--trace", trace, "--out", "/dev/full/out")
    assert code == 2
    assert err.count("\n") == 1


def test_compare_runs_each_value(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    varied = ("--set", "allocator=paged,contiguous-oracle", "--set", "engine.max_num_seqs=1,8")
    code, out, _ = sim(capsys, "compare", "--trace", trace, *varied, "--json")
    assert code == 0
    assert list(json.loads(out)) == ["paged 1", "paged 8", "contiguous-oracle 1", "contiguous-oracle 8"]
    code, out, _ = sim(capsys, "compare", "--trace", trace, *varied)
    assert code == 0
    side_by_side, _, paired = out.partition("\n\n")
    names = list(json.loads(sim_json(capsys, trace, varied)))
    assert [line[:19].strip() for line in side_by_side.splitlines()[-4:]] == names
    assert [line.partition(" against ")[0] for line in paired.splitlines() if " against paged 1: " in line] == names[1:]
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = sim(capsys, "compare", "--trace", trace, *varied[:2])
    assert "TTFT p99" in out
    code, _, err = sim(capsys, "compare", "--trace", trace)
    assert code == 2
    assert "nothing to compare" in err


def sim_json(capsys: pytest.CaptureFixture[str], trace: Path, varied: tuple[str, ...]) -> str:
    return sim(capsys, "compare", "--trace", trace, *varied, "--json")[1]


def test_compare_writes_page_and_tables(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    varied = "allocator=paged,magic,contiguous-max"
    code, out, err = sim(capsys, "compare", "--trace", trace, "--set", varied, "--out", folder, "--json")
    assert code == 0
    assert "wrote compare.html" in err
    assert {path.name for path in folder.iterdir()} == {"compare.html", "compare.json", "compare.parquet"}
    kept = json.loads((folder / "compare.json").read_text())
    assert {name: {"run_id": one["run_id"], **json.loads(out)[name]} for name, one in kept.items()} == kept
    assert list(json.loads(out)) == list(pd.read_parquet(folder / "compare.parquet")["variant"])
    page = (folder / "compare.html").read_text()
    assert all(f">{name}</th>" in page for name in ("paged", "magic", "contiguous-max"))


def test_a_variant_that_cannot_run_is_told_among_the_others(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    varied = ("--set", "model=llama-3.1-8b,llama-3.1-405b")
    code, out, err = sim(capsys, "compare", "--trace", trace, *varied)
    assert (code, err) == (0, "")
    assert "! llama-3.1-405b did not run: " in out
    assert "Requests/s" in out
    code, out, _ = sim(capsys, "compare", "--trace", trace, *varied, "--json")
    assert code == 0
    assert list(json.loads(out)["llama-3.1-405b"]) == ["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "allocator=magic,tragic"], "magic: unknown name 'magic'"),
        (["--set", "allocator=magic,tragic"], "tragic: unknown name 'tragic'"),
        (["--set", "policy=sjf,chunked", "--gpu", "h9000"], "nothing could be run: unknown"),
        (["--set", "policy=sjf,chunked", "--set", "nonsense"], "section.key=value"),
        (["--set", "engine.max_seqs=1,2"], "max_num_seqs"),
        (["--set", "policy=sjf"], "nothing to compare"),
        (["no-such.toml", "neither.toml"], "no-such.toml"),
        (["same.toml", "same.toml"], "nothing to compare"),
    ],
)
def test_where_nothing_ran_the_exit_code_is_2(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    code, out, err = sim(capsys, "compare", "--trace", trace, *words, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_compare_scenarios_by_name(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "one.toml", tmp_path / "b" / "one.toml", tmp_path / "two.toml"]
    for seats, path in enumerate(paths, 1):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[engine]\nmax_num_seqs = {seats}\n")
    code, out, _ = sim(capsys, "compare", *paths, "--trace", trace, "--json")
    assert code == 0
    assert list(json.loads(out)) == [str(paths[0]), str(paths[1]), "two"]
    code, out, _ = sim(capsys, "compare", paths[2], "--trace", trace, "--set", "policy=sjf,chunked", "--json")
    assert list(json.loads(out)) == ["sjf", "chunked"]
    code, out, _ = sim(capsys, "compare", *paths[1:], "--trace", trace, "--set", "policy=sjf,chunked", "--json")
    assert list(json.loads(out)) == ["one sjf", "one chunked", "two sjf", "two chunked"]


def test_a_full_disk_leaves_no_comparison(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    varied = ("--set", "policy=sjf,chunked")
    code, _, err = sim(capsys, "compare", "--trace", trace, *varied, "--out", "/dev/full/out")
    assert code == 2
    assert err.count("\n") == 1


def test_validate_names_what_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = sim(capsys, "validate", "--schedules", tmp_path)
    assert code == 2
    assert str(tmp_path) in err


@pytest.mark.shared
def test_validate_real_schedules(capsys: pytest.CaptureFixture[str], shared: Path, tmp_path: Path) -> None:
    recorded = shared / "measured" / "vllm_v1_schedules"
    for part in ("scenario.json", "steps.jsonl"):
        (tmp_path / f"t01_chunking.{part}").write_bytes((recorded / f"t01_chunking.{part}").read_bytes())
    code, out, _ = sim(capsys, "validate", "--schedules", tmp_path)
    assert code == 0
    assert "1 identical" in out
    steps = tmp_path / "t01_chunking.steps.jsonl"
    steps.write_text(steps.read_text().replace('"tokens":', '"tokens":1', 1))
    code, out, _ = sim(capsys, "validate", "--schedules", tmp_path, "--json")
    assert code == 1
    assert json.loads(out)["schedules"][0]["first_difference"]["key"] == "tokens"


@pytest.mark.parametrize(
    "kind",
    ["policies", "allocators", "routers", "models", "gpus", "profiles", "traces", "formats", "measures", "settings",
     "traits"],
)  # fmt: skip
def test_list(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, out, _ = sim(capsys, "list", kind, "--json")
    assert code == 0
    assert all(row["name"] for row in json.loads(out))
    assert sim(capsys, "list", kind)[0] == 0


def test_list_shows_nodes_and_networks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(sim(capsys, "list", "gpus", "--json")[1])}
    assert (rows["h100"]["node_gpus"], rows["h100"]["link"], rows["h100"]["network_bytes_per_s"]) == (8, "NVLink", 50e9)
    assert (rows["rtx-4090"]["link"], rows["rtx-4090"]["network_bytes_per_s"]) == ("PCIe", None)
    shown = sim(capsys, "list", "gpus")[1]
    assert "8 over Infinity Fabric" in shown
    assert "network GB/s" in shown


def test_a_group_across_nodes_is_told_or_refused(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    words = ("run", "--trace", trace, "--model", "llama-3.1-70b", "--tp", "16", "--json")
    notes = json.loads(sim(capsys, *words)[1])["inputs"]["notes"]
    assert any(note.startswith("TP 16 spans 2 nodes of 8:") for note in notes)
    notes = json.loads(sim(capsys, *words, "--tp", "8")[1])["inputs"]["notes"]
    assert not any("spans" in note for note in notes)
    assert "no network between nodes is known of GPU 'rtx-4090'" in refused(capsys, *words, "--gpu", "rtx-4090")


def test_list_tells_which_way_a_measure_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(sim(capsys, "list", "measures", "--json")[1])}
    assert rows["ttft_s.p99"] == {"name": "ttft_s.p99", "unit": "s", "better": "less", "about": "TTFT p99"}
    assert (rows["throughput.requests_per_s"]["better"], rows["kv.mean_used"]["better"]) == ("more", "")
    assert "kv.preemptions" in sim(capsys, "list", "measures")[1]


def test_the_installed_command_needs_no_torch_and_waits_for_no_scipy(trace: Path) -> None:
    """scipy takes a third of a second to import, and a run asks for no quantile."""
    blocked = "import sys; sys.modules['torch'] = sys.modules['scipy'] = None; from sim.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "run", "--trace", str(trace), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"]["completed"] == 3
