"""The page as text: self-contained, escaped, small, quick. How it looks in a browser: test_report_browser.py."""

from __future__ import annotations

import html.parser
import json
import re
import time

import numpy as np
import pandas as pd
import pytest
from report_samples import Run, make_run

from sim import metrics
from sim.report import parts
from sim.report.page import render_page

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
    outline = Outline(render_page(run, notes=[EVIL], scenario=EVIL))
    harmless = Outline(render_page(make_run(30, extra_key="x", notes=["n"]), notes=["n"], scenario="s"))
    count = [tag for tag, _ in outline.tags].count
    assert {tag: count(tag) for tag in ("script", "img", "iframe", "svg")} == {
        "script": 2,
        "img": 0,
        "iframe": 0,
        "svg": 1,
    }
    assert [tag for tag, _ in outline.tags] == [tag for tag, _ in harmless.tags]


def test_data_cannot_end_its_element() -> None:
    value = {"a": "</script><!-- & >"}
    assert not set("<>&") & set(parts.json_text(value))
    assert json.loads(parts.json_text(value)) == value


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
    facts = metrics.KvFacts(100, 16)
    summary = metrics.summarise(
        only, run.steps[:0], metrics.merge_itl([]), facts, source_seconds={}, simulator={}, inputs={"trace": "t"}
    )
    text = render_page(Run(only, run.steps[:0], metrics.merge_itl([]), summary))
    assert "1 rejected" in text


def test_20_000_requests_in_3_s_and_3_mb() -> None:
    run = make_run(20_000, rate=14.0, replicas=2)
    started = time.perf_counter()
    text = render_page(run)
    assert time.perf_counter() - started < 3
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

    big = Run(repeated(run.requests), repeated(run.steps), metrics.merge_itl([run.itl] * 20), run.summary)
    assert len(render_page(big)) < 1.6 * len(render_page(run)) < 1_000_000
