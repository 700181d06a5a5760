"""A cost model fitted to the steps of the very run that it is to explain, where no calibrated profile is given.

Every other step is fitted and the rest predicted, so that what drifts in a run drifts in both halves. It says how well
the form of such a model can do here and now, and nothing about another day or machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sim.batch import Shape
from sim.cost.step import Constant, Term, advanced, shape_tokens

Floats = npt.NDArray[np.float64]
NAME = "fitted-here"
TERMS = ("step", "tokens", "prefill slices", "prefill attention", "decode rows", "decode attention", "verify rows",
         "verify attention", "proposals")  # fmt: skip
"""Seconds for: a step; a token computed; a prefill slice; a (new token, attended token) pair of a prefill slice; a
decode row; a KV token that a decode row attends; a row that verifies drafts; a pair of it; a draft proposed."""


def features(shape: Shape) -> tuple[float, ...]:
    """How many of each of `TERMS` a step has."""
    attended = shape.decode_window_context or shape.decode_context
    prefill = len(shape.prefills), _pairs(shape.prefills)
    verify = len(shape.verifies), _pairs(shape.verifies)
    return 1.0, shape_tokens(shape), *prefill, shape.decodes, attended, *verify, shape.proposals[1]


def _pairs(slices: Sequence[tuple[int, int]]) -> float:
    return sum(new * past + new * (new + 1) / 2 for new, past in slices)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Seconds that are sums of `TERMS`, none of which is negative; a `StepCost`."""

    device: tuple[float, ...]
    host: tuple[float, ...]

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`; the host's seconds are those of the first step."""
        device = [_priced(self.device, features(advanced(shape, step))) for step in range(repeats)]
        return device, _priced(self.host, features(shape))

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        counts = features(shape)
        device = {
            name: Term(each * count, "interpolated")
            for name, each, count in zip(TERMS, self.device, counts, strict=True)
        }
        return device | {"host": Term(_priced(self.host, counts), "interpolated", on_host=True)}

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        pairs = [("device", self.device), ("host", self.host)]
        return [
            Constant(f"{where}: {name}", value, f"{NAME}: non-negative least squares over every other live step")
            for where, values in pairs
            for name, value in zip(TERMS, values, strict=True)
        ]


def fit(shapes: Sequence[Shape], device_s: Floats, host_s: Floats) -> Fitted:
    """Fit to every other step, the first included (see `is_calibration`)."""
    chosen = is_calibration(len(shapes))
    rows = np.array([features(shape) for shape in shapes])[chosen]
    return Fitted(_solved(rows, device_s[chosen]), _solved(rows, host_s[chosen]))


def is_calibration(steps: int) -> npt.NDArray[np.bool_]:
    """[steps] which steps the model is fitted to; the others are predicted."""
    mask: npt.NDArray[np.bool_] = np.arange(steps) % 2 == 0
    return mask


def _solved(rows: Floats, seconds: Floats) -> tuple[float, ...]:
    """Non-negative least squares, once plain and once with steps weighted by one over the root of what that predicts.

    Weights from the measured seconds themselves would favour whatever was fast by chance.
    """
    scale = np.maximum(rows.max(axis=0), 1.0)
    found, _ = nnls(rows / scale, seconds)
    weights = 1 / np.sqrt(np.maximum(rows / scale @ found, 1e-9))
    found, _ = nnls(rows / scale * weights[:, None], seconds * weights)
    return tuple((found / scale).tolist())


def _priced(each: Sequence[float], counts: Sequence[float]) -> float:
    return math.fsum(one * count for one, count in zip(each, counts, strict=True))
