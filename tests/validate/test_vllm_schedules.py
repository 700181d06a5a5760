"""Schedules recorded from vLLM's own V1 scheduler, replayed decision for decision; and what a wrong record is told."""

from __future__ import annotations

import copy
import json
import lzma
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sim.cli.main import cli as command
from sim.engine.rules import OF_VLLM_0_19, OF_VLLM_0_33, Rules
from sim.validate.schedules.grades import compare
from sim.validate.schedules.replay import ScheduleReplay
from sim.validate.schedules.verdicts import ScheduleResult, replay, replay_folder
from traces.schema import InputError

# Worked out by hand: a budget of 8, blocks of 4 tokens, a step takes 1,000 ns. Request 0 gets its prompt of 5 and
# request 1 three of its 4 tokens; in the next step 0 decodes its second token, 1 completes its prompt, both end.
SCENARIO: dict[str, Any] = {
    "settings": {
        "policy": "fcfs",
        "num_gpu_blocks": 9,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "max_model_len": 64,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "scheduler_reserve_full_isl": True,
        "long_prefill_token_threshold": 0,
        "async_scheduling": False,
        "speculative": None,
    },
    "step_time": {"base_ns": 1000, "per_token_ns": 0, "per_context_token_ns": 0},
    "prefix_unit_tokens": 4,
    "requests": [
        {"id": 0, "arrival_ns": 0, "prompt": 5, "output": 2},
        {"id": 1, "arrival_ns": 0, "prompt": 4, "output": 1},
    ],
}
STEPS: list[dict[str, Any]] = [
    {
        "i": 0,
        "t_sched": 0,
        "t0": 0,
        "t1": 1000,
        "tokens": 8,
        "arrived": [0, 1],
        "sched": [[0, 5, 0], [1, 3, 0]],
        "new": [0, 1],
        "free": [5, 5],
        "queues": [[2, 0], [2, 0]],
        "first": [0],
        "running": [0, 1],
        "waiting": [],
        "blocks": {"0": [1, 2], "1": [3]},
    },
    {
        "i": 1,
        "t_sched": 1000,
        "t0": 1000,
        "t1": 2000,
        "tokens": 2,
        "sched": [[0, 1, 5], [1, 1, 3]],
        "free": [5, 8],
        "queues": [[2, 0], [0, 0]],
        "first": [1],
        "finished": [0, 1],
        "running": [0, 1],
        "waiting": [],
        "blocks": {"0": [1, 2], "1": [3]},
    },
]


def write(folder: Path, scenario: Any = SCENARIO, steps: list[Any] = STEPS) -> Path:
    path = folder / "hand.scenario.json"
    path.write_text(json.dumps(scenario))
    (folder / "hand.steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return path


# ---- the real scheduler ---------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "schedules", "steps"),
    [
        ("vllm_v1_schedules", 57, 100_000),
        ("vllm_v1_schedules_more", 71, 18_000),
        ("vllm_0.33_schedules/of_0.19", 12, 2_000),
        ("vllm_0.33_schedules", 98, 20_000),
    ],
)
def test_every_schedule_is_vllms(shared: Path, folder: str, schedules: int, steps: int) -> None:
    verdicts = replay_folder(shared / "measured" / folder)
    assert len(verdicts) == schedules
    assert {one.name: one.detail for one in verdicts if one.status != "identical"} == {}
    assert {grade.steps for one in verdicts for grade in one.grades.values()} == {0}
    assert sum(one.steps for one in verdicts) > steps


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("t02_budget_split", "max_num_batched_tokens", 1),
        ("t03_max_num_seqs", "max_num_seqs", 1),
        ("t04_preempt_no_caching", "num_gpu_blocks", 1),
        ("t05_preempt_caching", "num_gpu_blocks", -1),
        ("t09_reserve_full_isl", "scheduler_reserve_full_isl", -1),
        ("t16_async_preempt", "async_scheduling", -1),
    ],
)
def test_another_setting_gives_another_schedule(
    shared: Path, tmp_path: Path, name: str, setting: str, value: int
) -> None:
    folder = shared / "measured/vllm_v1_schedules"
    shutil.copy(folder / f"{name}.steps.jsonl", tmp_path)
    scenario = json.loads((folder / f"{name}.scenario.json").read_text())
    changed = scenario["settings"][setting] + value
    scenario["settings"][setting] = bool(changed) if isinstance(scenario["settings"][setting], bool) else changed
    path = tmp_path / f"{name}.scenario.json"
    path.write_text(json.dumps(scenario))
    assert replay(path).status == "different"


