"""From the runs of tokens that replicas gave to the gaps between tokens: here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.engine.request import indices_of
from sim.engine.tokens import TokenClock
from sim.results.percentiles import Distribution, Itl, distribution_in_parts, merge_itl, segment_gaps

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Joins(NamedTuple):
    """The gaps between two runs of one sequence: its id, the seconds, and the replica of the later run."""

    sequence: Ints
    seconds: Floats
    replica: Ints


class TokenGaps:
    """The gaps between the tokens of each sequence, wherever it was served.

    Args:
        clocks: the runs of tokens of each replica's engine.
        step_end_s: of each replica, when each of its steps ended.
    """

    def __init__(self, clocks: Sequence[TokenClock], step_end_s: Sequence[Floats]) -> None:
        self.step_end_s = step_end_s
        self.runs: list[tuple[Ints, Ints, Ints]] = [
            (np.frombuffer(clock.request, np.int64), np.frombuffer(clock.first_step, np.int64),
             np.frombuffer(clock.last_step, np.int64))
            for clock in clocks
        ]  # fmt: skip
        """Of each replica: sequence, first and last step of each run."""
        self._same_step = [clock.same_step for clock in clocks]
        self.joins = self._joined()

    def _joined(self) -> Joins:
        if not any(len(sequence) for sequence, _, _ in self.runs):
            return Joins(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        pairs = [(run, ends_s) for run, ends_s in zip(self.runs, self.step_end_s, strict=True)]
        sequence = np.concatenate([run[0] for run, _ in pairs])
        start_s = np.concatenate([ends_s[run[1]] for run, ends_s in pairs])
        end_s = np.concatenate([ends_s[run[2]] for run, ends_s in pairs])
        replica = np.repeat(np.arange(len(pairs)), [len(run[0]) for run, _ in pairs])
        order = np.lexsort((start_s, sequence)) if len(pairs) > 1 else np.argsort(sequence, kind="stable")
        sequence = sequence[order]
        same = sequence[1:] == sequence[:-1]
        seconds = start_s[order[1:]] - end_s[order[:-1]]
        return Joins(sequence[1:][same], seconds[same], replica[order[1:]][same])

    def itl(self) -> Itl:
        """(seconds, how often) of all gaps, those of no time between tokens of one step included."""
        return merge_itl(self._parts())

    def distribution(self) -> Distribution:
        """That of all gaps, of which no more are held at once than one replica's."""
        return distribution_in_parts(self._parts)

    def _parts(self) -> Iterator[Itl]:
        for index, ((_, first, last), ends_s) in enumerate(zip(self.runs, self.step_end_s, strict=True)):
            if len(first):
                own = self.joins.seconds[self.joins.replica == index]
                yield from segment_gaps(ends_s, first, last, own)
            if self._same_step[index]:
                yield np.zeros(1), np.array([self._same_step[index]])

    def longest_s(self, requests: int) -> Floats:
        """The longest time between two tokens of each request; NaN where it has fewer than two."""
        longest = np.full(requests, -np.inf)
        for (sequence, first, last), ends_s in zip(self.runs, self.step_end_s, strict=True):
            many = last > first
            if many.any():
                gaps_s = np.zeros(len(ends_s))  # behind the last step stands one more, for a run that ends there
                np.subtract(ends_s[1:], ends_s[:-1], out=gaps_s[:-1])
                bounds = np.column_stack([first[many], last[many]]).ravel()
                np.maximum.at(longest, indices_of(sequence[many]), np.maximum.reduceat(gaps_s, bounds)[::2])
        np.maximum.at(longest, indices_of(self.joins.sequence), self.joins.seconds)
        return np.where(np.isinf(longest), np.nan, longest)
