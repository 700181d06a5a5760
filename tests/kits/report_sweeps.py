"""Made-up tables of sweeps that obey the contract of sweep.parquet, for the tests of their page: no prediction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

LIMIT_S = 0.5


def _summary(point: Mapping[str, Any], rng: np.random.Generator, price: bool) -> dict[str, Any]:
    """Scalars of a summary by dotted path: an M/M/1-like server whose speed depends on the settings."""
    rate = float(point.get("workload.rate", point.get("workload.concurrency", 8)))
    replicas = int(point.get("replicas", 1))
    drafting = point.get("policy.name") == "speculative"
    speed = 12.0 * replicas * {"static": 0.6, "sjf": 1.05}.get(str(point.get("policy.name")), 1.0)
    speed *= {"contiguous-max": 0.7}.get(str(point.get("allocator.name")), 1.0) * rng.normal(1, 0.01)
    load = min(rate / speed, 0.98 + 0.02 * rate / speed)
    wait_s = 0.05 / max(1e-2, 1 - min(load, 0.999)) * (1 + 4 * max(0.0, rate / speed - 1))
    tpot_s = (0.012 + 0.02 * load) * ((0.55 + 0.8 * load) if drafting else 1.0)
    served = min(rate, speed)
    row: dict[str, Any] = {
        "status": "ok",
        "reason": None,
        "stable": bool(rate < speed),
        "requests.completed": 1000,
        "duration_s": 1000 / served,
        "throughput.requests_per_s": served,
        "throughput.output_tokens_per_s": 200 * served,
        "goodput.slo.ttft_p99": LIMIT_S,
        "goodput.requests_per_s": served * max(0.0, min(1.0, 1.6 - wait_s)),
        "goodput.fraction": max(0.0, min(1.0, 1.6 - wait_s)),
        "kv.mean_used": min(1.0, 0.5 * load),
        "kv.preemptions": int(20 * max(0.0, load - 0.9)),
        "bill.gpus": replicas,
        "cost_sources.interpolated": 0.8,
        "cost_sources.roofline": 0.2,
        "inputs.trace": "toy",
        "inputs.model": "tiny-llama",
        "inputs.gpu": "toy-gpu",
        "inputs.synthetic": True,
    }
    for key, value in (("ttft_s", wait_s), ("tpot_s", tpot_s), ("e2e_s", wait_s + 200 * tpot_s), ("itl_s", tpot_s)):
        factors = {"mean": 1.0, "p50": 0.8, "p90": 1.8, "p95": 2.2, "p99": 3.4}
        row |= {f"{key}.{name}": value * factor for name, factor in factors.items()}
    if price:
        row["bill.usd_per_million_output_tokens"] = 2.5 * replicas / 3600 / (200 * served) * 1e6
        row["bill.joules_per_million_output_tokens"] = 700.0 * replicas / (200 * served) * 1e6
    if drafting:
        row["speculation.drafted_tokens"] = 1000
    return row


def sweep_table(
    axes: Mapping[str, Sequence[Any]], seeds: int = 1, *, fail: str = "", price: bool = True
) -> pd.DataFrame:
    """A row for each combination and seed; points whose name holds `fail` have failed."""
    rows = []
    for number, values in enumerate(itertools.product(*axes.values())):
        point = dict(zip(axes, values, strict=True))
        name = " ".join(map(str, values)) or "run"
        for seed in range(seeds):
            found = _summary(point, np.random.default_rng([number, seed]), price)
            if fail and fail in name:
                found = {"status": "failed", "reason": f"{name}: <b>does</b> not fit", "stable": None}
            rows.append({"point": number, "seed": seed, "name": name, **point, **found})
    return pd.DataFrame(rows).astype({"stable": object})
