"""No traceback for a user: bugs, memory, Ctrl-C and closed pipes are sentences; code that a file names is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim import api, load, scenario
from sim.cli import guard
from sim.cli.main import cli
from sim.study.sweep.grid import read_points
from sim.study.sweep.question import Question
from sim.validate import store
from traces import formats
from traces.schema import InputError

ROOT = Path(__file__).resolve().parents[2]
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,50,5\n"


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


def ended(capsys: pytest.CaptureFixture[str], command: Callable[[], object]) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as caught:
        guard.guarded(command)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("\n") == 1
    return caught.value.code, text


def test_a_bug_is_one_sentence_with_its_details_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ended(capsys, lambda: {}["what\nis missing"])  # type: ignore[index]
    assert code == guard.BUG == 70
    assert "this is a bug in Foretoken" in text
    path = Path(text.rpartition("details: ")[2].strip().rstrip(")"))
    told = path.read_text(encoding="utf-8")
    path.unlink()
    assert "Traceback" in told
    assert "KeyError" in told


def test_the_traceback_is_shown_to_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(guard.SHOW, "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(SystemExit):
        guard.guarded(raising(RecursionError("too deep")))
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "FORETOKEN_TRACEBACK=1 shows the details" in text  # there is no folder for a file


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("it is wrong"), 2, "error: it is wrong"),
        (MemoryError(), 2, "memory ran out"),
        (OSError(28, "No space left on device", "here.csv"), 2, "the system refused here.csv: No space left"),
        (KeyboardInterrupt(), 130, "stopped"),
        (InputError("letters \ud800 that no terminal has " + "x" * 10_000), 2, "\\ud800"),
    ],
)
def test_what_is_no_bug_is_told_as_what_it_is(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    found, told = ended(capsys, raising(error))
    assert found == code
    assert text in told
    assert "bug" not in told
    assert len(told) < 5000


def test_an_exit_code_of_its_own_passes() -> None:
    with pytest.raises(SystemExit) as caught:
        guard.guarded(raising(SystemExit(1)))
    assert caught.value.code == 1
    guard.guarded(lambda: None)


def run(folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, **more,
    )  # fmt: skip


def test_modules_are_commands_and_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    done = run(tmp_path, "sim.cli.main", "list", "policies")
    assert done.returncode == 0
    assert "chunked" in done.stdout
    command = f"{sys.executable} -W ignore -m sim.cli list models --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() in ("141", "0")  # 0 where it had written all before the reader went


# ---- code that a file names -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that leaves a mark when it is imported, where the user stands."""
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\n"
        "from sim.policies.chunked import Chunked\n"
        "Path('imported').write_text('')\n"
        "class Mine(Chunked): pass\n"
        "def failing(step): return step.nothing\n"
        "def two(step, more): pass\n"
        "def named(*, step=None): pass\n"
        "class Silent: pass\n"
        "def rows(source): return None\n"
        "thing = 3\n"
    )
    (tmp_path / "a.csv").write_text(TRACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path


FILES = {
    "name": '[policy]\nname = "stranger:Mine"\n',
    "short": 'policy = "stranger:Mine"\n',
    "quoted": '"policy.name" = "stranger:Mine"\n',
    "allocator": 'allocator = "stranger:Mine"\n',
    "router": '[router]\nname = "stranger:Mine"\n',
    "base of drafts": '[policy]\nname = "speculative"\nbase = "stranger:Mine"\n',
    "format": '[workload]\nformat = "stranger:rows"\n',
    "axis": 'policy = ["sjf", "stranger:Mine"]\n',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_no_file_imports_anything_unasked(folder: Path, text: str) -> None:
    (folder / "s.toml").write_text(text)
    calls: list[Callable[[], object]] = [
        lambda: api.run("s.toml", trace="a.csv"),
        lambda: api.sweep("s.toml", trace="a.csv", rate=[1.0, 2.0], workers=1),
        lambda: api.plan("s.toml", trace="a.csv", slo="ttft=1", workers=1),
        lambda: Question.of("s.toml", {}),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"stranger:\w+', code that would be run") as caught:
            call()
        assert "--allow-code" in str(caught.value)
        assert "s.toml: " in str(caught.value)
    commands = {"run": [], "sweep": ["--rate", "1,2"], "plan": [], "validate": [], "compare": ["--set", "seed=1,2"]}
    for command, more in commands.items():
        with pytest.raises(InputError, match="--allow-code"):
            cli.main([command, "s.toml", "--trace", "a.csv", *more], standalone_mode=False)
    assert not (folder / "imported").exists()


def test_points_and_kept_runs_import_nothing_either(folder: Path) -> None:
    (folder / "p.csv").write_text("policy\nsjf\nstranger:Mine\n")
    (folder / "p.toml").write_text("[[point]]\npolicy = 'stranger:Mine'\n")
    for name in ("p.csv", "p.toml"):
        with pytest.raises(InputError, match="code that would be run"):
            read_points(name)
        assert read_points(name, allow_code=True)
    plan = scenario.build({}, {"policy": "stranger:Mine"})
    (folder / "scenario.toml").write_text(scenario.dump(plan))
    (folder / "about.json").write_text(
        '{"schema": 2, "died": [], "same_step": [], "inputs": {}, "trace": {"name": ""}}'
    )
    with pytest.raises(InputError, match="code that would be run"):
        store.read(folder)
    assert not (folder / "imported").exists()


def test_the_users_word_lets_it_in(folder: Path) -> None:
    (folder / "s.toml").write_text(FILES["short"] + '[workload]\ntrace = "a.csv"\n')
    assert api.run("s.toml", policy="sjf").scenario.policy.name == "sjf"  # what is overruled is not used
    assert not (folder / "imported").exists()
    kept = api.run("s.toml", allow_code=True).scenario
    assert (folder / "imported").exists()
    assert api.run("s.toml", policy="stranger:Mine").scenario == kept
    assert api.run(kept).scenario == kept  # an object is the caller's own
    (folder / "again.toml").write_text(scenario.dump(kept))
    with pytest.raises(InputError, match="--allow-code"):
        api.run("again.toml")


def test_the_command_line_is_a_word(folder: Path) -> None:
    (folder / "s.toml").write_text(FILES["short"])
    for words in (["--allow-code"], ["--policy", "stranger:Mine"], ["--set", "policy=stranger:Mine"]):
        cli.main(["run", "s.toml", "--trace", "a.csv", "--json", *words], standalone_mode=False)


def test_what_fails_in_the_users_code_is_said_to_be_theirs(folder: Path) -> None:
    done = run(folder, "sim.cli.main", "run", "--trace", "a.csv", "--policy", "stranger:failing")
    assert done.returncode == 2
    assert "stranger.py line 5: AttributeError" in done.stderr
    assert "bug in Foretoken" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "name", "why"),
    [
        ("sim.policies", "os:system", "a module of Python itself"),
        ("sim.policies", "subprocess:Popen", "a module of Python itself"),
        ("sim.policies", "stranger:two", "cannot be called with step"),
        ("sim.policies", "stranger:named", "cannot be called with step"),
        ("sim.policies", "stranger:Silent", "objects cannot be called"),
        ("sim.policies", "stranger:thing", "is a int and cannot be called"),
        ("sim.policies", "numpy:array", "no class and no Python function"),
        ("sim.policies", "numpy:ndarray", "objects cannot be called"),
        ("sim.policies", "stran-ger:Mine", "expected package.module:object"),
        ("sim.allocators", "stranger:Silent", "has no method refusal"),
        ("sim.allocators", "numpy:array", "no class and no Python function"),
        ("sim.routers", "stranger:failing", "cannot be called with request, replicas"),
        ("sim.routers", "os.path:join", "a module of Python itself"),
    ],
)
def test_an_object_is_of_its_kind_before_it_is_called(folder: Path, package: str, name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        load.load(package, name)


def test_a_trace_format_is_a_function_of_a_source(folder: Path) -> None:
    assert formats.load("stranger:rows").name == "stranger:rows"
    for name, why in (("stranger:two", "not a function of a source"), ("os:system", "a module of Python itself"),
                      ("stranger:Silent", "has no function"), ("stranger:nothing", "cannot be imported")):  # fmt: skip
        with pytest.raises(InputError, match=why):
            formats.load(name)


def test_a_worker_imports_nothing_from_where_the_user_stands(folder: Path) -> None:
    """`python -c` looks there first, and a stranger's numpy.py would run in every worker."""
    (folder / "numpy.py").write_text("from pathlib import Path\nPath('imported').write_text('')\n")
    (folder / "s.toml").write_text('[workload]\ntrace = "a.csv"\n')
    done = run(
        folder, "sim.cli.main", "sweep", "s.toml", "--policy", "sjf,chunked", "--workers", "2", "--json", "--quiet"
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "imported").exists()
