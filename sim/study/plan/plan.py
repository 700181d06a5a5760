"""`sim plan`: how much one configuration takes under an SLO, and which configuration takes a given rate for least.

It puts questions to the search and tells the answers as a document that JSON can hold; docs/plan.md explains them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.results import metrics
from sim.scenario import Scenario
from sim.serving.pool import pools_of
from sim.serving.servable import admissible_in_all
from sim.study.plan.document import (
    Document,
    capacity_words,
    inputs_of,
    nearest_below,
    rate_row,
    replicas_of,
    row_of,
    slo_of,
    unmet_words,
    warm_up_words,
)
from sim.study.plan.glance import Glimpse
from sim.study.plan.memory_band import kv_ends, kv_row
from sim.study.plan.model_band import capacity_band
from sim.study.plan.observation import Clause, clauses_of, requests_needed
from sim.study.plan.rates import AtRate, rounded
from sim.study.plan.replication import source
from sim.study.plan.search import FEWEST, LONGEST, Aim, Capacity, Search, Trial, UnmetError
from sim.study.plan.trials import Hands, Simulated
from sim.study.statistics import CONFIDENCE
from traces.schema import InputError

FEWEST_OF_ALL = 200
"""Fewer show neither a warm-up nor a growing queue."""
CURVE = (0.25, 0.5, 0.7, 0.85, 0.95, 1.1, 1.25)
"""Shares of the capacity at which a page also shows the latencies, beside those that the search tried."""
CURVE_REPLICATIONS = 4
Say = Callable[[str], None]


def quiet(what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked beside the scenario: how exact, and by how many processes.

    Args:
        precision: half width of the 95 % interval as a share of the capacity.
        attainment: the share of requests that must meet every limit by its own values, instead of the statistics that
            the SLO names.
        workers, executor: as in `sim.study.workers.pool.each`.
        curve: also simulate rates far from the capacity, for the plots.
        most_gpus: no deployment larger than this is considered.
        requests: of one replication, at least.
        budget_s: seconds after which the best answer so far is given; None for as long as it takes.
        journal: the file that keeps each replication as it comes; None for none, unless `keep` asks for a temporary.
    """

    precision: float = 0.03
    attainment: float | None = None
    workers: int | None = None
    executor: str = "processes"
    curve: bool = False
    most_gpus: int = 256
    requests: int = FEWEST
    budget_s: float | None = None
    journal: Path | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not 0.002 <= self.precision <= 0.5:
            raise InputError(f"precision is {self.precision:g}; it must lie between 0.002 (0.2 %) and 0.5 (50 %)")
        if self.budget_s is not None and not 0 < self.budget_s < float("inf"):
            raise InputError(f"budget is {self.budget_s:g} s; it must be above 0")
        if self.most_gpus < 1:
            raise InputError(f"at most {self.most_gpus} GPUs; there must be at least 1")
        if not FEWEST_OF_ALL <= self.requests <= LONGEST:
            raise InputError(
                f"{self.requests:,} requests a replication; there must be {FEWEST_OF_ALL:,} to {LONGEST:,} of them"
            )


def capacity_of(scenario: Scenario, ask: Ask, say: Say = quiet) -> Document:
    """The highest rate that the configuration takes under the scenario's SLO.

    Returns the document of docs/plan.md; its `capacity` is None, with a `reason`, where no rate meets the SLO.
    Raises InputError for a scenario that cannot be planned or run.
    """
    clauses = checked(scenario, ask)
    with closing(Hands(ask.workers, ask.executor)) as hands:
        return jsonable(_capacity_of(scenario, clauses, ask, hands, say))


