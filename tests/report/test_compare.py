"""Runs side by side: what is kept of each, what counts as best, the page as text and in a real Chromium."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser_kit import Browser, chromium, needs_chromium
from hypothesis import given
from hypothesis import strategies as st
from report_samples import CAPACITY_TOKENS, Run, make_run

from sim import api
from sim.report import measures
from sim.report.compare import charts as compare_charts
from sim.report.compare import variant
from sim.report.compare.page import render_comparison, summaries_of
from sim.report.compare.variant import Failure, Row, Timeline, Variant, attempt
from sim.report.folder import write_comparison
from sim.report.measures import MEASURES, LatencyUnits, Measure, best
from sim.report.run import timeline
from sim.results import series
from sim.results.kv import KV_KINDS, KvFacts, kv_summary
from sim.results.percentiles import distribution
from traces.schema import InputError

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & {{script}}"


def shared_run(count: int, rate: float) -> Run:
    """A made-up run in which a third of what is used is shared by three."""
    run = make_run(count, rate=rate)
    steps = run.steps
    steps["kv_shared_tokens"] = steps["kv_used_tokens"] // 3
    steps["kv_used_tokens"] -= steps["kv_shared_tokens"]
    steps["kv_used_mean_tokens"] -= steps["kv_shared_tokens"]
    steps["kv_saved_tokens"] = 2 * steps["kv_shared_tokens"]
    steps["copied_bytes"] = 4096
    facts = KvFacts(CAPACITY_TOKENS, 16)
    run.summary["kv"] = kv_summary(run.requests, steps, facts, run.summary["duration_s"])
    return run


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        Variant.of("slow", make_run(300, rate=4.0)),
        Variant.of("fast", make_run(300, rate=14.0)),
        Failure("too-large", "the model does not fit"),
        Variant.of("sharing", shared_run(200, rate=14.0)),
    ]


def ran(rows: Sequence[Row]) -> list[Variant]:
    return [row for row in rows if isinstance(row, Variant)]


# --- what is kept ---


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 40)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_coarser_buckets_keep_every_integral(values: list[tuple[float, float]], doublings: int) -> None:
    used, waiting = (np.array(column) for column in zip(*values, strict=True))
    zero = np.zeros(len(used))
    means = {"used": used, **dict.fromkeys(("shared", "reserved", "internal", "external"), zero), "free": 100 - used}
    fine = Timeline(0.25, {**means, "waiting": waiting})
    coarse = fine.coarser(0.25 * 2**doublings)
    assert coarse.end_s >= fine.end_s > coarse.end_s - coarse.width_s
    for name in ("used", "waiting"):
        assert coarse.means[name].sum() * coarse.width_s == pytest.approx(fine.means[name].sum() * fine.width_s)
    np.testing.assert_allclose(sum(coarse.means[kind] for kind in KV_KINDS), 100)


def test_a_coarse_axis_shows_what_a_coarse_look_at_the_run_shows() -> None:
    """The buckets that are kept, joined, equal those that the whole tables give at that width."""
    run = make_run(300, rate=4.0)
    kept = Variant.of("x", run).timeline
    assert kept is not None
    width_s = 4 * kept.width_s
    edges_s = float(run.requests["arrival_s"].min()) + width_s * np.arange(math.ceil(kept.buckets / 4) + 1)
    direct = timeline.kv_stack(run.steps, edges_s)
    waiting, serving = timeline.queue_levels(run.requests, run.steps["end_s"].max())
    direct |= {"waiting": series.sum_of_means([waiting], edges_s), "serving": series.sum_of_means([serving], edges_s)}
    joined = kept.coarser(width_s).means
    for name, values in direct.items():
        np.testing.assert_allclose(joined[name], values, atol=1e-6, err_msg=name)


def test_a_long_run_is_kept_in_few_buckets() -> None:
    for rate in (0.001, 0.37, 900.0):
        kept = Variant.of("x", make_run(40, rate=rate)).timeline
        assert kept is not None
        assert variant.MOST_BUCKETS / 2 <= kept.buckets <= variant.MOST_BUCKETS
        assert math.log2(kept.width_s).is_integer()


def test_the_stack_over_time_has_the_means_of_the_summary() -> None:
    run = shared_run(200, rate=14.0)
    for column in ("kv_reserved", "kv_reserved_mean"):
        free = column.replace("reserved", "free") + "_tokens"
        run.steps[f"{column}_tokens"] = run.steps[free] // 2
        run.steps[free] -= run.steps[f"{column}_tokens"]
    facts = KvFacts(CAPACITY_TOKENS, 16)
    kv = kv_summary(run.requests, run.steps, facts, run.summary["duration_s"])
    edges_s = timeline.TimeAxis.of(run).grid(len(run.steps))
    for kind, values in timeline.kv_stack(run.steps, edges_s).items():
        assert values.mean() / CAPACITY_TOKENS == pytest.approx(kv["classes"][kind]["mean"]), kind
    assert sum(one["mean"] for one in kv["classes"].values()) == pytest.approx(1)
    assert kv["shared"]["saving_mean"] > 0


def test_what_the_user_can_mend_is_a_failure_and_nothing_else_is() -> None:
    def mistaken() -> Run:
        raise InputError("no such thing")

    def broken() -> Run:
        raise KeyError("a defect")

    assert attempt("a", mistaken) == Failure("a", "no such thing")
    with pytest.raises(KeyError):
        attempt("a", broken)


# --- what is best ---


@pytest.mark.parametrize(
    ("better", "values", "expected"),
    [
        (1, [1.0, 3.0, 2.0], {1}),
        (-1, [1.0, 3.0, 2.0], {0}),
        (0, [1.0, 3.0, 2.0], set()),
        (1, [3.0, 3.0001, 2.0], {0, 1}),  # both read 3.00
        (1, [3.0, 3.0001], set()),
        (-1, [None, 2.0, 5.0], {1}),
        (-1, [None, 2.0], set()),
        (1, [None, None], set()),
        (-1, [0, 7], {0}),
    ],
)
def test_best(better: int, values: list[float | None], expected: set[int]) -> None:
    assert best(Measure("key", "label", "", better), values, LatencyUnits.of([])) == expected  # type: ignore[arg-type]


def test_measures_read_the_summary() -> None:
    run = shared_run(100, rate=14.0)
    found = {measure.title: measure.value(run.summary) for measure in MEASURES.values() if measure.short}
    assert found["TTFT p99"] == run.summary["ttft_s"]["p99"]
    assert found["KV held useful"] == run.summary["kv"]["useful"]
    assert found["Sharing saved"] == pytest.approx(2 / 5, rel=0.02)  # what grows within a span is used alone
    assert found["Copied"] == 4096 * len(run.steps)
    assert found["Goodput/s"] is None
    assert len(found) == sum(bool(measure.short) for measure in MEASURES.values()), "two measures have one name"
    shown = {measure.title for measure in measures.compared([make_run(50).summary])}
    assert {"Requests/s", "KV used peak"} <= shown
    assert not shown & {"Sharing saved", "Prefix hits", "Preemptions", "Copied", "Goodput/s"}


# --- the page as text ---


class Outline(html.parser.HTMLParser):
    """Tags with their attributes, and the cells of the tables side by side."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.table = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.table = self.table or (tag == "table" and "side" in (dict(attrs).get("class") or ""))
        if self.table and tag == "tr":
            self.rows.append([])
        if self.table and tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.table = self.table and tag != "table"

    def handle_data(self, data: str) -> None:
        if self.table and self.rows and self.rows[-1] and not data.isspace():
            self.rows[-1][-1] += data


