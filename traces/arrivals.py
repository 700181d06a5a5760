"""Arrival processes: times of `count` requests at a mean rate, the first at 0, drawn from a given rng."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from traces.schema import InputError

Floats = npt.NDArray[np.float64]
DAY_S = 86_400.0
# Requests by hour of the day in one week of RAGPulse, a university's question answering (shared facts of its trace).
RAGPULSE_HOURS = (192, 53, 38, 14, 16, 18, 18, 59, 119, 172, 197, 213, 249, 260, 254, 280, 228, 196, 211, 211, 192, 220)
RAGPULSE_DAY = (*RAGPULSE_HOURS, 214, 176)


def poisson(count: int, rate_per_s: float, rng: np.random.Generator) -> Floats:
    return _times(rng.exponential(1.0, _gaps(count, rate_per_s)) / rate_per_s)


def gamma(count: int, rate_per_s: float, rng: np.random.Generator, cv: float = 2.0) -> Floats:
    """Gamma gaps with this coefficient of variation: above 1 burstier than Poisson, below 1 smoother."""
    shape = 1 / _positive("cv", cv) ** 2
    return _times(rng.gamma(shape, 1 / shape, _gaps(count, rate_per_s)) / rate_per_s)


def weibull(count: int, rate_per_s: float, rng: np.random.Generator, cv: float = 2.0) -> Floats:
    shape = weibull_shape(_positive("cv", cv))
    mean = math.gamma(1 + 1 / shape)
    return _times(rng.weibull(shape, _gaps(count, rate_per_s)) / (mean * rate_per_s))


def constant(count: int, rate_per_s: float) -> Floats:
    return np.arange(_gaps(count, rate_per_s) + 1) / rate_per_s


def diurnal(
    count: int,
    rate_per_s: float,
    rng: np.random.Generator,
    hours: Sequence[float] = RAGPULSE_DAY,
    start_hour: float = 0.0,
) -> Floats:
    """Poisson within each hour, the rate following 24 weights by hour of day; `rate_per_s` is the mean over a day.

    The first request arrives at `start_hour` o'clock. The weights in use by default are RAGPulse's.
    """
    weights = np.asarray(hours, dtype=np.float64)
    if weights.shape != (24,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise InputError("hours must be 24 weights, 0 or more, of which one at least is above 0")
    if not 0 <= start_hour < 24:
        raise InputError(f"start_hour is {start_hour}; it must lie between 0 and 24")
    operational = _times(rng.exponential(1.0, _gaps(count, rate_per_s)))
    per_hour = weights / weights.mean() * rate_per_s * 3600
    passed = np.concatenate([[0.0], np.cumsum(per_hour)])  # requests expected by each hour of the day
    begin = float(np.interp(start_hour, np.arange(25), passed))
    days, rest = np.divmod(operational + begin, passed[-1])
    rising = np.concatenate([[True], np.diff(passed) > 0])  # an hour of weight 0 passes at once
    clock = days * DAY_S + np.interp(rest, passed[rising], np.arange(25)[rising] * 3600.0)
    times: Floats = clock - clock[0]
    return times


def weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv`, by bisection (it falls as the shape rises)."""
    low, high = 0.05, 100.0
    if not _weibull_cv(high) <= cv <= _weibull_cv(low):
        raise InputError(f"cv is {cv}; a Weibull process here takes {_weibull_cv(high):.3g} to {_weibull_cv(low):.3g}")
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _weibull_cv(middle) > cv else (low, middle)
    return math.sqrt(low * high)


def _weibull_cv(shape: float) -> float:
    return math.sqrt(max(0.0, math.exp(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)) - 1))


def _gaps(count: int, rate_per_s: float) -> int:
    if count < 1:
        raise InputError(f"count is {count}; it must be at least 1")
    _positive("rate", rate_per_s)
    return count - 1


def _times(gaps: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(gaps)])


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} is {value}; it must be above 0")
    return value
