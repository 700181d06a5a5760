"""How often live drafts were right and look-ups found some: given to the prediction, since no cost model knows them.

So a validation of drafting judges seconds and batches. How well rates hold for other texts is another question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sim.serving.executor import Accepting, Executor
from sim.speculation.acceptance import Acceptance
from sim.validate.record import Record


class Drafts(NamedTuple):
    """By position in the draft: `right`, given that all before it were; `found`, where a draft was wanted."""

    right: tuple[float, ...]
    found: tuple[float, ...]

    def accepting(self, inner: Executor, seed: int) -> Executor:
        """Draws drafts at these rates beside the seconds of another executor."""
        draw = Acceptance(self.right, seed, found=self.found)
        return Accepting(inner, draw, draw.found)


def measured(records: Sequence[Record]) -> Drafts | None:
    """What live runs had; None where nothing was drafted."""
    verified, proposed = list(_verified(records)), list(_proposed(records))
    most = max((wanted for wanted, _ in proposed), default=0)
    if not most or not verified:
        return None
    right = tuple(
        _share([right > place for drafts, right in verified if drafts > place and right >= place])
        for place in range(most)
    )
    found = tuple(_share([has > place for wanted, has in proposed if wanted > place]) for place in range(most))
    return Drafts(right, found)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _verified(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """(drafts, of these right) of every request in every step that verified some."""
    for record in records:
        for decision in record.decisions:
            for (_, drafts, _), right in zip(decision.sampled, decision.accepted, strict=False):
                if drafts:
                    yield drafts, right


def _proposed(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """(drafts wanted next, of these found) of every request that went on."""
    for record in records:
        for decision, result in zip(record.decisions, record.results, strict=True):
            wanted = [drafts for _, _, drafts in decision.sampled]
            has = wanted if result.proposed is None else result.proposed
            for (sequence, _, drafts), found in zip(decision.sampled, has, strict=True):
                if sequence not in decision.finished:
                    yield drafts, found
