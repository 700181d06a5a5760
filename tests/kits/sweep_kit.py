"""What workers of tests do: a module of its own, so that a worker imports little."""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path

from patience import PATIENCE_S


def square(item: int) -> int:
    return item * item


def square_or_die(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 4:
        os._exit(7)
    return item * item


def raise_at_two(item: int) -> int:
    if item == 2:
        raise ValueError("two is too much")
    return item


def who(item: int) -> int:
    return os.getpid()


def leave_pid_and_sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(PATIENCE_S)


def threads_and_settings(item: int) -> tuple[int, list[str]]:
    """How many threads this process has once it has numpy, and what the environment says of threads."""
    importlib.import_module("numpy")
    asked = [f"{name}={value}" for name, value in os.environ.items() if name.endswith("NUM_THREADS")]
    return len(os.listdir("/proc/self/task")), asked
