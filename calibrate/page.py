"""The report of a calibration as one page of HTML: errors, predicted against measured, worst cases, the grid's ends.

It runs no script and loads nothing; style and template are those of the simulator's pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from calibrate.evaluate import Checked, by_group
from calibrate.report import ERROR_HEADINGS, error_rows, notes, reach, worst
from sim.cost.profile import Profile
from sim.report.templates import render

SIZE, EDGE = 260, 34
"""Pixels of a plot's side and of the margin for its axes."""


def page(profile: Profile, operations: Sequence[Checked] = (), steps: Sequence[Checked] = ()) -> str:
    """The page of a profile, with the predictions that its errors were told from, if they are at hand."""
    meta = profile.meta
    groups = by_group(operations) | {f"steps: {kind}": some for kind, some in by_group(steps).items()}
    measured = {"Device": meta.device, "GPU": meta.gpu, "Kind": meta.kind, "Date": meta.date, **meta.software}
    ends = [(name, f"{len(table):,}", reach(table)) for name, table in profile.tables.items()]
    far = [_far(one) for one in worst([*operations, *steps], 20)]
    return render(
        "profile.html",
        package="calibrate",
        title=f"Profile {meta.name}",
        lead=f"{meta.device}. {meta.source}",
        errors=_grid(ERROR_HEADINGS, error_rows(profile)),
        notes=notes(profile),
        plots=[_plot(name, some) for name, some in groups.items()],
        size=SIZE,
        edge=EDGE,
        inner=SIZE - EDGE,
        worst=_grid(("error", "predicted us", "measured us", "what", "size", "source"), far),
        reach=_grid(("table", "rows", "ends"), ends),
        facts=[("Measured", measured.items()), ("Grid", meta.grid.items()), ("Clocks", meta.clocks.items())],
    )


def _far(one: Checked) -> Sequence[str]:
    return f"{one.error:+.0%}", f"{one.predicted_us:,.1f}", f"{one.measured_us:,.1f}", one.group, one.what, one.source


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    """A table's texts, each with the class of its cell: words stand to the left, numbers to the right."""
    cells = [[(text, "" if text[:1] in "+-0123456789" else "text") for text in row] for row in rows]
    numbers = [any(not row[at][1] for row in cells) for at in range(len(heads))]
    return {"heads": [(head, "" if some else "text") for head, some in zip(heads, numbers, strict=True)], "rows": cells}


def _plot(name: str, checked: Sequence[Checked]) -> dict[str, Any]:
    """Predicted over measured, logarithmic, as a picture without a script."""
    values = [value for one in checked for value in (one.measured_us, one.predicted_us)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def at(us: float) -> float:
        return (SIZE - EDGE) * (math.log10(us) - low) / (high - low)

    ticks = [{"at": at(10.0**power), "text": f"{10.0**power:g}"} for power in range(low, high + 1)]
    marks = [
        {
            "x": at(one.measured_us),
            "y": at(one.predicted_us),
            "far": abs(one.error) > 0.2,
            "text": f"{one.what}: {one.error:+.0%}",
        }
        for one in checked
    ]
    return {"name": name, "ticks": ticks, "marks": marks}
