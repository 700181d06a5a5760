"""The same numbers as in the sentences of a summary (`sim.results.units`), and the one unit of a time on a page."""

from __future__ import annotations

import math
from typing import NamedTuple

from sim.results.units import (
    NONE,
    count,
    dollars,
    energy,
    limit,
    number,
    percent,
    row_unit,
    seconds,
    signed,
    size_of,
)

__all__ = [
    "NONE",
    "TimeUnit",
    "count",
    "dollars",
    "energy",
    "limit",
    "number",
    "percent",
    "row_unit",
    "seconds",
    "signed",
    "size_of",
    "time_unit",
]


class TimeUnit(NamedTuple):
    """The unit in which a page writes one quantity of time, whatever the size of the single value."""

    name: str
    factor: float
    """Of it in a second."""

    def words(self, value_s: float | None) -> str:
        """A value with the unit, to three digits: `0.932 s`; a dash for none."""
        if value_s is None or math.isnan(value_s):
            return NONE
        return f"{number(value_s * self.factor)} {self.name}"

    def limit(self, value_s: float) -> str:
        """A limit as the user gave it, without padding digits: `0.5 s`."""
        return f"{value_s * self.factor:,.6f}".rstrip("0").rstrip(".") + f" {self.name}"


def time_unit(typical_s: float | None) -> TimeUnit:
    """The unit that `seconds` would write `typical_s` in, up to seconds; ms where nothing is known."""
    if not typical_s or math.isnan(typical_s):
        return TimeUnit("ms", 1e3)
    for below, factor, name in ((0.001, 1e6, "us"), (1.0, 1e3, "ms")):
        if typical_s < below:
            return TimeUnit(name, factor)
    return TimeUnit("s", 1.0)
