"""The door to the templates of the pages: jinja2 escapes every text that is put into one. It knows no measure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.report.chart import Chart
from sim.results import units

if TYPE_CHECKING:
    from jinja2 import Environment

Panels = Iterable[tuple[str, Iterable[tuple[str, Any]]]]
"""Small tables of names and values, each with its heading."""
SCRIPTS = ("draw.js", "kinds.js", "xy.js", "plot.js", "scatter.js", "table.js", "bars.js", "page.js")


TONES, PATTERNS = 8, 4


def tone(place: int) -> str:
    """The classes of a line by its place, colour and dashes, as the script's `tone` has them."""
    return f"c{place % TONES} d{(place + place // TONES) % PATTERNS}"


class Card(NamedTuple):
    label: str
    big: str
    small: str
    style: str = ""


class TableColumn(NamedTuple):
    """A column of a table: its texts by row, and the rows of the best."""

    heading: str
    texts: Sequence[str]
    best: Iterable[int] = ()
    descending: bool = False
    """Whether the first press of its heading sorts the largest to the top."""


def render(
    template: str, charts: Mapping[str, Sequence[Chart]] | None = None, *, package: str = "sim.report", **values: Any
) -> str:
    """A page: a template of a package's assets with the style, the script and the charts' data that every page has.

    The policy in the head lets the browser run the page's own script and load nothing at all. charts: by section.
    """
    style = asset("page.css")
    script = "// Draws the plots from the JSON in the page. No library, no network, nothing kept.\n" + (
        '"use strict";\n(() => {\n' + "\n".join(map(asset, SCRIPTS)) + "})();\n"
    )
    whole = {
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        "style": style,
        "script": script,
        "charts": charts or {},
        "data": {chart.name: chart.spec for section in (charts or {}).values() for chart in section},
    }
    return environment(package).get_template(template).render(whole | values)


@cache
def environment(package: str = "sim.report") -> Environment:
    """The templates of a package, which may extend those of this one."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    templates = Environment(
        loader=ChoiceLoader([PackageLoader(name, "assets") for name in dict.fromkeys((package, "sim.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["percent"] = units.percent
    # Of what stands inside a script element nothing can end the element or open a comment: tojson escapes < > & '.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return templates


def asset(name: str) -> str:
    return files("sim.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    """What the security policy calls a script or style that may run: its SHA-256."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def halves(inputs: Iterable[tuple[str, Any]]) -> Panels:
    """The inputs that are known as two panels of one length."""
    rows = [(name, value) for name, value in inputs if value is not None]
    middle = (len(rows) + 1) // 2
    yield from (("Inputs", rows[:middle]), ("Settings", rows[middle:]))
