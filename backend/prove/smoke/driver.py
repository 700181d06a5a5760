"""`python -m backend.prove.smoke`: runs every operation in processes that may die, and writes a line for each.

An operation that hangs is killed and told, one that loses the device or ends its process too, and the others go on in a
fresh process. Several processes share the list, for compiling takes the longest.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from backend.prove.box import die_with_parent
from backend.prove.prepare import write
from backend.prove.smoke.worker import FAILED, MARK, SKIPPED, all_cases, work

LANES = 7
"""Odd, so that the kinds of operations, which take turns in the list, are spread over them."""
MOST_S = {"cuda": 30.0, "cpu": 300.0}
"""Of one operation, a process's start and compiling included; a CPU may be busy with something else."""
NO_TIME = "no time left"


class SmokeRun:
    """All operations' lines, written after each."""

    def __init__(self, names: Sequence[str], out: Path, device: str, small: bool, deadline_s: float) -> None:
        self._lines: dict[str, dict[str, Any]] = {name: {"name": name, "state": "waiting"} for name in names}
        self._out, self._device, self._small, self._deadline_s = out, device, small, deadline_s
        self._most_s = MOST_S[device.partition(":")[0]]
        self._lock = threading.Lock()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return list(self._lines.values())

    def run(self, lanes: int) -> None:
        """Until all have run or there is no time left."""
        names = list(self._lines)
        self._write()
        threads = [threading.Thread(target=self._lane, args=(names[at::lanes],)) for at in range(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in names:
            if self._lines[name]["state"] == "waiting":
                self._tell(name, state=SKIPPED, reason=NO_TIME)

    def _lane(self, names: list[str]) -> None:
        while names and self._left_s() > 0:
            ended = self._process(names)
            names = names[ended:]

    def _left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def _process(self, names: list[str]) -> int:
        """Run a worker on these; how many of them have been told, at least one."""
        small = ["--small"] if self._small else []
        command = [
            sys.executable,
            "-m",
            "backend.prove.smoke",
            "--device",
            self._device,
            *small,
            "--worker",
            json.dumps(names),
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        def watch() -> threading.Timer:
            timer = threading.Timer(max(0.0, min(self._most_s, self._left_s())), stop)
            timer.start()
            return timer

        timer, told, begun, last = watch(), 0, "", ""
        try:
            for text in process.stdout:
                if not text.startswith(MARK):
                    last = text.strip() or last
                    continue
                line = json.loads(text)
                name = line.pop("operation")
                timer.cancel()
                timer = watch()
                if line["state"] == "begun":
                    begun = name
                    continue
                self._tell(name, **line)
                begun, told = "", told + 1
        finally:
            timer.cancel()
            process.stdout.close()
            status = process.wait()
        if begun or (not told and status):
            reason = self._death(status, late.is_set())
            self._tell(begun or names[told], state=FAILED, reason=f"{reason}{': ' + last[:300] if last else ''}")
            told += 1
        return max(told, 1)

    def _death(self, status: int, late: bool) -> str:
        if late:
            if self._left_s() <= 0:
                return "did not end in the time of this stage"
            return f"did not end within {self._most_s:.0f} s"
        if status < 0:
            return f"its process ended with signal {signal.Signals(-status).name}"
        return f"its process ended with status {status}"

    def _tell(self, name: str, **line: Any) -> None:
        with self._lock:
            self._lines[name] = {"name": name, **line}
            self._write()

    def _write(self) -> None:
        write(self._out, {"device": self._device, "operations": self.lines})


@click.command()
@click.option("--device", required=True)
@click.option("--small", is_flag=True)
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--until", type=float, default=math.inf, help="Begin nothing after this time of the system's clock.")
@click.option("--worker", default="", help="Names of operations, as JSON: run them in this process.")
def main(device: str, small: bool, out: Path | None, until: float, worker: str) -> None:
    """Exit code 1 where an operation failed."""
    if worker:
        die_with_parent()
        work(json.loads(worker), device, small)
        return
    if out is None:
        raise click.UsageError("--out is missing")
    run = SmokeRun([case.name for case in all_cases()], out, device, small, time.monotonic() + until - time.time())
    run.run(1 if device.startswith("cpu") else LANES)
    failed = [line for line in run.lines if line["state"] == FAILED]
    for line in run.lines:
        error = "" if line.get("error") is None else f" {line['error']:.2e}"
        click.echo(f"{line['state']:8} {line['name']}{error} {line.get('note', '')} {line.get('reason', '')}".rstrip())
    sys.exit(1 if failed else 0)
