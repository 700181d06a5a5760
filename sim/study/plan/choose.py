"""`sim plan --rate`: which configuration meets an SLO at a rate for least money, or with the fewest GPUs.

Each candidate's capacity is searched roughly, its replicas are counted by simulating them together at the rate, and
the cheapest is confirmed with as many replications as it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.results.tables import flat
from sim.scenario import Scenario, as_tables, build, refuse_unread
from sim.specs.settings import word
from sim.study.identity import differing, ingredients, made_of
from sim.study.plan.document import (
    Document,
    capacity_words,
    configuration,
    cost_of,
    inputs_of,
    mark_pareto,
    money,
    rate_row,
    slo_of,
    warm_up_words,
)
from sim.study.plan.observation import Window, requests_needed
from sim.study.plan.plan import Ask, Say, capacity_of, checked, jsonable, quiet
from sim.study.plan.rates import AtRate, lifetime_s
from sim.study.plan.search import LONGEST, Aim, Capacity, Search, Trial, UnmetError
from sim.study.plan.trials import Simulated
from sim.study.statistics import CONFIDENCE
from sim.study.sweep.grid import of_settings
from sim.study.workers.pool import each
from traces.schema import InputError

MOST_CANDIDATES = 200
ROUGH_LIFETIMES = 6.0
ROUGH_REPLICATIONS = 5
ROUGH_REQUESTS = 2000
POOLING = 1.15
"""Replicas that share their load may take so much more than as many alone; more than that is not tried."""
CONFIRMATIONS = (10, 20, 40)
"""Replications that confirm the cheapest, more where fewer cannot say."""
FAR = 3.0
"""A candidate that costs at least so many times the cheapest is not simulated at the rate."""


@dataclass(frozen=True, slots=True)
class Task:
    """One candidate at work: its name tells the settings that vary."""

    name: str
    scenario: Scenario
    rate: float
    ask: Ask
    capacity: Capacity | None = None


def answered(base: Mapping[str, Any], settings: Mapping[str, Any], ask: Ask, say: Say = quiet) -> Document:
    """The plan of a scenario's tables and of settings, those that are lists varying.

    Raises InputError as `capacity_of` and `cheapest`, and for settings that no plan varies.
    """
    fixed, grid = of_settings(settings)
    if "workload.rate" in grid.keys or "slo" in grid.keys:
        raise InputError("a plan is made for one rate and one SLO; use sim sweep to vary them")
    if len(grid) > MOST_CANDIDATES:
        raise InputError(f"that makes {len(grid):,} candidates; a plan takes at most {MOST_CANDIDATES}")
    rate = build(base, fixed).workload.rate
    fixed["workload.rate"] = 0.0
    points = [grid.point(index) for index in range(len(grid))]
    candidates = {name_of(point.settings): build(base, {**fixed, **point.settings}) for point in points}
    refuse_unread(candidates.values())
    if not rate and len(candidates) > 1:
        raise InputError(
            f"that makes {len(candidates)} configurations; give one, or a --rate for which the cheapest is chosen"
        )
    names = {name for scenario in candidates.values() for name in ingredients(flat(as_tables(scenario)))}
    made = made_of(names)
    document = cheapest(candidates, rate, ask, say) if rate else capacity_of(next(iter(candidates.values())), ask, say)
    if changed := [name for some in differing(made, made_of(names)).values() for name in some]:
        raise InputError(f"{changed[0]} changed while the plan was made; make it again")
    return {**document, "made_of": made}


def name_of(settings: Mapping[str, Any]) -> str:
    """What a candidate is called by what varies: names speak for themselves, other values need their key."""
    speaking = [key for key in settings if key in ("gpu", "model") or key.endswith(".name")]
    others = [f"{key.rpartition('.')[2]} {word(value)}" for key, value in settings.items() if key not in speaking]
    return ", ".join([*(str(settings[key]) for key in speaking), *others]) or "run"


def cheapest(candidates: Mapping[str, Scenario], rate: float, ask: Ask, say: Say = quiet) -> Document:
    """The document of docs/plan.md for these configurations, of one replica each; `best` is None where none will do.

    Raises InputError where a candidate's number of replicas is given, no candidate can be run at all, or prices are
    missing where they decide.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"rate is {rate}; it must be above 0")
    if any(scenario.replicas != 1 for scenario in candidates.values()):
        raise InputError("with --rate the plan finds the number of replicas itself; leave out replicas")
    inner = ask if len(candidates) == 1 else replace(ask, workers=1, executor="processes")
    outer = ask if len(candidates) > 1 else replace(ask, workers=1, executor="processes")
    tasks = [Task(name, scenario, rate, inner) for name, scenario in candidates.items()]
    rows: dict[str, Document] = {}
    served: list[Task] = []
    for index, answer in each(_capacity, tasks, workers=outer.workers, executor=outer.executor):
        task = tasks[index]
        if isinstance(answer, str):
            rows[task.name] = _row(task, status=answer)
            say(f"{task.name}: {answer}")
        else:
            served.append(replace(task, capacity=answer))
            say(f"{task.name}: {answer.interval.mean:.3g} requests/s a replica")
    if not served and all(row["status"].startswith("cannot run") for row in rows.values()):
        raise InputError(
            "no candidate can be run: " + "; ".join(f"{name}: {row['reason']}" for name, row in rows.items())
        )
    served.sort(key=lambda task: list(candidates).index(task.name))
    near = _near(served, rows)
    for index, row in each(_sized, near, workers=outer.workers, executor=outer.executor):
        rows[near[index].name] = row
        say(f"{near[index].name}: {row['replicas'] or 'no number of'} replicas")
    best, at, window = _confirmed({task.name: task for task in served}, rows, replace(ask, curve=False), say)
    return _document(candidates, rows, served, best, at, window, rate, ask)


