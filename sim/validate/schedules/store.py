"""A schedule as the two files that `sim validate --schedules` reads back: the whole record, or nothing."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sim.engine.batch import Batch, Outcome
from sim.engine.request import Request
from sim.results import run_id
from sim.results.transaction import LOCK, Claim
from sim.serving.executor import Executor
from sim.validate.schedules.recording import ScheduleLog
from traces.schema import InputError

NS = 1e9
SCENARIO, STEPS = "schedule.scenario.json", "schedule.steps.jsonl.xz"


class InWholeNs:
    """Lets each step last whole nanoseconds, as a record tells it."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def execute(self, batch: Batch) -> Outcome:
        outcome = self._inner.execute(batch)
        return replace(outcome, seconds=[round(seconds * NS) / NS for seconds in outcome.seconds])


def taken(folder: Path) -> Claim:
    """The folder for a schedule, from before it is decided until it is written.

    Raises InputError: it holds anything but an earlier one, or the operating system refuses.
    """
    claim = Claim(folder)
    try:
        other = sorted(set(os.listdir(folder)) - {SCENARIO, STEPS, LOCK})
        scenario = folder / SCENARIO
        if not other and (folder / STEPS).exists() and not (scenario.exists() and run_id.mark_of(scenario)):
            other = [STEPS]
        if not other and scenario.exists() and not run_id.mark_of(scenario):
            other = [SCENARIO]
        if other:
            raise InputError(f"{folder} holds {other[0]}, which --record has not written; give it a folder of its own")
    except BaseException:
        claim.release()
        raise
    return claim


def write(claim: Claim, recording: ScheduleLog, settings: Mapping[str, Any], version: str) -> list[Path]:
    """Write a recording whose requests have all ended.

    Args:
        settings: of the engine, as vLLM names them.
        version: of the engine.
    """
    lines = "".join(json.dumps(step, separators=(",", ":")) + "\n" for step in recording.steps).encode()
    document = _document(recording, settings, version)
    document["result"]["record_sha256"] = hashlib.sha256(lines).hexdigest()
    writers = {
        SCENARIO: run_id.document(document, run_id.digest(document)),
        STEPS: lambda path: path.write_bytes(lzma.compress(lines)) and None,
    }
    return claim.write(writers)


def _document(recording: ScheduleLog, settings: Mapping[str, Any], version: str) -> dict[str, Any]:
    requests = [recording.seen[id] for id in sorted(recording.seen)]
    steps = recording.steps
    units = {req.prefix.unit_tokens for req in requests if req.prefix is not None}
    rows = [_row(req, recording, settings) for req in requests]
    for key, name in (("new", "first_scheduled"), ("first", "first_token"), ("finished", "finished")):
        for step in steps:
            for id in step.get(key, ()):
                rows[id]["outcome"][name] = step["i"]
    return {
        "name": "schedule",
        "vllm": version,
        "settings": dict(settings),
        "step_time": {"durations_ns": [step["t1"] - step["t0"] for step in steps if step["sched"]]},
        "prefix_unit_tokens": units.pop() if units else 1,
        "requests": rows,
        "result": {
            "steps": len(steps),
            "hit_tokens": sum(tokens for step in steps for _, tokens in step.get("hit", ())),
            "min_free": min((step["free"][0] for step in steps), default=settings["num_gpu_blocks"] - 1),
        },
    }


def _row(req: Request, recording: ScheduleLog, settings: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": req.id,
        "arrival_ns": round(req.arrival_s * NS),
        "prompt": req.prompt_tokens,
        "output": req.output_tokens,
        "priority": req.priority,
    }
    if req.prefix is not None:
        row["prefix"] = _runs([int(id) for id in req.prefix.ids])
        if req.prefix.known_tokens > req.prompt_tokens:
            row["prefix_tokens"] = req.prefix.known_tokens
    if settings["speculative"]:
        row["accept"] = recording.accepted.get(req.id, [0])
        row["draft"] = recording.proposed.get(req.id, [0])
    row["outcome"] = {"preemptions": req.preemptions, "hit": req.prefix_hit_tokens}
    return row


def _runs(ids: Sequence[int]) -> list[list[int]]:
    """Ids as [first, count] of those that follow one another."""
    runs = []
    for _, run in groupby(enumerate(ids), lambda pair: pair[1] - pair[0]):
        members = list(run)
        runs.append([members[0][1], len(members)])
    return runs
