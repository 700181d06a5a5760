"""Who drafts, how many, at what price, and how often a draft is right. It schedules nothing (`sim.drafting` does)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from zlib import crc32

import numpy as np

from sim.adaptive import PerRequest
from sim.batch import Shape
from sim.cost.roofline import SOURCE, Roofline
from sim.cost.step import Constant, Term
from sim.request import Request
from sim.specs import ModelSpec
from sim.tree import DraftTree
from traces.schema import InputError

DRAFTERS = ("ngram", "draft-model", "eagle", "medusa")
MOST_DRAFTS = 64


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Drafting, for the policy `speculative`.

    The `drafter` is "ngram" (prompt lookup: no model), "draft-model" (`draft_model`, run k times a step, with a KV
    cache and a prefill of its own), "eagle" (one layer of the target's shape, run k times; EAGLE, MTP) or "medusa"
    (k heads on the target's last hidden state, run once). `k` drafts are proposed or, with `adaptive`, up to k.

    `tree` gives eagle and medusa several candidates for each next token, by level: "3,2,1" proposes 3 + 6 + 6 drafts,
    all verified in one step, of which a path of at most k = 3 is kept.

    `acceptance` is the probability that a draft is right, given that all before it were: one number, several by
    position ("0.8,0.7,0.5", the last one for all that follow), a JSON file with a list of them, or the `summary.json`
    of a run that drafted.
    """

    drafter: str = "ngram"
    k: int = 4
    acceptance: float | str = 0.7
    adaptive: bool = False
    draft_model: str = ""
    tree: str = ""

    def __post_init__(self) -> None:
        if self.drafter not in DRAFTERS:
            raise InputError(f"speculation.drafter is {self.drafter!r}; known: {', '.join(DRAFTERS)}")
        if not 1 <= self.k <= MOST_DRAFTS:
            raise InputError(
                f"speculation.k is {self.k}; it must lie between 1 and {MOST_DRAFTS} "
                "(who drafts nothing takes the policy chunked)"
            )
        if (self.drafter == "draft-model") != bool(self.draft_model):
            raise InputError(
                "speculation.draft_model names the model of the drafter draft-model"
                + ("; set it" if not self.draft_model else f", and speculation.drafter is {self.drafter!r}")
            )
        acceptance_rates(self.acceptance)
        if self.tree:
            self._check_tree()

    def _check_tree(self) -> None:
        levels, drafts = len(self.shape.widths), self.shape.drafts
        if self.drafter not in ("eagle", "medusa"):
            raise InputError(f"speculation.tree needs the drafter eagle or medusa, and it is {self.drafter!r}")
        if self.adaptive:
            raise InputError("speculation.tree and speculation.adaptive exclude one another: a tree is always whole")
        if levels != self.k:
            raise InputError(
                f"speculation.tree {self.tree!r} has {levels} levels and speculation.k is {self.k}; set it so"
            )
        if drafts > MOST_DRAFTS:
            raise InputError(f"speculation.tree {self.tree!r} has {drafts} drafts; at most {MOST_DRAFTS} are verified")

    @property
    def shape(self) -> DraftTree:
        """The tree of the drafts of a step; without one, a chain of k."""
        return DraftTree.parse(self.tree) if self.tree else DraftTree((1,) * self.k)


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
    """A list of rates, or those of a run: its summary says how often a draft and all before it were right."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(told, dict):
            reached = [1.0, *map(float, told["speculation"]["acceptance_by_position"])]
            told = [right / before if before else 0.0 for before, right in pairwise(reached)]
    except (OSError, ValueError) as error:
        raise InputError(f"speculation.acceptance: cannot read {path}: {error}") from None
    except (KeyError, TypeError):
        raise InputError(
            f"speculation.acceptance: {path} is no list of rates and no summary of a run that drafted"
        ) from None
    return told if isinstance(told, list) else [told]


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

    Args:
        rates: by position in the draft, the last one for all that follow.
        seed: of the run.
        own: the rate of each request, by its id, where requests are unlike; NaN for those that have `rates`.
        tree: of w candidates one is right with 1 - (1 - rate)^w, as if each were right or wrong by itself; that is
            an assumption, and a kind one, since a drafter's second choice is worse than its first.
    """

    def __init__(
        self,
        rates: Sequence[float],
        seed: int,
        own: Sequence[float] | None = None,
        tree: DraftTree | None = None,
    ) -> None:
        self._rates = [*rates, *[rates[-1]] * (MOST_DRAFTS - len(rates))]
        self._own = own
        self._tree = tree
        self._seed = [seed, crc32(b"acceptance")]
        self._luck = PerRequest(self._draw)

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


