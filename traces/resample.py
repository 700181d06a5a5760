"""Sessions of a trace taken again, drawn or not: what a file has too few of is drawn anew. It knows no rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.late import pd
from traces.rows import in_order
from traces.schema import MAX_REQUESTS, InputError, Trace
from traces.sessions import by_session, followed

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SessionRows:
    """The sessions of a table (requests where there are none), in order of their starts."""

    requests: pd.DataFrame
    rows: Indices
    """Session by session, the first turn's first."""
    begins: Indices
    """Of each session, where its rows begin among those."""
    sizes: Indices
    """And how many they are."""

    @classmethod
    def of(cls, requests: pd.DataFrame) -> SessionRows:
        after = followed(requests)
        rows = by_session(after)
        begins = np.flatnonzero(after[rows] < 0)
        return cls(requests, rows, begins, np.diff(begins, append=len(rows)))

    def __len__(self) -> int:
        return len(self.begins)

    def start_s(self) -> Floats:
        times: Floats = self.requests["arrival_s"].to_numpy()[self.rows[self.begins]]
        return times

    def gaps_s(self) -> Floats:
        """Between one start and the next."""
        return np.diff(self.start_s())

    def taken(self, chosen: Indices, begin_s: Floats, *, plain: int = 0) -> pd.DataFrame:
        """The rows of these sessions one after the other, each session from its `begin_s` on.

        Copies of a session share no prefix blocks but those that other sessions share too, and have names of their
        own; the first `plain` sessions keep theirs.
        """
        sizes = self.sizes[chosen]
        place = np.repeat(np.arange(len(chosen)), sizes)
        begin = (np.cumsum(sizes) - sizes)[place]
        taken = self.rows[self.begins[chosen][place] + np.arange(len(place)) - begin]
        table = self.requests.iloc[taken].reset_index(drop=True)
        times = self.requests["arrival_s"].to_numpy()
        first = self.rows[self.begins[chosen]]
        table["arrival_s"] = begin_s[place] + times[taken] - times[first[place]]
        if "after" in table:
            turn = np.empty(len(self.rows), np.int64)
            turn[self.rows] = np.arange(len(self.rows)) - np.repeat(self.begins, self.sizes)
            after = followed(self.requests)[taken]
            table["after"] = np.where(after >= 0, begin + turn[after], -1)
        if "session" in table:
            named = table["session"] + "~" + pd.Series(place).astype("string")
            table["session"] = table["session"].where(pd.Series(place < plain), named)
        if "prefix_blocks" in table:
            times_before = np.asarray(pd.Series(chosen).groupby(chosen).cumcount(), np.int64)
            ids = copies_apart(list(table["prefix_blocks"]), np.asarray(chosen)[place], times_before[place])
            table["prefix_blocks"] = pd.Series(ids, dtype=object)
        return table


def enough(trace: Trace, count: int, rng: np.random.Generator) -> Trace:
    """A trace of at least `count` requests: this one, or with whole sessions drawn from it again until there are as
    many, of which the last is cut. Gaps between starts are drawn likewise.

    Raises InputError for more requests than a trace may have.
    """
    if count > MAX_REQUESTS:
        raise InputError(f"{count:,} requests are asked for; a trace that is drawn has at most {MAX_REQUESTS:,}")
    lacking = count - len(trace)
    if lacking <= 0:
        return trace
    sessions = SessionRows.of(trace.requests)
    own = np.arange(len(sessions))
    drawn = rng.integers(0, len(sessions), lacking)  # each has a request at least
    drawn = drawn[: int(np.searchsorted(np.cumsum(sessions.sizes[drawn]), lacking)) + 1]
    start_s, gaps = sessions.start_s(), sessions.gaps_s()
    more_s = start_s[-1] + np.cumsum(rng.choice(gaps, len(drawn)) if len(gaps) else np.zeros(len(drawn)))
    table = sessions.taken(np.concatenate([own, drawn]), np.concatenate([start_s, more_s]), plain=len(own))
    what = "sessions" if "after" in table else "requests"
    note = (
        f"The file's {len(trace):,} requests are fewer than the {count:,} asked for: {len(drawn):,} {what} more are "
        f"drawn from its {len(own):,}, with replacement."
    )
    return trace.edited(in_order(table.iloc[:count].reset_index(drop=True)), note)


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
