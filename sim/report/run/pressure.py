"""How stable, how busy and how full a run was, in sentences for its trust box. It judges no latency."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sim.results.kv import FULL, KV_HELD, KV_KINDS, busy_s, kv_tokens
from sim.results.result import Run
from sim.results.stability import FEWEST_REQUESTS, mean_waiting, queue_warning
from sim.results.units import count, count_of, number, percent

DOUBTFUL = {"extrapolated": "outside the calibrated range", "roofline": "that no table has"}


def stability_lines(run: Run) -> Iterable[str]:
    """That the queue did not grow, or that it cannot be told; nothing where the warning says that it did."""
    requests = run.requests
    if queue_warning(requests) is not None:
        return
    first_s, last_s = requests["arrival_s"].min(), requests["arrival_s"].max()
    if len(requests) < FEWEST_REQUESTS or not last_s > first_s:
        yield f"Whether the queue is stable cannot be told from fewer than {FEWEST_REQUESTS} requests over time."
        return
    waiting = mean_waiting(requests, np.linspace(first_s, last_s, 5))
    means = ", then ".join(number(float(mean), 2) for mean in waiting)
    yield f"The queue did not keep growing while requests arrived: {means} waited in the quarters of that time."


def pressure_lines(run: Run) -> Iterable[str]:
    """Utilisation, KV pressure, and which terms the doubtful seconds belong to."""
    summary, steps = run.summary, run.steps
    if len(steps) and summary["duration_s"]:
        busy, replica = busy_s(steps), steps["replica"].to_numpy()
        shares = np.bincount(replica, busy, minlength=1) / summary["duration_s"]
        shares = np.minimum(shares[np.unique(replica)], 1.0)
        each = percent(float(shares.mean()))
        if len(shares) > 1:
            each += f" (mean of {count(len(shares))} replicas: {percent(shares.min())} to {percent(shares.max())})"
        yield f"Utilisation: steps were running {each} of the time."
        capacity = sum(kv_tokens(steps, kind) for kind in KV_KINDS)
        held = sum(kv_tokens(steps, kind) for kind in KV_HELD) / np.maximum(capacity, 1.0)
        pressed = float(np.dot(busy, held > FULL) / max(busy.sum(), 1e-300))
        preemptions = summary["kv"]["preemptions"]
        lost = count_of(preemptions, "preemption") if preemptions else "no preemption"
        yield (
            f"KV pressure: {percent(summary['kv']['peak_held'])} of the pool was taken at the peak, more than "
            f"{100 * FULL:.0f} % during {percent(pressed)} of the busy time, with {lost}."
        )
    terms = summary.get("cost_terms") or {}
    for source, words in DOUBTFUL.items():
        share = summary["cost_sources"].get(source, 0.0)
        largest = sorted(((parts[source], name) for name, parts in terms.items() if parts.get(source)), reverse=True)
        if largest and 0.0 < share < 1.0:
            listed = ", ".join(f"{name} ({percent(part)})" for part, name in largest[:3])
            yield f"The seconds {words} are mostly those of {listed}, in shares of all step seconds."
