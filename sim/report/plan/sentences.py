"""What a plan says: its answer, its SLO, what the numbers rest on. Terminal and page share it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sim.cost.errors import NORMAL_P90
from sim.report.measures import LatencyUnits
from sim.report.run.sentences import kv_capacity_words
from sim.results.units import count, count_of, dollars, energy, limit, number, percent, seconds
from sim.serving.fleet import MIXED
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
        gpus = f"{count(gpu_count(best))} {_kind(best)}" + (f", tp {best['tp']}" if (best["tp"] or 1) > 1 else "")
        bound = capacity["bound_by"]
        limits = "the queue, which grows beyond it" if bound == STABILITY else bound
        seeds = f"95 %: {number(low)} to {number(high)}"
        if band := capacity.get("band"):  # of an earlier version there is none
            seeds += f" for the traffic's chance; {band['level']:.0%} with the model's errors: "
            seeds += f"{number(band['low'])} to {number(band['high'])}"
        return f"{text} ({seeds}) on {gpus}, bounded by {limits}."
    return " ".join([_deployment(document, best), *_reservations(document, best)])


def gpus_words(best: Mapping[str, Any]) -> str:
    """`7 to 9, most likely 8`; also of a document of an earlier version, which has one number."""
    gpus = best["gpus"]
    if not isinstance(gpus, Mapping):
        return count(gpus)
    low, likely, high = gpus["low"], gpus["likely"], gpus["high"]
    if likely is None:
        return f"at least {count(low)}"
    if high is None:
        return f"at least {count(low)}, most likely {count(likely)}" if low < likely else count(likely)
    return count(likely) if low == high else f"{count(low)} to {count(high)}, most likely {count(likely)}"


def gpu_count(row: Mapping[str, Any]) -> int | None:
    """How many GPUs a row's configuration has; of an earlier version too."""
    number_of: int | None = row["gpu_count"] if "gpu_count" in row else row["gpus"]
    return number_of


def _kind(best: Mapping[str, Any]) -> str:
    """The GPUs' name; of pools with several that and how many replicas each pool has."""
    pools = ", ".join(f"{name} {size}" for name, size in (best.get("replicas_by_pool") or {}).items())
    kind = "GPUs of several kinds" if best["gpu"] == MIXED else str(best["gpu"])
    return f"{kind} ({pools})" if pools else kind


