"""The words of a run's band: how far its answers may be off because its steps' prices are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sim.cost.errors import NORMAL_P90
from sim.report.measures import LATENCIES, LatencyUnits, scaled
from sim.results import band
from sim.results.units import number, percent

MOST_PARTS = 2
HINT = "sim run --band simulates both ends"
OF_FIRST_ORDER = f"first order: {HINT}"


def interval_words(told: Mapping[str, Any], key: str, statistic: str, units: LatencyUnits) -> str:
    """`16.6 to 20.4 ms`; "" where it is not known."""
    ends = told[key][statistic]
    if ends["low"] is None:
        return ""
    unit, factor = units[key]
    low, high = scaled([ends["low"], ends["high"]], factor)
    return f"{low} to {high} {unit}".rstrip()


def band_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, line) for a terminal: the intervals, then what they are made of; nothing of a run that has none."""
    told = summary.get("band")
    if not told:
        return []
    units = LatencyUnits.of([summary])
    known, open_ones = [], []
    for key in band.LATENCIES:
        words = {name: interval_words(told, key, name, units) for name in ("p50", "p99")}
        if found := ", ".join(f"{name} {text}" for name, text in words.items() if text):
            known.append(f"{LATENCIES[key]} {found}")
        elif summary[key]["p50"] is not None:
            open_ones.append(LATENCIES[key])
    goodput = told.get("goodput", {}).get("fraction")
    if goodput and goodput["low"] is not None:
        known.append(f"{percent(goodput['low'])} to {percent(goodput['high'])} within the SLO")
    label = f"Band {told['level']:.0%}"
    made = _made_of(told, open_ones)
    return [(label, "; ".join(known)), ("", made)] if known else [(label, made)]


def _made_of(told: Mapping[str, Any], open_ones: list[str]) -> str:
    width = NORMAL_P90 * told["common"]
    text = f"steps {percent(1 - math.exp(-width))} faster to {percent(math.exp(width) - 1)} slower"
    if parts := [f"{part['of']} ({part['source']})" for part in told["parts"][:MOST_PARTS]]:
        text += f", mostly by {' and '.join(parts)}"
    if told["how"] == band.SIMULATED:
        return f"{text}; both ends were simulated"
    if open_ones:
        return f"{text}; {' and '.join(open_ones)} hang on how long requests wait: {HINT}"
    return f"{text}; {OF_FIRST_ORDER}"


def band_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole band as (name, value), for a page; nothing of a run that has none."""
    told = summary.get("band")
    if not told:
        return []
    units = LatencyUnits.of([summary])
    rows = [
        (f"{LATENCIES[key]} {statistic}", interval_words(told, key, statistic, units) or "not of first order")
        for key in band.LATENCIES
        for statistic in ("p50", "p99")
    ]
    rates = told["throughput"]["requests_per_s"]
    if rates["low"] is not None:
        rows.append(("Requests/s", f"{number(rates['low'])} to {number(rates['high'])}"))
    steps = [
        (f"{kind.capitalize()} steps", f"+-{percent(NORMAL_P90 * each['common'])}")
        for kind, each in told["steps"].items()
        if each["share"] > 0
    ]
    parts = [
        (f"of that {part['of']}, {part['source']}", f"+-{percent(NORMAL_P90 * part['common'])}")
        for part in told["parts"]
        if NORMAL_P90 * part["common"] >= 0.005
    ]
    how = "both ends simulated" if told["how"] == band.SIMULATED else OF_FIRST_ORDER
    return [*rows, *steps, *parts, ("How", how)]
