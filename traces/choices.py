"""The words that a reader and an edit know, and their bounds: what a setting may be, told without reading anything."""

from __future__ import annotations

from collections.abc import Mapping

UNITS: Mapping[str, tuple[str, float]] = {
    "s": ("seconds", 1.0),
    "ms": ("milliseconds", 1e3),
    "us": ("microseconds", 1e6),
    "ns": ("nanoseconds", 1e9),
}
"""Of times: what it is called, and how many there are in a second."""
TIME_UNITS = ("auto", *UNITS)
TURNS = ("auto", "whole", "new")
LARGEST_CV = 20.0
"""Of the gaps between arrivals; burstier ones are so uneven that a float cannot tell most of them from 0."""
