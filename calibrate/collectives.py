"""Collectives of a group of GPUs, or of processes on a CPU, measured by processes of their own (`calibrate.ranks`).

Whatever these do (a fault of the network library, a wait without an end), what they had told is in the journal, and the
calibration goes on. It needs no torch.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import calibrate
from calibrate.header import Header
from calibrate.journal import Journal, MessageTime, Trouble
from calibrate.measure import ClockWatch, Progress
from calibrate.messages import Message, Orders, messages, most_bytes
from traces.schema import InputError

ROOT = Path(calibrate.__file__).parents[1]
SUBJECT = "collectives"
"""What stands for a model's name in what is told of them."""
SHARE, START_S, MOST_SHARE = 0.15, 10.0, 0.5
"""What of the budget is kept for them: this share and so many seconds for each group to start, at most that share."""
MOST_PROCESSES = 8
"""On a CPU, where each takes the memory of torch."""
END_S = 10.0
"""So long a process may take to end that has written its last line."""
LATE_S = 1.0
NONE = "none"


def groups(asked: str | None, gpus: int, *, on_cpu: bool) -> tuple[int, ...]:
    """Numbers of GPUs whose collectives are measured, the largest first: those asked for ("4,2", "none"), else all that
    are here (0: not known, of a GPU that need not be), half of them and so on.

    Raises:
        InputError: none is such a number, or more are asked for than are here.
    """
    if asked == NONE:
        return ()
    if asked is None:
        here = 0 if on_cpu else gpus
        return tuple(count for shift in range(here.bit_length()) if (count := here >> shift) > 1)
    parts = [part.strip() for part in asked.split(",")]
    if not all(part.isdecimal() and int(part) > 1 for part in parts):
        raise InputError(f"--collectives {asked!r} must be numbers of GPUs from 2 on, separated by commas, or {NONE}")
    counts = sorted({int(part) for part in parts}, reverse=True)
    most = MOST_PROCESSES if on_cpu else gpus
    if most and counts[0] > most:
        there = f"on a CPU at most {most} processes are started" if on_cpu else f"{most} {_gpus(most)} here"
        raise InputError(f"--collectives {asked}: a group of {counts[0]} is asked for, and {there}")
    return tuple(counts)


def reserved_s(budget_s: float, groups: Sequence[int]) -> float:
    """What of the budget is kept for so many groups."""
    return min(SHARE * budget_s + START_S * len(groups), MOST_SHARE * budget_s) if groups else 0.0


def nothing_to_measure(asked: str | None, gpus: int, *, on_cpu: bool) -> str:
    """What a user should know who asked for nothing; "" where collectives are measured, or were not wanted."""
    if asked is not None or on_cpu or gpus != 1:
        return ""
    return "one GPU is here: there are no collectives to measure"


def _gpus(count: int) -> str:
    return "GPU is" if count == 1 else "GPUs are"


def planned(header: Header) -> dict[int, list[Message]]:
    """The messages that its settings ask for, by group."""
    most = most_bytes(list(header.specs.values()), header.limits.tokens)
    return {count: messages(count, most, header.seed) for count in header.groups}


@dataclass(frozen=True, slots=True)
class Gang:
    """Processes that measure together; `seconds` after which they are stopped."""

    command: Sequence[str] = (sys.executable, "-m", "calibrate.ranks")

    def times(self, device: str, wanted: Sequence[Message], seconds: float) -> Iterator[MessageTime]:
        """What each message took, one by one as it is known, until time is up.

        Raises:
            RuntimeError: a process failed; says how.
        """
        until = time.monotonic() + seconds
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started = [_start(self.command, device, wanted, rank, folder, stack) for rank in range(wanted[0].gpus)]
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_hand_on, args=(started[0].stdout, lines), daemon=True).start()
            for _ in wanted:
                line = _next(lines, started, until)
                if not line:
                    if line == "":  # it has ended, or is about to
                        started[0].wait(END_S)
                    break
                told = json.loads(line)
                us, waited = told.pop("us"), told.pop("waited")
                yield MessageTime(Message(**told), tuple(us), waited)
            _check(started, folder)


def measure(
    header: Header, journal: Journal, gang: Gang, until_s: float, ask_clocks: ClockWatch, progress: Progress
) -> None:
    """Every group's messages that the journal has not, until `until_s` by `time.monotonic`, each group its share."""
    device, plan = "cpu" if header.synchronous else "cuda", planned(header)
    for number, (count, every) in enumerate(plan.items()):
        done = {one.message for one in journal.messages}
        wanted = [one for one in every if one not in done]
        left_s = (until_s - time.monotonic()) / (len(plan) - number)
        if not wanted or left_s <= 0.0:
            continue
        try:
            for at, told in enumerate(gang.times(device, wanted, left_s)):
                journal.add_message(MessageTime(told.message, told.us, told.waited, ask_clocks.clocks()))
                progress(told.message.name, at, len(wanted))
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            journal.tell(Trouble(SUBJECT, f"over {count}", f"failed: {error}"))


def lacks(header: Header, times: Sequence[MessageTime]) -> Iterator[str]:
    """What of the plan was not measured, a sentence for each group."""
    done = {one.message for one in times}
    for count, every in planned(header).items():
        there = sum(one in done for one in every)
        if there < len(every):
            yield f"collectives over {count}: {there} of {len(every)} messages were measured"


def _start(
    command: Sequence[str], device: str, wanted: Sequence[Message], rank: int, folder: Path, stack: ExitStack
) -> subprocess.Popen[str]:
    orders = Orders(rank, wanted[0].gpus, device, str(folder / "meeting"), tuple(wanted))
    said = stack.enter_context((folder / f"said-{rank}").open("w"))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT)
    stack.callback(_end, process)
    assert process.stdin is not None
    process.stdin.write(orders.text())
    process.stdin.close()
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _hand_on(pipe: IO[str] | None, lines: queue.Queue[str]) -> None:
    assert pipe is not None
    try:
        for line in pipe:
            lines.put(line)
    except ValueError:  # closed
        pass
    lines.put("")


def _next(lines: queue.Queue[str], started: Sequence[subprocess.Popen[str]], until: float) -> str | None:
    """The next line; "" behind the last, None where a process failed or time is up."""
    while (left_s := until - time.monotonic()) > 0.0:
        try:
            return lines.get(timeout=min(left_s, 0.2))
        except queue.Empty:
            if any(process.poll() for process in started):
                with suppress(queue.Empty):  # what it had written may be under way
                    return lines.get(timeout=LATE_S)
                return None
    return None


def _check(started: Sequence[subprocess.Popen[str]], folder: Path) -> None:
    for rank, process in enumerate(started):
        if process.poll():
            said = (folder / f"said-{rank}").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"process {rank} of {len(started)}: {said[-1][:200] if said else 'no message'}")
