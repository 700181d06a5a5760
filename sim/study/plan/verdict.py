"""What has been found out about a plan's candidates, as the document of docs/plan.md: best, ties, range, nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.results.units import count_of
from sim.scenario import Scenario
from sim.study.plan.document import Document, configuration, mark_pareto, money, slo_of
from sim.study.plan.document import inputs_of as inputs_of_run
from sim.study.plan.fleet import Fleet
from sim.study.plan.memory_band import kv_ends, kv_row
from sim.study.plan.observation import Clause
from sim.study.plan.plan import Ask
from sim.study.plan.ranges import binds, range_of, usd_range
from sim.study.plan.refine import MARGIN, FleetQuestion, Refinement, Standing
from sim.study.plan.rows import rate_row, shown
from sim.study.statistics import CONFIDENCE

ENDED = {"budget": "the budget was spent", "interrupt": "it was stopped"}


@dataclass(slots=True)
class Findings:
    """All that an answer rests on."""

    scenarios: Mapping[str, Scenario]
    fleets: Mapping[str, Fleet]
    cannot_run: Mapping[str, str]
    refinement: Refinement
    rate: float
    ask: Ask
    clauses: tuple[Clause, ...]
    by_price: bool
    ended_by: str = ""
    """"budget" or "interrupt", where not all was finished."""
    simulations: int = 0

    def look_nearest(self) -> None:
        """Where nothing meets the SLO, one whole replication of the candidate that gets nearest by its bound."""
        standing = self.nearest()
        if standing is not None and standing.candidate.most >= 1:
            self.refinement.look(standing, standing.candidate.most, 1, whole=True)

    def gains(self, standing: Standing) -> tuple[float, float]:
        """As `Fleet.gains`, by the band of the candidate's first run, or before there is any by its bound's steps."""
        runs = [
            glance for glances in standing.glances.values() for glance in glances.values() if "band" in glance.facts
        ]
        return self.fleets[standing.candidate.name].gains(self.clauses, runs[0].facts["band"] if runs else None)

    def nearest(self) -> Standing | None:
        """The candidate that could take most with the most GPUs; None where none has a bound above nothing."""
        able = [
            standing
            for name, standing in self.refinement.standings.items()
            if not standing.cannot_run and standing.candidate.most >= 1 and self.fleets[name].bound.rate_per_s > 0
        ]
        return max(
            able,
            key=lambda each: each.candidate.most * self.fleets[each.candidate.name].bound.rate_per_s,
            default=None,
        )


def answer_of(findings: Findings) -> Document:
    """The document, of whatever has been found out so far."""
    rows = {name: _row(findings, name) for name in findings.scenarios}
    best = _best(findings, rows)
    table = [row for name, row in rows.items() if row is best or not _never_looked_at(findings, name)]
    mark_pareto(table)
    refinement, rate = findings.refinement, findings.rate
    standing = refinement.standings[best["name"]] if best else None
    glances = standing.whole(best["replicas"]) if best and standing else []
    unfinished = [name for name, each in refinement.standings.items() if not each.done] if findings.ended_by else []
    first = next(iter(findings.scenarios.values()))
    chosen = findings.scenarios[best["name"]] if best else first
    document: Document = {
        "slo": slo_of(first, findings.ask.attainment),
        "rate": rate,
        "precision": MARGIN,
        "confidence": CONFIDENCE,
        "capacity": _capacity(findings, best),
        "best": best,
        "candidates": table,
        "ties": _ties(findings, best),
        "inside_band": inside_band(findings, best),
        "rates": [rate_row(rate, glances, findings.clauses)] if glances else [],
        "warm_up": None,
        "replications": len(glances),
        "simulations": findings.simulations,
        "finished": not findings.ended_by,
        "ended_by": findings.ended_by or None,
        "unfinished": unfinished,
        "notes": [],
        "inputs": inputs_of_run(chosen, glances[0].facts if glances else {}),
    }
    if best is None:
        document |= _nothing(findings)
    document["notes"] += _layout_notes(findings)
    for row in table:
        _in_replicas(row, findings.fleets.get(row["name"]))
    if best and document["capacity"]:
        document["capacity"]["replicas"] = best["replicas"]
    return document


def _never_looked_at(findings: Findings, name: str) -> bool:
    """Is it a layout of pools that was not simulated, of which there are many?"""
    standing = findings.refinement.standings.get(name)
    return standing is not None and bool(standing.candidate.sizes) and not standing.glances


def _layout_notes(findings: Findings) -> list[str]:
    layouts = [name for name, fleet in findings.fleets.items() if fleet.sizes]
    left = sum(_never_looked_at(findings, name) for name in layouts)
    if not left:
        return []
    why = "cost more, or are smaller than one that misses the SLO" if not findings.ended_by else "were not come to"
    return [f"Of {count_of(len(layouts), 'layout')} of pools {left:,} were not simulated: they {why}."]


def _in_replicas(row: Document, fleet: Fleet | None) -> None:
    """Tell a layout, of which one was asked for, by its replicas."""
    if fleet is None or not fleet.sizes:
        return
    for key in ("capacity_per_replica", "bound_per_replica"):
        row[key] = None if row[key] is None else row[key] / fleet.replicas
    if row["range_per_replica"] is not None:
        row["range_per_replica"] = [rate / fleet.replicas for rate in row["range_per_replica"]]
    row["replicas"] = None if row["replicas"] is None else row["replicas"] * fleet.replicas


def _best(findings: Findings, rows: Mapping[str, Document]) -> Document | None:
    """The cheapest that is confirmed; where the search was cut short before, the likeliest, which says so."""
    refinement = findings.refinement
    if refinement.best is not None:
        row = rows[refinement.best.candidate.name]
        row["status"] = "best"
    elif findings.ended_by:
        open_ones = [each for each in refinement.standings.values() if not each.done]
        if not open_ones:
            return None
        met = [each for each in open_ones if each.meets]
        standing = min(met or open_ones, key=lambda each: (each.meets or each.missed + 1) * each.candidate.cost)
        row = rows[standing.candidate.name]
    else:
        return None
    standing = refinement.standings[row["name"]]
    fleet = findings.fleets[row["name"]]
    replicas = row["replicas"]
    glances = standing.whole(replicas)
    low, high = _loads(findings, standing)
    band = glances[0].facts["band"] if glances else None
    row["gpus"] = range_of(fleet, findings.clauses, band, replicas, (low, high), known=bool(standing.meets))
    row["usd_range"] = usd_range(row, fleet)
    row["binds"] = binds(standing, fleet, findings.clauses, replicas)
    row["kv"] = kv_row([glance.facts for glance in glances])
    if row["kv"] and row["kv"]["limits"] and not findings.ended_by:
        question = FleetQuestion(fleet.name, replicas, 0, whole=True)
        row["kv"]["ends"] = kv_ends(fleet.glimpse(question, findings.rate, findings.clauses))
    return row


def _loads(findings: Findings, standing: Standing) -> tuple[float, float | None]:
    """The load that the standing's number of replicas is known to take, and the one that it is known not to."""
    refinement = findings.refinement
    if standing is refinement.best and refinement.margin is not None:
        low, high = refinement.margin
        return low, None if math.isinf(high) else high
    replicas = standing.meets
    return 1.0, replicas / (replicas - 1) if replicas and replicas > 1 else None


