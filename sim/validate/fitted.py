"""A cost model fitted to the steps of the very run that it is to explain, where no calibrated profile is given.

Every other step is fitted and the rest predicted, so that what drifts in a run drifts in both halves. It says how well
the form of such a model can do here and now, and nothing about another day or machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sim.cost.step import Constant, Term, advanced, shape_tokens
from sim.engine.batch import Shape

Floats = npt.NDArray[np.float64]
NAME = "fitted-here"
WHOLE = "device"
"""Name of the device's only term where operations were not timed."""
COUNTS = ("step", "tokens", "prefill slices", "prefill attention", "decode rows", "decode attention",
          "padded decode attention", "verify rows", "verify attention", "proposals")  # fmt: skip
"""Seconds for: a step; a token computed; a prefill slice; a (new token, attended token) pair of a prefill slice; a
decode row; a KV token that a decode row attends; the same with all rows as long as the longest, which is what kernels
that pad compute; a row that verifies drafts; a pair of it; a draft proposed."""


def features(shape: Shape) -> tuple[float, ...]:
    attended = shape.decode_window_context or shape.decode_context
    padded = max(attended, shape.decodes * shape.decode_longest) if attended == shape.decode_context else attended
    prefill = len(shape.prefills), _pairs(shape.prefills)
    rows = sum(several for _, several, _, _ in shape.verifies)
    pairs = sum(new * past + several * new * (new + 1) / 2 for new, several, past, _ in shape.verifies)
    return 1.0, shape_tokens(shape), *prefill, shape.decodes, attended, padded, rows, pairs, shape.proposals[1]


def _pairs(slices: Sequence[tuple[int, int]]) -> float:
    return sum(new * past + new * (new + 1) / 2 for new, past in slices)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Seconds that are sums over `COUNTS`, none of which is negative; a `StepCost`.

    Args:
        device: by term, the seconds of each of `COUNTS`.
        host: the same of the host.
    """

    device: Mapping[str, tuple[float, ...]]
    host: tuple[float, ...]
    needs_longest: ClassVar[bool] = True

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`; the host's seconds are those of the first step."""
        device = []
        for step in range(repeats):
            counts = features(advanced(shape, step))
            device.append(math.fsum(_priced(each, counts) for each in self.device.values()))
        return device, _priced(self.host, features(shape))

    def explain(self, shape: Shape) -> dict[str, Term]:
        counts = features(shape)
        device = {name: Term(_priced(each, counts), "interpolated") for name, each in self.device.items()}
        return device | {"host": Term(_priced(self.host, counts), "interpolated", on_host=True)}

    def describe(self) -> list[Constant]:
        return [
            Constant(f"{where}: {name}", value, f"{NAME}: non-negative least squares over every other live step")
            for where, each in (*self.device.items(), ("host", self.host))
            for name, value in zip(COUNTS, each, strict=True)
        ]


def fit(shapes: Sequence[Shape], device_s: Mapping[str, Floats], host_s: Floats) -> Fitted:
    """Fit each term by itself to every other step, the first included (see `is_calibration`)."""
    chosen = is_calibration(len(shapes))
    rows = np.array([features(shape) for shape in shapes])[chosen]
    return Fitted(
        {name: _solved(rows, spent[chosen]) for name, spent in device_s.items()}, _solved(rows, host_s[chosen])
    )


def is_calibration(steps: int) -> npt.NDArray[np.bool_]:
    """[steps] which steps the model is fitted to; the others are predicted."""
    mask: npt.NDArray[np.bool_] = np.arange(steps) % 2 == 0
    return mask


def _solved(rows: Floats, seconds: Floats) -> tuple[float, ...]:
    """Non-negative least squares, once plain and once with steps weighted by one over the root of what that predicts.

    Weights from the measured seconds themselves would favour whatever was fast by chance.
    """
    scale = np.maximum(rows.max(axis=0), 1.0)
    solution, _ = nnls(rows / scale, seconds)
    weights = 1 / np.sqrt(np.maximum(rows / scale @ solution, 1e-9))
    solution, _ = nnls(rows / scale * weights[:, None], seconds * weights)
    return tuple((solution / scale).tolist())


def _priced(each: Sequence[float], counts: Sequence[float]) -> float:
    return math.fsum(price * count for price, count in zip(each, counts, strict=True))
