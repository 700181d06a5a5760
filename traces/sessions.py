"""Requests that follow one another: rows of sessions whose turns are known, links for those that share an id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.late import pd
from traces.table import Columns

Indices = npt.NDArray[np.int64]
ASSUMED_THINK_S = 60.0
THINK_NOTE = (
    f"Times within a conversation are not recorded: {ASSUMED_THINK_S:.0f} s of thinking are assumed before each later "
    "turn (medians elsewhere: RAGPulse 40 s, Bailian 111 s, BurstGPT 124 s)."
)


@dataclass(slots=True)
class Rows:
    """Requests of sessions, gathered one by one, in columns of the trace contract."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    count: int = 0

    def add(self, **values: Any) -> int:
        """One more request; returns its index. Every call gives the same columns."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)
        self.count += 1
        return self.count - 1

    def add_turns(self, turns: Sequence[tuple[int, int]], arrival_s: float, think_s: float, **values: Any) -> None:
        """A session of these (prompt, output tokens); each turn arrives `think_s` after the one before."""
        last = -1
        for turn, (prompt, output) in enumerate(turns):
            last = self.add(
                arrival_s=arrival_s + turn * think_s,
                prompt_tokens=prompt,
                output_tokens=output,
                turn=turn,
                after=last,
                think_s=ASSUMED_THINK_S if turn else 0.0,
                **values,
            )

    def table(self) -> pd.DataFrame:
        objects = {"prefix_blocks", "token_ids", "output_token_ids"}
        return pd.DataFrame(
            {
                name: pd.Series(values, dtype=object if name in objects else None)
                for name, values in self.columns.items()
            }
        )


def followed(requests: Columns) -> Indices:
    """The request that each follows, -1 for none."""
    return np.asarray(requests["after"], np.int64) if "after" in requests else np.full(len(requests), -1, np.int64)


def roots(after: Indices) -> Indices:
    """The request that opens each request's session; `after` names earlier rows."""
    root = np.where(after >= 0, after, np.arange(len(after)))
    while not np.array_equal(before := root[root], root):  # twice as many turns before at each step
        root = before
    return root


def offsets_s(requests: pd.DataFrame, after: Indices) -> npt.NDArray[np.float64]:
    """Times within sessions where none are recorded: each turn its think time after the one before."""
    offset_s = np.zeros(len(after))
    think_s = requests["think_s"].to_numpy() if "think_s" in requests else offset_s
    for row in np.flatnonzero(after >= 0):
        offset_s[row] = offset_s[after[row]] + think_s[row]
    return offset_s


def by_session(after: Indices) -> Indices:
    """The rows session by session, in order of start, and of a session in order of its turns."""
    root = roots(after)
    return np.lexsort((np.arange(len(root)), root))


def linked(table: pd.DataFrame, elapsed_s: npt.NDArray[np.float64] | None = None) -> pd.DataFrame:
    """Adds turn, after and think_s to rows in order of time that name their `session` ("" = none).

    think_s runs from the end of the answer before where `elapsed_s` (seconds from arrival to last token, NaN
    where unknown) tells it, else from the arrival before: then it holds that request's service time too.
    """
    session = table["session"].to_numpy(dtype=object)
    alone = session == ""
    index = np.arange(len(table))
    groups = pd.Series(index).groupby(session, sort=False)
    turn = np.where(alone, 0, groups.cumcount().to_numpy())
    after = np.where(alone, -1, groups.shift(1, fill_value=-1).to_numpy()).astype(np.int64)
    times = table["arrival_s"].to_numpy()
    ended = times if elapsed_s is None else times + np.nan_to_num(elapsed_s)
    think = np.where(after >= 0, np.maximum(times - ended[after], 0.0), 0.0)
    return table.assign(turn=turn, after=after, think_s=think)


def answers(messages: Iterable[tuple[bool, int]]) -> Sequence[tuple[int, int]]:
    """(prompt tokens, output tokens) of each answer in a conversation of (is an answer, tokens).

    The prompt is every message before the answer. An answer that opens a conversation only adds to later prompts.
    """
    found = []
    before, asked = 0, False
    for is_answer, tokens in messages:
        if is_answer and asked:
            found.append((before, tokens))
        asked = asked or not is_answer
        before += tokens
    return found
