"""An installed engine's scheduler over a pipe: what it decides, and what is told when it dies, hangs or differs.

A small stand-in speaks for it everywhere; vLLM's own is asked where `sim engine` has made its environment.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from oracle_cases import AGREED, Made, compared, decided, drawn, limits
from oracle_cases import ours as ours_of
from patience import PATIENCE_S

from sim import api
from sim.cli.main import cli as command
from sim.engine.memory import KvPool, Layout
from sim.engine.protocol import ServingEngine
from sim.engine.rules import OF_VLLM_0_19
from sim.engine.wiring import wire
from sim.engines import environment
from sim.engines.drafts import VllmDraftingEngine
from sim.engines.environment import LINES, Installed
from sim.engines.pipe import SchedulerLostError, SchedulerProcess
from sim.engines.vllm import VllmEngine
from sim.report.validation.drift_page import apart
from sim.validate.schedules.grades import compare
from sim.validate.schedules.replay import allocator_of, policy_of
from sim.validate.schedules.verdicts import replay_folder
from traces.schema import InputError

STAND_IN = [sys.executable, str(Path(__file__).parents[1] / "kits" / "stand_in_scheduler.py")]
SETTINGS: dict[str, Any] = {
    "policy": "fcfs",
    "num_gpu_blocks": 41,
    "block_size": 4,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "max_model_len": 128,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "scheduler_reserve_full_isl": True,
    "long_prefill_token_threshold": 0,
    "async_scheduling": False,
    "speculative": None,
}
SCENARIO: dict[str, Any] = {
    "settings": SETTINGS,
    "prefix_unit_tokens": 4,
    "requests": [
        {"id": id, "arrival_ns": 0.004 * id, "prompt": 5 + 7 * (id % 3), "output": 1 + 3 * (id % 4)} for id in range(12)
    ],
}
SMALL: dict[str, Any] = {
    "workload.trace": "chatbot_arena.jsonl",
    "workload.limit": 12,
    "workload.rate": 20.0,
    "kv.blocks": 4000,
    "kv.allow_short": True,
    "engine.preset": "vllm-0.33",
    "allocator": "paged",
}


def process(*words: str, patience_s: float = PATIENCE_S) -> SchedulerProcess:
    return SchedulerProcess([*STAND_IN, *words], "vllm 0.33.0", patience_s=patience_s)


def theirs_of(asked: SchedulerProcess) -> Made:
    return lambda scenario, script: VllmEngine(asked, SETTINGS, limits(SETTINGS), Layout(KvPool(40, 4, 128)))


DRAFTS = {"method": "ngram", "num_speculative_tokens": 3}
DRAFTED: dict[str, Any] = {
    **SCENARIO,
    "settings": {**SETTINGS, "speculative": DRAFTS},
    "requests": [{**row, "accept": [2, 0, 3, 1], "draft": [3, 1, 0, 2, 3]} for row in SCENARIO["requests"]],
}


def engine(asked: SchedulerProcess) -> ServingEngine:
    return theirs_of(asked)(SCENARIO, None)


def ours(**changed: Any) -> Made:
    settings = {**SETTINGS, **changed}

    def made(*_: Any) -> ServingEngine:
        return wire(policy_of(settings, OF_VLLM_0_19), allocator_of(settings), limits(settings), spans=False)

    return made


def test_the_stand_in_decides_as_our_engine_does() -> None:
    theirs = decided(SCENARIO, theirs_of(process()))
    assert len(theirs) > 20
    assert compare(theirs, decided(SCENARIO, ours())).first_difference is None


def test_drafts_are_told_both_ways() -> None:
    """What is right is drawn here, what is proposed follows from it, and the other side decides by both."""

    def theirs(scenario: dict[str, Any], script: Any) -> ServingEngine:
        return VllmDraftingEngine(process(), scenario["settings"], limits(SETTINGS), Layout(KvPool(40, 4, 128)), script)

    steps = decided(DRAFTED, theirs)
    assert any(accepted for step in steps for _, _, accepted in step["spec"])
    assert compare(steps, decided(DRAFTED, ours_of("0.19"))).first_difference is None


def test_a_planted_deviation_is_found_at_its_first_step() -> None:
    theirs = decided(SCENARIO, theirs_of(process()))
    first = compare(theirs, decided(SCENARIO, ours(long_prefill_token_threshold=11))).first_difference
    assert first is not None
    at = next(step for step in theirs if any(tokens > 11 for _, tokens, _ in step["sched"]))
    assert first["step"] == at["i"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (("dies", "7"), r"vllm 0.33.0 died when asked to \w+ \(question 7\); its last words: out of memory, said"),
        (("babbles", "4"), r"vllm 0.33.0 answered b'Segmentation fault' when asked to \w+ \(question 4\)"),
        (("refuses", "4"), r"^vllm 0.33.0: KeyError: no such block$"),
    ],
)
def test_a_scheduler_that_is_lost_says_at_which_question(fault: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        decided(SCENARIO, theirs_of(process(*fault)))


def test_a_scheduler_that_hangs_is_ended() -> None:
    """The start of Python counts too, so the first answer is waited for with patience."""
    hanging = process("hangs", "2")
    asked = engine(hanging)
    hanging._patience_s = 0.2
    with pytest.raises(SchedulerLostError, match=r"gave no answer in 0.2 s when asked to schedule \(question 2\)"):
        asked.plan(0.0)
    assert hanging._process.poll() is not None


def test_what_cannot_be_started_is_said() -> None:
    with pytest.raises(SchedulerLostError, match="vllm 1 cannot be started: "):
        SchedulerProcess(["/nowhere/python"], "vllm 1")


# ---- by its name ----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An environment whose python runs the stand-in, whatever driver it is given."""
    monkeypatch.setenv(environment.HOME, str(tmp_path))

    def made(*fault: str) -> None:
        python = tmp_path / "vllm-0.33.0" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\nexec {' '.join([*STAND_IN, *fault])}\n")
        python.chmod(0o755)

    return made


