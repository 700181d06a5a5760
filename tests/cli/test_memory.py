"""`sim memory`: the card as text and as JSON, and what cannot be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import refused, sim

from sim.catalog import names

ROOT = Path(__file__).parents[2]
ASKED = ("memory", "--model", "llama-2-13b", "--tokens", "2048", "--batch", "32")


def test_the_card_reads_at_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for more in ((), ("--model", "deepseek-v3", "--batch", "100"), ("--model", "gemma-3-27b", "--kv-dtype", "int4")):
        code, out, _ = sim(capsys, *ASKED, *more)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out
        for name in names("gpus"):
            assert f"\n{name} " in out
    code, out, _ = sim(capsys, *ASKED)
    assert "2 x 40 layers x 40 KV heads x 128 x 2 B = 819,200 B" in out
    assert "50.0 GiB" in out


def test_one_sequence_has_one_column_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    out = sim(capsys, "memory", "--model", "deepseek-v3", "--gpu", "h100")[1]
    assert "16 (2x8)" in out
    assert "batch" in out
    assert " one " not in out.partition("TP:")[0]


def test_an_engine_brings_its_defaults_on_each_gpu_and_its_accounting(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("memory", "--model", "qwen3-32b", "--tokens", "8000", "--gpu", "h100,l40s")
    out = sim(capsys, *asked, "--engine", "vllm-0.33")[1]
    assert "By what vllm-0.33 does at its start, with vllm-0.33's defaults on each GPU" in " ".join(out.split())
    assert out == sim(capsys, *asked)[1]  # the default of a run is that of the card
    plain_out = sim(capsys, *asked, "--engine", "foretoken")[1]
    assert "Room for KV, with foretoken's defaults on each GPU: 0.9 of the memory" in " ".join(plain_out.split())
    told, plain = (
        {row["gpu"]: row["batch"] for row in json.loads(sim(capsys, *asked, *more, "--json")[1])["gpus"]}
        for more in (("--engine", "vllm-0.33"), ("--engine", "foretoken"))
    )
    assert told["h100"]["usable_bytes"] > plain["h100"]["usable_bytes"]  # 0.92 of the memory, not 0.9
    assert told["h100"]["activation_bytes"] > told["l40s"]["activation_bytes"]  # 1,024 sequences, and 256
    for row in (*told.values(), *plain.values()):
        assert 0 < row["kv_low_bytes"] < row["kv_bytes"] < row["kv_high_bytes"]
        assert 0 < row["sequences_low"] <= row["sequences"]
    assert "unknown engine 'vlm'" in refused(capsys, *asked, "--engine", "vlm")


def test_a_window_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    out = sim(capsys, "memory", "--model", "gemma-3-27b", "--tokens", "16384", "--gpu", "h100,l40s,H100")[1]
    assert "(10 x 16,384 + 52 layers x 1,024 tokens) x 8,192 B" in out
    assert "What no window attends is given back" in " ".join(out.split())
    assert out.count("\nh100 ") == 1


def test_json_has_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(sim(capsys, *ASKED, "--kv-dtype", "fp8", "--weights", "int8", "--tp", "2", "--json")[1])
    assert (found["kv_bytes_per_token"], found["kv_bytes"]) == (409_600, 409_600 * 2048 * 32)
    assert (found["weights"], found["kv_dtype"], found["dtype"]) == ("int8", "fp8", "fp16")
    rows = {row["gpu"]: row for row in found["gpus"]}
    assert sorted(rows) == names("gpus")
    assert rows["h100"]["batch"]["tp"] == 2
    assert rows["h100"]["why"] == ""


def test_a_model_and_a_gpu_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    catalog = ROOT / "sim" / "catalog"
    sheet = (catalog / "gpus" / "h100.toml").read_text().replace('name = "h100"', 'name = "mine"')
    (tmp_path / "mine.toml").write_text(sheet.replace("node_gpus = 8", "node_gpus = 32"))
    (tmp_path / "own.toml").write_text((catalog / "models" / "deepseek-v3.toml").read_text())
    words = ("memory", "--model", tmp_path / "own.toml", "--gpu", tmp_path / "mine.toml", "--json")
    placed = json.loads(sim(capsys, *words)[1])["gpus"][0]["least"]
    assert (placed["tp"], placed["nodes"]) == (16, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "llama-9"), "unknown model 'llama-9'; known are"),
        (("--gpu", "h1000"), "unknown GPU 'h1000'; known are"),
        (("--gpu", "h100,"), "--gpu is 'h100,'; give names with commas between them"),
        (("--tokens", "5000"), "tokens is 5000; a sequence of llama-2-13b has at least 1 and at most 4096 tokens"),
        (("--batch", "0"), "batch is 0; it must be at least 1 and at most 1,000,000"),
        (("--tp", "3"), "cannot be split over tp = 3 GPUs; possible are 1, 2, 4, 8"),
        (("--dtype", "int5"), "dtype = 'int5' is none of fp32, fp16, bf16"),
        (("--kv-dtype", "int5"), "kv_dtype = 'int5' is none of fp32, fp16, bf16, fp8, int8, int4"),
        (("--weights", "int5"), "weights = 'int5' is none of auto"),
    ],
)
def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    assert message in refused(capsys, *ASKED, *words)


def test_it_needs_neither_torch_nor_the_simulator(tmp_path: Path) -> None:
    """A card is wanted at once: nothing is loaded that only runs need."""
    code = (
        "import sys; sys.argv[1:] = ['memory', '--model', 'llama-2-13b']\n"
        "from sim.cli.main import main; main()\n"
        "print(sorted({'torch', 'simpy', 'scipy', 'sim.serving', 'pyarrow.dataset'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_memory_understands_every_kind_of_parallelism(capsys: pytest.CaptureFixture[str]) -> None:
    def batch(*words: str) -> dict[str, int]:
        code, out, _ = sim(capsys, "memory", "--json", *words)
        assert code == 0
        return json.loads(out)["gpus"][0]["batch"]  # type: ignore[no-any-return]

    wide = ("--model", "deepseek-v3", "--gpu", "h200", "--dp", "16", "--ep")
    placed = batch(*wide)
    assert [placed[key] for key in ("tp", "pp", "dp", "ep", "nodes")] == [1, 1, 16, 16, 2]
    assert placed["sequences"] % 16 == 0
    staged, plain = (batch("--model", "llama-3.1-70b", "--gpu", "h100", *more) for more in (["--pp", "4"], []))
    assert (staged["tp"], staged["pp"], plain["tp"], plain["pp"]) == (1, 4, 2, 1)
    assert "has no experts to place" in refused(capsys, "memory", "--model", "llama-3.1-8b", "--ep")
    _, out, _ = sim(capsys, "memory", *wide)
    assert "1 (2x8)" in out
    assert "16 ranks" in out
