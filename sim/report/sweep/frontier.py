"""The plots of a sweep without its load: cost against latency with the best of both, and two settings as a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sim.report.chart import Chart, Spec, axis, choice, scattered
from sim.report.measures import Measure, latency
from sim.report.sweep.charts import UNSTABLE, limits_at, steep
from sim.report.sweep.points import COSTS, GPU_HOURS, RATES, Bools, value_text
from sim.report.sweep.table import Axis, Sweep
from sim.results import series
from sim.results.percentiles import Floats
from sim.results.units import count

# More points or cells than this make a blot, or a page of megabytes.
MOST_POINTS, MOST_CELLS, MOST_MAPS = 2500, 30, 3
SHADES = 7
WAITS = tuple(latency(key, statistic) for statistic in ("p99", "p50") for key in ("ttft_s", "tpot_s", "e2e_s"))


def pareto_chart(sweep: Sweep) -> Chart | None:
    """What a point costs against how long it lets wait, with the points that no other beats in both."""
    costs = [cost for cost in sweep.known(COSTS) if sweep.differs(cost)]
    if any(cost.unit == "usd" for cost in costs):
        costs = [cost for cost in costs if cost != GPU_HOURS]
    tried = [_pareto_choice(sweep, cost, wait) for cost in costs for wait in sweep.known(WAITS)]
    choices = [picture for picture in tried if picture is not None]
    if not choices:
        return None
    rows = _pareto_rows(sweep)
    whose = "point that meets the SLO" if sweep.asked else "stable point"
    note = f"Down and to the left is better. Ringed: no other {whose} is better in both."
    why = "unstable, or a run failed" + (", or the SLO is missed" if sweep.asked else "")
    note += "" if sweep.winners.all() else f" Hollow: {why}; such points are never ringed."
    if len(rows) < len(sweep.points):
        whole = count(len(sweep.points))
        note += f" Thinned: {count(len(rows))} of {whole} points, chosen at random; the ringed are of all."
    used = sorted({row for picture in choices for line in picture["series"] for row in line["id"]})
    names = {row: sweep.name(row) for row in used}
    spec = scattered(names, choices, UNSTABLE)
    return Chart("pareto", "Cost against latency", choices[0]["sentence"], note, spec, "wide")


def _pareto_rows(sweep: Sweep) -> list[int]:
    """All points, or of too many a fixed random choice: every so many-th would leave out whole settings."""
    rows = len(sweep.points)
    if rows <= MOST_POINTS:
        return list(range(rows))
    return sorted(np.random.default_rng(0).choice(rows, MOST_POINTS, replace=False).tolist())


def front(costs: Floats, waits: Floats, good: Bools) -> list[int]:
    """Places of the good points that no other good one is as cheap and as fast as, and better in one; by cost."""
    known = np.flatnonzero(good & ~np.isnan(costs) & ~np.isnan(waits))
    order = known[np.lexsort((waits[known], costs[known]))]
    places, best = [], math.inf
    for place in order.tolist():
        if waits[place] < best:
            places.append(place)
            best = float(waits[place])
    return places


def _pareto_choice(sweep: Sweep, cost: Measure, wait: Measure) -> Spec | None:
    costs, waits, good = sweep.points.mean[cost.key], sweep.points.mean[wait.key], sweep.winners
    best = front(costs, waits, good)
    if not best:
        return None
    scales = cost.scale(costs), sweep.units.scale(wait, waits)

    def drawn(rows: Sequence[int], **more: Any) -> Spec:
        pairs = zip((costs, waits), scales, strict=True)
        x, y = (series.compact(values[list(rows)] * shown.factor) for values, shown in pairs)
        return {"x": x, "y": y, "id": list(rows), "hollow": [int(not good[row]) for row in rows], **more}

    known = [row for row in _pareto_rows(sweep) if not (np.isnan(costs[row]) or np.isnan(waits[row]))]
    cheapest, fastest = best[0], best[-1]
    kind = "point that meets the SLO" if sweep.asked else "stable point"
    sentence = f"The cheapest {kind}, {sweep.name(cheapest)}, takes {_both(sweep, cost, wait, cheapest)}"
    if fastest != cheapest:
        sentence += f"; the fastest, {sweep.name(fastest)}, {_both(sweep, cost, wait, fastest)}"
    return choice(
        f"{wait.label}, {cost.label}",
        sentence + ".",
        axis(scales[1].unit, wait.label),
        [drawn(known, name="points", place=0), drawn(best, name="not beaten in both", kind="front", front=True)],
        x=axis(scales[0].unit, cost.label),
        ylog=steep(waits[known]),
        limits=limits_at(sweep, wait, scales[1]),
    )


def _both(sweep: Sweep, cost: Measure, wait: Measure, row: int) -> str:
    price = sweep.words(cost, row)
    spent = f"{price} per million output tokens" if cost.unit else f"{price} {cost.label}"
    return f"{spent} at {wait.label} {sweep.words(wait, row)}"


def map_charts(sweep: Sweep) -> list[Chart]:
    """A map for each pair of axes that are not the load, words before numbers; at most `MOST_MAPS`."""
    axes = [axis for axis in sweep.others if 2 <= len(axis.values) <= MOST_CELLS]
    axes.sort(key=lambda axis: axis.numeric)
    charts = [_map(sweep, *pair) for pair in list(combinations(axes, 2))[:MOST_MAPS]]
    return [chart for chart in charts if chart is not None]


def _map(sweep: Sweep, across: Axis, down: Axis) -> Chart | None:
    if len(across.values) > len(down.values):
        across, down = down, across
    rates = sweep.known(RATES)[:1]
    waits = sweep.known([latency("ttft_s", "p99"), latency("tpot_s", "p99"), latency("e2e_s", "p99")])
    costs = [measure for measure in sweep.known(COSTS) if measure.unit == "usd"]
    tried = [_map_choice(sweep, across, down, measure) for measure in (*rates, *costs, *waits)]
    choices = [picture for picture in tried if picture is not None]
    if not choices:
        return None
    spec = {
        "kind": "heat",
        "x": {"label": across.label, "names": [value_text(value) for value in across.values]},
        "y": {"label": down.label, "names": [value_text(value) for value in down.values]},
        "choices": choices,
    }
    whose = "stable point that meets the SLO" if sweep.asked else "stable point"
    note = f"The deeper the colour, the larger the value; outlined: the best. Empty: no {whose}."
    return Chart(f"map-{across.key}-{down.key}".replace(".", "-"), f"{down.label} and {across.label}",
                 choices[0]["sentence"], note, spec, "wide")  # fmt: skip


def _map_choice(sweep: Sweep, across: Axis, down: Axis, measure: Measure) -> Spec | None:
    """The best of the stable points in each cell; for a latency, at one load that as many cells as can be have."""
    values, at = sweep.points.mean[measure.key], ""
    usable = sweep.winners & ~np.isnan(values)
    if sweep.load is not None:
        usable &= ~np.isnan(sweep.loads)
    if measure.unit == "s" and sweep.load is not None and usable.any():
        loads, uses = np.unique(sweep.loads[usable], return_counts=True)
        top = float(loads[uses == uses.max()].max())
        usable &= sweep.loads == top
        at = f" at {sweep.load.label} {value_text(top)}"
    if not usable.any():
        return None
    cell: dict[tuple[int, int], float] = {}
    columns = {value_text(value): place for place, value in enumerate(across.values)}
    lines = {value_text(value): place for place, value in enumerate(down.values)}
    for row in np.flatnonzero(usable).tolist():
        line, column = lines.get(sweep.setting(down, row)), columns.get(sweep.setting(across, row))
        if line is None or column is None:
            continue  # a point of a list that leaves the setting to the base
        where, value = (line, column), float(values[row])
        better = min if measure.better < 0 else max
        cell[where] = better(cell.get(where, value), value)
    if not cell:
        return None
    best = (min if measure.better < 0 else max)(cell, key=cell.__getitem__)
    worst = (max if measure.better < 0 else min)(cell, key=cell.__getitem__)
    low, high = min(cell.values()), max(cell.values())
    shade = {where: round((SHADES - 1) * (value - low) / (high - low or 1)) for where, value in cell.items()}
    places = [[(line, column) for column in range(len(columns))] for line in range(len(lines))]
    more = len(sweep.others) > 2 or (sweep.load is not None and not at)
    named = [f"{down.named(down.values[place[0]])}, {across.named(across.values[place[1]])}" for place in (best, worst)]
    sentence = f"{measure.label}{at}{', the best over the other axes' if more else ''}: "
    sentence += f"{sweep.units.words(measure, cell[best])} with {named[0]}"
    if best != worst:
        sentence += f", {sweep.units.words(measure, cell[worst])} with {named[1]}"
    return {
        "label": measure.label,
        "sentence": sentence + ".",
        "texts": [[sweep.units.words(measure, cell.get(place, math.nan)) for place in line] for line in places],
        "shades": [[shade.get(place) for place in line] for line in places],
        "best": list(best),
    }
