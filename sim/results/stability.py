"""Whether the queue of a run grew as it does above capacity: one stated rule, a suspicion and no proof."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sim.results.percentiles import Floats
from traces.table import Columns

FEWEST_REQUESTS, FEWEST_WAITING, GROWTH = 100, 5.0, 2.0


def mean_waiting(requests: Columns, edges_s: Floats) -> Floats:
    """Mean number of requests that had arrived and were not yet scheduled, between neighbouring edges."""
    arrival_s, scheduled_s = (np.asarray(requests[name], np.float64) for name in ("arrival_s", "first_scheduled_s"))
    queued = np.asarray(requests["status"] != "rejected", bool) & ~np.isnan(arrival_s)
    arrival_s, scheduled_s = arrival_s[queued], np.where(np.isnan(scheduled_s), np.inf, scheduled_s)[queued]
    waits = [(np.clip(scheduled_s, a, b) - np.clip(arrival_s, a, b)).sum() / (b - a) for a, b in pairwise(edges_s)]
    return np.array(waits, dtype=np.float64)


def _growth(requests: Columns) -> tuple[float, float, float] | None:
    """The mean number waiting in the last three quarters of the arrivals; None where these tell nothing."""
    if len(requests) < FEWEST_REQUESTS:
        return None
    arrival_s = np.asarray(requests["arrival_s"], np.float64)
    first_s, last_s = np.fmin.reduce(arrival_s), np.fmax.reduce(arrival_s)
    if not last_s > first_s:
        return None
    _, second, third, fourth = mean_waiting(requests, np.linspace(first_s, last_s, 5)).tolist()
    return second, third, fourth


def grows(requests: Columns) -> bool | None:
    """Whether the queue grew as it does when the load exceeds capacity; None where that cannot be told.

    Rule: over the four quarters of the time in which requests arrive, the mean number of waiting requests
    rises from the second to the third to the fourth, at least doubles from the second to the fourth (a queue
    that grows steadily from nothing gives 7/3), and ends at five or more, in a run of at least 100 requests.
    A load that rises during the trace looks the same.
    """
    means = _growth(requests)
    return None if means is None else _grew(*means)


def _grew(second: float, third: float, fourth: float) -> bool:
    return second < third < fourth and fourth >= GROWTH * second and fourth >= FEWEST_WAITING


def queue_warning(requests: Columns) -> str | None:
    """A sentence where the queue grew as it does when the load exceeds capacity (`grows`), else None."""
    means = _growth(requests)
    if means is None or not _grew(*means):
        return None
    texts = ", then ".join(f"{mean:,.1f}" for mean in means)
    return (
        f"The queue kept growing while requests arrived ({texts} waiting in the last three quarters), as it "
        "does when the load is above capacity: the latencies then depend on the length of the trace."
    )
