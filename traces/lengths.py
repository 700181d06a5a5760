"""Distributions of token counts and of pauses. Each is frozen data, checked when made, and draws from a given rng."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from traces.schema import MAX_TOKENS, InputError, Trace

Counts = npt.NDArray[np.int64]
KNOWN = ("fixed", "lognormal", "empirical", "quantiles")
Floats = npt.NDArray[np.float64]


class Lengths(Protocol):
    """Token counts, each at least 1."""

    def draw(self, count: int, rng: np.random.Generator) -> Counts: ...


class Pairs(Protocol):
    def draw(self, count: int, rng: np.random.Generator) -> tuple[Counts, Counts]: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    tokens: int

    def __post_init__(self) -> None:
        _within("fixed: tokens", self.tokens, 1, MAX_TOKENS)

    def draw(self, count: int, rng: np.random.Generator) -> Counts:
        return np.full(count, self.tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp(normal) with this median and this sigma of the logarithm, rounded, clipped to [least, most]."""

    median: float
    sigma: float
    least: int = 1
    most: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _within("lognormal: median", self.median, 1e-9, MAX_TOKENS)
        _within("lognormal: sigma", self.sigma, 0, 20)
        _within("lognormal: least", self.least, 1, MAX_TOKENS)
        _within("lognormal: most", self.most, self.least, MAX_TOKENS)

    def draw(self, count: int, rng: np.random.Generator) -> Counts:
        exact = np.exp(math.log(self.median) + self.sigma * rng.standard_normal(count))
        return np.clip(np.rint(exact), self.least, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Values with their probabilities, which are scaled to sum to 1."""

    values: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.weights):
            raise InputError("empirical: give as many weights as values, at least one")
        for value in self.values:
            _within("empirical: value", value, 1, MAX_TOKENS)
        for weight in self.weights:
            _within("empirical: weight", weight, 0, math.inf)
        if not 0 < sum(self.weights) < math.inf:
            raise InputError("empirical: the weights must have a sum above 0")

    def draw(self, count: int, rng: np.random.Generator) -> Counts:
        steps = np.cumsum(self.weights)
        found = np.searchsorted(steps, rng.random(count) * steps[-1], side="right")
        drawn: Counts = np.asarray(self.values, dtype=np.int64)[np.minimum(found, len(steps) - 1)]
        return drawn


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A table of quantiles (level in [0, 1] -> tokens) with straight lines between them, rounded."""

    table: Mapping[float, float]
    scale: float = 1.0

    def __post_init__(self) -> None:
        levels, values = list(self.table), list(self.table.values())
        if len(levels) < 2 or levels != sorted(levels) or values != sorted(values):
            raise InputError("quantiles: levels and values must rise, and be two at least")
        _within("quantiles: level", levels[0], 0, 1)
        _within("quantiles: level", levels[-1], 0, 1)
        _within("quantiles: value", values[0], 0, MAX_TOKENS)
        _within("quantiles: value", values[-1] * self.scale, 1, MAX_TOKENS)

    def at(self, level: Floats) -> Counts:
        exact = np.interp(level, list(self.table), list(self.table.values())) * self.scale
        return np.maximum(np.rint(exact), 1).astype(np.int64)

    def draw(self, count: int, rng: np.random.Generator) -> Counts:
        return self.at(rng.random(count))


@dataclass(frozen=True, slots=True)
class Independent:
    prompt: Lengths
    output: Lengths

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Counts, Counts]:
        return self.prompt.draw(count, rng), self.output.draw(count, rng)


@dataclass(frozen=True, slots=True)
class FromTrace:
    """Pairs of prompt and output drawn together from a trace, with replacement."""

    trace: Trace

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Counts, Counts]:
        rows = rng.integers(0, len(self.trace), count)
        requests = self.trace.requests
        return requests["prompt_tokens"].to_numpy()[rows], requests["output_tokens"].to_numpy()[rows]


def parse(text: str) -> Lengths:
    """A distribution from `fixed:128`, `lognormal:median=200,sigma=1,least=1,most=4096`, `empirical:16=0.5,64=0.5`
    (value=weight) or `quantiles:0=1,0.5=130,1=600` (level=value). Raises InputError.
    """
    name, _, rest = text.partition(":")
    if name not in KNOWN:
        raise InputError(f"unknown distribution {name!r}; known are {', '.join(KNOWN)}")
    if name == "fixed":
        return Fixed(_whole(rest, text))
    try:
        pairs = [(key.strip(), float(value)) for key, value in (part.split("=") for part in rest.split(","))]
        if name == "lognormal":
            return _lognormal(dict(pairs), text)
        if name == "empirical":
            return Empirical(tuple(_whole(key, text) for key, _ in pairs), tuple(weight for _, weight in pairs))
        return Quantiles({float(key): value for key, value in pairs})
    except ValueError:
        raise InputError(f"{text!r} cannot be read; after {name}: come pairs like a=1,b=2") from None


def _lognormal(given: dict[str, float], text: str) -> Lognormal:
    known = ("median", "sigma", "least", "most")
    if unknown := [key for key in given if key not in known]:
        raise InputError(f"{text!r}: unknown {unknown[0]!r}; known are {', '.join(known)}")
    if "median" not in given or "sigma" not in given:
        raise InputError(f"{text!r}: median and sigma are needed")
    least, most = given.get("least", 1.0), given.get("most", float(MAX_TOKENS))
    return Lognormal(given["median"], given["sigma"], _whole(f"{least:.17g}", text), _whole(f"{most:.17g}", text))


def _whole(given: str, text: str) -> int:
    try:
        return int(given)
    except ValueError:
        raise InputError(f"{text!r}: {given!r} is not a whole number") from None


def _within(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InputError(f"{what} is {value}; it must lie between {least:,} and {most:,}")
