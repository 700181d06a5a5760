"""Every metric of a run, defined once: from the tables of requests and steps to the summary.

It does not know how the tables came about, simulated or live. Formulas: docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.bill import Rates, bill
from traces.schema import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.signedinteger[Any]]
Itl = tuple[Floats, Ints]

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
PERCENTS = (50.0, 90.0, 95.0, 99.0)
SOURCES = ("measured", "interpolated", "derived", "extrapolated", "roofline")
# The column that holds one request's own value of a metric. A request's ITL is its longest gap.
REQUEST_COLUMNS = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "max_itl_s", "e2e": "e2e_s", "queue": "queue_s"}
SLO_NAMES = {metric: (metric, "max") for metric in REQUEST_COLUMNS} | {
    f"{metric}_{statistic}": (metric, statistic) for metric in REQUEST_COLUMNS for statistic in STATISTICS
}
# More values than this are not sorted as a whole, and are counted so many at a time.
_SORTED_WHOLE = 1 << 20
_BUCKETS = 1 << 12
# The classes that every slot of the KV pool is in exactly one of; the first five are held by requests, the first
# two hold data.
KV_KINDS = ("used", "shared", "reserved", "internal", "external", "free")
KV_HELD = KV_KINDS[:5]
KV_DATA = KV_KINDS[:2]
PREFIX_COLUMNS = ("prompt_tokens", "prefix_hit_tokens", "prefix_blocks", "prefix_hit_blocks")


@dataclass(frozen=True, slots=True)
class Limit:
    """One clause of an SLO: `name` as the user wrote it, e.g. ttft_p99, and its limit in seconds."""

    name: str
    metric: str
    statistic: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clause of an SLO beside what the run gave; `met` is None where the metric has no value."""

    name: str
    limit_s: float
    measured_s: float | None
    met: bool | None


@dataclass(frozen=True, slots=True)
class KvFacts:
    """What the tables do not say about the KV pools: the size of one replica's pool, and who feeds growth.

    `growth_from` is "reserved" for an allocator that holds room for the whole output from the start, so that
    the tokens generated within a span come out of what it had reserved, and "free" for one that takes room as
    it goes.
    """

    capacity_tokens: int
    block_tokens: int
    replicas: int = 1
    growth_from: Literal["free", "reserved"] = "free"


def weighted_percentiles(values: Floats, weights: Ints, percents: Sequence[float]) -> Floats:
    """Percentiles of `values` repeated `weights` times, equal to np.percentile of the expanded array.

    values: (n,), no NaN; weights: (n,) counts >= 0 with a sum > 0; percents in 0..100. The expanded array is
    never made: time and memory depend on n alone.
    """
    total = int(weights.sum(dtype=np.int64))
    if not total:
        raise ValueError("no values to take percentiles of")
    position = (total - 1) * (np.asarray(percents, dtype=np.float64) / 100.0)
    below = np.floor(position).astype(np.int64)
    ranks = np.stack([below, np.minimum(below + 1, total - 1)])
    low, high = (_ranked if len(values) <= _SORTED_WHOLE else _ranked_by_bucket)(values, weights, ranks)
    part, gap = position - below, high - low
    # The two-sided interpolation that numpy uses, so that the results agree in every bit.
    result: Floats = np.where(part >= 0.5, high - gap * (1.0 - part), low + gap * part)
    return result


def _ranked(values: Floats, weights: Ints, ranks: Ints) -> Floats:
    """The values at those places of the expanded array in order."""
    kept = weights > 0
    order = np.argsort(values[kept], kind="stable")
    ends = np.cumsum(weights[kept][order], dtype=np.int64)
    found: Floats = values[kept][order][np.searchsorted(ends, ranks, side="right")]
    return found


def _ranked_by_bucket(values: Floats, weights: Ints, ranks: Ints) -> Floats:
    """The same in little memory: values are counted in buckets, and only the buckets that hold a rank are sorted."""
    largest = max(float(values.max()), 1e-300)
    edges = np.geomspace(max(float(values.min()), 1e-12 * largest), largest, _BUCKETS)

    def chunks() -> Iterator[tuple[Floats, Ints, Ints]]:
        for at in range(0, len(values), _SORTED_WHOLE):
            part = values[at : at + _SORTED_WHOLE]
            yield part, weights[at : at + _SORTED_WHOLE], np.searchsorted(edges, part, side="right")

    counts = np.zeros(_BUCKETS + 1)
    for _, some, bucket in chunks():
        counts += np.bincount(bucket, some, minlength=_BUCKETS + 1)  # whole numbers, exact as floats up to 2**53
    ends = np.cumsum(counts.astype(np.int64))
    holders = np.unique(np.searchsorted(ends, ranks, side="right"))
    kept_values, kept_weights = [], []
    for part, some, bucket in chunks():
        held = np.isin(bucket, holders)
        kept_values.append(part[held])
        kept_weights.append(some[held])
    # A bucket that was left out stands at its lower edge with all its weight, so that ranks stay what they were.
    lumps = np.setdiff1d(np.flatnonzero(counts), holders)
    lower_edges = np.concatenate([[-np.inf], edges])
    return _ranked(
        np.concatenate([*kept_values, lower_edges[lumps]]),
        np.concatenate([*kept_weights, counts[lumps].astype(np.int64)]),
        ranks,
    )


