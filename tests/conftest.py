"""What all tests share: where the real traces and measurements are, if they are here at all."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces and measurements beside the checkout; skips the test where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real traces and measurements here: {folder} is absent")
    return folder
