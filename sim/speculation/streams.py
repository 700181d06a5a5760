"""Random numbers of many requests, each with a generator of its own: numpy's, whose seeds are hashed many at a time.

To hash the seed of one alone takes longer than to draw all the numbers of a request.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

Words = npt.NDArray[np.uint32]
_TOGETHER = 256
_KEPT = 64
"""Of so many times so many numbers the hashes are kept."""
_WORD = 0xFFFFFFFF


class Streams:
    """A generator for each whole number, that of `numpy.random.default_rng([seed, purpose, number])`."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._words = [*_words_of(seed), *_words_of(purpose)]
        self._states = lru_cache(_KEPT)(self._hashed)

    def of(self, number: int) -> np.random.Generator:
        """The generator of a number, at its start."""
        # Its types know of one kind of seeds only.
        seed = cast("np.random.SeedSequence", _Hashed(self._states(number // _TOGETHER)[number % _TOGETHER]))
        return np.random.Generator(np.random.PCG64(seed))

    def _hashed(self, stretch: int) -> npt.NDArray[np.uint64]:
        """Of so many numbers, each one's state."""
        low, *high = _words_of(stretch * _TOGETHER)
        numbers = np.arange(low, low + _TOGETHER, dtype=np.uint32)
        before, behind = ([np.full_like(numbers, word) for word in words] for words in (self._words, high))
        return _states([*before, numbers, *behind])


class _Hashed(ISeedSequence):
    """A seed of which the generator's state is known."""

    def __init__(self, state: npt.NDArray[np.uint64]) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[np.uint64]:
        return self._state


def _words_of(number: int) -> list[int]:
    """Its 32 bits at a time, the lowest first."""
    words = [number & _WORD]
    while number := number >> 32:
        words.append(number & _WORD)
    return words


class _Hash:
    """Hashes one word after the other, each with another constant."""

    def __init__(self, constant: int, factor: int) -> None:
        self._constant, self._factor = constant, factor

    def __call__(self, words: Words) -> Words:
        words = words ^ np.uint32(self._constant)
        self._constant = self._constant * self._factor & _WORD
        words = words * np.uint32(self._constant)
        return words ^ words >> np.uint32(16)


def _states(entropy: list[Words]) -> npt.NDArray[np.uint64]:
    """`numpy.random.SeedSequence(words).generate_state(4, np.uint64)` of the words in each column of `entropy`.

    The hash is `seed_seq_fe128` of M. E. O'Neill's randutils, and numpy promises never to change it (NEP 19).
    """
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    nothing = np.zeros_like(entropy[0])
    pool = [hashed(words) for words in [*entropy, nothing, nothing, nothing][:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for words in entropy[4:]:
        pool = [_mixed(one, hashed(words)) for one in pool]
    told = _Hash(0x8B51F9DD, 0x58F38DED)
    return np.stack([told(words) for words in (*pool, *pool)], axis=1).view(np.uint64)


def _mixed(one: Words, other: Words) -> Words:
    both: Words = one * np.uint32(0xCA01F9DD) - other * np.uint32(0x4973F715)
    return both ^ both >> np.uint32(16)