def test_a_scenario_runs_it_with_the_tables_of_ours(installed: Callable[..., None]) -> None:
    installed()
    mine, theirs = api.run(**SMALL), api.run(**SMALL, **{"engine.name": "vllm==0.33.0"})
    assert mine.requests.equals(theirs.requests)
    assert theirs.summary["itl_s"] == pytest.approx(mine.summary["itl_s"], rel=1e-9)


def test_layers_that_do_not_keep_alike_are_refused(installed: Callable[..., None]) -> None:
    installed()
    with pytest.raises(InputError, match="driven with layers that all keep every token; those of gemma-3-1b do not"):
        api.run(**SMALL, model="gemma-3-1b", **{"engine.name": "vllm==0.33.0"})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"speculation.tree": "2,2,1,1", "speculation.drafter": "eagle"}, "a chain of one length: leave out .*tree"),
        ({"speculation.adaptive": True}, "a chain of one length: leave out speculation.adaptive"),
        (
            {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-3.2-1b"},
            "driven with the drafters ngram, eagle, medusa, and speculation.drafter is 'draft-model'",
        ),
        ({"policy.base": "sjf"}, "has no policy 'sjf'; it has chunked, priority"),
    ],
)
def test_drafts_that_it_is_not_driven_with(installed: Callable[..., None], settings: dict[str, Any], told: str) -> None:
    installed()
    with pytest.raises(InputError, match=told):
        api.run(**{**SMALL, "policy": "speculative", "engine.name": "vllm==0.33.0", **settings})


def drift(*words: str) -> tuple[int, str, str]:
    traffic = ("--trace", "chatbot_arena.jsonl", "--limit", "14", "--rate", "30", "--kv-blocks", "4000")
    settings = ("--set", "kv.allow_short=true", "--allocator", "paged", "--quiet")
    base = ("validate", "--against-engine", "vllm==0.33.0", *traffic, *settings)
    done = CliRunner().invoke(command, [*base, *words], standalone_mode=False)
    error = f"{done.exception}" if done.exception is not None and not isinstance(done.exception, SystemExit) else ""
    return done.exit_code, done.stdout, error


