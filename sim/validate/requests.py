"""What requests saw, live and predicted, side by side: percentiles, relative errors, the spread between live repeats.

It does not know where the numbers come from: another engine's results will do as well as a live run's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.results.percentiles import weighted_percentiles
from sim.validate.against.rows import StatedValue
from sim.validate.retime import Latencies
from traces.late import pd

Measures = Mapping[str, Mapping[str, float | None]]
SHOWN = {
    "ttft_s": ("mean", "p50", "p90", "p99"),
    "tpot_s": ("mean", "p50", "p90", "p99"),
    "itl_s": ("mean", "p50", "p90", "p99"),
    "e2e_s": ("mean", "p50", "p90", "p99"),
    "queue_s": ("mean", "p50", "p90", "p99"),
    "throughput": ("requests_per_s", "output_tokens_per_s"),
    "duration_s": ("all",),
}
PAIRED = ("ttft_s", "tpot_s", "e2e_s")


def compare(live: Sequence[Measures], predicted: Measures) -> dict[str, dict[str, dict[str, Any]]]:
    """By measure and statistic: `live` (mean of the repeats), `predicted`, `error` (relative), and of two repeats or
    more `spread` (smallest, largest) and whether the prediction lies `inside` it.

    Values are None where there is nothing, the error also where the live value is 0.
    """
    return {
        key: {
            name: _pair([_value(measures, key, name) for measures in live], _value(predicted, key, name))
            for name in names
        }
        for key, names in SHOWN.items()
    }


def _value(measures: Measures, key: str, name: str) -> float | None:
    return measures.get(key, {}).get(name)


def _pair(live: Sequence[float | None], predicted: float | None) -> dict[str, Any]:
    known = [value for value in live if value is not None]
    mean = sum(known) / len(known) if known else None
    error = predicted / mean - 1 if mean and predicted is not None else None
    row: dict[str, Any] = {"live": mean, "predicted": predicted, "error": error}
    if len(live) > 1:
        inside = predicted is not None and bool(known) and min(known) <= predicted <= max(known)
        row |= {"spread": [min(known), max(known)] if known else None, "inside": inside}
    return row


def beside(
    live: Measures, stated: Mapping[tuple[str, str], StatedValue], predicted: Latencies, *, complete: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """`compare` with what a file states: statistics beyond the usual ones, too, and where one is known by its bounds
    alone `spread` (these), whether the prediction is `inside`, and else `least_error`, the error from the nearer bound.

    Args:
        complete: the live measures come from requests, so that only what these do not tell is the file's.
    """
    measures = predicted.measures()
    compared = compare([live], measures)
    if complete:
        return compared
    for (key, name), value in stated.items():
        told = _value(measures, key, name)
        expected = told if told is not None else _percentile(predicted, key, name)
        row = _pair([value.value], expected)
        if value.low < value.high:
            row |= {"spread": [value.low, value.high]} | _to_bounds(value, expected)
        compared.setdefault(key, {})[name] = row
    return compared


def _to_bounds(value: StatedValue, expected: float | None) -> dict[str, Any]:
    """Whether the prediction lies between the bounds, and if not, its error from the nearer one."""
    if expected is None or value.low <= expected <= value.high:
        return {"inside": expected is not None, "least_error": None if expected is None else 0.0}
    nearer = value.low if expected < value.low else value.high
    return {"inside": False, "least_error": expected / nearer - 1 if nearer else None}


def _percentile(latencies: Latencies, key: str, name: str) -> float | None:
    """A percentile such as "p75" of a latency; None for what is none or where there is nothing."""
    if key == "itl_s":
        values, weights = latencies.itl
    elif key in latencies.requests:
        values = latencies.requests[key].dropna().to_numpy(np.float64)
        weights = np.ones(len(values), np.int64)
    else:
        return None
    percent = float(name[1:]) if re.fullmatch(r"p\d+(\.\d+)?", name) else math.nan
    if not 0 <= percent <= 100 or not weights.sum():
        return None
    return float(weighted_percentiles(values, weights, [percent])[0])


def paired(live: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """Request by request: median and 90th percentile of the absolute relative error, of those that both completed."""
    rows = {}
    for key in PAIRED:
        pairs = live[key].to_numpy(np.float64), predicted[key].to_numpy(np.float64)
        known = (pairs[0] > 0) & ~np.isnan(pairs[1])
        error = np.abs(pairs[1][known] / pairs[0][known] - 1)
        median, high = np.percentile(error, [50, 90]).tolist() if len(error) else (None, None)
        rows[key] = {"requests": len(error), "p50": median, "p90": high}
    return rows
