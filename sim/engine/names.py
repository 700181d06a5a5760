"""Names of a sequence's blocks: each tells a block's content and all before it, so that equal names mean equal KV.

They are numbers that are made where one is asked for. Compared are the ids that they are made of, of which there may be
one for many blocks.
"""

from __future__ import annotations

import numpy as np

INDEX_BITS = 24
NAME_BITS = 128
"""Above every name of a block: ids of units are below 2 ** 64, and places are told at most twice, in 24 bits each."""
_MOST_ID = 1 << (62 - INDEX_BITS)
# From so many blocks on, numpy names them faster than a list comprehension, where the names are machine words.
_MANY = 48


class Names:
    """Names of blocks in token order, which are told by what a trace says of a prompt, and then by whose they are.

    Args:
        rule: (tokens of a block, tokens of a unit, tokens from a block's end to the one whose unit tells it, 0 for that
            behind its last; number of the adapter).
        ids: of the units.
        told: blocks that they tell.
        prompt: blocks of the prompt: those of them that no id tells are named after the request, `owner`, and those
            that follow after the sequence, `sequence`.
    """

    __slots__ = ("_listed", "ids", "owner", "prompt", "rule", "sequence", "told")

    def __init__(
        self,
        rule: tuple[int, int, int, int],
        ids: list[int],
        told: int,
        owner: int,
        sequence: int,
        prompt: int,
    ) -> None:
        self.rule = rule
        self.ids = ids
        self.told = told
        self.owner = owner
        self.sequence = sequence
        self.prompt = prompt
        self._listed: list[int] | None = None

    def of(self, at: int) -> int:
        """The name of a block."""
        if at < self.told:
            size, unit, behind, adapter = self.rule
            id = self.ids[((at + 1) * size - behind) // unit]
            return (id << INDEX_BITS) + at + (adapter << NAME_BITS if adapter else 0)
        return -1 - ((self.owner if at < self.prompt else self.sequence) << INDEX_BITS) - at

    def between(self, first: int, stop: int) -> list[int]:
        """The names of the blocks from `first` to before `stop`."""
        if self._listed is None:
            self._listed = self._list()
        names = self._listed[first:stop]
        for id, start, end in (
            (self.owner, max(first, self.told), max(self.told, min(stop, self.prompt))),
            (self.sequence, max(first, self.told, min(stop, self.prompt)), stop),
        ):
            own = -1 - (id << INDEX_BITS)
            names += range(own - start, own - end, -1)
        return names

    def _list(self) -> list[int]:
        """Of all blocks that ids tell."""
        size, unit, behind, adapter = self.rule
        ids, blocks = self.ids, self.told
        if adapter or blocks < _MANY or not 0 <= min(ids) <= max(ids) < _MOST_ID:
            return [self.of(at) for at in range(blocks)]
        at = np.arange(blocks)
        units = ((at + 1) * size - behind) // unit
        names: list[int] = ((np.fromiter(ids, np.int64, len(ids))[units] << INDEX_BITS) + at).tolist()
        return names

    def alike(self, other: Names, at: int, most: int) -> int:
        """How many of the blocks from number `at` on have one name here and there, at least one and at most `most`.

        The first has.
        """
        last = min(at + most, self.told, other.told)
        if self.rule != other.rule or last <= at:
            return self._alike_by_name(other, at, most)
        size, unit, behind, _ = self.rule
        high = (last * size - behind) // unit
        mine, theirs = self.ids, other.ids
        if mine[high] == theirs[high]:
            told = last - at
            if told == most or self.of(last) != other.of(last):
                return told
            return told + self._alike_by_name(other, last, most - told)
        low = ((at + 1) * size - behind) // unit
        while high - low > 1:
            middle = (low + high) // 2
            if mine[middle] == theirs[middle]:
                low = middle
            else:
                high = middle
        # All blocks before the first that is told by unit number `high`.
        return (high * unit + behind - 1) // size - at

    def _alike_by_name(self, other: Names, at: int, most: int) -> int:
        if self.of(at + most - 1) == other.of(at + most - 1):
            return most
        low, high = 1, most - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.of(at + middle - 1) == other.of(at + middle - 1):
                low = middle
            else:
                high = middle - 1
        return low
