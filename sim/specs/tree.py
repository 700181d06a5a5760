"""The shape of a tree of drafts: so many candidates for each next token. It knows no probability and no price."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from operator import mul

from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Every draft of a level has `widths[level]` candidates after it (Medusa, Cai et al. 2024, section 2.1.2).

    A chain is the tree whose widths are 1. Drafts are counted level by level, so that a budget cuts the last ones.
    """

    widths: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> DraftTree:
        """A tree from its widths, such as "3,2,1". Raises InputError."""
        try:
            widths = tuple(map(int, text.split(",")))
        except ValueError:
            widths = ()
        if not widths or min(widths) < 1:
            raise InputError(
                f"speculation.tree is {text!r}; expected candidates by level, each at least 1, such as 3,2,1"
            )
        return cls(widths)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Drafts of each level."""
        return _sizes(self.widths)

    @property
    def drafts(self) -> int:
        """Drafts of all levels."""
        return sum(self.sizes)

    def levels(self, drafts: int) -> int:
        """Levels that are whole among the first so many drafts; what is left of a cut level is verified in vain."""
        return bisect_right(_totals(self.widths), drafts)


@cache
def _sizes(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(widths, mul))


@cache
def _totals(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Drafts of each level and all before it."""
    return tuple(accumulate(_sizes(widths)))
