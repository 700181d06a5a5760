"""Whole random scenarios against the laws of `tests/fuzz`: the same few each time, more with LAW_EXAMPLES."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz.__main__ import dimensions, main
from fuzz.case import Case, Row, Steps
from fuzz.check import LAWS, broken, check, chosen
from fuzz.draw import ALLOCATORS, POLICIES, ROUTERS, draw
from fuzz.found import code, write_test
from fuzz.minimise import minimise, without

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "0"))
SCENARIOS = EXAMPLES or 54
FIRST = 0 if not EXAMPLES else 10_000
PARTS = 6


@pytest.mark.parametrize("part", range(PARTS))
def test_random_scenarios_keep_every_law(part: int) -> None:
    ran = 0
    for seed in range(FIRST + part, FIRST + SCENARIOS, PARTS):
        verdict = check(draw(seed), chosen(seed))
        assert not verdict.broken, f"seed {seed} (python -m tests.fuzz --seed {seed} --count 1): {verdict.broken}"
        ran += not verdict.refused
    assert ran >= SCENARIOS / PARTS / 5


def test_the_scenarios_of_the_suite_have_every_dimension() -> None:
    drawn: set[str] = set()
    for seed in range(200):
        drawn.update(dimensions(draw(seed)))
    keys = {name.split("=")[0] for name in drawn}
    assert {f"policy={name}" for name in POLICIES} <= drawn
    assert {f"allocator={name}" for name in ALLOCATORS} <= drawn
    assert {f"router={name}" for name in ROUTERS} <= drawn
    assert {"concurrency", "rate", "rate_scale", "workload.resample", "slo", "kv.swap_gib", "offload.kv_layers"} <= keys
    assert {"speculation.tree", "speculation.adaptive", "workload.beam_search", "cost.efficiency"} <= keys
    kinds = ("ties", "sessions", "branching sessions", "no thinking", "samples", "prefixes", "token ids", "priorities")
    assert {f"requests={name}" for name in (*kinds, "own acceptance", "no times", "one request")} <= drawn


def test_the_same_seed_draws_the_same_scenario() -> None:
    assert [draw(seed) for seed in range(30)] == [draw(seed) for seed in range(30)]
    assert len({code(draw(seed)) for seed in range(30)}) == 30


# ---- small and written down -----------------------------------------------------------------------------------------


def test_a_failing_scenario_becomes_small() -> None:
    rows = tuple(Row(0.0, 9, 9, after=at - 1 if at % 3 else -1) for at in range(12))
    case = Case({"policy": "sjf", "policy.by": "total", "kv.blocks": 100, "replicas": 3}, rows, Steps(1.0), 8)
    small = minimise(
        case, lambda one: one.settings.get("replicas", 1) > 1 and sum(r.output_tokens for r in one.rows) > 10
    )
    assert small.settings == {"replicas": 2}
    assert sum(row.output_tokens for row in small.rows) == 11
    assert len(small.rows) == 2
    assert small.cost == Steps()


def test_who_follows_a_request_that_goes_follows_the_one_before_it() -> None:
    rows = (Row(0.0, 1, 1), Row(0.0, 2, 1, after=0), Row(0.0, 3, 1), Row(0.0, 4, 1, after=1))
    assert [row.after for row in without(rows, {1})] == [-1, -1, 0]
    assert [row.after for row in without(rows, {0})] == [-1, -1, 0]


def test_a_case_is_written_as_a_test_that_fails_as_long_as_the_fault_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Row(0.0, 9, 4, prefix=(1, 4)), Row(0.25, 20, 3, samples=2, after=0, think_s=0.5))
    case = Case({"kv.blocks": 99, "cost.efficiency": {"launch_s": 1e-5}, "policy": "sjf"}, rows, Steps(0.5), 4)
    names: dict[str, object] = {}
    exec(f"from fuzz.case import Case, Row, Steps\ncase = {code(case)}", names)
    assert names["case"] == case
    path = write_test(case, "totals", 'it said "no"', 3, tmp_path)
    names = {}
    exec(path.read_text(), names)
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    assert callable(test)
    test()
    monkeypatch.setitem(LAWS, "totals", lambda run: iter(["always"]))
    assert broken(case, "totals") == "totals: always"
    with pytest.raises(AssertionError):
        test()


def test_the_command_says_what_it_ran_and_where_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--count", "3", "--laws", "totals", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "3 scenarios: " in told
    assert "broken: nothing" in told
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(LAWS, "totals", lambda run: iter(["always"]))
    assert main(["--count", "4", "--laws", "totals", "--most", "1", "--shrink", "0.2", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    assert f"written to {path}" in capsys.readouterr().out
