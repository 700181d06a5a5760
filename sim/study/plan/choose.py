"""`sim plan --rate`: which configuration meets an SLO at a rate for least money, or with the fewest GPUs, at any time.

First what each candidate can do at best, from costs alone; then simulations of the most promising, until the answer
stands, the budget is spent, or somebody presses Ctrl-C. Each replication is kept as it comes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

from sim import catalog
from sim.results import run_id
from sim.results.tables import flat
from sim.results.units import count_of
from sim.scenario import Scenario, as_tables, build, full_key, refuse_unread
from sim.serving.workload import stages_of
from sim.specs.settings import word
from sim.study.identity import Made, differing, ingredients, made_of
from sim.study.plan.curve import curve_of
from sim.study.plan.document import Document
from sim.study.plan.fleet import Fleet, Simulations, fleet, fleets_of_pools
from sim.study.plan.glance import Glance, Glimpse, glimpse
from sim.study.plan.journal import PlanJournal, working_file
from sim.study.plan.layouts import PoolAtBest, name_of_pool
from sim.study.plan.plan import Ask, Say, capacity_of, clauses_for, jsonable, quiet
from sim.study.plan.refine import Candidate, Refinement
from sim.study.plan.replication import Informed, source
from sim.study.plan.verdict import Findings, answer_of
from sim.study.sweep.grid import of_settings
from sim.study.workers.crew import Crew, OverError
from traces.redraw import LoadStage
from traces.schema import InputError

MOST_CANDIDATES = 200
NODE = (1, 2, 4, 8)
"""What `tp=auto` stands for: the GPUs of one machine that share a replica."""


def _check_plannable(scenario: Scenario) -> None:
    """Refuse a fleet that changes its size by itself, or whose pools do not share their requests."""
    for name, own in {"": scenario, **{name: pool.scenario for name, pool in scenario.pools.items()}}.items():
        if own.autoscale.on:
            key = f"pools.{name}.autoscale" if name and not scenario.autoscale.on else "autoscale"
            raise InputError(
                f"a plan says how many replicas there are to be, and {key}.metric changes that; leave it out"
            )
    several = len({pool.scenario.model for pool in scenario.pools.values()}) > 1
    if several or any(pool.serves for pool in scenario.pools.values()):
        raise InputError("a plan is of one model, and the pools serve several; plan each model's pools alone")


def answered(base: Mapping[str, Any], settings: Mapping[str, Any], ask: Ask, say: Say = quiet) -> Document:
    """The plan of a scenario's tables and of settings, those that are lists varying.

    Raises InputError as `capacity_of` and `cheapest`, and for settings that no plan varies.
    """
    settings, any_tp = _spelled_out(settings)
    fixed, grid = of_settings(settings)
    if "workload.rate" in grid.keys or "slo" in grid.keys:
        raise InputError("a plan is made for one rate and one SLO; use sim sweep to vary them")
    if len(grid) > MOST_CANDIDATES:
        raise InputError(f"that makes {len(grid):,} candidates; a plan takes at most {MOST_CANDIDATES}")
    workload = build(base, fixed).workload
    stages = stages_of(source(workload), workload) if workload.stages else []
    rate = max((stage.rate_per_s for stage in stages), default=workload.rate)
    fixed["workload.rate"] = 0.0
    base, found = _without_counts(base, fixed, grid.keys) if rate else (base, [])
    if stages:
        fixed["workload.stages"] = []
    points = [grid.point(index) for index in range(len(grid))]
    candidates = {name_of(point.settings): build(base, {**fixed, **point.settings}) for point in points}
    refuse_unread(candidates.values())
    for scenario in candidates.values():
        _check_plannable(scenario)
    if not rate and len(candidates) > 1:
        raise InputError(
            f"that makes {len(candidates)} configurations; give one, or a --rate for which the cheapest is chosen"
        )
    names = {name for scenario in candidates.values() for name in ingredients(flat(as_tables(scenario)))}
    made = made_of(names)
    if rate:
        document = cheapest(candidates, rate, ask, say, made, any_tp=any_tp)
        if stages and document["best"]:
            document |= _load_curve(stages, document)
        document["notes"] += found
    else:
        if ask.budget_s is not None:
            raise InputError("a budget is for choosing among candidates; give a --rate, or leave it out")
        document = capacity_of(next(iter(candidates.values())), ask, say)
    if changed := [name for some in differing(made, made_of(names)).values() for name in some]:
        raise InputError(f"{changed[0]} changed while the plan was made; make it again")
    return {**document, "made_of": made}


def _load_curve(stages: Sequence[LoadStage], document: Document) -> Document:
    if "replicas_by_pool" not in document["best"]:
        return {"load_curve": curve_of(stages, document["best"])}
    why = "What the stages take is told of the highest rate alone: pools are not scaled."
    return {"notes": [*document["notes"], why]}


def _spelled_out(settings: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the settings with "all" GPUs and "auto" TP as lists, whether TP was left to the plan)."""
    spelled = {full_key(key): value for key, value in settings.items()}
    if len(spelled) < len(settings):
        return dict(settings), False  # which names what is given twice
    if spelled.get("gpu") == "all":
        spelled["gpu"] = list(catalog.names("gpus"))
    if spelled.get("tp") == "auto":
        return {**spelled, "tp": list(NODE)}, True
    return spelled, False


