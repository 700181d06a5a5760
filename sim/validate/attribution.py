"""Why a prediction is off: the way from the live run to the prediction, one ingredient at a time.

Each stage replaces one more thing of the live run by the simulator's, and what a measure changes by is that thing's
share of the error. The shares add up to the whole because each stage starts where the one before ended; another order
would split them a little differently.

1. `engine`: the live seconds through a fresh engine. Nothing, unless the twin check fails.
2. `kernels`: the live decisions with the model's device seconds and the live host seconds.
3. `host`: the live decisions with the model's device and host seconds.
4. `batching`: the simulator decides for itself, on the model's seconds: other seconds, other batches.
5. `capacity`: the simulator derives its own number of KV blocks, where it was not told the live run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.validate.requests import Measures

STAGES = ("engine", "kernels", "host", "batching", "capacity")
MEASURES = (
    ("duration_s", "all"),
    ("e2e_s", "mean"),
    ("e2e_s", "p99"),
    ("ttft_s", "mean"),
    ("ttft_s", "p99"),
    ("tpot_s", "mean"),
)


def split(stages: Sequence[Mapping[str, Measures]]) -> dict[str, dict[str, Any]]:
    """By measure: the `live` value, the `predicted` one, the `error` in seconds and its `parts`.

    stages: for each live repeat the measures "live" and after each of `STAGES`; means over the repeats are split.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, name in MEASURES:
        rows = [[one[stage].get(key, {}).get(name) for stage in ("live", *STAGES)] for one in stages]
        known = np.array([row for row in rows if None not in row], np.float64)
        if not len(known):
            continue
        values = known.mean(axis=0)
        found[_label(key, name)] = {
            "live": float(values[0]),
            "predicted": float(values[-1]),
            "error": float(values[-1] - values[0]),
            "parts": dict(zip(STAGES, np.diff(values).tolist(), strict=True)),
        }
    return found


def _label(key: str, name: str) -> str:
    return key if name == "all" else f"{key}.{name}"


def largest(parts: Mapping[str, float]) -> str:
    """The stage with the largest share, whatever its sign."""
    return max(parts, key=lambda stage: abs(parts[stage]))
