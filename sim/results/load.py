"""The load of a run: requests offered, admitted and served per second while requests came. It knows no latency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sim.scenario import Scenario
from traces.table import Columns


def kind_of(scenario: Scenario) -> str:
    """How requests come: closed (users who wait), at once, staged, open (at a rate), or recorded."""
    workload = scenario.workload
    if workload.concurrency:
        return "closed"
    if workload.stages:
        return "staged"
    if math.isinf(workload.rate):
        return "at once"
    return "open" if workload.laid_anew else "recorded"


def load(
    requests: Columns, scenario: Scenario, *, asked_per_s: float | None = None, laid_over_s: float | None = None
) -> dict[str, Any]:
    """The summary's `load`, as docs/metrics.md has it.

    Args:
        requests: the run's table.
        asked_per_s: the rate that the workload was laid to, None where nothing asks for one.
        laid_over_s: the seconds from 0 on that arrivals were laid over evenly; without them the window is from the
            first arrival to the last.
    """
    kind, users = kind_of(scenario), scenario.workload.concurrency
    taken = np.asarray(requests["status"] != "rejected", bool)
    # No user of a closed loop sends what cannot be served, so that it has no time of its own.
    sent = taken if users and taken.any() else np.ones(len(requests), bool)
    arrival_s = np.asarray(requests["arrival_s"], float)[sent]
    begin_s = float(arrival_s.min()) if laid_over_s is None else 0.0
    end_s = float(arrival_s.max()) if laid_over_s is None else laid_over_s
    window_s = end_s - begin_s
    inside = arrival_s <= end_s
    # A window that an arrival opens holds one gap less than arrivals; where many come at once, they all open it.
    opening = 0
    if laid_over_s is None:
        opening = int((arrival_s <= begin_s).sum()) if kind in ("closed", "at once") else 1

    def rate(count: float) -> float | None:
        return count / window_s if window_s > 0 else None

    offered = int(inside.sum())
    admitted = int((inside & taken[sent]).sum())
    finish_s = np.asarray(requests["finish_s"], float)
    last_s = float(np.fmax.reduce(finish_s))
    return {
        "kind": kind,
        "asked_per_s": asked_per_s,
        "offered_per_s": rate(offered - opening),
        "admitted_per_s": rate((offered - opening) * admitted / offered),
        "served_per_s": rate(int((finish_s <= end_s).sum())),
        "window_s": window_s,
        "users": users or None,
        "drain_s": max(last_s - end_s, 0.0) if math.isfinite(last_s) else 0.0,
    }
