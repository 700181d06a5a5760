"""What replications and long runs say about a steady state: warm-up, intervals, whether a queue grows. It runs nothing.

Sources: White 1997 ("An effective truncation heuristic for bias reduction in simulation output", Simulation 69(6)) and
White, Cobb and Spratt 2000 for MSER-5; Law 2014 (Simulation Modeling and Analysis, 5th ed., sections 9.4, 9.5) for
replications and batch means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.results.student import t_quantile

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
MSER_BATCH = 5
SPANS = 20
"""Parts of a run whose growth is compared."""
FINER = 10
"""Points of the backlog in each."""
GROWTH_CONFIDENCE = 0.99
GROWTH_ALLOWED = 0.02
"""Of the work that came, the share by which the backlog may grow and still be taken for a busy, stable queue."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its confidence interval; of a single value the interval is without end."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def relative(self) -> float:
        """The half width as a share of the mean; infinite for a mean of 0."""
        return self.half_width / abs(self.mean) if self.mean else math.inf


def student_t(confidence: float, degrees: int) -> float:
    """The quantile t for a two-sided interval: P(-t < T < t) = confidence."""
    return t_quantile((1 + confidence) / 2, degrees)


def by_replications(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent replications' values with Student's interval (Law 2014, section 9.4.1). values: (n,)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, -math.inf, math.inf)
    margin = student_t(confidence, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(mean, mean - margin, mean + margin)


def by_skewed_replications(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values that may be skewed, such as shares of rare events (Hall 1992, "On the removal of
    skewness by transformation", J. R. Stat. Soc. B 54(1)), with Student's quantiles. values: (n,).

    Student's own interval misses the mean of such values too often, by lying below it.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    plain = by_replications(array, confidence)
    deviation = float(array.std(ddof=1)) if count > 2 else 0.0
    if not deviation > 0:
        return plain
    skew = float(((array - plain.mean) ** 3).mean()) / deviation**3 / math.sqrt(count)
    if abs(skew) < 1e-9:
        return plain
    error, quantile = deviation / math.sqrt(count), student_t(confidence, count - 1)
    low, high = (
        plain.mean - error * (3 / skew) * (math.cbrt(1 + skew * (score - skew / 6)) - 1)
        for score in (quantile, -quantile)
    )
    return Estimate(plain.mean, low, high)


def mser5(series: npt.ArrayLike) -> int | None:
    """How many values at the beginning are warm-up, a multiple of 5; None where no steady state is to be seen.

    The rule: of the k means of 5 values each, cut the first d, for the d <= k / 2 that makes the squared standard
    error of what is left, sum((Y_i - mean)^2) / (k - d)^2, smallest. A smallest value at the end of that range says
    that the run never settled. Values that are not there (NaN) are left out of their batch. series: (n,), in order
    of arrival.
    """
    array = np.asarray(series, dtype=np.float64)
    batches = len(array) // MSER_BATCH
    if batches < 4:
        return None
    parts = array[: batches * MSER_BATCH].reshape(batches, MSER_BATCH)
    counts = np.isfinite(parts).sum(axis=1)
    filled = np.flatnonzero(counts)
    means = np.nansum(parts[filled], axis=1) / counts[filled]
    if len(means) < 4:
        return None
    means -= means.mean()  # so that the sums of squares below lose no digits
    left = len(means) - np.arange(len(means))
    sums, squares = (np.cumsum(values[::-1])[::-1] for values in (means, means * means))
    errors = np.maximum(squares - sums * sums / left, 0.0) / left**2
    most = len(means) // 2
    cut = int(np.argmin(errors[: most + 1]))
    return None if cut == most else int(filled[cut]) * MSER_BATCH


@dataclass(frozen=True, slots=True)
class Growth:
    """How the backlog of a run grew while requests came."""

    share: float
    """Slope of the unfinished work over the rate at which work came: 0 in the mean of a stable queue, 1 - 1 / load
    above capacity."""
    score: float
    """Mean growth of the spans over its standard error."""

    @property
    def unstable(self) -> bool:
        """Did it grow, by more than chance and more than a busy queue does?"""
        return self.share > GROWTH_ALLOWED and self.score > t_quantile(GROWTH_CONFIDENCE, SPANS - 1)


def growth(arrival_s: Floats, finish_s: Floats, work: Floats, begin_s: float, end_s: float) -> Growth:
    """Whether unfinished work grew between two times, between which requests came all the while.

    The rule: of 20 spans of equal length, the growth of offered less finished work in each; the queue grows where
    their mean is above 0 by a one-sided t-test at 1 %, and the slope of the backlog (least squares) is above 2 % of
    the rate at which work came. The spans of a stable queue vary by chance and add up to nothing, so that a busy queue
    passes. work: of each request (tokens); a request that never arrived or finished has NaN there.
    """
    edges_s = np.linspace(begin_s, end_s, SPANS * FINER + 1)
    backlog = _done_by(edges_s, arrival_s, work) - _done_by(edges_s, finish_s, work)
    steps = np.diff(backlog[::FINER])
    offered = float(work[(arrival_s > begin_s) & (arrival_s <= end_s)].sum())
    error = float(steps.std(ddof=1)) / math.sqrt(SPANS)
    mean = float(steps.mean())
    score = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
    place = np.linspace(-0.5, 0.5, len(edges_s))
    slope = float(np.dot(place, backlog) / np.dot(place, place))
    return Growth(slope / offered if offered > 0 else 0.0, score)


def _done_by(edges_s: Floats, times_s: Floats, work: Floats) -> Floats:
    """The work whose time has come by each edge; NaN never comes."""
    order = np.argsort(times_s, kind="stable")  # NaN last
    total = np.concatenate([[0.0], np.cumsum(work[order])])
    done: Floats = total[np.searchsorted(times_s[order], edges_s, side="right")]
    return done
