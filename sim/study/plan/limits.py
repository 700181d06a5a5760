"""What held requests back in a run, from its own steps. It knows no SLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sim.engine.batch import Limits

SEATS, BUDGET, MEMORY, COMPUTE = "seats", "token budget", "KV memory", "compute"
FULL = 0.98
"""Of the token budget, the share from which a step counts as full."""
WORTH_NAMING = 0.05
"""A limit at which requests wait for less of the busy time does not bind."""


def limit_shares(steps: pd.DataFrame, limits: Limits) -> dict[str, float]:
    """By what held requests back, the share of the replicas' busy time: somebody waited, and seats, the token budget
    or else KV memory had nothing left. The rest of the time nobody waited, and the device alone set the pace."""
    busy_s = (steps["end_s"] - steps["start_s"]).to_numpy()
    total_s = float(busy_s.sum())
    waits = (steps["waiting"] > 0).to_numpy()
    seated = (steps["running"] >= limits.max_num_seqs).to_numpy()
    tokens = steps["prefill_tokens"] + steps["decode_requests"] + steps["draft_tokens"]
    filled = (tokens >= FULL * limits.max_num_batched_tokens).to_numpy()
    parts = {
        SEATS: waits & seated,
        BUDGET: waits & ~seated & filled,
        MEMORY: waits & ~seated & ~filled,
        COMPUTE: ~waits,
    }
    return {name: float(busy_s[part].sum()) / total_s if total_s > 0 else 0.0 for name, part in parts.items()}


def binding(shares: Sequence[Mapping[str, float]]) -> str:
    """The limit at which requests waited longest, in the mean over runs; where they hardly did, the device's pace."""
    if not shares:
        return COMPUTE
    means = {name: float(np.mean([share[name] for share in shares])) for name in (SEATS, BUDGET, MEMORY)}
    name = max(means, key=lambda each: means[each])
    return name if means[name] >= WORTH_NAMING else COMPUTE
