"""The page in a real Chromium: it draws, says nothing on the console, asks the network for nothing, and zooms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_kit import Browser, chromium, needs_chromium
from report_samples import make_run

from sim import api
from sim.report.run.page import render_page
from sim.scenario import dump

ROOT = Path(__file__).parents[2]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(make_run(400, rate=14.0, slo="ttft_p99=0.05,tpot=0.05")), encoding="utf-8")
    return path


def test_it_draws_without_a_word_and_without_the_network(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    assert browser.value("document.body.dataset.drawn") == "10"
    assert browser.value("document.querySelectorAll('figure .plot > svg path').length") > 15
    assert browser.value("[...document.querySelectorAll('path')].every(p => !/NaN|Infinity/.test(p.getAttribute('d')))")
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []


def test_the_page_of_a_real_run_and_its_picture(browser: Browser, tmp_path: Path) -> None:
    """With FORETOKEN_PICTURES=1 the picture is the one that the README shows."""
    path = tmp_path / "report.html"
    wanted = bool(os.environ.get("FORETOKEN_PICTURES"))
    settings = {"rate": 78.0, "slo": "ttft_p99=0.5,tpot_p99=0.05", "workload.sessions": False}
    run = api.run(trace="chatbot_arena.jsonl", limit=0 if wanted else 800, **settings)
    path.write_text(render_page(run, scenario=dump(run.scenario)), encoding="utf-8")
    browser.resize(1200, 900)
    browser.open(path)
    assert browser.value("document.body.dataset.drawn") == "13"
    assert browser.value("document.querySelectorAll('[data-chart=terms-time] path.area').length") > 1
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []
    picture = ROOT / "docs" / "report.png" if wanted else tmp_path / "report.png"
    browser.picture(picture, height=1900)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 50_000


def test_a_page_that_misbehaved_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>console.log('hm')</script><img src='http://127.0.0.1:9/x.png'>", encoding="utf-8")
    browser.open(path)
    assert browser.complaints()
    assert any(url.startswith("http:") for url in browser.requested())


def test_dragging_zooms_all_plots_over_time_and_a_double_click_goes_back(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    browser.open(page)
    where = "const b = document.querySelector('[data-chart=queue] .plot > svg'); b.scrollIntoView({block: 'center'});"
    box = browser.value(
        f"(() => {{ {where} const r = b.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }})()"
    )
    ticks = "[...document.querySelectorAll('[data-chart=step] .tick')].map(t => t.textContent).join()"
    before, middle = browser.value(ticks), box[1] + box[3] / 2
    browser.mouse("mousePressed", box[0] + box[2] * 0.4, middle, button="left", clickCount=1, buttons=1)
    browser.mouse("mouseMoved", box[0] + box[2] * 0.5, middle, button="left", buttons=1)
    browser.mouse("mouseReleased", box[0] + box[2] * 0.5, middle, button="left", clickCount=1)
    assert browser.value(ticks) != before
    assert browser.value("document.querySelectorAll('.reset:not([hidden])').length") == 5
    browser.mouse("mouseMoved", box[0] + box[2] * 0.5, middle)
    assert "waiting: " in browser.value("document.querySelector('[data-chart=queue] .tip').textContent")
    browser.value("document.querySelector('[data-chart=kv] .plot').dispatchEvent(new MouseEvent('dblclick'))")
    assert browser.value(ticks) == before
    wheel = "new WheelEvent('wheel', {deltaY: -300, ctrlKey: true, clientX: 400, clientY: 300})"
    browser.value(f"document.querySelector('[data-chart=kv] .plot').dispatchEvent({wheel})")
    assert browser.value(ticks) != before
    assert browser.complaints() == []


def test_a_name_in_the_legend_hides_and_shows(browser: Browser, page: Path) -> None:
    browser.open(page)
    keys = "document.querySelector('[data-chart=batch] .tools .key')"
    paths = "document.querySelectorAll('[data-chart=batch] path').length"
    before = browser.value(paths)
    browser.value(f"{keys}.click()")
    assert (browser.value(paths), browser.value(f"{keys}.getAttribute('aria-pressed')")) == (before - 2, "false")
    browser.value(f"{keys}.click()")
    assert browser.value(paths) == before


@pytest.mark.parametrize("width", [360, 390, 768])
def test_it_fits_a_narrow_screen(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 800, mobile=True)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_what_a_trace_calls_itself_is_never_run(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{script}}"
    path = tmp_path / "evil.html"
    run = make_run(30, trace=evil, model=evil, notes=[evil])
    path.write_text(render_page(run, scenario=evil), encoding="utf-8")
    browser.open(path)
    assert "owned" not in browser.value("document.title").replace(evil, "")
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.querySelectorAll('script').length") == 2
    assert browser.value("document.body.dataset.drawn") == "10"
    assert browser.complaints() == []


@pytest.mark.parametrize("count", [0, 1])
def test_pages_of_nearly_nothing(browser: Browser, tmp_path: Path, count: int) -> None:
    path = tmp_path / "small.html"
    path.write_text(render_page(make_run(count)), encoding="utf-8")
    browser.open(path)
    assert browser.value("document.body.dataset.drawn") is not None
    assert browser.complaints() == []


def test_the_policy_stops_a_script_that_slipped_in(browser: Browser, page: Path, tmp_path: Path) -> None:
    path = tmp_path / "slipped.html"
    text = page.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title='owned'</script>")
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert browser.value("document.title") != "owned"
    assert any("Content Security Policy" in text for text in browser.complaints())
