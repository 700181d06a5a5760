"""One run of a scenario, from its parts to its tables: clock, replicas, source, and the logs beside them."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd

from sim import catalog
from sim.cost.step import StepCost
from sim.engine.drafting import Drafting, Tally
from sim.engine.flight import Audience, Observer
from sim.engine.protocol import ServingEngine
from sim.engine.request import SAMPLE_BITS, Request, index_of
from sim.engine.rules import Rules
from sim.load import OURS, build
from sim.results import metrics
from sim.results.bill import Rates
from sim.results.clients import ClientLog, by_process
from sim.results.gaps import TokenGaps
from sim.results.load import load
from sim.results.percentiles import Itl
from sim.results.requests import RequestLog, request_table
from sim.results.steps import StepLog
from sim.results.terms import StepTerms, term_shares
from sim.scenario import Scenario, as_tables, policies_of, settings_of
from sim.serving.answer import answered
from sim.serving.assemble import Parts, assemble, resolved
from sim.serving.clock import Clock, WallClock
from sim.serving.cluster import Cluster
from sim.serving.executor import Executor, OnTheWall
from sim.serving.front_end import Draws, FrontEnd
from sim.serving.noise import Noisy, noise_notes, noise_of
from sim.serving.notes import front_end_notes, kv_notes
from sim.serving.pool import Pool
from sim.serving.replica import NoProgressError, Replica
from sim.serving.source import RequestSource
from sim.serving.workload import asked_per_s, columns, load_trace, samples
from sim.specs.gpu import GpuSpec
from sim.specs.parallel import Parallel
from sim.specs.settings import word
from sim.speculation import tables as draft_tables
from traces.rows import keep_rows
from traces.schema import InputError, Trace
from traces.version import product_version

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """What a run gave. The columns of its tables and the keys of its summary: docs/metrics.md."""

    scenario: Scenario
    summary: dict[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    step_end_s: list[np.ndarray]
    """The step clock of each replica: the end of every single step."""
    itl: Itl
    """(seconds between two tokens of a request as its client saw them, how often)."""
    engine_itl: Itl
    """The same of the tokens as the engine gave them, which without a front end is the same."""
    trace: Trace
    """What was replayed, rejected requests included."""
    tokens: pd.DataFrame | None = None
    """Of a live run: `request`, `sample` (0 is the first) and `token_ids`, the answer of each sequence; also its `text`
    where the model's tokens are bytes."""
    died: str = ""
    """Why a live run ended before its time: its tables hold what was measured until then."""
    preempted: pd.DataFrame | None = None
    """Every preemption: `request`, `sequence`, `start_s`, `end_s`."""
    terms: StepTerms | None = None
    """What its steps cost by term; None where they were measured."""


