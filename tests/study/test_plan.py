"""`sim plan` end to end on small traces, and its parts: early stops, replications, clauses, candidates, bad input."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_kit import chromium, needs_chromium
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import api, scenario
from sim.cli.main import cli, main
from sim.cli.plan import parse_share
from sim.report.plan.page import render_plan
from sim.results import metrics
from sim.study.plan.choose import name_of
from sim.study.plan.observation import Clause, Gaps, Observation, Window, clauses_of, excesses, requests_needed, verdict
from sim.study.plan.plan import Ask
from sim.study.plan.replication import Replication, measure
from sim.study.plan.search import Trial
from sim.study.plan.stop import Stop
from sim.study.plan.trials import Hands, Simulated
from traces.schema import InputError

SLO = "ttft_p90=0.3,tpot_p90=0.03"
SLOW: dict[str, Any] = {
    "front_end.name": "custom", "front_end.request_s": 0.02, "front_end.step_s": 0.002, "front_end.output_s": 0.001,
    "front_end.latency_s": 0.05, "front_end.spread": 0.5,
}  # fmt: skip
"""A front end that most requests and outputs wait for."""
SMALL = ("--requests", "300", "--precision", "15%", "--workers", "1", "--quiet")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 requests of uneven lengths; their times are not used."""
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(50, 1500, 400), rng.integers(1, 30, 400)
    rows = [f"{at},{one},{other}" for at, (one, other) in enumerate(zip(prompts, outputs, strict=True))]
    path = tmp_path_factory.mktemp("traces") / "short.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def answer(trace: str) -> dict[str, Any]:
    return api.plan(trace=trace, slo=SLO, requests=300, precision=0.15, workers=1, curve=True)


def clauses(slo: str, attainment: float | None = None) -> tuple[Clause, ...]:
    return clauses_of(metrics.parse_slo(slo), attainment)


def plan_of(trace: str, **more: Any) -> scenario.Scenario:
    return scenario.build({}, {"trace": trace, **more})


def test_the_answer_is_complete_and_consistent(answer: dict[str, Any]) -> None:
    capacity = answer["capacity"]
    low, high = capacity["ci95"]
    assert 0 < low < capacity["requests_per_s"] < high
    assert capacity["narrow"]
    assert capacity["relative"] <= 0.15
    assert capacity["bound_by"] in ("ttft_p90", "tpot_p90", "stability")
    assert answer["best"]["gpu_count"] == 1
    assert answer["best"]["gpus"] == {"low": 1, "likely": 1, "high": 1}
    assert answer["best"]["usd_per_hour"] > 0
    met = [row["requests_per_s"] for row in answer["rates"] if row["met"]]
    missed = [row["requests_per_s"] for row in answer["rates"] if row["met"] is False]
    assert met
    assert missed
    assert max(met) <= high
    assert min(missed) >= low
    for row in answer["rates"]:
        assert row["stable"] or row["ttft_s"] is None or row["met"] is False
        assert (row["ttft_s"] is None) == (not row["stable"])
        assert 0 <= row["goodput"]["fraction"] <= 1
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    # A tenth of a grid of this resolution (100 rates, 10 replications each), the plots' rates; and the band's ends.
    assert answer["simulations"] < 100 + 20


def test_the_same_question_has_the_same_answer(trace: str, answer: dict[str, Any]) -> None:
    again = api.plan(trace=trace, slo=SLO, requests=300, precision=0.15, workers=1)
    assert again["capacity"] == answer["capacity"]
    assert again["best"] == answer["best"]


def test_a_confirmed_rate_holds_in_a_plain_run(trace: str, answer: dict[str, Any]) -> None:
    """`sim run` with the same settings, at half of the capacity, meets the SLO."""
    rate = answer["capacity"]["requests_per_s"] / 2
    told = {"workload.arrivals": "poisson", "workload.resample": 300}
    found = api.run(trace=trace, slo=SLO, rate=rate, **told)
    assert all(one.met for one in metrics.verdicts(found.summary))


