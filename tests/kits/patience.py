"""How long tests wait for another process: until it is surely stuck. No test may fail because a machine is busy."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 600.0


def wait_for(happened: Callable[[], object]) -> None:
    """Look again and again until it has happened."""
    end_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.02)