def _row(findings: Findings, name: str) -> Document:
    """A candidate's line of the table; None where a number is not known."""
    scenario, rate = findings.scenarios[name], findings.rate
    row: Document = {
        "name": name, **configuration(scenario), "status": "", "reason": "", "confirmed": False, "replicas": None,
        "gpus": None, "gpu_count": None, "capacity_per_replica": None, "range_per_replica": None,
        "bound_per_replica": None, "bound_binds": None, "least_gpus": None,
        **money((), None), **shown((), findings.clauses),
    }  # fmt: skip
    if name in findings.cannot_run:
        why = findings.cannot_run[name]
        return {**row, "status": "no price" if why.startswith("no price") else "cannot run", "reason": why}
    fleet, standing = findings.fleets[name], findings.refinement.standings[name]
    row |= {"bound_per_replica": fleet.bound.rate_per_s, "bound_binds": fleet.bound.binds}
    if standing.cannot_run:
        return {**row, "status": "cannot run", "reason": standing.cannot_run}
    if fleet.bound.floors:
        clause, (least_s, limit_s) = next(iter(fleet.bound.floors.items()))
        reason = f"{clause} at any load: requests alone take {least_s:.3g} s, the limit is {limit_s:g} s"
        return {**row, "status": "misses the SLO", "reason": reason}
    row["least_gpus"] = fleet.gpus if fleet.sizes else (standing.missed + 1) * fleet.gpus
    if standing.meets:
        replicas = standing.meets
        glances = standing.whole(replicas)
        row |= money([glance.facts for glance in glances], fleet.hourly(replicas)) | shown(glances, findings.clauses)
        low, high = _loads(findings, standing)
        most = fleet.bound.rate_per_s if high is None else min(fleet.bound.rate_per_s, high * rate / replicas)
        low = min(low * rate / replicas, most)
        count = replicas * fleet.gpus
        return {
            **row, "status": "meets", "confirmed": standing.confirmed == replicas, "replicas": replicas,
            "gpu_count": count, "gpus": {"low": row["least_gpus"], "likely": count, "high": None},
            "capacity_per_replica": (low + most) / 2, "range_per_replica": [low, most],
        }  # fmt: skip
    if not standing.done:
        replicas = standing.missed + 1
        return {
            **row, **money((), fleet.hourly(replicas)), "status": "not finished", "replicas": replicas,
            "gpu_count": replicas * fleet.gpus, "gpus": {"low": row["least_gpus"], "likely": None, "high": None},
            "reason": f"needs at least {row['least_gpus']:,} GPUs; how many more is not known yet",
        }  # fmt: skip
    return {**row, "status": "dominated", "reason": _why_out(findings, standing, fleet)}


