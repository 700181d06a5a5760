"""One self-contained HTML page for a sweep: the best points, the plots, every point as a table, and what was run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim.report.measures import Measure, latency, scaled
from sim.report.run.sentences import ROOFLINE_WARNING, engine_of, heading
from sim.report.sweep.charts import drafting_chart, load_charts
from sim.report.sweep.frontier import map_charts, pareto_chart
from sim.report.sweep.interactivity import curve_chart
from sim.report.sweep.points import GOODPUT, GPU_HOURS, PRICE, RATES, REQUESTS, SHOWN, value_text
from sim.report.sweep.table import Sweep
from sim.report.templates import Card, Panels, TableColumn, render
from sim.results.metrics import SOURCES
from sim.results.units import count, count_of
from traces.late import pd

# So many rows make a page that still scrolls; the table of a larger sweep holds the best of them.
MOST_ROWS = 1500
MOST_REASONS = 6
CARDS = {
    GOODPUT: "Most goodput",
    REQUESTS: "Most requests/s",
    PRICE: "Cheapest per Mtok output",
    GPU_HOURS: "Fewest GPU-hours per Mtok",
    **{latency(key, "p99"): f"Lowest {latency(key, 'p99').label}" for key in ("ttft_s", "tpot_s", "e2e_s")},
}
OWN = ("title", "version", "scenario", "notes", "points", "seeds")


def render_sweep(table: pd.DataFrame, axes: Mapping[str, Sequence[Any]], about: Mapping[str, Any]) -> str:
    """The page of a sweep as one string of HTML.

    Args:
        table: the rows of sweep.parquet, one for each point and seed.
        axes: the values of each varied setting by dotted key, in the order asked for.
        about: where it comes from. `title`, `version`, `scenario` (TOML of what does not vary) and `notes` (sentences)
            have places of their own, `points` and `seeds` are counted anew; the rest is shown as names and values.
    """
    sweep = Sweep.of(table, axes)
    pareto, drafting, given = pareto_chart(sweep), drafting_chart(sweep), curve_chart(sweep)
    label = sweep.load.label if sweep.load else ""
    return render(
        "sweep.html",
        {
            f"Against {label}": load_charts(sweep),
            "What a GPU and a user get": [given] if given else [],
            "Cost against latency": [pareto] if pareto else [],
            "Drafting": [drafting] if drafting else [],
            "Two settings at once": map_charts(sweep),
        },
        version=about.get("version") or "",
        title=_title(sweep, about),
        lead=_lead(sweep),
        headlines=_cards(sweep),
        sources=_sources(sweep),
        warnings=list(_warnings(sweep)),
        remarks=_remarks(sweep, about),
        table_hint=_table_hint(sweep),
        axes=sweep.axes,
        columns=_columns(sweep),
        rows=_rows(sweep),
        facts=_facts(sweep, about),
        scenario=about.get("scenario") or "",
    )


def _title(sweep: Sweep, about: Mapping[str, Any]) -> str:
    if about.get("title"):
        return str(about["title"])
    inputs: dict[str, Any] = {key: _common(sweep.rows, f"inputs.{key}") for key in ("trace", "model", "gpu")}
    inputs |= {key: _common_count(sweep.rows, f"inputs.{key}") for key in ("tp", "replicas")}
    engine = _common(sweep.rows, "inputs.engine")
    if "inputs.engine" not in sweep.rows:
        engine = engine_of({}, str(about.get("scenario") or ""))
    return heading(inputs, engine or "", _load_words(sweep), inputs["trace"] or "a sweep")


def _load_words(sweep: Sweep) -> str:
    """How much traffic the points have, as a title tells it: from the lowest rate to the highest, or the one of all."""
    rates = sweep.rows.get("load.asked_per_s", pd.Series(dtype=float)).dropna().astype(float)
    if not len(rates):
        return ""
    low, high = rates.min(), rates.max()
    return f"{low:g} requests/s" if low == high else f"{low:g} to {high:g} requests/s"


def _common_count(table: pd.DataFrame, column: str) -> int | None:
    """The one number that a column holds; None where it differs or is not there."""
    text = _common(table, column)
    return None if text is None else int(float(text))


def _common(table: pd.DataFrame, column: str) -> str | None:
    """The one text that a column holds; None where it differs or is not there."""
    values = table[column].dropna().unique().tolist() if column in table else []
    return str(values[0]) if len(values) == 1 else None


def _lead(sweep: Sweep) -> str:
    text = count_of(len(sweep.points), "point")
    if sweep.axes:
        text += " over " + ", ".join(f"{axis.label} ({len(axis.values)})" for axis in sweep.axes)
    if sweep.seeds > 1:
        text += f", {sweep.seeds} seeds each"
    failed, unstable = int((sweep.points.failed > 0).sum()), sweep.unstable
    rest = [f"{count(failed)} failed" if failed else "", f"{count(unstable)} unstable" if unstable else ""]
    return f"{text}: {', '.join(filter(None, [f'{count(int(sweep.good.sum()))} stable', *rest]))}."


def _cards(sweep: Sweep) -> Iterable[Card]:
    for measure, label in CARDS.items():
        if (measure == REQUESTS and sweep.has(GOODPUT)) or (measure == GPU_HOURS and sweep.has(PRICE)):
            continue
        row = sweep.best(measure)
        if row is not None:
            ties = len(sweep.ties(measure, row))
            name = sweep.name(row) + (f", ties with {ties:,} more" if ties else "")
            yield Card(label, sweep.words(measure, row), name)


def _sources(sweep: Sweep) -> dict[str, float]:
    """Where the simulated seconds come from: the mean share over all runs that ended."""
    ok = sweep.rows[sweep.rows["status"] == "ok"]
    shares = {name: ok.get(f"cost_sources.{name}", pd.Series(0.0, ok.index)).astype(float).mean() for name in SOURCES}
    return {name: 0.0 if math.isnan(share) else float(share) for name, share in shares.items()}


def _warnings(sweep: Sweep) -> Iterable[str]:
    shares = _sources(sweep)
    if shares["roofline"] >= 1:
        yield ROOFLINE_WARNING
    failed = sweep.rows[sweep.rows["status"] != "ok"]
    reasons = Counter(failed["reason"].astype(str)).most_common() if len(failed) else []
    for reason, runs in reasons[:MOST_REASONS]:
        yield f"{count(runs)} of {count(len(sweep.rows))} runs failed: {reason}"
    if len(reasons) > MOST_REASONS:
        rest = sum(runs for _, runs in reasons[MOST_REASONS:])
        yield f"{count(rest)} more runs failed for {count(len(reasons) - MOST_REASONS)} other reasons: see the table."
    if nearest := sweep.nearest_words():
        yield nearest
    if unlike := sweep.unlike_clients():
        yield unlike
    if sweep.unstable:
        noun, verb = ("point is", "its") if sweep.unstable == 1 else ("points are", "their")
        yield (
            f"{count(sweep.unstable)} {noun} unstable: the queue kept growing while requests arrived, so {verb} "
            "latencies depend on the length of the trace. They are drawn hollow and never offered as best."
        )


def _remarks(sweep: Sweep, about: Mapping[str, Any]) -> Iterable[str]:
    if sweep.seeds > 1 and not sweep.varies:
        yield f"Every point ran with {sweep.seeds} seeds, and they all gave the same: nothing in these runs is drawn."
    elif sweep.seeds > 1:
        yield f"Every point ran with {sweep.seeds} seeds; what is shown is their mean, ranges are those over the seeds."
    elif len(sweep.rows):
        yield "Every point ran with one seed: how much its numbers would vary with another is not known."
    if "inputs.synthetic" in sweep.rows and (sweep.rows["inputs.synthetic"] == True).any():  # noqa: E712
        yield "Synthetic: the trace was made, not recorded."
    yield from map(str, about.get("notes") or [])


def _ranking(sweep: Sweep) -> Measure | None:
    return next(iter(sweep.known([*RATES, latency("ttft_s", "p99")])), None)


def _shown_rows(sweep: Sweep) -> list[int]:
    """All points, or of too many the best, in the order of the sweep."""
    ranking = _ranking(sweep)
    if len(sweep.points) <= MOST_ROWS or ranking is None:
        return list(range(min(len(sweep.points), MOST_ROWS)))
    values = np.where(sweep.good, -ranking.better * sweep.points.mean[ranking.key], np.nan)
    return sorted(np.argsort(values, kind="stable")[:MOST_ROWS].tolist())  # NaN comes last


def _table_hint(sweep: Sweep) -> str:
    text = "Press a heading to sort. Marked: the best that is stable and meets the SLO. In print: the first 40 rows."
    rows, ranking = len(_shown_rows(sweep)), _ranking(sweep)
    if rows < len(sweep.points):
        by = f" by {ranking.label.lower()}" if ranking else ""
        text += f" Thinned: the best {count(rows)} of {count(len(sweep.points))} points{by}; sweep.parquet holds all."
    return text


class PointRow(NamedTuple):
    """A point of the table: its place among the points, why it is doubtful, its values of the axes, why it failed."""

    place: int
    number: str
    badge: str
    settings: Sequence[str]
    reason: str | None


def _rows(sweep: Sweep) -> Iterable[PointRow]:
    points = sweep.points
    for row in _shown_rows(sweep):
        failed, runs = int(points.failed[row]), int(points.runs[row])
        badge = "" if points.stable[row] else "unstable"
        if failed:
            badge = "failed" if failed == runs else f"{failed} of {runs} failed"
        settings = [sweep.setting(axis, row) for axis in sweep.axes]
        reason = points.reasons[row] if failed == runs else None
        yield PointRow(row, count(points.number[row]), badge, settings, reason)


def _columns(sweep: Sweep) -> list[TableColumn]:
    measures = [measure for measure in sweep.known(SHOWN) if measure != GPU_HOURS or not sweep.has(PRICE)]
    return [_column(sweep, measure) for measure in measures]


def _column(sweep: Sweep, measure: Measure) -> TableColumn:
    """The best stable point is marked, if it differs from any."""
    values = sweep.points.mean[measure.key]
    unit, factor = sweep.units.scale(measure, values)
    label = measure.label.replace("million output tokens", "Mtok output")
    row = sweep.best(measure) if sweep.differs(measure) else None
    texts, best = scaled(values.tolist(), factor), () if row is None else (row,)
    return TableColumn(f"{label}, {unit}" if unit else label, texts, best, measure.better > 0)


def _facts(sweep: Sweep, about: Mapping[str, Any]) -> Panels:
    """The axes with their values, the inputs that all runs share, and what else is told about the sweep."""
    varied = [(axis.key, _listed([value_text(value) for value in axis.values])) for axis in sweep.axes]
    seeds = sorted(sweep.rows["seed"].unique().tolist()) if len(sweep.rows) else []
    yield "What varies", [*varied, ("Seeds", _listed([str(seed) for seed in seeds]))]
    inputs = [name for name in sweep.rows.columns if name.startswith("inputs.") and name != "inputs.notes"]
    same = [(name.removeprefix("inputs."), _common(sweep.rows, name)) for name in inputs]
    if known := [(name, value) for name, value in same if value is not None]:
        yield "The same in all", known
    rest = [(str(key), _plain(value)) for key, value in about.items() if key not in OWN and value is not None]
    if rest:
        yield "The sweep", rest


def _listed(texts: Sequence[str], most: int = 12) -> str:
    return ", ".join(texts[:most]) + (f", .. ({count(len(texts))})" if len(texts) > most else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return value_text(value)
