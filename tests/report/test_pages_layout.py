"""Every kind of page on a phone, a screen and paper: nothing is cut, every tick and name of an axis is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_kit import Browser, chromium, needs_chromium
from profile_kit import llama_profile
from report_samples import make_run
from report_sweeps import sweep_table

from calibrate.evaluate import Checked
from calibrate.page import page as profile_page
from sim import api
from sim.report.claims.page import render_claims
from sim.report.compare.page import render_comparison
from sim.report.compare.variant import Failure, Variant
from sim.report.plan.page import render_plan
from sim.report.run.page import render_page
from sim.report.sweep.page import render_sweep
from sim.report.validation.page import render_validation
from sim.study import claims
from sim.validate import store
from sim.validate.run import Pricing, validate
from sim.validate.verdict import ON_CPU

pytestmark = needs_chromium
RECORDED = Path(__file__).resolve().parents[1] / "data" / "validate_cpu" / "chat-8-speculative-paged"
INPUTS = {"trace": "chat.jsonl", "model": "llama-3.1-8b", "engine": "foretoken", "gpu": "h100", "tp": 1}
NAMES = ("a long name of a variant", "b")


def a_run() -> str:
    return render_page(make_run(400, rate=14.0, slo="ttft_p99=0.05,tpot=0.05", tp=1, replicas=1))


def a_slow_run() -> str:
    """Numbers of many digits: hours of waiting."""
    run = make_run(400, rate=14.0, slo="ttft_p99=0.05")
    run.requests["ttft_s"] += 12_345.0
    run.summary["ttft_s"] = {name: value + 12_345.0 for name, value in run.summary["ttft_s"].items()}
    return render_page(run)


def a_comparison() -> str:
    runs = [make_run(300, rate=rate, slo="ttft_p99=0.5,tpot_p99=0.05") for rate in (4.0, 14.0)]
    return render_comparison([*map(Variant.of, NAMES, runs), Failure("broken", "a model that does not fit " * 4)])


def a_sweep() -> str:
    axes = {"workload.rate": [2.0, 8.0, 14.0], "policy.name": ["chunked", "static"], "replicas": [1, 2]}
    return render_sweep(sweep_table(axes, fail="static"), axes, {"version": "x"})


def latencies(ttft_s: float) -> dict[str, dict[str, float]]:
    scales = {"ttft_s": 1.0, "tpot_s": 0.1, "e2e_s": 10.0}
    return {
        key: {"p50": scale * ttft_s / 2, "p90": scale * ttft_s, "p99": scale * ttft_s} for key, scale in scales.items()
    }


def candidate(name: str, **changed: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name, "gpu": "h100", "tp": 1, "replicas": 8, "gpu_count": 8, "usd_per_hour": 55.04,
        "gpus": {"low": 7, "likely": 8, "high": 9}, "usd_range": {"low": 38.5, "likely": 55.04, "high": 74.3},
        "usd_per_million_tokens": 0.0811, "joules_per_million_tokens": 54_876.0, "joules_upper_bound": True,
        "price_source": "a list", "power_source": "a data sheet", "capacity_per_replica": 26.8,
        "range_per_replica": [25.0, 28.6], "bound_per_replica": 33.8, "bound_binds": "seats", "status": "meets",
        "reason": "", "confirmed": True, "replications": 5, "pareto": True,
        "slo_values": {"ttft_p99": 0.176, "tpot_p99": 0.0431}, "slo_nearest": "tpot_p99",
        "binds": {"slo": "ttft_p99", "limit": "seats"}, **latencies(0.176),
    }  # fmt: skip
    return facts | changed


def a_plan() -> str:
    unfinished = candidate(
        "a100-80, tp 2", gpus={"low": 10, "likely": None, "high": None}, usd_range=None,
        capacity_per_replica=None, range_per_replica=None, usd_per_million_tokens=None,
        joules_per_million_tokens=None, slo_values=None, binds=None, status="not finished",
        reason="needs at least 10 GPUs; how many more is not known yet", pareto=False,
        ttft_s=None, tpot_s=None, e2e_s=None,
    )  # fmt: skip
    rows = [candidate("h100, tp 1"), candidate("mi300x, tp 8", usd_per_hour=70.0, **latencies(1.76)), unfinished]
    shared = {"slo": {"ttft_p99": 0.5, "tpot_p99": 0.05}, "inputs": INPUTS, "notes": [], "precision": 0.05}
    choice = {"rate": 200.0, "rates": [], "candidates": rows, "best": rows[0], "capacity": None}
    return render_plan(shared | choice)


def a_capacity() -> str:
    rates = [
        {"requests_per_s": rate, "stable": rate < 90, "met": rate < 80, "replications": 4,
         "goodput": {"requests_per_s": 0.9 * rate, "fraction": 0.9}, **latencies(0.04 * 4 ** (rate / 40))}
        for rate in (21.0, 42.0, 84.1, 92.5)
    ]  # fmt: skip
    capacity = {
        "requests_per_s": 84.1,
        "ci95": [82.0, 87.0],
        "half_width": 2.5,
        "relative": 0.03,
        "bound_by": "ttft_p99",
    }
    shared = {"slo": {"ttft_p99": 0.5, "tpot_p99": 0.05}, "inputs": INPUTS, "notes": [], "precision": 0.05}
    return render_plan(
        shared | {"rate": None, "rates": rates, "candidates": [], "best": candidate("run"), "capacity": capacity}
    )


def a_validation() -> str:
    kept = store.read(RECORDED)
    return render_validation(validate(kept, ON_CPU, Pricing.fitted_to(kept)))


def a_profile() -> str:
    checked = [
        Checked(
            group,
            f"dtype bf16, tokens {2**at}, k 4096",
            low * 4**at,
            low * 4**at * (0.7 + 0.1 * (at % 6)),
            "interpolated",
        )
        for group, low in (("gemm", 2.0), ("decode_attention", 55.0), ("swap", 0.3))
        for at in range(11)
    ]
    return profile_page(llama_profile(), checked, [Checked("decode", "8 rows", 12_000.0, 12_500.0, "interpolated")])


def claims_page() -> str:
    """Rows as `sim claims` would have them, with made-up figures: nothing is simulated here."""
    rows = []
    for name in claims.names():
        claim = claims.load(name)
        for situation in claim.situations or [None]:
            outcomes = [(3.1, "")] * len(situation.runs) if situation else []
            rows.append(claims._row(claim, situation, outcomes))
    return render_claims(rows, {}, "x")


PAGES: dict[str, Callable[[], str]] = {
    "run": a_run, "slow run": a_slow_run, "comparison": a_comparison, "sweep": a_sweep, "plan": a_plan,
    "capacity": a_capacity, "validation": a_validation, "profile": a_profile, "claims": claims_page,
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


# Texts of plots that reach out of them (beyond half a pixel), and ticks of one axis that run into each other.
FAULTS = """(() => {
  const faults = [];
  for (const svg of document.querySelectorAll('.plot svg')) {
    const box = svg.getBoundingClientRect(), below = [], beside = [];
    if (!box.width) continue;
    for (const text of svg.querySelectorAll('.tick, .label')) {
      const at = text.getBoundingClientRect();
      const out = [box.left - at.left, at.right - box.right, box.top - at.top, at.bottom - box.bottom];
      if (Math.max(...out) > 0.5) faults.push('cut: ' + text.textContent);
      if (text.classList.contains('tick')) (text.getAttribute('text-anchor') === 'end' ? beside : below).push(at);
    }
    below.sort((one, other) => one.left - other.left);
    for (let i = 1; i < below.length; i++) if (below[i].left < below[i - 1].right + 2) faults.push('ticks touch');
    beside.sort((one, other) => one.top - other.top);
    for (let i = 1; i < beside.length; i++) if (beside[i].top < beside[i - 1].top + 6) faults.push('ticks touch');
  }
  return faults;
})()"""
# Tables and words that are wider than what holds them.
CUT = """[...document.querySelectorAll('.scroll, .tall, .card, .panel, figure, .chips, .answer, h1, li')]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.tagName} ${e.className} ${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim().slice(0, 60)}`)"""
AXES = """[...document.querySelectorAll('figure[data-chart]')].filter(f => f.querySelector('.tick'))
  .filter(f => ![...f.querySelectorAll('.label')].some(t => t.textContent.trim())).map(f => f.dataset.chart)"""
# Plots of several lines without a legend of their own or of their group.
UNNAMED = """[...document.querySelectorAll('figure[data-chart]')].filter(f => {
    const spec = JSON.parse(document.getElementById('data').textContent)[f.dataset.chart];
    const whole = { ...spec, ...(spec.choices && spec.choices[0]) };
    const keys = document.querySelector(`[data-legend="${whole.group}"]`) || f;
    return (whole.series || []).length > 1 && keys.querySelectorAll('.key .sign').length < whole.series.length;
  }).map(f => f.dataset.chart)"""


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_and_every_axis_has_its_name(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 900, mobile=width < 500)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(FAULTS) == []
    assert browser.value(CUT) == []
    assert browser.value(AXES) == []
    assert browser.value(UNNAMED) == []
    assert browser.complaints() == []


def test_paper_holds_it_all(browser: Browser, page: Path) -> None:
    """What beforeprint makes ready for A4, under the rules of print; afterwards the screen has its own again."""
    browser.resize(718, 1000)
    browser.open(page)
    screen = browser.value("[...document.querySelectorAll('.plot > svg')].map(s => s.getAttribute('viewBox'))")
    browser.value("window.dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.value("document.documentElement.scrollWidth") <= 718
        assert browser.value(CUT) == []
        assert browser.value(FAULTS) == []
        sizes = (
            "[...document.querySelectorAll('.plot > svg[viewBox]')].map(s => [s.viewBox.baseVal.width, s.clientWidth])"
        )
        assert all(abs(drawn - shown) <= 0.05 * shown for drawn, shown in browser.value(sizes))
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    browser.value("window.dispatchEvent(new Event('afterprint'))")
    assert browser.value("[...document.querySelectorAll('.plot > svg')].map(s => s.getAttribute('viewBox'))") == screen


def test_what_binds_is_told_in_percent(browser: Browser, tmp_path: Path) -> None:
    text = render_page(api.run(trace="chatbot_arena.jsonl", limit=200, rate=60.0, **{"kv.blocks": 400}))
    spec = json.loads(text.split('id="data">')[1].split("</script>")[0])["limits"]
    assert spec["y"] == {"unit": "%", "label": "share of the time"}
    whole = [sum(filter(None, parts)) for parts in zip(*(line["mean"] for line in spec["series"]), strict=True)]
    assert whole == pytest.approx([100.0] * len(whole), abs=0.1)
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    browser.resize(1200, 900)
    browser.open(path)
    ticks = browser.value("[...document.querySelectorAll('[data-chart=limits] .tick')].map(t => t.textContent)")
    assert ticks[0] == "0"
    assert "100" in ticks
    assert "share of the time, %" in browser.value(
        "document.querySelector('[data-chart=limits] .plot > svg').textContent"
    )