class LiveSession(Protocol):
    """What a live run needs of the backend (`backend.session.Session`)."""

    device_name: str

    def executor(self, engine: ServingEngine) -> Executor: ...

    def outputs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(sequence id, prompt tokens, ids of prompt and answer) of each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a validation puts into a run: nothing by default.

    Args:
        session: runs the batches of a live scenario, whose settings are taken as they are, instead of the backend.
        wrap: is given the executor of each replica and returns the one to use.
        observer: told of every decision, beside the run's own log.
        cost: prices instead of the profile that the scenario names.
        rules: of another version of the engine than the scenario names.
        spans: whether the engine may repeat steps unasked; None leaves it to the executor.
        gaps: is given the gaps between the tokens that clients saw, once the run is over.
    """

    session: LiveSession | None = None
    wrap: Callable[[Executor], Executor] | None = None
    observer: Observer | None = None
    cost: StepCost | None = None
    rules: Rules | None = None
    spans: bool | None = None
    gaps: Callable[[TokenGaps], None] | None = None


NO_HOOKS = Hooks()


def simulate(
    scenario: Scenario, *, trace: Trace | None = None, progress: Progress | None = None, hooks: Hooks = NO_HOOKS
) -> Result:
    """Simulate a scenario, on `trace` (with its arrival times as they are) where it is given."""
    slo = metrics.parse_slo(scenario.slo) if scenario.slo else ()
    backend = _backend() if scenario.executor == "live" and hooks.session is None else None
    if backend is not None:
        scenario = backend.fitted(scenario)
    parts = assemble(scenario)
    if hooks.cost is not None:
        parts = replace(parts, cost=hooks.cost)
    if hooks.rules is not None:
        parts = replace(parts, rules=hooks.rules)
    trace = load_trace(scenario) if trace is None else trace
    spans = backend is None and hooks.session is None if hooks.spans is None else hooks.spans
    pools = [Pool(parts, scenario.replicas)]
    engines = [engine for pool in pools for engine in pool.engines(spans=spans)]
    sent_rows, rejected = admissible(parts, trace, engines[0])
    sent = keep_rows(trace.requests, sent_rows)
    session = backend.Session(parts, _token_ids(sent)) if backend is not None else hooks.session
    simulation = _Simulation(parts, engines, sent, progress, session, hooks)
    started = time.perf_counter()
    died = simulation.run(keep=backend is not None and hooks.wrap is None)
    loop_s = time.perf_counter() - started
    clients, steps_s = simulation.clients, simulation.step_end_s()
    gaps = simulation.gaps(steps_s)
    itl = gaps.itl()
    engine_itl = itl if clients is None else simulation.engine_gaps(steps_s).itl()
    if hooks.gaps is not None:
        hooks.gaps(gaps)
    requests = request_table(
        trace.requests,
        sent_rows,
        rejected | simulation.refusals(np.flatnonzero(sent_rows)),
        simulation.requests,
        gaps.longest_s(len(sent)),
        parts.pool.block_tokens,
        clients,
    )
    steps = simulation.steps.table()
    speculation = None
    step_terms, terms, sources = _costs(parts, simulation.steps, steps, session)
    if parts.drafter is not None:
        tallies = simulation.tallies()
        requests = draft_tables.with_drafts(requests, sent_rows, tallies)
        measured_s = sources.get("measured", 0.0)
        speculation = draft_tables.summary(parts.drafter, Parallel(scenario.tp), tallies, terms, measured_s)
    summary = metrics.summarise(
        requests,
        steps,
        itl,
        parts.kv_facts,
        slo=slo,
        dropped=trace.dropped,
        source_seconds=sources,
        simulator=simulation.speed(steps, loop_s),
        inputs=_inputs(parts, trace, session, died, simulation.noise),
        speculation=speculation,
        rates=Rates.of(scenario.tp * scenario.replicas, _billed(parts, session), scenario.price),
        front_end=simulation.front_end_facts(scenario),
        engine_itl=None if clients is None else engine_itl,
    )
    summary["cost_terms"] = term_shares(terms)
    asked = asked_per_s(trace, scenario.workload)
    summary["load"] = metrics.plain(load(requests, scenario, asked_per_s=asked, laid_over_s=trace.window_s))
    summary = answered(summary, parts, requests, steps, step_terms, slo)
    tokens = _tokens(session, np.flatnonzero(sent_rows)) if session is not None else None
    if backend is not None:
        tokens = backend.with_text(session, tokens)
    return Result(
        resolved(scenario, parts),
        summary,
        requests,
        steps,
        steps_s,
        itl,
        engine_itl,
        trace,
        tokens,
        died,
        simulation.steps.preemptions(sent_rows),
        step_terms,
    )


class _Simulation:
    """One simulated time with its replicas, and the logs of what happened in it."""

    def __init__(
        self,
        parts: Parts,
        engines: Sequence[ServingEngine],
        admissible: pd.DataFrame,
        progress: Progress | None,
        session: LiveSession | None,
        hooks: Hooks,
    ) -> None:
        scenario = parts.scenario
        count = len(admissible)
        self.clock = WallClock() if session is not None and scenario.live.clock == "wall" else Clock()
        self._session = session
        self._hooks = hooks
        self.requests = RequestLog(count)
        self.steps = StepLog(scenario.replicas)
        self._progress = progress
        self._every = max(1, count // 200)
        self._finished = 0
        self._count = count
        self._acceptance = admissible["acceptance"].tolist() if "acceptance" in admissible else None
        self.noise = noise_of(scenario, parts.cost, admissible) if session is None else 0.0
        self.clients = ClientLog(count) if scenario.front_end.on else None
        self.front_ends = self._front_ends(scenario, self.clients) if self.clients is not None else []
        self.replicas = [self._replica(parts, engine, index) for index, engine in enumerate(engines)]
        for front_end, replica in zip(self.front_ends, self.replicas, strict=False):
            front_end.serve(replica)
        router = build("sim.routers", scenario.router.name, scenario.router.parameters)
        cluster = Cluster(self.front_ends or self.replicas, router)
        work = columns(admissible, scenario, parts.pool.block_tokens)
        self._source = RequestSource(self.clock, work, cluster.submit, concurrency=scenario.workload.concurrency)

    def _front_ends(self, scenario: Scenario, clients: ClientLog) -> list[FrontEnd]:
        """One for each replica."""
        draws = Draws(self._count, scenario.front_end.spread, scenario.seed)

        def refused(req: Request, told_s: float) -> None:
            self._ended(req, told_s)

        return [FrontEnd(self.clock, scenario.front_end, clients, draws, refused) for _ in range(scenario.replicas)]

    def _ended(self, req: Request, seen_s: float | None) -> None:
        """A request is answered or refused, which its client sees then (None: now)."""
        self._source.finished(req, seen_s)
        self._finished += 1
        if self._progress is not None and self._finished % self._every == 0:
            self._progress(self._finished, self._count)

    def _replica(self, parts: Parts, engine: ServingEngine, index: int) -> Replica:
        clients = self.clients

        def finished(req: Request) -> None:
            self.requests.finished(req, index)
            self._ended(req, None if clients is None else clients.finish_s[req.id])

        hooks = self._hooks
        observers: list[Observer] = [self.steps]
        if self.front_ends:
            observers.append(self.front_ends[index])
        if hooks.observer is not None:
            observers.append(hooks.observer)
        executor: Executor = (
            parts.executor(self._acceptance) if self._session is None else self._session.executor(engine)
        )
        if self.noise:
            executor = Noisy(executor, self.noise, parts.scenario.seed, index)
        if isinstance(self.clock, WallClock):
            executor = OnTheWall(executor, lambda clock=self.clock: clock.elapsed_s)  # type: ignore[misc]
        if hooks.wrap is not None:
            executor = hooks.wrap(executor)
        return Replica(
            self.clock,
            engine,
            executor,
            depth=parts.depth,
            on_finish=finished,
            observer=observers[0] if len(observers) == 1 else Audience(observers),
            index=index,
            alone=parts.scenario.replicas == 1,
        )

    def run(self, *, keep: bool) -> str:
        """Run to the end; says what a device died of where `keep` is set and some requests had been answered."""
        self._source.start()
        try:
            self.clock.run_out()
        except NoProgressError as error:
            raise InputError(f"the run cannot go on: {error}") from None
        except (InputError, MemoryError, RuntimeError) as error:
            if not keep or not self._finished:
                raise
            return f"the live run died when {self._finished:,} of {self._count:,} requests had finished: {error}"
        del self._source  # a million requests as columns are worth their memory
        return ""

    def step_end_s(self) -> list[np.ndarray]:
        return [np.frombuffer(ends_s) if len(ends_s) else np.empty(0) for ends_s in self.steps.step_end_s]

    def engine_gaps(self, step_end_s: list[np.ndarray]) -> TokenGaps:
        """The gaps between all tokens as the engines gave them."""
        return TokenGaps([replica.engine.tokens for replica in self.replicas], step_end_s)

    def gaps(self, step_end_s: list[np.ndarray]) -> TokenGaps:
        """The gaps between all tokens as clients saw them."""
        if self.clients is None:
            return self.engine_gaps(step_end_s)
        clocks, ends_s = [], []
        for front_end, replica in zip(self.front_ends, self.replicas, strict=True):
            seen_s = front_end.seen_s
            clocks += by_process(replica.engine.tokens, self.clients.process, len(seen_s))
            ends_s += [np.frombuffer(each) if len(each) else np.empty(0) for each in seen_s]
        return TokenGaps(clocks, ends_s)

    def refusals(self, places: np.ndarray) -> dict[int, str]:
        """Why front ends refused requests, by their places in the trace."""
        refused = {} if self.clients is None else self.clients.refused
        return {int(places[at]): f"the front end refused it (503): {limit}" for at, limit in refused.items()}

    def front_end_facts(self, scenario: Scenario) -> dict[str, Any] | None:
        """What the summary tells of the front ends; None where there are none."""
        if self.clients is None:
            return None
        busy_s = sum(front_end.busy_s for front_end in self.front_ends)
        refused = dict(Counter(self.clients.refused.values()))
        return {**scenario.front_end.facts(), "busy_s": busy_s, "refused": refused}

    def tallies(self) -> list[Tally]:
        """What drafting gave, of each replica that drafts."""
        return [replica.engine.tally for replica in self.replicas if isinstance(replica.engine, Drafting)]

    def speed(self, steps: pd.DataFrame, loop_s: float) -> dict[str, Any]:
        return {
            "wall_s": loop_s,
            "steps": int(steps["repeats"].sum()),
            "events": self.clock.events,
            "requests_per_wall_s": self._count / loop_s,
        }


def admissible(parts: Parts, trace: Trace, engine: ServingEngine) -> tuple[np.ndarray, dict[int, str]]:
    """Which requests can be served at all, as an engine of these parts has it, and why the others cannot.

    Raises:
        InputError: one cannot, and the scenario does not say to skip such.
    """
    table = trace.requests
    prompt, output = table["prompt_tokens"].to_numpy(), table["output_tokens"].to_numpy()
    total = prompt + output
    longest = int(np.argmax(total))
    sequences = samples(table, parts.scenario.workload)
    most = max(sequences) if sequences else 1

    beams = (lambda count: [1] * count) if parts.scenario.workload.beam_search else None

    def refusal(index: int, size: int) -> str | None:
        req = Request(index, 0.0, int(prompt[index]), int(output[index]))
        return engine.refusal(req.split(size, beams) if size > 1 else req)

    # No allocator holds more than twice what a request uses, but one that reserves alike for all.
    roomy = (
        2 * most * int(total[longest]) <= parts.memory.tokens
        and parts.limits.chunked_prefill
        and not parts.traits["keeps_nothing"]
    )
    rejected: dict[int, str] = {}
    if refusal(longest, most) or not roomy:
        sizes = sequences or [1] * len(table)
        rejected = {index: reason for index, size in enumerate(sizes) if (reason := refusal(index, size))}
    if rejected and not parts.scenario.workload.skip_bad:
        index, reason = next(iter(rejected.items()))
        others = f" (and {len(rejected) - 1} more)" if len(rejected) > 1 else ""
        raise InputError(
            f"{trace.path or trace.name} line {table['source_row'].iloc[index]}: the request can never be served"
            f"{others}: {reason}; --skip-bad leaves such requests out"
        )
    sent_rows = np.ones(len(table), bool)
    sent_rows[list(rejected)] = False
    if not sent_rows.any():
        raise InputError(f"{trace.path or trace.name}: no request can be served: {next(iter(rejected.values()))}")
    return sent_rows, rejected


def _costs(
    parts: Parts, log: StepLog, steps: pd.DataFrame, session: LiveSession | None
) -> tuple[StepTerms | None, Mapping[tuple[str, str], float], dict[str, float]]:
    """(what steps cost by term, None where they were measured; seconds by term and source; seconds by source)."""
    if session is not None:
        return None, {}, {"measured": float(steps["device_s"].sum() + steps["host_s"].sum())}
    step_terms = StepTerms(parts.cost, log.sample, parts.asynchronous)
    terms = step_terms.seconds()
    return step_terms, terms, _by_source(terms)


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


def _token_ids(requests: pd.DataFrame) -> list[Any] | None:
    return list(requests["token_ids"]) if "token_ids" in requests else None


def _tokens(session: LiveSession, rows: np.ndarray) -> pd.DataFrame:
    """The answers by request of the trace; `rows` are those of the requests that were sent."""
    outputs = list(session.outputs())
    index = rows[[index_of(id) for id, _, _ in outputs]] if outputs else np.empty(0, np.int64)
    return pd.DataFrame(
        {
            "request": index,
            "sample": [id >> SAMPLE_BITS for id, _, _ in outputs],
            "token_ids": [tokens[prompt:] for _, prompt, tokens in outputs],
        }
    )


def _billed(parts: Parts, session: LiveSession | None) -> GpuSpec | None:
    """The GPU that is paid for: of a live run the one that it ran on, None where the catalog does not know it."""
    if session is None:
        return parts.gpu
    try:
        return catalog.load_gpu(session.device_name)
    except InputError:
        return None


def _engine_notes(parts: Parts) -> list[str]:
    """Whose defaults these are, what was set otherwise, and what of the engine is not modelled."""
    preset, scenario = parts.preset, parts.scenario
    if preset.name == OURS:
        return []
    values = {key: value for key, value, _ in settings_of(scenario)}
    own = preset.defaults(parts.gpu)
    other = [key for key, value in own.items() if values[key] != value]
    changed = [f"{key} {word(values[key])} (its own: {word(own[key])})" for key in other]
    told = f"its defaults on {parts.gpu.name}{', but ' + ', '.join(changed) if changed else ''}."
    if parts.mixed:
        why = preset.refusal(policies_of(as_tables(scenario)), scenario.allocator.name)
        return [f"No engine of that name: {why}. Foretoken runs it with {preset.name}'s rules and {told}"]
    if parts.engine_class is not None and "==" not in scenario.engine.name:
        return [f"Engine {scenario.engine.name} decides; what it reads of limits and memory is {preset.name}'s: {told}"]
    return [
        f"Engine {preset.name}: {preset.description}; {told}",
        f"Not modelled of {preset.name}: {'; '.join(preset.lacks)}.",
    ]


def _inputs(parts: Parts, trace: Trace, session: LiveSession | None, died: str, noise: float) -> dict[str, Any]:
    scenario = parts.scenario
    measured = {} if session is None else {"device": session.device_name}
    spanning = parts.gpu.group_note(scenario.tp) if session is None else ""
    ended = [f"Cut short: {died}."] if died else []
    return {
        "executor": scenario.executor,
        **measured,
        "trace": trace.name,
        "trace_kind": trace.kind,
        "synthetic": trace.synthetic,
        "profile": scenario.cost.profile,
        "model": parts.model.name,
        "gpu": parts.gpu.name if session is None else None,
        "tp": scenario.tp,
        "replicas": scenario.replicas,
        "engine": parts.engine_name,
        "policy": scenario.policy.name,
        "allocator": scenario.allocator.name,
        "seed": scenario.seed,
        "version": product_version(),
        "notes": [
            *_engine_notes(parts),
            *filter(None, [spanning]),
            *front_end_notes(parts),
            *noise_notes(scenario, noise),
            *kv_notes(parts, trace.requests),
            *trace.notes,
            *ended,
        ],
    }
