"""How many drafts are right: a draw for each draft. It knows no drafter, and not where the rates come from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import isnan
from zlib import crc32

import numpy as np
import numpy.typing as npt

from sim.engine.request import Request
from sim.specs.tree import DraftTree
from sim.speculation.adaptive import RequestMap
from sim.speculation.rates import MOST_DRAFTS
from sim.speculation.streams import Streams

_ONE_MORE = bytes([*range(1, 256), 0])
_RUNS = 64
"""Runs of right drafts that are shorter than this have their steps kept."""


class Luck:
    """What was drawn for each token of an answer, and how many of them the target has `given` so far.

    A draft is right whose number is below the rate of its position; `look_ups` has a number from 0 to 1 for each token.
    """

    __slots__ = ("given", "look_ups", "numbers", "rates", "tokens")

    def __init__(
        self, numbers: npt.NDArray[np.float64], rates: list[float], look_ups: list[float], tokens: int
    ) -> None:
        self.numbers = numbers
        self.rates = rates
        self.tokens = tokens
        """Of the answer."""
        self.look_ups = look_ups
        self.given = 0

    def right(self, at: int, drafts: int) -> int:
        """How many of so many drafts from a place on are right: those before the first that is wrong."""
        rates = self.rates[:drafts]
        numbers: list[float] = self.numbers[at : at + len(rates)].tolist()
        for right, rate in enumerate(rates):
            if numbers[right] >= rate:
                return right
        return len(rates)

    def course(self, drafts: int, tokens: int) -> bytes:
        """The right drafts of the steps of so many drafts each that begin before `tokens` more are given; perhaps of
        some behind them too."""
        rates, at = self.rates[:drafts], self.given
        end = at + tokens
        if min(rates) < max(rates):
            course = bytearray()
            while at < end:
                right = self.right(at, drafts)
                course.append(right)
                at += right + 1
            return bytes(course)
        # The same, from one wrong draft to the next: behind it a step begins.
        most = len(rates)
        known, kept = _steps_of_short_runs(most), _RUNS
        runs = (self.numbers[at : end + most] >= rates[0]).tobytes().split(b"\1")
        return b"".join([known[len(run)] if len(run) < kept else _steps_of_run(len(run), most) for run in runs])


def _steps_of_run(right: int, most: int) -> bytes:
    """The right drafts of steps of `most` each that verify a run of right ones and the wrong one behind it."""
    rest = (right + 1) % (most + 1)
    return bytes([most]) * ((right + 1) // (most + 1)) + (bytes([rest - 1]) if rest else b"")


@cache
def _steps_of_short_runs(most: int) -> list[bytes]:
    return [_steps_of_run(right, most) for right in range(_RUNS)]


class Acceptance:
    """Draws how many drafts are right: each with its position's rate, up to the first that is wrong.

    Each token of an answer has one random number, which follows from the seed, the request and the token's place
    alone: whether a draft of it is right does not depend on other requests, on the budget, or on k. No number
    decides twice, since the target itself gives the token whose draft was wrong; so the draws are independent, and
    for one rate a the expected tokens of a step with k drafts are (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023,
    equation 1).

    Args:
        rates: by position in the draft, the last one for all that follow.
        seed: of the run.
        own: the rate of each request, by its id, where requests are unlike; NaN for those that have `rates`.
        tree: of w candidates one is right with 1 - (1 - rate)^w, as if each were right or wrong by itself; that is
            an assumption, and a kind one, since a drafter's second choice is worse than its first.
        found: by position, how often the drafter has a draft where one is wanted; () for always.
        most: drafts of a step, of a tree its levels, at most.
    """

    def __init__(
        self,
        rates: Sequence[float],
        seed: int,
        own: Sequence[float] | None = None,
        tree: DraftTree | None = None,
        found: Sequence[float] = (),
        most: int = MOST_DRAFTS,
    ) -> None:
        self._rates = [*rates, *[rates[-1]] * (most - len(rates))][:most]
        self._most = most
        self._own = own
        self._tree = tree
        self._numbers, self._look_ups = (Streams(seed, crc32(purpose)) for purpose in (b"acceptance", b"look-ups"))
        self._shares = found
        self._luck = RequestMap(self._draw)

    def __call__(self, req: Request, drafts: int) -> int:
        """How many of a request's next `drafts` drafts are right; to be asked once for each step that samples."""
        luck = self._luck[req]
        right = luck.right(luck.given, drafts if self._tree is None else self._tree.levels(drafts)) if drafts else 0
        luck.given += right + 1
        return right

    def _rates_of(self, req: Request) -> list[float]:
        """By position, or of a tree by level, how often a draft of the request is right."""
        rates = self._rates
        if self._own is not None and not isnan(rate := self._own[req.id]):
            rates = [rate] * self._most
        if self._tree is not None:
            rates = [1 - (1 - rate) ** width for rate, width in zip(rates, self._tree.widths, strict=False)]
        return rates

    def course(self, req: Request, drafts: int, tokens: int, computed: int) -> tuple[bytes, list[int]]:
        """As `sim.engine.foreseeing.Foresight.course`."""
        luck = self._luck[req]
        levels = drafts if self._tree is None else self._tree.levels(drafts)
        tokens = min(tokens, luck.tokens - luck.given)
        right = luck.course(levels, tokens)
        pasts = list(accumulate(right.translate(_ONE_MORE), initial=computed))
        end = bisect_left(pasts, computed + tokens)
        del pasts[end:]
        return right[:end], pasts

    def skip(self, req: Request, tokens: int) -> None:
        """As `sim.engine.foreseeing.Foresight.skip`."""
        self._luck[req].given += tokens

    def found(self, req: Request, drafts: int) -> int:
        """Of so many drafts wanted next, how many the drafter has; to be asked after a step's right ones."""
        luck = self._luck[req]
        number = luck.look_ups[luck.given]
        return next((at for at, share in enumerate(self._shares[:drafts]) if number >= share), drafts)

    def _draw(self, req: Request) -> Luck:
        # One step may go beyond the end, and one that was planned before the end was known still further.
        tokens = req.output_tokens + 2 * (self._most + 1)
        numbers = self._numbers.of(req.id).random(tokens)
        look_ups: list[float] = self._look_ups.of(req.id).random(tokens).tolist() if self._shares else []
        return Luck(numbers, self._rates_of(req), look_ups, req.output_tokens)
