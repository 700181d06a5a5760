"""One run: stages in their boxes, one after another, and the files after each of them and every few seconds.

Whatever becomes of a stage, the next one starts; whatever becomes of the run, the files are whole.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from backend.prove import outcomes
from backend.prove.box import Ended, run_boxed
from backend.prove.folder import MOST_BYTES, ProveFolder
from backend.prove.stages import BENCHES, ROOT, ProvePlace, ProveStage, box_s

SCHEMA = "foretoken-prove/1"
EVERY_S = 5.0
"""Between two writes while a stage runs."""
LAST_S = 3.0
"""Kept for the last write."""
LEAST_BOX_S = 2.0
KERNELS = "kernels"
"""The working folder's cache of compiled kernels, where one was carried here."""
LOG_OF_STAGE = 300_000
"""Bytes of each output of a stage that the log keeps: its end."""

WAITING, RUNNING, DONE, CUT, FAILED, SKIPPED = "waiting", "running", "done", "cut", "failed", "skipped"
"""A stage ran to its end; was ended by its box; ended in another way; or could not run."""


@dataclass(slots=True)
class StageRecord:
    """A stage of the summary. `finding` is what its exit code says where that is no failure."""

    stage: ProveStage
    state: str = WAITING
    box_s: float = 0.0
    seconds: float = 0.0
    status: int | None = None
    finding: str = ""
    reason: str = ""
    command: Sequence[str] = ()

    def as_dict(self, result: dict[str, Any]) -> dict[str, Any]:
        told = {"name": self.stage.name, "state": self.state, "box_s": round(self.box_s, 1)}
        told |= {"seconds": round(self.seconds, 1), "status": self.status}
        return {**told, "finding": self.finding, "reason": self.reason, "command": list(self.command), "result": result}


@dataclass(slots=True)
class ProveRun:
    place: ProvePlace
    folder: ProveFolder
    stages: Sequence[ProveStage]
    budget_s: float
    say: Callable[[str], None]
    started: float
    """A moment of the monotonic clock, from which the budget counts."""
    records: list[StageRecord] = field(default_factory=list)
    finished: bool = False
    stopped: str = ""
    _log: list[str] = field(default_factory=list)
    _saved: float = 0.0
    _began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def run(self) -> None:
        """All stages, each at most its share of what is left."""
        self.records = [StageRecord(stage) for stage in self.stages]
        self.save()
        try:
            for at, record in enumerate(self.records):
                left_s = self.budget_s - LAST_S - (time.monotonic() - self.started)
                self._stage(record, box_s(self.stages, at, left_s))
        except KeyboardInterrupt:
            for record in self.records:
                if record.state == RUNNING:
                    record.state, record.reason = CUT, self.stopped
            raise
        finally:
            self.finished = not self.stopped
            self.save()

    def _stage(self, record: StageRecord, box: float) -> None:
        self._tick()
        name = record.stage.name
        record.box_s = box
        command = record.stage.command(self.place, box)
        if not isinstance(command, str) and box < LEAST_BOX_S:
            command = f"its share of what is left is {max(box, 0.0):.1f} s, less than {LEAST_BOX_S:g}"
        if isinstance(command, str):
            record.state, record.reason = SKIPPED, command
            self._tell(f"{name}: skipped, {command}")
            self.save()
            return
        record.state, record.command = RUNNING, command
        self._tell(f"{name}: {record.stage.about}, {box:.0f} s at most")
        self.save()
        outputs = (self.place.file(f"{name}.stdout"), self.place.file(f"{name}.stderr"))
        kernels = self.place.file(KERNELS)
        env = environment() | ({"TRITON_CACHE_DIR": str(kernels)} if kernels.is_dir() else {})
        ended = run_boxed(command, box, outputs, cwd=ROOT, env=env, tick=self._tick)
        self._judge(record, ended, outputs[1])
        self._tell(f"{name}: {record.state} after {record.seconds:.1f} s {record.finding or record.reason}".rstrip())
        self.save()

    def _judge(self, record: StageRecord, ended: Ended, errors: Path) -> None:
        record.seconds, record.status = ended.seconds, ended.status
        answers = {0: "", **record.stage.answers}
        if ended.status in answers and not (ended.cut and ended.status):
            record.state, record.finding = DONE, answers[ended.status]
        elif ended.cut:
            record.state, record.reason = CUT, f"its {record.box_s:.0f} s were over"
        else:
            record.state, record.reason = FAILED, f"status {ended.status}: {_last_line(errors)}"

    def _tell(self, line: str) -> None:
        stamped = f"{time.monotonic() - self.started:6.1f} s  {line}"
        self._log.append(stamped)
        self.say(stamped)

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """A signal's handler. It raises nothing, for what runs at that moment may swallow it; the next tick does."""
        self.stopped = "stopped by a signal"

    def _tick(self) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        if time.monotonic() - self._saved >= EVERY_S:
            self.save()

    def save(self) -> None:
        """Rewrite what has changed of the seven files; the summary last, which tells the others."""
        self._saved = time.monotonic()
        work = self.place.work
        benches = [found for name in BENCHES if (found := outcomes.read_json(work / name)) is not None]
        bench = outcomes.merged(benches)
        if bench is not None:
            self.folder.put("bench.json", _json(bench))
        self.folder.copy(work / "tests.xml", "tests.xml")
        self.folder.copy(work / "profile.journal.jsonl", "journal.jsonl")
        for name in ("profile", "validate"):
            self.folder.pack(work / name, f"{name}.tgz", first=("validate.json", "about.json", "scenario.toml"))
        self.folder.put("prove.log", self._logged())
        self.folder.put("summary.json", _json(self.document(bench)))

    def document(self, bench: dict[str, Any] | None) -> dict[str, Any]:
        """The summary."""
        stages = [
            record.as_dict(outcomes.READERS[record.stage.name](self.place.work) if record.state != WAITING else {})
            for record in self.records
        ]
        return {
            "schema": SCHEMA,
            "date": self._began,
            "command": sys.argv,
            "device": self.place.device,
            "small": self.place.small,
            "budget_s": self.budget_s,
            "seconds": round(time.monotonic() - self.started, 1),
            "finished": self.finished,
            "stopped": self.stopped,
            "stages": stages,
            "bars": bench["bars"] if bench else [],
            "left_out": dict(self.folder.left_out),
        }

    def _logged(self) -> bytes:
        parts = ["\n".join(self._log).encode() + b"\n"]
        for record in self.records:
            for kind in ("stdout", "stderr"):
                text = _end_of(self.place.file(f"{record.stage.name}.{kind}"))
                if text:
                    parts.append(f"\n==== {record.stage.name}, {kind}\n".encode() + text)
        return b"".join(parts)[:MOST_BYTES]


def environment() -> dict[str, str]:
    """A stage's: the product and what this process imports from, wherever it is started."""
    paths = [str(ROOT), *(os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_OF_STAGE))
            return file.read()
    except OSError:
        return b""


def _last_line(path: Path) -> str:
    lines = _end_of(path).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"
