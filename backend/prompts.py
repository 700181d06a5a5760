"""The token ids that a live run feeds: those of the trace, or seeded ones where a trace tells lengths only.

Equal prefix ids give equal tokens, so that a prefix hit finds the very keys and values that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.request import Request, index_of

Tokens = npt.NDArray[np.int64]
_UNIT, _REQUEST = 1, 2


class Prompts:
    """Prompts by request.

    Args:
        vocab: ids lie in 0 .. vocab - 1; those of a trace with a larger vocabulary are taken modulo.
        seed: of the ids that the trace does not tell.
        given: for each request, in the order of their ids, the prompt's token ids; None where a trace has none.
    """

    def __init__(self, vocab: int, seed: int, given: Sequence[npt.ArrayLike] | None = None) -> None:
        self._vocab = vocab
        self._seed = seed
        self._given = given

    def tokens(self, req: Request) -> Tokens:
        """[prompt_tokens] ids."""
        index = index_of(req.id)
        parts: list[Tokens] = []
        if self._given is not None:
            parts = [np.asarray(self._given[index], np.int64)[: req.prompt_tokens] % self._vocab]
        elif req.prefix is not None:
            unit = req.prefix.unit_tokens
            units = -(-req.prompt_tokens // unit)
            parts = [self._draw(_UNIT, name, unit) for name in req.prefix.ids[:units]]
        known = sum(map(len, parts))
        if known < req.prompt_tokens:
            parts.append(self._draw(_REQUEST, index, req.prompt_tokens - known))
        return np.concatenate(parts)[: req.prompt_tokens]

    def _draw(self, kind: int, name: int, count: int) -> Tokens:
        return np.random.default_rng([self._seed, kind, name]).integers(self._vocab, size=count)
