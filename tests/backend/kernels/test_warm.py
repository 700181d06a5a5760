"""A cache filled without a GPU is hit on the pretended one, from another folder; one of other versions is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

pytest.importorskip("triton")

from backend.kernels import carried
from backend.prove.command import cli
from traces.schema import InputError

ROOT = Path(__file__).resolve().parents[3]


def process(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "kits"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def launched(kernels: Path, what: str) -> Mapping[str, list[str]]:
    """Names of the kernels that the pretended device found in a cache, and of those that it compiled."""
    told: dict[str, list[str]] = json.loads(
        process(ROOT / "tests" / "kits" / "warm_hits.py", kernels, what).stdout.splitlines()[-1]
    )
    return told


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmark's norms launch, carried elsewhere."""
    folder = tmp_path_factory.mktemp("warm")
    done = process("-m", "backend.kernels.warm", "--only", "norms", "--out", folder / "here" / "kernels")
    assert done.stdout.startswith("2 kernels for sm_90, ")
    assert [path.name for path in (folder / "here").iterdir()] == ["kernels"]
    (folder / "here").rename(folder / "there")
    return folder / "there" / "kernels"


def test_a_carried_cache_is_hit_where_it_is_put(made: Path, tmp_path: Path) -> None:
    carried.check(made, 90)
    carried.put(made, tmp_path / "kernels")
    assert launched(tmp_path / "kernels", "norms") == {"hit": ["_rms_norm_kernel"], "compiled": []}


def _otherwise(**facts: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / carried.MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return change


def _short(folder: Path) -> None:
    next(folder.glob("*/*.cubin")).unlink()


def _listless(folder: Path) -> None:
    next(folder.glob(f"*/{carried.GROUP}*")).write_text("[]")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_otherwise(triton="3.4.0"), r"was made by triton 3\.4\.0, and here it is by triton \d"),
        (_otherwise(sm=100), "was made for sm_100, and here it is for sm_90: make it again"),
        (_otherwise(compiler="f00"), r"build for Python .* \(compiler f00\), and here it is by triton"),
        (_otherwise(source="f00"), r"kernels \(source f00\), and here it is of foretoken"),
        (_otherwise(schema="other"), "has not the schema foretoken-kernels/1"),
        (_listless, "lists no files of a kernel"),
        (_short, "has 1 of its 2 kernels: make it again"),
        (lambda folder: (folder / carried.MANIFEST).unlink(), "is no carried cache of kernels, for it has no manifest"),
    ],
)
def test_a_cache_of_other_versions_is_refused(change: Any, sentence: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "kernels")
    change(tmp_path / "kernels")
    with pytest.raises(InputError, match=sentence) as refusal:
        carried.check(tmp_path / "kernels", 90)
    assert "\n" not in str(refusal.value)


def test_a_cpu_has_no_use_for_it(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a CPU runs none"):
        cli(["--out", str(tmp_path / "out"), "--device", "cpu", "--small", "--cache", str(made)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_is_one_sentence(made: Path, tmp_path: Path) -> None:
    wrong = [
        (("--sm", 70), "--sm is 70; known are 80, 90, 100"), (("--only", "flight"), "--only names 'flight'; known are"),
        (("--only", ","), "--only names none; known are"), (("--out", made), "exists already"),
        (("--out", made / "manifest.json" / "k"), "cannot write to"),
    ]  # fmt: skip
    code = "import sys; from backend.kernels.warm import cli\nfrom traces.schema import InputError\n"
    code += "for words in eval(sys.argv[1]):\n try: cli(words, standalone_mode=False)\n"
    code += " except InputError as error: print(error)\n"
    words = [["--out", str(tmp_path / "out"), *map(str, pair)] for pair, _ in wrong]
    lines = process("-c", code, repr(words)).stdout.splitlines()
    assert len(lines) == len(wrong)
    assert all(sentence in line for line, (_, sentence) in zip(lines, wrong, strict=True)), lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rehearsal
def test_a_whole_session_compiles_nothing(tmp_path: Path) -> None:
    """On the pretended device: refused for another card before anything is written; then each live run that `smoke`
    has, and its operations."""
    kernels, there, out = tmp_path / "kernels", tmp_path / "there", tmp_path / "out"
    process("-m", "backend.kernels.warm", "--out", kernels)
    assert sum(path.stat().st_size for path in kernels.rglob("*") if path.is_file()) < 64 << 20
    carried.put(kernels, there)
    for what in ("graphs", "eager", "fp8", "int8", "swap", "prefix", "window", "sampled", "n-grams"):
        assert launched(there, what)["compiled"] == [], what
    pretended = ROOT / "tests" / "kits" / "pretend_gpu.py"
    prove = (pretended, "backend.prove", "--stages", "fit", "--out", out, "--cache", tmp_path / "kernels")
    process(*prove)
    shutil.rmtree(out)
    _otherwise(sm=100)(kernels)
    assert "was made for sm_100, and here it is for sm_90" in process(*prove, status=2).stderr
    assert not out.exists()
