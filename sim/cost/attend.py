"""Seconds of attention in one layer: a launch over prompts, and one over decode rows. It knows no model and no GPU.

A launch is thread blocks over the SMs. Prefill: a block makes a tile of queries of one head (or, packed, of all query
heads that share a KV head) and visits every key before its last query; all blocks share the SMs, and no launch ends
before its longest block. Decode: a block reads the keys and values of one sequence and KV head; while there are few,
their start hides in the launch's own latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sim.cost.gemm import overlapped
from sim.cost.interpolation import ROOFLINE, Line, Price

Slices = tuple[tuple[int, int], ...]


class Slicing(Protocol):
    """The price of prompts in one layer."""

    def launch_s(self, slices: Slices, span: int = 0) -> float:
        """Seconds of one launch over slices of (new, past) tokens, none attending more than `span` keys (0: all), its
        floor not included."""
        ...


@dataclass(frozen=True, slots=True)
class Affine:
    """Attention of a slice: pair_s * (query, key) pairs + token_s * new + context_s * (past + new) + past_s *
    past seconds."""

    pair_s: float
    token_s: float
    context_s: float
    past_s: float = 0.0

    def slice_s(self, new: float, past: float) -> float:
        """Seconds for `new` tokens on top of `past` ones; token i attends `past + i` keys (causal)."""
        seconds = new * (self.pair_s * (past + 0.5 * (new + 1)) + self.token_s) + self.context_s * (past + new)
        return seconds + self.past_s * past if self.past_s else seconds

    def window_s(self, new: int, past: int, span: int) -> float:
        """The same where no token attends more than `span` keys, itself included."""
        if past + new <= span:
            return self.slice_s(new, past)
        context = min(past, span)
        pairs = attended(past + new, span) - attended(past, span)
        return self.pair_s * pairs + self.token_s * new + self.context_s * (context + new) + self.past_s * context

    def launch_s(self, slices: Slices, span: int = 0) -> float:
        """As `Slicing.launch_s`: slices add up."""
        return sum(self.window_s(new, past, span) if span else self.slice_s(new, past) for new, past in slices)


def attended(tokens: int, span: int) -> int:
    """(query, key) pairs of the first `tokens` tokens of a sequence, each attending at most `span` keys."""
    growing = min(tokens, span)
    return growing * (growing + 1) // 2 + (tokens - growing) * span


@dataclass(frozen=True, slots=True)
class Prefill:
    """Blocks of `tile_tokens` new tokens each, `tile_heads` of them side by side, on `sms` SMs.

    `key_s` are a block's seconds for each key that it visits, `tile_s` those to start and end it; `chain` is the share
    of its time that the longest block needs at least, since few blocks leave its SM to it alone. `token_s` (a new
    token) and `context_s` (a key) are memory traffic, of which and of arithmetic the shorter hides but for `exposed`. A
    single new token is a decode row where that is less (`row_s`, and `row_context_s` a key): engines launch it as one;
    a launch of nothing else takes `rows_floor_s` more than one of prompts.
    """

    key_s: float
    tile_s: float
    tile_tokens: float
    tile_heads: int
    sms: int
    chain: float
    token_s: float
    context_s: float
    exposed: float
    row_s: float
    row_context_s: float
    rows_floor_s: float

    def launch_s(self, slices: Slices, span: int = 0, times: float = 1.0) -> float:
        """As `Slicing.launch_s`, each of the slices `times` times in the launch."""
        if not slices or min(slices)[0] > 1:
            return self._blocks_s(slices, span, times)
        prompts = [one for one in slices if one[0] > 1]
        singles = [one for one in slices if one[0] == 1]
        keys = sum(min(past + 1, span) if span else past + 1 for _, past in singles)
        rows_s = times * (self.row_s * len(singles) + self.row_context_s * keys)
        rows_s += self._blocks_s(prompts, span, times) if prompts else self.rows_floor_s
        return min(rows_s, self._blocks_s(slices, span, times))

    def _blocks_s(self, slices: Sequence[tuple[int, int]], span: int, times: float = 1.0) -> float:
        """All slices as tiles of queries."""
        blocks_s = longest_s = moved_s = 0.0
        for new, past in slices:
            context = min(past, span) if span else past
            keys = new + context
            if span and past + new > span:
                mean = (attended(past + new, span) - attended(past, span)) / new
                last = span
            else:
                mean, last = past + 0.5 * (new + 1), keys
            tiles = -(-new // self.tile_tokens) * self.tile_heads
            half = 0.5 * (new if new < self.tile_tokens else self.tile_tokens)
            block_s = (mean + half) * self.key_s + self.tile_s
            here_s, chain_s = times * tiles * block_s / self.sms, self.chain * last * self.key_s + self.tile_s
            io_s = times * (self.token_s * new + self.context_s * keys)
            blocks_s += here_s
            longest_s = chain_s if chain_s > longest_s else longest_s
            moved_s += io_s
        return overlapped(blocks_s if blocks_s > longest_s else longest_s, moved_s, self.exposed)


@dataclass(frozen=True, slots=True)
class Decode:
    """Rows in one layer: `row_s` of SM time a row beyond the first `idle_rows`, `token_s` a token of context.

    A launch takes `floor_s`; `swap_s` more where several rows have their query heads brought together by KV head, and
    up to `split_s` more for a second pass that joins the parts of a row's context, of which there are the more the
    longer it is, up to `split_tokens`.
    """

    floor_s: float
    row_s: float
    token_s: float
    exposed: float = 1.0
    idle_rows: float = 0.0
    swap_s: float = 0.0
    split_s: float = 0.0
    split_tokens: float = 1.0

    def seconds(self, rows: float, context: float) -> float:
        """One launch over `rows` rows of `context` tokens together."""
        if rows <= 0:
            return 0.0
        start_s = self.row_s * max(0.0, rows - self.idle_rows)
        fixed_s = self.floor_s + (self.swap_s if rows > 1 else 0.0)
        split_s = self.split_s * min(1.0, context / (rows * self.split_tokens))
        return fixed_s + split_s + overlapped(start_s, self.token_s * context, self.exposed)

    def line(self, rows: int, layers: int, rank: int = ROOFLINE) -> Line:
        """Seconds in `layers` layers by the sum of contexts."""
        start_s = self.row_s * max(0.0, rows - self.idle_rows)
        knots = {0.0}
        if self.exposed < 1.0 and start_s:
            knots.add(start_s / self.token_s)
        if self.split_s:
            knots.add(self.split_tokens * rows)
        points = [(knot, Price(layers * self.seconds(rows, knot), rank)) for knot in sorted(knots)]
        return Line(points, layers * self.token_s, beyond=rank)
