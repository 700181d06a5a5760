"""One run of a scenario, from its parts to its tables: clock, replicas, source, and the logs beside them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sim import catalog
from sim.engine.request import SAMPLE_BITS, index_of
from sim.results import metrics
from sim.results.band import elasticity, first_order, step_errors, steps_of
from sim.results.bill import Rates
from sim.results.gaps import TokenGaps
from sim.results.load import load
from sim.results.percentiles import Itl
from sim.results.requests import request_table
from sim.results.steps import StepLog
from sim.results.terms import FleetTerms, Spent, StepTerms, of_all, term_shares
from sim.scenario import Scenario
from sim.serving.adapters import check_adapters
from sim.serving.answer import answered
from sim.serving.assemble import Parts
from sim.serving.fleet import Present, by_pool, fleet_summary, kv_facts
from sim.serving.hooks import NO_HOOKS, Hooks, LiveSession, Progress
from sim.serving.inputs import inputs
from sim.serving.pool import (
    Pool,
    each_replica,
    models_asked,
    pools_of,
    resolved_pools,
    served_by,
)
from sim.serving.servable import admissible_in_all
from sim.serving.simulation import Simulation, seldom_collected
from sim.serving.tiers import check_tiers, tier_facts
from sim.serving.workload import asked_per_s, load_trace
from sim.specs.gpu import GpuSpec
from sim.speculation import tables as draft_tables
from traces.framed import framed, held
from traces.late import pd
from traces.rows import keep_rows
from traces.schema import InputError, Trace
from traces.table import Columns


@framed("requests", "steps", "preempted")
@dataclass(frozen=True)
class Result:
    """What a run gave. The columns of its tables and the keys of its summary: docs/metrics.md."""

    scenario: Scenario
    summary: dict[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    step_end_s: list[np.ndarray]
    """The step clock of each replica: the end of every single step."""
    gaps: TokenGaps
    """Those between the tokens of each request, as its client saw them."""
    engine_gaps: TokenGaps
    """As the engine gave them, which without a front end is the same."""
    trace: Trace
    """What was replayed, rejected requests included."""
    tokens: pd.DataFrame | None = None
    """Of a live run: `request`, `sample` (0 is the first) and `token_ids`, the answer of each sequence; also its `text`
    where the model's tokens are bytes."""
    died: str = ""
    """Why a live run ended before its time: its tables hold what was measured until then."""
    preempted: pd.DataFrame | None = None
    """Every preemption: `request`, `sequence`, `start_s`, `end_s`."""
    terms: StepTerms | FleetTerms | None = None
    """What its steps cost by term; None where they were measured."""
    transfers: pd.DataFrame | None = None
    """KV sent between pools (`sim.serving.disaggregation.TRANSFER_COLUMNS`); None where no pool sends any."""
    events: pd.DataFrame | None = None
    """What became of replicas (`sim.serving.lifecycle.Lifecycle.events`); None where all serve all the time."""
    adapter_loads: pd.DataFrame | None = None
    """Adapters put into slots (`sim.serving.adapters.AdapterLog.loads`); None without LoRA."""

    @cached_property
    def itl(self) -> Itl:
        """(seconds between two tokens of a request as its client saw them, how often)."""
        return self.gaps.itl()

    @cached_property
    def engine_itl(self) -> Itl:
        """The same of the tokens as the engine gave them."""
        return self.itl if self.engine_gaps is self.gaps else self.engine_gaps.itl()

    def table(self, name: str) -> Columns:
        """Its `requests` or `steps` as they are held, which until somebody asks for a DataFrame is none."""
        table: Columns = held(self, name)
        return table

    def told(self, summary: Mapping[str, Any]) -> Result:
        """The same run with another summary."""
        other = copy(self)
        object.__setattr__(other, "summary", summary)
        return other


def simulate(
    scenario: Scenario,
    *,
    trace: Trace | None = None,
    progress: Progress | None = None,
    hooks: Hooks = NO_HOOKS,
    pools: Sequence[Pool] | None = None,
) -> Result:
    """Simulate a scenario, on `trace` (with its arrival times as they are) where it is given; `pools` are its own, if
    they are made already."""
    live = scenario.executor == "live" or hooks.session is not None
    with nullcontext() if live else seldom_collected(apart=False):
        return _simulated(scenario, trace, progress, hooks, pools)


