"""The page as text: self-contained, escaped, small, quick. How it looks in a browser: test_report_browser.py."""

from __future__ import annotations

import html.parser
import json
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_samples import Run, make_run

from sim import api
from sim.report.run.page import render_page
from sim.report.run.pressure import pressure_lines
from sim.report.run.terms import term_charts
from sim.report.run.timeline import step_unit
from sim.results import metrics
from sim.results import terms as results_terms
from sim.results.kv import KvFacts
from sim.results.percentiles import distribution, merge_itl

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & {{script}} \u2028"


class Outline(html.parser.HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]


def test_it_is_self_contained() -> None:
    text = render_page(make_run(60, rate=14.0, slo="ttft=0.05"))
    outline = Outline(text)
    assert [href for href in outline.attributes("href") if href != "data:,"] == []
    assert outline.attributes("src") == []
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|localStorage", text)
    urls = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert urls == {"http://www.w3.org/2000/svg"}  # a namespace, never fetched
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert "{{" not in text.replace("${{", "")


def test_whatever_comes_from_outside_is_escaped() -> None:
    run = make_run(30, trace=EVIL, model=EVIL, gpu=EVIL, notes=[EVIL], extra_key=EVIL, **{"version": EVIL})
    outline = Outline(render_page(run, scenario=EVIL))
    harmless = Outline(render_page(make_run(30, extra_key="x", notes=["n"]), scenario="s"))
    count = [tag for tag, _ in outline.tags].count
    assert {tag: count(tag) for tag in ("script", "img", "iframe", "svg")} == {
        "script": 2,
        "img": 0,
        "iframe": 0,
        "svg": 1,
    }
    assert [tag for tag, _ in outline.tags] == [tag for tag, _ in harmless.tags]


def test_its_data_is_json_that_agrees_with_the_summary() -> None:
    run = make_run(60, rate=14.0)
    outline = Outline(render_page(run))
    specs = json.loads(outline.scripts[0])
    assert set(specs) == {"ttft", "tpot", "itl", "e2e", "queue", "ttft-time", "batch", "step", "kv", "phases"}
    assert [value for value in outline.attributes("data-chart") if value not in specs] == []
    assert specs["ttft"]["marks"][2]["x"] == pytest.approx(run.summary["ttft_s"]["p99"] * 1e3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pages_of_nearly_nothing(count: int) -> None:
    outline = Outline(render_page(make_run(count)))
    assert len(json.loads(outline.scripts[0])) == len(outline.attributes("data-chart"))


def test_only_rejected_requests() -> None:
    run = make_run(20)
    only = run.requests[run.requests["status"] == "rejected"]
    facts = KvFacts(100, 16)
    summary = metrics.summarise(
        only, run.steps[:0], distribution([]), facts, source_seconds={}, simulator={}, inputs={"trace": "t"}
    )
    text = render_page(Run(only, run.steps[:0], merge_itl([]), summary))
    assert "1 rejected" in text


@pytest.fixture(scope="module")
def real() -> api.Result:
    """A run of the simulator whose memory is too small, so that it preempts."""
    return api.run(trace="chatbot_arena.jsonl", limit=200, rate=40.0, slo="ttft_p99=0.5", **{"kv.blocks": 400})


def test_the_page_of_a_real_run_tells_terms_preemption_stability_and_money(real: api.Result) -> None:
    text = render_page(real)
    specs = json.loads(Outline(text).scripts[0])
    assert specs["phases"]["names"] == ["queued", "prefill", "decode", "preempted"]
    assert specs["phases"]["rows"][0]["values"][3] > 0
    assert specs["phases"]["x"]["unit"] == "s"
    assert sum(specs["phases"]["rows"][0]["values"]) == pytest.approx(real.summary["e2e_s"]["mean"], rel=1e-3)
    assert {"products", "attention", "elementwise"} <= set(specs["terms"]["names"])
    for told in ("Utilisation: steps were running ", "KV pressure: ", "preemptions", "Money and energy", "Mtok output"):
        assert told in text
    assert "decode attention" in text[text.index("Step time by term and source") :]


def test_the_bars_by_term_are_the_mean_step(real: api.Result) -> None:
    """All of these spans are explained, so that the bars add up to the device's seconds and the host's exposed ones."""
    assert real.terms is not None
    bars, over_time = term_charts(real, step_unit(real.steps))
    whole = np.array(bars.spec["rows"][0]["values"])
    steps = real.steps
    device_s = steps["device_s"].sum()
    host_s = steps["host_s"].sum()
    if real.terms.overlap_host:
        host_s = np.maximum(steps["host_s"] - steps["device_s"], 0.0).sum()
        host_s += sum(repeats * real.terms.gap.of(shape) for _, shape, repeats in real.terms.spans)
    assert whole.sum() == pytest.approx(1e3 * (device_s + host_s) / steps["repeats"].sum(), rel=5e-3)
    assert bars.note.startswith("Products: ")
    assert [line["name"] for line in over_time.spec["series"]] == bars.spec["names"]
    assert all(len(line["mean"]) == over_time.spec["x"]["buckets"] for line in over_time.spec["series"])


def test_of_many_spans_an_even_choice_is_explained_and_the_note_says_so(
    real: api.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_terms, "MOST_SPANS", 40)
    for chart in term_charts(real, step_unit(real.steps)):
        assert f"Thinned: 40 of {len(real.steps)} spans" in chart.note


def test_a_run_without_trouble_says_so() -> None:
    text = render_page(make_run(300, rate=4.0))
    assert "The queue did not keep growing while requests arrived" in text
    assert "with no preemption" in text
    assert "cannot be told from fewer than 100 requests" in render_page(make_run(30))


def test_only_the_terms_of_doubtful_seconds_are_named(real: api.Result) -> None:
    summary = dict(real.summary)
    summary["cost_sources"] = {**summary["cost_sources"], "measured": 0.7, "roofline": 0.1, "extrapolated": 0.2}
    summary["cost_terms"] = {"qkv": {"measured": 0.7}, "swap": {"roofline": 0.1}, "LM head": {"extrapolated": 0.2}}
    lines = list(pressure_lines(replace(real, summary=summary)))
    assert any("outside the calibrated range are mostly those of LM head (20.0 %)" in line for line in lines)
    assert any("that no table has are mostly those of swap (10.0 %)" in line for line in lines)


def test_20_000_requests_in_3_s_of_the_cpu_and_3_mb() -> None:
    run = make_run(20_000, rate=14.0, replicas=2)
    started_s = time.process_time()
    text = render_page(run)
    assert time.process_time() - started_s < 3
    assert len(text) < 3_000_000


def test_the_size_does_not_grow_with_the_run() -> None:
    """A page of many rows is thinned to the same buckets: the tables of a run, repeated until they are long."""
    run = make_run(2000, rate=14.0)
    span = run.steps["end_s"].max() + 1.0
    copies = np.arange(20)

    def repeated(table: pd.DataFrame) -> pd.DataFrame:
        shifted = [table.copy() for _ in copies]
        for copy, part in zip(copies, shifted, strict=True):
            times = [name for name in table if name in {"arrival_s", "first_scheduled_s", "first_token_s", "finish_s"}]
            times += [name for name in table if name in {"start_s", "end_s"}]
            part[times] += copy * span
        return pd.concat(shifted, ignore_index=True)

    big = Run(repeated(run.requests), repeated(run.steps), merge_itl([run.itl] * 20), run.summary)
    assert len(render_page(big)) < 1.6 * len(render_page(run)) < 1_000_000