@pytest.mark.shared
@pytest.mark.parametrize("key", ["t1", "tokens", "sched", "free", "queues", "blocks", "preempted"])
def test_one_changed_number_in_a_real_record_is_found(shared: Path, tmp_path: Path, key: str) -> None:
    name = "t04_preempt_no_caching"
    folder = shared / "measured/vllm_v1_schedules"
    shutil.copy(folder / f"{name}.scenario.json", tmp_path)
    steps = [json.loads(line) for line in (folder / f"{name}.steps.jsonl").read_text().splitlines()]
    at = next(index for index, step in enumerate(steps) if index > 4 and key in step)
    steps[at][key] = changed(steps[at][key])
    (tmp_path / f"{name}.steps.jsonl").write_text("\n".join(map(json.dumps, steps)))
    verdict = replay(tmp_path / f"{name}.scenario.json")
    assert verdict.status == "different"
    assert verdict.first_difference is not None
    assert (verdict.first_difference["step"], verdict.first_difference["key"]) == (at, key)
    assert f"step {at}, key {key}" in verdict.detail


def changed(value: Any) -> Any:
    """The value with its first number raised by one."""
    if isinstance(value, dict):
        first = next(iter(value))
        return {**value, first: changed(value[first])}
    return [changed(value[0]), *value[1:]] if isinstance(value, list) else value + 1


# ---- a schedule of our own ------------------------------------------------------------------------------------------


def test_a_schedule_by_hand_is_identical(tmp_path: Path) -> None:
    verdict = replay(write(tmp_path))
    assert (verdict.name, verdict.status, verdict.steps, verdict.detail) == ("hand", "identical", 2, "")
    assert verdict.first_difference is None


def test_queues_and_tables_may_be_left_out_of_a_record(tmp_path: Path) -> None:
    short = [{key: step[key] for key in step if key not in ("running", "waiting", "blocks")} for step in STEPS]
    assert replay(write(tmp_path, steps=short)).status == "identical"


@pytest.mark.parametrize("key", [key for key in STEPS[1] if key != "waiting"])
def test_each_key_is_compared(tmp_path: Path, key: str) -> None:
    steps = copy.deepcopy(STEPS)
    steps[1][key] = changed(steps[1][key])
    verdict = replay(write(tmp_path, steps=steps))
    assert verdict.status == "different"
    assert verdict.first_difference == {
        "step": 1,
        "key": key,
        "recorded": steps[1][key],
        "ours": STEPS[1][key],
    }


@pytest.mark.parametrize("key", ["resumed", "preempted", "hit", "arrived"])
def test_a_list_that_we_do_not_have_is_a_difference(tmp_path: Path, key: str) -> None:
    steps = copy.deepcopy(STEPS)
    steps[1][key] = [1]
    verdict = replay(write(tmp_path, steps=steps))
    assert verdict.first_difference == {"step": 1, "key": key, "recorded": [1], "ours": None}


@pytest.mark.parametrize(("steps", "theirs"), [(STEPS[:1], 1), ([*STEPS, {**STEPS[1], "i": 2}], 3)])
def test_another_number_of_steps_is_a_difference(tmp_path: Path, steps: list[Any], theirs: int) -> None:
    verdict = replay(write(tmp_path, steps=steps))
    assert verdict.first_difference == {"step": min(theirs, 2), "key": "steps", "recorded": theirs, "ours": 2}


# ---- grades ---------------------------------------------------------------------------------------------------------


def counts(verdict: ScheduleResult) -> dict[str, int]:
    return {name: grade.steps for name, grade in verdict.grades.items() if grade.steps}


@pytest.mark.parametrize(
    ("key", "grade"),
    [
        ("sched", "decisions"),
        ("tokens", "decisions"),
        ("finished", "decisions"),
        ("first", "decisions"),
        ("t_sched", "times"),
        ("t0", "times"),
        ("t1", "times"),
        ("free", "memory"),
        ("blocks", "memory"),
        ("queues", "bookkeeping"),
        ("running", "bookkeeping"),
        ("i", "bookkeeping"),
    ],
)
def test_a_difference_has_its_grade_and_no_other(tmp_path: Path, key: str, grade: str) -> None:
    steps = copy.deepcopy(STEPS)
    steps[1][key] = changed(steps[1][key])
    verdict = replay(write(tmp_path, steps=steps))
    assert counts(verdict) == {grade: 1}
    assert verdict.grades[grade].first_difference == verdict.first_difference
    assert list(verdict.grades) == ["decisions", "times", "memory", "bookkeeping"]


