"""Why a prediction is off: the way from the live run to the prediction, one ingredient at a time.

Each stage replaces one more thing of the live run by the simulator's, and what a measure changes by is that thing's
share of the error. The shares add up to the whole because each stage starts where the one before ended; another order
would split them a little differently.

1. `engine`: the live seconds through a fresh engine. Nothing, unless the twin check fails.
2. `batching`: the simulator decides for itself, at the pace of the live steps (`sim.validate.livelike`).
3. `kernels`: the model's device seconds, with the live run's host seconds.
4. `host`: the model's host seconds as well.
5. `capacity`: the simulator derives its own number of KV blocks, where it was not told the live run's.

Every stage but the first is a run of the simulator, so that each is a schedule that could have been. Live decisions
kept on other seconds are none where requests come by themselves: a step would wait for requests it admitted later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.validate.requests import Measures

STAGES = ("engine", "batching", "kernels", "host", "capacity")
MEASURES = (
    ("duration_s", "all"),
    ("e2e_s", "mean"),
    ("e2e_s", "p99"),
    ("ttft_s", "mean"),
    ("ttft_s", "p99"),
    ("tpot_s", "mean"),
)


def split(live: Sequence[Measures], stages: Mapping[str, Measures]) -> dict[str, dict[str, Any]]:
    """By measure: the `live` value (mean of the live runs), the `predicted` one, the `error` in seconds, its `parts`.

    stages: the measures after each of `STAGES`.
    """
    shares: dict[str, dict[str, Any]] = {}
    for key, name in MEASURES:
        lives = [measures.get(key, {}).get(name) for measures in live]
        known = [value for value in lives if value is not None]
        after = [stages[stage].get(key, {}).get(name) for stage in STAGES]
        values = np.array([value for value in after if value is not None], np.float64)
        if not known or len(values) < len(STAGES):
            continue
        mean = sum(known) / len(known)
        shares[key if name == "all" else f"{key}.{name}"] = {
            "live": mean,
            "predicted": float(values[-1]),
            "error": float(values[-1] - mean),
            "parts": dict(zip(STAGES, np.diff(values, prepend=mean).tolist(), strict=True)),
        }
    return shares


def largest(parts: Mapping[str, float]) -> str:
    """The stage with the largest share, whatever its sign."""
    return max(parts, key=lambda stage: abs(parts[stage]))
