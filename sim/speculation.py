"""Who drafts, how many, at what price, and how often a draft is right. It schedules nothing (`sim.drafting` does)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar
from zlib import crc32

import numpy as np

from sim.batch import Shape
from sim.cost.roofline import SOURCE, Roofline
from sim.cost.step import Constant, StepCost, Term
from sim.request import Request
from sim.specs import ModelSpec
from traces.schema import InputError

DRAFTERS = ("ngram", "draft-model", "eagle", "medusa")
MOST_DRAFTS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Drafting, for the policy `speculative`.

    The `drafter` is "ngram" (prompt lookup: no model), "draft-model" (`draft_model`, run k times a step, with a KV
    cache and a prefill of its own), "eagle" (one layer of the target's shape, run k times; EAGLE, MTP) or "medusa"
    (k heads on the target's last hidden state, run once). `k` drafts are proposed or, with `adaptive`, up to k.

    `acceptance` is the probability that a draft is right, given that all before it were: one number, several by
    position ("0.8,0.7,0.5", the last one for all that follow), or a JSON file with a list of them.
    """

    drafter: str = "ngram"
    k: int = 4
    acceptance: float | str = 0.7
    adaptive: bool = False
    draft_model: str = ""

    def __post_init__(self) -> None:
        if self.drafter not in DRAFTERS:
            raise InputError(f"speculation.drafter is {self.drafter!r}; known: {', '.join(DRAFTERS)}")
        if not 0 <= self.k <= MOST_DRAFTS:
            raise InputError(f"speculation.k is {self.k}; it must lie between 0 and {MOST_DRAFTS}")
        if (self.drafter == "draft-model") != bool(self.draft_model):
            raise InputError(
                "speculation.draft_model names the model of the drafter draft-model"
                + ("; set it" if not self.draft_model else f", and speculation.drafter is {self.drafter!r}")
            )
        acceptance_rates(self.acceptance)


def acceptance_rates(given: float | str) -> tuple[float, ...]:
    """The rates by position; InputError where one is no probability."""
    values: Sequence[object]
    if isinstance(given, str) and given.endswith(".json"):
        try:
            values = json.loads(Path(given).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"speculation.acceptance: cannot read {given}: {error}") from None
    else:
        values = given.split(",") if isinstance(given, str) else [given]
    try:
        rates = tuple(float(one) for one in values)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise InputError(f"speculation.acceptance is {given!r}; expected probabilities from 0 to 1, such as 0.8,0.7")
    return rates


class PerRequest(Generic[T]):
    """Something for each request, made when it is first asked for, and dropped some time after the request's end."""

    def __init__(self, make: Callable[[Request], T]) -> None:
        self._make = make
        self._of: dict[Request, T] = {}
        self._most = 1024

    def __getitem__(self, req: Request) -> T:
        found = self._of.get(req)
        if found is None:
            if len(self._of) >= self._most:
                self._of = {other: kept for other, kept in self._of.items() if not other.finished}
                self._most = 1024 + 2 * len(self._of)
            found = self._of[req] = self._make(req)
        return found


class Luck:
    """A number from 0 to 1 for each token of an answer, and how many tokens of it the target has given so far."""

    __slots__ = ("given", "numbers")

    def __init__(self, numbers: Sequence[float]) -> None:
        self.numbers = numbers
        self.given = 0