def _weighted_sum(values: Floats, weights: Ints) -> float:
    """Their dot product, without a copy of the weights as floats."""
    starts = range(0, len(values), _SORTED_WHOLE)
    return sum(float(np.dot(values[at : at + _SORTED_WHOLE], weights[at : at + _SORTED_WHOLE])) for at in starts)


def distribution(values: npt.ArrayLike, weights: Ints | None = None) -> dict[str, float | None]:
    """Mean, percentiles and maximum of the values that are not NaN; None each where there is none."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    if not known.all():
        array, weights = array[known], weights if weights is None else weights[known]
    if not len(array) or (weights is not None and not weights.any()):
        return dict.fromkeys(STATISTICS)
    if weights is None:
        mean, percentiles, largest = array.mean(), np.percentile(array, PERCENTS), array.max()
    else:
        mean = _weighted_sum(array, weights) / weights.sum(dtype=np.int64)
        percentiles, largest = weighted_percentiles(array, weights, PERCENTS), array.max(where=weights > 0, initial=0.0)
    return dict(zip(STATISTICS, map(float, (mean, *percentiles, largest)), strict=True))


def itl_from_segments(step_end_s: Floats, first: Ints, last: Ints, joins: Floats) -> Itl:
    """(gaps_s, weights) between the tokens of one replica's requests, in O(steps + segments).

    step_end_s: end time of every step of the replica. first, last: per segment, the steps (both included) in
    each of which one request received one token; the gaps of a segment are the differences of step_end_s from
    `first` to `last`. joins: gaps in seconds between two segments of one request, one each.
    """
    steps = len(step_end_s)
    if len(first) != len(last) or (len(first) and (first.min() < 0 or last.max() >= steps)):
        raise ValueError(f"segments do not lie within the {steps} steps of the clock")
    if (last < first).any():
        raise ValueError("a segment ends before it begins")
    # Difference array: gap k lies between steps k and k + 1, and segment (f, l) covers the gaps f .. l - 1.
    weights = np.zeros(steps + 1, np.int32)
    np.add.at(weights, first, 1)
    np.subtract.at(weights, last, 1)
    weights = np.cumsum(weights, out=weights)[: max(steps - 1, 0)]
    gaps = np.diff(step_end_s)
    covered = weights > 0
    if not covered.all():
        gaps = gaps[covered]
        weights = weights[covered]
    if not len(joins):
        return gaps, weights
    ones = np.ones(len(joins), weights.dtype)
    return np.concatenate([gaps, joins]), np.concatenate([weights, ones])


def merge_itl(parts: Iterable[Itl]) -> Itl:
    """The gaps of several replicas as one (gaps_s, weights); empty arrays where there are none."""
    kept = [part for part in parts if len(part[0])]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return np.empty(0), np.empty(0, dtype=np.int64)
    return np.concatenate([gaps for gaps, _ in kept]), np.concatenate([weights for _, weights in kept])


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


def met_slo(requests: pd.DataFrame, slo: Sequence[Limit]) -> npt.NDArray[np.bool_]:
    """Which requests completed within every limit by their own values; what is undefined breaks no limit.

    (A request of one output token has neither TPOT nor ITL.)
    """
    met: npt.NDArray[np.bool_] = (requests["status"] == "completed").to_numpy(dtype=bool)
    for limit in slo:
        met = met & ~(requests[REQUEST_COLUMNS[limit.metric]].to_numpy(dtype=np.float64) > limit.limit_s)
    return met


def goodput(requests: pd.DataFrame, slo: Sequence[Limit], duration_s: float) -> dict[str, Any]:
    """Requests per second, and the share of all requests, that met every limit of the SLO."""
    met = int(met_slo(requests, slo).sum())
    return {
        "slo": {limit.name: limit.limit_s for limit in slo},
        "requests_per_s": met / duration_s if duration_s > 0 else None,
        "fraction": met / len(requests) if len(requests) else None,
    }


def verdicts(summary: Mapping[str, Any]) -> list[Verdict]:
    """Each clause of the summary's SLO against the statistic that it names, over the whole run."""
    found = []
    for name, limit_s in summary.get("goodput", {}).get("slo", {}).items():
        metric, statistic = SLO_NAMES[name]
        measured_s = summary[f"{metric}_s"][statistic]
        found.append(Verdict(name, limit_s, measured_s, None if measured_s is None else measured_s <= limit_s))
    return found