@settings(max_examples=25)
@given(
    rate=st.floats(2.0, 80.0),
    seed=st.integers(0, 5),
    slo=st.sampled_from(
        [
            "ttft_p90={0}", "ttft={0}", "ttft_mean={0}", "tpot_p50={1}", "tpot={1}", "tpot_mean={1}", "e2e_p95={2}",
            "e2e_mean={2}", "queue_p90={0},tpot_p90={1}", "itl_p99={1}",
        ]
    ),
    factor=st.sampled_from([0.2, 0.5, 0.9, 1.0, 1.2, 3.0]),
    attainment=st.sampled_from([None, None, 0.5, 0.9]),
    policy=st.sampled_from(["chunked", "static"]),
    replicas=st.sampled_from([1, 2]),
    front_end=st.sampled_from([{}, {"front_end.name": "off"}, SLOW]),
)  # fmt: skip
def test_an_early_stop_never_changes_the_verdict(
    trace: str, rate: float, seed: int, slo: str, factor: float, attainment: float | None, policy: str, replicas: int,
    front_end: dict[str, Any],
) -> None:  # fmt: skip
    asked = clauses(slo.format(0.1 * factor, 0.012 * factor, 1.0 * factor), attainment)
    plan = plan_of(trace, seed=seed, policy=policy, replicas=replicas, **front_end)
    window = Window(25, 10)
    whole = measure(Replication(plan, rate, 0, 120, asked))
    missed = verdict(excesses(whole, asked, window), asked)
    stopped = measure(Replication(plan, rate, 0, 120, asked, window))
    if stopped.stopped:
        index = [*(one.name for one in asked), "stability"].index(stopped.stopped)
        assert excesses(whole, asked, window)[index] > 0, "the run was ended for a clause that it meets"
        assert missed
    else:
        assert verdict(excesses(stopped, asked, window), asked) == missed
        np.testing.assert_array_equal(stopped.values["ttft_s"], whole.values["ttft_s"])


@pytest.mark.parametrize("metric", ["ttft", "tpot", "e2e", "queue"])
@pytest.mark.parametrize("statistic", ["p90", "mean", "max"])
@pytest.mark.parametrize("front_end", [{"front_end.name": "off"}, {}], ids=["engine", "client"])
def test_a_run_that_just_meets_its_slo_is_not_ended(
    trace: str, metric: str, statistic: str, front_end: dict[str, Any]
) -> None:
    """The limit is the value itself, or the one that leaves exactly as many requests above it as may be."""
    plan, rate, window = plan_of(trace, policy="static", **front_end), 10.0, Window(30, 10)
    whole = measure(Replication(plan, rate, 0, 160, clauses("ttft=1")))
    values = whole.values[f"{metric}_s"][window.slice(160)]
    values = np.sort(values[~np.isnan(values)])[::-1]
    allowed = int(0.1 * len(values))
    limit_s = {"p90": values[allowed], "mean": values.mean() * (1 + 1e-12), "max": values[0]}[statistic]
    just = clauses(f"{metric}_{statistic}={float(limit_s)!r}")
    missed = measure(Replication(plan, rate, 0, 160, just, window)).stopped
    assert missed in ("", "stability")
    over = clauses(f"{metric}_{statistic}={float(0.3 * limit_s)!r}")
    assert excesses(whole, over, window)[0] > 0


@pytest.mark.parametrize(
    "front_end", [{"front_end.name": "off"}, {}, {**SLOW, "front_end.request_s": 0.002, "front_end.output_s": 0.0}]
)
def test_a_hopeless_run_ends_early(trace: str, monkeypatch: pytest.MonkeyPatch, front_end: dict[str, Any]) -> None:
    asked, batches = clauses("ttft_p90=0.01"), [0]
    committed = Stop.committed

    def counting(self: Stop, *args: Any) -> None:
        batches[0] += 1
        committed(self, *args)

    monkeypatch.setattr(Stop, "committed", counting)
    plan = plan_of(trace, **front_end)
    assert measure(Replication(plan, 40.0, 0, 400, asked, Window(100))).stopped == "ttft_p90"
    early = batches[0]
    assert not measure(Replication(plan, 40.0, 0, 400, clauses("ttft_p90=100"), Window(100))).stopped
    assert batches[0] - early > 2 * early


