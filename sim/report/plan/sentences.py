"""What a plan says: its answer, its SLO, what the numbers rest on. Terminal and page share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.report.units import count, dollars, energy, limit, number, percent
from sim.study.plan.observation import STABILITY

ROOFLINE = "Every second comes from data-sheet rooflines, none from a measurement: compare with it, promise nothing."


def answer(document: Mapping[str, Any]) -> str:
    if document.get("reason"):
        return str(document["reason"])
    capacity, best = document["capacity"], document["best"]
    if document["rate"] is None:
        low, high = capacity["ci95"]
        width = number(capacity["half_width"], 2)
        places = len(width.partition(".")[2])
        text = f"{capacity['requests_per_s']:,.{places}f} +- {width} requests/s"
        gpus = f"{count(best['gpu_count'])} {best['gpu']}" + (f", tp {best['tp']}" if best["tp"] > 1 else "")
        bound = capacity["bound_by"]
        limits = "the queue, which grows beyond it" if bound == STABILITY else bound
        return f"{text} (95 %: {number(low)} to {number(high)}) on {gpus}, bounded by {limits}."
    price = "" if best["usd_per_hour"] is None else f", {dollars(best['usd_per_hour'])} an hour"
    replicas = f"{count(best['replicas'])} {'replica' if best['replicas'] == 1 else 'replicas'}"
    name = "" if best["name"] == "run" else f"{best['name']}: "
    return (
        f"{name}{replicas}, {count(best['gpu_count'])} {best['gpu']}{price}, "
        f"for {number(document['rate'])} requests/s under the SLO; {best['replications']} replications confirm it."
    )


def slo_words(document: Mapping[str, Any]) -> str:
    slo = dict(document["slo"])
    attainment = slo.pop("attainment", None)
    text = ", ".join(f"{name} {limit(value)}" for name, value in slo.items())
    return text if attainment is None else f"{text} for {percent(attainment)} of the requests"


def remarks(document: Mapping[str, Any]) -> Iterable[str]:
    if document.get("requests_per_replication"):
        warm = document["warm_up"]
        yield (
            f"{document['replications']} replications of about {count(document['requests_per_replication'])} requests "
            f"with {document['inputs']['arrivals']} arrivals, {document['simulations']} simulations; of each the first "
            f"{count(warm['requests_cut'])} requests are warm-up (MSER-5) and the last "
            f"{count(warm['requests_cut_at_end'])} are left out."
        )
    best = document["best"]
    if best and best["usd_per_million_tokens"] is not None:
        bound = "at most " if best["joules_upper_bound"] else ""
        power = best["joules_per_million_tokens"]
        tail = "" if power is None else f", {bound}{energy(power)}"
        yield f"A million tokens: {dollars(best['usd_per_million_tokens'])}{tail}. Price: {best['price_source']}."
    if (document["inputs"].get("cost_sources") or {}).get("roofline", 0) >= 1:
        yield ROOFLINE
    yield from document["notes"]
