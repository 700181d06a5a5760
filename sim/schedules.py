"""Recorded schedules of a real engine, replayed through ours: where, if anywhere, do the two part?

Reads `NAME.scenario.json` and `NAME.steps.jsonl` (`.xz`): what vLLM's V1 scheduler decided, step by step, for known
requests and a stated duration of each step. Times are whole nanoseconds; floats hold them exactly here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.batch import Batch
from sim.cost.step import FixedCost
from sim.drafting import DraftingEngine
from sim.engine import Engine, Limits
from sim.executor import Accepting, Executor, Predicted
from sim.load import build
from sim.memory import Allocator, KvPool
from sim.replica import Clock, Flight, NoProgressError, Observer, Replica
from sim.request import Request, SharedPrefix
from traces import documents, files
from traces.schema import InputError

_QUEUE_ORDER = {"fcfs": "chunked", "priority": "priority"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one recorded schedule compares: `status` is identical, different or unsupported."""

    name: str
    status: str
    steps: int
    detail: str = ""
    first_difference: dict[str, Any] | None = None


def replay_folder(folder: Path) -> list[Verdict]:
    """Replay every recorded schedule in a folder, by name.

    Raises:
        InputError: the folder holds none, or a file is malformed.
    """
    scenarios = sorted(folder.glob("*.scenario.json")) if files.is_dir(folder) else []
    if not scenarios:
        raise InputError(f"{folder}: no recorded schedules (*.scenario.json) here")
    return [replay(path) for path in scenarios]


def replay(path: Path, *, spans: bool = False) -> Verdict:
    """Replay one `*.scenario.json` against the record beside it, to the first key that differs."""
    name = path.name.removesuffix(".scenario.json")
    scenario = _read_json(path)
    _check(scenario, path)
    missing = _unsupported(scenario["settings"])
    if missing:
        return Verdict(name, "unsupported", 0, missing)
    recorded = list(_recorded_steps(path.with_name(name + ".steps.jsonl")))
    ours = _Recorder(scenario)
    try:
        ours.run(spans=spans)
    except (InputError, NoProgressError) as error:
        raise InputError(f"{path}: {error}") from None
    for index, (theirs, mine) in enumerate(zip(recorded, ours.steps, strict=False)):
        for key in {**theirs, **mine}:
            if theirs.get(key) != mine.get(key):
                if key not in theirs and key in ("running", "waiting", "blocks"):
                    continue
                return _different(name, len(recorded), index, key, theirs.get(key), mine.get(key))
    if len(recorded) != len(ours.steps):
        return _different(
            name, len(recorded), min(len(recorded), len(ours.steps)), "steps", len(recorded), len(ours.steps)
        )
    return Verdict(name, "identical", len(recorded))


def _different(name: str, steps: int, index: int, key: str, recorded: Any, ours: Any) -> Verdict:
    detail = f"step {index}, key {key}: recorded {_short(recorded)}, ours {_short(ours)}"
    return Verdict(name, "different", steps, detail, {"step": index, "key": key, "recorded": recorded, "ours": ours})


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _unsupported(settings: dict[str, Any]) -> str:
    drafting = settings["speculative"]
    if drafting and drafting["method"] not in ("ngram", "eagle"):
        return f"speculative decoding ({drafting['method']})"
    return ""


_SETTINGS: dict[str, type] = {
    "block_size": int,
    "num_gpu_blocks": int,
    "max_num_seqs": int,
    "max_num_batched_tokens": int,
    "max_model_len": int,
    "enable_chunked_prefill": bool,
    "long_prefill_token_threshold": int,
    "enable_prefix_caching": bool,
    "scheduler_reserve_full_isl": bool,
    "policy": str,
    "async_scheduling": bool,
}
_STEP_TIME: dict[str, type] = {"base_ns": int, "per_token_ns": int, "per_context_token_ns": int}


def _check(scenario: Any, path: Path) -> None:
    """Raise InputError unless everything that a replay reads is there and of its type."""
    top = {"settings": dict, "step_time": dict, "requests": list, "prefix_unit_tokens": int}
    _check_keys(scenario, top, path, "the scenario")
    settings = scenario["settings"]
    _check_keys(settings, _SETTINGS, path, "settings")
    if "speculative" not in settings:
        raise InputError(f"{path}: settings has no 'speculative'")
    if settings["policy"] not in _QUEUE_ORDER:
        raise InputError(f"{path}: unknown policy {settings['policy']!r}; known: {', '.join(_QUEUE_ORDER)}")
    _check_keys(scenario["step_time"], _STEP_TIME, path, "step_time")
    if not scenario["requests"]:
        raise InputError(f"{path}: there are no requests")
    first = scenario["requests"][0]
    arrival = "arrival_step" if isinstance(first, dict) and "arrival_step" in first else "arrival_ns"
    for number, row in enumerate(scenario["requests"]):
        where = f"request {number}"
        _check_keys(row, {"id": int, arrival: int, "prompt": int, "output": int}, path, where)
        if row["id"] != number or row["prompt"] < 1 or row["output"] < 1 or row[arrival] < 0:
            raise InputError(f"{path}: {where} needs its number as id, and a prompt and an output of at least 1 token")


