"""Which GPU holds which experts, what the busiest of them computes, and how many GPUs a token is sent to.

A copy halves its expert's load, and a balancer places all of them again (as DeepSeek's EPLB, greedily: the largest to
the GPU with the least). It knows no seconds and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from sim.cost.experts import BALANCED, UNIFORM, ExpertLoad, Routing, even_load, load_of
from sim.specs.parallel import Parallel


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """`experts` of a layer, of which a token visits `visited`, over the GPUs of one stage of `parallel`.

    `held` is how many are on the GPU with the most, copies included.
    """

    experts: int
    visited: int
    parallel: Parallel
    held: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", self.parallel.held(self.experts))

    def load(self, routing: Routing, tokens: float) -> ExpertLoad:
        """What `tokens` tokens of all ranks ask of the GPU whose experts get most of them.

        Where every token goes at random (`uniform`), that is the expected largest of as many sums as there are GPUs, by
        the normal distribution; of told loads it is the largest expectation. Experts that are not alike are placed in
        their order (as vLLM does) where shares are told, and dealt out by rank where they follow a power law.
        """
        if self.parallel.ep == 1:
            return routing.load(tokens, self.experts, self.visited)
        return _busiest(self, routing, tokens)

    def excess(self, routing: Routing, tokens: float) -> float:
        """Rows of the busiest GPU over those of the mean one."""
        rows = tokens * self.visited / self.parallel.ep
        return max(1.0, self.load(routing, tokens).rows / rows) if rows else 1.0

    def reached(self, groups: int) -> float:
        """Of `groups` even groups of GPUs those that hold an expert which a token visits, its choices random."""
        own = self.experts / groups
        missed = math.prod(
            max(0.0, self.experts - own - drawn) / (self.experts - drawn) for drawn in range(self.visited)
        )
        return groups * (1.0 - missed)

    def busiest_rows(self, tokens: float) -> float:
        """Of a multivariate hypergeometric draw for each token: its mean, and the largest of normal deviations."""
        gpus, experts, visited = self.parallel.ep, self.experts, self.visited
        share = 1.0 / gpus
        mean = tokens * visited * share
        spread = (experts - visited) / (experts - 1) if experts > 1 else 0.0
        deviation = math.sqrt(tokens * visited * share * (1.0 - share) * spread)
        return min(mean + largest_of(gpus) * deviation, tokens * min(visited, self.held))

    def slots(self, loads: list[float], chances: list[float], *, in_order: bool) -> list[list[tuple[float, float]]]:
        """(rows, chance of being touched) of what each GPU holds."""
        gpus, copies = self.parallel.ep, self.parallel.redundant
        each = list(zip(loads, chances, strict=True))
        if copies:
            order = sorted(each, reverse=True)
            halves = [(load / 2, min(chance, load / 2)) for load, chance in order[:copies] for _ in range(2)]
            return _greedily([*halves, *order[copies:]], gpus, self.held)
        if not in_order:
            return [each[gpu::gpus] for gpu in range(gpus)]
        ends = [round(self.experts * at / gpus) for at in range(gpus + 1)]
        return [each[start:end] for start, end in pairwise(ends)]


@lru_cache(4096)
def _busiest(placement: ExpertPlacement, routing: Routing, tokens: float) -> ExpertLoad:
    experts, visited, held = placement.experts, placement.visited, placement.held
    if routing.text == BALANCED:
        even = math.ceil(tokens * visited / placement.parallel.ep)
        return even_load(even, min(held, even))
    if routing.text == UNIFORM:
        own = placement.busiest_rows(tokens)
        return even_load(own, _touched(own, held))
    loads, chances = routing.spread(tokens, experts, visited)
    slots = placement.slots(loads, chances, in_order=bool(routing.shares))
    busiest = max(slots, key=lambda each: math.fsum(load for load, _ in each))
    return load_of([load for load, _ in busiest], [chance for _, chance in busiest])


def _greedily(slots: list[tuple[float, float]], gpus: int, most: int) -> list[list[tuple[float, float]]]:
    """The largest first, each to the GPU with the least that has room."""
    held: list[list[tuple[float, float]]] = [[] for _ in range(gpus)]
    heap = [(0.0, gpu) for gpu in range(gpus)]
    heapify(heap)
    for slot in sorted(slots, reverse=True):
        load, gpu = heappop(heap)
        held[gpu].append(slot)
        if len(held[gpu]) < most:
            heappush(heap, (load + slot[0], gpu))
    return held


def _touched(rows: float, held: int) -> float:
    """Of `held` experts those that so many rows, spread at random, touch."""
    return min(rows, held * (1.0 - (1.0 - 1.0 / held) ** rows)) if held > 1 else min(rows, 1.0)


@lru_cache(256)
def largest_of(count: int) -> float:
    """Expected largest of `count` standard normal numbers."""
    step = 1e-3
    at = np.arange(step / 2, 10.0, step)
    above = 0.5 * (1.0 + np.vectorize(math.erf)(at / math.sqrt(2.0)))
    # The integral of 1 - F^n above 0, less that of F^n below, where F(-x) is 1 - F(x).
    return float(np.sum(1.0 - above**count - (1.0 - above) ** count) * step)
