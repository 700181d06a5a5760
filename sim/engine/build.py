"""Which build of the engine runs: the files themselves, or what mypyc made of them (`setup.py`)."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

PURE, COMPILED = "pure Python", "compiled"


def build() -> str:
    """`COMPILED` or `PURE`; nothing of the engine is imported."""
    found = find_spec("sim.engine.engine")
    origin = found.origin if found is not None else None
    return COMPILED if (origin or "").endswith(tuple(EXTENSION_SUFFIXES)) else PURE
