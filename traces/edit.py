"""Trace to trace: slice, scale the rate, resample, merge, spread. Every edit adds a note; none draws unseeded numbers.

Times of an edited trace start at 0 where rows were cut off in front. Think times are people's and tools' own, so
no change of rate touches them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from traces import blocks, turns
from traces.late import pd
from traces.resample import SessionRows
from traces.rows import Mask, in_order, keep_rows
from traces.schema import MAX_REQUESTS, InputError, Trace
from traces.sessions import followed, offsets_s, roots

Floats = npt.NDArray[np.float64]
AT_ONCE_S = 1e-9  # a span below this is one moment: there is no rate to stretch


def slice_time(trace: Trace, start_s: float, end_s: float = math.inf) -> Trace:
    """Requests that arrive in [start_s, end_s). A request whose `after` is cut off follows none."""
    times = trace.require_arrivals().requests["arrival_s"].to_numpy()
    return _cut(trace, (times >= start_s) & (times < end_s), f"Cut to arrivals from {start_s:g} s to {end_s:g} s.")


def slice_count(trace: Trace, start: int, count: int) -> Trace:
    """`count` requests from the `start`-th (from 0) on, in order of arrival."""
    place = np.arange(len(trace))
    return _cut(
        trace, (place >= start) & (place < start + count), f"Cut to {count:,} requests from number {start:,} on."
    )


def first_turns(trace: Trace) -> Trace:
    """Only requests that follow none: what vLLM's benchmark takes of ShareGPT."""
    if "after" not in trace.requests:
        return trace
    kept = trace.requests["after"].to_numpy() < 0
    return _cut(trace, kept, "Cut to the first turn of each session.")


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Arrivals `factor` times as fast; the gaps keep their shape."""
    _positive("rate scale", factor)
    requests = trace.require_arrivals().requests
    return trace.edited(
        requests.assign(arrival_s=requests["arrival_s"] / factor), f"Arrival rate scaled by {factor:g}."
    )


def mean_rate(trace: Trace) -> float | None:
    """(requests - 1) / span; None where the trace has no times, or all requests arrive at once."""
    if not trace.has_arrivals or trace.span_s <= AT_ONCE_S:
        return None
    return (len(trace) - 1) / trace.span_s


def set_rate(trace: Trace, rate_per_s: float, rng: np.random.Generator) -> Trace:
    """Mean rate (requests - 1) / span set to `rate_per_s`: the trace's own times stretched, the gaps keep their shape.

    A trace without times, or whose requests all arrive at once, gets Poisson arrivals from `rng`; there later turns
    of a session stand after the turn before by its think time.
    """
    _positive("rate", rate_per_s)
    requests = trace.requests
    if trace.has_arrivals and trace.span_s > AT_ONCE_S:
        factor = rate_per_s * trace.span_s / (len(trace) - 1)
        return trace.edited(
            requests.assign(arrival_s=requests["arrival_s"] / factor),
            f"Arrival rate set to {rate_per_s:g}/s by stretching times.",
        )
    after = followed(requests)
    starts = after < 0
    gaps = rng.exponential(len(requests) / (rate_per_s * starts.sum()), int(starts.sum()))
    gaps[0] = 0.0
    offset = offsets_s(requests, after)
    times = np.cumsum(gaps)[np.searchsorted(np.flatnonzero(starts), roots(after))] + offset
    table = in_order(requests.assign(arrival_s=times))
    return trace.edited(table, f"Arrivals are Poisson with {rate_per_s:g} requests/s.", has_arrivals=True)


def stagger(trace: Trace, sessions_per_s: float, rng: np.random.Generator) -> Trace:
    """New Poisson starts for the sessions (requests that follow none); times within a session stay."""
    _positive("session rate", sessions_per_s)
    requests = trace.requests
    after = followed(requests)
    starts = np.flatnonzero(after < 0)
    gaps = rng.exponential(1 / sessions_per_s, len(starts))
    gaps[0] = 0.0
    root = roots(after)
    times = requests["arrival_s"].to_numpy()
    begin = np.cumsum(gaps)[np.searchsorted(starts, root)]
    table = in_order(requests.assign(arrival_s=begin + times - times[root]))
    return trace.edited(table, f"Sessions start as a Poisson process of {sessions_per_s:g}/s.", has_arrivals=True)


def resample(trace: Trace, count: int, rng: np.random.Generator) -> Trace:
    """`count` sessions (requests where there are none) drawn with replacement, at gaps drawn from those between starts.

    Lengths and gaps keep their distributions; correlations between neighbours are lost. A session drawn twice shares
    with its copy no prefix blocks but those that other sessions share too; token ids stay what they are.
    """
    if not 1 <= count <= MAX_REQUESTS:
        raise InputError(f"count is {count}; it must be at least 1 and at most {MAX_REQUESTS:,}")
    requests = trace.requests
    sessions = SessionRows.of(requests)
    gaps = sessions.gaps_s()
    drawn = rng.integers(0, len(sessions), count)
    begin_s = np.concatenate([[0.0], np.cumsum(rng.choice(gaps, count - 1) if len(gaps) else np.zeros(count - 1))])
    table = sessions.taken(drawn, begin_s)
    what = "sessions" if "after" in table else "requests"
    return trace.edited(
        in_order(table), f"{count:,} {what} drawn with replacement from {len(sessions):,}; gaps likewise."
    )


def at_once(trace: Trace) -> Trace:
    """Every request at 0; of sessions every first turn, the others by as much later as they were."""
    requests = trace.requests
    after = followed(requests)
    recorded_s = requests["arrival_s"].to_numpy() if trace.has_arrivals else offsets_s(requests, after)
    table = requests.assign(arrival_s=recorded_s - recorded_s[roots(after)])
    what = "First turns of all sessions" if "after" in requests else "All requests"
    return trace.edited(in_order(table), f"{what} arrive at once, at 0.", has_arrivals=True)


def merge(traces: Sequence[Trace]) -> Trace:
    """All requests on one clock that starts at 0 for each trace; sessions and prefix blocks stay apart."""
    if not traces:
        raise InputError("nothing to merge")
    sizes = {int(one.requests["prefix_block_tokens"].iloc[0]) for one in traces if "prefix_blocks" in one.requests}
    if len(sizes) > 1:
        raise InputError(
            f"traces with prefix blocks of {' and '.join(map(str, sorted(sizes)))} tokens cannot be merged"
        )
    unlike = any("prefix_starts" in one.requests for one in traces)
    tables = []
    rows = next_block = 0
    for number, one in enumerate(traces):
        table = one.require_arrivals().requests.copy()
        if any("after" in other.requests for other in traces):
            table = table.assign(after=followed(table), think_s=table.get("think_s", 0.0))
            table["after"] = np.where(table["after"] >= 0, table["after"] + rows, -1)
        if "session" in table:
            table["session"] = table["session"].where(table["session"] == "", f"{number}:" + table["session"])
        if unlike:
            table = turns.with_starts(table)
        if sizes:
            table, next_block = _shifted_blocks(table, sizes, next_block)
        rows += len(table)
        tables.append(table)
    table = _filled(pd.concat(tables, ignore_index=True))
    names = ", ".join(one.name for one in traces)
    notes = tuple(dict.fromkeys(note for one in traces for note in one.notes))
    return Trace(
        in_order(table),
        name="+".join(one.name for one in traces),
        kind="+".join(dict.fromkeys(one.kind for one in traces)),
        synthetic=any(one.synthetic for one in traces),
        notes=(*notes, f"Merged from {names}."),
        dropped=sum(one.dropped for one in traces),
    )


def spread(trace: Trace) -> Trace:
    """Requests of one time spread evenly over the slot up to the next time, as for Mooncake's 3 s grid.

    The last slot is as wide as the median one. Order and slots stay; the burst at each grid point goes.
    """
    requests = trace.require_arrivals().requests
    times = requests["arrival_s"].to_numpy()
    slots, slot, size = np.unique(times, return_inverse=True, return_counts=True)
    if len(slots) < 2:
        raise InputError(f"{trace.path or trace.name} has one arrival time only; there is no slot to spread over")
    widths = np.diff(slots)
    widths = np.append(widths, np.median(widths))
    place = np.arange(len(times)) - np.searchsorted(times, slots)[slot]
    table = requests.assign(arrival_s=times + widths[slot] * place / size[slot])
    return trace.edited(
        table, f"Requests of one time are spread evenly over their slot (median {np.median(widths):.3g} s)."
    )


def session_blocks(trace: Trace, block_tokens: int = 16) -> Trace:
    """Adds prefix_blocks that follow from sessions: a later turn repeats prompt and answer of the turn before."""
    requests = trace.requests
    if "prefix_blocks" in requests:
        raise InputError(f"{trace.path or trace.name} has prefix blocks already")
    prompt, output = (requests[name].to_numpy() for name in ("prompt_tokens", "output_tokens"))
    ids = blocks.of_sessions(followed(requests), prompt, output, block_tokens)
    table = requests.assign(prefix_blocks=pd.Series(ids, dtype=object), prefix_block_tokens=block_tokens)
    return trace.edited(table, f"Prefix blocks of {block_tokens} tokens follow from the sessions.")


def _cut(trace: Trace, kept: Mask, note: str) -> Trace:
    if not kept.any():
        raise InputError(f"{trace.path or trace.name}: no request is left ({note[:-1].lower()})")
    table = keep_rows(trace.requests, kept)
    table["arrival_s"] -= table["arrival_s"].iloc[0]
    return trace.edited(table, note)


def _positive(what: str, value: float) -> None:
    if not 1e-9 <= value <= 1e9:
        raise InputError(f"{what} is {value}; it must be above 0, from 1e-09 to 1e+09")


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that only some of the merged traces have: nothing where they had none."""
    for column in ("token_ids", "output_token_ids"):
        if column in table:
            rows = [one if isinstance(one, np.ndarray) else blocks.NO_IDS for one in table[column]]
            table[column] = pd.Series(rows, dtype=object)
    for column in ("session", "model", "adapter"):
        if column in table:
            table[column] = table[column].fillna("").astype("string")
    for column, absent in (("turn", 0), ("samples", 1), ("priority", 0)):
        if column in table:
            table[column] = table[column].fillna(absent).astype("int64")
    return table


def _shifted_blocks(table: pd.DataFrame, sizes: set[int], next_block: int) -> tuple[pd.DataFrame, int]:
    if "prefix_blocks" not in table:
        ids = [blocks.NO_IDS] * len(table)
    else:
        ids = [one + next_block for one in table["prefix_blocks"]]
        next_block = 1 + max((int(one.max()) for one in ids if len(one)), default=next_block - 1)
    return table.assign(prefix_blocks=pd.Series(ids, dtype=object), prefix_block_tokens=next(iter(sizes))), next_block
