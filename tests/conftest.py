"""What all tests share: where the real traces and measurements are, if they are here at all; on how many cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.study.workers import cores

MOST_PROCESSES = 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process on each core for the whole suite; a few files, and everything that is timed, run in this one."""
    if config.option.file_or_dir or config.option.benchmark_only:
        return 0
    return min(cores(), MOST_PROCESSES)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces and measurements beside the checkout; skips the test where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real traces and measurements here: {folder} is absent")
    return folder