def test_the_command_says_identical(installed: Callable[..., None]) -> None:
    installed()
    code, out, _ = drift("--json")
    document = json.loads(out)
    assert (code, document["twin"]["identical"], document["rule"]) == (0, True, None)
    assert document["verdict"]["reason"] == f"identical to vllm==0.33.0 for all {document['twin']['steps']:,} steps"
    assert document["latencies"]["ttft_s"]["p99"]["off"] == 0
    assert document["engine"]["steps_per_s"] > 0
    code, out, _ = drift()
    assert "IDENTICAL: identical to vllm==0.33.0" in out


def test_the_command_names_the_first_difference_and_what_it_does(installed: Callable[..., None]) -> None:
    """The stand-in knows no threshold, so a threshold of ours parts the two."""
    installed()
    code, out, _ = drift("--json", "--set", "policy.long_prefill_token_threshold=60")
    document = json.loads(out)
    assert (code, document["twin"]["identical"]) == (1, False)
    first = document["twin"]["first_difference"]
    assert first["key"] in ("tokens", "sched")
    assert document["latencies"]["ttft_s"]["p99"]["off"] > 0
    _, out, _ = drift("--set", "policy.long_prefill_token_threshold=60")
    assert f"parts from vllm==0.33.0 at step {first['step']}" in " ".join(out.split())
    assert "No single rule that is known explains it." in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--policy", "sjf"), "has no policy 'sjf'"),
        (("--replicas", "2"), "drift is of one scheduler; leave out replicas"),
        (("--within", "5"), "--against-engine compares decisions, without bounds: leave out --within"),
        (("--front-end", "vllm"), "with no front end before them: leave out front_end.name"),
        (("--set", "front_end.request_s=0.1"), "with no front end before them: leave out front_end.request_s"),
        (("--out", "x", "--record", "x"), "--out and --record are both x; give each a folder of its own"),
        (("--set", "allocator.name=windowed"), "has no allocator 'windowed'"),
        (("--recorded", "x"), "--recorded and --against-engine exclude one another"),
    ],
)
def test_mistakes_of_the_command(installed: Callable[..., None], words: tuple[str, ...], told: str) -> None:
    installed()
    assert told in drift(*words)[2]


def test_it_dies_in_the_middle_of_a_run(installed: Callable[..., None], tmp_path: Path) -> None:
    """What was compared so far is told, and no part of a record is kept."""
    installed("dies", "19")
    told = drift("--record", str(tmp_path / "record"))[2]
    assert re.search(
        r"died when asked to \w+ \(question 19\); .* of the 8 steps until then, ours is identical in them$", told
    )
    assert not (tmp_path / "record").exists()


def test_a_schedule_is_kept_and_read_back(installed: Callable[..., None], tmp_path: Path) -> None:
    installed()
    folder = tmp_path / "record"
    for _ in range(2):  # a second one takes the place of the first
        code, out, _ = drift("--json", "--record", str(folder))
        assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["schedule.scenario.json", "schedule.steps.jsonl.xz"]
    (verdict,) = replay_folder(folder)
    assert (verdict.status, verdict.detail) == ("identical", "")
    assert verdict.steps >= json.loads(out)["twin"]["steps"]
    # Where ours decides otherwise than what was kept, it is found.
    path = folder / "schedule.scenario.json"
    scenario = json.loads(path.read_text())
    scenario["settings"]["long_prefill_token_threshold"] = 60
    path.write_text(json.dumps(scenario))
    assert replay_folder(folder)[0].status == "different"


@pytest.mark.parametrize("name", ["mine.txt", "schedule.scenario.json", "schedule.steps.jsonl.xz"])
def test_a_record_goes_to_no_folder_of_something_else(
    installed: Callable[..., None], tmp_path: Path, name: str
) -> None:
    installed()
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / name).write_text("{}")
    assert f"holds {name}, which --record has not written" in drift("--record", str(tmp_path / "record"))[2]
    assert [path.name for path in (tmp_path / "record").iterdir()] == [name]


def test_a_record_needs_an_engine(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["validate", "--record", str(tmp_path)], standalone_mode=False)
    assert "--record keeps the schedule of an engine named by --against-engine" in f"{done.exception}"


