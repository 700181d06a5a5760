"""The report of a calibration as one page of HTML: errors, predicted against measured, worst cases, the grid's ends.

It loads nothing; style, plots and template are those of the simulator's pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from calibrate.evaluate import Checked, by_group
from calibrate.report import ERROR_HEADINGS, error_rows, notes, reach, worst
from sim.cost.profile import Profile
from sim.report.chart import Chart, axis
from sim.report.templates import render

FAR = 0.2
"""A prediction that is off by more than this is marked."""


def page(profile: Profile, operations: Sequence[Checked] = (), steps: Sequence[Checked] = ()) -> str:
    """The page of a profile, with the predictions that its errors were told from, if they are at hand."""
    meta = profile.meta
    groups = by_group(operations) | {f"steps: {kind}": some for kind, some in by_group(steps).items()}
    measured = {"Device": meta.device, "GPU": meta.gpu, "Kind": meta.kind, "Date": meta.date, **meta.software}
    ends = [(name, f"{len(table):,}", reach(table)) for name, table in profile.tables.items()]
    facts = {"Measured": measured, "Grid": meta.grid, "Clocks": meta.clocks}
    far = [_far(one) for one in worst([*operations, *steps], 20)]
    return render(
        "profile.html",
        {"predicted": [_chart(place, name, some) for place, (name, some) in enumerate(groups.items())]},
        package="calibrate",
        title=f"Profile {meta.name}",
        lead=f"{meta.device}. {meta.source}",
        errors=_grid(ERROR_HEADINGS, error_rows(profile)),
        notes=notes(profile),
        worst=_grid(("error", "predicted us", "measured us", "what", "size", "source"), far),
        reach=_grid(("table", "rows", "ends"), ends),
        facts=[(heading, rows.items()) for heading, rows in facts.items() if rows],
    )


def _far(one: Checked) -> Sequence[str]:
    return f"{one.error:+.0%}", f"{one.predicted_us:,.1f}", f"{one.measured_us:,.1f}", one.group, one.what, one.source


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    """A table's texts, each with the class of its cell: words stand to the left, numbers to the right."""
    cells = [[(text, "" if text and text[0] in "+-0123456789" else "text") for text in row] for row in rows]
    numbers = [any(not row[at][1] for row in cells) for at in range(len(heads))]
    return {"heads": [(head, "" if some else "text") for head, some in zip(heads, numbers, strict=True)], "rows": cells}


def _chart(place: int, name: str, checked: Sequence[Checked]) -> Chart:
    """Predicted over measured time of a group, those far off as a series of their own."""
    parts = {"within a fifth": (0, False), "off by more than a fifth": (7, True)}
    series = []
    for label, (tone, far) in parts.items():
        some = [one for one in checked if (abs(one.error) > FAR) == far]
        if some:
            x, y = [one.measured_us for one in some], [one.predicted_us for one in some]
            names = [f"{one.what} ({one.error:+.0%})" for one in some]
            series.append({"name": label, "place": tone, "x": x, "y": y, "names": names})
    within = sum(abs(one.error) <= FAR for one in checked)
    sentence = f"{within} of {len(checked)} predictions are within a fifth of what was measured."
    spec = {"kind": "scatter", "x": axis("us", "measured"), "y": axis("us", "predicted"), "series": series}
    return Chart(f"group-{place}", name, sentence, "", spec)
