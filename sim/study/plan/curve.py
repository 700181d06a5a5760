"""GPU-hours of a load in stages, such as a day's: all of the time what the peak takes, or in each stage what it takes.

The deployment is planned for the peak; a stage's replicas follow from the load that a replica is known to take there.
No stage is simulated by itself, and nothing is counted for starting and stopping replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from traces.redraw import LoadStage


def curve_of(stages: Sequence[LoadStage], best: Mapping[str, Any]) -> dict[str, Any]:
    """The stages with their GPUs, and the hours of them; `best` is the plan's for the highest of their rates."""
    gpus_each = best["gpu_count"] // best["replicas"]
    takes = (best["range_per_replica"] or [best["bound_per_replica"]])[0]
    rows = []
    for stage in stages:
        replicas = min(best["replicas"], max(1, math.ceil(stage.rate_per_s / takes * (1 - 1e-9))))
        rows.append({"rate": stage.rate_per_s, "duration_s": stage.duration_s, "gpus": replicas * gpus_each})
    total_s = sum(stage.duration_s for stage in stages)
    followed = sum(row["gpus"] * row["duration_s"] for row in rows) / 3600
    usd = None if best["usd_per_hour"] is None else best["usd_per_hour"] / best["gpu_count"]
    peak = best["gpu_count"] * total_s / 3600
    return {
        "stages": rows,
        "gpu_hours": {"peak": peak, "followed": followed},
        "usd": None if usd is None else {"peak": peak * usd, "followed": followed * usd},
    }
