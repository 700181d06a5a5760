"""The same numbers as in the sentences of a summary: `sim.results.units`, where they are written."""

from __future__ import annotations

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
]
