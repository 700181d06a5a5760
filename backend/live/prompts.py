"""The token ids that a live run feeds: those of the trace, or seeded ones where a trace tells lengths only.

Equal prefix ids give equal tokens, so that a prefix hit finds the very keys and values that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from backend.pair.corpus import document, sources
from sim.engine.request import Request, SharedPrefix, index_of

Tokens = npt.NDArray[np.int64]
_UNIT, _REQUEST = 1, 2
_PASSAGE_TOKENS = 128
"""Mean length of what a shared prefix takes from one place of the text, unless its units are longer."""
_NEWLINE = ord("\n")


class Prompts:
    """Prompts by request.

    Args:
        vocab: ids lie in 0 .. vocab - 1; those of a trace with a larger vocabulary are taken modulo.
        seed: of the ids that the trace does not tell.
        given: for each request, in the order of their ids, the prompt's token ids; None where a trace has none.
        text: tokens of a byte-level text to cut passages from; None draws every id by itself.
    """

    def __init__(
        self, vocab: int, seed: int, given: Sequence[npt.ArrayLike] | None = None, text: Tokens | None = None
    ) -> None:
        self._vocab = vocab
        self._seed = seed
        self._given = given
        self._text = text
        self._lines = np.zeros(0, np.int64) if text is None else np.flatnonzero(text == _NEWLINE) + 1

    def tokens(self, req: Request) -> Tokens:
        """[prompt_tokens] ids."""
        index = index_of(req.id)
        parts: list[Tokens] = []
        if self._given is not None:
            parts = [np.asarray(self._given[index], np.int64)[: req.prompt_tokens] % self._vocab]
        elif req.prefix is not None:
            parts = self._units(req.prefix, req.prompt_tokens)
        known = sum(map(len, parts))
        if known < req.prompt_tokens:
            rng, count = self._rng(_REQUEST, index), req.prompt_tokens - known
            parts.append(self._random(rng, count) if self._text is None else self._cut(self._line(rng), count))
        return np.concatenate(parts)[: req.prompt_tokens]

    def _units(self, prefix: SharedPrefix, count: int) -> list[Tokens]:
        """The prefix's units that begin within `count` tokens.

        Text goes on from unit to unit. Now and then it goes on elsewhere, at a place that the unit's id says, so that
        prompts whose ids part say different things a little later.
        """
        unit = prefix.unit_tokens
        names = prefix.ids[: -(-count // unit)]
        if self._text is None:
            return [self._random(self._rng(_UNIT, name), unit) for name in names]
        parts, place = [], 0
        for at, name in enumerate(names):
            rng = self._rng(_UNIT, name)
            if at == 0 or rng.random() * _PASSAGE_TOKENS < unit:
                place = self._line(rng)
            parts.append(self._cut(place, unit))
            place += unit
        return parts

    def _rng(self, kind: int, name: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, kind, name])

    def _random(self, rng: np.random.Generator, count: int) -> Tokens:
        return rng.integers(self._vocab, size=count)

    def _line(self, rng: np.random.Generator) -> int:
        """Where a line of the text starts, all alike."""
        return int(rng.choice(self._lines))

    def _cut(self, place: int, count: int) -> Tokens:
        """So many tokens from there, around the text's end."""
        assert self._text is not None
        return self._text.take(np.arange(place, place + count), mode="wrap")


def held_out_text() -> Tokens:
    """The tokens of the standard library's files that the shipped pair was not trained on.

    Raises InputError where this Python has no sources of its library.
    """
    return np.concatenate([document(text) for text in sources(held=True).values()])
