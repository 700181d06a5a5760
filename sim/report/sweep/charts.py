"""The plots of a sweep against its load: rates, latency percentiles, and what drafting gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.report.chart import Chart, Spec, against_load, axis, choice, line
from sim.report.measures import Measure, Scale, latency
from sim.report.sweep.points import RATES, STATISTICS, SWEPT_LATENCIES, value_text
from sim.report.sweep.table import Axis, Sweep
from sim.results import series
from sim.results.percentiles import Floats
from sim.results.units import count, number

Lines = dict[str, list[int]]
"""By name of a combination the rows of its points, in the order of the load."""
# A plot with more lines than this is a blot: the best are kept, and the note says so.
MOST_LINES = 16
# A latency whose largest value is more than so many medians starts out on a logarithmic axis.
STEEP = 20
UNSTABLE = "unstable"
# The settings of what drafts: they vary between a run and its counterpart without drafting.
DRAFTING = ("policy.", "speculation.")
DRAFTED = "speculation.drafted_tokens"


def load_charts(sweep: Sweep) -> list[Chart]:
    """Rates and latency percentiles against the load, a line for each combination of the other axes."""
    if sweep.load is None:
        return []
    lines = lines_of(sweep)
    groups = [("rate", "Throughput", sweep.known(RATES))]
    for key, label in SWEPT_LATENCIES.items():
        measures = [latency(key, statistic) for statistic in STATISTICS]
        groups.append((key.removesuffix("_s"), label, sweep.known(measures)))
    return [_against_load(sweep, lines, name, title, measures) for name, title, measures in groups if measures]


def lines_of(sweep: Sweep) -> Lines:
    """The combinations to draw, in their order: all of them, or those that reach the highest rate."""
    combinations = sweep.combinations()
    if len(combinations) <= MOST_LINES:
        return combinations
    rate = next(iter(sweep.known(RATES)), None)
    rates = sweep.points.mean[rate.key] if rate else sweep.points.runs.astype(np.float64)
    values = np.where(sweep.good, rates, np.nan)
    reached = {name: float(np.nanmax(values[rows], initial=-1.0)) for name, rows in combinations.items()}
    drawn = set(sorted(combinations, key=lambda name: -reached[name])[:MOST_LINES])
    return {name: rows for name, rows in combinations.items() if name in drawn}


def _against_load(sweep: Sweep, lines: Lines, name: str, title: str, measures: Sequence[Measure]) -> Chart:
    assert sweep.load is not None
    choices = [_line_choice(sweep, lines, measure) for measure in measures]
    loads = sweep.loads
    spread_out = len(loads) > 0 and 0 < 20 * loads.min() <= loads.max()
    spec = against_load(axis("", sweep.load.label), choices, UNSTABLE, log=bool(spread_out), group="sweep")
    heading = f"{title} against {sweep.load.label}"
    note = _line_note(sweep, lines)
    return Chart(f"load-{name}", heading, choices[0]["sentence"], note, spec, "wide" if name == "rate" else "")


def _line_note(sweep: Sweep, lines: Lines) -> str:
    notes = []
    if not sweep.good.all():
        notes.append("Hollow: unstable, the queue kept growing, or a run failed.")
    if sweep.varies:
        notes.append(f"Lines are means over the seeds ({sweep.seeds}); bands reach from the smallest to the largest.")
    whole = len(sweep.combinations())
    if len(lines) < whole:
        notes.append(f"Thinned: the {len(lines)} of {count(whole)} combinations that reach the highest rate.")
    return " ".join(notes)


def _line_choice(sweep: Sweep, combinations: Lines, measure: Measure) -> Spec:
    points, loads, good = sweep.points, sweep.loads, sweep.good
    mean = points.mean[measure.key]
    shown = sweep.units.scale(measure, mean)
    lines = []
    for place, (name, rows) in enumerate(combinations.items()):
        low, high = (ends[measure.key][rows] * shown.factor for ends in (points.low, points.high))
        drawn = line(
            name,
            place,
            series.compact(loads[rows]),
            series.compact(mean[rows] * shown.factor),
            [int(not good[row]) for row in rows],
        )
        if np.nanmax(high - low, initial=0.0) > 0:
            drawn |= {"low": series.compact(low), "high": series.compact(high)}
        lines.append(drawn)
    return choice(
        measure.label,
        _load_sentence(sweep, combinations, measure),
        axis(shown.unit, measure.label),
        lines,
        ylog=measure.unit == "s" and steep(mean),
        limits=limits_at(sweep, measure, shown),
    )


def steep(values: Floats) -> bool:
    """Is the largest value so far from the middle that a linear axis would hide the others?"""
    known = values[~np.isnan(values)]
    return bool(len(known) and known.max() > STEEP * np.median(known) > 0)


def _load_sentence(sweep: Sweep, lines: Lines, measure: Measure) -> str:
    """Where the best of the stable points is; of a latency at the lowest and at the highest load that has any."""
    assert sweep.load is not None
    load = sweep.load
    if measure.better > 0:
        row = sweep.best(measure)
        if row is None:
            return f"No stable point has a value of {measure.label.lower()}."
        whose = f" with {sweep.name(row, sweep.others)}" if sweep.others else ""
        reached = f"{sweep.words(measure, row)} at {load.named(sweep.points.settings[load.key][row])}"
        return f"The most {measure.label.lower()} from a stable point: {reached}{whose}."
    loads, values = sweep.loads, sweep.points.mean[measure.key]
    fine = sweep.good & ~np.isnan(values) & ~np.isnan(loads)
    rows = [row for some in lines.values() for row in some if fine[row]]
    if not rows:
        return f"No stable point has a value of {measure.label}."
    parts = []
    for at in sorted({float(loads[rows].min()), float(loads[rows].max())}):
        best = min((row for row in rows if loads[row] == at), key=lambda row: float(values[row]))
        whose = f" ({sweep.name(best, sweep.others)})" if sweep.others else ""
        parts.append(f"{sweep.words(measure, best)} at {load.label} {value_text(at)}{whose}")
    return f"The lowest {measure.label} of a stable point: {', and '.join(parts)}."


def limits_at(sweep: Sweep, measure: Measure, shown: Scale) -> list[dict[str, Any]]:
    """The limit of the SLO that speaks of just this statistic, where all rows have the same."""
    metric, _, statistic = measure.key.replace("_s.", ".").partition(".")
    column = f"goodput.slo.{metric}_{statistic}"
    values = sweep.rows[column].dropna().unique().tolist() if column in sweep.rows else []
    if len(values) != 1:
        return []
    return [{"y": float(values[0]) * shown.factor, "label": f"limit {sweep.units.limit(metric, float(values[0]))}"}]


def drafting_chart(sweep: Sweep) -> Chart | None:
    """Speed-up of drafting against the same load without; None where not both ran."""
    if sweep.load is None or DRAFTED not in sweep.rows or not any(axis.key.startswith(DRAFTING) for axis in sweep.axes):
        return None
    pairs = _drafting_pairs(sweep)
    measures = sweep.known([latency("tpot_s", "mean"), latency("e2e_s", "mean"), latency("ttft_s", "mean")])
    if not pairs or not measures:
        return None
    choices = [_drafting_choice(sweep, pairs, measure) for measure in measures]
    spec = against_load(axis("", sweep.load.label), choices, UNSTABLE)
    note = "Above 1 drafting is faster. Hollow: one of the two is unstable."
    return Chart("drafting", "What drafting gains at each load", choices[0]["sentence"], note, spec, "wide")


def _drafting_pairs(sweep: Sweep) -> dict[str, list[tuple[int, int]]]:
    """By line the (row that drafts, row at the same load and settings that does not) of each load."""
    assert sweep.load is not None
    drafts = sweep.points.drafts
    same = [axis for axis in sweep.axes if not axis.key.startswith(DRAFTING)]
    plain: dict[tuple[str, ...], int] = {}
    texts = [tuple(sweep.setting(axis, row) for axis in same) for row in range(len(drafts))]
    for row in np.flatnonzero(~drafts & (sweep.points.failed == 0)).tolist():
        plain.setdefault(texts[row], row)
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name, rows in lines_of(sweep).items():
        both = [(row, plain[texts[row]]) for row in rows if drafts[row] and texts[row] in plain]
        if both:
            pairs[name] = both
    return pairs


def _drafting_choice(sweep: Sweep, pairs: dict[str, list[tuple[int, int]]], measure: Measure) -> Spec:
    assert sweep.load is not None
    values, good, at = sweep.points.mean[measure.key], sweep.good, sweep.loads
    lines, ends = [], []
    for place, (name, both) in enumerate(pairs.items()):
        gains = np.array([values[other] / values[row] if values[row] > 0 else math.nan for row, other in both])
        lines.append(
            line(
                name,
                place,
                series.compact(at[[row for row, _ in both]]),
                series.compact(gains),
                [int(not (good[row] and good[other])) for row, other in both],
            )
        )
        ends.append(f"{name} {_crossover(sweep.load, at, both, gains)}")
    sentence = f"By {measure.label}: {'; '.join(ends[:3])}{f'; and {len(ends) - 3} more' if len(ends) > 3 else ''}."
    limits = [{"y": 1.0, "label": "as without drafting"}]
    return choice(measure.label, sentence, axis("x", f"speed-up of {measure.label}"), lines, limits=limits)


def _crossover(load: Axis, at: np.ndarray, both: list[tuple[int, int]], gains: np.ndarray) -> str:
    """From where to where drafting helps, in words."""
    helps = gains >= 1
    first, last = (f"{number(float(gains[place]))} x" for place in (0, -1))
    if helps.all():
        return f"is faster at every {load.label} ({first} at the lowest, {last} at the highest)"
    if not helps.any():
        return f"is slower at every {load.label} ({first} at the lowest, {last} at the highest)"
    turns = [place for place in range(1, len(helps)) if helps[place] != helps[place - 1]]
    if len(turns) > 1 or not helps[0]:
        return f"is faster at {int(helps.sum())} of {len(helps)} loads"
    row, before = both[turns[0]][0], both[turns[0] - 1][0]
    turned = f"slower from {value_text(at[row])} on"
    return f"is faster up to {load.label} {value_text(at[before])} ({first} at the lowest) and {turned}"