def _why_out(findings: Findings, standing: Standing, fleet: Fleet) -> str:
    candidate = standing.candidate
    if candidate.sizes:
        return "misses the SLO" if standing.glances else "smaller than a layout that misses the SLO"
    replicas = standing.missed + 1
    gpus, cost = replicas * fleet.gpus, replicas * candidate.cost
    seen = any(glances for glances in standing.glances.values())
    if replicas > candidate.most:
        tail = "it misses the SLO with fewer" if seen else "by its bound"
        return f"needs at least {gpus:,} GPUs, more than {findings.ask.most_gpus:,} ({tail})"
    price = f", ${cost:,.2f} an hour" if findings.by_price else ""
    how = f"misses the SLO with {standing.missed}" if seen else "by its bound"
    return f"needs at least {gpus:,} GPUs{price}: {how}"


def _capacity(findings: Findings, best: Document | None) -> Document | None:
    """What the best takes, between the rates that it met and missed; None where it has not been simulated."""
    if best is None or best["range_per_replica"] is None:
        return None
    low, high = (rate * best["replicas"] for rate in best["range_per_replica"])
    return {
        "requests_per_s": (low + high) / 2,
        "between": [low, high],
        "relative": (high - low) / (high + low),
        "replicas": best["replicas"],
        "bound_by": (best.get("binds") or {}).get("slo"),
    }


def _ties(findings: Findings, best: Document | None) -> list[str]:
    """Other candidates that meet the SLO for what the best may cost, or may do so as far as is known."""
    refinement = findings.refinement
    if best is None or refinement.best is None:
        return []
    top = max(refinement.top_cost(refinement.best), _top(findings, best))
    return [
        name
        for name, each in refinement.standings.items()
        if each.meets and each is not refinement.best and each.meets * each.candidate.cost <= top * (1 + 1e-9)
    ]


