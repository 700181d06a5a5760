"""Claims of the field: every file is sound, every ratio comes from its runs, and a changed setting changes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_kit import refused

from sim import api, scenario
from sim.cli.main import cli
from sim.report.claims.words import as_document, figure, ours
from sim.study import claims
from sim.study.claims import ABSENT, HOLDS, LESS, MORE, NOT, ClaimRun, FieldClaim, Situation
from traces.schema import InputError

QUICK = Situation(
    text="tiny",
    traffic={"count": 4, "rate": 1.0, "prompt": "fixed:64", "output": "fixed:16"},
    settings={"model": "llama-3.2-1b", "gpu": "h100", "concurrency": 1},
    runs=(ClaimRun("eager", {"engine.cuda_graphs": False}), ClaimRun("graph", {})),
)


def quick(**changes: object) -> FieldClaim:
    facts = {
        "name": "quick", "title": "t", "published": "p", "source": "s", "why": "w", "kind": "times less",
        "measure": "tpot_s.mean", "measured": "m", "low": 1.3, "high": 4.0, "situations": (QUICK,),
    }  # fmt: skip
    return FieldClaim(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", claims.names())
def test_every_file_is_a_claim_whose_runs_are_scenarios(name: str) -> None:
    claim = claims.load(name)
    assert claim.title
    assert claim.published
    assert claim.source
    assert claim.low <= claim.high
    for situation in claim.situations:
        assert situation.runs
        for run in situation.runs:
            loaded = scenario.load(None, {**situation.settings, **run.settings})
            scenario.refuse_unread([loaded])
            assert bool(loaded.workload.trace) != bool(situation.traffic)
            assert claims.traffic_of(situation, loaded) is not None or loaded.workload.trace


def test_a_ratio_is_that_of_two_runs_of_the_api() -> None:
    [row] = claims.tried([quick()], workers=1)
    by_hand = []
    for run in QUICK.runs:
        loaded = scenario.load(None, {**QUICK.settings, **run.settings})
        result = api.simulate(loaded, trace=claims.traffic_of(QUICK, loaded))
        by_hand.append(result.summary["tpot_s"]["mean"])
    assert row.figures == tuple(by_hand)
    assert row.value == by_hand[0] / by_hand[1]
    assert row.verdict == HOLDS


def test_another_setting_moves_the_ratio_and_the_verdict() -> None:
    [row] = claims.tried([quick(low=2.0)], workers=1)
    [larger] = claims.tried([quick(low=2.0)], {"model": "llama-3.1-70b", "tp": 4}, workers=1)
    assert row.value is not None
    assert larger.value is not None
    assert larger.value < 0.8 * row.value
    assert (row.verdict, larger.verdict) == (HOLDS, LESS)


def test_rows_come_in_order_whatever_finishes_first() -> None:
    slow = dataclasses.replace(QUICK, traffic={**QUICK.traffic, "count": 400})
    listed = [
        quick(name="slow", situations=(slow,)),
        quick(name="fast"),
        quick(name="none", situations=(), missing="x"),
    ]
    assert [row.name for row in claims.tried(listed, workers=2)] == ["slow", "fast", "none"]


def test_a_run_that_cannot_run_is_told_with_its_reason() -> None:
    [row] = claims.tried([quick()], {"gpu": "t4", "model": "llama-3.1-70b"}, workers=1)
    assert row.value is None
    assert row.verdict == NOT
    assert all("does not fit" in reason for reason in row.reasons)


@pytest.mark.parametrize(
    ("value", "verdict"), [(None, NOT), (0.8, NOT), (1.04, NOT), (1.2, LESS), (1.3, HOLDS), (4.0, HOLDS), (4.1, MORE)]
)
def test_verdicts(value: float | None, verdict: str) -> None:
    assert claims.verdict(quick(), value) == verdict


def test_values_by_kind() -> None:
    assert claims.value_of(quick(kind="times more"), (2.0, 6.0)) == 3.0
    assert claims.value_of(quick(kind="times less"), (6.0, 2.0)) == 3.0
    assert claims.value_of(quick(kind="share"), (0.4,)) == 0.4
    assert claims.value_of(quick(kind="runs"), (None, 5.0)) == 1.0
    assert claims.value_of(quick(kind="runs"), (3.0, 5.0)) == 0.0
    assert claims.value_of(quick(), (None, 5.0)) is None
    assert claims.value_of(quick(kind="times less"), (6.0, 0.0)) is None


def test_figures_in_their_units() -> None:
    assert figure(0.5, "share") == "50.0 %"
    assert figure(0.0064, "s") == "6.40 ms"
    assert figure(452368.0, "tokens") == "452,368 tokens"
    assert figure(None, "s") == "cannot run"


def test_what_cannot_be_run_yet_says_so() -> None:
    [row] = claims.tried([claims.load("flash-attention")])
    assert row.verdict == ABSENT
    assert ours(row) == "-"
    assert as_document([row], {})["claims"][0]["missing"]


def test_pools_of_their_own_gain_under_tight_limits_and_lose_where_prompts_are_short_of_gpus() -> None:
    tight, chunks, loose = claims.tried([claims.load("disaggregation")])
    assert tight.verdict == HOLDS
    assert chunks.verdict == LESS
    assert loose.verdict == NOT
    assert loose.value is not None
    assert loose.value < 0.8


def test_a_window_bounds_what_is_held() -> None:
    """30,500 tokens beside 4,096 and a step's 512: 6.6 times, whatever allocators come to know of windows."""
    [row] = claims.tried([claims.load("sliding-window")])
    assert row.value == pytest.approx(30_500 / (4096 + 512), rel=0.02)
    assert row.verdict == HOLDS


def test_unknown_claims_and_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown claim 'kv-fp9'; did you mean kv-fp8\?; known are .*cuda-graphs"):
        claims.load("kv-fp9")
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    whole = 'title = "t"\npublished = "p"\nsource = "s"\nwhy = "w"\n'
    for text, words in {
        whole + 'colour = "red"\nmissing = "x"\n': "unknown key 'colour'; known are name, title",
        whole: "has situations, or says what is missing",
        'title = "t"\nmissing = "x"\n': "missing 3 required",
        whole + 'kind = "more"\nmissing = "x"\n': "kind is 'more'; known are times more",
    }.items():
        (tmp_path / "one.toml").write_text(text)
        with pytest.raises(InputError, match=words):
            claims.load("one")


def test_the_command_writes_page_and_document(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["claims", "kv-fp8", "flash-attention", "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "ours: 2.0 times, holds: bf16" in done.output
    assert "ours: not available" in done.output
    document = json.loads((out / "claims.json").read_text())
    [run, other] = document["claims"][0]["runs"]
    assert other["figure"] / run["figure"] == document["claims"][0]["value"]
    assert other["settings"]["kv.dtype"] == "fp8"
    page = (out / "claims.html").read_text()
    assert "KV cache in 8 bits" in page
    assert "sim claims kv-fp8" in page
    again = CliRunner().invoke(cli, ["claims", "kv-fp8", "--out", str(out), "--quiet", "--set", "gpu=h200", "--json"])
    assert json.loads(again.stdout)["settings"] == {"gpu": "h200"}


def test_bad_settings_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown setting 'gpus'" in refused(capsys, "claims", "kv-fp8", "--set", "gpus=h100")
    (tmp_path / "claims.html").write_text("mine")
    assert "is there and is no file of a result" in refused(capsys, "claims", "kv-fp8", "--out", tmp_path)