def duration_s(requests: pd.DataFrame, steps: pd.DataFrame) -> float:
    """Seconds from the first arrival to the end of the last step (or the last arrival, if that is later)."""
    if not len(requests):
        return 0.0
    last_s = float(requests["arrival_s"].max())
    if len(steps):
        last_s = max(last_s, float(steps["end_s"].max()))
    return last_s - float(requests["arrival_s"].min())


def request_counts(requests: pd.DataFrame, dropped: int = 0) -> dict[str, int]:
    """How the requests ended. `dropped` rows of the trace never became requests and are not in the total."""
    ended = requests["status"].value_counts()
    counts = {status: int(ended.get(status, 0)) for status in ("completed", "rejected", "unfinished")}
    return {"total": len(requests), **counts, "dropped": dropped}


def throughput(requests: pd.DataFrame, duration: float) -> dict[str, float | None]:
    """Completed requests, the output tokens of all their samples, and these with their prompts, per second of the run.

    A prompt counts once, however many samples answer it.
    """
    prompt, output = served_tokens(requests)
    done = int((requests["status"] == "completed").sum())
    amounts = {"requests_per_s": done, "output_tokens_per_s": output, "total_tokens_per_s": prompt + output}
    return {name: amount / duration if duration > 0 else None for name, amount in amounts.items()}


def served_tokens(requests: pd.DataFrame) -> tuple[int, int]:
    """(prompt tokens, each prompt once; output tokens of all samples) of the requests that completed."""
    done = requests[requests["status"] == "completed"]
    return int(done["prompt_tokens"].sum()), int((done["output_tokens"] * done["samples"]).sum())


def run_bill(
    requests: pd.DataFrame, steps: pd.DataFrame, rates: Rates, replicas: int, duration: float
) -> dict[str, Any]:
    """Money and energy of a run, and of a million of the tokens that it served; a replica's GPUs are busy together."""
    prompt, output = served_tokens(requests)
    busy_gpu_s = float(busy_s(steps).sum()) * rates.gpus / replicas
    return bill(rates, duration_s=duration, busy_gpu_s=busy_gpu_s, tokens=prompt + output, output_tokens=output)


def busy_s(steps: pd.DataFrame) -> Floats:
    """Seconds that each span adds to its replica's busy time: overlap with the span before counts once.

    (n,), in the order of the table, whose spans of one replica are in time order.
    """
    order = np.argsort(steps["replica"].to_numpy(), kind="stable")
    replica = steps["replica"].to_numpy()[order]
    start_s, end_s = (steps[name].to_numpy(dtype=np.float64)[order] for name in ("start_s", "end_s"))
    same = replica[1:] == replica[:-1]
    start_s = np.concatenate([start_s[:1], np.where(same, np.maximum(start_s[1:], end_s[:-1]), start_s[1:])])
    widths = np.empty(len(steps))
    widths[order] = np.maximum(end_s - start_s, 0.0)
    return widths


def kv_tokens(steps: pd.DataFrame, kind: str) -> Floats:
    """The KV slots of a class, or those `saved` by sharing, at the end of each span: (n,)."""
    return steps[f"kv_{kind}_tokens"].to_numpy(np.float64)


def kv_integrals(steps: pd.DataFrame, kv: KvFacts) -> dict[str, float]:
    """Token-seconds of each class of KV slots, and of those saved, over the busy time of all replicas.

    A row holds the slots at the end of its last step. Within a span every decoding request adds one token a
    step, so the mean of `used` over its n steps lies decode_requests * (n - 1) / 2 tokens below the end.
    """
    width_s = busy_s(steps)
    growth = steps["decode_requests"].to_numpy(np.float64) * (steps["repeats"].to_numpy() - 1) / 2.0
    grown = float(np.dot(np.minimum(growth, kv_tokens(steps, "used")), width_s))
    token_s = {kind: float(np.dot(kv_tokens(steps, kind), width_s)) for kind in (*KV_KINDS, "saved")}
    token_s["used"] -= grown
    token_s[kv.growth_from] += grown
    return token_s


