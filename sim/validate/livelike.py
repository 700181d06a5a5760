"""Live seconds for batches that no live run had: a model's prices, corrected by what live steps of their size took.

So the simulator can decide for itself and still go at the live run's pace: what is off then comes from its decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.cost.step import Constant, StepCost, Term, advanced, shape_context, shape_tokens
from sim.engine.batch import Shape
from sim.validate.steps import kind_of
from traces.late import pd

Key = tuple[str | int, ...]
LEAST = 5
"""A correction rests on at least so many steps, else on those of a coarser size."""


def sizes(shape: Shape) -> Iterator[Key]:
    """What a step is like, from the finest to "a step": kind, and powers of two of tokens and of context."""
    kind, tokens, context = kind_of(shape), shape_tokens(shape), shape_context(shape)
    yield kind, tokens.bit_length(), context.bit_length()
    yield kind, tokens.bit_length()
    yield (kind,)
    yield ()


@dataclass(frozen=True, slots=True)
class Corrections:
    """By size of step: the measured device seconds over the predicted ones, and host seconds to add."""

    device: Mapping[Key, float]
    host_s: Mapping[Key, float]

    @classmethod
    def of(cls, shapes: Sequence[Shape], rows: pd.DataFrame) -> Corrections:
        """From `sim.validate.steps.step_rows` and the shapes of the same steps; steps of a kind may be few."""
        sums: dict[Key, np.ndarray] = {}
        names = ["device_s", "predicted_device_s", "host_s", "predicted_host_s"]
        for shape, seconds in zip(shapes, rows[names].to_numpy(np.float64), strict=True):
            row = np.append(seconds, 1.0)
            for key in sizes(shape):
                sums[key] = sums[key] + row if key in sums else row
        enough = {key: total.tolist() for key, total in sums.items() if total[4] >= LEAST or not key}
        device = {key: total[0] / total[1] if total[1] > 0 else 1.0 for key, total in enough.items()}
        return cls(device, {key: (total[2] - total[3]) / total[4] for key, total in enough.items()})


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A `StepCost` that hands on what another says; those derived from it change some of that."""

    inner: StepCost

    @property
    def needs_longest(self) -> bool:
        return bool(getattr(self.inner, "needs_longest", False))

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        return self.inner.span_s(shape, repeats)

    def explain(self, shape: Shape) -> dict[str, Term]:
        return self.inner.explain(shape)

    def describe(self) -> list[Constant]:
        return self.inner.describe()


@dataclass(frozen=True, slots=True)
class LiveLike(Adjusted):
    """A cost model at the pace of live steps.

    Args:
        device: whether the device's seconds are corrected; the host's always are.
    """

    corrections: Corrections
    device: bool = True

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        device, host_s = self.inner.span_s(shape, repeats)
        host_s = max(0.0, host_s + _correction(self.corrections.host_s, shape))
        if not self.device:
            return device, host_s
        known = self.corrections.device
        return [step_s * _correction(known, advanced(shape, step)) for step, step_s in enumerate(device)], host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """The parts of `span_s` as one term each."""
        device, host_s = self.span_s(shape, 1)
        return {"device": Term(device[0], "measured"), "host": Term(host_s, "measured", on_host=True)}


def _correction(known: Mapping[Key, float], shape: Shape) -> float:
    return next(known[key] for key in sizes(shape) if key in known)