class Acceptance:
    """Draws how many drafts are right: each with its position's rate, up to the first that is wrong.

    Each token of an answer has one random number, which follows from the seed, the request and the token's place
    alone: whether a draft of it is right does not depend on other requests, on the budget, or on k. No number
    decides twice, since the target itself gives the token whose draft was wrong; so the draws are independent, and
    for one rate a the expected tokens of a step with k drafts are (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023,
    equation 1).
    """

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        self._rates = [*rates, *[rates[-1]] * (MOST_DRAFTS - len(rates))]
        self._seed = [seed, crc32(b"acceptance")]
        self._luck = PerRequest(self._draw)

    def __call__(self, req: Request, drafts: int) -> int:
        """How many of a request's next `drafts` drafts are right; to be asked once for each step that samples."""
        luck = self._luck[req]
        right = 0
        for number, rate in zip(luck.numbers[luck.given : luck.given + drafts], self._rates, strict=False):
            if number >= rate:
                break
            right += 1
        luck.given += right + 1
        return right

    def _draw(self, req: Request) -> Luck:
        # One step may go beyond the end, and one that was planned before the end was known still further.
        tokens = req.output_tokens + 2 * (MOST_DRAFTS + 1)
        return Luck(np.random.default_rng([*self._seed, req.id]).random(tokens).tolist())


class Fixed:
    """Always `k` drafts."""

    def __init__(self, k: int) -> None:
        self.most = k

    def propose(self, req: Request, running: int) -> int:
        return self.most

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        """Nothing is learned from it."""


class Record:
    """Of one request's drafts: how many were right, of those that were looked at."""

    __slots__ = ("right", "tried")

    def __init__(self) -> None:
        self.right = self.tried = 0


class Adaptive:
    """As many drafts as promise the fewest seconds per token, by a request's acceptance and the load (0 included).

    The seconds are those of a step in which all running requests do alike, by the cost model that prices the run, as
    an engine that has profiled itself would know them (Liu et al. 2024, TurboSpec). Acceptance is one rate per
    request: the share of right drafts among those looked at, and beside it `PRIOR` drafts at the rate of all requests
    so far (0.5 at first): a step that drafts has a price of its own, so requests that are much alike had better draft
    together or not at all. Those that have stopped try one draft again in every `RETRY`-th step, the same for all,
    which bounds what trying costs.

    Args:
        most: never more drafts than these.
        cost: prices the steps.
        window_tokens: most tokens that one attends in layers with an attention window; 0 without one.
    """

    RETRY = 64
    PRIOR = 16

    def __init__(self, most: int, cost: StepCost, window_tokens: int = 0) -> None:
        self.most = most
        self._cost = cost
        self._window_tokens = window_tokens
        self._records = PerRequest(lambda req: Record())
        self._right, self._tried = 1, 2
        self._best: dict[tuple[int, int, int], int] = {}
        self._round = self._asked = 0
        self._first: Request | None = None

    def propose(self, req: Request, running: int) -> int:
        self._asked += 1
        if req is self._first or self._asked > running:
            self._round += 1
            self._asked, self._first = 1, req
        record = self._records[req]
        rate = (record.right + self.PRIOR * self._right / self._tried) / (record.tried + self.PRIOR)
        key = (_rounded(running), _rounded(req.computed), round(rate * 20))
        best = self._best.get(key)
        if best is None:
            best = self._best[key] = self._choose(key[0], key[1], key[2] / 20)
        return best or int(self.most > 0 and self._round % self.RETRY == self.RETRY - 1)

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        # The draft after the last right one was looked at too, and was wrong.
        tried = min(accepted + 1, drafts)
        record = self._records[req]
        record.right += accepted
        record.tried += tried
        self._right += accepted
        self._tried += tried

    def _choose(self, rows: int, context: int, rate: float) -> int:
        within = rows * min(context, self._window_tokens)

        def seconds_per_token(k: int) -> float:
            if k:
                # A row attends `context` tokens with its first token, and one more with each draft.
                verifies, proposals = ((k + 1, context - 1),) * rows, (rows, rows * k, k)
                shape = Shape(verifies=verifies, proposals=proposals, proposal_context=rows * (context + k))
            else:
                shape = Shape((), rows, rows * context, decode_window_context=within)
            device, host_s = self._cost.span_s(shape, 1)
            return (device[0] + host_s) / sum(rate**i for i in range(k + 1))

        return min(range(self.most + 1), key=seconds_per_token)


def _rounded(count: int) -> int:
    """About the same number, one of four in each octave."""
    spare = max(0, count.bit_length() - 3)
    return (count >> spare << spare) + ((1 << spare) >> 1)


