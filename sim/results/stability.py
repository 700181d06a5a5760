"""Whether the queue of a run grew as it does above capacity: one stated rule, a suspicion and no proof."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from sim.results.percentiles import Floats

FEWEST_REQUESTS, FEWEST_WAITING, GROWTH = 100, 5.0, 2.0


def mean_waiting(requests: pd.DataFrame, edges_s: Floats) -> Floats:
    """Mean number of requests that had arrived and were not yet scheduled, between neighbouring edges."""
    queued = requests[(requests["status"] != "rejected") & requests["arrival_s"].notna()]
    arrival_s = queued["arrival_s"].to_numpy(dtype=np.float64)
    scheduled_s = queued["first_scheduled_s"].fillna(np.inf).to_numpy(dtype=np.float64)
    waits = [(np.clip(scheduled_s, a, b) - np.clip(arrival_s, a, b)).sum() / (b - a) for a, b in pairwise(edges_s)]
    return np.array(waits, dtype=np.float64)


def _growth(requests: pd.DataFrame) -> tuple[float, float, float] | None:
    """The mean number waiting in the last three quarters of the arrivals; None where these tell nothing."""
    first_s, last_s = requests["arrival_s"].min(), requests["arrival_s"].max()
    if len(requests) < FEWEST_REQUESTS or not last_s > first_s:
        return None
    _, second, third, fourth = mean_waiting(requests, np.linspace(first_s, last_s, 5)).tolist()
    return second, third, fourth


def grows(requests: pd.DataFrame) -> bool | None:
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


def queue_warning(requests: pd.DataFrame) -> str | None:
    """A sentence where the queue grew as it does when the load exceeds capacity (`grows`), else None."""
    means = _growth(requests)
    if means is None or not _grew(*means):
        return None
    texts = ", then ".join(f"{mean:,.1f}" for mean in means)
    return (
        f"The queue kept growing while requests arrived ({texts} waiting in the last three quarters), as it "
        "does when the load is above capacity: the latencies then depend on the length of the trace."
    )