def _deployment(document: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    name = "" if best["name"] == "run" else f"{best['name']}: "
    replicas = count_of(best["replicas"], "replica")
    spread = best.get("usd_range")
    price = "" if best["usd_per_hour"] is None else f", {dollars(best['usd_per_hour'])} an hour"
    if spread and spread["high"] is not None and spread["low"] is not None:
        price += f" ({dollars(spread['low'])} to {dollars(spread['high'])})"
    if not best.get("confirmed", True) and best["gpus"]["likely"] is None:
        replicas = f"at least {replicas}"
    kind = "GPUs of several kinds" if best["gpu"] == MIXED else f"{best['gpu']} GPUs"
    return (
        f"{name}{replicas}, {kind}: {gpus_words(best)}{price}, for {number(document['rate'])} requests/s "
        f"under the SLO{binds_words(best)}."
    )


def binds_words(best: Mapping[str, Any]) -> str:
    binds = best.get("binds")
    if not binds:
        return ""
    slo = "a queue that would grow" if binds["slo"] == STABILITY else binds["slo"]
    return f", bound by {' and '.join(filter(None, [slo, binds['limit']]))}"


def _reservations(document: Mapping[str, Any], best: Mapping[str, Any]) -> Iterable[str]:
    if best.get("confirmed", True):
        yield f"{best['replications']} replications confirm it."
    elif best["gpus"]["likely"] is None:
        yield "No simulation confirms it yet: this is what the costs of steps allow at best."
    else:
        yield "It met the SLO in a first look, which is not confirmed yet."
    if ties := document.get("ties"):
        rows = {row["name"]: row for row in document["candidates"]}
        others = ", ".join(f"{name} ({_cost_words(rows[name])})" for name in ties)
        yield f"{others} {'ties' if len(ties) == 1 else 'tie'} with it."
    if ended := document.get("ended_by"):
        why = "The budget was spent" if ended == "budget" else "It was stopped"
        left = document["unfinished"]
        open_ones = f"not finished: {', '.join(left)}" if left else "its margin and ties were not finished"
        yield f"{why} before all was done; {open_ones}. The same command goes on."


def _cost_words(row: Mapping[str, Any]) -> str:
    return f"{gpu_count(row)} GPUs" if row["usd_per_hour"] is None else f"{dollars(row['usd_per_hour'])} an hour"


def units_of(document: Mapping[str, Any]) -> LatencyUnits:
    """The unit of each latency: of the largest p99 of the rates, or of the candidates, that have one."""
    return LatencyUnits.of(document["rates"] if document["rate"] is None else document["candidates"])


def slo_words(document: Mapping[str, Any], units: LatencyUnits | None = None) -> str:
    """The SLO as it was asked, or in the units of a page."""
    slo = dict(document["slo"])
    attainment = slo.pop("attainment", None)
    words = {name: units.limit(name, value) if units else limit(value) for name, value in slo.items()}
    text = ", ".join(f"{name} {value}" for name, value in words.items())
    return text if attainment is None else f"{text} for {percent(attainment)} of the requests"


def kv_lines(document: Mapping[str, Any]) -> Iterable[str]:
    """The band of the chosen one's KV capacity, and what its ends do where memory limits."""
    kv = (document["best"] or {}).get("kv")
    if not kv or kv["capacity_low_tokens"] == kv["capacity_high_tokens"]:
        return
    yield f"A replica's KV capacity: {kv_capacity_words(kv)}, {kv['capacity_source']} (docs/kv.md)."
    for end, told in kv["ends"].items():
        lead = f"With the {end} KV memory, one replication"
        if "cannot_run" in told:
            yield f"{lead} cannot run: {told['cannot_run']}."
            continue
        values = [
            f"{name} {percent(value) if name == 'goodput' else seconds(value)}"
            for name, value in told["slo_values"].items()
            if value is not None
        ]
        yield f"{lead} {'meets' if told['met'] else 'misses'} the SLO: {', '.join(values)}."


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
    if document["rate"] is not None and best and best["gpus"] and (band := document["inputs"].get("band")):
        width = NORMAL_P90 * band["common"]
        yield (
            f"The range of GPUs holds steps {percent(1 - math.exp(-width))} faster to {percent(math.exp(width) - 1)} "
            "slower, as their errors allow, besides what the simulations leave open; that of money also what the price "
            "may be off (docs/plan.md)."
        )
    if inside := document.get("inside_band"):
        yield (
            f"The model's errors alone may turn the order of {best['name']} and {' and '.join(inside)}; those of one "
            "GPU's prices are common to its candidates and turn nothing."
        )
    if best and best["usd_per_million_tokens"] is not None:
        bound = "at most " if best["joules_upper_bound"] else ""
        power = best["joules_per_million_tokens"]
        tail = "" if power is None else f", {bound}{energy(power)}"
        yield f"A million tokens: {dollars(best['usd_per_million_tokens'])}{tail}. Price: {best['price_source']}."
    yield from kv_lines(document)
    if (document["inputs"].get("cost_sources") or {}).get("roofline", 0) >= 1:
        yield ROOFLINE
    if curve := document.get("load_curve"):
        hours, usd = curve["gpu_hours"], curve["usd"]
        price = "" if usd is None else f" ({dollars(usd['peak'])} and {dollars(usd['followed'])})"
        yield (
            f"The load in {count(len(curve['stages']))} stages takes {number(hours['peak'])} GPU-hours sized for the "
            f"peak, and {number(hours['followed'])} with replicas that follow it{price}; stages were not simulated by "
            "themselves."
        )
    yield from document["notes"]