def test_the_page_shows_where_the_two_part(installed: Callable[..., None], tmp_path: Path) -> None:
    installed()
    code, out, _ = drift("--json", "--out", str(tmp_path / "out"), "--set", "policy.long_prefill_token_threshold=60")
    document = json.loads(out)
    page = (tmp_path / "out" / "validate.html").read_text()
    first = document["twin"]["first_difference"]
    assert (code, json.loads((tmp_path / "out" / "validate.json").read_text())["twin"]) == (1, document["twin"])
    assert f"parts from vllm==0.33.0 at step {first['step']:,}" in page
    assert "No single rule that is known explains it." in page
    assert f"{first['step']:,} *" in page  # the step itself stands there, with both sides
    assert "Time to first token" in page


def test_values_are_told_by_what_is_not_alike() -> None:
    assert apart([[0, 1, 5], [1, 8, 0]], [[0, 1, 5], [1, 4, 0]]) == ("[1, 8, 0], and 1 alike", "[1, 4, 0], and 1 alike")
    assert apart([1, 2], [2, 1]) == ("[1, 2]", "[2, 1]")
    assert apart([1], []) == ("1", "nothing")
    assert apart([3], [3]) == ("1 alike", "1 alike")
    assert apart(7, None) == ("7", "null")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vllm==0.41.0", "engine.name is vllm==0.41.0; those that can be driven are vllm==0.19.x, vllm==0.33.x"),
        ("sglang==0.5", "those that can be driven are vllm==0.19.x, vllm==0.33.x"),
        ("vllm==0.33.7", r"vllm==0.33.7 has no environment here; `sim engine vllm==0.33.7` makes one in "),
    ],
)
def test_an_engine_that_is_not_there(installed: Callable[..., None], name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        api.run(**SMALL, **{"engine.name": name})


def test_an_environment_that_cannot_be_made_leaves_nothing(
    installed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "lib/python3/site-packages").mkdir(parents=True)
        (folder / "bin/python").write_text("#!/bin/sh\necho No matching distribution >&2\nexit 1\n")
        (folder / "bin/python").chmod(0o755)

    monkeypatch.setattr(environment.venv, "create", nothing)
    said: list[str] = []
    with pytest.raises(InputError, match=r"pip install .* failed: No matching distribution"):
        Installed.of("vllm==0.33.9").make(said.append)
    assert [path.name for path in tmp_path.iterdir()] == []
    assert said[0].startswith("making ")


@pytest.mark.parametrize(("seed", "steps"), [(714, 240), (846, 430)])
def test_what_a_preemption_dropped_is_a_prompt_to_its_last_token(seed: int, steps: int) -> None:
    """Scenarios whose intervals part otherwise; the numbers of steps are those that vLLM 0.33.0 took."""
    scenario = drawn(seed, "0.33")
    assert len(decided(scenario, ours_of("0.33"))) == steps


@pytest.mark.parametrize(
    ("version", "seed", "steps", "tokens"),
    [
        ("0.33", 3, 133, 1569),  # who runs without a share pads nobody
        ("0.33", 8, 61, 238),  # nor does who was admitted in the same step
        ("0.33", 10, 150, 3422),
        ("0.33", 22, 205, 2373),  # right drafts are found at once
        ("0.33", 25, 52, 329),
        ("0.33", 75, 108, 859),
        ("0.19", 3, 210, 2259),
        ("0.19", 8, 176, 1336),
    ],
)
def test_drafts_as_vllm_has_them(version: str, seed: int, steps: int, tokens: int) -> None:
    """The numbers are of what vLLM's own scheduler decided."""
    scenario = drawn(seed, version, "drafts")
    mine = decided(scenario, ours_of(version))
    assert (len(mine), sum(step["tokens"] for step in mine)) == (steps, tokens)


# ---- vLLM's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGREED)
@pytest.mark.parametrize("line", LINES)
def test_vllms_own_scheduler_decides_as_ours(line: str, kind: str) -> None:
    """Twenty scenarios; `python -m tests.oracle NAME` draws as many as are asked for (docs/validate.md)."""
    found = Installed.of(f"{line}.0")
    try:
        asked = SchedulerProcess(found.command, str(found), patience_s=PATIENCE_S)
    except InputError as error:
        pytest.skip(str(error))
    for seed in range(1000, 1020):
        comparison, steps = compared(seed, line.partition("==")[2], asked, kind)
        assert comparison.first_difference is None, (seed, comparison.first_difference)
        assert steps
