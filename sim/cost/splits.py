"""What a decode batch of unequal contexts takes beyond an equal one, by how the kernel cuts rows for the processors.

A kernel that shares all tokens out evenly takes no longer. FlashAttention-2 (`csrc/flash_attn/flash_api.cpp`,
`num_splits_heuristic`) cuts each row into equally many parts, one part where rows and KV heads alone nearly fill the
chip: then programs are as long as their rows, and while the longest end, most processors idle.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Any

import numpy as np

from sim.cost.tables import Floats
from sim.engine.lockstep import Lengths

FLASH_ATTENTION_2 = "flash-attention-2"
RULES = (FLASH_ATTENTION_2,)
"""Kernels whose rule is known."""
SATURATING = 2.5
"""Programs that the processors hold at once, over those that are enough for all of the memory's rate. Found by this
project as what explains the uneven batches of two tables best (LLMServingSim's skew.csv, RTX 4090 and RTX PRO 6000,
327 batches each: mean errors 3.6 and 2.5 %, where equal rows of the same mean are 5.2 and 3.3 % off); no served run."""
_NEARLY_FULL, _GOOD_ENOUGH, _MOST_PARTS = 0.8, 0.85, 128
_LAST = 0.5
"""Programs that run still where the last one is taken to end: half of one, since they are counted as a mean."""
_ROUNDED = 1.0 + 1e-9
"""More than rounding makes of what is at most as great."""
_KEY_BYTES = 32_768
"""Of keys in one step of a program's loop: 256 tokens of 64 values of 16 bits, 128 of 128, 64 of 256."""


