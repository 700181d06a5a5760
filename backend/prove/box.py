"""A process in a time box: it is asked to stop shortly before its end, and killed with all that it started at its end.

It knows no stage.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.1
MOST_GRACE_S = 6.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit status (negative: the signal), its seconds, and whether its box had to end it."""

    status: int
    seconds: float
    cut: bool


def run_boxed(
    command: Sequence[str],
    box_s: float,
    outputs: tuple[Path, Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    tick: Callable[[], None],
) -> Ended:
    """Run a command for at most `box_s` seconds; its standard output and errors are added to the two files.

    `tick` is called several times a second while it runs. The process has a group of its own: what it leaves behind is
    killed with it, and it dies where this process is killed.
    """
    started = time.monotonic()
    grace_s = min(MOST_GRACE_S, 0.15 * box_s)
    asked = False
    with outputs[0].open("ab") as out, outputs[1].open("ab") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=dict(env), process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
        )  # fmt: skip
        try:
            while process.poll() is None:
                spent_s = time.monotonic() - started
                if spent_s >= box_s:
                    break
                if not asked and spent_s >= box_s - grace_s:
                    asked = True
                    _signal(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
                tick()
            cut = asked or process.poll() is None
        finally:
            _signal(process.pid, signal.SIGKILL)
            status = process.wait()
    return Ended(status, time.monotonic() - started, cut)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def die_with_parent() -> None:
    """Called in a child: the kernel kills it when its parent ends, in whatever way. Linux only; else nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
