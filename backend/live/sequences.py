"""The token ids of every sequence so far, in one array that a step's rows are picked from. It knows no blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backend.live.prompts import Prompts, Tokens
from backend.torch_ops.sampling import philox_uniform
from sim.engine.request import Request

Ints = npt.NDArray[np.int64]

# What a random number decides beside the token itself, whose key is the sequence's seed alone: a draft, whether it
# stays, and what stands in its place.
DRAFT, ACCEPT, RESIDUAL = 0x1F83D9ABFB41BD6B, 0x3C6EF372FE94F82B, 0x510E527FADE682D1


@dataclass(frozen=True, slots=True)
class Sequence:
    """Where a sequence's tokens start in the array, prompt first, how many there may be, and what it draws with."""

    start: int
    prompt_tokens: int
    tokens: int
    seed: int


class Sequences:
    """All sequences that were ever served, by their ids.

    Args:
        seed: the run's; a sequence draws with a number that depends on it and on the sequence's id alone.
        room: places behind each answer, for drafts that go beyond its end.
    """

    def __init__(self, prompts: Prompts, seed: int, room: int = 0) -> None:
        self._prompts = prompts
        self._seed = seed
        self._room = room
        self._ids = np.zeros(4096, np.int32)
        self._used = 0
        self._known: dict[int, Sequence] = {}

    def of(self, req: Request) -> Sequence:
        """The request's sequence; its prompt is drawn when it is first asked for."""
        return self._known.get(req.id) or self._open(req)

    def tokens(self, at: Ints | slice) -> npt.NDArray[np.int32]:
        """The ids at these places of the array; those not sampled yet are not to be asked for."""
        return self._ids[at]

    def put(self, at: Ints | slice, tokens: Ints | npt.NDArray[np.int32]) -> None:
        self._ids[at] = tokens

    def end(self, req: Request, place: int) -> None:
        """Let the token at this place of the array be the sequence's last."""
        sequence = self.of(req)
        self._known[req.id] = replace(sequence, tokens=place + 1 - sequence.start)

    def outputs(self) -> Iterator[tuple[int, int, Tokens]]:
        """(sequence id, prompt tokens, ids of prompt and answer) of all sequences that ran."""
        for id, sequence in sorted(self._known.items()):
            yield (
                id,
                sequence.prompt_tokens,
                self._ids[sequence.start : sequence.start + sequence.tokens].astype(np.int64),
            )

    def _open(self, req: Request) -> Sequence:
        tokens = req.prompt_tokens + req.output_tokens
        start, self._used = self._used, self._used + tokens + self._room
        if self._used > len(self._ids):
            grown = np.zeros(max(self._used, 2 * len(self._ids)), np.int32)
            grown[:start] = self._ids[:start]
            self._ids = grown
        self._ids[start : start + req.prompt_tokens] = self._prompts.tokens(req)
        sequence = self._known[req.id] = Sequence(start, req.prompt_tokens, tokens, sequence_seed(self._seed, req.id))
        return sequence


def uniforms(seeds: Ints, positions: Ints, role: int) -> Tensor:
    """Numbers fp32 [R] from 0 to 1 that follow from a sequence's seed, a position and what they decide."""
    keys = torch.from_numpy(seeds ^ np.int64(role))
    return philox_uniform(keys, torch.from_numpy(positions))


def sequence_seed(seed: int, sequence: int) -> int:
    """One number of 63 bits for a run's seed and a sequence's id."""
    return int(np.random.SeedSequence([seed, sequence]).generate_state(1, np.uint64)[0] >> np.uint64(1))
