"""The report of a calibration as one page of HTML: errors, predicted against measured, worst cases, the grid's ends.

It runs no script and loads nothing; style is that of the simulator's pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from calibrate.evaluate import Checked, by_group
from calibrate.report import ERROR_HEADINGS, error_rows, notes, reach, worst
from sim.cost.profile import Profile
from sim.report.elements import asset, panel

SIZE, EDGE = 260, 34
"""Pixels of a plot's side and of the margin for its axes."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title} - Foretoken</title>
<style>{style}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }}
.plots figure {{ padding: 10px; }} .plots svg {{ width: 100%; height: auto; }}
circle {{ fill: var(--c0); fill-opacity: 0.6; }} circle.far {{ fill: var(--bad); }} line {{ stroke: var(--rule); }}
line.even {{ stroke: var(--soft); }} svg text {{ fill: var(--soft); font-size: 10px; }}
th.text, td.text {{ text-align: left; }}
</style>
</head>
<body>
<header><p class="brand">Foretoken calibration</p><h1>{title}</h1><p class="lead">{lead}</p></header>
<main>
<section><h2>How far off it is</h2><div class="scroll">{errors}</div>
<p class="hint">Predictions of what was measured and not fitted, in shares of the measured time; "repeated" is how far
the same measurement was from itself when it was made again.</p></section>
<section><h2>What to know</h2><ul>{notes}</ul></section>
<section><h2>Predicted against measured</h2><div class="plots">{plots}</div>
<p class="hint">Microseconds, both axes logarithmic; on the diagonal a prediction is right, red ones are off by more
than a fifth.
Point at a mark to read it.</p></section>
<section><h2>Furthest off</h2><div class="scroll">{worst}</div></section>
<section><h2>Where the grid ends</h2><div class="scroll">{reach}</div>
<p class="hint">Beyond it the efficiency at its edge is held,
and what is priced so is told as extrapolated.</p></section>
<section class="panels">{panels}</section>
</main>
</body>
</html>
"""


def page(profile: Profile, operations: Sequence[Checked] = (), steps: Sequence[Checked] = ()) -> str:
    """The page of a profile, with the predictions that its errors were told from, if they are at hand."""
    meta = profile.meta
    checked = [*operations, *steps]
    groups = by_group(operations) | {f"steps: {kind}": rows for kind, rows in by_group(steps).items()}
    facts = {"Device": meta.device, "GPU": meta.gpu, "Kind": meta.kind, "Date": meta.date, **meta.software}
    return _PAGE.format(
        title=html.escape(f"Profile {meta.name}"),
        style=asset("page.css"),
        lead=html.escape(f"{meta.device}. {meta.source}"),
        errors=_table(ERROR_HEADINGS, error_rows(profile)),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes(profile)) or "<li>Nothing in particular.</li>",
        plots="".join(_plot(name, rows) for name, rows in groups.items()) or "<p>No predictions at hand.</p>",
        worst=_table(
            ("error", "predicted us", "measured us", "what", "size", "source"),
            [_far(one) for one in worst(checked, 20)],
        ),
        reach=_table(
            ("table", "rows", "ends"),
            [(name, f"{len(table):,}", reach(table)) for name, table in profile.tables.items()],
        ),
        panels=panel("Measured", facts.items())
        + panel("Grid", meta.grid.items())
        + panel("Clocks", meta.clocks.items()),
    )


def _far(one: Checked) -> Sequence[str]:
    return f"{one.error:+.0%}", f"{one.predicted_us:,.1f}", f"{one.measured_us:,.1f}", one.group, one.what, one.source


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = list(rows)
    # A heading stands where its column's numbers or words do.
    kinds = ["" if any(not _kind(row[at]) for row in lines) else "text" for at in range(len(headings))]
    head = "".join(f'<th class="{kind}">{html.escape(one)}</th>' for one, kind in zip(headings, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{_kind(cell)}">{html.escape(cell)}</td>' for cell in row) + "</tr>"
        for row in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _kind(cell: str) -> str:
    return "" if cell[:1] in "+-0123456789" else "text"


def _plot(name: str, checked: Sequence[Checked]) -> str:
    """Predicted over measured, logarithmic, as a picture without a script."""
    values = [value for one in checked for value in (one.measured_us, one.predicted_us)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    inner = SIZE - EDGE

    def at(us: float) -> float:
        return inner * (math.log10(us) - low) / (high - low)

    lines, texts = [f'<line class="even" x1="{EDGE}" y1="{inner}" x2="{SIZE}" y2="0"/>'], []
    for power in range(low, high + 1):
        x = EDGE + at(10.0**power)
        lines.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{inner}"/>')
        lines.append(f'<line x1="{EDGE}" y1="{SIZE - x:.1f}" x2="{SIZE}" y2="{SIZE - x:.1f}"/>')
        texts.append(f'<text x="{min(x, SIZE - 12):.1f}" y="{inner + 14}" text-anchor="middle">{10.0**power:g}</text>')
        texts.append(f'<text x="{EDGE - 4}" y="{max(SIZE - x + 3, 9):.1f}" text-anchor="end">{10.0**power:g}</text>')
    marks = "".join(
        f'<circle class="{"far" if abs(one.error) > 0.2 else ""}" cx="{EDGE + at(one.measured_us):.1f}" '
        f'cy="{inner - at(one.predicted_us):.1f}" r="3"><title>{html.escape(one.what)}: {one.error:+.0%}</title>'
        "</circle>"
        for one in checked
    )
    label = html.escape(f"{name}: predicted against measured, {len(checked)} points")
    return (
        f"<figure><figcaption><h3>{html.escape(name)}</h3></figcaption>"
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">'
        f"{''.join(lines)}{''.join(texts)}{marks}</svg></figure>"
    )
