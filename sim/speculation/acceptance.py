"""How often a draft is right: the rates, where they come from, and a draw for each draft. It knows no drafter."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from zlib import crc32

import numpy as np

from sim.engine.request import Request
from sim.specs.tree import DraftTree
from sim.speculation.adaptive import RequestMap
from traces import documents
from traces.schema import InputError

MOST_DRAFTS = 64


def acceptance_rates(given: float | str) -> tuple[float, ...]:
    """The rates by position; InputError where one is no probability, or a file says none."""
    values: Sequence[object]
    if isinstance(given, str) and given.endswith(".json"):
        values = _recorded_rates(given)
    else:
        values = given.split(",") if isinstance(given, str) else [given]
    try:
        rates = tuple(float(one) for one in values)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise InputError(f"speculation.acceptance is {given!r}; expected probabilities from 0 to 1, such as 0.8,0.7")
    return rates[:MOST_DRAFTS]


def _recorded_rates(path: str) -> Sequence[object]:
    """A list of rates, or those that a run's summary has; of a position that nobody reached, 0."""
    try:
        summary = documents.json_file(Path(path))
        if isinstance(summary, dict):
            summary = [0.0 if rate is None else rate for rate in summary["speculation"]["rate_by_position"]]
    except InputError as error:
        raise InputError(f"speculation.acceptance: {error}") from None
    except (KeyError, TypeError):
        raise InputError(
            f"speculation.acceptance: {path} is no list of rates and no summary of a run that drafted"
        ) from None
    return summary if isinstance(summary, list) else [summary]


def found_shares(given: float | str) -> tuple[float, ...]:
    """By position, how often a look-up found a draft in the run of this summary; () for anything else than one."""
    if not (isinstance(given, str) and given.endswith(".json")):
        return ()
    try:
        summary = documents.json_file(Path(given))
        shares = tuple(map(float, summary["speculation"]["found_by_position"])) if isinstance(summary, dict) else ()
    except InputError as error:
        raise InputError(f"speculation.acceptance: {error}") from None
    except (KeyError, TypeError, ValueError):
        return ()
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise InputError(f"speculation.acceptance: {given} has a found_by_position that is no share from 0 to 1")
    return shares


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