def _capacity(task: Task) -> Capacity | str:
    """One replica's capacity, roughly; or why there is none."""
    try:
        clauses = checked(task.scenario, task.ask)
        bench = Simulated(task.scenario, clauses, workers=task.ask.workers, executor=task.ask.executor)
        aim = Aim(
            clauses,
            precision=0.1,
            fewest=min(ROUGH_REQUESTS, task.ask.requests),
            lifetimes=ROUGH_LIFETIMES,
            first_replications=ROUGH_REPLICATIONS,
            most_replications=ROUGH_REPLICATIONS,
        )
        search = Search(bench, aim, bench.guess())
        return _light(search.capacity())
    except InputError as error:
        return f"cannot run: {error}"
    except UnmetError as unmet:
        return f"misses the SLO: {unmet.clause} at any load"


def _light(capacity: Capacity) -> Capacity:
    """Without what only the search needed: it travels between processes."""
    return replace(capacity, rates=tuple(replace(at, observations=at.observations[:2]) for at in capacity.rates))


def _least_replicas(task: Task) -> int:
    assert task.capacity is not None
    return max(1, math.ceil(task.rate / (POOLING * task.capacity.interval.mean)))


def _price(task: Task) -> float | None:
    assert task.capacity is not None
    price: float | None = money(task.capacity.rates[0].observations)["usd_per_hour"]
    return price


def _near(served: Sequence[Task], rows: dict[str, Document]) -> list[Task]:
    """The candidates worth simulating at the rate; the others get their row."""
    near = []
    prices = {task.name: _price(task) for task in served}
    kinds = {task.scenario.gpu for task in served}
    by_price = None not in prices.values()
    if not by_price and len(kinds) > 1:
        missing = sorted({task.scenario.gpu for task in served if prices[task.name] is None})
        raise InputError(
            f"no price is known of {', '.join(missing)}, so it cannot be compared with other GPUs; set "
            "price.usd_per_gpu_hour, or leave it out"
        )

    def cost(task: Task) -> float:
        return _least_replicas(task) * ((prices[task.name] or 0.0) if by_price else task.scenario.tp)

    least = min(map(cost, served), default=0.0)
    for task in served:
        gpus = _least_replicas(task) * task.scenario.tp
        if gpus > task.ask.most_gpus:
            reason = f"needs at least {gpus:,} GPUs, more than {task.ask.most_gpus:,}"
            rows[task.name] = _row(task, status="dominated", reason=reason)
        elif cost(task) > FAR * least:
            reason = f"costs at least {cost(task) / least:.1f} times as much as the cheapest"
            rows[task.name] = _row(task, status="dominated", reason=reason)
        else:
            near.append(task)
    return near


