"""What all tests share: hypothesis' profile, on how many cores they run, where the real traces and measurements are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sim.engine.build import PURE, build
from sim.study.workers.cores import cores

MOST_PROCESSES = 8
LAW_EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "0"))

# The same examples in each run, and no clock: how long one takes says more of the machine than of the code. With
# LAW_EXAMPLES the search is random, and a law that fails prints how to repeat it.
settings.register_profile(
    "laws",
    max_examples=LAW_EXAMPLES or 100,
    derandomize=not LAW_EXAMPLES,
    print_blob=bool(LAW_EXAMPLES),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("laws")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Say here what pyproject.toml could say only with options of plugins: the suite runs where these are absent too.

    The whole suite runs in a process on each core, a file in one piece; a few files, what needs the GPU, and
    everything that is timed run in this process. Benchmarks run where they are asked for.
    """
    option = config.option
    timed = getattr(option, "benchmark_only", False)
    if hasattr(option, "benchmark_skip"):
        option.benchmark_skip = not timed
    if hasattr(config, "workerinput"):  # this is one of those processes, and starts none of its own
        return
    if hasattr(option, "numprocesses"):
        if option.numprocesses is None and not option.tx:
            alone = timed or option.file_or_dir or option.usepdb or option.markexpr == "gpu"
            option.numprocesses = 0 if alone else min(cores(), MOST_PROCESSES)
        if option.dist == "no":
            option.dist = "loadfile"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip rehearsals that nobody asked for, and benchmarks where pytest-benchmark is absent."""
    if "rehearsal" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("rehearsal"):
                item.add_marker(pytest.mark.skip(reason="minutes; pytest -m rehearsal runs it"))
    if not hasattr(config.option, "benchmark_skip"):
        for item in items:
            if "benchmark" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="needs pytest-benchmark"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces and measurements beside the checkout; skips the test where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real traces and measurements here: {folder} is absent")
    return folder


@pytest.fixture
def pure() -> None:
    """Of a test that puts methods of its own into classes of the loop."""
    if build() != PURE:
        pytest.skip("compiled classes take no methods at run time")
