"""The plots of a validation: measured against predicted steps, the error over time, latencies live and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.report.chart import Chart, axis, cdf_line, distributions
from sim.report.measures import LatencyUnits
from sim.report.run.charts import LATENCY_TEXTS, population
from sim.report.run.timeline import TimeAxis
from sim.report.validation.sentences import share
from sim.results import series
from sim.results.percentiles import distribution
from sim.results.units import TimeUnit, count, seconds, time_unit
from sim.validate.steps import KINDS, totals
from traces.late import pd

if TYPE_CHECKING:
    from sim.validate.retime import Latencies
    from sim.validate.run import Validation

MOST_POINTS, WORST_POINTS = 2500, 500
BUCKETS = 400


def latency_charts(validation: Validation, units: LatencyUnits) -> list[Chart]:
    """The cumulative distributions of TTFT, TPOT, ITL and E2E: a line for each live run and one for the prediction."""
    several = len(validation.live) > 1
    named = {f"live {number + 1}" if several else "live": run for number, run in enumerate(validation.live)}
    named["predicted"] = validation.predicted
    return [chart for key in LATENCY_TEXTS if (chart := _latency(key, named, units[key]))]


def _latency(key: str, named: dict[str, Latencies], unit: TimeUnit) -> Chart | None:
    stats = {
        name: distribution(*run.itl) if key == "itl_s" else distribution(run.requests[key])
        for name, run in named.items()
    }
    if any(run["mean"] is None for run in stats.values()):
        return None
    lines = [
        cdf_line(name, series.cdf(*population(run.requests, run.itl, key)), place)
        for place, (name, run) in enumerate(named.items())
    ]
    spec = distributions(key, stats.values(), lines, unit, group="lives")
    medians = "; ".join(f"{name} {unit.words(run['p50'])}" for name, run in stats.items())
    tails = "; ".join(f"{name} {unit.words(run['p99'])}" for name, run in stats.items())
    title = LATENCY_TEXTS[key][0]
    return Chart(key.removesuffix("_s"), title, f"Median: {medians}. 99 % within: {tails}.", "", spec)


def step_charts(validation: Validation) -> list[Chart]:
    """Measured against predicted steps, and the error over time; none where no step was measured."""
    if validation.rows is None or not len(validation.rows):
        return []
    return [_scatter(validation.rows), _over_time(validation.rows[validation.rows["live"] == 0])]


def _scatter(rows: pd.DataFrame) -> Chart:
    measured_s, predicted_s = totals(rows)
    unit = time_unit(float(measured_s.max()))
    shown = (measured_s > 0) & (predicted_s > 0) & _thinned(np.abs(predicted_s - measured_s))
    lines = []
    for kind in KINDS:
        drawn = shown & (rows["kind"] == kind).to_numpy()
        if drawn.any():
            x, y = (series.compact(values[drawn] * unit.factor) for values in (measured_s, predicted_s))
            lines.append(
                {
                    "name": kind,
                    "x": x,
                    "y": y,
                    "names": [f"{kind}, step {step}" for step in rows["step"].to_numpy()[drawn]],
                }
            )
    spec = {"kind": "scatter", "x": axis(unit.name, "measured"), "y": axis(unit.name, "predicted"), "series": lines}
    error = np.abs(predicted_s / np.maximum(measured_s, 1e-12) - 1)
    median = share(float(np.median(error)))
    sentence = f"On the dashed line a step took what was predicted; half of the steps are within {median} of that."
    note = ""
    if shown.sum() < len(rows):
        some = f"{count(int(shown.sum()))} of {count(len(rows))}"
        note = f"Thinned: {some} steps, the {count(WORST_POINTS)} worst among them."
    return Chart("scatter", "Every step, measured and predicted", sentence, note, spec)


def _thinned(error_s: np.ndarray) -> np.ndarray:
    """Which points to draw: all where they are few, else the worst and every so many-th."""
    if len(error_s) <= MOST_POINTS:
        return np.ones(len(error_s), bool)
    shown = np.zeros(len(error_s), bool)
    shown[:: -(-len(error_s) // (MOST_POINTS - WORST_POINTS))] = True
    shown[np.argsort(-error_s, kind="stable")[:WORST_POINTS]] = True
    return shown


def _over_time(rows: pd.DataFrame) -> Chart:
    measured_s, predicted_s = totals(rows)
    start_s = rows["start_s"].to_numpy(np.float64)
    clock = TimeAxis(float(start_s.min()), float(start_s.max() + measured_s[-1]))
    edges_s = np.linspace(clock.start_s, clock.end_s, min(BUCKETS, max(10, len(rows) // 8)) + 1)
    sums = [np.histogram(start_s, edges_s, weights=values)[0] for values in (measured_s, predicted_s)]
    ratio = np.where(sums[0] > 0, 100 * sums[1] / np.where(sums[0] > 0, sums[0], 1.0), np.nan)
    spec = {
        "kind": "lines",
        "bands": False,
        "x": clock.axis(edges_s),
        "y": axis("%", "predicted of measured"),
        "series": [{"name": "predicted / measured", "mean": series.compact(ratio)}],
    }
    low, high = (float(np.nanpercentile(ratio, q)) for q in (5, 95))
    sentence = (
        f"Predicted seconds of the steps as a share of the measured ones, 100 % being right: between {low:.0f} and "
        f"{high:.0f} % in nine tenths of the buckets."
    )
    note = f"Each point is the sum over {seconds(float(edges_s[1] - edges_s[0]))}, of the first live run."
    return Chart("error", "The error over time", sentence, note, spec)
