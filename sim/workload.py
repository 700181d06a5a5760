"""From a trace and a scenario to the requests that will be sent, and when. It knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pandas as pd

import traces
from sim.cluster import Workload
from sim.scenario import Scenario, WorkloadSettings
from traces import edit
from traces.blocks import chained
from traces.schema import InputError, Trace


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose, independent of all others drawn from the same seed."""
    return np.random.default_rng([seed, crc32(purpose.encode())])


def load_trace(plan: Scenario) -> Trace:
    """Read the scenario's trace and give its requests their arrival times.

    Raises:
        InputError: no trace is named, it cannot be read, or it has no times and none are asked for.
    """
    settings = plan.workload
    if not settings.trace:
        raise InputError(f"no trace given; name a file with --trace, or a bundled one: {', '.join(traces.bundled())}")
    trace = traces.read(
        settings.trace,
        format=settings.format or None,
        tokenizer=settings.tokenizer or None,
        skip_bad=settings.skip_bad,
        limit=settings.limit or None,
        side=settings.side,
    )
    return timed(trace, settings, plan.seed)


def timed(trace: Trace, settings: WorkloadSettings, seed: int) -> Trace:
    """The trace with the arrival rate that the settings ask for."""
    if settings.rate:
        return edit.set_rate(trace, settings.rate, stream(seed, "arrivals"))
    if settings.rate_scale != 1.0:
        return edit.scale_rate(trace.require_arrivals(), settings.rate_scale)
    return trace if settings.concurrency else trace.require_arrivals()


def columns(requests: pd.DataFrame, *, sessions: bool, block_tokens: int) -> Workload:
    """The requests as plain columns; with `sessions`, later turns wait for the answer before them.

    Shared prefixes follow from the trace's block ids or, in blocks of `block_tokens`, from its token ids.
    """
    follow = sessions and "after" in requests
    prefix: list[Sequence[int]] | None = None
    unit_tokens = block_tokens
    if "prefix_blocks" in requests:
        prefix = [ids.tolist() for ids in map(np.asarray, requests["prefix_blocks"])]
        unit_tokens = int(requests["prefix_block_tokens"].iloc[0])
    elif "token_ids" in requests:
        prefix = [ids.tolist() for ids in chained(list(requests["token_ids"]), block_tokens)]
    return Workload(
        requests["arrival_s"].tolist(),
        requests["prompt_tokens"].tolist(),
        requests["output_tokens"].tolist(),
        requests["priority"].tolist() if "priority" in requests else None,
        prefix,
        unit_tokens,
        requests["after"].tolist() if follow else None,
        requests["think_s"].tolist() if follow else None,
    )
