"""What is measured at the points of a sweep: one entry for each, with means and ranges over its seeds.

It draws nothing and knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.report.measures import LATENCIES, MEASURES, latency
from sim.results.metrics import SLO_NAMES
from sim.results.percentiles import Floats, Ints
from sim.results.units import NONE
from traces.late import pd

Bools = npt.NDArray[np.bool_]
STATISTICS = ("p99", "p95", "p90", "p50", "mean")
SWEPT_LATENCIES = {key: name for key, name in LATENCIES.items() if key != "queue_s"}
GOODPUT, REQUESTS, OUTPUT = RATES = tuple(
    MEASURES[f"{key}_per_s"] for key in ("goodput.requests", "throughput.requests", "throughput.output_tokens")
)
PRICE, GPU_HOURS, GPUS, ENERGY = COSTS = tuple(
    MEASURES[key]
    for key in (
        "bill.usd_per_million_output_tokens",
        "gpu_hours_per_million_output_tokens",
        "gpus",
        "bill.joules_per_million_output_tokens",
    )
)
PER_GPU, PER_USER, PER_MEGAWATT = SHARES = tuple(
    MEASURES[f"output_tokens_per_s_per_{share}"] for share in ("gpu", "user", "megawatt")
)
# What the table of points shows, where any point has it.
SHOWN = (
    GOODPUT,
    MEASURES["goodput.fraction"],
    REQUESTS,
    OUTPUT,
    *(latency(key, statistic) for key in ("ttft_s", "tpot_s", "e2e_s") for statistic in ("p50", "p99")),
    MEASURES["kv.mean_used"],
    MEASURES["kv.preemptions"],
    GPUS,
    PRICE,
    GPU_HOURS,
    ENERGY,
)
ALL = dict.fromkeys(
    (*SHOWN, *SHARES, *(latency(key, statistic) for key in SWEPT_LATENCIES for statistic in STATISTICS))
)

SLO_COLUMNS = "goodput.slo."


@dataclass(frozen=True, slots=True)
class Points:
    """One entry for each combination of the axes' values, in the order of the table; all of one length.

    `settings` holds the values by axis; `mean`, `low` and `high` those of each measure over the seeds, by its column
    (NaN where no run has it); `reasons` says why a run failed, "" where none did.
    """

    settings: Mapping[str, Sequence[Any]]
    number: Sequence[int]
    """Of the first row of each, as the table numbers it."""
    runs: Ints
    failed: Ints
    stable: Bools
    drafts: Bools
    reasons: Sequence[str]
    mean: Mapping[str, Floats]
    low: Mapping[str, Floats]
    high: Mapping[str, Floats]
    of_limit: Floats
    """The largest share of its limit that a clause of the SLO reaches in any run; NaN where no SLO was asked."""
    clause: Sequence[str]
    """That clause, "" where there is none."""

    def __len__(self) -> int:
        return len(self.runs)


def value_text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    if isinstance(value, float | np.floating):
        return NONE if np.isnan(value) else f"{value:.6g}"
    return NONE if value is None or value is pd.NA or value == "" else str(value)


def points_of(table: pd.DataFrame, axes: Sequence[str]) -> Points:
    """The points of a table as `sim sweep` writes it; axes: the keys of what varies."""
    table = _with_gpus(table)
    keys = [tuple(map(value_text, values)) for values in zip(*(table[key] for key in axes), strict=True)]
    places: dict[tuple[str, ...], int] = {}
    point = np.array([places.setdefault(key, len(places)) for key in keys or [()] * len(table)], dtype=np.int64)
    _, first = np.unique(point, return_index=True)
    ok = (table["status"] == "ok").to_numpy(dtype=bool)
    stable = np.array([value is True or value == 1 for value in table["stable"].tolist()], dtype=bool)
    reasons = [""] * len(places)
    for row in np.flatnonzero(~ok).tolist():
        reasons[point[row]] = reasons[point[row]] or str(table["reason"].iloc[row])
    drafted = _column(table, "speculation.drafted_tokens", ok)
    of_limit, clause = _of_limit(table, ok, point, len(places))
    ranges = {measure.key: _ranges(_column(table, measure.key, ok), point, len(places)) for measure in ALL}

    def runs_that(which: Bools) -> Ints:
        return np.bincount(point[which], minlength=len(places))

    return Points(
        settings={key: table[key].iloc[first].tolist() for key in axes},
        number=table["point"].iloc[first].tolist(),
        runs=runs_that(np.ones(len(point), bool)),
        failed=runs_that(~ok),
        stable=runs_that(ok & ~stable) == 0,
        drafts=runs_that(~np.isnan(drafted)) > 0,
        reasons=reasons,
        mean={name: span[0] for name, span in ranges.items()},
        low={name: span[1] for name, span in ranges.items()},
        high={name: span[2] for name, span in ranges.items()},
        of_limit=of_limit,
        clause=clause,
    )


def _of_limit(table: pd.DataFrame, ok: Bools, point: Ints, count: int) -> tuple[Floats, list[str]]:
    """Of each point the largest share of a limit of the SLO that a run of its reaches, and which limit that is."""
    worst, names = np.full(count, np.nan), [""] * count
    for column in (column for column in map(str, table) if column.startswith(SLO_COLUMNS)):
        name = column.removeprefix(SLO_COLUMNS)
        metric, statistic = SLO_NAMES[name]
        shares = _column(table, f"{metric}_s.{statistic}", ok) / _column(table, column, ok)
        for row in np.flatnonzero(~np.isnan(shares)).tolist():
            place = point[row]
            if not shares[row] <= worst[place]:
                worst[place], names[place] = shares[row], name
    return worst, names


def _column(table: pd.DataFrame, name: str, ok: Bools) -> Floats:
    """A column's values in the rows that ran; NaN elsewhere, and where there is no such column."""
    if name not in table:
        return np.full(len(table), np.nan)
    return np.where(ok, table[name].to_numpy(dtype=np.float64, na_value=np.nan), np.nan)


def _ranges(values: Floats, point: Ints, count: int) -> tuple[Floats, Floats, Floats]:
    known = ~np.isnan(values)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, point[known], values[known])
    np.maximum.at(high, point[known], values[known])
    sums = np.bincount(point[known], values[known], minlength=count)
    counts = np.bincount(point[known], minlength=count)
    some = counts > 0
    mean = np.where(some, sums / np.maximum(counts, 1), np.nan)
    low, high = np.where(some, low, np.nan), np.where(some, high, np.nan)
    return np.clip(mean, low, high), low, high


def _with_gpus(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the number of GPUs, the hours of them that a million output tokens take, and what each gives."""
    unknown = pd.Series(np.nan, table.index)
    gpus = table.get("bill.gpus", unknown)
    counted = table.get("inputs.tp", unknown) * table.get("inputs.replicas", unknown)
    for key in ("inputs.pp", "inputs.dp"):
        counted = counted * table.get(key, unknown).astype(float).fillna(1.0)
    gpus = gpus.astype(float).fillna(counted.astype(float))
    rate = table.get(OUTPUT.key, unknown).astype(float)
    hours = gpus * 1e6 / 3600 / rate.where(rate > 0)
    gap_s = table.get("tpot_s.p50", unknown).astype(float)
    joules = table.get(ENERGY.key, unknown).astype(float)
    return table.assign(
        **{
            GPUS.key: gpus,
            GPU_HOURS.key: hours,
            PER_GPU.key: rate / gpus,
            PER_USER.key: 1 / gap_s.where(gap_s > 0),
            PER_MEGAWATT.key: 1e12 / joules.where(joules > 0),
        }
    )