@dataclass(frozen=True, slots=True)
class Drafter:
    """What drafts beside the target: its model, if it has one, and how often that runs for k drafts."""

    kind: str
    model: ModelSpec | None
    tree: DraftTree

    @property
    def k(self) -> int:
        """Steps or heads that a proposal takes."""
        return len(self.tree.widths)

    @classmethod
    def of(cls, settings: SpeculationSettings, target: ModelSpec, draft_model: ModelSpec | None) -> Drafter:
        if settings.drafter == "ngram":
            return cls("ngram", None, settings.shape)
        if draft_model is not None:
            if draft_model.vocab != target.vocab:
                raise InputError(
                    f"speculation.draft_model {draft_model.name!r} has a vocabulary of {draft_model.vocab} tokens and "
                    f"{target.name!r} one of {target.vocab}; drafts must be the target's tokens"
                )
            return cls("draft-model", draft_model, settings.shape)
        name = f"{settings.drafter} of {target.name}"
        layer = replace(target, name=name, layers=1, leading_dense_layers=0, sliding_window_tokens=0, sliding_layers=0)
        return cls(settings.drafter, layer, settings.shape)

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
    longest proposal has levels; all proposing rows are counted in each, and of a tree, all drafts of the level before.
    Medusa's heads are one layer and one vocabulary matrix each. Not priced: looking up n-grams, which is the host's
    work, and moving the KV of a tree's path together (neither was measured).
    """

    def __init__(self, target: Roofline, drafter: Drafter, draft_cost: Roofline | None) -> None:
        self._target = target
        self._drafter = drafter
        self._draft = draft_cost

    @property
    def needs_longest(self) -> bool:
        """Does the target's price depend on the longest context among the decode rows?"""
        return bool(getattr(self._target, "needs_longest", False))

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
        steps = self._drafter.tree.levels(most)
        terms: dict[str, float] = {}
        if self._drafter.kind == "medusa" and rows:
            terms["draft heads"] = steps * self._head_s(rows)
        elif self._draft is not None:
            if shape.prefills:
                terms["draft prefill"] = self._draft.span_s(Shape(shape.prefills), 1)[0][0]
            if rows:
                sizes = (1, *self._drafter.tree.sizes)[:steps]
                terms["drafting"] = sum(self._step_s(rows, size, shape, at) for at, size in enumerate(sizes, 1))
        return terms

    def _step_s(self, rows: int, size: int, shape: Shape, at: int) -> float:
        """Seconds of the drafter's `at`-th step, which continues `size` drafts of each row."""
        assert self._draft is not None
        context = (shape.proposal_context + rows * at) * size
        window = self._draft.window.span_tokens if self._draft.window else 0
        within = min(context, rows * size * window)
        return self._draft.span_s(Shape((), rows * size, context, 0, 0, within), 1)[0][0]

    def _head_s(self, rows: int) -> float:
        model, kernels, tp = self._target.model, self._target.kernels, self._target.tp
        hidden, vocab = model.hidden, model.vocab
        return (
            kernels.gemm_s(rows, hidden, hidden // tp)
            + kernels.gemm_s(rows, hidden, -(-vocab // tp))
            + kernels.sampling_s(rows, vocab)
        )
