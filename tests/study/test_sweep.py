"""What a sweep is asked and what it answers: axes, lists, seeds, names, rows, and one sentence for every mistake."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import api, scenario
from sim.cli.main import main
from sim.results.stability import queue_warning
from sim.serving.workload import TraceReading
from sim.specs.workload import WorkloadSettings
from sim.study.identity import made_of
from sim.study.sweep import grid, sweep
from sim.study.sweep.grid import Grid
from sim.study.sweep.question import Question
from traces.schema import InputError

ROWS = 40
TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{0.1 * at:.1f},{100 + 37 * at % 300},{5 + 11 * at % 50}\n" for at in range(ROWS)
)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.csv").write_text(TRACE)
    return "small.csv"


def sim(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sim sweep WORDS`."""
    sys.argv = ["sim", "sweep", "--workers", "1", *map(str, words)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tp=2", 2),
        ("policy=chunked, sjf", ["chunked", "sjf"]),
        ("rate=5,10,20.5", [5, 10, 20.5]),
        ("rate=5:50:15", [5, 20, 35, 50]),
        ("rate=0.1:0.5:0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("rate=10:50:20", [10, 30, 50]),  # which TOML takes for a time of day
        ("rate=9:5:-2", [9, 7, 5]),
        ("rate=1,5:9:2,100", [1, 5, 7, 9, 100]),
        ("policy=mine:Policy,a:b:c", ["mine:Policy", "a:b:c"]),
        ("engine.chunked_prefill=true,false", [True, False]),
        ("slo=ttft=1,tpot=0.1", "ttft=1,tpot=0.1"),
        ('slo=["ttft=1","ttft=2,tpot=0.1"]', ["ttft=1", "ttft=2,tpot=0.1"]),
        ("speculation.acceptance='0.8,0.6'", "0.8,0.6"),
        ("trace=a=b.csv", "a=b.csv"),
    ],
)
def test_values_read_as_they_are_meant(text: str, value: Any) -> None:
    assert grid.parse_values(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize("text", ["rate", "=5", "rate=5,,6", "rate=5:1:1", "rate=1:5:0", "rate=0:1:1e-12"])
def test_values_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        grid.parse_values(text)


@given(
    first=st.integers(-50, 50), steps=st.integers(0, 30), step=st.integers(1, 9), scale=st.sampled_from([1, 10, 1000])
)
def test_a_range_has_both_ends_and_even_steps(first: int, steps: int, step: int, scale: int) -> None:
    texts = [f"{value / scale:.3f}" if scale > 1 else str(value) for value in (first, first + steps * step, step)]
    found = grid.parse_values(f"rate={':'.join(texts)}")[1]
    assert found == [pytest.approx((first + place * step) / scale, abs=1e-12) for place in range(steps + 1)]
    assert all(type(one) is (int if scale == 1 else float) for one in found)


@given(sizes=st.lists(st.integers(1, 4), max_size=4), listed=st.integers(1, 3), seeds=st.integers(1, 3))
def test_points_are_every_combination_once(sizes: list[int], listed: int, seeds: int) -> None:
    axes = {f"axis{place}": tuple(range(size)) for place, size in enumerate(sizes)}
    asked = Grid(axes, tuple({"one": at} for at in range(listed)), tuple(range(seeds)))
    points = [asked.point(index) for index in range(len(asked))]
    assert len(points) == math.prod(sizes) * listed * seeds
    assert len({(asked.name(point), point.seed) for point in points}) == len(points)
    order = [(*(point.settings[key] for key in asked.keys), point.seed) for point in points]
    assert order == sorted(order)  # the list outermost, the seeds innermost


def test_names_are_those_of_a_comparison() -> None:
    """The same settings are called alike by `sim compare` and `sim sweep`."""
    text = {"policy.name": "sjf,chunked", "workload.rate": "5,10", "engine.max_num_seqs": "8,16"}
    _, asked = grid.of_settings({key: value.split(",") for key, value in text.items()})
    assert [asked.name(asked.point(index)) for index in range(len(asked))] == list(scenario.variants(text))


def test_rows_are_those_of_single_runs(trace: str) -> None:
    """Each row, against `api.run` of the same settings: every scalar of its summary and no other column."""
    table = api.sweep(trace=trace, policy=["chunked", "static"], rate=[5, 20.5], seeds=2, slo="ttft=0.05", workers=1)
    assert table["point"].tolist() == list(range(8))
    assert table["seed"].tolist() == [0, 1] * 4
    assert table["name"].tolist()[::2] == ["chunked 5", "chunked 20.5", "static 5", "static 20.5"]
    for row in table.to_dict("records"):
        one = api.run(
            trace=trace, policy=row["policy.name"], rate=row["workload.rate"], seed=row["seed"], slo="ttft=0.05"
        )
        leaves = dict(scalars(one.summary))
        for key in sweep.TIMINGS:
            del leaves[key]
        given = {"point", "seed", "name", "policy.name", "workload.rate", "status", "reason", "stable"}
        assert set(row) == given | set(leaves)
        known = {key: value for key, value in leaves.items() if value is not None}
        assert {key: row[key] for key in known} == known
        assert all(pd.isna(row[key]) for key in set(leaves) - set(known))
        assert row["status"] == "ok"
        assert row["stable"] is (queue_warning(one.requests) is None)


def scalars(summary: dict[str, Any], prefix: str = "") -> Any:
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield prefix + key, value


def test_a_growing_queue_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{at * 0.02:.2f},2000,200\n" for at in range(300))
    Path("steady.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    table = api.sweep(trace="steady.csv", rate=[1, 50], workers=1, **{"engine.max_num_seqs": 4})
    assert table["stable"].tolist() == [True, False]


def test_a_point_that_fails_is_a_row(trace: str) -> None:
    table = api.sweep(trace=trace, policy=["chunked", "nope"], tp=[1, 3], rate=[-1, 10], out="out", workers=1)
    ok = (table["policy.name"] == "chunked") & (table["tp"] == 1) & (table["workload.rate"] == 10)
    assert (table["status"] == "ok").tolist() == ok.tolist()
    reasons = dict(zip(table["name"], table["reason"], strict=True))
    assert "rate is -1" in reasons["chunked 1 -1"]
    assert "nope" in reasons["nope 1 10"]
    assert "tp" in reasons["chunked 3 10"]
    assert table.loc[~ok, "stable"].isna().all()
    assert table.loc[~ok, "ttft_s.p99"].isna().all()
    written = pd.read_parquet("out/sweep.parquet")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert "nope" in Path("out/report.html").read_text()


def test_points_may_come_from_a_file(trace: str) -> None:
    Path("points.csv").write_text("rate,policy\n5,sjf\n,chunked\n20,\n")
    Path("points.toml").write_text(
        '[[point]]\nrate = 5\npolicy.name = "sjf"\n[[point]]\npolicy = "chunked"\n[[point]]\nworkload.rate = 20\n'
    )
    found = [api.sweep(trace=trace, points=name, tp=[1, 2], workers=1) for name in ("points.csv", "points.toml")]
    pd.testing.assert_frame_equal(*found)
    assert found[0]["name"].tolist() == ["5 sjf 1", "5 sjf 2", "- chunked 1", "- chunked 2", "20 - 1", "20 - 2"]
    assert found[0]["inputs.policy"].tolist() == ["sjf"] * 2 + ["chunked"] * 4
    assert found[0]["workload.rate"].isna().tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("points.csv", "rate,policy\n5\n", "line 2: 1 values under 2 keys"),
        ("points.csv", "rate,rate\n5,6\n", "line 1"),
        ("points.csv", "rate\n5\n5.0\n", "line 3: the same point as line 2"),
        ("points.csv", "rate\n", "no point"),
        ("points.csv", "kv.nope\n5\n", "unknown setting 'kv.nope'"),
        ("points.toml", "[[point]]\nrate = [1, 2]\n", "one value"),
        ("points.toml", "rate = 5\n", "expected [[point]] tables"),
        ("points.toml", "rate = \n", "is not TOML"),
        ("points.txt", "", "must end in .csv or .toml"),
        ("absent.csv", None, "does not exist"),
    ],
)
def test_bad_lists_are_refused(trace: str, name: str, text: str | None, told: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(InputError) as error:
        api.sweep(trace=trace, points=name, workers=1)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"kv.nope": [1, 2]}, "unknown setting 'kv.nope'; kv has blocks"),
        ({"rate": [5, 5.0]}, "workload.rate has 5 twice"),
        ({"rate": []}, "no values"),
        ({"rate": [5, None]}, "None"),
        ({"rate": [5, 6], "workload.rate": 7}, "workload.rate is given twice"),
        ({"rate": [5, 6], "points": [{"workload.rate": 7}]}, "workload.rate is given twice"),
        ({"seed": [1, 2]}, "--seeds"),
        ({"seeds": [1, 1]}, "1 twice"),
        ({"seeds": 0}, "0 seeds"),
        ({"seeds": [-1]}, "-1"),
        ({"executor": "live"}, "known: processes, ray, ray://host:port"),
        ({"device": ["cpu", "cuda"]}, "no axis of a sweep"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_what_no_sweep_can_be_is_refused(trace: str, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        api.sweep(trace=trace, **asked)
    assert told in str(error.value)


def test_a_live_scenario_is_refused(trace: str) -> None:
    plan = scenario.build({"trace": trace, "executor": "live"})
    with pytest.raises(InputError, match="only simulates"):
        api.sweep(plan, tp=[1, 2])


def test_millions_of_points_are_counted_and_not_made(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = sim(capsys, "--trace", trace, "--set", "rate=1:2000:1", "--set", "seed=1", "--seeds", "0:1999:1")
    assert code == 2
    assert "4,000,000 points" in err
    assert "--yes" in err
    plenty = Question.of(None, {"rate": list(range(1, 2001))}, seeds=2000, most_points=None)
    assert len(plenty.grid) == 4_000_000


def test_the_command_prints_best_and_failures(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = sim(capsys, "--trace", trace, "--policy", "chunked,nope", "--rate", "5,20", "--out", "out")
    assert code == 0
    assert "4 points: 2 ran, 2 failed" in out
    assert "TTFT p99" in out
    assert "chunked, rate 5" in out
    assert "unknown name 'nope'" in out
    assert "wrote sweep.parquet, report.html" in err
    assert {path.name for path in Path("out").iterdir()} == {
        "sweep.toml",
        "points.jsonl",
        "sweep.parquet",
        "report.html",
    }


def test_json_holds_the_rows(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = sim(capsys, "--trace", trace, "--policy", "chunked,nope", "--seeds", "3,5", "--json")
    found = json.loads(out)
    assert found["axes"] == {"policy.name": ["chunked", "nope"]}
    assert found["seeds"] == [3, 5]
    assert [row["name"] for row in found["points"]] == ["chunked", "chunked", "nope", "nope"]
    assert [row["status"] for row in found["points"]] == ["ok", "ok", "failed", "failed"]
    assert found["points"][0]["requests.completed"] == ROWS
    assert found["points"][3]["requests.completed"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--policy", "nope"], "nothing could be run: unknown name 'nope'"),
        (["--policy", "nope,nix"], "(and one other reason)"),
        (["--set", "rate=5,6", "--rate", "7"], "given twice"),
        (["--seeds", "some"], "--seeds 'some'"),
        (["--executor", "live"], "known: processes, ray, ray://host:port"),
        (["--executor", "ray://127.0.0.1:1"], "no Ray answers at ray://127.0.0.1:1: Connection refused"),
        (["--executor", "ray://nowhere"], "expected ray://host:port"),
        (["--set", "executor=live"], "only simulates"),
    ],
)
def test_mistakes_are_one_sentence(trace: str, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    if "ray:" in words[1]:
        pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    code, out, err = sim(capsys, "--trace", trace, *words)
    assert code == 2
    assert out == ""
    assert told in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@settings(max_examples=20)
@given(values=st.lists(st.one_of(st.none(), st.booleans()), min_size=1))
def test_columns_keep_their_type(values: list[bool | None]) -> None:
    """Booleans stay such beside missing ones; numbers are whole while none is missing."""
    grid_of = Grid({"axis": tuple(range(len(values)))})
    rows = {
        place: sweep.PointOutcome(None, True, {} if value is None else {"flag": value, "count": 3})
        for place, value in enumerate(values)
    }
    table = sweep.as_table(grid_of, rows)
    assert table["axis"].dtype == "int64"
    if any(value is not None for value in values):
        assert [None if pd.isna(one) else one for one in table["flag"]] == values
        assert table["count"].dtype == ("float64" if None in values else "int64")


def test_arrays_of_a_scenario_are_axes(trace: str) -> None:
    """As if they were given beside it; an option wins over them."""
    Path("s.toml").write_text(f'policy = ["chunked", "sjf"]\ntp = 2\n[workload]\ntrace = "{trace}"\nrate = [5, 9]\n')
    found = api.sweep("s.toml", workers=1)
    asked = api.sweep(trace=trace, tp=2, policy=["chunked", "sjf"], rate=[5, 9], workers=1)
    pd.testing.assert_frame_equal(found, asked)
    slower = api.sweep("s.toml", rate=1, workers=1)
    assert slower["name"].tolist() == ["chunked", "sjf"]
    assert slower["throughput.requests_per_s"].max() < found["throughput.requests_per_s"].min()


def test_a_load_of_0_is_told_as_not_set(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """0 requests a second means the trace's own times: it is no load, and no point of a plot lies there."""
    code, out, _ = sim(capsys, "--trace", trace, "--rate", "0,5", "--out", "out")
    assert code == 0
    assert "rate not set" in out
    assert "rate 0" not in out
    page = Path("out/report.html").read_text()
    assert "at rate not set" in page
    assert pd.read_parquet("out/sweep.parquet")["workload.rate"].tolist() == [0.0, 5.0]


def test_points_that_read_alike_are_told_so(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = sim(capsys, "--trace", trace, "--set", "engine.max_num_seqs=200,201")
    assert "Every measure reads the same in all of them." in out


def test_the_scenario_of_the_sweep_is_kept(trace: str) -> None:
    api.sweep(trace=trace, tp=[1, 2], out="out", workers=1, **{"engine.max_num_seqs": 7})
    asked = tomllib.loads(Path("out/sweep.toml").read_text())
    assert asked["axes"] == {"tp": [1, 2]}
    assert asked["base"]["engine"]["max_num_seqs"] == 7
    assert scenario.build(asked["base"]).workload.trace == trace


def test_points_share_a_trace_and_leave_it_alone(trace: str) -> None:
    """The one trace of a process is what it was after every policy, allocator and arrival process has had it."""
    made = made_of(["foretoken", f"workload.trace={trace}"])
    content = tuple(made[f"workload.trace={trace}"].items())
    simulate = sweep.Simulate({"workload": {"trace": trace}}, str(Path.cwd()), made)
    shared = sweep._trace(TraceReading.of(WorkloadSettings(trace=trace)), content)
    before = shared.requests.copy(deep=True)
    for at, policy in enumerate(["chunked", "static", "sjf", "continuous"]):
        for rate in (0.0, 9.0):
            outcome = simulate(grid.Point(at, 0, {"policy": policy, "rate": rate, "allocator": "prefix"}))
            assert outcome.reason is None
    assert sweep._trace(TraceReading.of(WorkloadSettings(trace=trace)), content) is shared
    pd.testing.assert_frame_equal(shared.requests, before)


def test_a_trace_that_changes_is_read_again(trace: str) -> None:
    assert api.sweep(trace=trace, tp=[1], workers=1)["requests.total"].tolist() == [ROWS]
    Path(trace).write_text(TRACE.replace("3.9,", "4.9,") + "5.0,10,10\n")
    assert api.sweep(trace=trace, tp=[1], workers=1)["requests.total"].tolist() == [ROWS + 1]


def test_a_worker_with_other_files_says_so_and_may_be_mended(trace: str, tmp_path: Path) -> None:
    base, point = {"workload": {"trace": trace}}, grid.Point(0, 0, {})
    name = f"workload.trace={trace}"
    good = made_of(["foretoken", name])
    for folder, made, told in (
        (str(tmp_path / "elsewhere"), good, "has no folder"),
        (str(tmp_path), {**good, name: {"small.csv": "0" * 64}}, "small.csv is not the same"),
        (str(tmp_path), {**good, name: {"absent.csv": "0" * 64}}, "absent.csv"),
        (str(tmp_path), {**good, "foretoken": {"foretoken": "0" * 64}}, "foretoken is not the same"),
    ):
        outcome = sweep.Simulate(base, folder, made)(point)
        assert told in str(outcome.reason)
        assert not outcome.final
    assert sweep.Simulate(base, str(tmp_path), good)(point).reason is None
