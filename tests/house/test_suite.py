"""The suite itself: no test fails by a clock, and the documented commands run where plugins of pytest are absent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import MOST_PROCESSES, pytest_cmdline_main, pytest_collection_modifyitems
from hypothesis import HealthCheck, settings
from patience import PATIENCE_S

from sim.study.workers.cores import cores

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
HOUSE = {"house", "fuzz_found", "benchmarks"}
"""Tests of no folder of the product: of the house itself, of runs that have once broken a law, of speed."""

FILES = [path for path in sorted(TESTS.rglob("*.py")) if "benchmarks" not in path.parts]
PROFILE = {"deadline", "suppress_health_check", "database", "derandomize", "print_blob"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(name, without what it is an attribute of, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def test_one_profile_says_how_hypothesis_searches() -> None:
    default = settings.default
    assert default.deadline is None
    assert set(default.suppress_health_check) == set(HealthCheck)
    assert default.derandomize == ("LAW_EXAMPLES" not in os.environ)
    for path in FILES:
        for name, call in calls(path):
            if name == "settings" and path.name != "conftest.py":
                told = PROFILE.intersection(keyword.arg or "" for keyword in call.keywords)
                assert not told, f"{path.name}:{call.lineno} says {told}, which the profile in conftest.py does"


def test_no_test_gives_up_on_a_busy_machine() -> None:
    """Whoever waits for a process waits with patience; seconds of the wall prove nothing."""
    for path in FILES:
        for name, call in calls(path):
            where = f"{path.name}:{call.lineno}"
            assert name != "perf_counter", f"{where} measures the wall's seconds"
            waits = [word.value for word in call.keywords if word.arg == "timeout"]
            waits += call.args[:1] if name == "wait" else []
            for limit in waits:
                assert not isinstance(limit, ast.Constant), f"{where} does not wait for PATIENCE_S"


def mirrors(folder: Path) -> bool:
    """Has the product this folder, or `sim/` a folder or a file of this name?"""
    there = (ROOT / folder / "__init__.py", ROOT / "sim" / folder / "__init__.py", ROOT / "sim" / f"{folder}.py")
    return folder != Path() and any(path.is_file() for path in there)


def test_a_test_stands_in_the_folder_of_what_it_tests() -> None:
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {str(folder) for folder in folders if not mirrors(folder)} == HOUSE


def test_the_mirror_sees_what_it_has_not() -> None:
    assert mirrors(Path("engine"))
    assert mirrors(Path("backend/kernels"))
    assert mirrors(Path("scenario"))
    assert not any(mirrors(Path(name)) for name in (".", "kits", "kernels", "backend/engine"))


def documented(start: str, file: str) -> list[str]:
    """The words behind `python` of a documented command."""
    (line,) = [line for line in (ROOT / "docs" / file).read_text().splitlines() if start in line]
    return line.partition("|")[0].partition("python ")[2].split()[:-1]


def test_the_command_for_a_gpu_needs_no_plugin_of_pytest() -> None:
    """As documented, on one file of those that it names; without xdist, benchmark, randomly and whatever else."""
    words = documented("pytest -m gpu", "bench.md")
    assert words[:2] == ["-m", "pytest"]
    words = [word for word in words if word != "tests"]
    done = subprocess.run(
        [sys.executable, *words, "tests/backend/kernels/test_kernel_rows.py", "tests/benchmarks/test_sweep_speed.py"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout


def test_a_rehearsal_runs_where_it_is_asked_for_and_elsewhere_says_that_it_does_not() -> None:
    class Item:
        def __init__(self, *marks: str) -> None:
            self.marks, self.added = marks, list[pytest.MarkDecorator]()

        def get_closest_marker(self, name: str) -> bool:
            return name in self.marks

        def add_marker(self, mark: pytest.MarkDecorator) -> None:
            self.added.append(mark)

    for markexpr, skipped in (("", 1), ("gpu", 1), ("rehearsal", 0)):
        items = [Item("rehearsal"), Item()]
        config = SimpleNamespace(option=SimpleNamespace(markexpr=markexpr, benchmark_skip=True))
        pytest_collection_modifyitems(config, items)  # type: ignore[arg-type]
        assert [len(item.added) for item in items] == [skipped, 0]


@pytest.mark.parametrize(
    ("given", "processes", "dist", "benchmarks"),
    [
        ({}, min(cores(), MOST_PROCESSES), "loadfile", False),
        ({"numprocesses": 2, "file_or_dir": ["tests/scenario/test_load.py"]}, 2, "loadfile", False),
        ({"numprocesses": 2, "dist": "worksteal"}, 2, "worksteal", False),
        ({"numprocesses": 0}, 0, "loadfile", False),
        ({"file_or_dir": ["tests/scenario/test_load.py"]}, 0, "loadfile", False),
        ({"markexpr": "gpu"}, 0, "loadfile", False),
        ({"usepdb": True}, 0, "loadfile", False),
        ({"benchmark_only": True}, 0, "loadfile", True),
    ],
)
def test_the_whole_suite_runs_on_every_core_and_less_in_one_process(
    given: dict[str, Any], processes: int, dist: str, benchmarks: bool
) -> None:
    """With no process of its own xdist takes `dist` for "no"."""
    told = {"numprocesses": None, "dist": "no", "tx": [], "file_or_dir": [], "markexpr": "", "usepdb": False}
    option = SimpleNamespace(**{**told, "benchmark_only": False, "benchmark_skip": False, **given})
    pytest_cmdline_main(SimpleNamespace(option=option))  # type: ignore[arg-type]
    assert (option.numprocesses, option.dist, option.benchmark_skip) == (processes, dist, not benchmarks)


def test_options_of_plugins_that_are_absent_are_not_made_up() -> None:
    option = SimpleNamespace(file_or_dir=[], markexpr="", usepdb=False)
    pytest_cmdline_main(SimpleNamespace(option=option))  # type: ignore[arg-type]
    assert vars(option).keys() == {"file_or_dir", "markexpr", "usepdb"}


def test_this_run_was_told_so(request: pytest.FixtureRequest) -> None:
    """The options above are those that xdist and pytest-benchmark read, and they read them."""
    option = request.config.option
    if hasattr(option, "benchmark_skip") and not option.benchmark_only:
        assert option.benchmark_skip
    if hasattr(option, "dist") and not hasattr(request.config, "workerinput"):
        assert option.dist == ("loadfile" if option.numprocesses else "no")


def test_a_process_of_xdist_starts_none_of_its_own() -> None:
    """Else each of them would start as many again, and so on."""
    told = {"numprocesses": None, "dist": "no", "tx": [], "file_or_dir": [], "markexpr": "", "usepdb": False}
    option = SimpleNamespace(**told, benchmark_only=False, benchmark_skip=False)
    pytest_cmdline_main(SimpleNamespace(option=option, workerinput={}))  # type: ignore[arg-type]
    assert option.numprocesses is None
    assert option.benchmark_skip, "it would time things"
