"""Terminals of 60, 80 and 120 columns: no line is longer, no number is cut, every latency keeps its unit."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from report_samples import make_run
from report_sweeps import sweep_table
from test_pages_layout import INPUTS, candidate, latencies

from sim.report.compare.variant import Variant, differences
from sim.report.fitted import in_parts
from sim.report.measures import LATENCIES
from sim.report.plan.terminal import plan_view
from sim.report.sweep.terminal import sweep_view
from sim.report.terminal import compare_view, render, summary_view
from sim.report.validation.terminal import validation_view
from sim.validate import store
from sim.validate.run import Pricing, validate
from sim.validate.verdict import ON_CPU

WIDTHS = [60, 80, 120]
RECORDED = Path(__file__).resolve().parents[1] / "data" / "validate_cpu" / "chat-8-speculative-paged"


def lines_of(text: str, width: int) -> list[str]:
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    return lines


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_keeps_its_numbers_and_units(width: int) -> None:
    summary = make_run(300, rate=14.0, slo="ttft_p99=0.05", tp=1, replicas=1).summary
    summary["itl_s"] = dict.fromkeys(summary["itl_s"], 12345.6)
    rows = [line.split() for line in lines_of(render(summary_view(summary), width), width)]
    rows = [row for row in rows if row and row[0] in LATENCIES.values() and len(row) == 7]
    assert [row[0] for row in rows] == list(LATENCIES.values())
    assert all(row[1] in ("us", "ms", "s") for row in rows)
    assert next(row for row in rows if row[0] == "ITL")[1:] == ["s", *["12,346"] * 5]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("runs", [2, 6])
def test_a_comparison_keeps_its_numbers_and_units(width: int, runs: int) -> None:
    variants = [Variant.of(f"number {i} of them all", make_run(300, rate=4.0 + 2 * i)) for i in range(runs)]
    summaries = {variant.name: variant.summary for variant in variants}
    text = render(compare_view(summaries, width, pairs=differences(variants)), width)
    lines = lines_of(text, width)
    paired = [line for line in lines if re.match(r"(TTFT|TPOT|E2E|Queue) +(us|ms|s) ", line)]
    if runs == 2:
        assert len(paired) == 4
        assert all(re.search(r" (us|ms|s)\b", line) for line in lines if re.match(r"TTFT p\d\d", line))
    else:
        assert re.findall(r"\b(?:us|ms|s)\b", lines[2])
        assert sum(bool(re.search(r" (us|ms|s) +[-+\d]", line)) for line in lines) >= runs - 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_keeps_names_and_units_and_says_what_it_leaves_out(width: int) -> None:
    rows = [candidate(name, **latencies(0.176)) for name in ("h100, tp 1", "mi300x-vf, tp 8")]
    rows[1] |= {"status": "misses the SLO", "pareto": False}
    document = {
        "rate": 200.0, "rates": [], "candidates": rows, "best": rows[0], "capacity": None, "notes": [],
        "slo": {"ttft_p99": 0.5, "tpot_p99": 0.05}, "inputs": INPUTS, "precision": 0.05,
    }  # fmt: skip
    text = render(plan_view(document), width)
    lines = lines_of(text, width)
    for name in ("h100, tp 1", "mi300x-vf, tp 8"):
        row = next(line for line in lines if line.startswith(name + " "))
        assert "$55.0" in row
        assert "43.1 ms !" in row
        assert "176 ms" in row
    left = {"Req/s each", "Replicas", "$/Mtok", "Energy/Mtok"}
    told = " ".join(text.split()).partition("too wide for this terminal: ")[2]
    assert bool(told) == (width < 120)
    if width == 120:
        assert "54.9 kJ" in text
        assert "$0.0811" in text
    else:
        assert all(name in told or name.split("/")[0].split()[0] in text for name in left)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sweep_keeps_its_units(width: int) -> None:
    axes = {"workload.rate": [2.0, 8.0], "policy.name": ["chunked", "static"]}
    lines = lines_of(render(sweep_view(sweep_table(axes), axes), width), width)
    assert all(re.search(r"\d (us|ms|s)  ", line) for line in lines if re.match(r"(TTFT|TPOT|E2E) ", line))
    assert any(line.startswith("TTFT p99") for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_validation_keeps_its_numbers_and_units(width: int) -> None:
    kept = store.read(RECORDED)
    document = validate(kept, ON_CPU, Pricing.fitted_to(kept)).document
    text = render(validation_view(document), width)
    lines_of(text, width)
    wide = render(validation_view(document), 200)
    numbers = re.compile(r"[-+]?\d[\d,.]*(?: %)?")
    here, all_there = (Counter(numbers.findall(" ".join(told.split()))) for told in (text, wide))
    assert all_there - here == Counter()  # the names of rows may come again


@pytest.mark.parametrize("width", [20, 33, 47, 80])
def test_a_table_in_parts_shows_every_cell_once(width: int) -> None:
    heads = ["name", *(f"column {at}" for at in range(5))]
    rows = [[f"row {row}", *(f"{row}.{at}" for at in range(5))] for row in range(3)]
    text = render(in_parts(heads, rows), width)
    lines_of(text, width)
    for row in rows:
        for cell in row[1:]:
            assert len(re.findall(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", text)) == 1
    assert all(text.count(head) == 1 for head in heads[1:])
    assert (text.count("name") > 1) == (width < 80)