def test_replications_share_their_random_numbers(trace: str) -> None:
    """The same requests and gaps at two rates and for two policies, others in the next replication."""
    asked = clauses(SLO)
    one, fast, static, other = (
        measure(Replication(plan_of(trace, policy=policy), rate, number, 200, asked))
        for policy, rate, number in (("chunked", 5.0, 0), ("chunked", 20.0, 0), ("static", 5.0, 0), ("chunked", 5.0, 1))
    )
    np.testing.assert_array_equal(one.work_tokens, fast.work_tokens)
    np.testing.assert_allclose(one.due_s, 4 * fast.due_s)
    np.testing.assert_array_equal(one.due_s, static.due_s)
    assert not np.array_equal(one.work_tokens, other.work_tokens)


def test_differences_vary_less_with_common_random_numbers(trace: str) -> None:
    asked = clauses(SLO)

    def mean_s(policy: str, number: int) -> float:
        seen = measure(Replication(plan_of(trace, policy=policy), 12.0, number, 150, asked))
        return float(np.nanmean(seen.values["e2e_s"]))

    chunked, static = ([mean_s(policy, number) for number in range(12)] for policy in ("chunked", "sjf"))
    same = np.subtract(chunked, static)
    other = np.subtract(chunked, np.roll(static, 1))
    assert same.var() < 0.5 * other.var()


def test_clauses_are_judged_on_the_requests_that_count() -> None:
    nothing = np.full(10, np.nan)
    ttft_s = np.array([9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 9.0])
    values = {"ttft_s": ttft_s, "tpot_s": nothing, "e2e_s": ttft_s, "queue_s": ttft_s, "max_itl_s": ttft_s}
    due_s = np.arange(10.0)
    gaps = Gaps(np.full(10, 4.0), np.full(10, 2.0), {0.6: np.array([4.0] * 2 + [0.0] * 5 + [3.0] + [0.0] * 2)})
    seen = Observation(1.0, 0, due_s, due_s, due_s + 0.5, np.ones(10), values, gaps)
    window = Window(2, 1)  # seven requests count, one of them over 2 s

    def excess(slo: str, attainment: float | None = None) -> float:
        return float(excesses(seen, clauses(slo, attainment), window)[0])

    assert excess("ttft_p90=2") == pytest.approx(1 / 7 - 0.1)
    assert excess("ttft_p50=2") == pytest.approx(1 / 7 - 0.5)
    assert excess("ttft=2") == pytest.approx(3 / 2 - 1)
    assert excess("ttft_mean=1") == pytest.approx(9 / 7 - 1)
    assert excess("tpot_p90=1") == pytest.approx(-0.1)
    assert excess("itl_p90=0.6") == pytest.approx(3 / 28 - 0.1)
    assert excess("itl_mean=0.5") == pytest.approx(0.0)
    assert excess("itl=1.5") == pytest.approx(1.0)
    assert excess("ttft=2,e2e=0.5", 0.9) == pytest.approx(1 - 0.1)
    assert excess("ttft=2", 0.9) == pytest.approx(1 / 7 - 0.1)


def test_gaps_between_tokens_are_those_of_the_summary(trace: str) -> None:
    """All gaps over a limit, and their mean, counted by request, against the summary's distribution."""
    limit_s = 0.02
    asked = clauses(f"itl_p90={limit_s},itl_mean={limit_s}")
    seen = measure(Replication(plan_of(trace), 30.0, 0, 200, asked))
    result = api.simulate(Replication(plan_of(trace), 30.0, 0, 200, asked).scenario)
    assert seen.gaps is not None
    gaps_s, weights = result.itl
    assert seen.gaps.count.sum() == weights.sum()
    assert seen.gaps.over[limit_s].sum() == weights[gaps_s > limit_s].sum() > 0
    assert seen.gaps.sum_s.sum() / seen.gaps.count.sum() == pytest.approx(result.summary["itl_s"]["mean"])


@pytest.mark.parametrize(("slo", "needed"), [("ttft_p99=1", 1000), ("ttft_p50=1,e2e_p90=2", 100), ("ttft=1", 20)])
def test_rare_percentiles_need_many_requests(slo: str, needed: int) -> None:
    assert requests_needed(clauses(slo)) == needed


