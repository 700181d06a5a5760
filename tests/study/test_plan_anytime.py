"""A plan that is cut short: by its budget, by Ctrl-C, by a kill; what it keeps, and what it refuses at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patience import PATIENCE_S

from sim import api
from sim.cli.main import cli
from sim.cli.plan import parse_time
from sim.report.plan.page import render_plan
from sim.report.plan.sentences import answer, gpus_words
from sim.study.plan import choose, errors
from sim.study.plan.glance import Glance
from sim.study.plan.journal import PlanJournal, working_file
from sim.study.workers.crew import Crew, OverError
from traces.schema import InputError

SLO = "ttft_p90=1,tpot_p90=0.06"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(50, 1500, 400), rng.integers(1, 30, 400)
    rows = [f"{at},{one},{other}" for at, (one, other) in enumerate(zip(prompts, outputs, strict=True))]
    path = tmp_path_factory.mktemp("traces") / "short.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return str(path)


def question(trace: str, **more: Any) -> dict[str, Any]:
    return {
        "trace": trace, "slo": SLO, "rate": 60.0, "gpu": ["h100", "h200"], "requests": 200, "workers": 1, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(trace: str) -> dict[str, Any]:
    return api.plan(**question(trace))


def without_runs(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "simulations"}


class Cut:
    """Crews that are over after so many simulations, or are interrupted then."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        self.left, self.error = after, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        crew: Crew[Any, Any] = Crew(*args, **kwargs)
        inner, outer = crew._by_each, self

        def by_each(items: Any) -> Any:
            for pair in inner(items):
                if not outer.left:
                    raise outer.error
                outer.left -= 1
                yield pair

        crew._by_each = by_each  # type: ignore[method-assign]
        return crew


