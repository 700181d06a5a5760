"""Every metric of a run, defined once: from the tables of requests and steps to the summary.

It does not know how the tables came about, simulated or live. Formulas: docs/metrics.md. Distributions lie in
`sim/results/percentiles.py`, KV memory in `sim/results/kv.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.bill import Rates, bill
from sim.results.kv import KvFacts, busy_s, kv_summary
from sim.results.percentiles import STATISTICS, Distribution, distribution
from traces.schema import InputError
from traces.table import Columns

SOURCES = ("measured", "interpolated", "fitted", "derived", "extrapolated", "roofline")
# The column that holds one request's own value of a metric. A request's ITL is its longest gap.
REQUEST_COLUMNS = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "max_itl_s", "e2e": "e2e_s", "queue": "queue_s"}
SLO_NAMES = {metric: (metric, "max") for metric in REQUEST_COLUMNS} | {
    f"{metric}_{statistic}": (metric, statistic) for metric in REQUEST_COLUMNS for statistic in STATISTICS
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One clause of an SLO: `name` as the user wrote it, e.g. ttft_p99, and its limit in seconds."""

    name: str
    metric: str
    statistic: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class SloResult:
    """One clause of an SLO beside what the run gave; `met` is None where the metric has no value."""

    name: str
    limit_s: float
    measured_s: float | None
    met: bool | None


def parse_slo(text: str) -> tuple[Limit, ...]:
    """`ttft_p99=0.5,tpot=0.05` (seconds) as limits; a name without a statistic speaks of every request.

    Raises InputError for an unknown metric or statistic, a name given twice, and a limit that is no positive
    number.
    """
    limits: dict[str, Limit] = {}
    for clause in text.split(","):
        name, _, number = (part.strip() for part in clause.partition("="))
        if name not in SLO_NAMES:
            known = f"{', '.join(REQUEST_COLUMNS)}, alone or followed by _{', _'.join(STATISTICS)}"
            raise InputError(f"--slo: unknown metric {name!r} in {clause.strip()!r}; known: {known}")
        if name in limits:
            raise InputError(f"--slo: {name} is given twice")
        try:
            limit_s = float(number)
        except ValueError:
            limit_s = math.nan
        if not 0 < limit_s < math.inf:
            raise InputError(f"--slo: the limit of {name} must be a positive number of seconds, not {number!r}")
        limits[name] = Limit(name, *SLO_NAMES[name], limit_s)
    return tuple(limits.values())


def met_slo(requests: Columns, slo: Sequence[Limit]) -> npt.NDArray[np.bool_]:
    """Which requests completed within every limit by their own values; what is undefined breaks no limit.

    (A request of one output token has neither TPOT nor ITL.)
    """
    met: npt.NDArray[np.bool_] = np.asarray(requests["status"] == "completed", bool)
    for limit in slo:
        met = met & ~(np.asarray(requests[REQUEST_COLUMNS[limit.metric]], np.float64) > limit.limit_s)
    return met


def goodput(requests: Columns, slo: Sequence[Limit], duration_s: float) -> dict[str, Any]:
    """Requests per second, and the share of all requests, that met every limit of the SLO."""
    met = int(met_slo(requests, slo).sum())
    return {
        "slo": {limit.name: limit.limit_s for limit in slo},
        "requests_per_s": met / duration_s if duration_s > 0 else None,
        "fraction": met / len(requests) if len(requests) else None,
    }


def verdicts(summary: Mapping[str, Any]) -> list[SloResult]:
    """Each clause of the summary's SLO against the statistic that it names, over the whole run."""
    results = []
    for name, limit_s in summary.get("goodput", {}).get("slo", {}).items():
        metric, statistic = SLO_NAMES[name]
        measured_s = summary[f"{metric}_s"][statistic]
        results.append(SloResult(name, limit_s, measured_s, None if measured_s is None else measured_s <= limit_s))
    return results


def duration_s(requests: Columns, steps: Columns) -> float:
    """Seconds from the first arrival to the end of the last step, or the last token or arrival that is seen later."""
    if not len(requests):
        return 0.0
    arrival_s, finish_s = (np.asarray(requests[name], np.float64) for name in ("arrival_s", "finish_s"))
    last_s = float(np.fmax(np.fmax.reduce(arrival_s), np.fmax.reduce(finish_s)))
    if len(steps):
        last_s = max(last_s, float(np.asarray(steps["end_s"]).max()))
    return last_s - float(np.fmin.reduce(arrival_s))


def latencies(requests: Columns, itl_s: Distribution, whose: str = "") -> dict[str, Distribution]:
    """The distributions of what clients see, or with `whose` "engine_" of what the engine does; `itl_s` is that of the
    gaps between tokens."""
    return {
        "ttft_s": distribution(requests[f"{whose}ttft_s"]),
        "tpot_s": distribution(requests[f"{whose}tpot_s"]),
        "itl_s": itl_s,
        "e2e_s": distribution(requests[f"{whose}e2e_s"]),
    }


