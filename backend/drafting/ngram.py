"""Drafts by prompt lookup: what followed the last few tokens where they stood before. It knows no model and no cache.

Prompt lookup decoding (Saxena 2023), by vLLM's rule (`v1/spec_decode/ngram_proposer.py`,
`_find_longest_matched_ngram_and_propose_tokens`), with its names for the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from backend.drafting.drafting import DraftingRow, Ground
from backend.live.graphs import Recorder
from sim.engine.batch import Batch
from sim.engine.request import Request

Ids = npt.NDArray[np.int32]


def looked_up(tokens: Ids, drafts: int, shortest: int, longest: int) -> Ids:
    """At most `drafts` tokens [n]: those behind the earliest place where the text's end stands in it, or none.

    Of the ends of `shortest` to `longest` tokens the longest that is found counts; it may overlap with the end itself.
    """
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    matches = ends if shortest == 1 else ends[:0]
    for length in range(2, longest + 1):
        ends = ends[ends >= length - 1]
        ends = ends[tokens[ends - (length - 1)] == tokens[-length]] if length <= len(tokens) else ends[:0]
        if not len(ends):
            break
        if length >= shortest:
            matches = ends
    return tokens[matches[0] + 1 : matches[0] + 1 + drafts] if len(matches) else tokens[:0]


class Ngram:
    """Looks up the drafts of each sequence in its own prompt and answer. That is the host's work.

    Args:
        shortest, longest: tokens that must be found, as vLLM's `prompt_lookup_min` and `prompt_lookup_max`.
    """

    samples = False

    def __init__(self, ground: Ground, shortest: int, longest: int) -> None:
        self._sequences = ground.sequences
        self._shortest, self._longest = shortest, longest

    def move(self, batch: Batch) -> None:
        """There is no cache."""

    def propose(self, rows: Sequence[DraftingRow]) -> tuple[list[int], float]:
        return [self._look_up(row) if row.wanted else 0 for row in rows], 0.0

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """Nothing is built."""

    def capture(self, recorder: Recorder, most_sequences: int, most_tokens: int, step_tokens: int) -> None:
        """Nothing is launched."""

    def distributions(self, req: Request, drafts: int) -> Iterator[Tensor]:
        """Each draft is one guess."""
        return iter(())

    def _look_up(self, row: DraftingRow) -> int:
        sequences, known = self._sequences, row.certain + 1
        start = sequences.of(row.request).start
        drafts = looked_up(sequences.tokens(slice(start, start + known)), row.wanted, self._shortest, self._longest)
        sequences.put(slice(start + known, start + known + len(drafts)), drafts)
        return len(drafts)