@dataclass(frozen=True, slots=True)
class Drafter:
    """What drafts beside the target: its model, if it has one, and how often that runs for k drafts."""

    kind: str
    model: ModelSpec | None
    k: int

    @classmethod
    def of(cls, settings: SpeculationSettings, target: ModelSpec, draft_model: ModelSpec | None) -> Drafter:
        if settings.drafter == "ngram":
            return cls("ngram", None, settings.k)
        if draft_model is not None:
            if draft_model.vocab != target.vocab:
                raise InputError(
                    f"speculation.draft_model {draft_model.name!r} has a vocabulary of {draft_model.vocab} tokens and "
                    f"{target.name!r} one of {target.vocab}; drafts must be the target's tokens"
                )
            return cls("draft-model", draft_model, settings.k)
        name = f"{settings.drafter} of {target.name}"
        layer = replace(target, name=name, layers=1, leading_dense_layers=0, sliding_window_tokens=0, sliding_layers=0)
        return cls(settings.drafter, layer, settings.k)

    @property
    def has_cache(self) -> bool:
        """Does it keep KV of its own?"""
        return self.kind in ("draft-model", "eagle")

    def weight_bytes(self, tp: int) -> int:
        """Bytes of its weights on each of `tp` GPUs; both heads share the target's embedding, EAGLE its LM head too."""
        model = self.model
        if model is None:
            return 0
        if self.kind == "draft-model":
            return model.gpu_weight_bytes(tp)
        if self.kind == "medusa":
            return self.k * (model.hidden**2 + model.hidden * model.vocab) // tp * model.element_bytes
        return model.last_layers_weight_bytes(1, tp) + 2 * model.hidden**2 // tp * model.element_bytes

    def kv_bytes_per_token(self, tp: int) -> int:
        """Bytes of its own KV of a token on each of `tp` GPUs."""
        return self.model.gpu_kv_bytes_per_token(tp) if self.model is not None and self.has_cache else 0


class Drafted:
    """The price of a step that verifies drafts and then proposes new ones: the target's, and the drafter's on top.

    A drafter with a cache prefills what the target prefills, and takes as many steps, one after the other, as the
    longest proposal has drafts; all proposing rows are counted in each. Medusa's heads are one layer and one
    vocabulary matrix each. Looking up n-grams happens on the host and is not priced (not measured).
    """

    def __init__(self, target: Roofline, drafter: Drafter, draft_cost: Roofline | None) -> None:
        self._target = target
        self._drafter = drafter
        self._draft = draft_cost

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        device, host_s = self._target.span_s(shape, repeats)
        drafting_s = sum(self._drafting(shape).values())
        return [one + drafting_s for one in device] if drafting_s else device, host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        drafting = {name: Term(seconds, SOURCE) for name, seconds in self._drafting(shape).items()}
        return {**self._target.explain(shape), **drafting}

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        return self._target.describe()

    def _drafting(self, shape: Shape) -> dict[str, float]:
        rows, _, most = shape.proposals
        terms: dict[str, float] = {}
        if self._drafter.kind == "medusa" and rows:
            terms["draft heads"] = most * self._head_s(rows)
        elif self._draft is not None:
            if shape.prefills:
                terms["draft prefill"] = self._draft.span_s(Shape(shape.prefills), 1)[0][0]
            if rows:
                context = shape.proposal_context + rows
                window = self._draft.window.span_tokens if self._draft.window else 0
                within = min(context, rows * window)
                terms["drafting"] = sum(self._draft.span_s(Shape((), rows, context, 0, 0, within), most)[0])
        return terms

    def _head_s(self, rows: int) -> float:
        model, kernels, tp = self._target.model, self._target.kernels, self._target.tp
        hidden, vocab = model.hidden, model.vocab
        return (
            kernels.gemm_s(rows, hidden, hidden // tp)
            + kernels.gemm_s(rows, hidden, -(-vocab // tp))
            + kernels.sampling_s(rows, vocab)
        )
