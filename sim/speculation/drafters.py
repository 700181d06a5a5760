"""Who drafts, how many, and at what price. It schedules nothing (`sim.engine.drafting` does)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mypy_extensions import mypyc_attr

from sim.cost.ranks import RankedRoofline
from sim.cost.roofline import SOURCE, Roofline
from sim.cost.step import Constant, Term, course_s
from sim.engine.batch import Courses, Shape, prompts_alone
from sim.engine.request import Request
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from sim.specs.tree import DraftTree
from sim.speculation.settings import SpeculationSettings
from traces.schema import InputError


@mypyc_attr(allow_interpreted_subclasses=True)
class FixedDrafts:
    """Always `k` drafts."""

    steady = True

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
        if target.blocks:
            raise InputError(
                f"speculation.drafter {settings.drafter!r} is one more layer of the target's, and those of "
                f"{target.name!r} are of several kinds; choose ngram, or draft-model with speculation.draft_model"
            )
        name = f"{settings.drafter} of {target.name}"
        layer = replace(target, name=name, layers=1, leading_dense_layers=0, sliding_window_tokens=0, sliding_layers=0)
        return cls(settings.drafter, layer, settings.shape)

    @property
    def has_cache(self) -> bool:
        """Does it keep KV of its own?"""
        return self.kind in ("draft-model", "eagle")

    def weight_bytes(self, parallel: Parallel) -> int:
        """Bytes of its weights on each of `tp` GPUs; both heads share the target's embedding, EAGLE its LM head too."""
        model = self.model
        if model is None:
            return 0
        if self.kind == "draft-model":
            return model.gpu_weight_bytes(model.together(parallel))
        if self.kind == "medusa":
            return self.k * (model.hidden**2 + model.hidden * model.vocab) // parallel.tp * model.element_bytes
        return model.last_layers_weight_bytes(1, parallel) + 2 * model.hidden**2 // parallel.tp * model.element_bytes

    def kv_bytes_per_token(self, parallel: Parallel) -> int:
        """Bytes of its own KV of a token on each of `tp` GPUs."""
        model = self.model
        return model.gpu_kv_bytes_per_token(model.together(parallel)) if model is not None and self.has_cache else 0


class Drafted:
    """The price of a step that verifies drafts and then proposes new ones: the target's, and the drafter's on top.

    A drafter with a cache prefills what the target prefills, and takes as many steps, one after the other, as the
    longest proposal has levels; all proposing rows are counted in each, and of a tree, all drafts of the level before.
    Medusa's heads are one layer and one vocabulary matrix each. Of data-parallel ranks that share a drafter's experts,
    each drafts beside the proposing rows of all (`Shape.drafting_ranks`), and its prefill beside all that the step
    computes, as EAGLE's first pass reads it. Not priced: what the host does for drafts (looking up
    n-grams, preparing the drafter's steps), and moving the KV of a tree's path together (neither was measured).

    Args:
        target: of a model that shares experts between ranks a `RankedRoofline`.
        draft_cost: of the drafter's own model; None without one.
    """

    def __init__(
        self, target: Roofline | RankedRoofline, drafter: Drafter, draft_cost: Roofline | RankedRoofline | None
    ) -> None:
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

    def course_s(self, courses: Courses) -> tuple[list[float], float]:
        """As `sim.cost.step.course_s`."""
        device, host_s = course_s(self._target, courses)
        rows, _, most = courses.first.proposals
        draft = self._draft_by_levels()
        if draft is None:
            drafting = [sum(self._drafting(courses.shape(step)).values()) for step in range(len(device))]
            return [one + more if more else one for one, more in zip(device, drafting, strict=True)], host_s
        sizes = (1, *self._drafter.tree.sizes)[: self._drafter.tree.levels(most)]
        tokens = courses.tokens
        contexts = [past + tokens for past in courses.pasts[: len(device)]]
        each_s = _levels_s(draft, rows, sizes, contexts)
        for step in range(len(each_s)):
            each_s[step] = device[step] + each_s[step]
        return each_s, host_s

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
                terms["draft prefill"] = self._draft.span_s(prompts_alone(shape), 1)[0][0]
            if rows:
                sizes = (1, *self._drafter.tree.sizes)[:steps]
                draft = self._draft_by_levels()
                if draft is None:
                    terms["drafting"] = sum([self._step_s(rows, size, shape, at) for at, size in enumerate(sizes, 1)])
                else:
                    terms["drafting"] = _levels_s(draft, rows, sizes, [shape.proposal_context])[0]
        return terms

    def _draft_by_levels(self) -> Roofline | None:
        """The drafter's prices where levels of one size may be priced together: without ranks beside, or a window."""
        draft = self._draft
        return None if draft is None or isinstance(draft, RankedRoofline) or draft.window else draft

    def _draft_beside(self, shape: Shape, size: int) -> Roofline | None:
        """The drafter's prices where each proposing row, of all ranks, continues `size` drafts."""
        draft = self._draft
        if not isinstance(draft, RankedRoofline):
            return draft
        most, total = shape.drafting_ranks
        return draft.beside((most * size, total * size))

    def _step_s(self, rows: int, size: int, shape: Shape, at: int) -> float:
        """Seconds of the drafter's `at`-th step, which continues `size` drafts of each row."""
        draft = self._draft_beside(shape, size)
        assert draft is not None
        context = (shape.proposal_context + rows * at) * size
        if not draft.window:
            return draft.decode_steps_s(rows * size, [context])[0]
        within = min(context, rows * size * draft.window.span_tokens)
        return draft.span_s(Shape((), rows * size, context, 0, 0, within), 1)[0][0]

    def _head_s(self, rows: int) -> float:
        target = self._target.alike if isinstance(self._target, RankedRoofline) else self._target
        model, kernels, tp = target.model, target.kernels, target.parallel.tp
        hidden, vocab = model.hidden, model.vocab
        return (
            kernels.gemm_s(rows, hidden, hidden // tp)
            + kernels.gemm_s(rows, hidden, -(-vocab // tp))
            + kernels.sampling_s(rows, vocab)
        )


def _levels_s(draft: Roofline, rows: int, sizes: tuple[int, ...], contexts: list[int]) -> list[float]:
    """Of each step, whose rows have one of `contexts` together, which rise, the drafter's seconds: those of all levels,
    of which it continues `sizes` of each row, one after the other. Levels of one size are priced together."""
    count, levels, first = len(contexts), len(sizes), 0
    each_s: list[float] = []
    while first < levels:
        size, at = sizes[first], first
        grown: list[int] = []
        while at < levels and sizes[at] == size:
            at += 1
            more = rows * at
            grown += [(context + more) * size for context in contexts]
        seconds, first, level = draft.decode_steps_s(rows * size, grown), at, 0
        if not each_s:
            each_s, level = seconds[:count], count
        while level < len(seconds):
            for step in range(count):
                each_s[step] = each_s[step] + seconds[level + step]  # compiled, += would add objects
            level += count
    return each_s
