"""One self-contained HTML page for a validation, and its Perfetto trace, in the dress of the page of a single run."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sim.report.elements import assemble, card, figures, panel
from sim.report.run.perfetto import trace_json
from sim.report.validation.charts import latency_charts, step_charts
from sim.report.validation.sentences import (
    STAGE_WORDS,
    Document,
    attribution_table,
    notes,
    request_table,
    share,
    signed,
    step_table,
    title,
    twin_line,
    worst_lines,
)

if TYPE_CHECKING:
    from sim.results.metrics import Itl
    from sim.validate.retime import Seen
    from sim.validate.run import Validation

CARDS = (("TPOT median", "tpot_s", "p50"), ("TTFT p90", "ttft_s", "p90"), ("E2E p99", "e2e_s", "p99"),
         ("Output rate", "throughput", "output_tokens_per_s"))  # fmt: skip
STEPPING = '<section>\n<h2>Steps</h2>\n{table}\n<div class="grid">\n{charts}\n</div>\n{worst}\n</section>'


def render_validation(found: Validation) -> str:
    """The page of a validation as one string of HTML; every text that comes from outside is escaped."""
    document = found.document
    charts = {"latency": latency_charts(found), "steps": step_charts(found)}
    verdict = document["verdict"]
    word = "Within bounds" if verdict["good"] else "Out of bounds"
    parts = {
        "version": html.escape(str(document["inputs"].get("version") or "")),
        "title": html.escape(title(document)),
        "lead": html.escape(f"{word}: {verdict['reason']}."),
        "cards": "\n".join(_cards(document)),
        "trust": "" if verdict["good"] else "doubt",
        "remarks": "\n".join(_remarks(document)),
        "requests": _requests(document),
        "latency": figures(charts["latency"]),
        "stepping": _stepping(document, figures(charts["steps"])) if charts["steps"] else "",
        "why": _why(document),
        "facts": "\n".join(_facts(document)),
    }
    return assemble("validation.html", [chart for some in charts.values() for chart in some], parts)


def _cards(document: Document) -> Iterator[str]:
    twin = document["twin"]["identical"]
    if twin is not None:
        small = "decisions of live run and simulation"
        yield card("Twin check", "identical" if twin else "different", small, "good" if twin else "bad")
    if overall := document["steps"].get("all"):
        yield card("Step error", share(overall["mape"]), f"mean; bias {signed(overall['bias'])}")
    for label, key, name in CARDS:
        one = document["requests"][key][name]
        if one["error"] is not None:
            yield card(
                label, signed(one["error"]), "within the live spread" if one.get("inside") else "prediction's error"
            )


def _remarks(document: Document) -> Iterator[str]:
    style = ' class="warn"' if document["twin"]["identical"] is False else ""
    yield f"<li{style}>Twin check. {html.escape(twin_line(document))}</li>"
    for text in document["verdict"]["out"]:
        yield f'<li class="warn">{html.escape(text)}</li>'
    for text in (*notes(document), *document["inputs"].get("notes", [])):
        yield f"<li>{html.escape(text)}</li>"


def _requests(document: Document) -> str:
    rows = list(request_table(document["requests"]))
    heads = ["", "live", "predicted", "error"]
    if any(row[-1] for row in rows):
        return _table([*heads, "spread of the live runs"], rows)
    return _table(heads, [row[:-1] for row in rows])


def _stepping(document: Document, charts: str) -> str:
    model = html.escape(str(document["steps"]["model"]))
    table = _table((f"Priced by {model}", "steps", "bias", "MAPE", "P90"), step_table(document["steps"]))
    worst = "".join(f"<li>{html.escape(text)}</li>" for text in worst_lines(document["steps"]))
    worst = f'<h3 class="above">Furthest off, in seconds</h3><ul class="hint">{worst}</ul>' if worst else ""
    return STEPPING.format(table=table, charts=charts, worst=worst)


def _why(document: Document) -> str:
    rows = [(name, live, error, *shares) for name, live, error, shares in attribution_table(document)]
    if not rows:
        return ""
    hint = (
        "From the live run to the prediction, one ingredient at a time: the live seconds through a fresh engine; the "
        "simulator's own decisions at the pace of the live steps; the model's device seconds; its host seconds; its "
        "own number of KV blocks. The shares add up to the error; another order would split them a little differently."
    )
    table = _table(("", "live", "error", *STAGE_WORDS.values()), rows)
    return f'<section>\n<h2>Why it is off</h2>\n{table}\n<p class="hint">{hint}</p>\n</section>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose texts are escaped here, but for the heads."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        body.append(f"<tr><th>{html.escape(first)}</th>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _facts(document: Document) -> Iterator[str]:
    hidden = ("notes",)
    told = [(name, value) for name, value in document["inputs"].items() if name not in hidden and value is not None]
    half = (len(told) + 1) // 2
    yield panel("Inputs", told[:half])
    yield panel("Settings", told[half:])
    constants = document["steps"].get("constants") or []
    if constants:
        shown = [(one["name"], f"{one['value']:.3g}") for one in constants if one["value"]]
        yield panel("Fitted seconds of each", shown)


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The live run and the simulated one as the two replicas of one run."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl
    summary: dict[str, Any]


def lanes_json(found: Validation, mark: str = "") -> Iterator[str]:
    """Trace Event JSON with a lane of the first live run's steps and one of the simulated ones, as pieces of text.

    Of a real server no steps are known: only the simulated lane and the requests of both are there.
    """
    live, predicted = found.live[0], found.predicted
    names = ("live", "simulated")
    requests = pd.concat([_lane(live, 0, 0), _lane(predicted, 1, len(live.requests))], ignore_index=True)
    steps = [predicted.steps.assign(replica=1)]
    if "replica" in live.steps:
        steps.insert(0, live.steps.assign(replica=0))
    lanes = _Lanes(requests, pd.concat(steps, ignore_index=True), live.itl, {})
    return trace_json(lanes, names=names, mark=mark)


def _lane(seen: Seen, replica: int, first: int) -> pd.DataFrame:
    requests = seen.requests
    if "reason" not in requests:
        requests = requests.assign(reason="", preemptions=0, prefix_hit_tokens=0)
    return requests.assign(request=requests["request"] + first, replica=replica)
