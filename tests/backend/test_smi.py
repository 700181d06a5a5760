"""What nvidia-smi answers, from a program in its place: as on a card, and where it fails, hangs or is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import smi as answers
from backend.smi import smi


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for nvidia-smi, once it is written and may be executed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def written(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_lines_are_those_of_the_first_gpu(program: Path) -> None:
    assert smi("--query-gpu=name") == [], "where there is none"
    written(program, 'echo "$1, $2, $3"; echo; echo "1980, 700.1"')
    assert smi("--query-gpu=name") == ["--query-gpu=name, --format=csv,noheader,nounits, --id=0", "1980, 700.1"]


def test_one_that_fails_hangs_or_cannot_run_answers_nothing(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(program, "echo 1980; exit 6")
    assert smi() == []
    monkeypatch.setattr(answers, "ANSWER_S", 0.2)
    written(program, "exec /bin/sleep 20")
    assert smi() == []
    program.write_bytes(b"\x7fELF no program")
    assert smi() == []
