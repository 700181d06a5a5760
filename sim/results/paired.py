"""Two runs of the same requests, compared request by request: differences of latencies and how sure they are.

It knows nothing of what made the runs differ. Method and formulas: docs/metrics.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.results.percentiles import Floats
from sim.results.student import t_quantile
from traces.late import pd

PAIRED = ("ttft_s", "tpot_s", "e2e_s", "queue_s")
BATCHES = 10
CONFIDENCE = 0.95
# Below this many pairs the batches are too short to be independent of one another.
FEWEST_PAIRS = 100
# The means of independent batches are correlated with their neighbours by more than this in 1 of 100 cases.
DRIFT = 0.5
NOT_THE_SAME = "not the same requests (other trace, limit, lengths or draw), so nothing is paired"
IDENTITY = ("prompt_tokens", "output_tokens", "source_row")


class Interval(NamedTuple):
    """An estimate in seconds with its confidence interval; the ends are None where there are too few values."""

    value_s: float
    low_s: float | None
    high_s: float | None

    @property
    def holds_zero(self) -> bool | None:
        """Whether chance alone may have made the difference; None without an interval."""
        if self.low_s is None or self.high_s is None:
            return None
        return self.low_s <= 0.0 <= self.high_s


@dataclass(frozen=True, slots=True)
class Difference:
    """How much longer (positive) or shorter a latency is than in the first run, over `pairs` requests.

    `drifts` says that the difference changes along the trace, so that its mean depends on the trace's length and the
    interval is too narrow; `all_zero` that every request has the same value in both runs.
    """

    pairs: int
    mean: Interval
    median: Interval
    drifts: bool
    all_zero: bool

    @property
    def verdict(self) -> str:
        if self.all_zero:
            return "the same in every request"
        if self.drifts:
            return "drifts along the trace"
        if self.mean.holds_zero is None:
            return "too few pairs to tell"
        if self.mean.holds_zero:
            return "no difference beyond chance"
        return "longer" if self.mean.value_s > 0 else "shorter"


@dataclass(frozen=True, slots=True)
class Paired:
    """One run against another. `differences` has the latencies of which any pair has a value.

    Requests that did not complete in both runs are left out: in which of them they did is counted.
    """

    against: str
    pairs: int = 0
    completed_here_only: int = 0
    completed_there_only: int = 0
    completed_in_neither: int = 0
    differences: Mapping[str, Difference] = field(default_factory=dict)
    reason: str = ""

    @property
    def left_out(self) -> int:
        return self.completed_here_only + self.completed_there_only + self.completed_in_neither

    def as_table(self) -> dict[str, Any]:
        """What a script reads, in JSON's types; `reason` only where nothing could be paired."""
        if self.reason:
            return {"against": self.against, "reason": self.reason}
        counts = asdict(self)
        del counts["differences"], counts["reason"]
        latencies = {
            key: {
                "pairs": difference.pairs,
                "mean": difference.mean._asdict(),
                "median": difference.median._asdict(),
                "drifts": difference.drifts,
                "verdict": difference.verdict,
            }
            for key, difference in self.differences.items()
        }
        return {**counts, **latencies}


@dataclass(frozen=True, slots=True)
class PerRequest:
    """The latencies of a run by request of its trace, NaN where a request has none or did not complete.

    float32, which tells seven digits, so that a million requests take 16 MB; two runs are of the same requests where
    `identity` is the same.
    """

    identity: str
    latencies_s: Mapping[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, requests: pd.DataFrame) -> PerRequest:
        """Those of a run's table of requests, whose rows are in the order of the trace."""
        digest = hashlib.blake2b(digest_size=16)
        for name in IDENTITY:
            if name in requests:
                digest.update(requests[name].to_numpy(np.int64).tobytes())
        completed = (requests["status"] == "completed").to_numpy(bool)
        latencies_s = {
            key: np.where(completed, requests[key].to_numpy(np.float64), np.nan).astype(np.float32) for key in PAIRED
        }
        return cls(digest.hexdigest(), latencies_s)

    @property
    def completed(self) -> npt.NDArray[np.bool_]:
        known: npt.NDArray[np.bool_] = ~np.isnan(self.latencies_s["e2e_s"])
        return known


def paired(name: str, there: PerRequest, here: PerRequest) -> Paired:
    """The run `here` against the run `there`, which is called `name`."""
    if here.identity != there.identity:
        return Paired(name, reason=NOT_THE_SAME)
    ours, theirs = here.completed, there.completed
    differences = {}
    for key in PAIRED:
        change_s = here.latencies_s[key].astype(np.float64) - there.latencies_s[key]
        change_s = change_s[~np.isnan(change_s)]
        if len(change_s):
            differences[key] = difference(change_s)
    return Paired(
        name,
        int((ours & theirs).sum()),
        int((ours & ~theirs).sum()),
        int((theirs & ~ours).sum()),
        int((~ours & ~theirs).sum()),
        differences,
    )


def difference(change_s: Floats) -> Difference:
    """Mean and median of the differences of (n,) requests in the order of the trace, with 95 % intervals.

    The mean: batch means (Schmeiser 1982). Neighbours share queues and batches, so that their differences go
    together; the means of ten equal runs of neighbours hardly do, and their spread gives the interval (Student's t, 9
    degrees of freedom). The median: the share of values below it, with such an interval of its own, is turned into
    the values at these shares (Woodruff 1952), which needs no density and stands ties.
    """
    mean_s, ordered = float(change_s.mean()), np.sort(change_s)
    all_zero = not change_s.any()
    median_s = float(np.median(ordered))
    if len(change_s) < FEWEST_PAIRS:
        return Difference(len(change_s), Interval(mean_s, None, None), Interval(median_s, None, None), False, all_zero)
    means = _batch_means(change_s)
    half_s = _half_width(means)
    # With ties at the median the shares below it and up to it differ: the wider of the two intervals covers both.
    below, up_to = (change_s < median_s), (change_s <= median_s)
    half = max(_half_width(_batch_means(some.astype(np.float64))) for some in (below, up_to))
    return Difference(
        len(change_s),
        Interval(mean_s, mean_s - half_s, mean_s + half_s),
        Interval(median_s, *_between_shares(ordered, 0.5 - half, 0.5 + half)),
        _neighbours_correlation(means) > DRIFT,
        all_zero,
    )


def _batch_means(values: Floats) -> Floats:
    bounds = np.linspace(0, len(values), BATCHES + 1).astype(np.int64)
    means: Floats = np.add.reduceat(values, bounds[:-1]) / np.diff(bounds)
    return means


def _half_width(means: Floats) -> float:
    student = t_quantile(0.5 + CONFIDENCE / 2, BATCHES - 1)
    return student * float(means.std(ddof=1)) / math.sqrt(BATCHES)


def _between_shares(ordered: Floats, low: float, high: float) -> tuple[float, float]:
    """The order statistics that enclose these shares of the values."""
    last = len(ordered) - 1
    first = int(np.ceil(low * len(ordered))) - 1
    return float(ordered[max(first, 0)]), float(ordered[min(int(high * len(ordered)), last)])


def _neighbours_correlation(means: Floats) -> float:
    away = means - means.mean()
    spread = float(np.dot(away, away))
    return float(np.dot(away[1:], away[:-1])) / spread if spread > 0 else 0.0
