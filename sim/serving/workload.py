"""From a trace and a scenario to the requests that will be sent, and when. It knows no engine."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from zlib import crc32

import numpy as np

import traces
from sim.engine.request import Adapter, BeamDraw
from sim.scenario import Scenario
from sim.serving.source import Workload, session_numbers
from sim.specs.workload import WorkloadSettings
from traces import edit
from traces.blocks import Reblocked, chained
from traces.late import pd
from traces.redraw import LoadStage, own_rate, redraw, staged
from traces.resample import enough
from traces.reuse import name_answers
from traces.schema import InputError, Trace
from traces.table import Columns


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random numbers of one purpose (and of what it numbers), independent of all others drawn from the seed."""
    return np.random.default_rng([seed, crc32(purpose.encode()), *numbers])


def load_trace(plan: Scenario) -> Trace:
    """Read the scenario's trace and give its requests their arrival times.

    Raises:
        InputError: no trace is named, it cannot be read, or it has no times and none are asked for.
    """
    return timed(read_trace(TraceReading.of(plan.workload)), plan.workload, plan.seed)


@dataclass(frozen=True, slots=True)
class TraceReading:
    """Of a workload's settings, those that say what to read and how."""

    trace: str
    format: str
    tokenizer: str
    skip_bad: bool
    limit: int
    side: str
    whole_sessions: bool
    turns: str
    time_unit: str
    block_tokens: int

    @classmethod
    def of(cls, settings: WorkloadSettings) -> TraceReading:
        return cls(
            settings.trace,
            settings.format,
            settings.tokenizer,
            settings.skip_bad,
            settings.limit,
            settings.side,
            settings.sessions and settings.laid_anew,
            settings.turns,
            settings.time_unit,
            settings.block_tokens,
        )


def read_trace(reading: TraceReading) -> Trace:
    """A trace as its file has it.

    Raises:
        InputError: no trace is named, or it cannot be read.
    """
    if not reading.trace:
        raise InputError(f"no trace given; name a file with --trace, or a bundled one: {', '.join(traces.bundled())}")
    return traces.read(
        reading.trace,
        format=reading.format or None,
        tokenizer=reading.tokenizer or None,
        skip_bad=reading.skip_bad,
        limit=reading.limit or None,
        side=reading.side,
        whole_sessions=reading.whole_sessions,
        turns=reading.turns,
        time_unit=reading.time_unit,
        block_tokens=reading.block_tokens,
    )


def timed(trace: Trace, settings: WorkloadSettings, seed: int) -> Trace:
    """The trace with the requests, arrivals and priorities that the settings ask for.

    The one path of every command to a rate: of requests alone their times are stretched or drawn; where they come in
    sessions, by `traces.redraw`, since what a session offers later must be offered from the start.

    Raises:
        InputError: the trace has no rate of its own where one is asked for, or no times at all.
    """
    laid = _timed(trace, settings, seed)
    drawn: dict[str, np.ndarray] = {}
    if settings.priority_shares:
        priorities = _shared_out(laid.requests, settings.priority_shares, stream(seed, "priorities"))
        drawn["priority"] = priorities.astype(np.int64)
    if settings.model_shares:
        drawn["model"] = _shared_out(laid.requests, settings.model_shares, stream(seed, "models"))
    if settings.adapters:
        shares = _adapter_shares(settings)
        drawn["adapter"] = _shared_out(laid.requests, shares, stream(seed, "adapters")).astype(str)
    return replace(laid, requests=laid.requests.assign(**drawn)) if drawn else laid


def _adapter_shares(settings: WorkloadSettings) -> dict[str, float]:
    """By adapter how many requests ask for it; "" is none."""
    weights = np.arange(1, settings.adapters + 1) ** -settings.adapter_skew
    weights *= (1.0 - settings.base_share) / weights.sum()
    own = {f"adapter-{number}": float(weight) for number, weight in enumerate(weights, 1)}
    return {"": settings.base_share, **own}


