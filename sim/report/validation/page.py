"""One self-contained HTML page for a validation, and its Perfetto trace, in the dress of the page of a single run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.report.measures import MEASURES
from sim.report.run.perfetto import trace_json
from sim.report.templates import Card, Panels, halves, render
from sim.report.validation.charts import latency_charts, step_charts
from sim.report.validation.sentences import (
    Document,
    attribution_table,
    notes,
    request_table,
    share,
    signed_share,
    spread_heading,
    step_table,
    title,
    twin_line,
    units_of,
    worst_lines,
)
from sim.validate.attribution import STAGES
from traces.late import pd

if TYPE_CHECKING:
    from sim.results.percentiles import Itl
    from sim.validate.retime import Latencies
    from sim.validate.run import Validation

CARDS = {MEASURES[key]: MEASURES[key].label for key in ("tpot_s.p50", "ttft_s.p90", "e2e_s.p99")} | {
    MEASURES["throughput.output_tokens_per_s"]: "Output rate"
}
REQUEST_HEADS = ("", "live", "predicted", "error")


def render_validation(validation: Validation) -> str:
    document, inputs = validation.document, validation.document["inputs"]
    verdict, units = document["verdict"], units_of(document)
    requests = list(request_table(document, units))
    heads = (*REQUEST_HEADS, spread_heading(document)) if any(row[-1] for row in requests) else REQUEST_HEADS
    return render(
        "validation.html",
        {"latency": latency_charts(validation, units), "steps": step_charts(validation)},
        version=inputs.get("version") or "",
        title=title(document),
        lead=f"{'Within bounds' if verdict['good'] else 'Out of bounds'}: {verdict['reason']}.",
        headlines=_cards(document),
        good=verdict["good"],
        different=document["twin"]["identical"] is False,
        twin=twin_line(document),
        out=verdict["out"],
        notes=[*notes(document), *inputs.get("notes", [])],
        request_heads=heads,
        requests=[row[: len(heads)] for row in requests],
        model=document["steps"]["model"],
        steps=list(step_table(document["steps"])),
        worst=list(worst_lines(document["steps"])),
        stages=list(STAGES),
        attribution=list(attribution_table(document, units)),
        facts=_facts(document),
    )


def _cards(document: Document) -> Iterator[Card]:
    twin = document["twin"]["identical"]
    if twin is not None:
        small = "decisions of live run and simulation"
        yield Card("Twin check", "identical" if twin else "different", small, "good" if twin else "bad")
    if overall := document["steps"].get("all"):
        yield Card("Step error", share(overall["mape"]), f"mean; bias {signed_share(overall['bias'])}")
    for measure, label in CARDS.items():
        pair = measure.find(document["requests"])
        if pair["error"] is not None:
            where = "within the live spread" if twin is not None else "within the known bounds"
            small = where if pair.get("inside") else "prediction's error"
            yield Card(label, signed_share(pair["error"]), small)


def _facts(document: Document) -> Panels:
    yield from halves([(key, value) for key, value in document["inputs"].items() if key != "notes"])
    if constants := document["steps"].get("constants"):
        rows = [(constant["name"], constant["value"]) for constant in constants]
        yield "Fitted seconds of each", [(name, f"{value:.3g}") for name, value in rows if value]


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The live run and the simulated one as the two replicas of one run."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl
    summary: dict[str, Any]


def lanes_json(validation: Validation, mark: str = "") -> Iterator[str]:
    """Trace Event JSON with a lane of the first live run's steps and one of the simulated ones, as pieces of text.

    Of a real server no steps are known: only the simulated lane and the requests of both are there, those of the
    server where it is known when each came.
    """
    predicted = validation.predicted
    timed = [live for live in validation.live[:1] if live.requests["arrival_s"].notna().all()]
    first = sum(len(live.requests) for live in timed)
    lives = [_lane(live, 0, 0) for live in timed]
    requests = pd.concat([*lives, _lane(predicted, 1, first)], ignore_index=True)
    steps = [live.steps.assign(replica=0) for live in timed if "replica" in live.steps]
    steps.append(predicted.steps.assign(replica=1))
    lanes = _Lanes(requests, pd.concat(steps, ignore_index=True), predicted.itl, {})
    return trace_json(lanes, names=("live", "simulated"), mark=mark)


def _lane(latencies: Latencies, replica: int, first: int) -> pd.DataFrame:
    requests = latencies.requests
    if "reason" not in requests:
        requests = requests.assign(reason="", preemptions=0, prefix_hit_tokens=0)
    return requests.assign(request=requests["request"] + first, replica=replica)