def specs_of(text: str) -> dict[str, dict]:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0])


def test_the_table_has_every_variant_and_marks_the_best(rows: list[Row]) -> None:
    found = Outline(render_comparison(rows)).rows
    assert [row[0] for row in found[2:6]] == ["slow", "fast", "too-large", "sharing"]
    assert found[4] == ["too-large", "did not run: the model does not fit"]
    second = found[6:]  # what is too much for the width of a page
    assert [row[0] for row in second[2:]] == ["slow", "fast", "sharing"]
    assert all(len(row) <= 13 for row in found)
    assert found[1][:2] == ["Variant", "Completed"]
    assert found[1][2:4] == ["Requests", "Output tokens"]
    by_name = {row[0]: dict(zip(found[1], row, strict=False)) for row in found[2:6]}
    rate = ran(rows)[1].summary["throughput"]["requests_per_s"]
    assert by_name["fast"]["Requests"] == f"{rate:.1f} (best)"
    assert "best" not in by_name["slow"]["Requests"]
    saving = ran(rows)[2].summary["kv"]["shared"]["saving_mean"]
    sharing = dict(zip(second[1], second[-1], strict=True))
    assert sharing["saved"] == f"{100 * saving:.1f} (best)"


def test_it_is_self_contained_and_small(rows: list[Row]) -> None:
    text = render_comparison(rows)
    outline = Outline(text)
    links = [value for _, attributes in outline.tags for key, value in attributes.items() if key in {"href", "src"}]
    assert links == ["data:,"]
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|localStorage", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "{{" not in text.replace("${{", "")
    assert len(text) < 200_000 * len(rows)
    specs = specs_of(text)
    assert [attributes["data-chart"] for _, attributes in outline.tags if "data-chart" in attributes] == list(specs)


def test_the_stacks_share_axis_classes_and_scale(rows: list[Row]) -> None:
    specs = specs_of(render_comparison(rows))
    stacks = [spec for name, spec in specs.items() if name.startswith("kv-")]
    assert len(stacks) == 3
    for spec in stacks:
        assert spec["x"] == stacks[0]["x"]
        assert spec["group"] == "kv"
        assert [line["kind"] for line in spec["series"]] == ["used", "shared", "internal", "free"]
        assert all(len(line["mean"]) == spec["x"]["buckets"] for line in spec["series"])
    ended = [spec["series"][0]["mean"].count(None) for spec in stacks]
    assert ended[0] == 0  # the slowest fills the axis; the others end before it does
    assert min(ended[1:]) > 0
    totals = np.sum([line["mean"] for line in stacks[0]["series"]], axis=0)
    np.testing.assert_allclose(totals, CAPACITY_TOKENS, rtol=2e-3)
    waste = specs["waste"]
    assert [row["label"] for row in waste["rows"]] == ["slow", "fast", "sharing"]
    for row in waste["rows"]:
        assert sum(row["values"]) == pytest.approx(100, rel=1e-3)


def test_the_lines_keep_a_variant_s_colour_where_another_has_no_value(rows: list[Row]) -> None:
    nothing = Variant.of("nothing", make_run(0))
    some = [nothing, *ran(rows)]
    spec = specs_of(render_comparison(some))["ttft"]
    assert [(line["name"], line["place"]) for line in spec["series"]] == [("slow", 1), ("fast", 2), ("sharing", 3)]
    line = spec["series"][1]
    values = ran(rows)[1].cdfs["ttft_s"][0]
    assert line["x"][-1] == pytest.approx(values.max() * 1e3, rel=1e-3)
    assert "nothing" in render_comparison(some)


def test_sentences_name_the_ends_where_variants_are_many() -> None:
    values = {"a": 1.0, "b": 3.0, "c": 2.0}
    assert compare_charts.spread(values, str) == "a 1.0; b 3.0; c 2.0"
    assert compare_charts.spread({**values, "d": 0.5}, str) == "0.5 (d) to 3.0 (b)"
    assert compare_charts.spread(dict.fromkeys("abcd", 2.0), str) == "2.0 in each"


def test_unequal_numbers_of_completed_requests_are_told(rows: list[Row]) -> None:
    assert "did not complete the same requests (slow 299; fast 299; sharing 199)" in render_comparison(rows)
    assert "did not complete the same" not in render_comparison([rows[0], rows[1]])


def test_slow_requests_are_drawn_in_seconds() -> None:
    slow = make_run(40, rate=4.0, slo="ttft=20")
    slow.requests["ttft_s"] += 50.0
    slow.summary["ttft_s"] = distribution(slow.requests["ttft_s"])
    spec = compare_charts.latency_charts([Variant.of("a", slow)], LatencyUnits.of([slow.summary]))[0].spec
    assert spec["x"]["unit"] == "s"
    assert 50 < spec["series"][0]["x"][0] < 51
    assert spec["limits"] == [{"x": 20.0, "label": "max limit 20 s"}]


def test_whatever_comes_from_outside_is_escaped() -> None:
    run = make_run(30, trace=EVIL, model=EVIL, gpu=EVIL, notes=[EVIL], **{"version": EVIL, "policy": EVIL})
    evil = Variant.of(EVIL, run)
    evil = Variant(EVIL, evil.summary, evil.cdfs, evil.timeline, [EVIL], {EVIL: EVIL}, EVIL)
    other = Variant("b", evil.summary, evil.cdfs, evil.timeline, [], {EVIL: "b"}, "s")
    outline = Outline(render_comparison([evil, other, Failure(EVIL, EVIL)]))
    count = [tag for tag, _ in outline.tags].count
    assert {tag: count(tag) for tag in ("script", "img")} == {"script": 2, "img": 0}
    assert [row[0] for row in outline.rows[2:]] == [EVIL, "b", EVIL]


@pytest.mark.parametrize("counts", [(0,), (0, 1), (1, 1)])
def test_pages_of_nearly_nothing(counts: tuple[int, ...]) -> None:
    text = render_comparison([Variant.of(str(place), make_run(count)) for place, count in enumerate(counts)])
    assert "nan" not in text.split("</style>")[1].split("<script")[0].lower().replace("tenant", "")
    specs_of(text)


def test_settings_that_differ_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n1.0,50,1\n")
    found = [
        Variant.of(
            name,
            api.run(trace=str(path), allocator=name, **{"engine.max_model_len": 4096, "engine.preset": "foretoken"}),
        )
        for name in ("paged", "contiguous-oracle")
    ]
    text = render_comparison(found)
    assert "2 variants side by side, which differ in allocator.name. 3 requests completed in each." in text
    assert text.count("<details>") == 2
    assert found[0].settings["engine.max_model_len"] == 4096
    assert "The same in all: trace small.csv; model llama-3.1-8b; GPU h100; policy chunked; seed 0." in text


# --- the files ---


def test_the_files_agree(rows: list[Row], tmp_path: Path) -> None:
    paths = write_comparison(rows, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.html", "compare.json", "compare.parquet"]
    summaries = json.loads(paths[1].read_text())
    assert len({one.pop("run_id") for one in summaries.values()}) == 1
    assert list(summaries) == ["slow", "fast", "too-large", "sharing"]
    assert summaries["too-large"] == {"error": "the model does not fit"}
    assert summaries == json.loads(json.dumps(summaries_of(rows)))
    table = pd.read_parquet(paths[2]).set_index("variant")
    assert list(table["error"]) == ["", "", "the model does not fit", ""]
    assert table.loc["fast", "ttft_s.p99"] == summaries["fast"]["ttft_s"]["p99"]
    assert table.loc["sharing", "kv.waste.of_held.shared"] == summaries["sharing"]["kv"]["waste"]["of_held"]["shared"]
    assert np.isnan(table.loc["too-large", "duration_s"])
    before = {path: path.read_bytes() for path in paths}
    write_comparison(rows, tmp_path / "out")
    assert {path: path.read_bytes() for path in paths} == before


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "compare.html"
    path.write_text(render_comparison(rows), encoding="utf-8")
    return path


TICKS = "[...document.querySelectorAll('[data-chart={}] .tick')].map(t => t.textContent).join()"


@needs_chromium
def test_it_draws_without_a_word_and_without_the_network(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    assert browser.value("document.body.dataset.drawn") == "10"  # waste, 3 stacks, 4 latencies, 2 queues
    assert browser.value("document.querySelectorAll('figure .plot svg').length") == 12
    assert browser.value("[...document.querySelectorAll('path')].every(p => !/NaN|Infinity/.test(p.getAttribute('d')))")
    assert browser.value("document.querySelectorAll('[data-legend=kv] button').length") == 4
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []


@needs_chromium
def test_the_stacks_keep_one_scale_whatever_is_hidden(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    labels = [browser.value(TICKS.format(f"kv-{place}")) for place in range(3)]
    assert len(set(labels)) == 1
    areas = "[...document.querySelectorAll('[data-chart^=kv-] path.kind-free')].map(p => p.getBBox().width)"
    slow, fast, sharing = browser.value(areas)
    assert max(fast, sharing) < slow / 2, "a stack ends with its run"
    free = "[...document.querySelectorAll('[data-legend=kv] button')].find(b => b.textContent === 'free')"
    browser.value(f"{free}.click()")
    after = [browser.value(TICKS.format(f"kv-{place}")) for place in range(3)]
    assert len(set(after)) == 1
    assert after[0] != labels[0]


@needs_chromium
def test_a_variant_is_hidden_in_every_plot_at_once(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    lines = "document.querySelectorAll('path.line').length"
    key = "document.querySelector('[data-chart=ttft] .tools .key')"
    assert browser.value(lines) == 18
    browser.value(f"{key}.dispatchEvent(new PointerEvent('pointerenter'))")
    assert browser.value("document.querySelectorAll('path.line.faint').length") == 12
    browser.value(f"{key}.dispatchEvent(new PointerEvent('pointerleave'))")
    assert browser.value("document.querySelectorAll('path.line.faint').length") == 0
    browser.value(f"{key}.click()")
    assert browser.value(lines) == 12
    pressed = "[...document.querySelectorAll('figure .key[aria-pressed=false]')].map(b => b.textContent).join()"
    assert browser.value(pressed) == ",".join(["slow"] * 6)
    assert browser.complaints() == []


@needs_chromium
def test_time_zooms_in_all_plots_over_time(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    before = browser.value(TICKS.format("serving"))
    wheel = "new WheelEvent('wheel', {deltaY: -300, ctrlKey: true, clientX: 300, clientY: 300})"
    browser.value(f"document.querySelector('[data-chart=kv-1] .plot').dispatchEvent({wheel})")
    assert browser.value(TICKS.format("serving")) != before
    assert browser.value("document.querySelectorAll('.reset:not([hidden])').length") == 5
    browser.value("document.querySelector('[data-chart=waiting] .plot').dispatchEvent(new MouseEvent('dblclick'))")
    assert browser.value(TICKS.format("serving")) == before
    where = "const b = document.querySelector('[data-chart=serving] .plot > svg'); b.scrollIntoView({block: 'center'});"
    x, y, width, height = browser.value(
        f"(() => {{ {where} const r = b.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }})()"
    )
    browser.mouse("mouseMoved", x + width * 0.9, y + height / 2)
    tip = browser.value("document.querySelector('[data-chart=serving] .tip').textContent")
    assert "fast: had ended" in tip
    assert re.search(r"slow: \d", tip)


@needs_chromium
@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_narrow_screen(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 800, mobile=True)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_more_variants_than_colours(browser: Browser, rows: list[Row], tmp_path: Path) -> None:
    one = ran(rows)[1]
    many = [Variant(f"v{i}", one.summary, one.cdfs, one.timeline) for i in range(11)]
    path = tmp_path / "many.html"
    path.write_text(render_comparison(many), encoding="utf-8")
    browser.open(path)
    assert browser.value("document.querySelectorAll('[data-chart=ttft] path.line').length") == 11
    assert browser.value("document.querySelectorAll('[data-chart=ttft] path.line.c0').length") == 2
    blue = "[...document.querySelectorAll('[data-chart=ttft] path.line.c0')]"
    assert len(set(browser.value(f"{blue}.map(p => getComputedStyle(p).strokeDasharray)"))) == 2
    assert browser.complaints() == []