def _shared_out(requests: Columns, shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """For each request one of the names, drawn by their shares; the same for all requests of a session."""
    weights = np.array(list(shares.values()))
    drawn = rng.choice(np.array(list(shares), object), (2, len(requests)), p=weights / weights.sum())
    if "session" in requests:
        named = np.asarray(requests["session"]) != ""
        one_each: np.ndarray = np.where(named, drawn[0][pd.factorize(requests["session"])[0]], drawn[1])
    elif "after" in requests:
        one_each = drawn[0][session_numbers(requests["after"].tolist())]
    else:
        one_each = drawn[0]
    return one_each


def _timed(trace: Trace, settings: WorkloadSettings, seed: int) -> Trace:
    sessions = settings.sessions and "after" in trace.table
    if settings.resample:
        trace = edit.resample(trace, settings.resample, stream(seed, "resample"))
    elif sessions and settings.limit and settings.laid_anew:
        trace = enough(trace, settings.limit, stream(seed, "resample"))
    cv = None if settings.arrivals == "trace" else settings.arrivals_cv
    rng = stream(seed, "arrivals")
    if settings.stages:
        return staged(_alone(trace, sessions), stages_of(trace, settings), stream(seed, "resample"), rng, cv)
    if settings.rate == math.inf:
        return edit.at_once(_alone(trace, sessions))
    if cv is not None or (sessions and settings.laid_anew):
        return redraw(trace, _mean_rate(trace, settings), rng, cv)
    if settings.rate:
        return edit.set_rate(trace, settings.rate, rng)
    if settings.rate_scale != 1.0:
        return edit.scale_rate(trace.require_arrivals(), settings.rate_scale)
    return trace if settings.concurrency else trace.require_arrivals()


def asked_per_s(trace: Trace, settings: WorkloadSettings) -> float | None:
    """The mean rate at which a trace that was `timed` offers requests; None where nothing asks for a finite one."""
    if settings.concurrency or not settings.laid_anew or math.isinf(settings.rate):
        return None
    return len(trace) / trace.window_s if trace.window_s else settings.rate or edit.mean_rate(trace)


def _alone(trace: Trace, sessions: bool) -> Trace:
    """The trace with its sessions, or as requests that follow none."""
    if sessions or "after" not in trace.requests:
        return trace
    return replace(trace, requests=trace.requests.drop(columns=["after", "think_s"], errors="ignore"))


def stages_of(trace: Trace, settings: WorkloadSettings) -> list[LoadStage]:
    """The stages of the settings with their rates; a `rate_scale` is of the settings' rate, or of the trace's own."""
    if any(stage.rate_scale for stage in settings.stages):
        base = settings.rate or _own_rate(trace, settings)
        return [LoadStage(stage.rate or base * stage.rate_scale, stage.duration_s) for stage in settings.stages]
    return [LoadStage(stage.rate, stage.duration_s) for stage in settings.stages]


def _mean_rate(trace: Trace, settings: WorkloadSettings) -> float:
    """Requests per second that arrivals are laid at."""
    return settings.rate or _own_rate(trace, settings) * settings.rate_scale


def _own_rate(trace: Trace, settings: WorkloadSettings) -> float:
    """Requests per second of the trace itself; with sessions those that its starts offer in the long run."""
    sessions = settings.sessions and "after" in trace.requests
    rate = own_rate(trace) if sessions else edit.mean_rate(trace)
    if rate is None:
        raise InputError(
            f"{trace.path or trace.name} has no arrival rate of its own to draw arrivals at; give one (--rate)"
        )
    return rate


def columns(
    requests: Columns,
    plan: Scenario,
    block_tokens: int,
    *,
    with_sessions: bool = False,
    adapters: Sequence[Adapter | None] | None = None,
) -> Workload:
    """The requests as plain columns; with `workload.sessions`, later turns wait for the answer before them.

    Shared prefixes follow from the trace's block ids or, in blocks of `block_tokens`, from its token ids.
    """
    settings = plan.workload
    follow = settings.sessions and "after" in requests
    prefix: list[Sequence[int]] | None = None
    unit_tokens = block_tokens
    prompt, output = (
        array("q", np.asarray(requests[f"{name}_tokens"], np.int64).tobytes()) for name in ("prompt", "output")
    )
    if "prefix_starts" in requests:
        parts = zip(requests["prefix_blocks"], requests["prefix_starts"], prompt, strict=True)
        prefix = [Reblocked(ids, starts, tokens, block_tokens) for ids, starts, tokens in parts]
    elif "prefix_blocks" in requests:
        prefix = [ids.tolist() for ids in map(np.asarray, requests["prefix_blocks"])]
        unit_tokens = int(np.asarray(requests["prefix_block_tokens"])[0])
    elif "token_ids" in requests:
        prefix = [ids.tolist() for ids in chained(list(requests["token_ids"]), block_tokens)]
    known: list[int] | None = None
    if prefix is not None and follow and plan.executor != "live":  # a live answer is what the model says
        known = name_answers(prefix, unit_tokens, prompt, output, requests["after"].tolist())
    return Workload(
        array("d", np.asarray(requests["arrival_s"], np.float64).tobytes()),
        prompt,
        output,
        requests["priority"].tolist() if "priority" in requests else None,
        prefix,
        unit_tokens,
        known,
        requests["after"].tolist() if follow else None,
        requests["think_s"].tolist() if follow else None,
        samples(requests, settings),
        partial(beam_draws, plan.seed, settings.beam_churn) if settings.beam_search else None,
        _session_numbers(requests, plan) if with_sessions else None,
        adapters,
    )


def _session_numbers(requests: Columns, plan: Scenario) -> list[int]:
    """Of each request one number for its session; raises InputError where the trace tells none."""
    if "session" in requests:
        numbers: list[int] = pd.factorize(requests["session"])[0].tolist()
        return numbers
    if "after" in requests:
        return session_numbers(requests["after"].tolist())
    raise InputError(
        f"router {plan.router.name} follows sessions, and the trace tells none; known routers that need none: "
        "round-robin, least-outstanding"
    )


def samples(requests: Columns, settings: WorkloadSettings) -> list[int] | None:
    """Sequences that each request asks for; None where it is one for all."""
    if settings.samples:
        return [settings.samples] * len(requests) if settings.samples > 1 else None
    return requests["samples"].tolist() if "samples" in requests else None


def beam_draws(seed: int, churn: float, index: int) -> BeamDraw:
    """Draws for one request's beam search: with probability `churn` a place goes on from a beam chosen evenly."""
    rng = np.random.default_rng([seed, crc32(b"beams"), index])

    def draw(beams: int) -> list[int]:
        places = np.arange(beams)
        moved = rng.random(beams) < churn
        chosen = np.where(moved, rng.integers(beams, size=beams), places)
        counts: list[int] = np.bincount(chosen, minlength=beams).tolist()
        return counts

    return draw
