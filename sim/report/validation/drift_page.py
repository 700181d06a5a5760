"""One self-contained page for a drift: where two engines part, by which rule, and what it does to the requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sim.report.chart import Chart, cdf_line, distributions
from sim.report.measures import LatencyUnits
from sim.report.run.charts import LATENCY_TEXTS, population
from sim.report.templates import Card, halves, render
from sim.report.validation.drift import HEADS, latency_rows, rule_sentence
from sim.results import series
from sim.results.units import count, percent, signed
from sim.validate.schedules.grades import pairs
from sim.validate.schedules.verdicts import short

if TYPE_CHECKING:
    from sim.serving.run import Result
    from sim.validate.drift import EngineDrift

AROUND = 3
"""Steps shown before and behind the first that differs."""
SHOWN = ("sched", "preempted", "hit", "spec", "free")
"""Of a step, the keys that a person compares."""
GRADE_HEADS = ("grade", "steps", "of all", "first at", "in", "the engine", "ours")


def render_drift(drift: EngineDrift) -> str:
    document = drift.document
    good, name = document["verdict"]["good"], document["engine"]["name"]
    reason = document["verdict"]["reason"]
    return render(
        "drift.html",
        {"latency": [] if good else _charts(drift)},
        version=document["inputs"].get("version") or "",
        title=f"Drift from {name}",
        lead=f"Ours is {reason}." if good else f"Ours {reason}.",
        headlines=_cards(document),
        good=good,
        rule=[] if good else [rule_sentence(document) or "Times alone differ, and no decision."],
        grade_heads=GRADE_HEADS,
        grades=list(_grades(document)),
        step_heads=("step", "key", "the engine", "ours"),
        steps=[] if good else list(_around(drift)),
        latency_heads=HEADS,
        latencies=list(latency_rows(document["latencies"])),
        notes=[f"Ours decides by the rules of {document['engine']['rules_of']}.", *document["inputs"].get("notes", [])],
        facts=list(halves([(key, value) for key, value in document["inputs"].items() if key != "notes"])),
    )


def _cards(document: Mapping[str, Any]) -> Iterator[Card]:
    twin, speed = document["twin"], document["engine"]["steps_per_s"]
    first = twin["first_difference"]
    style = "good" if twin["identical"] else "bad"
    yield Card(
        "Decisions", "identical" if twin["identical"] else "different", f"of {count(twin['steps'])} steps", style
    )
    if first is not None:
        yield Card("Parts at step", count(first["step"]), f"in {first['key']}", "bad")
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        off = document["latencies"][key]["p99"]["off"]
        if off is not None:
            yield Card(f"{key.removesuffix('_s').upper()} p99", f"{signed(100 * off)} %", "ours over the engine's")
    if speed:
        yield Card("Its speed", count(round(speed)), "steps/s, decided by the engine")


def _grades(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    steps = document["twin"]["steps"]
    for name, grade in document["grades"].items():
        first = grade["first_difference"]
        share = percent(min(1.0, grade["steps"] / steps)) if steps else ""
        told = (f"step {count(first['step'])}", first["key"], *apart(first["recorded"], first["ours"])) if first else ()
        yield (name, count(grade["steps"]), share, *(told or ("", "", "", "")))


def apart(theirs: Any, mine: Any) -> tuple[str, str]:
    """Both values as text: of lists what one has and the other has not, and how much is alike."""
    if not (isinstance(theirs, list) and isinstance(mine, list)):
        return short(theirs), short(mine)
    own = [[one for one in side if one not in other] for side, other in ((theirs, mine), (mine, theirs))]
    alike = len(theirs) - len(own[0])
    if theirs != mine and not any(own):
        return short(theirs), short(mine)  # the order alone differs
    told = [short(side)[1:-1] or ("nothing" if theirs != mine else "") for side in own]
    beside = f"{count(alike)} alike" if alike else ""
    first, second = (", and ".join(filter(None, (text, beside))) for text in told)
    return first, second


def _around(drift: EngineDrift) -> Iterator[tuple[str, ...]]:
    """The steps about the first that differs, of both."""
    at = drift.document["twin"]["first_difference"]["step"]
    for row, theirs, mine in pairs(*drift.steps):
        if at - AROUND <= row <= at + AROUND:
            differs = theirs != mine
            for key in SHOWN:
                told, own = ((step or {}).get(key) for step in (theirs, mine))
                if told or own or key == "free":
                    name = count(row) + (" *" if differs and key == SHOWN[0] else "")
                    yield name, key + ("" if told == own else " *"), *apart(told, own)
        elif row > at + AROUND:
            return


def _charts(drift: EngineDrift) -> list[Chart]:
    units = LatencyUnits.of(result.summary for result in drift.results)
    named = {drift.document["engine"]["name"]: drift.results[0], "ours": drift.results[1]}
    return [chart for key in LATENCY_TEXTS if (chart := _chart(key, named, units)) is not None]


def _chart(key: str, named: Mapping[str, Result], units: LatencyUnits) -> Chart | None:
    stats = {name: run.summary[key] for name, run in named.items()}
    if any(stat["mean"] is None for stat in stats.values()):
        return None
    lines = [
        cdf_line(name, series.cdf(*population(run.requests, run.itl, key)), place)
        for place, (name, run) in enumerate(named.items())
    ]
    unit = units[key]
    medians = "; ".join(f"{name} {unit.words(stat['p50'])}" for name, stat in stats.items())
    tails = "; ".join(f"{name} {unit.words(stat['p99'])}" for name, stat in stats.items())
    spec = distributions(key, stats.values(), lines, unit, group="engines")
    return Chart(key.removesuffix("_s"), LATENCY_TEXTS[key][0], f"Median: {medians}. 99 % within: {tails}.", "", spec)
