"""Money and energy: the arithmetic by hand, whose price counts, and that every price has its source and month."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_kit import config_of, tensors_of, write_checkpoint
from report_samples import make_run

from sim import api, catalog, scenario
from sim.catalog import load_gpu, names
from sim.report import terminal
from sim.report.compare.page import render_comparison
from sim.report.compare.variant import Variant
from sim.report.measures import MEASURES, compared
from sim.report.run import sentences as words
from sim.results import metrics, units
from sim.results.bill import NO_POWER, NO_PRICE, Rates, bill
from sim.results.kv import busy_s
from sim.scenario import PriceSettings
from sim.serving import run as serving
from traces.schema import InputError

FOLDER = Path(catalog.__file__).parent / "gpus"
KEYS = [
    *("gpus", "usd_per_gpu_hour", "usd", "usd_per_million_tokens", "usd_per_million_output_tokens", "watts_per_gpu"),
    *("idle_watts_per_gpu", "joules", "joules_upper_bound", "joules_per_million_tokens"),
    *("joules_per_million_output_tokens", "price_source", "power_source"),
]
HOUR = {"duration_s": 3600.0, "busy_gpu_s": 1800.0, "tokens": 4_000_000, "output_tokens": 1_000_000}


# --- the arithmetic ---


def test_an_hour_of_two_gpus_by_hand() -> None:
    """2 GPUs for an hour at $3 are $6, 4 million tokens of it a million output; busy a quarter of 7,200 GPU-seconds."""
    found = bill(Rates(2, 3.0, 400.0, 100.0, upper_bound=False), **HOUR)
    assert list(found) == KEYS
    assert (found["usd"], found["usd_per_million_tokens"], found["usd_per_million_output_tokens"]) == (6.0, 1.5, 6.0)
    assert found["joules"] == 1800 * 400 + 5400 * 100
    assert found["joules_per_million_tokens"] == found["joules"] / 4
    assert found["joules_per_million_output_tokens"] == found["joules"]
    assert found["joules_upper_bound"] is False


def test_without_an_idle_power_all_the_time_counts_as_busy() -> None:
    found = bill(Rates(2, None, 400.0), **HOUR)
    assert found["joules"] == 7200 * 400
    assert found["joules_upper_bound"] is True


@pytest.mark.parametrize("rates", [Rates(1), Rates(1, usd_per_gpu_hour=1.0), Rates(1, watts_per_gpu=1.0)])
def test_what_is_not_known_is_none_and_never_zero(rates: Rates) -> None:
    found = bill(rates, **HOUR)
    for name, known in (("usd", rates.usd_per_gpu_hour), ("joules", rates.watts_per_gpu)):
        amounts = [found[name], found[f"{name}_per_million_tokens"], found[f"{name}_per_million_output_tokens"]]
        assert [amount is not None for amount in amounts] == [known is not None] * 3
    nothing = bill(rates, **{**HOUR, "tokens": 0, "output_tokens": 0})
    assert nothing["usd_per_million_tokens"] is None
    assert nothing["joules_per_million_output_tokens"] is None


@given(st.integers(1, 64), st.floats(0, 1e6), st.floats(0, 1), st.floats(1, 1e3), st.floats(0.1, 1))
def test_energy_lies_between_all_idle_and_all_busy(
    gpus: int, duration_s: float, busy: float, watts: float, idle: float
) -> None:
    gpu_s = gpus * duration_s
    rates = Rates(gpus, 1.0, watts, watts * idle)
    found = bill(rates, duration_s=duration_s, busy_gpu_s=busy * gpu_s, tokens=1, output_tokens=1)["joules"]
    assert watts * idle * gpu_s * (1 - 1e-9) <= found <= watts * gpu_s * (1 + 1e-9)


def test_steps_that_outlast_the_run_by_rounding_are_not_busy_for_longer_than_it() -> None:
    found = bill(Rates(1, None, 100.0, 50.0), duration_s=10.0, busy_gpu_s=10.0001, tokens=1, output_tokens=1)
    assert found["joules"] == 1000.0


# --- whose numbers count ---


def test_the_scenario_s_price_and_power_come_before_the_catalog_s() -> None:
    gpu = load_gpu("h100")
    ours = Rates.of(8, gpu, PriceSettings())
    assert (ours.gpus, ours.usd_per_gpu_hour, ours.watts_per_gpu, ours.idle_watts_per_gpu) == (8, 6.88, 700.0, None)
    assert "p5.48xlarge" in ours.price_source
    assert "2025-06" in ours.price_source
    assert "at most" in ours.power_source
    assert "counted all the time" in ours.power_source
    given_ = Rates.of(8, gpu, PriceSettings(2.0, 350.0, 90.0))
    assert (given_.usd_per_gpu_hour, given_.watts_per_gpu, given_.idle_watts_per_gpu) == (2.0, 350.0, 90.0)
    assert given_.price_source == "price.usd_per_gpu_hour"
    assert given_.power_source == "price.watts_per_gpu; between steps price.idle_watts_per_gpu"
    assert not given_.upper_bound
    assert Rates.of(8, gpu, PriceSettings(2.0, 350.0)).upper_bound
    assert Rates.of(8, gpu, PriceSettings(idle_watts_per_gpu=90.0)).upper_bound


def test_hardware_out_of_the_catalog_has_no_bill_unless_it_is_given_one() -> None:
    nothing = Rates.of(1, None, PriceSettings(idle_watts_per_gpu=5.0))
    assert nothing == Rates(1)
    assert (nothing.price_source, nothing.power_source) == (NO_PRICE, NO_POWER)
    assert Rates.of(1, None, PriceSettings(0.4)).usd_per_gpu_hour == 0.4
    assert Rates.of(1, load_gpu("rtx-4090"), PriceSettings()).price_source == NO_PRICE
    assert Rates.of(1, replace(load_gpu("l4"), watts=0.0), PriceSettings()).watts_per_gpu is None


def test_a_live_run_is_billed_for_what_it_ran_on() -> None:
    parts: Any = SimpleNamespace(gpu=load_gpu("t4"))

    def billed(name: str) -> str | None:
        session: Any = SimpleNamespace(device_name=name)
        gpu = serving._billed(parts, session)
        return gpu.name if gpu else None

    assert billed("NVIDIA H100 80GB HBM3") == "h100"
    assert [billed(name) for name in ("x86_64", "", "cpu", "NVIDIA Something New")] == [None] * 4
    simulated = serving._billed(parts, None)
    assert simulated is not None
    assert simulated.name == "t4"


@pytest.mark.parametrize("key", ["usd_per_gpu_hour", "watts_per_gpu", "idle_watts_per_gpu"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number_from_zero_on(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"price\.{key} is .*at least 0"):
        scenario.build({}, {f"price.{key}": value})


def test_an_unknown_price_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown setting 'price\.eur'; price has usd_per_gpu_hour, watts_per_gpu"):
        scenario.build({}, {"price.eur": 3})


# --- the catalog ---


@pytest.mark.parametrize("name", names("gpus"))
def test_prices_have_a_cloud_and_a_month_and_watts_a_year(name: str) -> None:
    gpu = load_gpu(name)
    assert re.search(r"\(20\d\d\)", gpu.source_of("watts"))
    assert f"{gpu.watts:,.0f} W" in gpu.source_of("watts")
    if not gpu.usd_per_gpu_hour:
        assert not gpu.price_month
        return
    source = gpu.source_of("usd_per_gpu_hour")
    found = re.search(r"(AWS|Oracle).*: ([\d.]+) USD (an hour|per GPU and hour)(?: for (\d+) GPUs)?$", source)
    assert found, source
    assert gpu.usd_per_gpu_hour == pytest.approx(float(found[2]) / int(found[4] or 1), rel=5e-4)


def test_the_listing_has_price_month_and_watts() -> None:
    rows = {row["name"]: row for row in catalog.gpu_rows()}
    assert (rows["h100"]["usd_per_gpu_hour"], rows["h100"]["price_month"], rows["h100"]["watts"]) == (
        6.88,
        "2025-06",
        700,
    )
    assert rows["rtx-4090"]["usd_per_gpu_hour"] is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('price_month = "2025-06"', "", "belong together"),
        ("usd_per_gpu_hour = 0.8048", "", "belong together"),
        ('"2025-06"', '"June 2025"', "price_month = 'June 2025' must be a month such as 2025-06"),
        ('"2025-06"', '"2025-13"', "must be a month"),
        ("usd_per_gpu_hour = 0.8048", "usd_per_gpu_hour = -1", "usd_per_gpu_hour = -1.0 must be 0 or lie"),
        ("usd_per_gpu_hour = 0.8048", "eur_per_gpu_hour = 0.8", "unknown key 'eur_per_gpu_hour'; known are"),
        ("usd_per_gpu_hour = 0.8048", 'usd_per_gpu_hour = "0.8"', "must be of type float"),
    ],
)
def test_a_gpu_file_with_a_wrong_price_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = (FOLDER / "l4.toml").read_text()
    assert old in text
    path = tmp_path / "l4.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        load_gpu(str(path))
    assert str(path) in str(caught.value)


# --- runs ---


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bill") / "small.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n1.0,50,1\n")
    return str(path)


def small(trace: str, **settings: Any) -> api.Result:
    return api.run(trace=trace, **{"engine.max_model_len": 4096, **settings})


def test_a_run_is_billed_by_its_tables(trace: str) -> None:
    settings = {"tp": 2, "replicas": 3, "workload.samples": 2, "price.idle_watts_per_gpu": 70.0}
    result = small(trace, **settings)
    found, duration_s = result.summary["bill"], result.summary["duration_s"]
    assert found["gpus"] == 6
    assert found["usd"] == pytest.approx(6 * 6.88 * duration_s / 3600)
    assert found["usd_per_million_tokens"] == pytest.approx(found["usd"] / (350 + 2 * 13) * 1e6)
    assert found["usd_per_million_output_tokens"] == pytest.approx(found["usd"] / 26 * 1e6)
    busy_gpu_s = 2 * float(busy_s(result.steps).sum())
    assert found["joules"] == pytest.approx(700 * busy_gpu_s + 70 * (6 * duration_s - busy_gpu_s))
    assert json.loads(json.dumps(found)) == found
    assert result.scenario.price.idle_watts_per_gpu == 70.0


def test_what_nobody_completed_is_paid_for_all_the_same() -> None:
    run = make_run(40)
    requests = run.requests.assign(status="unfinished")
    found = metrics.run_bill(requests, run.steps, Rates(1, 2.0, 10.0), 1, 1800.0)
    assert found["usd"] == 1.0
    assert found["usd_per_million_tokens"] is None
    assert words.money_line(found) == "$1.00 for 1 GPU at $2.00 an hour, and no request completed"
    assert words.energy_line(found) == "at most 18.0 kJ at 10.0 W a GPU, and no request completed"


def test_a_live_run_on_a_cpu_has_no_bill_unless_it_is_priced(trace: str, tmp_path: Path) -> None:
    config = config_of("llama")
    model = str(write_checkpoint(tmp_path, config, tensors_of(config, seed=1)))
    settings = {"model": model, "executor": "live", "device": "cpu", "kv.blocks": 64, "engine.max_model_len": 256}
    free, priced = (small(trace, **settings, **more) for more in ({}, {"price.usd_per_gpu_hour": 0.4}))
    assert free.summary["bill"]["usd"] is None
    assert free.summary["bill"]["joules"] is None
    assert free.summary["bill"]["price_source"] == NO_PRICE
    assert priced.summary["bill"]["usd"] == pytest.approx(0.4 * priced.summary["duration_s"] / 3600)


# --- reports ---


def test_the_terminal_tells_money_and_energy(trace: str) -> None:
    text = terminal.render(terminal.summary_view(small(trace).summary))
    assert re.search(
        r"^Money      \$[\d.,]+ per million tokens \(\$[\d.,]+ of output\); 1 GPU at \$6\.88 an hour$", text, re.M
    )
    assert re.search(
        r"^Energy     at most [\d.]+ [kMG]?J per million tokens \([\d.]+ [kMG]?J of output\); 700 W", text, re.M
    )
    unknown = terminal.render(terminal.summary_view(make_run(20).summary))
    assert f"Money      {NO_PRICE}" in unknown
    assert f"Energy     {NO_POWER}" in unknown


def test_rows_of_the_page() -> None:
    known = dict(words.bill_rows(bill(Rates.of(2, load_gpu("h100"), PriceSettings()), **HOUR)))
    assert known["Cost of the run"] == "$13.8"
    assert known["Of a million output tokens"] == "$13.8"
    assert known["Energy of the run, at most"] == "5.04 MJ"
    assert "55.04 USD" in known["Price"]
    unknown = dict(words.bill_rows(bill(Rates(2), **HOUR)))
    assert unknown == {"GPUs": "2", "Price": NO_PRICE, "Power": NO_POWER}
    bounded = words.bill_rows(bill(replace(Rates(1, None, 9.0, 1.0), upper_bound=False), **HOUR))
    assert "Energy of the run" in dict(bounded)


def test_measures_of_money_and_energy(trace: str) -> None:
    summary = small(trace).summary
    found = {measure.title: measure.value(summary) for measure in MEASURES.values()}
    assert found["$/Mtok output"] == summary["bill"]["usd_per_million_output_tokens"]
    joules = MEASURES["bill.joules_per_million_tokens"]
    assert found["kJ/Mtok"] == summary["bill"]["joules_per_million_tokens"]
    assert joules.texts([found["kJ/Mtok"]]) == ("", [units.number(found["kJ/Mtok"] / 1000)])
    assert {"$/Mtok", "kJ/Mtok output"} <= {measure.title for measure in compared([summary])}
    assert not [measure for measure in compared([make_run(20).summary]) if measure.group in ("Money", "Energy")]


def test_a_comparison_has_columns_for_them_and_says_whose_price(trace: str) -> None:
    runs = [Variant.of(gpu, small(trace, gpu=gpu)) for gpu in ("l4", "h100", "rtx-4090")]
    page = render_comparison(runs)
    for text in (
        "$/Mtok",
        "kJ/Mtok output",
        "Lowest $/Mtok of output",
        "h100: Price: AWS",
        f"rtx-4090: Price: {NO_PRICE}",
    ):
        assert text in page, text
    told = terminal.render(terminal.compare_view({one.name: one.summary for one in runs[:2]}))
    assert "$/Mtok output" in told


@pytest.mark.parametrize(
    ("value_j", "text"),
    [
        (None, "-"),
        (0.0, "0 J"),
        (0.5, "0.500 J"),
        (850.0, "850 J"),
        (1234.0, "1.23 kJ"),
        (2.9e6, "2.90 MJ"),
        (5e12, "5,000 GJ"),
    ],
)
def test_energies(value_j: float | None, text: str) -> None:
    assert units.energy(value_j) == text


def test_dollars() -> None:
    assert [units.dollars(value) for value in (None, 0.0123, 7.94, 1234.0)] == ["-", "$0.0123", "$7.94", "$1,234"]
