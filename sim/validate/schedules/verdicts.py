"""Recorded schedules of a real engine, replayed through ours: where, if anywhere, do the two part?

Reads `NAME.scenario.json` and `NAME.steps.jsonl` (`.xz`): what vLLM's V1 scheduler decided, step by step, for known
requests and a stated duration of each step. Times are whole nanoseconds; floats hold them exactly here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.serving.progress import NoProgressError
from sim.validate.schedules.grades import Grade, compare
from sim.validate.schedules.replay import POLICIES, RULES, ScheduleReplay, line_of
from traces import documents, files
from traces.schema import InputError

DRAFTING = ("ngram", "eagle")
"""Ways of drafting that can be replayed."""


@dataclass(frozen=True, slots=True)
class ScheduleResult:
    """How one recorded schedule compares: `status` is identical, different or unsupported.

    Identical means that no step differs in any grade. `grades` says for each of `grades.GRADES` how many
    steps differ so, and where first; it is empty where nothing was compared. `detail` tells the very first.
    """

    name: str
    status: str
    steps: int
    detail: str = ""
    first_difference: dict[str, Any] | None = None
    grades: dict[str, Grade] = field(default_factory=dict)


def replay_folder(folder: Path) -> list[ScheduleResult]:
    """Replay every recorded schedule in a folder, by name.

    Raises:
        InputError: the folder holds none, or a file is malformed.
    """
    scenarios = sorted(folder.glob("*.scenario.json")) if files.is_dir(folder) else []
    if not scenarios:
        raise InputError(f"{folder}: no recorded schedules (*.scenario.json) here")
    return [replay(path) for path in scenarios]


def replay(path: Path) -> ScheduleResult:
    name = path.name.removesuffix(".scenario.json")
    scenario = documents.json_of(files.text(path), str(path), documents.finite)
    _check(scenario, path)
    if missing := _unsupported(scenario):
        return ScheduleResult(name, "unsupported", 0, missing)
    recorded = list(_recorded_steps(path.with_name(name + ".steps.jsonl")))
    ours = ScheduleReplay(scenario)
    try:
        ours.run()
    except (InputError, NoProgressError) as error:
        raise InputError(f"{path}: {error}") from None
    comparison = compare(recorded, ours.steps)
    first = comparison.first_difference
    status = "identical" if first is None else "different"
    return ScheduleResult(name, status, len(recorded), described(first) if first else "", first, comparison.grades)


def _unsupported(scenario: dict[str, Any]) -> str:
    settings = scenario["settings"]
    if line_of(scenario) not in RULES:
        return f"vLLM {scenario['vllm']} (known: {', '.join(RULES)})"
    drafting = settings["speculative"]
    if drafting and drafting["method"] not in DRAFTING:
        return f"speculative decoding ({drafting['method']})"
    known = _SETTINGS.keys() | {"speculative"} | (set() if line_of(scenario) == "0.19" else _NEWER)
    for key in sorted(settings.keys() - known):
        if settings[key] and settings[key] != _IDLE.get(key):
            return f"setting {key} = {short(settings[key])}"
    return ""


def described(difference: dict[str, Any]) -> str:
    recorded, ours = short(difference["recorded"]), short(difference["ours"])
    return f"step {difference['step']}, key {difference['key']}: recorded {recorded}, ours {ours}"


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


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
_NEWER = {
    "long_prefill_token_threshold_adaptive",
    "max_num_active_seqs",
    "max_num_scheduled_tokens",
    "prefill_schedule_interval",
    "watermark",
}
"""Settings that came after vLLM 0.19."""
_IDLE = {"prefill_schedule_interval": 1}
"""The value that changes nothing, where that is not 0, false or null."""

_STEP_TIME: dict[str, type] = {"base_ns": int, "per_token_ns": int, "per_context_token_ns": int}


def _check(scenario: Any, path: Path) -> None:
    """Raise InputError unless everything that a replay reads is there and of its type."""
    top = {"settings": dict, "step_time": dict, "requests": list, "prefix_unit_tokens": int}
    _check_keys(scenario, top, path, "the scenario")
    settings = scenario["settings"]
    _check_keys(settings, _SETTINGS, path, "settings")
    if "speculative" not in settings:
        raise InputError(f"{path}: settings has no 'speculative'")
    drafting = settings["speculative"]
    if drafting is not None:
        _check_keys(drafting, {"method": str, "num_speculative_tokens": int}, path, "settings.speculative")
    if settings["policy"] not in POLICIES:
        raise InputError(f"{path}: unknown policy {settings['policy']!r}; known: {', '.join(POLICIES)}")
    _check_step_time(scenario["step_time"], path)
    if scenario["prefix_unit_tokens"] < 1 or (drafting and drafting["num_speculative_tokens"] < 1):
        raise InputError(f"{path}: prefix_unit_tokens and num_speculative_tokens must be at least 1")
    if not scenario["requests"]:
        raise InputError(f"{path}: there are no requests")
    first = scenario["requests"][0]
    arrival = "arrival_step" if isinstance(first, dict) and "arrival_step" in first else "arrival_ns"
    for number, row in enumerate(scenario["requests"]):
        where = f"request {number}"
        _check_keys(row, {"id": int, arrival: int, "prompt": int, "output": int}, path, where)
        if row["id"] != number or row["prompt"] < 1 or row["output"] < 1 or row[arrival] < 0:
            raise InputError(f"{path}: {where} needs its number as id, and a prompt and an output of at least 1 token")
        if type(row.get("priority", 0)) is not int:
            raise InputError(f"{path}: {where}: priority is {short(row['priority'])}; expected int")
        if type(row.get("prefix_tokens", 0)) is not int:
            raise InputError(f"{path}: {where}: prefix_tokens is {short(row['prefix_tokens'])}; expected int")
        if not _pairs(row.get("prefix", [])):
            raise InputError(f"{path}: {where}: prefix is {short(row['prefix'])}; expected [first unit, count] pairs")
        for key in ("accept", "draft") if drafting and drafting["method"] in DRAFTING else ():
            if not _counts(row.get(key)) or not row[key]:
                raise InputError(f"{path}: {where}: {key} is {short(row.get(key))}; expected numbers of tokens")


def _check_step_time(told: dict[str, Any], path: Path) -> None:
    if "durations_ns" not in told:
        _check_keys(told, _STEP_TIME, path, "step_time")
    elif not _counts(told["durations_ns"]) or not told["durations_ns"]:
        raise InputError(
            f"{path}: step_time: durations_ns is {short(told['durations_ns'])}; expected whole nanoseconds of each step"
        )


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_counts(pair) and len(pair) == 2 for pair in value)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _check_keys(table: Any, keys: dict[str, type], path: Path, where: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{path}: {where} is {short(table)}; expected an object")
    for key, kind in keys.items():
        if key not in table:
            raise InputError(f"{path}: {where} has no {key!r}")
        if type(table[key]) is not kind:
            raise InputError(f"{path}: {where}: {key} is {short(table[key])}; expected {kind.__name__}")


def _recorded_steps(path: Path) -> Iterator[dict[str, Any]]:
    packed = path.with_name(path.name + ".xz")
    source = packed if files.exists(packed) else path
    if not files.check(source):
        return  # nothing was ever scheduled
    for number, line in files.lines(source):
        step = documents.json_of(line, f"{source} line {number}", documents.finite)
        if not isinstance(step, dict):
            raise InputError(f"{source} line {number}: expected an object, found {short(step)}")
        yield step
