"""What a plot is, and the kinds of plots that several pages draw. The script in assets/ draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sim.report.measures import LATENCIES
from sim.results import series
from sim.results.metrics import SLO_NAMES
from sim.results.percentiles import Floats
from sim.results.units import TimeUnit

Spec = dict[str, Any]
Cdf = tuple[Floats, Floats]
"""(seconds, percent at or below)."""
# A distribution whose tail reaches further than this many medians starts out on a logarithmic axis.
LOG_FROM = 8


@dataclass(frozen=True, slots=True)
class Chart:
    """One plot: `spec` is what the script draws; `sentence` and `note` (how it is thinned) are plain text.

    `size` is "wide" for one as wide as the page, "small" for one of many that share a legend.
    """

    name: str
    title: str
    sentence: str
    note: str
    spec: Spec
    size: Literal["", "small", "wide"] = ""


def axis(unit: str, label: str) -> Spec:
    return {"unit": unit, "label": label}


def distributions(
    key: str,
    stats: Iterable[Mapping[str, Any]],
    lines: Iterable[Spec],
    unit: TimeUnit,
    *,
    slo: Mapping[str, float] | None = None,
    marks: Iterable[Spec] = (),
    group: str = "",
) -> Spec:
    """The cumulative distributions of a latency on one axis, with its limits of the SLO.

    stats: of each line; lines: `cdf_line`s; marks: points to name; group: of plots that share a legend. All in seconds;
    unit: of the page for this latency.
    """
    largest, middle = zip(*((stat["max"] or 0.0, stat["p50"] or 0.0) for stat in stats), strict=True)
    clauses = [(SLO_NAMES[name], limit_s) for name, limit_s in (slo or {}).items()]
    return {
        "kind": "cdf",
        **({"group": group} if group else {}),
        "x": axis(unit.name, LATENCIES[key]),
        "y": axis("%", "share at or below"),
        "log": max(largest) > LOG_FROM * min(middle) > 0,
        "marks": [
            {**mark, "x": mark["x"] * unit.factor, "label": f"{mark['label']}  {unit.words(mark['x'])}"}
            for mark in marks
        ],
        "limits": [
            {"x": limit_s * unit.factor, "label": f"{statistic} limit {unit.limit(limit_s)}"}
            for (metric, statistic), limit_s in clauses
            if f"{metric}_s" == key
        ],
        "series": [{**line, "x": series.compact(line["x"] * unit.factor)} for line in lines],
    }


def cdf_line(name: str, cdf: Cdf, place: int | None = None) -> Spec:
    """One distribution; place: of its colour among several."""
    colour = {} if place is None else {"place": place}
    return {"name": name, **colour, "x": cdf[0], "y": series.compact(cdf[1])}


def line(name: str, place: int, x: Sequence[Any], y: Sequence[Any], hollow: Sequence[int]) -> Spec:
    """Points of one colour; hollow: 1 for those that are to be doubted."""
    return {"name": name, "place": place, "x": x, "y": y, "hollow": hollow}


def choice(
    label: str,
    sentence: str,
    y: Spec,
    lines: Sequence[Spec],
    *,
    x: Spec | None = None,
    ylog: bool = False,
    limits: Sequence[Spec] = (),
) -> Spec:
    across = {} if x is None else {"x": x}
    return {"label": label, "sentence": sentence, **across, "y": y, "ylog": ylog, "limits": limits, "series": lines}


def against_load(x: Spec, choices: Sequence[Spec], hollow: str, *, log: bool = False, group: str = "") -> Spec:
    """Lines over the load; all such plots of a page zoom together."""
    shared = {"group": group} if group else {}
    return {"kind": "xy", **shared, "zoom": "load", "joined": True, "hollow": hollow, "log": log, "x": x,
            "choices": choices}  # fmt: skip


def scattered(names: Any, choices: Sequence[Spec], hollow: str = "") -> Spec:
    """Loose points, each with a name."""
    return {"kind": "xy", "hollow": hollow, "joined": False, "names": names, "choices": choices}
