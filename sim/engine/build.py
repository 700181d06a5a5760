"""Which build of the engine runs: the files themselves, or what mypyc made of them (`setup.py`)."""

from __future__ import annotations

from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

PURE, COMPILED = "pure Python", "compiled"
GROUP = "foretoken__mypyc"
"""The library that has all compiled modules' code (`setup.py`); what stands beside their files only opens it."""
_INSTALLING_S = 60.0
"""An installer writes files in any order, within a minute."""


@cache
def build() -> str:
    """`COMPILED` or `PURE`; nothing of the engine is imported.

    What was compiled before a file was edited says so, and of which.
    """
    found = find_spec("sim.engine.engine")
    origin = found.origin if found is not None else None
    if origin is None or not origin.endswith(tuple(EXTENSION_SUFFIXES)):
        return PURE
    library = find_spec(GROUP)
    edited = None
    if library is not None and library.origin is not None:
        edited = edited_since(Path(library.origin), Path(origin).parents[1])
    return COMPILED if edited is None else f"{COMPILED}, before {edited} was edited"


def edited_since(library: Path, package: Path) -> str | None:
    """The first file in a package, of those that are compiled, that is younger than the library; None: none is."""
    built_s = library.stat().st_mtime + _INSTALLING_S
    for opener in sorted(package.rglob(f"*{EXTENSION_SUFFIXES[0]}")):
        file = opener.with_name(opener.name.removesuffix(EXTENSION_SUFFIXES[0]) + ".py")
        if file.exists() and file.stat().st_mtime > built_s:
            return file.relative_to(package.parent).as_posix()
    return None