def inside_band(findings: Findings, best: Document | None) -> list[str]:
    """Candidates of other GPUs whose order with the best the errors of step times alone may turn.

    A candidate costs as many replicas as meet the SLO, or one more than are known to miss it. The errors of two kinds
    of GPUs are independent and count by squares; those of one kind are common to its candidates, and are left out.
    """
    if best is None or not best["replicas"]:
        return []
    own = findings.refinement.standings[best["name"]]
    cost, slower = best["replicas"] * own.candidate.cost, findings.gains(own)[1]
    turned = []
    for name, each in findings.refinement.standings.items():
        fleet = findings.fleets[name]
        if _cards(fleet) == _cards(findings.fleets[best["name"]]) or each.cannot_run or fleet.bound.floors:
            continue
        dearer = math.log((each.meets or each.missed + 1) * each.candidate.cost / cost)
        if dearer <= math.hypot(math.log(findings.gains(each)[0]), math.log(max(slower, 1e-9))):
            turned.append(name)
    return turned


def _cards(fleet: Fleet) -> set[str]:
    return {kind.gpu for kind in fleet.scenario.kinds}


def _top(findings: Findings, best: Document) -> float:
    high = (best["gpus"] or {}).get("high")
    fleet = findings.fleets[best["name"]]
    candidate = findings.refinement.standings[best["name"]].candidate
    return 0.0 if high is None else high / fleet.gpus * candidate.cost


def _nothing(findings: Findings) -> Document:
    """Nothing meets the SLO: the nearest, and the metric that it misses by how much."""
    reason = f"None of {len(findings.scenarios)} candidates meets the SLO at {findings.rate:g} requests/s"
    standing = findings.nearest()
    if findings.ended_by:
        return {"nearest": None, "reason": f"{reason}, as far as it was looked at before {ENDED[findings.ended_by]}."}
    if standing is None:
        return _by_floor(findings, reason)
    candidate, fleet = standing.candidate, findings.fleets[standing.candidate.name]
    glances = standing.whole(candidate.most)
    if not glances:
        return {"nearest": None, "reason": f"{reason}."}
    nearest: Document = {"name": candidate.name, "replicas": candidate.most, "gpus": candidate.most * fleet.gpus}
    missed = [
        (over, value, clause)
        for clause in findings.clauses
        if (value := glances[0].values.get(clause.name)) is not None and (over := _over(value, clause)) > 0
    ]
    where = f"{candidate.name} with {count_of(candidate.most, 'replica')} ({nearest['gpus']:,} GPUs)"
    if not missed:
        return {
            "nearest": {**nearest, "metric": "stability", "by": None},
            "reason": f"{reason}; nearest is {where}, whose queue grows.",
        }
    over, value, clause = max(missed, key=lambda each: each[0])
    text = (
        f"{value:.2%} of the requests meet every limit, not {1 - clause.share:.2%}"
        if clause.statistic == "share"
        else f"{clause.name} is {value:.3g} s, {over:.0%} above {clause.limit_s:g} s"
    )
    return {
        "nearest": {**nearest, "metric": clause.name, "value": value, "by": over},
        "reason": f"{reason}; nearest is {where}: {text}.",
    }


def _over(value: float, clause: Clause) -> float:
    """The share of its limit by which a clause's own statistic misses it; at most 0 where it does not."""
    return (1 - clause.share) - value if clause.statistic == "share" else value / clause.limit_s - 1


def _by_floor(findings: Findings, reason: str) -> Document:
    floors = [
        (least_s / limit_s - 1, name, clause, least_s, limit_s)
        for name, fleet in findings.fleets.items()
        for clause, (least_s, limit_s) in list(fleet.bound.floors.items())[:1]
    ]
    if not floors:
        return {"nearest": None, "reason": f"{reason}."}
    over, name, clause, least_s, limit_s = min(floors)
    return {
        "nearest": {"name": name, "replicas": None, "gpus": None, "metric": clause, "value": least_s, "by": over},
        "reason": (
            f"{reason}; nearest is {name}: {clause} takes requests {least_s:.3g} s even alone, {over:.0%} above "
            f"{limit_s:g} s."
        ),
    }