def test_workers_change_nothing(trace: str) -> None:
    trials = [Trial(10.0, number, 60) for number in range(3)]
    with closing(Hands(1)) as alone, closing(Hands(2)) as two:
        two._cost_s = 1e9  # as if it were worth starting processes
        bench = [Simulated(plan_of(trace), clauses(SLO), hands) for hands in (alone, two)]
        for one, other in zip(bench[0](trials), bench[1](trials), strict=True):
            np.testing.assert_array_equal(one.values["e2e_s"], other.values["e2e_s"])
            assert one.replication == other.replication
        started = {worker.process.pid for worker in two._crew._idle}
        two._cost_s = 0.0
        bench[1](trials)
        assert {worker.process.pid for worker in two._crew._idle} == started  # they stay for what comes next
        assert len(started) == 2
        assert not alone._crew._idle
    assert not two._crew._idle


@pytest.fixture(scope="module")
def choice(trace: str) -> tuple[dict[str, Any], list[str]]:
    """The cheapest of three GPUs for a rate, and what was told on the way."""
    told: list[str] = []
    gpus = ["h100", "h200", "t4"]
    return api.plan(trace=trace, slo=SLO, rate=60.0, gpu=gpus, requests=200, workers=1, told=told.append), told


def test_the_cheapest_is_found_and_confirmed(choice: tuple[dict[str, Any], list[str]]) -> None:
    found, told = choice
    best, rows = found["best"], {row["name"]: row for row in found["candidates"]}
    assert list(rows) == ["h100", "h200", "t4"]
    assert rows["t4"]["status"] == "cannot run"
    assert "the smallest tp that fits is 2" in rows["t4"]["reason"]
    assert best == rows[best["name"]]
    assert best["status"] == "best"
    assert best["confirmed"]
    assert best["replications"] >= 5
    gpus = best["gpus"]
    assert gpus["low"] <= gpus["likely"] == best["gpu_count"] <= gpus["high"]
    assert best["usd_range"]["low"] < best["usd_range"]["likely"] == best["usd_per_hour"] < best["usd_range"]["high"]
    assert best["binds"]["slo"] in ("ttft_p90", "tpot_p90", "stability")
    assert set(best["slo_values"]) == {"ttft_p90", "tpot_p90"}
    low, high = found["capacity"]["between"]
    assert 60.0 <= low < high
    assert found["finished"]
    meeting = [row for row in rows.values() if row["status"] in ("best", "meets")]
    assert best["usd_per_hour"] == min(row["usd_per_hour"] for row in meeting)
    assert best["pareto"]
    assert best["replicas"] * best["capacity_per_replica"] >= 60.0
    assert best["capacity_per_replica"] <= best["bound_per_replica"]
    assert any("confirmed" in one for one in told)
    page = render_plan(found)
    assert "t4" in page
    assert "the smallest tp that fits is 2" in page


def test_candidates_are_called_by_what_varies() -> None:
    assert name_of({"tp": 2, "gpu": "h100", "kv.dtype": "auto", "policy.name": "sjf"}) == "h100, sjf, tp 2, dtype auto"
    assert name_of({}) == "run"