@lru_cache(maxsize=65_536)
def parts(programs: int, processors: int, blocks: int) -> int:
    """Parts of each row of `blocks` blocks of keys, `programs` rows times KV heads: FlashAttention-2's own heuristic.

    The least number whose last wave of programs is filled to `_GOOD_ENOUGH` of the best that any number reaches, two
    programs counted for each processor.
    """
    places = 2 * processors
    if programs >= _NEARLY_FULL * places:
        return 1
    filled = {}
    for count in range(1, min(_MOST_PARTS, places, blocks) + 1):
        if count == 1 or -(-blocks // count) != -(-blocks // (count - 1)):
            waves = programs * count / places
            filled[count] = waves / -(-programs * count // places)
    best = max(filled.values())
    return next(count for count, share in filled.items() if share >= _GOOD_ENOUGH * best)


class Cut:
    """How FlashAttention-2 cuts `rows` decode rows of `heads` KV heads on so many processors.

    `most_blocks` are the blocks of the longest context that a CUDA graph was captured for, whatever it replays; 0 where
    each launch is cut by the longest context of its own, of `keys` tokens a block.
    """

    __slots__ = ("_captured", "heads", "keys", "knee", "most_blocks", "processors", "rows")

    def __init__(self, rows: int, heads: int, processors: int, keys: int, most_blocks: int = 0) -> None:
        self.rows = rows
        self.heads = heads
        self.processors = processors
        self.keys = keys
        self.most_blocks = most_blocks
        self.knee = processors / SATURATING
        """Programs that saturate the memory."""
        self._captured = parts(rows * heads, processors, most_blocks) if most_blocks else 0

    def parts(self, longest: int) -> int:
        """Parts of each row where the longest has so many tokens."""
        return self._captured or parts(self.rows * self.heads, self.processors, max(-(-longest // self.keys), 1))

    def idle_tokens(self, lengths: Lengths, step: int) -> float:
        """What the memory could have read of one row's tokens, all heads, while it waited for the longest rows;
        `lengths` are those of a span's first step, here of its step number `step`.

        Of the programs that run when none is left to start, rows have a share by their length and each is at a random
        place, so that N(y) = slots x sum of max(x - y, 0) / sum of x have more than y of their tokens to go. While
        fewer run than saturate the memory (K), it idles: the integral of K - N(y) over y, down to where half a program
        runs.
        """
        return self.idle_each(lengths, step, step + 1)[0]

    def idle_each(self, lengths: Lengths, first: int, end: int) -> list[float]:
        """The same of the steps of a span from `first` to before `end`, each to the bit what it is by itself.

        Counted from the longest row's end on, how far the others lie behind stays the same in all steps: N falls to K
        among the first so many rows, and to a half among fewer; while these stay the same ones, so do the constants of
        fixed + rate x sum of x - part / sum of x, which the integral is.
        """
        longest_rows, longest_tokens = lengths[0], lengths[1]
        longest, most = longest_tokens / longest_rows, -(-longest_tokens // longest_rows)
        last = end - 1
        if first < last and not self.most_blocks and not self._same_cut(most, first, last):
            return self._one_by_one(lengths, first, end)
        cut, knee, heads = self.parts(most + first), self.knee, self.heads
        slots = min(self.processors, self.rows * heads * cut)
        if knee <= _LAST:
            return [0.0] * (end - first)
        count, total = sum(lengths[::2]), sum(lengths[1::2])
        begins, ends = total + first * count, total + last * count
        saturated, saturated_last = knee / slots * begins, knee / slots * ends
        ended, ended_last = _LAST / slots * begins, _LAST / slots * ends
        members, behind, square = float(longest_rows), 0.0, 0.0
        high_members = high_mean = high_spread = 0.0
        gap, rows, at, known = 0.0, 0, 2, len(lengths)
        while True:
            reach = inf
            if at < known:
                rows = lengths[at]
                gap = rows * longest - lengths[at + 1]
                reach = members * (gap / rows) - behind
            if not high_members and ended <= reach:
                high_members, high_mean = members, behind / members
                high_spread = square - behind * high_mean
                if ended_last > reach:
                    return self._one_by_one(lengths, first, end)
            if saturated <= reach:
                if saturated_last > reach:
                    return self._one_by_one(lengths, first, end)
                break
            members += rows
            behind += gap
            square += gap * gap / rows
            at += 2
        share = cut * heads
        rising = _LAST * (knee - 0.5 * _LAST) / high_members
        if slots < knee:
            # No program is left to wait for: the memory idles from the start.
            idle_tokens = []
            for step in range(first, end):
                most_tokens, sums = longest + step, total + count * step
                read = 0.5 * (square - high_spread) / sums + most_tokens * (1.0 - 0.5 * members * most_tokens / sums)
                idle = knee * (most_tokens - high_mean) - slots * read - rising / slots * sums
                idle_tokens.append(idle / share if idle > 0.0 else 0.0)
            return idle_tokens
        low_mean = behind / members
        fixed, rate = knee * (low_mean - high_mean), (0.5 * knee * knee / members - rising) / slots
        part = 0.5 * slots * (square - behind * low_mean - high_spread)
        return [
            idle / share if (idle := fixed + rate * sums - part / sums) > 0.0 else 0.0
            for sums in range(begins, ends + 1, count)
        ]

    def most_idle(self) -> tuple[float, float]:
        """What `idle_tokens` are no more than, whatever the rows: for each token that the longest has beyond the mean,
        and for each token of the mean; endless where the parts depend on the longest.

        Of rows of one mean N(y) is least while they are alike: slots x (1 - y / mean), which is K where y is mean x
        (1 - K / slots). From there to the mean half of K idles at most, and all of it to the longest row's end.
        """
        if not self.most_blocks:
            return inf, 0.0
        heads, number, knee = self.heads, self.parts(0), self.knee
        slots = min(self.processors, self.rows * heads * number)
        alike = 0.5 * knee * knee / slots if slots > knee else knee - 0.5 * slots
        return knee / (number * heads), alike / (number * heads)

    def _same_cut(self, longest: int, first: int, last: int) -> bool:
        return -(-(longest + first) // self.keys) == -(-(longest + last) // self.keys)

    def _one_by_one(self, lengths: Lengths, first: int, end: int) -> list[float]:
        return [self.idle_tokens(lengths, step) for step in range(first, end)]


class Tail:
    """The least that uneven rows take: `floor_s`, and `token_s` for each token that is read or could have been.

    No more than `_beyond_s` for each token that the longest has beyond the mean, and `_mean_s` for each of the mean,
    come on top of what rows that are alike take.
    """

    __slots__ = ("_beyond_s", "_mean_s", "cut", "floor_s", "token_s")

    def __init__(self, floor_s: float, token_s: float, cut: Cut) -> None:
        self.floor_s = floor_s
        self.token_s = token_s
        self.cut = cut
        beyond, mean = cut.most_idle()
        self._beyond_s = token_s * beyond * _ROUNDED
        self._mean_s = token_s * mean * _ROUNDED

    def is_hidden(self, context: int, rows: int, longest: int, steps: int, first_s: float, last_s: float) -> bool:
        """Whether so many more steps than one take no longer than with rows that are alike, which take `first_s` in the
        first and `last_s` in the last one, and between them what lies straight between: as the most that uneven ones
        may take.
        """
        token_s, mean_s = self.token_s, self._mean_s
        mean = context / rows
        fixed_s, each_s = self.floor_s + self._beyond_s * (longest - mean), token_s * rows + mean_s
        return fixed_s + each_s * mean < first_s and fixed_s + each_s * (mean + steps) < last_s

    def at(self, context: int, lengths: Lengths, step: int) -> float:
        """Seconds where contexts add up to `context`."""
        return self.floor_s + self.token_s * (context + self.cut.idle_tokens(lengths, step))

    def along(self, contexts: Floats, lengths: Lengths, steps: Any) -> Floats:
        """The same of several steps that follow one another, bit for bit."""
        idle: Floats = np.array(self.cut.idle_each(lengths, int(steps[0]), int(steps[-1]) + 1))
        return self.floor_s + self.token_s * (contexts + idle)


def keys_of(head_dim: int) -> int:
    """Tokens of a block of keys."""
    return _KEY_BYTES // (2 * (64 if head_dim <= 64 else 128 if head_dim <= 128 else 256))


def two_lengths(rows: int, context: int, longest: int) -> Lengths:
    """Of rows of which only the sum and the longest are known: that one, and all others alike."""
    if rows == 1 or longest >= context:
        return rows, context
    return 1, longest, rows - 1, context - longest
