"""New arrivals for a trace's requests, on a circle: a stretch of traffic that began long before. It knows no engine.

The one rule by which a rate is offered where requests come in sessions, of `sim run` as of `sim plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.choices import LARGEST_CV
from traces.edit import AT_ONCE_S
from traces.late import pd
from traces.resample import enough
from traces.rows import in_order, keep_rows
from traces.schema import InputError, Trace
from traces.sessions import by_session, followed, offsets_s, roots

Floats = npt.NDArray[np.float64]


class LoadStage(NamedTuple):
    """A stretch of time at one rate."""

    rate_per_s: float
    duration_s: float


def own_rate(trace: Trace) -> float | None:
    """Requests per second that the trace's own starts of sessions offer in the long run; None where it has no times,
    or all sessions start at once.

    Requests in all over the time that so many sessions take to start, each one mean gap: (starts - 1) / span of the
    starts, times the mean number of turns. What starts late in the trace counts with all its turns.
    """
    start_s = trace.requests["arrival_s"].to_numpy()[followed(trace.requests) < 0]
    span_s = float(start_s[-1] - start_s[0])
    if not trace.has_arrivals or span_s <= AT_ONCE_S:
        return None
    return len(trace) / len(start_s) * (len(start_s) - 1) / span_s


def redraw(trace: Trace, rate_per_s: float, rng: np.random.Generator, cv: float | None = 1.0) -> Trace:
    """Sessions (requests where there are none) start anew, at gamma-distributed gaps.

    Their coefficient of variation is `cv`, 1 for a Poisson process; without a `cv` they are the trace's own gaps
    between starts, and Poisson where it has none. The gaps are scaled to fill a window of requests / rate seconds, so
    that the mean rate is the one asked for exactly: a Poisson process given how many came. Offsets within a session
    stay as they are, and what would start after the window's end comes as much after its beginning, following nothing,
    as if its session had begun before: so later turns are there from the start, and the rate is even. Two rates drawn
    from equally seeded generators have the same gaps, scaled.

    Raises InputError for a rate that is not positive, and a `cv` of 0 or less or above 20.
    """
    if not 0 < rate_per_s < np.inf:
        raise InputError(f"rate is {rate_per_s}; it must be above 0 and finite")
    cv = _known(trace, cv)
    window_s = len(trace) / rate_per_s
    table, alone, later = _on_circle(trace, window_s, rng, cv)
    how = "Starts of sessions stretched to" if cv is None else f"Arrivals drawn anew: {_process(cv)},"
    note = f"{how} {rate_per_s:g} requests/s, with sessions under way from the start{_on_their_own(alone, later)}."
    return trace.edited(table, note, has_arrivals=True, window_s=window_s)


def staged(
    trace: Trace,
    stages: Sequence[LoadStage],
    draws: np.random.Generator,
    rng: np.random.Generator,
    cv: float | None = None,
) -> Trace:
    """Each stage offers its rate from its first second to its last, by the rule of `redraw`.

    It takes the next sessions of the trace, of the last one as many turns as still fit; where the trace has too few,
    sessions are drawn again by `draws`. No session goes on into the next stage.

    Raises InputError as `redraw`, and where all stages together ask for no request, or for more than a trace may have.
    """
    ends = np.cumsum([stage.rate_per_s * stage.duration_s for stage in stages])
    if not ends[-1] <= 1e18:
        raise InputError(f"the stages ask for {ends[-1]:.3g} requests, more than can be drawn")
    until = np.rint(ends).astype(np.int64)
    if until[-1] < 1:
        raise InputError("the stages ask for no request: their rates times their seconds add up to less than one")
    cv = _known(trace, cv)
    trace = enough(trace, int(until[-1]), draws)
    order = by_session(followed(trace.requests))
    tables, told = [], []
    begin_s, alone, later, rows = 0.0, 0, 0, 0
    for stage, first, last in zip(stages, [0, *until[:-1]], until, strict=True):
        if last > first:
            kept = np.zeros(len(trace), bool)
            kept[order[first:last]] = True
            part = replace(trace, requests=keep_rows(trace.requests, kept))
            table, lone, turns = _on_circle(part, stage.duration_s, rng, _known(part, cv))
            table["arrival_s"] = np.minimum(table["arrival_s"] + begin_s, begin_s + stage.duration_s)
            if "after" in table:
                table["after"] = np.where(table["after"] >= 0, table["after"] + rows, -1)
            tables.append(table)
            alone, later, rows = alone + lone, later + turns, rows + len(table)
        told.append(f"{last - first:,} requests in {stage.duration_s:g} s")
        begin_s += stage.duration_s
    shape = "gaps of the trace, stretched" if cv is None else _process(cv)
    note = f"Arrivals in {len(stages)} stages ({_some(told)}): {shape}{_on_their_own(alone, later)}."
    return trace.edited(pd.concat(tables, ignore_index=True), note, has_arrivals=True, window_s=begin_s)


def _known(trace: Trace, cv: float | None) -> float | None:
    """The `cv` to draw with: Poisson's where the trace has no gaps of its own to keep."""
    if cv is None:
        return None if own_rate(trace) is not None else 1.0
    if not 0 < cv <= LARGEST_CV:
        raise InputError(f"cv of the arrivals is {cv}; it must be above 0 and at most {LARGEST_CV:g}")
    return cv