@needs_chromium
def test_both_pages_draw_without_a_word_and_without_the_network(
    answer: dict[str, Any], choice: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    with chromium() as browser:
        pages = (("rates", answer, "rate-goodput", 1), ("cheapest", choice[0], "cost-e2e", 0))
        for name, document, chart, more in pages:
            page = tmp_path / f"{name}.html"
            page.write_text(render_plan(document), encoding="utf-8")
            for width in (1200, 390):
                browser.resize(width, 900, mobile=width < 600)
                browser.open(page)
                assert browser.value(f"document.querySelectorAll('[data-chart={chart}] svg circle').length") > more
                assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.complaints() == []
        assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []


def test_rows_that_cannot_be_used_may_be_left_out(tmp_path: Path) -> None:
    rows = [f"{at},{100 if at else -1},5" for at in range(300)]
    trace = tmp_path / "bad.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows, ""]))
    asked = ["plan", "--trace", str(trace), "--slo", "ttft_p90=0.5", *SMALL]
    assert isinstance(CliRunner().invoke(cli, asked).exception, InputError)
    assert CliRunner().invoke(cli, [*asked, "--skip-bad"], catch_exceptions=False).exit_code == 0


def test_what_nothing_meets_is_exit_code_1(trace: str) -> None:
    outcome = CliRunner().invoke(cli, ["plan", "--trace", trace, "--slo", "ttft_p90=0.0001", "--json", *SMALL])
    assert outcome.exit_code == 1
    document = json.loads(outcome.stdout)
    assert (document["capacity"], document["best"]) == (None, None)
    assert "No load meets the SLO: at the lowest load tried" in document["reason"]
    assert document["at_lowest_load"]["ttft_p90"] > 0.0001
    lone = CliRunner().invoke(cli, ["plan", "--trace", trace, "--slo", "ttft=0.0001", "--attainment", "0.9", *SMALL])
    assert lone.exit_code == 1
    assert "of the requests meet every limit, not 90.00%" in " ".join(lone.stdout.split())
    none = CliRunner().invoke(
        cli, ["plan", "--trace", trace, "--slo", SLO, "--rate", "4000", "--max-gpus", "2", "--json", *SMALL]
    )
    assert none.exit_code == 1
    assert json.loads(none.stdout)["candidates"][0]["status"] == "dominated"


def test_the_command_prints_and_writes(
    trace: str, tmp_path: Path, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(api, "plan", lambda file, **told: asked.update(told) or answer)
    out = tmp_path / "plan"
    outcome = CliRunner().invoke(cli, ["plan", "--trace", trace, "--slo", SLO, "--out", str(out), *SMALL])
    assert outcome.exit_code == 0, outcome.output
    assert "+-" in outcome.stdout
    assert "requests/s" in outcome.stdout
    document = json.loads((out / "plan.json").read_text())
    assert {"run_id": document["run_id"], **answer} == document
    assert (asked["requests"], asked["precision"], asked["workers"], asked["curve"]) == (300, 0.15, 1, True)
    page = (out / "report.html").read_text()
    assert page.replace(f'<meta name="run_id" content="{document["run_id"]}">\n', "") == render_plan(answer)
    for chart in ("rate-goodput", "rate-ttft", "rate-tpot"):
        assert f'data-chart="{chart}"' in page
    assert len(document["rates"]) > len([row for row in document["rates"] if row["replications"] >= 10])


def test_texts_from_outside_are_escaped(answer: dict[str, Any]) -> None:
    evil = {**answer, "inputs": {**answer["inputs"], "trace": "<script>alert(1)</script>"}}
    page = render_plan(evil)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("--slo", "ttft_p77=1"), "unknown metric 'ttft_p77'"),
        (("--slo", "ttft_p90=-1"), "must be a positive number of seconds"),
        ((), "a plan needs an SLO"),
        (("--slo", "ttft_p99=1"), "has 400 requests, too few to show ttft_p99: that takes at least 1,000"),
        (("--slo", SLO, "--precision", "wide"), "'wide' is no number"),
        (("--slo", SLO, "--precision", "90%"), "it must lie between"),
        (("--slo", SLO, "--attainment", "1.5"), "attainment is 1.5"),
        (("--slo", SLO, "--concurrency", "4"), "workload.concurrency"),
        (("--slo", SLO, "--rate-scale", "2"), "workload.rate_scale"),
        (("--slo", SLO, "--gpu", "h100,a100-80"), "give one, or a --rate"),
        (("--slo", SLO, "--rate", "5,6"), "one rate and one SLO"),
        (("--slo", SLO, "--rate", "5", "--replicas", "2"), "leave out replicas"),
        (("--slo", SLO, "--gpu", "h100", "--gpus", "t4"), "--gpus and --gpu are the same"),
        (("--slo", SLO, "--gpu", "t4"), "the smallest tp that fits is 2"),
        (("--slo", SLO, "--rate", "5", "--gpu", "t4"), "no candidate can be run"),
        (("--slo", SLO, "--requests", "10"), "10 requests a replication"),
        (("--slo", SLO, "--set", "executor=live"), "a plan simulates hundreds of runs"),
    ],
)
def test_mistakes_are_one_sentence(
    trace: str, told: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sim", "plan", "--trace", trace, "--workers", "1", "--quiet", *told])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_shares_may_be_written_as_percent() -> None:
    assert parse_share("--precision", "3%") == parse_share("--precision", "0.03") == 0.03
    with pytest.raises(InputError, match=r"between 0\.002"):
        Ask(precision=0.0)
    with pytest.raises(InputError, match="there must be at least 1"):
        Ask(most_gpus=0)
