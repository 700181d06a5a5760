"""What the seconds of steps are made of: arithmetic, memory traffic, links, the host. It prices nothing itself.

Which kinds of terms (`sim.cost.terms`) belong to which resource is a table; products of matrices are split by asking
the cost model how much of their time goes with the number of tokens (that is arithmetic) and how much stays (that is
reading the weights).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sim.cost.step import StepCost, shape_rows, shape_tokens
from sim.cost.terms import ADAPTERS, COMMUNICATION, DRAFTING, ELEMENTWISE, LAUNCHING, MOVES, PRODUCTS, kind_of
from sim.cost.terms import HOST as ON_HOST
from sim.engine.batch import Shape
from sim.results.percentiles import Floats, Ints
from sim.results.terms import StepTerms
from traces.table import Columns

COMPUTE, MEMORY, LINK, HOST, DEVICE = RESOURCES = ("compute", "memory bandwidth", "link", "host", "device")
"""`DEVICE` is what no term tells apart: the measured seconds of a live run, or what was fitted to whole steps."""
MOST_SPANS = 512
OF_TERM = {
    "prefill attention": COMPUTE,
    "mixed attention": COMPUTE,
    "draft prefill": COMPUTE,
    "decode attention": MEMORY,
    "verify attention": MEMORY,
    "block copies": MEMORY,
}
OF_KIND = {
    ELEMENTWISE: MEMORY,
    ADAPTERS: MEMORY,
    DRAFTING: MEMORY,
    COMMUNICATION: LINK,
    MOVES: LINK,
    LAUNCHING: HOST,
    ON_HOST: HOST,
}
_OF_ROWS = ("LM head",)


def resource_of(term: str) -> str:
    """What a term that is no product takes."""
    return OF_TERM.get(term) or OF_KIND.get(kind_of(term), DEVICE)


@dataclass(frozen=True, slots=True)
class Resources:
    """Seconds of spans by resource, in the order of `RESOURCES`: (n, 5), and their rows of the steps table."""

    rows: Ints
    seconds: Floats

    @classmethod
    def predicted(cls, terms: StepTerms) -> Resources:
        """Of up to `MOST_SPANS` of the recorded spans, and of `terms.most`, each explained at its middle step."""
        every = -(-len(terms.spans) // min(MOST_SPANS, terms.most)) or 1
        chosen = terms.spans[::every]
        arithmetic = Arithmetic.of(terms.cost)
        seconds = np.zeros((len(chosen), len(RESOURCES)))
        for place, (_, shape, repeats) in enumerate(chosen):
            row = dict.fromkeys(RESOURCES, 0.0)
            for name, exposed_s in terms.of(place * every).items():
                for resource, part_s in arithmetic.split(name, shape, exposed_s).items():
                    row[resource] += part_s * repeats
            seconds[place] = list(row.values())
        return cls(np.fromiter((row for row, _, _ in chosen), np.int64, len(chosen)), seconds)

    @classmethod
    def measured(cls, steps: Columns) -> Resources:
        """Of every span of a live run: what the device took, and what the host did."""
        seconds = np.zeros((len(steps), len(RESOURCES)))
        seconds[:, RESOURCES.index(DEVICE)] = steps["device_s"]
        seconds[:, RESOURCES.index(HOST)] = steps["host_s"]
        return cls(np.arange(len(steps), dtype=np.int64), seconds)

    def shares(self, chosen: npt.NDArray[np.bool_] | None = None) -> dict[str, float]:
        """The share of each resource in these spans' seconds (all of them by default); empty where there are none."""
        totals = (self.seconds if chosen is None else self.seconds[chosen]).sum(axis=0)
        whole = float(totals.sum())
        return {name: float(part) / whole for name, part in zip(RESOURCES, totals, strict=True)} if whole > 0 else {}


_lately: deque[Arithmetic] = deque(maxlen=4)


class Arithmetic:
    """The share of products that goes with the number of tokens, by size, each size priced once."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._seconds: dict[int, dict[str, float]] = {}
        self.share: Callable[[str, int], float] = lru_cache(maxsize=None)(self._share)

    @classmethod
    def of(cls, cost: StepCost) -> Arithmetic:
        """That of this very cost model, if it was asked for lately: the runs of a plan share one."""
        for known in _lately:
            if known._cost is cost:
                return known
        _lately.append(cls(cost))
        return _lately[-1]

    def split(self, name: str, shape: Shape, seconds: float) -> Mapping[str, float]:
        """Seconds of a term of a step by resource."""
        if kind_of(name) != PRODUCTS:
            return {resource_of(name): seconds}
        share = self.share(name, shape_rows(shape) if name in _OF_ROWS else shape_tokens(shape))
        return {COMPUTE: share * seconds, MEMORY: (1.0 - share) * seconds}

    def _share(self, name: str, size: int) -> float:
        """0 where half of so many tokens take as long as all, 1 where half of the time."""
        whole, half = (self._term_s(name, tokens) for tokens in (size, max(1, size // 2)))
        return min(1.0, max(0.0, 2.0 * (whole - half) / whole)) if whole > 0 else 0.0

    def _term_s(self, name: str, tokens: int) -> float:
        """Seconds of the term in so many one-token rows."""
        if tokens not in self._seconds:
            shape = Shape(decodes=tokens, decode_context=tokens, decode_window_context=tokens, decode_longest=1)
            counted_s = getattr(self._cost, "counted_s", None)
            self._seconds[tokens] = (
                {name: term.seconds for name, term in self._cost.explain(shape).items()}
                if counted_s is None
                else counted_s(shape)
            )
        return self._seconds[tokens].get(name, 0.0)
