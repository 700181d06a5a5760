"""The curve that deployments are compared by: what a GPU, a dollar and a megawatt give against what each user gets.

Tokens/s of a user are the inverse of the median TPOT ("interactivity" in InferenceX, whose axes these are).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.report.chart import Chart, Spec, axis, choice, scattered
from sim.report.measures import Measure
from sim.report.sweep.charts import UNSTABLE, lines_of
from sim.report.sweep.frontier import MOST_POINTS, front
from sim.report.sweep.points import PER_GPU, PER_MEGAWATT, PER_USER, PRICE
from sim.report.sweep.table import Sweep
from sim.results import series

GIVEN = (PER_GPU, PRICE, PER_MEGAWATT)


def curve(sweep: Sweep, given: Measure = PER_GPU) -> list[int]:
    """The points that no other is better than in both, tokens/s of a user and `given`; the fastest for a user first."""
    values = -given.better * sweep.points.mean[given.key]
    return front(values, -sweep.points.mean[PER_USER.key], sweep.winners)[::-1]


def curve_chart(sweep: Sweep) -> Chart | None:
    """None where fewer than two points are told apart by what a user gets."""
    if not sweep.differs(PER_USER):
        return None
    tried = [_choice(sweep, given) for given in sweep.known(GIVEN)]
    choices = [picture for picture in tried if picture is not None]
    if not choices:
        return None
    whose = "point that meets the SLO" if sweep.asked else "stable point"
    note = (
        f"To the right a user gets more, up a GPU or a megawatt gives more. Ringed: no other {whose} is better in both."
    )
    drawn = sum(map(len, lines_of(sweep).values()))
    if drawn < len(sweep.points):
        note += f" Thinned: {drawn:,} of {len(sweep.points):,} points; the ringed are of all."
    used = sorted({row for picture in choices for line in picture["series"] for row in line["id"]})
    spec = scattered({row: sweep.name(row) for row in used}, choices, UNSTABLE)
    return Chart("curve", "What a GPU gives against what a user gets", choices[0]["sentence"], note, spec, "wide")


def _choice(sweep: Sweep, given: Measure) -> Spec | None:
    best = curve(sweep, given)
    if not best:
        return None
    across, up = sweep.points.mean[PER_USER.key], sweep.points.mean[given.key]
    scale = given.scale(up)

    def drawn(rows: list[int], **more: Any) -> Spec:
        known = [row for row in rows[:MOST_POINTS] if not (np.isnan(across[row]) or np.isnan(up[row]))]
        hollow = [int(not sweep.winners[row]) for row in known]
        y = series.compact(up[known] * scale.factor)
        return {"x": series.compact(across[known]), "y": y, "id": known, "hollow": hollow, **more}

    lines = [drawn(rows, name=name, place=place) for place, (name, rows) in enumerate(lines_of(sweep).items())]
    ends = [best[0]] if len(best) == 1 else [best[0], best[-1]]
    sentence = "; ".join(f"{sweep.name(row)} gives {curve_words(sweep, given, row)}" for row in ends)
    return choice(
        f"{given.label}, {PER_USER.label.lower()}",
        f"{sentence}.",
        axis(scale.unit, given.label),
        [*lines, drawn(best, name="not beaten in both", kind="front", front=True)],
        x=axis("per s", PER_USER.label),
    )


def curve_words(sweep: Sweep, given: Measure, row: int) -> str:
    user, value = sweep.words(PER_USER, row), sweep.words(given, row)
    if given == PRICE:
        return f"a user {user} at {value} per million output tokens"
    return f"a user {user} and {'a GPU' if given == PER_GPU else 'a megawatt'} {value}"