def _check_keys(table: Any, keys: dict[str, type], path: Path, where: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{path}: {where} is {_short(table)}; expected an object")
    for key, kind in keys.items():
        if key not in table:
            raise InputError(f"{path}: {where} has no {key!r}")
        if type(table[key]) is not kind:
            raise InputError(f"{path}: {where}: {key} is {_short(table[key])}; expected {kind.__name__}")


def _read_json(path: Path) -> Any:
    return documents.json_file(path)


def _recorded_steps(path: Path) -> Iterator[dict[str, Any]]:
    packed = path.with_name(path.name + ".xz")
    source = packed if files.exists(packed) else path
    for number, line in files.lines(source):
        step = documents.json_of(line, f"{source} line {number}")
        if not isinstance(step, dict):
            raise InputError(f"{source} line {number}: expected an object, found {_short(step)}")
        yield step


class _Script:
    """Drafts and acceptances as a scenario dictates them: the j-th time, the j-th of a cyclic list."""

    def __init__(self, rows: list[dict[str, Any]], most: int, *, fixed: bool) -> None:
        self.most = most
        self._rows = rows
        self._fixed = fixed
        self._proposals = [0] * len(rows)
        self._verifications = [0] * len(rows)

    def propose(self, req: Request, running: int) -> int:
        drafts = self._rows[req.id]["draft"]
        self._proposals[req.id] += 1
        return self.most if self._fixed else int(drafts[(self._proposals[req.id] - 1) % len(drafts)])

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        """Nothing is learned from it."""

    def accept(self, req: Request, drafts: int) -> int:
        if not drafts:
            return 0
        right = self._rows[req.id]["accept"]
        self._verifications[req.id] += 1
        return min(int(right[(self._verifications[req.id] - 1) % len(right)]), drafts)


class _Recorder(Observer):
    """Runs a scenario and writes down our steps in the record's own form."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._scenario = scenario
        self._settings = scenario["settings"]
        self._requests = _requests(scenario)
        self.steps: list[dict[str, Any]] = []
        self._by_step = "arrival_step" in scenario["requests"][0]
        self._next_arrival = 0
        self._index = 0
        self._arrived: list[int] = []
        self._open: dict[int, dict[str, Any]] = {}
        self._empty: dict[str, Any] | None = None
        self._admissions = 0
        self._ended_s = 0.0

    def run(self, *, spans: bool) -> None:
        settings, cost = self._settings, self._scenario["step_time"]
        policy = build(
            "sim.policies",
            _QUEUE_ORDER[settings["policy"]],
            {"long_prefill_token_threshold": settings["long_prefill_token_threshold"]},
        )
        caching: bool = settings["enable_prefix_caching"]
        allocator = build(
            "sim.allocators",
            "prefix" if caching else "paged",
            {"reserve_full_prompt": settings["scheduler_reserve_full_isl"]}
            | ({"keep_uncomputed": True} if caching else {}),
            KvPool(settings["num_gpu_blocks"] - 1, settings["block_size"]),
        )
        limits = Limits(
            settings["max_num_seqs"],
            settings["max_num_batched_tokens"],
            settings["max_model_len"],
            settings["enable_chunked_prefill"],
        )
        if caching:
            allocator.late_outputs = settings["async_scheduling"]
        self.clock = Clock()
        depth = 2 if settings["async_scheduling"] else 1
        drafting = settings["speculative"]
        if drafting:
            if drafting["method"] == "eagle":
                allocator.lookahead_tokens = drafting["num_speculative_tokens"]
                allocator.drops_last_hit = True
            self._script = _Script(self._scenario["requests"], drafting["num_speculative_tokens"], fixed=depth == 2)
            self.engine: Engine = DraftingEngine(policy, allocator, limits, self._script, early=depth == 2)
        else:
            self.engine = Engine(policy, allocator, limits, spans=spans)
        fixed = FixedCost(
            base_s=float(cost["base_ns"]),
            per_token_s=float(cost["per_token_ns"]),
            per_context_token_s=float(cost["per_context_token_ns"]),
        )
        executor: Executor = Predicted(fixed, overlap_host=depth == 2)
        if drafting:
            executor = Accepting(executor, self._script.accept)
        replica = Replica(self.clock, self.engine, executor, depth=depth, on_finish=lambda req: None, observer=self)
        for req in self._requests:
            if reason := self.engine.refusal(req):
                raise InputError(f"request {req.id} can never be served: {reason}")
        if self._by_step:
            self.idle(replica)
        else:
            for req in self._requests:
                self.clock.call_at(req.arrival_s, lambda event, req=req: self._arrive(replica, req), first=True)  # type: ignore[misc]
        self.clock.run()
        self._close_empty()

    def _arrive(self, replica: Replica, req: Request) -> None:
        self._arrived.append(req.id)
        replica.submit(req)

    def idle(self, replica: Replica) -> None:
        """An idle engine jumps to the step at which the next request arrives."""
        if self._by_step and self._next_arrival < len(self._requests):
            self._index = max(self._index, self._arrival_step(self._next_arrival))
            self.before_plan(replica)

    def before_plan(self, replica: Replica) -> None:
        self._admissions = self.engine.admissions
        while (
            self._by_step
            and self._next_arrival < len(self._requests)
            and self._arrival_step(self._next_arrival) <= self._index
        ):
            req = self._requests[self._next_arrival]
            self._next_arrival += 1
            req.arrival_s = self.clock.now
            self._arrive(replica, req)

    def _arrival_step(self, number: int) -> int:
        return int(self._scenario["requests"][self._requests[number].id]["arrival_step"])

    def planned(self, replica: Replica, batch: Batch) -> None:
        engine = self.engine
        entries: list[tuple[Request, int, int]] = list(batch.entries)
        if batch.lockstep:
            own = {req for req, _, _ in entries}
            entries += [(req, 1, engine.lockstep.computed(req) - 1) for req in engine.lockstep if req not in own]
        entries.sort(key=lambda entry: entry[0].seq)
        admitted = [entry for entry in entries if entry[0].seq >= self._admissions]
        new = [entry for entry in admitted if not entry[0].preemptions]
        resumed = [entry for entry in admitted if entry[0].preemptions]
        arrived, self._arrived = self._arrived, []
        step: dict[str, Any] = {
            "i": self._index,
            "t_sched": int(batch.planned_s),
            "tokens": sum(tokens for _, tokens, _ in entries),
            "arrived": arrived,
            "sched": [[req.id, tokens, past] for req, tokens, past in entries],
            "new": [req.id for req, _, _ in new],
            "resumed": [req.id for req, _, _ in resumed],
            "preempted": [req.id for req in batch.evicted],
            "spec": [[one.request.id, one.drafts] for one in batch.sampled if one.drafts],
            "hit": [[req.id, past] for req, _, past in [*new, *resumed] if past],
            "free": [engine.allocator.free_blocks],
            "queues": [[len(engine.running), len(engine.waiting)]],
            "running": [req.id for req in engine.running],
            "waiting": [req.id for req in engine.waiting],
            "blocks": {str(req.id): list(engine.allocator.table(req)) for req in engine.running},
        }
        self._index += 1
        self.steps.append(step)
        if not batch.empty:
            self._open[batch.first_step] = step
        self._close_empty()
        if batch.empty:
            self._empty = step

    def committed(self, replica: Replica, flight: Flight) -> None:
        batch = flight.batch
        drafted = [accepted for one, accepted in zip(batch.sampled, batch.accepted, strict=False) if one.drafts]
        for row, accepted in zip(self._open[batch.first_step]["spec"], drafted, strict=True):
            row.append(accepted)
        first = [req.id for req in batch.first_tokens]
        finished = [req.id for req in batch.finishing]
        self._ended_s = flight.times_s[-1]
        self._close(self._open.pop(batch.first_step), flight.times_s[0], flight.times_s[-1], first, finished)

    def _close_empty(self) -> None:
        """An empty step leaves the batch queue once the batch ahead of it has ended and another was planned."""
        if self._empty is not None:
            self._close(self._empty, self._ended_s, self._ended_s, [], [])
            self._empty = None

    def _close(self, step: dict[str, Any], start: float, end: float, first: list[int], finished: list[int]) -> None:
        engine = self.engine
        step["t0"], step["t1"] = int(start), int(end)
        step["free"].append(engine.allocator.free_blocks)
        # The record lets arrivals enter just before the next planning; here they queue up when they come.
        step["queues"].append([len(engine.running), len(engine.waiting) - len(self._arrived)])
        step["first"], step["finished"] = first, finished
        for key in ("arrived", "new", "resumed", "preempted", "hit", "spec", "first", "finished"):
            if not step[key]:
                del step[key]


def _requests(scenario: dict[str, Any]) -> list[Request]:
    rows = scenario["requests"]
    names: dict[tuple[int, int], int] = {}
    requests = [
        Request(
            row["id"],
            float(row.get("arrival_ns", 0)),
            row["prompt"],
            row["output"],
            row.get("priority", 0),
            _chained(row.get("prefix", []), scenario["prefix_unit_tokens"], names),
        )
        for row in rows
    ]
    key = "arrival_step" if "arrival_step" in rows[0] else "arrival_ns"
    return sorted(requests, key=lambda req: (rows[req.id][key], req.id))


def _chained(runs: list[list[int]], unit_tokens: int, names: dict[tuple[int, int], int]) -> SharedPrefix:
    """Units told by their own content, named anew so that a name tells all units before it too."""
    ids: list[int] = []
    for first, count in runs:
        for unit in range(first, first + count):
            ids.append(names.setdefault((ids[-1] if ids else -1, unit), len(names)))
    return SharedPrefix(ids, unit_tokens)


__all__ = ["Allocator", "Verdict", "replay", "replay_folder"]
