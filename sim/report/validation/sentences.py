"""What a validation says, as rows and sentences that terminal and page share. It computes no error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.report.measures import LATENCIES, MEASURES, LatencyUnits, Measure, latency
from sim.report.run.sentences import heading
from sim.results.units import NONE, TimeUnit, count, number, percent, row_unit, signed, time_unit
from sim.validate.attribution import STAGES

Document = Mapping[str, Any]
COMPARED = (
    *(latency(key, statistic) for key in LATENCIES for statistic in ("p50", "p90", "p99")),
    MEASURES["throughput.requests_per_s"],
    MEASURES["throughput.output_tokens_per_s"],
)


def signed_share(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:+.1f} %"


def share(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f} %"


def twin_line(document: Document) -> str:
    twin = document["twin"]
    if twin["identical"] is None:
        return "Not possible: the server's steps are not known."
    if twin["identical"]:
        return (
            f"Identical: {count(twin['steps'])} live steps, taken again on their recorded seconds with spans and "
            "without; the same batches, block tables, preemptions and times."
        )
    difference = twin["first_difference"]
    return f"Different: {difference['sentence']}; live run {difference['live']}."


def step_table(steps: Document) -> Iterator[tuple[str, str, str, str, str]]:
    """(what, steps, bias, MAPE, P90) of the errors of steps."""
    parts = [(f"{name} part", errors) for name, errors in steps.get("by_part", {}).items()]
    sized = [(f"{name} tokens", errors) for name, errors in steps.get("by_tokens", {}).items()]
    for name, errors in (("all", steps.get("all")), *steps.get("by_kind", {}).items(), *parts, *sized):
        if errors is not None:
            bias, mape, p90 = signed_share(errors["bias"]), share(errors["mape"]), share(errors["p90"])
            yield name, count(errors["steps"]), bias, mape, p90


def units_of(document: Document) -> LatencyUnits:
    """The unit of each latency: of its p99, live or predicted."""
    requests = document["requests"]
    sides = ("live", "predicted")
    return LatencyUnits.of({key: {"p99": requests[key]["p99"][side]} for key in LATENCIES} for side in sides)


def step_unit(steps: Document) -> TimeUnit:
    """The unit of step times: of the longest of the worst."""
    return time_unit(max((step["measured_s"] for step in steps.get("worst", [])), default=None))


def spread_heading(document: Document) -> str:
    """What the last column of `request_table` holds: of a real server the bounds between which a value is known."""
    return "known between" if document["twin"]["identical"] is None else "spread of the live runs"


def request_table(document: Document, units: LatencyUnits) -> Iterator[tuple[str, str, str, str, str]]:
    """(measure, live, predicted, error, spread of the live repeats or bounds) of all that has a live value.

    Where requests are not known by themselves, every statistic that is known of them all.
    """
    requests = document["requests"]
    by_itself = document["twin"]["identical"] is not None or "paired" in requests
    for measure in COMPARED if by_itself else _stated_measures(requests):
        pair = measure.find(requests)
        if pair["live"] is not None:
            scaled = units.scale(measure, []) if measure.metric else measure.side_by_side([])
            unit, factor = scaled
            yield f"{measure.title}, {unit}" if unit else measure.title, *_cells(pair, factor)


def _stated_measures(requests: Document) -> list[Measure]:
    """The mean and the percentiles of each latency that it has, in their order, and the rates."""
    latencies = [(key, name) for key in LATENCIES for name in sorted(requests.get(key, {}), key=_place)]
    return [*(latency(key, name) for key, name in latencies), *COMPARED[-2:]]


def _place(statistic: str) -> float:
    return {"mean": -1.0, "max": 101.0}.get(statistic) or float(statistic[1:])


def _cells(pair: Document, factor: float) -> tuple[str, str, str, str]:
    live, predicted = (number(None if pair[key] is None else pair[key] * factor) for key in ("live", "predicted"))
    text = ""
    if spread := pair.get("spread"):
        text = f"{number(spread[0] * factor)} to {number(spread[1] * factor)}{', inside' if pair['inside'] else ''}"
    return live, predicted, signed_share(pair["error"]), text


COLLECTED = tuple(
    MEASURES[key] for key in ("ttft_s.p90", "tpot_s.p50", "e2e_s.p50", "e2e_s.p99", "throughput.output_tokens_per_s")
)


def collection_table(records: Mapping[str, Document]) -> Iterator[tuple[str, ...]]:
    """(name, steps, bias, MAPE, the errors of `COLLECTED`) of each of several validations, in percent.

    "*" marks an error inside the spread of the live runs.
    """
    for name, record in records.items():
        overall = record["steps"]["all"]
        pairs = [measure.find(record["requests"]) for measure in COLLECTED]
        errors = (_percent(pair["error"]) + ("*" if pair.get("inside") else "") for pair in pairs)
        mape = _percent(overall["mape"]).lstrip("+")
        yield name, count(record["twin"]["steps"]), _percent(overall["bias"]), mape, *errors


def curve_table(runs: Mapping[str, Document]) -> tuple[list[str], list[list[str]]]:
    """(heads, a row for each run) of what was measured and what is predicted: latencies, and output tokens a second.

    A latency is told by its median, or by its mean where no run has a median.
    """
    columns: list[tuple[str, list[str]]] = []
    for measure in (*(_told_by(runs, key) for key in CURVE), MEASURES["throughput.output_tokens_per_s"]):
        pairs = [measure.find(run["requests"]) or {} for run in runs.values()]
        values = [pair.get(side) for pair in pairs for side in ("live", "predicted")]
        unit, factor = measure.side_by_side(values)
        name = f"{measure.title}, {unit}" if unit else measure.title
        for side, head in (("live", name), ("predicted", "predicted")):
            known = [pair.get(side) for pair in pairs]
            columns.append((head, [number(None if value is None else value * factor) for value in known]))
        columns.append(("error", [signed_share(pair.get("error")) for pair in pairs]))
    rows = [[label, *(cells[at] for _, cells in columns)] for at, label in enumerate(runs)]
    return ["Run", *(head for head, _ in columns)], rows


CURVE = ("ttft_s", "tpot_s", "e2e_s")


def _told_by(runs: Mapping[str, Document], key: str) -> Measure:
    measures = (latency(key, name) for name in ("p50", "mean"))
    return next(
        (one for one in measures if any((one.find(run["requests"]) or {}).get("live") for run in runs.values())),
        latency(key, "p50"),
    )


def _percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:+.1f}"


def attribution_table(document: Document, units: LatencyUnits) -> Iterator[tuple[str, ...]]:
    """(measure, live, error and the share of each of `STAGES`) in ms or s."""
    for label, split in document["attribution"].items():
        if "parts" not in split:
            continue
        metric = MEASURES[label].metric if label in MEASURES else ""
        unit, factor = units[metric] if metric else row_unit([split["live"], split["predicted"]])
        parts = [signed(split["parts"][stage] * factor) for stage in STAGES]
        name = MEASURES[label].title if label in MEASURES else "Duration"
        yield f"{name}, {unit}", number(split["live"] * factor), signed(split["error"] * factor), *parts


def notes(document: Document) -> Iterator[str]:
    for died in document["died"]:
        yield (
            f"A live run died half-way ({died}): what it did until then is compared, and latencies of requests that "
            "had not ended are left out on its side alone."
        )
    steps, kv = document["steps"], document["attribution"].get("kv_blocks", {})
    if steps.get("model") == "fitted-here":
        yield (
            "Step times are priced by a model fitted here, to every other step of these very live runs (the errors are "
            "of the others): it says how well such a model can do, not how one calibrated on another day would."
        )
    elif sentence := _doubtful(steps.get("sources", {})):
        yield sentence
    if kv.get("matched"):
        yield f"The simulator was told the live run's {count(kv['live'])} KV blocks, so capacity has no share."
    if moved := kv.get("moved_by"):
        moves = {name: signed_share(move["e2e_s"]) if move else "cannot run" for name, move in moved.items()}
        yield (
            f"The number of KV blocks was given ({count(kv['given'])}); a tenth fewer would move the predicted mean "
            f"E2E by {moves['fewer']}, a tenth more by {moves['more']}."
        )
    without = document["attribution"].get("without_host", {}).get("tpot_s", {}).get("mean", {}).get("error")
    if without is not None:
        off = [signed_share(error) for error in (without, document["requests"]["tpot_s"]["mean"]["error"])]
        yield f"Without host overhead the mean TPOT would be off by {off[0]} instead of {off[1]}."
    if document["lives"] == 1 and document["twin"]["identical"] is not None:
        yield "One live run: how much live runs differ among themselves is not known; --repeats tells it."


def _doubtful(sources: Mapping[str, float]) -> str:
    """Which shares of the predicted step seconds no calibration covers; "" where it covers all of them."""
    beyond, roofline = sources.get("extrapolated", 0.0), sources.get("roofline", 0.0)
    if roofline >= 1:
        return "Step times come from data-sheet rooflines, not from a calibration: errors of 30 % and more are normal."
    parts = [
        f"{percent(share)} {words}"
        for share, words in (
            (beyond, "lie outside the calibrated range and are extrapolated from it"),
            (roofline, "are estimates by data-sheet rates, where errors of 30 % and more are normal"),
        )
        if share > 0
    ]
    return f"Of the predicted step seconds {' and '.join(parts)}." if parts else ""


def title(document: Document) -> str:
    inputs = document["inputs"]
    where = inputs.get("device") or inputs.get("gpu") or "a server"
    load = f"{inputs['rate']:g} requests/s" if inputs.get("rate") else ""
    trace = f"{inputs.get('trace') or 'a trace'}, live and simulated"
    return heading({**inputs, "gpu": where}, str(inputs.get("engine") or ""), load, trace)


def worst_lines(steps: Document) -> Iterator[str]:
    unit = step_unit(steps)
    for step in steps.get("worst", []):
        yield (
            f"live run {step['live']}, step {count(step['step'])}, {step['kind']}, {count(step['tokens'])} tokens: "
            f"measured {unit.words(step['measured_s'])}, predicted {unit.words(step['predicted_s'])}"
        )