@pytest.mark.parametrize("key", ["new", "resumed", "preempted", "hit", "spec"])
def test_what_we_do_not_decide_is_a_decision(tmp_path: Path, key: str) -> None:
    steps = copy.deepcopy(STEPS)
    steps[1][key] = [1]
    assert counts(replay(write(tmp_path, steps=steps))) == {"decisions": 1}


def test_comparison_goes_on_behind_the_first_difference(tmp_path: Path) -> None:
    steps = copy.deepcopy(STEPS)
    steps[0]["queues"] = [[2, 1], [2, 0]]
    steps[0]["t1"], steps[1]["t0"], steps[1]["t1"] = 1001, 1001, 2001
    steps[1]["sched"] = [[0, 1, 5]]
    verdict = replay(write(tmp_path, steps=steps))
    assert counts(verdict) == {"decisions": 1, "times": 2, "bookkeeping": 1}
    first = verdict.grades["decisions"].first_difference
    assert first == {"step": 1, "key": "sched", "recorded": [[0, 1, 5]], "ours": [[0, 1, 5], [1, 1, 3]]}
    assert verdict.first_difference == {"step": 0, "key": "t1", "recorded": 1001, "ours": 1000}


EMPTY: dict[str, Any] = {"i": 1, "t_sched": 1000, "t0": 1000, "t1": 1000, "tokens": 0, "sched": []}


def test_an_empty_step_too_many_is_bookkeeping_and_shifts_nothing(tmp_path: Path) -> None:
    verdict = replay(write(tmp_path, steps=[STEPS[0], EMPTY, {**STEPS[1], "i": 2}]))
    assert counts(verdict) == {"bookkeeping": 1}
    assert verdict.first_difference == {"step": 1, "key": "steps", "recorded": 3, "ours": 2}


def test_an_empty_step_that_preempts_is_a_decision(tmp_path: Path) -> None:
    verdict = replay(write(tmp_path, steps=[STEPS[0], {**EMPTY, "preempted": [0]}, {**STEPS[1], "i": 2}]))
    assert counts(verdict) == {"decisions": 1}


@pytest.mark.parametrize(("steps", "graded"), [(STEPS[:1], 1), ([*STEPS, {**STEPS[1], "i": 2}], 1), ([], 2)])
def test_a_step_that_one_side_alone_has_is_one_decision(tmp_path: Path, steps: list[Any], graded: int) -> None:
    assert counts(replay(write(tmp_path, steps=steps))) == {"decisions": graded}


def working(*numbers: int) -> list[dict[str, Any]]:
    """Steps that each compute something of their own, told by a number."""
    return [{"i": at, "sched": [[number, 1, 0]] if number else []} for at, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("recorded", "ours", "decisions", "bookkeeping"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0, 0),
        ((1, 2, 3, 4), (1, 9, 3, 4), 1, 0),
        ((1, 2, 3, 4), (1, 8, 9, 3, 4), 2, 0),
        ((1, 2, 3, 4), (1, 3, 4), 1, 0),
        ((1, 0, 2, 3), (1, 2, 3), 0, 1),
        ((1, 2, 3), (1, 2, 0, 0, 3), 0, 2),
        ((1, 0, 2, 3), (1, 2, 0, 3), 0, 2),
        ((1, 2, 3), (7, 8, 9), 3, 0),
        ((1, 2, 3), (), 3, 0),
        ((), (0, 1), 1, 1),
        ((*range(1, 40), 50, 51), (*range(60, 99), 50, 51), 39, 0),
    ],
)
def test_schedules_are_paired_again_where_they_agree(
    recorded: tuple[int, ...], ours: tuple[int, ...], decisions: int, bookkeeping: int
) -> None:
    found = compare(working(*recorded), working(*ours)).grades
    assert (found["decisions"].steps, found["bookkeeping"].steps) == (decisions, bookkeeping)