def request_counts(requests: Columns, dropped: int = 0) -> dict[str, int]:
    """How the requests ended. `dropped` rows of the trace never became requests and are not in the total."""
    counts = {status: int((requests["status"] == status).sum()) for status in ("completed", "rejected", "unfinished")}
    return {"total": len(requests), **counts, "dropped": dropped}


def throughput(requests: Columns, duration: float) -> dict[str, float | None]:
    """Completed requests, the output tokens of all their samples, and these with their prompts, per second of the run.

    A prompt counts once, however many samples answer it.
    """
    prompt, output = served_tokens(requests)
    done = int((requests["status"] == "completed").sum())
    amounts = {"requests_per_s": done, "output_tokens_per_s": output, "total_tokens_per_s": prompt + output}
    return {name: amount / duration if duration > 0 else None for name, amount in amounts.items()}


def served_tokens(requests: Columns) -> tuple[int, int]:
    """(prompt tokens, each prompt once; output tokens of all samples) of the requests that completed."""
    done = np.asarray(requests["status"] == "completed", bool)
    prompt, output, samples = (
        np.asarray(requests[name])[done] for name in ("prompt_tokens", "output_tokens", "samples")
    )
    return int(prompt.sum()), int((output * samples).sum())


def run_bill(requests: Columns, steps: Columns, rates: Rates, replicas: float, duration: float) -> dict[str, Any]:
    """Money and energy of a run, and of a million of the tokens that it served; a replica's GPUs are busy together."""
    prompt, output = served_tokens(requests)
    busy_gpu_s = float(busy_s(steps).sum()) * rates.gpus / replicas
    return bill(rates, duration_s=duration, busy_gpu_s=busy_gpu_s, tokens=prompt + output, output_tokens=output)


def computed(steps: Columns) -> dict[str, float | int | None]:
    """Tokens that the steps computed, and the share of them computed for nobody (padding of static batches)."""
    repeats = np.asarray(steps["repeats"], np.int64)
    rows = sum(np.asarray(steps[name], np.int64) for name in ("prefill_tokens", "decode_requests", "draft_tokens"))
    tokens = int(np.dot(repeats, rows))
    padding = int(np.dot(repeats, np.asarray(steps["padding_tokens"], np.int64)))
    return {"tokens": tokens, "padding_fraction": padding / tokens if tokens else None}


def source_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by where they come from -> the share of each known source, in a fixed order."""
    unknown = sorted(set(seconds) - set(SOURCES))
    if unknown:
        raise ValueError(f"unknown cost source {unknown[0]!r}; known: {', '.join(SOURCES)}")
    total = sum(seconds.values())
    return {source: seconds.get(source, 0.0) / total if total > 0 else 0.0 for source in SOURCES}


def plain(value: Any) -> Any:
    """The same value in JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(
    requests: Columns,
    steps: Columns,
    itl_s: Distribution,
    kv: KvFacts,
    *,
    slo: Sequence[Limit] = (),
    dropped: int = 0,
    source_seconds: Mapping[str, float],
    simulator: Mapping[str, Any],
    inputs: Mapping[str, Any],
    speculation: Mapping[str, Any] | None = None,
    rates: Rates | None = None,
    front_end: Mapping[str, Any] | None = None,
    engine_itl_s: Distribution | None = None,
    operations: Mapping[str, Any] | None = None,
    tiers: Mapping[str, Any] | None = None,
    adapters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of a run, with the keys of docs/metrics.md in a fixed order; it holds JSON's types only.

    `itl_s` is of the gaps between tokens. Without `rates` each replica is one GPU of unknown price and power; without
    `engine_itl_s` clients see what the engine does, when it does it. `operations` are keys of what was done with a
    fleet while it served, `tiers` what came from tiers below the KV pools, `adapters` what became of those.
    """
    duration = duration_s(requests, steps)
    rates = rates or Rates(kv.replicas)
    seen = latencies(requests, itl_s)
    alike = engine_itl_s is None and not operations
    done = seen if alike else latencies(requests, itl_s if engine_itl_s is None else engine_itl_s, "engine_")
    summary: dict[str, Any] = {
        "requests": request_counts(requests, dropped),
        "duration_s": duration,
        "throughput": throughput(requests, duration),
        **seen,
        "queue_s": distribution(requests["queue_s"]),
        **{f"engine_{key}": value for key, value in done.items()},
        **({"front_end": front_end} if front_end is not None else {}),
        **(operations or {}),
        **({"goodput": goodput(requests, slo, duration)} if slo else {}),
        "computed": computed(steps),
        "kv": kv_summary(requests, steps, kv, duration) | ({"tiers": tiers} if tiers is not None else {}),
        **({"adapters": adapters} if adapters is not None else {}),
        **({"speculation": speculation} if speculation is not None else {}),
        "bill": run_bill(requests, steps, rates, kv.replicas, duration),
        "cost_sources": source_shares(source_seconds),
        "simulator": simulator,
        "inputs": inputs,
    }
    return {key: plain(item) for key, item in summary.items()}
