"""How many drafts are right: a draw for each draft. It knows no drafter, and not where the rates come from."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from zlib import crc32

import numpy as np

from sim.engine.request import Request
from sim.specs.tree import DraftTree
from sim.speculation.adaptive import RequestMap
from sim.speculation.rates import MOST_DRAFTS


class Luck:
    """Two numbers from 0 to 1 for each token of an answer: is a draft of it right, and does a look-up find one.

    `given` is how many tokens of it the target has given so far.
    """

    __slots__ = ("given", "look_ups", "numbers")

    def __init__(self, numbers: Sequence[float], look_ups: Sequence[float]) -> None:
        self.numbers = numbers
        self.look_ups = look_ups
        self.given = 0


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
    """

    def __init__(
        self,
        rates: Sequence[float],
        seed: int,
        own: Sequence[float] | None = None,
        tree: DraftTree | None = None,
        found: Sequence[float] = (),
    ) -> None:
        self._rates = [*rates, *[rates[-1]] * (MOST_DRAFTS - len(rates))]
        self._own = own
        self._tree = tree
        self._seed = seed
        self._shares = found
        self._luck = RequestMap(self._draw)

    def __call__(self, req: Request, drafts: int) -> int:
        """How many of a request's next `drafts` drafts are right; to be asked once for each step that samples."""
        luck = self._luck[req]
        rates = self._rates
        if self._own is not None and not isnan(rate := self._own[req.id]):
            rates = [rate] * MOST_DRAFTS
        if self._tree is not None:
            drafts = self._tree.levels(drafts)
            rates = [1 - (1 - rate) ** width for rate, width in zip(rates, self._tree.widths, strict=False)]
        right = 0
        for number, rate in zip(luck.numbers[luck.given : luck.given + drafts], rates, strict=False):
            if number >= rate:
                break
            right += 1
        luck.given += right + 1
        return right

    def found(self, req: Request, drafts: int) -> int:
        """Of so many drafts wanted next, how many the drafter has; to be asked after a step's right ones."""
        luck = self._luck[req]
        number = luck.look_ups[luck.given]
        return next((at for at, share in enumerate(self._shares[:drafts]) if number >= share), drafts)

    def _draw(self, req: Request) -> Luck:
        # One step may go beyond the end, and one that was planned before the end was known still further.
        tokens = req.output_tokens + 2 * (MOST_DRAFTS + 1)
        numbers = np.random.default_rng([self._seed, crc32(b"acceptance"), req.id]).random(tokens).tolist()
        if not self._shares:
            return Luck(numbers, ())
        return Luck(numbers, np.random.default_rng([self._seed, crc32(b"look-ups"), req.id]).random(tokens).tolist())