def _on_circle(
    trace: Trace, window_s: float, rng: np.random.Generator, cv: float | None
) -> tuple[pd.DataFrame, int, int]:
    """The requests with their new times, how many later turns lost the turn before them, and of how many."""
    requests = trace.requests
    after = followed(requests)
    root = roots(after)
    starts = np.flatnonzero(after < 0)
    recorded_s = requests["arrival_s"].to_numpy() if trace.has_arrivals else offsets_s(requests, after)
    begin_s = _begin_s(recorded_s[starts], window_s, rng, cv)
    nominal_s = begin_s[np.searchsorted(starts, root)] + (recorded_s - recorded_s[root])
    lap = np.floor(nominal_s / window_s)
    table = requests.assign(arrival_s=np.maximum(nominal_s - lap * window_s, 0.0))
    if "after" not in requests:
        return in_order(table), 0, 0
    together = (after >= 0) & (lap == lap[after])
    table["after"] = np.where(together, after, -1)
    later = int((after >= 0).sum())
    return in_order(table), later - int(together.sum()), later


def _begin_s(start_s: Floats, window_s: float, rng: np.random.Generator, cv: float | None) -> Floats:
    """Starts within the window, the first at 0."""
    if cv is None:  # the circle is closed by one gap more, a mean one
        mean_s = (start_s[-1] - start_s[0]) / (len(start_s) - 1)
        stretched: Floats = (start_s - start_s[0]) * (window_s / (len(start_s) * mean_s))
        return stretched
    gaps = rng.gamma(1 / cv**2, 1.0, len(start_s)) if cv != 1.0 else rng.exponential(1.0, len(start_s))
    total = float(gaps.sum())
    drawn: Floats = (np.cumsum(gaps) - gaps[0]) * (window_s / total) if total > 0 else np.zeros(len(start_s))
    return drawn


def _process(cv: float) -> str:
    return "Poisson" if cv == 1.0 else f"gamma-distributed with a coefficient of variation of {cv:g}"


def _on_their_own(alone: int, later: int) -> str:
    """What became of later turns whose session began before the window, if there are any."""
    if not alone:
        return ""
    return f"; {alone:,} of {later:,} later turns wait for no answer, since the one before them came before the start"


def _some(parts: Sequence[str]) -> str:
    return ", ".join(parts) if len(parts) <= 4 else f"{', '.join(parts[:2])}, .., {parts[-1]}"