def test_grades_in_the_answer_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def sim(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            command(["validate", "--schedules", str(tmp_path), *words], standalone_mode=True)
        return int(stop.value.code or 0), capsys.readouterr().out

    write(tmp_path)
    code, out = sim("--json")
    document = json.loads(out)
    assert (code, document["grades"]) == (0, {"decisions": 0, "times": 0, "memory": 0, "bookkeeping": 0})
    steps = copy.deepcopy(STEPS)
    steps[1]["queues"] = [[2, 0], [1, 0]]
    write(tmp_path, steps=steps)
    code, out = sim("--json")
    document = json.loads(out)
    assert (code, document["verdict"]["good"], document["twin"]["identical"]) == (1, False, False)
    assert document["grades"] == {"decisions": 0, "times": 0, "memory": 0, "bookkeeping": 1}
    grades = document["schedules"][0]["grades"]
    assert grades["bookkeeping"] == {"steps": 1, "first_difference": document["schedules"][0]["first_difference"]}
    assert grades["memory"] == {"steps": 0, "first_difference": None}
    code, out = sim()
    assert "hand, bookkeeping: step 1, key queues" in out
    assert "0 identical, 1 different, 0 unsupported" in out


def test_schedules_that_nobody_can_replay_are_not_called_good(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path, having({"method": "medusa", "num_speculative_tokens": 3}, "settings", "speculative"))
    with pytest.raises(SystemExit) as stop:
        command(["validate", "--schedules", str(tmp_path), "--json"], standalone_mode=True)
    document = json.loads(capsys.readouterr().out)
    assert (stop.value.code, document["verdict"]["good"]) == (1, False)
    assert "none was compared" in document["verdict"]["reason"]


def test_a_packed_record_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    plain = tmp_path / "hand.steps.jsonl"
    (tmp_path / "hand.steps.jsonl.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    assert replay(path).status == "identical"


def test_an_unknown_way_of_drafting_is_unsupported_not_wrong(tmp_path: Path) -> None:
    scenario = copy.deepcopy(SCENARIO)
    scenario["settings"]["speculative"] = {"method": "medusa", "num_speculative_tokens": 3}
    verdict = replay(write(tmp_path, scenario))
    assert (verdict.status, verdict.detail) == ("unsupported", "speculative decoding (medusa)")


@pytest.mark.parametrize(
    ("setting", "status"),
    [
        ({"watermark": 0.0, "max_num_active_seqs": None, "prefill_schedule_interval": 1}, "identical"),
        ({"watermark": 0.1}, "unsupported"),
        ({"prefill_schedule_interval": 4}, "unsupported"),
    ],
)
def test_a_setting_that_is_not_known_is_not_passed_over(tmp_path: Path, setting: dict[str, Any], status: str) -> None:
    scenario = copy.deepcopy(SCENARIO)
    scenario["settings"] |= setting
    verdict = replay(write(tmp_path, scenario))
    assert verdict.status == status
    assert verdict.detail == (
        "" if status == "identical" else f"setting {(one := next(iter(setting)))} = {setting[one]}"
    )


def test_settings_of_0_33_are_replayed_where_it_made_the_record(tmp_path: Path) -> None:
    scenario = {**copy.deepcopy(SCENARIO), "vllm": "0.33.0"}
    for settings, status in (
        ({"watermark": 0.1, "prefill_schedule_interval": 1}, "identical"),
        ({"watermark": 0.9}, "different"),
        ({"watermark": 0.0, "prefill_schedule_interval": 4}, "different"),
    ):
        scenario["settings"] |= settings
        assert replay(write(tmp_path, scenario)).status == status
    scenario["settings"]["max_num_partial_prefills"] = 2
    assert replay(write(tmp_path, scenario)).detail == "setting max_num_partial_prefills = 2"


def decided(scenario: Any, rules: Rules) -> Any:
    replayed = ScheduleReplay(scenario, rules)
    try:
        replayed.run()
    except InputError as error:
        return str(error)
    return replayed.steps


def test_a_version_that_is_not_known_is_unsupported(tmp_path: Path) -> None:
    verdict = replay(write(tmp_path, {**copy.deepcopy(SCENARIO), "vllm": "0.41.0"}))
    assert (verdict.status, verdict.detail) == ("unsupported", "vLLM 0.41.0 (known: 0.19, 0.33)")


@pytest.mark.shared
@pytest.mark.parametrize("rule", [rule.name for rule in fields(Rules)])
def test_each_rule_of_a_version_is_needed(shared: Path, rule: str) -> None:
    """With one rule as the other version has it, some schedule of the newer one is decided otherwise."""
    changed_rules = replace(OF_VLLM_0_33, **{rule: getattr(OF_VLLM_0_19, rule)})
    folder = shared / "measured/vllm_0.33_schedules"
    for path in sorted(folder.glob("[nt]*.scenario.json")):
        scenario = json.loads(path.read_text())
        if decided(scenario, changed_rules) != decided(scenario, OF_VLLM_0_33):
            return
    pytest.fail("no schedule tells the versions apart by it")


# ---- bad folders and files ------------------------------------------------------------------------------------------


def without(*path: str) -> Any:
    scenario = copy.deepcopy(SCENARIO)
    inner = scenario
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return scenario


def having(value: Any, *path: Any) -> Any:
    scenario = copy.deepcopy(SCENARIO)
    inner = scenario
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return scenario


@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_without_schedules_is_refused(tmp_path: Path, missing: bool) -> None:
    with pytest.raises(InputError, match="no recorded schedules"):
        replay_folder(tmp_path / "none" if missing else tmp_path)


@pytest.mark.parametrize(
    "scenario",
    [
        without("settings"),
        without("requests"),
        without("step_time"),
        without("settings", "block_size"),
        without("settings", "speculative"),
        without("step_time", "base_ns"),
        having([], "requests"),
        having("lifo", "settings", "policy"),
        having("many", "settings", "max_num_seqs"),
        having(0, "settings", "num_gpu_blocks"),
        having({"id": 0, "arrival_ns": 0, "prompt": 5}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": "five", "output": 1}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": 5, "output": 0}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": 500, "output": 2}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": 5, "output": 2, "priority": "high"}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": 5, "output": 2, "prefix": [[1]]}, "requests", 0),
        having({"id": 0, "arrival_ns": 0, "prompt": 5, "output": 2, "prefix": 3}, "requests", 0),
        having(0, "prefix_unit_tokens"),
        having("eagle", "settings", "speculative"),
        having({"method": "eagle"}, "settings", "speculative"),
        having({"method": "eagle", "num_speculative_tokens": 0}, "settings", "speculative"),
        having({"method": "eagle", "num_speculative_tokens": 2}, "settings", "speculative"),
        [],
        3,
        None,
    ],
    ids=[
        "no settings",
        "no requests",
        "no step time",
        "no block size",
        "no word on drafting",
        "no base time",
        "no request",
        "unknown policy",
        "text for a number",
        "no block",
        "no output",
        "text for a length",
        "nothing to generate",
        "a request that never fits",
        "text for a priority",
        "half a prefix",
        "a number for a prefix",
        "units of nothing",
        "text for drafting",
        "no number of drafts",
        "no drafts",
        "nothing said about drafts",
        "a list",
        "a number",
        "null",
    ],
)
def test_a_scenario_that_is_none_is_one_sentence(tmp_path: Path, scenario: Any) -> None:
    with pytest.raises(InputError, match=r"hand\.scenario\.json"):
        replay(write(tmp_path, scenario))


@pytest.mark.parametrize("text", ["", "{", '{"settings": ', "\x00\x01"])
def test_a_scenario_that_is_no_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = write(tmp_path)
    path.write_text(text)
    with pytest.raises(InputError, match=r"hand\.scenario\.json"):
        replay(path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "hand.steps.jsonl").unlink()
    with pytest.raises(InputError, match=r"hand\.steps\.jsonl"):
        replay(path)


@pytest.mark.parametrize("line", ["{", "nonsense", "3", "[]", "null", '{"i": NaN}', "[" * 100_000])
def test_a_bad_line_of_a_record_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path)
    record = tmp_path / "hand.steps.jsonl"
    first = record.read_text().splitlines()[0]
    record.write_text(f"{first}\n{line}\n")
    with pytest.raises(InputError, match=r"hand\.steps\.jsonl line 2"):
        replay(path)


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"not xz at all" + data])
def test_a_spoilt_packed_record_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path)
    plain = tmp_path / "hand.steps.jsonl"
    (tmp_path / "hand.steps.jsonl.xz").write_bytes(spoil(lzma.compress(plain.read_bytes())))
    plain.unlink()
    with pytest.raises(InputError, match=r"hand\.steps\.jsonl\.xz"):
        replay(path)


def test_a_record_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "hand.steps.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"hand\.steps\.jsonl"):
        replay(path)
