"""The one list of measures: each is where a summary and the table of a sweep have it, and all views read it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from report_samples import make_run
from report_sweeps import sweep_table

from sim import api
from sim.report.measures import FORMATS, LATENCIES, MEASURES, compared, latency, listed
from sim.report.sweep.points import ALL
from sim.report.sweep.table import Sweep
from sim.results.percentiles import STATISTICS
from sim.results.tables import flat

ROOT = Path(__file__).resolve().parents[2]
SHARES = {f"output_tokens_per_s_per_{share}" for share in ("gpu", "user", "megawatt")}
OF_SWEEPS_ALONE = {"gpus", "gpu_hours_per_million_output_tokens", *SHARES}


@pytest.fixture(scope="module")
def summary() -> dict:
    return api.run(trace="chatbot_arena.jsonl", limit=60, rate=20.0, slo="ttft_p99=1", allocator="prefix").summary


def test_every_measure_stands_in_a_summary_at_its_key(summary: dict) -> None:
    """A misspelt key would read as a measure that the run does not have."""
    known = flat(summary)
    assert [key for key in MEASURES if key not in known] == sorted(OF_SWEEPS_ALONE, key=list(MEASURES).index)
    for key, measure in MEASURES.items():
        if key not in OF_SWEEPS_ALONE:
            assert measure.value(summary) == known[key]
        assert measure.unit in FORMATS


def test_a_sweep_reads_the_same_keys_as_columns() -> None:
    axes = {"workload.rate": [2.0, 4.0]}
    table = sweep_table(axes)
    sweep = Sweep.of(table, axes)
    for measure in ALL:
        if measure.key in table:
            assert sweep.points.mean[measure.key].tolist() == table[measure.key].tolist()


def test_names_and_keys_are_told_apart() -> None:
    assert len({measure.label for measure in MEASURES.values()}) == len(MEASURES)
    assert {f"{key}.{name}" for key in LATENCIES for name in STATISTICS} <= set(MEASURES)
    assert [row["name"] for row in listed()] == list(MEASURES)
    first = {"name": "throughput.requests_per_s", "unit": "per s", "better": "more", "about": "Requests"}
    assert listed()[0] == first
    assert {row["better"] for row in listed()} == {"more", "less", ""}


def test_one_value_and_many_are_written_in_the_unit_that_fits() -> None:
    wait, rate = latency("ttft_s", "p99"), MEASURES["throughput.requests_per_s"]
    assert (wait.words(0.0123), wait.words(None), wait.words(math.nan)) == ("12.3 ms", "-", "-")
    assert wait.texts([0.5, None, 2.0]) == ("ms", ["500", "-", "2,000"])
    assert wait.texts([0.5, 20.0]) == ("s", ["0.500", "20.0"])
    assert (rate.words(3.0), rate.title, rate.texts([3.0]), rate.scale([3.0])) == (
        "3.00/s", "Requests/s", ("", ["3.00"]), ("per s", 1.0)
    )  # fmt: skip
    energy = MEASURES["bill.joules_per_million_output_tokens"]
    assert energy.texts([2e7]) == ("", ["20,000"])  # its name says kJ
    assert energy.scale([2e7]) == ("MJ", 1e-6)
    assert MEASURES["kv.swapped_bytes"].texts([2048.0, None]) == ("", ["2.00 KiB", "-"])


def test_what_no_run_has_takes_no_place() -> None:
    plain = [measure.key for measure in compared([make_run(20).summary])]
    assert "kv.prefix_hit_rate" not in plain
    assert "throughput.requests_per_s" in plain
    served = make_run(20, slo="ttft=10").summary
    assert "goodput.requests_per_s" in [measure.key for measure in compared([make_run(20).summary, served])]


def test_no_view_writes_the_names_of_latencies_again() -> None:
    """A view with a list of its own would go its own way."""
    for path in (ROOT / "sim" / "report").rglob("*.py"):
        if path.name != "measures.py":
            assert not re.search(r'"(ttft|tpot|itl|e2e|queue)_s": "\w+"[,}]', path.read_text(encoding="utf-8")), path
