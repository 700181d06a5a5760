"""`sim trace import` as a person and a script meet it: the table, the question, the file, the sentence."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

import traces
from sim.cli.main import main

LOG = "".join(
    json.dumps({"ts": 1_731_000_000_000 + 500 * at, "usage": {"prompt_tokens": 10 + at, "completion_tokens": 5}}) + "\n"
    for at in range(3)
)
MAPPING = "arrival=ts:ms,prompt=usage.prompt_tokens,output=usage.completion_tokens"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    Path("log.jsonl").write_text(LOG)
    return Path("log.jsonl")


def sim(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and stderr of `sim WORDS`, which prints nothing else."""
    code = 0
    before = sys.argv
    sys.argv = ["sim", *map(str, words)]
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


class Person(io.StringIO):
    """What somebody types at a terminal."""

    def isatty(self) -> bool:
        return True


def lengths(path: str) -> list[tuple[float, int, int]]:
    table = traces.read(path).requests
    return list(zip(table["arrival_s"], table["prompt_tokens"], table["output_tokens"], strict=True))


READ = [(0.0, 10, 5), (0.5, 11, 5), (1.0, 12, 5)]


def test_without_a_person_the_command_is_told_and_works(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    code, err = sim(capsys, "trace", "import", log, "-o", "out.csv")
    assert (code, Path("out.csv").exists()) == (2, False)
    assert "1731000000000" in err
    assert "its name" in err
    command = err.split("`")[1]
    assert command == f"sim trace import log.jsonl --map {MAPPING} -o out.csv --yes"
    code, err = sim(capsys, *shlex.split(command)[1:])
    assert (code, lengths("out.csv")) == (0, READ)
    assert "wrote 3 requests to out.csv" in err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_a_person_is_asked(
    capsys: pytest.CaptureFixture[str], log: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr(sys, "stdin", Person(answer))
    found, err = sim(capsys, "trace", "import", log, "-o", "out.parquet")
    assert (found, Path("out.parquet").exists()) == (code, code == 0)
    assert "Import it like this?" in err
    assert ("nothing is written" in err) == (code == 2)


def test_what_is_given_wins_over_guesses(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    given = "arrival=,output=usage.prompt_tokens,prompt=usage.completion_tokens"
    code, err = sim(capsys, "trace", "import", log, "--map", given, "-o", "out.jsonl", "--yes")
    assert code == 0
    assert "not used: ts" in err
    assert not traces.read("out.jsonl").has_arrivals
    assert traces.read("out.jsonl").requests["output_tokens"].tolist() == [10, 11, 12]


def test_rows_that_lie_deeper(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    """As of a benchmark's result; the sentence says where lists are, and the command keeps the option."""
    requests = [{"start_time": 10.5 + at, "prompt_tokens": 10 + at, "output_tokens": 5} for at in range(3)]
    Path("result.json").write_text(json.dumps({"tool": "x", "runs": [{"done": {"requests": requests}}]}, indent=1))
    code, err = sim(capsys, "trace", "import", "result.json", "-o", "out.csv", "--yes")
    assert code == 2
    assert "(or --rows PATH, of the lists of objects at done.requests)" in " ".join(err.split())
    given = "prompt=done.requests.0.prompt_tokens"
    code, err = sim(capsys, "trace", "import", "result.json", "--map", given, "-o", "out.csv", "--yes")
    assert code == 2
    assert "of the first of several objects in each row" in err
    code, err = sim(capsys, "trace", "import", "result.json", "--rows", "done.requests", "-o", "out.csv")
    assert (code, Path("out.csv").exists()) == (2, False)
    assert sim(capsys, *shlex.split(err.split("`")[1])[1:])[0] == 0
    assert lengths("out.csv") == [(0.0, 10, 5), (1.0, 11, 5), (2.0, 12, 5)]
    code, err = sim(capsys, "trace", "import", "result.json", "--rows", "done", "-o", "out.csv")
    assert (code, "has no list of objects at done in any record" in err) == (2, True)


def test_yes_takes_no_guessed_unit(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    Path("a.csv").write_text("ts,alpha,beta\n0,1,1\n3000,1,1\n")
    given = "prompt=alpha,output=beta"
    code, err = sim(capsys, "trace", "import", "a.csv", "--map", given, "-o", "out.csv", "--yes")
    assert (code, Path("out.csv").exists()) == (2, False)
    assert "--yes does not take the unit of ts, which is a guess" in err
    assert sim(capsys, *shlex.split(err.split("`")[1])[1:])[0] == 0
    assert lengths("out.csv") == [(0.0, 1, 1), (3.0, 1, 1)]


def test_a_known_format_needs_no_mapping(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    Path("a.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n")
    code, err = sim(capsys, "trace", "import", "a.csv", "-o", "out.csv")
    assert (code, lengths("out.csv")) == (0, [(0.0, 374, 44)])
    assert "a.csv is in the format azure and needs no mapping" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--map", "promt=ts", "-o", "out.csv"), "there is no field 'promt'; known are arrival, prompt, output"),
        (("-o", "out.txt", "--yes"), "out.txt: the name must end in .csv, .jsonl, .parquet"),
        (("--map", "prompt=,output=", "-o", "out.csv", "--yes"), "no column was taken for prompt and output"),
        (
            ("--map", "arrival=usage", "-o", "out.csv", "--yes"),
            "has no column 'usage' in the first 3 rows; there are ts,",
        ),
    ],
)
def test_mistakes_leave_nothing_behind(
    capsys: pytest.CaptureFixture[str], log: Path, words: tuple[str, ...], sentence: str
) -> None:
    code, err = sim(capsys, "trace", "import", log, *words)
    assert code == 2
    assert sentence in err
    assert sorted(path.name for path in Path().iterdir()) == ["log.jsonl"]


def test_a_file_of_one_column_gets_no_command(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    Path("pointer.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    code, err = sim(capsys, "run", "--trace", "pointer.jsonl")
    assert code == 2
    assert "import" not in err