def _simulated(
    scenario: Scenario,
    trace: Trace | None,
    progress: Progress | None,
    hooks: Hooks,
    pools: Sequence[Pool] | None,
) -> Result:
    slo = metrics.parse_slo(scenario.slo) if scenario.slo else ()
    backend = _backend() if scenario.executor == "live" and hooks.session is None else None
    if backend is not None:
        scenario = backend.fitted(scenario)
    pools = _pools(scenario, hooks, pools)
    scenario, parts = served_by(scenario), pools[0].parts
    trace = check_adapters(load_trace(scenario) if trace is None else trace, pools)
    spans = (backend is None and hooks.session is None) if hooks.spans is None else hooks.spans
    engines = [pool.engines(spans=spans) for pool in pools]
    sent_rows, rejected = admissible_in_all(pools, trace, [own[0] for own in engines], fails=scenario.failures.on)
    sent = trace.table if sent_rows.all() else keep_rows(trace.requests, sent_rows)
    session = backend.Session(parts, _token_ids(sent)) if backend is not None else hooks.session
    simulation = Simulation(scenario, pools, engines, sent, progress, session, hooks, spans)
    started, began = time.perf_counter(), time.process_time()
    died = simulation.run(keep=backend is not None and hooks.wrap is None)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - began
    clients, steps_s = simulation.clients, simulation.steps.step_end_s
    gaps = simulation.gaps(steps_s)
    engine_gaps = gaps if clients is None else simulation.engine_gaps(steps_s)
    if hooks.gaps is not None:
        hooks.gaps(gaps)
    requests = request_table(
        trace.table,
        sent_rows,
        rejected | simulation.refusals(np.flatnonzero(sent_rows)),
        simulation.requests,
        gaps.longest_s(len(sent)),
        [pool.parts.pool.block_tokens for pool in each_replica(pools)],
        clients,
    )
    requests, steps = simulation.with_more(requests, sent_rows), simulation.step_table()
    period = float(requests["arrival_s"].min()), metrics.duration_s(requests, steps)
    lifecycle = simulation.entrance.lifecycle
    present = Present.of(pools, None if lifecycle is None else lifecycle.share_paid(*period))
    speculation = None
    of_pools = _costs(pools, simulation.steps, steps, hooks.most_explained) if session is None else []
    step_terms = FleetTerms(of_pools) if len(of_pools) > 1 else of_pools[0] if of_pools else None
    spent = [each.spent() for each in of_pools]
    terms = of_all([(each, own[0]) for each, own in zip(of_pools, spent, strict=True)])
    measured = {"measured": float(steps["device_s"].sum() + steps["host_s"].sum())}
    sources = measured if step_terms is None else _by_source(terms)
    if parts.drafter is not None:
        tallies, measured_s = simulation.tallies(), sources.get("measured", 0.0)
        requests = draft_tables.with_drafts(requests, sent_rows, tallies)
        speculation = draft_tables.summary(parts.drafter, scenario.parallel, tallies, terms, measured_s)
    summary = metrics.summarise(
        requests,
        steps,
        gaps.distribution(),
        kv_facts(pools, present),
        slo=slo,
        dropped=trace.dropped,
        source_seconds=sources,
        simulator=simulation.speed(steps, wall_s, cpu_s),
        inputs=inputs(scenario, pools, trace, session, died, simulation.noise),
        speculation=speculation,
        rates=Rates.of(parts.parallel.rank_gpus * present.replicas, _billed(parts, session), scenario.price),
        front_end=simulation.front_end_facts(),
        engine_itl_s=None if clients is None else engine_gaps.distribution(),
        operations=simulation.operations(pools, present, *period),
        tiers=tier_facts(simulation.loads, pools),
        adapters=None if simulation.adapters is None else simulation.adapters.facts(requests, steps),
    )
    offered = load(requests, scenario, asked_per_s=asked_per_s(trace, scenario.workload), laid_over_s=trace.window_s)
    summary |= {"cost_terms": term_shares(terms), "load": metrics.plain(offered)}
    transfers = simulation.entrance.transfers(sent_rows)
    if scenario.pools:
        if (asked_for := models_asked(trace.table, pools)) is not None:
            requests = requests.assign(model=asked_for)
        summary = fleet_summary(summary, pools, requests, steps, of_pools, slo, transfers, present)
    else:
        summary = answered(summary, parts, requests, steps, of_pools[0] if of_pools else None, slo, present.replicas)
    summary |= _band(summary, [(each, own[1]) for each, own in zip(of_pools, spent, strict=True)], steps)
    return Result(
        resolved_pools(scenario, pools),
        summary,
        requests,  # type: ignore[arg-type]
        steps,  # type: ignore[arg-type]
        steps_s,
        gaps,
        engine_gaps,
        trace,
        None if session is None else _tokens(session, backend, np.flatnonzero(sent_rows)),
        died,
        simulation.steps.preemptions(sent_rows),  # type: ignore[arg-type]
        step_terms,
        transfers,
        None if lifecycle is None else lifecycle.events(),
        None if simulation.adapters is None else simulation.adapters.loads().frame(),
    )


