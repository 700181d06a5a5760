"""The page in a real Chromium: it draws, says nothing on the console, asks the network for nothing, and zooms."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import make_run

from sim.report.page import render_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"""
# Chromium reads its pipe from descriptor 3 and writes to 4: a small process puts them there and becomes Chromium.
PLACE_PIPES = """import fcntl, os, sys
read_end, write_end = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read_end, 3)
os.dup2(write_end, 4)
os.execv(sys.argv[3], sys.argv[3:])"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")


class Browser:
    """A headless Chromium spoken to over its debugging pipe (JSON messages that end in a zero byte)."""

    def __init__(self, profile: str) -> None:
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        assert CHROMIUM is not None
        starter = [sys.executable, "-c", PLACE_PIPES, str(to_browser), str(from_browser)]
        self.process = subprocess.Popen(
            [*starter, CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.sent, self.events, self.session = b"", 0, [], ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def receive(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self.read_end, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium closed its debugging pipe")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while answer := self.receive(60.0):
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)
        raise RuntimeError(f"Chromium did not answer {method}")

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 30
        while self.value("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def named(self, *methods: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") in methods]

    def complaints(self) -> list[str]:
        found = self.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"])[:500] for event in found]

    def requested(self) -> list[str]:
        return [event["params"]["request"]["url"] for event in self.named("Network.requestWillBeSent")]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        found = Browser(profile)
        yield found
        found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(make_run(400, rate=14.0, slo="ttft_p99=0.05,tpot=0.05")), encoding="utf-8")
    return path


def size(browser: Browser, width: int, height: int, mobile: bool = False) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)


def test_it_draws_without_a_word_and_without_the_network(browser: Browser, page: Path) -> None:
    size(browser, 1200, 900)
    browser.open(page)
    assert browser.value("document.body.dataset.drawn") == "10"
    assert browser.value("document.querySelectorAll('figure .plot > svg path').length") > 15
    assert browser.value("[...document.querySelectorAll('path')].every(p => !/NaN|Infinity/.test(p.getAttribute('d')))")
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith(("file:", "data:"))] == []


def test_a_page_that_misbehaved_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>console.log('hm')</script><img src='http://127.0.0.1:9/x.png'>", encoding="utf-8")
    browser.open(path)
    assert browser.complaints()
    assert any(url.startswith("http:") for url in browser.requested())


def test_dragging_zooms_all_plots_over_time_and_a_double_click_goes_back(browser: Browser, page: Path) -> None:
    size(browser, 1200, 900)
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


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_narrow_screen(browser: Browser, page: Path, width: int) -> None:
    size(browser, width, 800, mobile=True)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_what_a_trace_calls_itself_is_never_run(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{script}}"
    path = tmp_path / "evil.html"
    run = make_run(30, trace=evil, model=evil, notes=[evil])
    path.write_text(render_page(run, notes=[evil], scenario=evil), encoding="utf-8")
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