def kv_summary(requests: pd.DataFrame, steps: pd.DataFrame, kv: KvFacts, duration: float) -> dict[str, Any]:
    """Use and waste of the KV pools as time-weighted means (idle: nothing held), peaks, sharing, hits, what moved."""
    token_s = kv_integrals(steps, kv)
    whole = float(kv.capacity_tokens) * kv.replicas * duration
    data_s = sum(token_s[kind] for kind in KV_DATA)
    held_s = sum(token_s[kind] for kind in KV_HELD)
    token_s["free"] = whole - held_s
    classes = {kind: {"mean": _share(token_s[kind], whole), "peak": _peak(steps, kv, kind)} for kind in KV_KINDS}
    scheduled = requests[requests["first_scheduled_s"].notna()]
    hits = {name: int(scheduled[name].sum()) for name in PREFIX_COLUMNS}
    return {
        "capacity_tokens": kv.capacity_tokens,
        "block_tokens": kv.block_tokens,
        "growth_from": kv.growth_from,
        "peak_used": _peak(steps, kv, *KV_DATA),
        "mean_used": _share(data_s, whole),
        "peak_held": _peak(steps, kv, *KV_HELD),
        "classes": classes,
        "waste": {
            **{kind: classes[kind]["mean"] for kind in ("reserved", "internal", "external")},
            "of_held": {kind: _share(token_s[kind], held_s) for kind in KV_HELD},
        },
        "useful": _share(data_s, held_s),
        "shared": {**classes["shared"], "saving_mean": _share(token_s["saved"], data_s + token_s["saved"])},
        "prefix_hit_rate": _share(hits["prefix_hit_tokens"], hits["prompt_tokens"]),
        "prefix_hit_rate_blocks": _share(hits["prefix_hit_blocks"], hits["prefix_blocks"]),
        "preemptions": int(requests["preemptions"].sum()),
        "swapped_bytes": int(steps["swapped_bytes"].sum()),
        "copied_bytes": int(steps["copied_bytes"].sum()),
    }


def _peak(steps: pd.DataFrame, kv: KvFacts, *kinds: str) -> float:
    """The most slots of these classes together that any replica had at the end of a span, of its capacity."""
    slots = sum(kv_tokens(steps, kind) for kind in kinds)
    return float(np.max(slots, initial=0.0)) / kv.capacity_tokens


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def computed(steps: pd.DataFrame) -> dict[str, float | int | None]:
    """Tokens that the steps computed, and the share of them computed for nobody (padding of static batches)."""
    repeats = steps["repeats"].to_numpy(dtype=np.int64)
    rows = steps[["prefill_tokens", "decode_requests", "draft_tokens"]]
    tokens = int(np.dot(repeats, rows.sum(axis=1).to_numpy(dtype=np.int64)))
    padding = int(np.dot(repeats, steps["padding_tokens"].to_numpy(dtype=np.int64)))
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
    requests: pd.DataFrame,
    steps: pd.DataFrame,
    itl: Itl,
    kv: KvFacts,
    *,
    slo: Sequence[Limit] = (),
    dropped: int = 0,
    source_seconds: Mapping[str, float],
    simulator: Mapping[str, Any],
    inputs: Mapping[str, Any],
    speculation: Mapping[str, Any] | None = None,
    rates: Rates | None = None,
) -> dict[str, Any]:
    """The summary of a run, with the keys of docs/metrics.md in a fixed order; it holds JSON's types only.

    Without `rates` each replica is one GPU of unknown price and power.
    """
    duration = duration_s(requests, steps)
    rates = rates or Rates(kv.replicas)
    summary: dict[str, Any] = {
        "requests": request_counts(requests, dropped),
        "duration_s": duration,
        "throughput": throughput(requests, duration),
        "ttft_s": distribution(requests["ttft_s"]),
        "tpot_s": distribution(requests["tpot_s"]),
        "itl_s": distribution(*itl),
        "e2e_s": distribution(requests["e2e_s"]),
        "queue_s": distribution(requests["queue_s"]),
        **({"goodput": goodput(requests, slo, duration)} if slo else {}),
        "computed": computed(steps),
        "kv": kv_summary(requests, steps, kv, duration),
        **({"speculation": speculation} if speculation is not None else {}),
        "bill": run_bill(requests, steps, rates, kv.replicas, duration),
        "cost_sources": source_shares(source_seconds),
        "simulator": simulator,
        "inputs": inputs,
    }
    return {key: plain(item) for key, item in summary.items()}