@pytest.mark.parametrize("error", [OverError, KeyboardInterrupt])
def test_cut_anywhere_it_answers_and_goes_on_to_the_same(
    trace: str, whole: dict[str, Any], error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "plan.jsonl"
    confirmed = False
    for after in (0, 1, 3, 4):
        monkeypatch.setattr(choose, "Crew", Cut(after, error))
        part = api.plan(**question(trace), journal=journal)
        if part["finished"]:
            break
        assert part["ended_by"] == ("budget" if error is OverError else "interrupt")
        assert part["best"] is not None
        assert part["best"]["confirmed"] >= confirmed
        confirmed = part["best"]["confirmed"]
        assert "before all was done" in answer(part)
        assert part["unfinished"] or confirmed
        assert part["best"]["name"] in render_plan(part)
        assert json.loads(json.dumps(part, allow_nan=False)) == part
        kept = journal.read_bytes() if journal.exists() else b""
        journal.write_bytes(kept + b'{"key": "cut sh')  # as a kill within a write would leave it
    monkeypatch.setattr(choose, "Crew", Crew)
    last = api.plan(**question(trace), journal=journal)
    assert without_runs(last) == without_runs(whole)
    again = api.plan(**question(trace), journal=journal)
    assert again["simulations"] == 0
    assert without_runs(again) == without_runs(whole)
    other = api.plan(**question(trace, seed=1), journal=journal)
    assert other["simulations"] > 0, "another seed has other replications"


def test_a_budget_ends_it_with_the_bounds_at_least(trace: str) -> None:
    part = api.plan(**question(trace, gpu="h100"), budget_s=1.5)
    assert part["best"]["gpus"]["low"] >= 1
    if not part["finished"]:
        assert part["ended_by"] == "budget"
    with pytest.raises(InputError, match=r"too small for even the bounds of 2 candidates"):
        api.plan(**question(trace), budget_s=1e-9)
    with pytest.raises(InputError, match="give a --rate"):
        api.plan(trace=trace, slo=SLO, budget_s=5)


def test_a_killed_command_goes_on_from_what_it_had(trace: str, whole: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "plan"
    command = [
        sys.executable, "-c", "from sim.cli.main import main; main()", "plan", "--trace", trace, "--slo", SLO,
        "--rate", "60", "--gpus", "h100,h200", "--requests", "200", "--workers", "1", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ})
    until = time.monotonic() + 120
    while time.monotonic() < until and not (out / "plan.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S)
    assert finished.returncode == 0, finished.stderr
    document = json.loads((out / "plan.json").read_text())
    for key in ("best", "candidates", "capacity"):
        assert document[key] == whole[key]
    assert b"At best, from the costs of steps alone" in finished.stderr
    assert (out / "report.html").exists()


def test_all_gpus_and_any_tp_are_spelled_out(trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "Crew", Cut(0, OverError))
    told: list[str] = []
    part = api.plan(**question(trace, gpu="all", tp="auto"), told=told.append)
    names = [row["name"] for row in part["candidates"]]
    assert "h100, tp 1" in names
    assert "mi300x, tp 8" in names
    left_out = {row["gpu"] for row in part["candidates"] if row["status"] == "cannot run"}
    assert left_out.isdisjoint(row["gpu"] for row in part["candidates"] if row["status"] != "cannot run")
    assert any(row["status"] == "no price" for row in part["candidates"])
    assert part["best"]["gpus"]["likely"] is None
    assert part["best"]["replicas"] >= 1
    assert "at least" in answer(part)
    assert any("up to" in line for line in told)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--gpus", "h100,h20"), "the nearest is h200"),
        (("--gpus", "h100", "--budget", "soon"), "'soon' is no time"),
        (("--gpus", "h100", "--budget", "-3s"), "must be above 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_simulated(trace: str, more: tuple[str, ...], said: str) -> None:
    asked = ["plan", "--trace", trace, "--slo", SLO, "--rate", "9", "--workers", "1", "--quiet", *more]
    outcome = CliRunner().invoke(cli, asked)
    assert isinstance(outcome.exception, InputError)
    assert said in str(outcome.exception)


def test_a_folder_that_cannot_be_written_is_found_first(
    trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(api, "plan", lambda *args, **more: pytest.fail("it began"))
    asked = ["plan", "--trace", trace, "--slo", SLO, "--rate", "9", "--out", str(tmp_path / "file" / "plan")]
    assert isinstance(CliRunner().invoke(cli, asked).exception, InputError)


def test_where_nothing_will_do_the_nearest_is_named(trace: str) -> None:
    few = api.plan(**question(trace, rate=4000.0), most_gpus=2)
    assert few["best"] is None
    assert few["nearest"]["name"] in ("h100", "h200")
    assert "nearest is" in few["reason"]
    never = api.plan(**question(trace, slo="tpot_p90=0.001"))
    assert never["best"] is None
    assert never["nearest"]["metric"] == "tpot_p90"
    assert never["nearest"]["by"] > 0
    assert "even alone" in never["reason"]
    assert {row["status"] for row in never["candidates"]} == {"misses the SLO"}


def test_times_may_be_written_with_units() -> None:
    assert [parse_time("--budget", text) for text in ("60s", "5min", "120", "1h", "0.5m")] == [60, 300, 120, 3600, 30]


def test_the_journal_refuses_what_is_damaged_and_keeps_to_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.jsonl"
    journal = PlanJournal(path)
    glance = Glance("", (0.1, -0.2), False, {"ttft_p99": None}, {"ttft_s": {"p50": 1.0}}, 0.5, {"bill": {"gpus": 1}})
    journal.add("a", glance)
    journal.add("b", Glance("ttft_p99"))
    journal.close()
    again = PlanJournal(path)
    assert again.get("a", whole=True) == glance
    assert again.get("b", whole=False) == Glance("ttft_p99")
    assert again.get("b", whole=True) is None
    again.close()
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(InputError, match="line 1 is damaged"):
        PlanJournal(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(InputError, match="cannot write"):
        PlanJournal(link)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert working_file("0123456789abcdefgh").parent.stat().st_mode & 0o077 == 0
    working_file("x").parent.chmod(0o755)
    with pytest.raises(InputError, match="of yours alone"):
        working_file("x")


def test_ranges_read_as_people_say_them() -> None:
    def words(low: int, likely: int | None, high: int | None) -> str:
        return gpus_words({"gpus": {"low": low, "likely": likely, "high": high}})

    assert words(7, 8, 9) == "7 to 9, most likely 8"
    assert words(8, 8, 8) == "8"
    assert words(6, None, None) == "at least 6"
    assert gpus_words({"gpus": 4}) == "4"


def test_a_price_that_was_given_is_not_off() -> None:
    assert errors.price("price.usd_per_gpu_hour").share == 0
    assert errors.price("a list").share == errors.PRICE.share > 0


def test_a_load_in_stages_is_planned_for_its_peak(trace: str, whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "day.toml"
    stages = "".join(
        f"[[workload.stages]]\nrate = {rate}\nduration_s = {seconds}\n"
        for rate, seconds in ((10.0, 7200), (60.0, 3600))
    )
    file.write_text(f"[workload]\ntrace = {trace!r}\n{stages}")
    asked = question(trace)
    del asked["rate"], asked["trace"]
    found = api.plan(file, **asked)
    assert found["rate"] == 60.0
    assert found["best"] == whole["best"]
    curve, most = found["load_curve"], found["best"]["gpu_count"]
    low, peak = (row["gpus"] for row in curve["stages"])
    assert low <= peak == most
    assert low / found["best"]["tp"] * found["best"]["range_per_replica"][0] >= 10.0
    assert curve["gpu_hours"] == {"peak": 3.0 * most, "followed": pytest.approx(2.0 * low + most)}
    assert curve["usd"]["followed"] <= curve["usd"]["peak"] == pytest.approx(3.0 * found["best"]["usd_per_hour"])
    assert "GPU-hours" in render_plan(found)
