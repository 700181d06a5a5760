"""What the operations of a live step took, where they run in this very thread, and which prices they compare with.

On a GPU operations run when the host has long gone on, and decode steps are replayed as graphs: there a step has its
device's and its host's seconds only, and `calibrate` says what single operations take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.cost.step import StepCost
from sim.cost.terms import ATTENTION, ELEMENTWISE, PRODUCTS, kind_of
from sim.engine.batch import Batch, Outcome, Shape
from sim.serving.executor import Executor

TERMS = ("matrices", "attention", "elementwise", "rest")
"""The `rest` of a step's device seconds is what no other term has: drawing, moving blocks, and what lies between."""
OPERATIONS = {
    "linear": "matrices",
    "prefill_attention": "attention",
    "decode_attention": "attention",
    "rms_norm": "elementwise",
    "head_norm": "elementwise",
    "silu_and_mul": "elementwise",
    "rope_cache_write": "elementwise",
}
"""Operation of a model (`backend.ops.Ops`) to its term."""
OF_KIND = {PRODUCTS: "matrices", ATTENTION: "attention", ELEMENTWISE: "elementwise"}
NOT_TIMED = ("embedding", "sampling")
"""Elementwise, but no operation of `OPERATIONS`."""


def term_of(name: str) -> str:
    """The one of `TERMS` that a price of `StepCost.explain` belongs to."""
    return "rest" if name in NOT_TIMED else OF_KIND.get(kind_of(name), "rest")


def by_term(cost: StepCost, shape: Shape) -> dict[str, float]:
    seconds = dict.fromkeys(TERMS, 0.0)
    for name, price in cost.explain(shape).items():
        if not price.on_host:
            seconds[term_of(name)] += price.seconds
    return seconds


class Stopwatch:
    """A model's operations, each timed; what is no operation of `OPERATIONS` is handed through."""

    def __init__(self, operations: Any) -> None:
        self._operations = operations
        self._spent_s: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._operations, name)
        if name in OPERATIONS:
            operation = self._timed(operation, OPERATIONS[name])
            setattr(self, name, operation)  # the next look-up finds it at once
        return operation

    def _timed(self, call: Callable[..., Any], term: str) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            begun_s = time.perf_counter()
            result = call(*args, **more)
            self._spent_s[term] = self._spent_s.get(term, 0.0) + time.perf_counter() - begun_s
            return result

        return timed

    def lap(self) -> dict[str, float]:
        """Seconds by term since the last call."""
        spent_s, self._spent_s = self._spent_s, {}
        return spent_s


class Watched:
    """Runs batches, keeps what it was asked and answered, step by step, and what stopped it if it failed.

    Args:
        model: the one that `inner` runs, with its operations in `ops`, where they run in this thread; else None.
    """

    def __init__(self, inner: Executor, model: Any = None) -> None:
        self._inner = inner
        self._watch: Stopwatch | None = None
        if model is not None:
            self._watch = model.ops = Stopwatch(model.ops)
        self.shapes: list[Shape] = []
        self.results: list[Outcome] = []
        self.terms: list[Mapping[str, float]] = []
        """Device seconds of each step by `TERMS`; empty where no operation is timed."""
        self.failure: Exception | None = None

    def execute(self, batch: Batch) -> Outcome:
        if self._watch is not None:
            self._watch.lap()
        try:
            result = self._inner.execute(batch)
        except Exception as error:
            self.failure = error
            raise
        self.shapes.append(batch.shape)
        self.results.append(result)
        if self._watch is not None:
            spent_s = self._watch.lap()
            spent_s["rest"] = max(0.0, result.device_s[0] - sum(spent_s.values()))
            # As they will be kept: so a run and its record say the same.
            self.terms.append({term: float(np.float32(seconds)) for term, seconds in spent_s.items()})
        return result
