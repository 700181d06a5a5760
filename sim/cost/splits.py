"""What a decode batch of unequal contexts takes beyond an equal one, by how the kernel cuts rows for the processors.

A kernel that shares all tokens out evenly takes no longer. FlashAttention-2 (`csrc/flash_attn/flash_api.cpp`,
`num_splits_heuristic`) cuts each row into equally many parts, one part where rows and KV heads alone nearly fill the
chip: then programs are as long as their rows, and while the longest end, most processors idle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

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


class Cut(NamedTuple):
    """How FlashAttention-2 cuts `rows` decode rows of `heads` KV heads on so many processors.

    `most_blocks` are the blocks of the longest context that a CUDA graph was captured for, whatever it replays; 0 where
    each launch is cut by the longest context of its own, of `keys` tokens a block.
    """

    rows: int
    heads: int
    processors: int
    keys: int
    most_blocks: int = 0

    def parts(self, longest: int) -> int:
        """Parts of each row where the longest has so many tokens."""
        blocks = self.most_blocks or -(-longest // self.keys)
        return parts(self.rows * self.heads, self.processors, max(blocks, 1))

    def idle_tokens(self, lengths: Lengths, step: int) -> float:
        """What the memory could have read of one row's tokens, all heads, while it waited for the longest rows;
        `lengths` are those of a span's first step, here of its step number `step`.

        Of the programs that run when none is left to start, rows have a share by their length and each is at a random
        place, so that N(y) = slots x sum of max(x - y, 0) / sum of x have more than y of their tokens to go. While
        fewer run than saturate the memory (K), it idles: the integral of K - N(y) over y, by pieces between lengths.
        """
        return self.idle_each(lengths, range(step, step + 1))[0]

    def idle_each(self, lengths: Lengths, steps: range) -> list[float]:
        """The same of several steps of a span."""
        knee, heads, captured = self.processors / SATURATING, self.heads, self.most_blocks > 0
        first_rows, first_tokens = lengths[0]
        # As floats, in which whole numbers are exact: each step would make them so.
        groups = []
        count, together = 0.0, 0.0
        for (rows, tokens), after in zip(lengths, (*lengths[1:], (0, 0)), strict=True):
            count += rows
            together += tokens
            groups.append((count, together, float(after[0]), float(after[1])))
        idle_tokens = []
        cut = slots = 0
        for step in steps:
            total = together + step * count
            if not (cut and captured):
                cut = self.parts(-(-(first_tokens + step * first_rows) // first_rows))
                slots = min(self.processors, self.rows * heads * cut)
            saturated, ended, share = knee / slots * total, _LAST / slots * total, slots / total
            idle, grown, at = 0.0, (first_tokens + step * first_rows) / first_rows, float(step)
            for members, summed, next_rows, next_tokens in groups:
                above = summed + at * members
                below = (next_tokens + at * next_rows) / next_rows if next_rows else 0.0
                full, last = (above - saturated) / members, (above - ended) / members
                low, high = full if full > below else below, last if last < grown else grown
                if high > low:
                    idle += (high - low) * (knee - share * (above - members * (low + high) / 2.0))
                if full >= below:
                    break
                grown = below
            idle_tokens.append(idle / cut / heads)
        return idle_tokens

    def along(self, lengths: Lengths, steps: Any) -> Floats:
        """The same of several steps of a span, bit for bit."""
        total = sum(tokens for _, tokens in lengths) + steps * sum(rows for rows, _ in lengths)
        first_rows, first_tokens = lengths[0]
        longest = -(-(first_tokens + steps * first_rows) // first_rows)
        if self.most_blocks:
            cut = np.full(len(steps), self.parts(1))
        else:
            cut = np.array([self.parts(one) for one in longest.tolist()])
        slots = np.minimum(self.processors, self.rows * self.heads * cut)
        knee = self.processors / SATURATING
        saturated, ended = knee / slots * total, _LAST / slots * total
        idle, count, above = np.zeros(len(steps)), 0, 0 * steps
        last = len(lengths) - 1
        for at, (rows, tokens) in enumerate(lengths):
            grown = tokens + steps * rows
            count += rows
            above = above + grown
            below = (lengths[at + 1][1] + steps * lengths[at + 1][0]) / lengths[at + 1][0] if at < last else 0.0
            low, high = (
                np.maximum(below, (above - saturated) / count),
                np.minimum(grown / rows, (above - ended) / count),
            )
            more = (high - low) * (knee - slots / total * (above - count * (low + high) / 2))
            idle = idle + np.where(high > low, more, 0.0)
        tokens_each: Floats = idle / cut / self.heads
        return tokens_each


class Tail(NamedTuple):
    """The least that uneven rows take: `floor_s`, and `token_s` for each token that is read or could have been."""

    floor_s: float
    token_s: float
    cut: Cut

    def at(self, context: int, lengths: Lengths, step: int) -> float:
        """Seconds where contexts add up to `context`."""
        return self.floor_s + self.token_s * (context + self.cut.idle_tokens(lengths, step))

    def along(self, contexts: Floats, lengths: Lengths, steps: Any) -> Floats:
        """The same of several steps, bit for bit."""
        return self.floor_s + self.token_s * (contexts + self.cut.along(lengths, steps))


def keys_of(head_dim: int) -> int:
    """Tokens of a block of keys."""
    return _KEY_BYTES // (2 * (64 if head_dim <= 64 else 128 if head_dim <= 128 else 256))


def two_lengths(rows: int, context: int, longest: int) -> Lengths:
    """Of rows of which only the sum and the longest are known: that one, and all others alike."""
    if rows == 1 or longest >= context:
        return ((rows, context),)
    return ((1, longest), (rows - 1, context - longest))