def _without_counts(
    base: Mapping[str, Any], fixed: Mapping[str, Any], axes: Iterable[str]
) -> tuple[Mapping[str, Any], list[str]]:
    """(a scenario file's tables without how many replicas there are, a note where they said so); what an option says
    stays, and is refused later."""
    tables = deepcopy(dict(base))
    counted = [f"pools.{name}.count" for name in tables.get("pools", {})]
    told = []
    for key in ("replicas", *counted):
        path = key.split(".")
        section = reduce(lambda inner, part: inner.get(part, {}), path[:-1], tables)
        if key not in {*fixed, *axes} and section.get(path[-1], 1) != 1:
            del section[path[-1]]
            told.append(key)
    keys = ", ".join(told)
    note = f"How many replicas there are is found anew, whatever the scenario says of {keys}."
    return tables, [note] if told else []


def name_of(settings: Mapping[str, Any]) -> str:
    """What a candidate is called by what varies: names speak for themselves, other values need their key."""
    speaking = [key for key in settings if key in ("gpu", "model") or key.endswith(".name")]
    others = [f"{key.rpartition('.')[2]} {word(value)}" for key, value in settings.items() if key not in speaking]
    return ", ".join([*(str(settings[key]) for key in speaking), *others]) or "run"


def cheapest(
    candidates: Mapping[str, Scenario], rate: float, ask: Ask, say: Say = quiet, made: Made | None = None, *,
    any_tp: bool = False,
) -> Document:  # fmt: skip
    """The document of docs/plan.md for these configurations, of one replica each; `best` is None where none will do.

    any_tp: of each GPU leave out the `tp` that do not fit, where another does.

    Raises InputError where a candidate's number of replicas is given, no candidate can be run at all, prices are
    missing where they decide, or the budget does not even last for the bounds.
    """
    started_s = time.monotonic()
    over_s = None if ask.budget_s is None else started_s + ask.budget_s
    if not 0 < rate < math.inf:
        raise InputError(f"rate is {rate}; it must be above 0")
    for scenario in candidates.values():
        given = next((name for name, pool in scenario.pools.items() if pool.count != 1), "")
        if scenario.replicas != 1 or given:
            key = f"pools.{given}.count" if given else "replicas"
            raise InputError(f"with --rate the plan finds the number of replicas itself; leave out {key}")
    first = next(iter(candidates.values()))
    clauses = clauses_for(first, ask)
    kinds = [kind for scenario in candidates.values() for kind in scenario.kinds]
    for name in dict.fromkeys(kind.gpu for kind in kinds if kind.cost.profile == "roofline"):
        catalog.load_gpu(name)  # a slip in a list is told before anything else
    fleets: list[Fleet] = []
    pools: dict[str, list[PoolAtBest]] = {}
    reasons: dict[str, str] = {}
    for name, scenario in candidates.items():
        if over_s is not None and time.monotonic() >= over_s:
            raise InputError(
                f"the budget of {ask.budget_s:g} s is too small for even the bounds of {len(candidates)} candidates: "
                f"{len(fleets) + len(reasons)} had theirs; give more"
            )
        try:
            if scenario.pools:
                able, pools[name] = fleets_of_pools(name, scenario, clauses, ask.requests, rate, ask.most_gpus)
                fleets += able
            else:
                fleets.append(fleet(name, scenario, clauses, ask.requests))
        except InputError as error:
            reasons[name] = str(error)
    if any_tp:
        fitting = {each.scenario.gpu for each in fleets}
        reasons = {name: why for name, why in reasons.items() if candidates[name].gpu not in fitting}
    if not fleets:
        raise InputError("no candidate can be run: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))
    fleets, by_price = _priced(fleets, reasons)
    offers = [_candidate(each, rate, ask, by_price) for each in fleets]
    for line in _table(fleets, offers, pools, reasons, by_price, rate):
        say(line)
    refinement = Refinement(offers, _nobody, say)
    findings = Findings(
        _in_order(candidates, fleets, reasons),
        {each.name: each for each in fleets}, reasons, refinement, rate, ask, clauses, by_price,
    )  # fmt: skip
    _simulate(findings, made or {}, over_s, say)
    return jsonable(answer_of(findings))


def _in_order(
    candidates: Mapping[str, Scenario], fleets: Iterable[Fleet], reasons: Mapping[str, str]
) -> dict[str, Scenario]:
    """What was asked for, in that order: layouts of pools in place of the candidate that they are of."""
    named: dict[str, Scenario] = {}
    for name, scenario in candidates.items():
        if name in reasons:
            named[name] = scenario
        named.update({each.name: each.scenario for each in fleets if name in (each.name, each.family)})
    return named


def _nobody(questions: Sequence[Any]) -> list[Glance]:
    raise OverError


def _simulate(findings: Findings, made: Made, over_s: float | None, say: Say) -> None:
    """Refine until the answer stands, or it is over, by the budget or by Ctrl-C."""
    ask, refinement = findings.ask, findings.refinement
    path, told = ask.journal, ask.journal is not None
    if path is None and ask.keep:
        asked = (made, findings.rate, ask.attainment, ask.requests, ask.most_gpus, repr(findings.scenarios))
        path = working_file(run_id.digest(repr(asked)))
    with closing(PlanJournal(path)) as journal:
        if journal.known:
            say(f"{len(journal.known):,} replications are known from {path}")
        elif path is not None and not told:
            say(f"replications are kept in {path} until the plan is done; the same command goes on from there")
        crew: Crew[Glimpse, Glance] = Crew(Informed(glimpse), workers=ask.workers, executor=ask.executor, over_s=over_s)
        with crew:
            bench = Simulations(list(findings.fleets.values()), findings.rate, findings.clauses, journal, crew, made)
            refinement.ask = bench
            try:
                refinement.run()
                if refinement.best is None:
                    findings.look_nearest()
            except OverError:
                findings.ended_by = "budget"
            except KeyboardInterrupt:
                findings.ended_by = "interrupt"
            findings.simulations = bench.runs
    _tidy(path, kept=told or bool(findings.ended_by))


def _tidy(path: Path | None, *, kept: bool) -> None:
    """The working file of a plan that is done has done its duty."""
    if path is not None and not kept:
        path.unlink(missing_ok=True)


def _priced(fleets: Sequence[Fleet], reasons: dict[str, str]) -> tuple[list[Fleet], bool]:
    """(those that can be compared, whether money decides). Without any price GPUs decide, among those of one kind.

    Those without a price among others that have one get their reason.
    """
    priced = [each for each in fleets if each.usd_per_hour is not None]
    kinds = sorted({kind.gpu for each in fleets if each.usd_per_hour is None for kind in each.scenario.kinds})
    if not priced and len(kinds) > 1:
        raise InputError(
            f"no price is known of {', '.join(kinds)}, so that they cannot be compared; set price.usd_per_gpu_hour, "
            "or give one of them"
        )
    if not priced:
        return list(fleets), False
    for each in fleets:
        if each.usd_per_hour is None:
            gpu = ", ".join(dict.fromkeys(kind.gpu for kind in each.scenario.kinds))
            reasons[each.name] = f"no price is known of {gpu}; a GPU file with usd_per_gpu_hour gives it one"
    return priced, True


def _candidate(each: Fleet, rate: float, ask: Ask, by_price: bool) -> Candidate:
    most = ask.most_gpus // each.gpus
    least = each.bound.replicas(rate)
    cost = each.usd_per_hour if by_price and each.usd_per_hour is not None else float(each.gpus)
    if each.sizes:
        most = 1
    return Candidate(each.name, cost, most + 1 if least is None else least, most, each.family, each.sizes)


def _table(
    fleets: Iterable[Fleet],
    offers: Iterable[Candidate],
    pools: Mapping[str, Sequence[PoolAtBest]],
    reasons: Mapping[str, str],
    by_price: bool,
    rate: float,
) -> Iterator[str]:
    """The rough table, cheapest first: bounds from costs, nothing simulated. Of pools each one, not every layout."""
    yield "At best, from the costs of steps alone:"
    rows = sorted(zip(fleets, offers, strict=True), key=lambda pair: pair[1].least * pair[1].cost)
    for name, own in pools.items():
        for pool in own:
            yield (
                f"  {name_of_pool(name, pool.name)}: up to {pool.bound.rate_per_s:.3g} requests/s a "
                f"replica ({pool.bound.binds}), alone at least {count_of(pool.fewest(rate), 'replica')}"
            )
        able = [each for each in rows if each[0].family == name]
        if able:
            yield f"  {count_of(len(able), 'layout')} may do, from {able[0][0].gpus} GPUs on"
    for each, offer in rows:
        if each.sizes:
            continue
        if each.bound.floors:
            clause, (least_s, limit_s) = next(iter(each.bound.floors.items()))
            yield f"  {each.name}: misses {clause} at any load ({least_s:.3g} s alone, limit {limit_s:g} s)"
            continue
        price = f", ${offer.least * offer.cost:,.2f} an hour" if by_price else ""
        yield (
            f"  {each.name}: up to {each.bound.rate_per_s:.3g} requests/s a replica ({each.bound.binds}), so at least "
            f"{count_of(offer.least, 'replica')}, {offer.least * each.gpus} GPUs{price}"
        )
    for name, why in reasons.items():
        yield f"  {name}: {why}"
