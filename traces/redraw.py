"""New arrivals for a trace's requests, on a circle: a stretch of traffic that began long before. It knows no engine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.schema import InputError, Trace, in_order
from traces.sessions import followed, offsets_s, roots

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
LARGEST_CV = 20.0
"""Burstier gaps are so uneven that a float cannot tell most of them from 0."""


def redraw(trace: Trace, rate_per_s: float, rng: np.random.Generator, cv: float = 1.0) -> Trace:
    """Sessions (requests where there are none) start anew, at gamma-distributed gaps.

    Their coefficient of variation is `cv`, 1 for a Poisson process. The gaps are scaled to fill a window of
    requests / rate seconds, so that the mean rate is the one asked for exactly: a Poisson process given how many came.
    Offsets within a session stay as they are, and what would start after the window's end comes as much after its
    beginning, following nothing, as if its session had begun before: so later turns are there from the start, and the
    rate is even. Two rates drawn from equally seeded generators have the same gaps, scaled.

    Raises InputError for a rate that is not positive, and a `cv` of 0 or less or above 20.
    """
    if not 0 < rate_per_s < np.inf:
        raise InputError(f"rate is {rate_per_s}; it must be above 0")
    if not 0 < cv <= LARGEST_CV:
        raise InputError(f"cv of the arrivals is {cv}; it must be above 0 and at most {LARGEST_CV:g}")
    requests = trace.requests
    window_s = len(requests) / rate_per_s
    after = followed(requests)
    root = roots(after)
    starts = np.flatnonzero(after < 0)
    gaps = rng.gamma(1 / cv**2, 1.0, len(starts)) if cv != 1.0 else rng.exponential(1.0, len(starts))
    total = float(gaps.sum())
    begin_s = (np.cumsum(gaps) - gaps[0]) * (window_s / total) if total > 0 else np.zeros(len(starts))
    recorded_s = requests["arrival_s"].to_numpy() if trace.has_arrivals else offsets_s(requests, after)
    nominal_s = begin_s[np.searchsorted(starts, root)] + (recorded_s - recorded_s[root])
    lap = np.floor(nominal_s / window_s)
    table = requests.assign(arrival_s=np.maximum(nominal_s - lap * window_s, 0.0))
    if "after" in requests:
        table["after"] = np.where((after >= 0) & (lap == lap[after]), after, -1)
    how = "Poisson" if cv == 1.0 else f"gamma-distributed with a coefficient of variation of {cv:g}"
    note = f"Arrivals drawn anew: {how}, {rate_per_s:g} requests/s, with sessions under way from the start."
    return trace.edited(in_order(table), note, has_arrivals=True)


def copies_apart(ids: list[Indices], session: Indices, copy: Indices) -> list[Indices]:
    """Prefix blocks of a session that was drawn several times, with names of their own in each copy but the first.

    Blocks that several sessions share (a system prompt) stay shared by all. ids: per row; session: which session of
    the trace a row is from; copy: 0 for the first time that it was drawn, 1 for the second.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    if not copy.any() or not lengths.sum():
        return ids
    flat = np.concatenate(ids).astype(np.int64)
    owner, lap = np.repeat(session, lengths), np.repeat(copy, lengths)
    blocks, place = np.unique(flat, return_inverse=True)
    first, last = np.full(len(blocks), np.iinfo(np.int64).max), np.full(len(blocks), -1)
    np.minimum.at(first, place, owner)
    np.maximum.at(last, place, owner)
    # Ids of each lap lie in a range of their own, above all that the trace uses.
    stride = int(blocks[-1]) - int(blocks[0]) + 1
    renamed = np.where((first == last)[place], flat + lap * stride, flat)
    return np.split(renamed, np.cumsum(lengths)[:-1])