def _capacity_of(scenario: Scenario, clauses: tuple[Clause, ...], ask: Ask, hands: Hands, say: Say) -> Document:
    bench = Simulated(scenario, clauses, hands)
    aim = Aim(clauses, ask.precision, fewest=ask.requests)
    search = Search(bench, aim, bench.guess(), say)
    about = {
        "slo": slo_of(scenario, ask.attainment),
        "rate": None,
        "precision": ask.precision,
        "confidence": CONFIDENCE,
    }
    try:
        capacity = search.capacity()
    except UnmetError as unmet:
        return {
            **about,
            **unmet_words(unmet, clauses),
            "simulations": bench.runs,
            "inputs": inputs_of(scenario, unmet.observation.facts),
        }
    rates = list(capacity.rates)
    if ask.curve:
        rates = sorted([*rates, *_curve(bench, search, capacity)], key=lambda at: at.rate_per_s)
    row = row_of(scenario, capacity)
    at = nearest_below(capacity)
    row["kv"] = kv_row([observation.facts for observation in at.observations])
    if row["kv"]["limits"]:
        row["kv"]["ends"] = kv_ends(
            Glimpse(bench.point(Trial(at.rate_per_s, 0, capacity.requests)), capacity.window, True)
        )
    known = at.observations[0].facts["band"]
    ends, further = capacity_band(scenario, clauses, capacity, known, hands, precision=ask.precision)
    return {
        **about,
        "capacity": capacity_words(capacity, replicas_of(scenario)) | ends,
        "best": row,
        "candidates": [row],
        "rates": [rate_row(at, clauses, capacity.window) for at in rates],
        "warm_up": warm_up_words(capacity),
        "replications": capacity.replications,
        "requests_per_replication": capacity.requests,
        "simulations": bench.runs + further,
        "notes": list(capacity.notes),
        "inputs": inputs_of(scenario, capacity.rates[0].observations[0].facts),
    }


def checked(scenario: Scenario, ask: Ask) -> tuple[Clause, ...]:
    """The clauses of the scenario's SLO, if the scenario can be planned for them and run.

    Raises InputError as `clauses_for`, and for a scenario that cannot run.
    """
    clauses = clauses_for(scenario, ask)
    pools = pools_of(scenario)
    admissible_in_all(
        pools, source(scenario.workload), [pool.parts.engine() for pool in pools], fails=scenario.failures.on
    )
    return clauses


def clauses_for(scenario: Scenario, ask: Ask) -> tuple[Clause, ...]:
    """The clauses of the scenario's SLO, if its traffic can be planned for.

    Raises InputError for one that cannot: a mistaken SLO, a live run, a closed loop, a trace too short.
    """
    clauses = clauses_of(metrics.parse_slo(scenario.slo) if scenario.slo else (), ask.attainment)
    if scenario.executor != "predicted":
        raise InputError("a plan simulates hundreds of runs; executor live is not for it")
    workload = scenario.workload
    if workload.concurrency:
        raise InputError("a plan searches the arrival rate, and with workload.concurrency requests come when users ask")
    if workload.resample or workload.rate_scale != 1.0:
        raise InputError("a plan draws requests and rates itself; leave out workload.resample and workload.rate_scale")
    trace = source(workload)
    needed = requests_needed(clauses)
    if len(trace) < needed:
        rarest = min((clause for clause in clauses if clause.share > 0), key=lambda clause: clause.share, default=None)
        name = rarest.name if rarest else clauses[0].name
        raise InputError(
            f"{trace.path or trace.name} has {len(trace):,} requests, too few to show {name}: that takes at least "
            f"{needed:,} of them, so that ten lie beyond it"
        )
    return clauses


def _curve(bench: Simulated, search: Search, capacity: Capacity) -> list[AtRate]:
    """Further rates, for the plots; they change no answer."""
    rates = [rounded(share * capacity.interval.mean) for share in CURVE]
    rates = [rate for rate in rates if rate not in search.observations]
    trials = [Trial(rate, number, capacity.requests) for rate in rates for number in range(CURVE_REPLICATIONS)]
    for trial, observation in zip(trials, bench(trials), strict=True):
        search.observations.setdefault(trial.rate_per_s, []).append(observation)
    return [search.at(rate) for rate in rates]


def jsonable(document: Document) -> Document:
    plain: Any = metrics.plain(document)
    return dict(plain)