def _pools(scenario: Scenario, hooks: Hooks, made: Sequence[Pool] | None) -> list[Pool]:
    with seldom_collected():  # a profile may have tens of thousands of rows, and each is a few containers
        pools = made or pools_of(scenario)
    check_tiers(pools, scenario.executor)
    return [_hooked(pool, hooks) for pool in pools]


def _hooked(pool: Pool, hooks: Hooks) -> Pool:
    parts = pool.parts
    if hooks.cost is not None:
        parts = replace(parts, cost=hooks.cost)
    if hooks.rules is not None:
        parts = replace(parts, rules=hooks.rules)
    return replace(pool, parts=parts)


def _costs(pools: Sequence[Pool], log: StepLog, steps: Columns, most: int) -> list[StepTerms]:
    """What the steps of each pool cost by term."""
    spans = by_pool(pools, log.sample, steps)
    return [
        StepTerms(pool.parts.cost, own, pool.parts.asynchronous, pool.parts.gap, most)
        for pool, own in zip(pools, spans, strict=True)
    ]


def _band(
    summary: Mapping[str, Any], pools: Sequence[tuple[StepTerms, Mapping[str, Spent]]], steps: Columns
) -> dict[str, Any]:
    """The summary's `band`; nothing of a run whose steps were measured."""
    if not pools:
        return {}
    loaded = elasticity(pools[0][0]) if len(pools) == 1 else None
    return {"band": first_order(summary, step_errors(pools), steps_of(steps), loaded)}


def _by_source(terms: Mapping[tuple[str, str], float]) -> dict[str, float]:
    by_source: dict[str, float] = {}
    for (_, source), seconds in terms.items():
        by_source[source] = by_source.get(source, 0.0) + seconds
    return by_source


def on_device(scenario: Scenario) -> Scenario:
    """A live scenario with its device named and its KV blocks counted."""
    return _backend().fitted(scenario)  # type: ignore[no-any-return]


def _backend() -> Any:
    """The module that runs models, found by name: `sim` itself never imports torch."""
    try:
        return importlib.import_module("backend.session")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "triton", "safetensors", "backend"):
            raise
        raise InputError(
            f"executor live needs {error.name}, which is not installed; pip install 'foretoken[live]' brings it"
        ) from None


def _token_ids(requests: Columns) -> list[Any] | None:
    return list(requests["token_ids"]) if "token_ids" in requests else None


def _tokens(session: LiveSession, backend: Any, rows: np.ndarray) -> pd.DataFrame:
    """The answers by request of the trace; `rows` are those of the requests that were sent."""
    outputs = list(session.outputs())
    index = rows[[index_of(id) for id, _, _ in outputs]] if outputs else np.empty(0, np.int64)
    tokens = pd.DataFrame(
        {
            "request": index,
            "sample": [id >> SAMPLE_BITS for id, _, _ in outputs],
            "token_ids": [tokens[prompt:] for _, prompt, tokens in outputs],
        }
    )
    return tokens if backend is None else backend.with_text(session, tokens)


def _billed(parts: Parts, session: LiveSession | None) -> GpuSpec | None:
    """The GPU that is paid for: of a live run the one that it ran on, None where the catalog does not know it."""
    if session is None:
        return parts.gpu
    try:
        return catalog.load_gpu(session.device_name)
    except InputError:
        return None