def _sized(task: Task) -> Document:
    """The row of a candidate with the fewest replicas that meet the SLO at the rate, in the mean of a few
    replications."""
    least = _least_replicas(task)
    most = min(task.ask.most_gpus // task.scenario.tp, 2 * least + 2)
    for replicas in range(least, most + 1):
        search, requests = _search(task, replicas)
        [first] = search.bench([Trial(task.rate, 0, requests, Window(requests // 4))])
        if not first.stopped:
            at = search.look(task.rate, ROUGH_REPLICATIONS, requests)
            if all(estimate.mean <= 0 for estimate in at.excess):
                return _row(task, status="meets", replicas=replicas, at=at, search=search)
    # Far above what one replica's capacity asks for, it is no longer the load that misses the SLO.
    return _row(task, status="dominated", reason=f"misses the SLO with {most:,} replicas; try more --requests")


def _search(task: Task, replicas: int) -> tuple[Search, int]:
    """A search for so many replicas together, and the requests that a replication takes."""
    assert task.capacity is not None
    scenario = replace(task.scenario, replicas=replicas)
    clauses = checked(scenario, task.ask)
    aim = Aim(clauses, fewest=task.ask.requests, lifetimes=ROUGH_LIFETIMES)
    needed = math.ceil(aim.lifetimes * lifetime_s(task.capacity.rates[0].observations) * task.rate)
    requests = min(LONGEST, max(aim.fewest, 5 * requests_needed(clauses), needed))
    bench = Simulated(scenario, clauses, workers=task.ask.workers, executor=task.ask.executor)
    return Search(bench, aim, task.rate), requests


def _confirmed(
    tasks: Mapping[str, Task], rows: dict[str, Document], ask: Ask, say: Say
) -> tuple[str | None, AtRate | None, Window]:
    """The cheapest that meets the SLO by the test, which may take a replica more than it seemed."""
    while meeting := [name for name, row in rows.items() if row["status"] == "meets"]:
        name = min(meeting, key=lambda other: cost_of(rows[other]))
        task = replace(tasks[name], ask=ask)
        replicas = rows[name]["replicas"]
        search, requests = _search(task, replicas)
        for times in CONFIRMATIONS:
            at = search.look(task.rate, times, requests)
            if at.met is not None:
                break
        rows[name] = _row(task, status="meets", replicas=replicas, at=at, search=search)
        say(f"{name} with {replicas} replicas: {'confirmed' if at.met else 'not confirmed'}")
        if at.met:
            rows[name]["status"] = "best"
            return name, at, search.window
        if (replicas + 1) * task.scenario.tp > ask.most_gpus:
            rows[name].update(status="dominated", reason=f"misses the SLO with {ask.most_gpus:,} GPUs")
        else:
            rows[name] = _grown(task, rows[name])
    return None, None, Window(0)


def _grown(task: Task, row: Document) -> Document:
    """The row with a replica more: it has to win again at that price."""
    more = (row["replicas"] + 1) / row["replicas"]
    dearer = {
        name: None if row[name] is None else row[name] * more
        for name in ("usd_per_hour", "usd_per_million_tokens", "joules_per_million_tokens")
    }
    return {**row, **dearer, "replicas": row["replicas"] + 1, "gpus": (row["replicas"] + 1) * task.scenario.tp}


def _row(
    task: Task,
    *,
    status: str,
    reason: str = "",
    replicas: int | None = None,
    at: AtRate | None = None,
    search: Search | None = None,
) -> Document:
    """A candidate's line of the table; None where a number is not known."""
    kind, _, why = status.partition(": ")
    capacity = task.capacity
    shown: Document = {**dict.fromkeys(("ttft_s", "tpot_s", "e2e_s", "goodput", "stable")), "replications": 0}
    if at is not None and search is not None:
        numbers = rate_row(at, search.aim.clauses, search.window)
        shown = {name: numbers[name] for name in shown}
    return {
        "name": task.name,
        **configuration(task.scenario),
        "status": kind,
        "reason": reason or why,
        "replicas": replicas,
        "gpus": None if replicas is None else replicas * task.scenario.tp,
        "capacity_per_replica": None if capacity is None else capacity.interval.mean,
        "ci95_per_replica": None if capacity is None else [capacity.interval.low, capacity.interval.high],
        **money(at.observations if at is not None else ()),
        **shown,
    }


def _document(
    candidates: Mapping[str, Scenario],
    rows: Mapping[str, Document],
    served: Sequence[Task],
    best: str | None,
    at: AtRate | None,
    window: Window,
    rate: float,
    ask: Ask,
) -> Document:
    first = next(iter(candidates.values()))
    table = [rows[name] for name in candidates]
    mark_pareto(table)
    chosen = next((task for task in served if task.name == best), None)
    capacity = chosen.capacity if chosen else None
    observation = capacity.rates[0].observations[0] if capacity else None
    document: dict[str, Any] = {
        "slo": slo_of(first, ask.attainment),
        "rate": rate,
        "precision": ask.precision,
        "confidence": CONFIDENCE,
        "capacity": capacity_words(capacity, 1) if capacity else None,
        "best": rows[best] if best else None,
        "candidates": table,
        "rates": [rate_row(at, checked(first, ask), window)] if at else [],
        "warm_up": warm_up_words(capacity) if capacity else None,
        "replications": len(at.observations) if at else 0,
        "notes": [],
        "inputs": inputs_of(chosen.scenario, observation)
        if chosen and observation
        else {"trace": first.workload.trace},
    }
    if best is None:
        document["reason"] = f"None of {len(table)} candidates meets the SLO at {rate:g} requests/s."
    return jsonable(document)
