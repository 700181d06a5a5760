"""How many drafts are worth their time, learned from those that were right. It knows no drafter and no schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from sim.cost.step import StepCost
from sim.engine.batch import Shape
from sim.engine.request import Request

T = TypeVar("T")


class RequestMap(Generic[T]):
    """Something for each request, made when it is first asked for, and dropped some time after the request's end."""

    def __init__(self, make: Callable[[Request], T]) -> None:
        self._make = make
        self._of: dict[Request, T] = {}
        self._most = 1024

    def __getitem__(self, req: Request) -> T:
        value = self._of.get(req)
        if value is None:
            if len(self._of) >= self._most:
                self._of = {other: known for other, known in self._of.items() if not other.finished}
                self._most = 1024 + 2 * len(self._of)
            value = self._of[req] = self._make(req)
        return value


class DraftTally:
    """Of one request's drafts: how many were right, of those that were looked at; and when it last proposed."""

    __slots__ = ("right", "round", "tried")

    def __init__(self) -> None:
        self.right = self.tried = 0
        self.round = -1


class Adaptive:
    """As many drafts as promise the fewest seconds per token, by each request's acceptance and the load (0 included).

    A round is a step's proposals. What the requests of one round are like decides how many drafts the next one makes
    (Liu et al. 2024, TurboSpec): how many of them draft, those with the best rates first, and how many drafts at
    most, is chosen together, since the drafter's steps are paid once for all; each then makes as many of these as are
    worth their place in the batch. Seconds are those of the cost model that prices the run, as
    an engine that has profiled itself would know them.

    A request's acceptance is one rate: the share of right drafts among those looked at, and beside it `PRIOR` drafts
    at the rate of all requests so far (0.5 at first). In every `RETRY`-th round those that draft nothing try one
    draft, which bounds what trying costs.

    Args:
        most: never more drafts than these.
        cost: prices the steps.
        window_tokens: most tokens that one attends in layers with an attention window; 0 without one.
    """

    steady = False
    RETRY = 64
    PRIOR = 16
    LEVELS = 20

    def __init__(self, most: int, cost: StepCost, window_tokens: int = 0) -> None:
        self.most = most
        self._cost = cost
        self._window_tokens = window_tokens
        self._records = RequestMap(lambda req: DraftTally())
        self._right, self._tried = 1, 2
        self._round = self._rows = self._context = 0
        self._at_level = [0] * (self.LEVELS + 1)
        self._drafts: list[int] = []
        self._seconds: dict[tuple[int, ...], float] = {}

    def propose(self, req: Request, running: int) -> int:
        record = self._records[req]
        rate = (record.right + self.PRIOR * self._right / self._tried) / (record.tried + self.PRIOR)
        level = round(rate * self.LEVELS)
        if record.round == self._round:
            self._next_round()
        record.round = self._round
        self._rows += 1
        self._context += req.computed
        self._at_level[level] += 1
        if not self._drafts:
            self._drafts = self._choose()
        return self._drafts[level] or int(self._round % self.RETRY == self.RETRY - 1)

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        # The draft after the last right one was looked at too, and was wrong.
        tried = min(accepted + 1, drafts)
        record = self._records[req]
        record.right += accepted
        record.tried += tried
        self._right += accepted
        self._tried += tried

    def _next_round(self) -> None:
        self._drafts = self._choose()
        self._round += 1
        self._rows = self._context = 0
        self._at_level = [0] * (self.LEVELS + 1)

    def _choose(self) -> list[int]:
        """Drafts by level of acceptance, for a round like the last one."""
        rows, context = self._rows, _rounded(self._context // self._rows)
        best_s, drafting, most = self._step_s(rows, context, 0, 0, 0) / rows, 0, 0
        right = [0.0] * (self.most + 1)
        drafters = 0
        for level in range(self.LEVELS, 0, -1):
            if not self._at_level[level]:
                continue
            drafters += self._at_level[level]
            gain = 0.0
            for k in range(1, self.most + 1):
                gain += (level / self.LEVELS) ** k
                right[k] += self._at_level[level] * gain
                token_s = self._step_s(rows, context, drafters, k, k) / (rows + right[k])
                if token_s < best_s:
                    best_s, drafting, most = token_s, drafters, k
        if not most:
            return [0] * (self.LEVELS + 1)
        shorter_s = self._step_s(rows, context, drafting, most - 1, most)
        place_s = (self._step_s(rows, context, drafting, most, most) - shorter_s) / drafting
        return [self._worth(level / self.LEVELS, most, place_s / best_s) for level in range(self.LEVELS + 1)]

    @staticmethod
    def _worth(rate: float, most: int, price: float) -> int:
        """Drafts that are right often enough for a place that costs as much as `price` tokens."""
        return max((k for k in range(1, most + 1) if rate**k > price), default=0)

    def _step_s(self, rows: int, context: int, drafting: int, drafts: int, most: int) -> float:
        """Seconds of a step where `drafting` of the rows verify `drafts` drafts each, and the drafter takes `most`
        steps."""
        key = (rows, drafting) = (_rounded(rows), min(_rounded(drafting), _rounded(rows)))
        seconds = self._seconds.get((*key, context, drafts, most))
        if seconds is None:
            plain, past = rows - drafting, context - 1
            # A row attends `context` tokens with its first token, and one more with each draft.
            shape = Shape(
                (),
                plain,
                plain * context,
                decode_window_context=plain * min(context, self._window_tokens),
                verifies=((drafts + 1, drafting, drafting * past, drafting * min(past, self._window_tokens)),)
                if drafting
                else (),
                proposals=(drafting, drafting * drafts, most),
                proposal_context=drafting * (context + drafts),
                decode_longest=context if plain else 0,
            )
            device, host_s = self._cost.span_s(shape, 1)
            seconds = self._seconds[(*key, context, drafts, most)] = device[0] + host_s
        return seconds


def _rounded(count: int) -> int:
    """About the same number, one of four in each octave."""
    spare = max(0, count.bit_length() - 3)
    return (count >> spare << spare) + ((1 << spare) >> 1)
