"""What a scenario says of drafts: the section `speculation`."""

from __future__ import annotations

from dataclasses import dataclass

from sim.specs.bounds import Bound
from sim.specs.settings import check, setting
from sim.specs.tree import DraftTree
from sim.speculation.rates import MOST_DRAFTS, acceptance_rates
from traces.schema import MAX_TOKENS, InputError

LOOKUP_TOKENS = 5


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Drafting, for the policy `speculative`.

    A draft model has a KV cache and a prefill of its own, and runs k times a step; "eagle" (EAGLE, MTP) is one layer of
    the target's shape, run k times, and "medusa" k heads on the target's last hidden state, run once.

    The tree "3,2,1" proposes 3 + 6 + 6 drafts, all verified in one step, of which a path of at most k = 3 is kept.

    Of `prompt_lookup_min` and `prompt_lookup_max`, as in vLLM, one alone counts for both, and without any it is 5.
    """

    drafter: str = setting(
        "ngram",
        "Who drafts: prompt lookup, a draft model, a layer or heads trained for the target.",
        choices=("ngram", "draft-model", "eagle", "medusa"),
    )
    k: int = setting(4, "Drafts proposed in each step; with speculation.adaptive the most.", Bound(1, 64))
    acceptance: float | str = setting(
        0.7,
        "Probability that a draft is right, given that all before it were: a number, several by position (0.8,0.7), "
        "or a JSON file with such a list or the summary.json of a run that drafted.",
        Bound(0.0, 1.0),
    )
    adaptive: bool = setting(False, "Propose as many drafts, up to k, as pay by the cost model.")
    draft_model: str = setting("", "Model of the drafter draft-model, named as model.")
    tree: str = setting("", "Candidates for each next token by level, for eagle and medusa: 3,2,1.")
    prompt_lookup_min: int = setting(
        0, "Tokens that a live ngram looks up, at least.", Bound(0, MAX_TOKENS, "as prompt_lookup_max")
    )
    prompt_lookup_max: int = setting(
        0, "Tokens that a live ngram looks up, at most.", Bound(0, MAX_TOKENS, "as prompt_lookup_min")
    )

    def __post_init__(self) -> None:
        check("speculation", self)
        if (self.drafter == "draft-model") != bool(self.draft_model):
            raise InputError(
                "speculation.draft_model names the model of the drafter draft-model"
                + ("; set it" if not self.draft_model else f", and speculation.drafter is {self.drafter!r}")
            )
        acceptance_rates(self.acceptance)
        self._check_lookup()
        if self.tree:
            self._check_tree()

    @property
    def lookup(self) -> tuple[int, int]:
        """Tokens that a look-up must find: at least, at most (vLLM, `SpeculativeConfig.__post_init__`)."""
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        return least or most or LOOKUP_TOKENS, most or least or LOOKUP_TOKENS

    def _check_lookup(self) -> None:
        given = (self.prompt_lookup_min, self.prompt_lookup_max)
        if any(given) and self.drafter != "ngram":
            raise InputError(f"speculation.prompt_lookup is for the drafter ngram, and it is {self.drafter!r}")
        if self.lookup[0] > self.lookup[1]:
            raise InputError(
                f"speculation.prompt_lookup_min is {given[0]} and prompt_lookup_max {given[1]}; "
                "expected at least 1 and no more than the other"
            )

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
