"""One unit per latency on a page: cards, sentences, tables, axes, marks and limits; and what a title tells."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import make_run
from report_sweeps import sweep_table
from test_report_page import Outline

from sim.report.compare.page import render_comparison
from sim.report.compare.variant import Variant
from sim.report.measures import LATENCIES, LatencyUnits, latency
from sim.report.plan.page import render_plan
from sim.report.run.page import render_page
from sim.report.run.sentences import engine_of, heading, load_words, title
from sim.report.sweep.page import render_sweep
from sim.results.units import seconds, time_unit

TIMES = st.floats(1e-7, 119.0)
UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}
A_TIME = r"([\d,.]+) (us|ms|s)\b"


@given(TIMES)
def test_the_unit_is_that_in_which_the_verdict_tells_the_same_value(value_s: float) -> None:
    assert time_unit(value_s).words(value_s) == seconds(value_s)


@given(TIMES, TIMES)
def test_any_value_in_any_unit_is_right_to_three_digits(value_s: float, other_s: float) -> None:
    unit = time_unit(other_s)
    text, _, name = unit.words(value_s).partition(" ")
    assert name == unit.name
    assert float(text.replace(",", "")) / UNITS[name] == pytest.approx(value_s, rel=6e-3)


@given(st.sampled_from([0.05, 0.5, 2.5, 20.0, 0.0005, 1200.0]), TIMES)
def test_a_limit_is_told_exactly(limit_s: float, other_s: float) -> None:
    text, _, name = time_unit(other_s).limit(limit_s).partition(" ")
    assert float(text.replace(",", "")) / UNITS[name] == pytest.approx(limit_s, rel=1e-9, abs=1e-6)
    assert not text.endswith((".", ".0"))


@pytest.mark.parametrize("nothing", [None, math.nan, 0.0])
def test_without_a_value_there_is_a_unit_all_the_same(nothing: float | None) -> None:
    assert time_unit(nothing).name == "ms"
    assert LatencyUnits.of([{"ttft_s": {"p99": nothing}}, {}])["ttft_s"].name == "ms"


def test_the_largest_tail_of_several_runs_decides() -> None:
    runs = [{"ttft_s": {"p99": 0.2}}, {"ttft_s": {"p99": 3.0}}, {"ttft_s": None}]
    units = LatencyUnits.of(runs)
    assert units.words(latency("ttft_s", "p50"), 0.05) == "0.0500 s"
    assert units.texts(latency("ttft_s", "p50"), [0.05, None]) == ("s", ["0.0500", "-"])
    assert units.limit("ttft_p99", 0.5) == "0.5 s"
    assert units.limit("itl", 0.2) == "200 ms"


def units_after(text: str, before: str) -> set[str]:
    return {unit for _, unit in re.findall(rf"{before}[^<]*?{A_TIME}", text)}


def test_a_run_tells_each_latency_in_one_unit() -> None:
    run = make_run(400, rate=14.0, slo="ttft_p99=0.05,e2e_p99=20")
    assert run.summary["e2e_s"]["p50"] < 1.0 < run.summary["e2e_s"]["p99"]  # so that two units would come by themselves
    page = render_page(run)
    units, specs = LatencyUnits.of([run.summary]), json.loads(Outline(page).scripts[0])
    for key, name in LATENCIES.items():
        unit = units[key].name
        assert f"<th>{name}, {unit}</th>" in page
        if key == "queue_s":
            continue
        spec = specs[key.removesuffix("_s")]
        assert spec["x"]["unit"] == unit
        told = [mark["label"] for mark in spec["marks"]] + [limit["label"] for limit in spec["limits"]]
        assert {text.rpartition(" ")[2] for text in told} == {unit}
        sentence = re.findall(rf'data-chart="{key.removesuffix("_s")}" data-label="([^"]*)"', page)[0]
        assert {found for _, found in re.findall(A_TIME, sentence)} == {unit}
        if key != "itl_s":
            assert units_after(page, f"{name} median</p>.p class=.big.>") == {unit}
    assert units_after(page, "<li class=.missed.>TTFT p99") == {units["ttft_s"].name}
    assert specs["phases"]["x"]["unit"] == units["e2e_s"].name == "s"
    assert specs["ttft-time"]["y"]["unit"] == units["ttft_s"].name
    assert specs["terms-time"]["y"]["unit"] == specs["step"]["y"]["unit"] if "terms-time" in specs else True


def test_a_comparison_tells_each_latency_in_one_unit() -> None:
    fast, slow = make_run(300, rate=4.0, slo="ttft_p99=0.5"), make_run(300, rate=14.0, slo="ttft_p99=0.5")
    slow.summary["ttft_s"] = {name: 40 * value for name, value in slow.summary["ttft_s"].items()}
    page = render_comparison([Variant.of("fast", fast), Variant.of("slow", slow)])
    spec = json.loads(Outline(page).scripts[0])["ttft"]
    assert spec["x"]["unit"] == "s"
    assert [limit["label"] for limit in spec["limits"]] == ["p99 limit 0.5 s"]
    assert ">TTFT, s</th>" in page
    assert "TTFT, ms" not in page


def test_a_sweep_tells_each_latency_in_one_unit() -> None:
    axes = {"workload.rate": [2.0, 8.0, 14.0, 30.0], "policy.name": ["chunked", "static"]}
    page = render_sweep(sweep_table(axes), axes, {"version": "x"})
    specs = json.loads(Outline(page).scripts[0])
    for key in ("ttft", "tpot", "e2e"):
        choices = specs[f"load-{key}"]["choices"]
        units = {choice["y"]["unit"] for choice in choices}
        assert len(units) == 1
        unit = units.pop()
        for choice in choices:
            assert {found for _, found in re.findall(A_TIME, choice["sentence"])} <= {unit}
            assert all(limit["label"].endswith(f" {unit}") for limit in choice["limits"])
        name = LATENCIES[f"{key}_s"]
        assert len(set(re.findall(rf">{name} (?:median|p99), (\w+)</th>", page))) == 1


def test_a_plan_tells_each_latency_in_one_unit() -> None:
    def row(name: str, ttft_s: float) -> dict:
        latencies = {key: {"p50": ttft_s / 2, "p90": ttft_s, "p99": ttft_s} for key in ("ttft_s", "tpot_s", "e2e_s")}
        span = {"low": 7, "likely": 8, "high": 9}
        binds = {"slo": "ttft_p99", "limit": "seats"}
        return {
            "name": name, "gpu": "h100", "tp": 1, "replicas": 8, "gpus": span, "gpu_count": 8, "usd_per_hour": 20.0,
            "usd_range": {"low": 15.0, "likely": 20.0, "high": 25.0}, "usd_per_million_tokens": 0.1,
            "joules_per_million_tokens": None, "joules_upper_bound": None, "price_source": "p",
            "capacity_per_replica": 26.0, "range_per_replica": [25.0, 28.0],
            "status": "meets", "reason": "", "confirmed": True, "replications": 5, "slo_values": {"ttft_p99": ttft_s},
            "slo_nearest": "ttft_p99", "binds": binds, **latencies,
        }  # fmt: skip

    rows = [row("a", 0.2), row("b", 3.0), {**row("c", 0.1), "gpus": {"low": 3, "likely": None, "high": None}}]
    rows[2] |= {"binds": None, "bound_binds": "compute", "usd_range": None, "ttft_s": None, "slo_values": None}
    inputs = {"trace": "t.jsonl", "model": "m", "engine": "foretoken"}
    page = render_plan(
        {
            "rate": 200.0,
            "rates": [],
            "slo": {"ttft_p99": 0.5},
            "inputs": inputs,
            "notes": [],
            "candidates": rows,
            "best": rows[0],
            "capacity": None,
            "precision": 0.05,
        }
    )
    assert "<h1>m on 8 x h100 (TP 1, 8 replicas), foretoken, 200 requests/s: t.jsonl</h1>" in page
    assert "0.200 s !" in page
    assert "SLO: ttft_p99 0.5 s" in page
    for text in ("7 to 9, most likely 8", "26.0 (25.0 to 28.0)", "$20.0 ($15.0 to $25.0)", "compute, by its costs"):
        assert f">{text}</td>" in page
    ranges = json.loads(Outline(page).scripts[0])["ranges"]["choices"]
    assert [choice["x"]["label"] for choice in ranges] == ["GPUs", "$ an hour"]
    assert [row["label"] for row in ranges[0]["rows"]] == ["a", "b", "c"]
    assert ranges[0]["rows"][0]["text"] == "7 to 9, most likely 8, bound by ttft_p99 and seats"
    assert (ranges[0]["rows"][2]["likely"], ranges[0]["rows"][2]["text"]) == (None, "at least 3")


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"kind": "open", "asked_per_s": 25.0}, "25 requests/s"),
        ({"kind": "closed", "asked_per_s": None, "users": 64}, "64 users"),
        ({"kind": "at once", "asked_per_s": None}, "all at once"),
        ({"kind": "recorded", "asked_per_s": None}, "at its recorded times"),
        ({"kind": "staged", "asked_per_s": None}, "in stages"),
        ({}, ""),
    ],
)
def test_a_title_tells_the_load(load: dict, words: str) -> None:
    assert load_words(load) == words


def test_a_title_tells_model_gpus_engine_load_and_trace() -> None:
    inputs = {"trace": "chat.jsonl", "model": "llama-3.1-8b", "gpu": "h100", "tp": 2, "replicas": 3}
    summary = {"inputs": inputs, "load": {"kind": "open", "asked_per_s": 12.5}}
    whole = "llama-3.1-8b on 6 x h100 (TP 2, 3 replicas), foretoken, 12.5 requests/s: chat.jsonl"
    assert title(summary, engine_of({}, '[engine]\nname = "foretoken"\n')) == whole
    assert heading({"model": "m", "gpu": "g"}, "", "", "t") == "m on g: t"
    assert heading({}, "", "", "t") == "t"
    assert heading(inputs | {"tp": 1, "replicas": 1}, "", "", "t") == "llama-3.1-8b on h100 (TP 1, 1 replica): t"


@pytest.mark.parametrize("scenario", ["", "[engine]\n", "not toml <", "engine = 3\n"])
def test_a_scenario_that_names_no_engine(scenario: str) -> None:
    assert engine_of({}, scenario) == ""
    assert engine_of({"engine": "vllm-0.33"}, scenario) == "vllm-0.33"
