"""What every page is made of: assets, the security policy, figures, cards, panels. It knows no run and no metric."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from sim.report.run.charts import Chart
from sim.report.units import percent
from sim.results.metrics import SOURCES

MARKER = re.compile(r"\{\{(\w+)\}\}")
SCRIPTS = ("draw.js", "kinds.js", "xy.js", "plot.js", "scatter.js", "table.js", "page.js")
NOTHING = '<p class="hint">No request came this far.</p>'


def assemble(template: str, charts: Iterable[Chart], parts: Mapping[str, str]) -> str:
    """A page from a template of this package, with the style, the script and the charts' data that every page has.

    The policy in the head lets the browser run the page's own script and load nothing at all. `parts` are HTML:
    whoever makes them has escaped what comes from outside.
    """
    style = asset("page.css")
    script = "// Draws the plots from the JSON in the page. No library, no network, nothing kept.\n" + (
        '"use strict";\n(() => {\n' + "\n".join(map(asset, SCRIPTS)) + "})();\n"
    )
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    data = json_text({chart.name: chart.spec for chart in charts})
    filled = {"policy": policy, "style": style, "script": script, "data": data, **parts}
    return MARKER.sub(lambda match: filled[match[1]], asset(template))


def asset(name: str) -> str:
    """A text file of this package."""
    return files("sim.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    """What the security policy calls a script or style that may run: its SHA-256."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def json_text(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def figure(chart: Chart) -> str:
    """A chart's place in the page, with its sentence and note; the script draws into it."""
    sentence, heading = html.escape(chart.sentence), html.escape(chart.title)
    note = f'<p class="note">{html.escape(chart.note)}</p>' if chart.note else ""
    style = f' class="{chart.size}"' if chart.size else ""
    return (
        f'<figure{style} data-chart="{chart.name}" data-label="{sentence}"><figcaption><h3>{heading}</h3>'
        f'<p>{sentence}</p></figcaption><div class="tools"></div><div class="plot"></div>{note}</figure>'
    )


def figures(charts: Iterable[Chart]) -> str:
    """The places of several charts, or a sentence where there is none."""
    return "\n".join(map(figure, charts)) or NOTHING


def card(label: str, big: str, small: str, style: str = "") -> str:
    """A headline figure; the texts are escaped here."""
    label, big, small = map(html.escape, (label, big, small))
    return f'<div class="card {style}"><p>{label}</p><p class="big">{big}</p><p>{small}</p></div>'


def shares_bar(shares: Mapping[str, float]) -> str:
    """The bar of where the simulated seconds come from, with its shares in words; nothing where there are none."""
    present = {name: shares[name] for name in SOURCES if shares.get(name)}
    if not present:
        return ""
    bars, begin = [], 0.0
    for name, share in present.items():
        bars.append(f'<rect class="{name}" x="{100 * begin:.3f}%" width="{100 * share:.3f}%" height="12"/>')
        begin += share
    words = "".join(
        f'<span><i class="dot {name}"></i>{percent(share)} {name}</span>' for name, share in present.items()
    )
    ranked = sorted(present, key=lambda name: -present[name])
    label = ", ".join(f"{percent(present[name])} {name}" for name in ranked)
    return (
        f'<svg class="shares" role="img" aria-label="Where the seconds come from: {html.escape(label)}">'
        f'{"".join(bars)}</svg><p class="share-names">Where the simulated seconds come from: {words}</p>'
    )


def panel(heading: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A small table of names and values; both are escaped here."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_word(value))}</td></tr>" for name, value in rows
    )
    return f'<div class="panel"><h3>{heading}</h3><table><tbody>{cells}</tbody></table></div>'


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def details(heading: str, text: str) -> str:
    """Text that is shown as it is when its heading is pressed; nothing for no text."""
    if not text:
        return ""
    return f"<details><summary>{html.escape(heading)}</summary><pre>{html.escape(text)}</pre></details>"
