"""From a trace and a scenario to the requests that will be sent, and when. It knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from zlib import crc32

import numpy as np
import pandas as pd

import traces
from sim.engine.request import BeamDraw
from sim.scenario import Scenario, WorkloadSettings
from sim.serving.source import Workload
from traces import edit
from traces.blocks import chained
from traces.redraw import redraw
from traces.schema import InputError, Trace


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose, independent of all others drawn from the same seed."""
    return np.random.default_rng([seed, crc32(purpose.encode())])


def load_trace(plan: Scenario) -> Trace:
    """Read the scenario's trace and give its requests their arrival times.

    Raises:
        InputError: no trace is named, it cannot be read, or it has no times and none are asked for.
    """
    return timed(read_trace(plan.workload), plan.workload, plan.seed)


def read_trace(settings: WorkloadSettings) -> Trace:
    """The scenario's trace as its file has it; of the settings, those count that say what to read and how.

    Raises:
        InputError: no trace is named, or it cannot be read.
    """
    if not settings.trace:
        raise InputError(f"no trace given; name a file with --trace, or a bundled one: {', '.join(traces.bundled())}")
    return traces.read(
        settings.trace,
        format=settings.format or None,
        tokenizer=settings.tokenizer or None,
        skip_bad=settings.skip_bad,
        limit=settings.limit or None,
        side=settings.side,
    )


def timed(trace: Trace, settings: WorkloadSettings, seed: int) -> Trace:
    """The trace with the requests and arrivals that the settings ask for."""
    if settings.resample:
        trace = edit.resample(trace, settings.resample, stream(seed, "resample"))
    if settings.arrivals != "trace":
        return redraw(trace, _mean_rate(trace, settings), stream(seed, "arrivals"), settings.arrivals_cv)
    if settings.rate:
        return edit.set_rate(trace, settings.rate, stream(seed, "arrivals"))
    if settings.rate_scale != 1.0:
        return edit.scale_rate(trace.require_arrivals(), settings.rate_scale)
    return trace if settings.concurrency else trace.require_arrivals()


def _mean_rate(trace: Trace, settings: WorkloadSettings) -> float:
    """Requests per second that arrivals are drawn at."""
    if settings.rate:
        return settings.rate
    if not trace.has_arrivals or trace.span_s <= edit.AT_ONCE_S:
        raise InputError(
            f"{trace.path or trace.name} has no arrival rate of its own to draw arrivals at; give one (--rate)"
        )
    return (len(trace) - 1) / trace.span_s * settings.rate_scale


def columns(requests: pd.DataFrame, plan: Scenario, block_tokens: int) -> Workload:
    """The requests as plain columns; with `workload.sessions`, later turns wait for the answer before them.

    Shared prefixes follow from the trace's block ids or, in blocks of `block_tokens`, from its token ids.
    """
    settings = plan.workload
    follow = settings.sessions and "after" in requests
    prefix: list[Sequence[int]] | None = None
    unit_tokens = block_tokens
    if "prefix_blocks" in requests:
        prefix = [ids.tolist() for ids in map(np.asarray, requests["prefix_blocks"])]
        unit_tokens = int(requests["prefix_block_tokens"].iloc[0])
    elif "token_ids" in requests:
        prefix = [ids.tolist() for ids in chained(list(requests["token_ids"]), block_tokens)]
    prompt, output = requests["prompt_tokens"].tolist(), requests["output_tokens"].tolist()
    known: list[int] | None = None
    if prefix is not None and follow and plan.executor != "live":  # a live answer is what the model says
        known = name_answers(prefix, unit_tokens, prompt, output, requests["after"].tolist())
    return Workload(
        requests["arrival_s"].tolist(),
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
    )


def samples(requests: pd.DataFrame, settings: WorkloadSettings) -> list[int] | None:
    """Sequences that each request asks for; None where it is one for all."""
    if settings.samples:
        return [settings.samples] * len(requests) if settings.samples > 1 else None
    return requests["samples"].tolist() if "samples" in requests else None


def name_answers(
    ids: list[Sequence[int]],
    unit_tokens: int,
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    after: Sequence[int],
) -> list[int]:
    """Extend each request's ids over its answer where the next turn's prompt repeats it; returns the tokens named.

    The next turn repeats prompt and answer if its own prompt is at least as long as both and its ids begin with the
    ids of the prompt's full units. The last unit may be longer in the next turn, and then has another name there.
    """
    known = list(prompt_tokens)
    for row, parent in enumerate(after):
        if parent < 0 or known[parent] > prompt_tokens[parent]:
            continue
        text, units = prompt_tokens[parent] + output_tokens[parent], prompt_tokens[parent] // unit_tokens
        if prompt_tokens[row] >= text and ids[row][:units] == ids[parent][:units]:
            named = text // unit_tokens
            if named > units:
                ids[parent] = ids[row][:named]
                known[parent] = named * unit_tokens
    return known


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
