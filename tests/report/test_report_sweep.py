"""The page of a sweep: what it calls best, what it leaves out, how it thins, and how it looks in a real Chromium."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser_kit import Browser, chromium, needs_chromium
from hypothesis import given
from hypothesis import strategies as st
from report_sweeps import sweep_table
from test_report_page import EVIL, Outline

from sim.report.measures import latency
from sim.report.sweep.charts import drafting_chart, load_charts
from sim.report.sweep.frontier import front, map_charts, pareto_chart
from sim.report.sweep.interactivity import curve, curve_chart
from sim.report.sweep.page import render_sweep
from sim.report.sweep.points import GOODPUT, PER_GPU, PER_MEGAWATT, PER_USER, PRICE
from sim.report.sweep.table import Sweep
from sim.report.sweep.terminal import sweep_view
from sim.report.terminal import render
from sim.results.metrics import SLO_NAMES
from sim.study.sweep import sweep
from sim.study.sweep.question import Question

RATES = [2.0, 4.0, 8.0, 10.0, 14.0]
AXES: dict[str, list[Any]] = {"workload.rate": RATES, "policy.name": ["chunked", "static"], "replicas": [1, 2]}
TTFT = latency("ttft_s", "p99")


def data_of(page: str) -> dict[str, Any]:
    return json.loads(Outline(page).scripts[0])


def rows_of(page: str) -> list[str]:
    return page[page.index("<tbody>") : page.index("</tbody>")].split("</tr>")[:-1]


def test_the_points_are_means_and_ranges_over_the_seeds() -> None:
    table = sweep_table(AXES, seeds=3)
    sweep = Sweep.of(table, AXES)
    assert (len(sweep.points), sweep.seeds) == (20, 3)
    column = "e2e_s.p99"
    for number, found in table.groupby("point"):
        values = found[column]
        got = [float(one[column][int(number)]) for one in (sweep.points.mean, sweep.points.low, sweep.points.high)]
        assert got == pytest.approx([values.mean(), values.min(), values.max()])


def test_one_unstable_seed_makes_a_point_unstable_and_never_the_best() -> None:
    table = sweep_table(AXES, seeds=2)
    top = int(table.loc[table["stable"].astype(bool), GOODPUT.key].idxmax())
    before = Sweep.of(table, AXES)
    assert before.best(GOODPUT) is not None
    best = int(table["point"].iloc[top])
    table.loc[top, "stable"] = False
    sweep = Sweep.of(table, AXES)
    assert not sweep.points.stable[best]
    assert sweep.best(GOODPUT) != best


def test_nothing_unstable_is_offered_even_if_it_looks_best() -> None:
    table = sweep_table(AXES)
    table["stable"] = False
    sweep = Sweep.of(table, AXES)
    assert sweep.best(GOODPUT) is None
    page = render_sweep(table, AXES, {})
    assert '<td class="best">' not in page
    assert "card" not in page[page.index('<section class="cards"') : page.index("</section>")].replace(
        'class="cards"', ""
    )
    assert pareto_chart(sweep) is None
    assert "unstable" in page


points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=25)


@given(points)
def test_the_front_is_what_no_other_good_point_beats(rows: list[tuple[int, int, bool]]) -> None:
    costs, waits = (np.array([row[place] for row in rows], dtype=np.float64) for place in (0, 1))
    good = np.array([row[2] for row in rows], dtype=bool)
    found = front(costs, waits, good)
    known = {(cost, wait) for cost, wait, fine in rows if fine}

    def beaten(pair: tuple[int, int]) -> bool:
        return any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in known)

    assert sorted((costs[place], waits[place]) for place in found) == sorted(pair for pair in known if not beaten(pair))
    assert all(good[place] for place in found)


def test_a_point_without_a_value_is_never_on_the_front() -> None:
    nan = math.nan
    assert front(np.array([nan, 1.0, 2.0]), np.array([0.0, nan, 5.0]), np.ones(3, bool)) == [2]


def curve_table() -> pd.DataFrame:
    """Three loads on one GPU and on two: at load 4 two GPUs give a user more, and each of them less."""
    table = sweep_table({"workload.rate": [2.0, 4.0, 8.0], "replicas": [1, 2]})
    gaps_ms, tokens = [10.0, 8.0, 20.0, 16.0, 40.0, 50.0], [100.0, 110.0, 300.0, 320.0, 500.0, 400.0]
    joules = [4e6, 8e6, 2e6, 4e6, 1e6, 2e6]
    columns = {"tpot_s.p50": [gap / 1e3 for gap in gaps_ms], "throughput.output_tokens_per_s": tokens}
    gpus = {"bill.gpus": [1.0, 2.0] * 3, "bill.joules_per_million_output_tokens": joules}
    return table.assign(status="ok", stable=True, **columns, **gpus)


CURVE_AXES: dict[str, list[Any]] = {"workload.rate": [2.0, 4.0, 8.0], "replicas": [1, 2]}


def test_the_curve_shares_tokens_among_gpus_users_and_megawatts() -> None:
    sweep = Sweep.of(curve_table(), CURVE_AXES)
    assert sweep.points.mean[PER_GPU.key].tolist() == [100, 55, 300, 160, 500, 200]
    assert sweep.points.mean[PER_USER.key] == pytest.approx([100, 125, 50, 62.5, 25, 20])
    # 4 MJ for a million tokens are 4 J for one: a megawatt makes 250,000 in a second.
    assert sweep.points.mean[PER_MEGAWATT.key] == pytest.approx([250e3, 125e3, 500e3, 250e3, 1e6, 500e3])


def test_the_curve_keeps_what_no_point_beats_for_user_and_gpu_the_fastest_first() -> None:
    table = curve_table().assign(**{column: 1e9 for column in curve_table() if column.startswith("goodput.slo.")})
    assert curve(Sweep.of(table, CURVE_AXES)) == [1, 0, 3, 2, 4]
    unstable = table.assign(stable=[True, True, False, True, True, True])
    assert curve(Sweep.of(unstable, CURVE_AXES)) == [1, 0, 3, 4]
    chart = curve_chart(Sweep.of(table, CURVE_AXES))
    assert chart is not None
    by_gpu = chart.spec["choices"][0]
    assert by_gpu["series"][-1]["x"] == [125, 100, 62.5, 50, 25]
    assert [line["name"] for line in by_gpu["series"]] == ["replicas 1", "replicas 2", "not beaten in both"]
    assert "gives a user 125/s and a GPU 55.0/s" in by_gpu["sentence"]


def test_points_that_give_a_user_the_same_have_no_curve() -> None:
    assert curve_chart(Sweep.of(curve_table().assign(**{"tpot_s.p50": 0.02}), CURVE_AXES)) is None


def test_a_sweep_says_where_only_some_points_are_behind_a_front_end() -> None:
    table, axes = sweep_table({"workload.rate": [5.0, 10.0]}), {"workload.rate": [5.0, 10.0]}
    assert not Sweep.of(table, axes).unlike_clients()
    both = table.assign(**{"front_end.busy_s": 1.0})
    assert not Sweep.of(both, axes).unlike_clients()
    some = both.assign(**{"front_end.busy_s": [1.0] + [np.nan] * (len(both) - 1)})
    told = f"1 of {len(both)} runs are behind a front end"
    assert Sweep.of(some, axes).unlike_clients().startswith(told)
    assert told in render(sweep_view(some, axes))
    assert told in render_sweep(some, axes, {})


def test_the_only_point_that_ran_is_shown() -> None:
    table = sweep_table({"workload.rate": [5.0, 10.0]})
    failed = table["workload.rate"] == 10.0
    told = render(sweep_view(table.assign(status=np.where(failed, "failed", "ok")), {"workload.rate": [5.0, 10.0]}))
    assert "reads the same" not in told
    assert "TTFT p99" in told


def test_failures_are_rows_with_their_reasons() -> None:
    table = sweep_table(AXES, fail="14.0 static")
    page = render_sweep(table, AXES, {})
    failed = [row for row in rows_of(page) if 'class="reason"' in row]
    assert len(failed) == 2
    assert all("does&lt;/b&gt; not fit" in row and ">failed<" in row for row in failed)
    assert "1 of 20 runs failed: 14.0 static 1: " in page
    assert "2 failed" in page


def test_a_point_of_which_one_seed_failed_keeps_the_others_and_is_not_offered() -> None:
    table = sweep_table(AXES, seeds=2)
    table.loc[0, ["status", "reason", "stable"]] = ["failed", "out of luck", None]
    sweep = Sweep.of(table, AXES)
    assert (int(sweep.points.failed[0]), bool(sweep.good[0])) == (1, False)
    assert sweep.value(TTFT, 0) == table[TTFT.key].iloc[1]
    assert "1 of 2 failed" in render_sweep(table, AXES, {})


def test_every_combination_has_its_line_in_the_order_of_the_load() -> None:
    axes = AXES | {"workload.rate": [8.0, 2.0, 14.0]}
    sweep = Sweep.of(sweep_table(axes), axes)
    rate, ttft, *_ = load_charts(sweep)
    lines = ttft.spec["choices"][0]["series"]
    assert [line["name"] for line in lines] == [
        "chunked, replicas 1",
        "chunked, replicas 2",
        "static, replicas 1",
        "static, replicas 2",
    ]
    assert all(line["x"] == [2, 8, 14] for line in lines)
    assert [limit["label"] for limit in ttft.spec["choices"][0]["limits"]] == ["limit 500 ms"]
    assert [choice["label"] for choice in rate.spec["choices"]] == ["Goodput", "Requests", "Output tokens"]
    assert lines[0]["hollow"] == [0, 0, 1]
    assert "low" not in lines[0]


def test_where_the_price_is_not_known_gpu_hours_stand_in() -> None:
    sweep = Sweep.of(sweep_table(AXES, price=False), AXES)
    chart = pareto_chart(sweep)
    assert chart is not None
    assert {choice["x"]["label"] for choice in chart.spec["choices"]} == {"GPU-hours per million output tokens", "GPUs"}
    page = render_sweep(sweep_table(AXES, price=False), AXES, {})
    assert "GPU-hours per Mtok output" in page
    assert "Cheapest" not in page
    priced = pareto_chart(Sweep.of(sweep_table(AXES), AXES))
    assert priced is not None
    assert "Cost per million output tokens" in {choice["x"]["label"] for choice in priced.spec["choices"]}


def meets_slo(table: pd.DataFrame) -> np.ndarray:
    """By row, whether every clause of the SLO that the table has is met."""
    met = np.ones(len(table), bool)
    for column in (column for column in table if column.startswith("goodput.slo.")):
        metric, statistic = SLO_NAMES[column.removeprefix("goodput.slo.")]
        met &= (table[f"{metric}_s.{statistic}"] <= table[column]).to_numpy()
    return met


def test_no_point_that_misses_the_slo_wins() -> None:
    table = sweep_table(AXES)
    sweep = Sweep.of(table, AXES)
    met = meets_slo(table)
    assert met.any()
    assert not met.all()
    assert sweep.nearest_words() == ""
    for measure in (GOODPUT, PRICE):
        best = sweep.best(measure)
        assert best is not None
        assert met[best]
        assert sweep.points.stable[best]
    strict = table.assign(**{column: 1e-4 for column in table if column.startswith("goodput.slo.")})
    nothing = Sweep.of(strict, AXES)
    row = nothing.nearest()
    assert row is not None
    assert nothing.best(GOODPUT) is None
    assert pareto_chart(nothing) is None
    assert f"nearest: {nothing.name(row)} misses" in nothing.nearest_words()
    assert nothing.points.of_limit[row] == min(nothing.points.of_limit[nothing.good])
    assert "nearest:" in render_sweep(strict, AXES, {})


def test_ties_are_told() -> None:
    table = sweep_table(AXES)
    same = table.assign(**{GOODPUT.key: 5.0})
    sweep = Sweep.of(same, AXES)
    best = sweep.best(GOODPUT)
    assert best is not None
    assert len(sweep.ties(GOODPUT, best)) == int(sweep.winners.sum()) - 1


def test_the_map_holds_the_best_stable_point_of_each_cell() -> None:
    table = sweep_table(AXES)
    sweep = Sweep.of(table, AXES)
    (chart,) = map_charts(sweep)
    assert (chart.spec["y"]["names"], chart.spec["x"]["names"]) == (["1", "2"], ["chunked", "static"])
    goodput = chart.spec["choices"][0]
    stable = table[table["stable"].astype(bool) & meets_slo(table)]
    for line, replicas in enumerate([1, 2]):
        for column, policy in enumerate(["chunked", "static"]):
            mine = stable[(stable["replicas"] == replicas) & (stable["policy.name"] == policy)]
            shown = float(goodput["texts"][line][column].removesuffix("/s"))
            assert shown == pytest.approx(mine[GOODPUT.key].max(), rel=6e-3)


def test_drafting_is_held_against_the_same_load_without() -> None:
    axes: dict[str, list[Any]] = {
        "workload.rate": RATES[:4],
        "policy.name": ["chunked", "speculative"],
        "replicas": [1, 2],
    }
    table = sweep_table(axes)
    chart = drafting_chart(Sweep.of(table, axes))
    assert chart is not None
    tpot = chart.spec["choices"][0]
    assert [line["name"] for line in tpot["series"]] == ["speculative, replicas 1", "speculative, replicas 2"]
    by = table.set_index(["workload.rate", "policy.name", "replicas"])["tpot_s.mean"]
    expected = [by[rate, "chunked", 2] / by[rate, "speculative", 2] for rate in RATES[:4]]
    assert tpot["series"][1]["y"] == pytest.approx(expected, rel=1e-3)
    assert "faster up to rate" in tpot["sentence"]
    assert drafting_chart(Sweep.of(sweep_table(AXES), AXES)) is None


def test_one_point_without_any_axis() -> None:
    page = render_sweep(sweep_table({}), {}, {})
    assert len(rows_of(page)) == 1
    assert data_of(page) == {}
    assert "1 point: 1 stable." in page


def test_nothing_ran() -> None:
    columns = ["point", "seed", "name", "policy.name", "status", "reason", "stable"]
    page = render_sweep(sweep_table({"policy.name": ["a"]}, fail="a")[columns], {"policy.name": ["a"]}, {})
    assert "1 of 1 runs failed" in page
    assert data_of(page) == {}


@pytest.mark.parametrize(
    "axes",
    [
        {"kv.prefix": [True, False]},
        {"policy.name": ["chunked", "sjf"], "kv.prefix": [True, False]},
        {"engine.max_num_seqs": [16, 64, 256]},
        {"workload.concurrency": [1, 8, 64], "policy.name": ["chunked"]},
    ],
)
def test_any_axes(axes: dict[str, list[Any]]) -> None:
    page = render_sweep(sweep_table(axes), axes, {})
    assert len(rows_of(page)) == math.prod(map(len, axes.values()))
    specs = data_of(page)
    assert ("load-rate" in specs) == any(
        isinstance(value[0], int) and not isinstance(value[0], bool) for value in axes.values()
    )


def test_axes_that_some_points_do_not_set() -> None:
    table = sweep_table({"workload.rate": [2.0, 4.0], "policy.name": ["chunked", "sjf"]})
    table.loc[0, "policy.name"] = None
    table.loc[1, "workload.rate"] = math.nan
    axes = {"workload.rate": [math.nan, 2.0, 4.0], "policy.name": [None, "chunked", "sjf"]}
    assert len(rows_of(render_sweep(table, axes, {}))) == 4


def test_ten_thousand_points_are_thinned_and_it_says_so() -> None:
    axes: dict[str, list[Any]] = {
        "workload.rate": [float(rate) for rate in range(1, 26)],
        "policy.name": ["chunked", "sjf", "static", "speculative"],
        "replicas": [1, 2, 3, 4, 5],
        "engine.max_num_seqs": list(range(20)),
    }
    table = sweep_table({key: values for key, values in axes.items() if key != "engine.max_num_seqs"})
    table = pd.concat([table.assign(**{"engine.max_num_seqs": value}) for value in range(20)], ignore_index=True)
    table["point"] = np.arange(len(table))
    page = render_sweep(table, axes, {})
    assert len(table) == 10_000
    assert len(page) < 5_000_000
    rows = rows_of(page)
    assert f"Thinned: the best {len(rows):,} of 10,000 points" in page
    specs = data_of(page)
    assert "Thinned: the 16 of 400 combinations" in page
    assert len(specs["pareto"]["choices"][0]["series"][0]["x"]) == 2500
    kept = {int(re.findall(r'scope="row">([\d,]+)', row)[0].replace(",", "")) for row in rows}
    worst = table[GOODPUT.key][sorted(kept)].min()
    left = table.loc[sorted(set(range(10_000)) - kept)]
    assert (left.loc[left["stable"].astype(bool), GOODPUT.key] <= worst).all()


def test_whatever_comes_from_outside_is_escaped() -> None:
    axes: dict[str, list[Any]] = {"policy.name": [EVIL, "b"], "workload.rate": [2.0, 4.0]}
    table = sweep_table(axes, fail="4.0").assign(reason=EVIL, **{"inputs.trace": EVIL})
    about = {"title": EVIL, "version": EVIL, "scenario": EVIL, "notes": [EVIL], "who": EVIL, EVIL: [EVIL]}
    outline = Outline(render_sweep(table, axes, about))
    tags = [tag for tag, _ in outline.tags]
    assert (tags.count("script"), tags.count("img")) == (2, 0)
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]


def test_the_page_of_a_real_small_sweep() -> None:
    from sim import api
    from sim.results.stability import queue_warning
    from sim.results.tables import flat

    axes: dict[str, list[Any]] = {"workload.rate": [4.0, 40.0], "policy.name": ["chunked", "static"]}
    rows = []
    for rate in axes["workload.rate"]:
        for policy in axes["policy.name"]:
            settings = {"rate": rate, "policy": policy, "limit": 150, "slo": "ttft_p99=0.5", "kv.blocks": 4000}
            result = api.run(trace="chatbot_arena.jsonl", **settings)
            row = {key: value for key, value in flat(result.summary).items() if not isinstance(value, list)}
            stable = queue_warning(result.requests) is None
            head = {"point": len(rows), "seed": 0, "name": "", "workload.rate": rate, "policy.name": policy}
            rows.append({**head, "status": "ok", "reason": None, "stable": stable, **row})
    page = render_sweep(pd.DataFrame(rows), axes, {"version": "x"})
    assert len(rows_of(page)) == 4
    assert {"load-rate", "load-ttft", "load-tpot", "load-itl", "load-e2e", "pareto"} <= set(data_of(page))
    assert "<h1>llama-3.1-8b on h100 (TP 1, 1 replica), " in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    axes = AXES | {"policy.name": ["chunked", "static", "speculative"]}
    table = sweep_table(axes, seeds=2, fail="14.0 static")
    path = tmp_path_factory.mktemp("sweep") / "report.html"
    path.write_text(render_sweep(table, axes, {"who": "a test"}), encoding="utf-8")
    return path


@needs_chromium
def test_it_draws_without_a_word_and_without_the_network(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    assert browser.value("document.body.dataset.drawn") == "9"
    assert browser.value("document.querySelectorAll('figure .plot > svg path.line').length") == 5 * 6 + 2
    assert browser.value("document.querySelectorAll('[data-chart=pareto] .front-mark').length") > 1
    assert browser.value("document.querySelectorAll('[data-chart^=map] .heat .top').length") == 1
    paths = "[...document.querySelectorAll('path, circle')].every(p => !/NaN|Infinity/.test(p.outerHTML))"
    assert browser.value(paths)
    inside = "(c => c.cy.baseVal.value >= 0 && c.cy.baseVal.value <= c.ownerSVGElement.viewBox.baseVal.height - 38)"
    assert browser.value(f"[...document.querySelectorAll('figure .plot > svg circle')].every{inside}")
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []


@needs_chromium
@pytest.mark.skipif(not os.environ.get("FORETOKEN_PICTURES"), reason="makes the picture that the README shows")
def test_the_picture_of_a_real_sweep(browser: Browser, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 4000, "workload.sessions": False}
    settings["slo"] = "ttft_p99=0.5,tpot_p99=0.05"
    settings |= {"rate": [20, 40, 60, 70, 80, 90, 100], "policy": ["chunked", "sjf", "static"]}
    asked = Question.of(None, settings)
    path = tmp_path / "sweep.html"
    table = sweep.run(asked)
    path.write_text(render_sweep(table, sweep.axes_of(asked.grid), sweep.about(asked)), encoding="utf-8")
    browser.resize(1200, 900)
    browser.open(path)
    browser.picture(Path(__file__).parents[2] / "docs" / "sweep.png", height=1900)


@needs_chromium
def test_choosing_a_measure_draws_it_and_says_so(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    figure = "document.querySelector('[data-chart=load-ttft]')"
    label = f"{figure}.querySelector('.label').textContent"
    sentence = f"{figure}.querySelector('figcaption p').textContent"
    assert "TTFT p99" in browser.value(label)
    assert "TTFT p99" in browser.value(sentence)
    choice = f"{figure}.querySelector('select')"
    browser.value(f"{choice}.value = 3; {choice}.dispatchEvent(new Event('change'))")
    assert "TTFT median" in browser.value(label)
    assert "TTFT median" in browser.value(sentence)
    for chart in ("=pareto", "^=map", "=drafting", "=load-rate"):
        place = f"document.querySelector('[data-chart{chart}] select')"
        last = browser.value(f"{place}.length") - 1
        browser.value(f"{place}.value = {last}; {place}.dispatchEvent(new Event('change'))")
    assert browser.complaints() == []


@needs_chromium
def test_plots_against_the_load_zoom_together_and_the_others_alone(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    wheel = "new WheelEvent('wheel', {deltaY: -300, ctrlKey: true, clientX: 400, clientY: 300})"
    browser.value(f"document.querySelector('[data-chart=load-ttft] .plot').dispatchEvent({wheel})")
    zoomed = "[...document.querySelectorAll('.reset:not([hidden])')].map(b => b.closest('figure').dataset.chart).join()"
    assert browser.value(zoomed) == "load-rate,load-ttft,load-tpot,load-itl,load-e2e,drafting"
    browser.value("document.querySelector('[data-chart=load-e2e] .plot').dispatchEvent(new MouseEvent('dblclick'))")
    browser.value(f"document.querySelector('[data-chart=pareto] .plot').dispatchEvent({wheel})")
    assert browser.value(zoomed) == "pareto"
    assert browser.complaints() == []


@needs_chromium
def test_pressing_a_heading_sorts_and_failures_come_last(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    heads, rows = (f"[...document.querySelectorAll('.points {name}')]" for name in ("thead th", "tbody tr"))
    head = f"{heads}.find(h => h.textContent.startsWith('Goodput'))"
    at = browser.value(f"{heads}.indexOf({head})")
    column = f"{rows}.map(r => r.cells[{at}] ? r.cells[{at}].textContent : '')"
    for order in ("descending", "ascending"):
        browser.value(f"{head}.querySelector('button').click()")
        assert browser.value(f"{head}.getAttribute('aria-sort')") == order
        texts = browser.value(column)
        values = [float(text.removesuffix(" (best)").replace(",", "")) for text in texts[:-2]]
        assert values == sorted(values, reverse=order == "descending")
        assert all("does not fit" in text.replace("<b>does</b>", "does") for text in texts[-2:])


@needs_chromium
def test_pointing_at_a_point_names_it(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    mark = "document.querySelector('[data-chart=pareto] .front-mark')"
    browser.value(f"{mark}.scrollIntoView({{block: 'center'}})")
    x, y = browser.value(f"(() => {{ const r = {mark}.getBoundingClientRect(); return [r.x + 5, r.y + 5]; }})()")
    browser.mouse("mouseMoved", x, y)
    tip = browser.value("document.querySelector('[data-chart=pareto] .tip').textContent")
    assert "replicas" in tip
    assert "TTFT p99" in tip


@needs_chromium
@pytest.mark.parametrize("width", [390, 768])
def test_it_fits_a_narrow_screen(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 800, mobile=True)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_paper_shows_no_more_than_forty_rows(browser: Browser, tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"workload.rate": [float(rate) for rate in range(1, 61)]}
    path = tmp_path / "many.html"
    path.write_text(render_sweep(sweep_table(axes), axes, {}), encoding="utf-8")
    browser.open(path)
    seen = "[...document.querySelectorAll('.points tbody tr')].filter(r => r.getBoundingClientRect().height).length"
    assert browser.value(seen) == 60
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value(seen) == 40
    browser.call("Emulation.setEmulatedMedia", media="")
