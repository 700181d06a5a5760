"""What can be named on the command line, one row each. It loads nothing but names and facts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import traces
from sim import catalog
from sim.cost import profile
from sim.load import load, names
from traces import formats

Row = dict[str, Any]


def rows_of(kind: str) -> list[Row]:
    """The rows of `sim list KIND`."""
    return _KINDS[kind]()


def _parts(package: str) -> list[Row]:
    rows = []
    for name in names(package):
        target = load(package, name)
        parameters = [
            f"{one.name}={one.default!r}"
            for one in inspect.signature(target).parameters.values()
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        about = inspect.getmodule(target).__doc__ or ""
        rows.append({"name": name, "parameters": ", ".join(parameters), "about": about.partition("\n")[0]})
    return rows


def _profiles() -> list[Row]:
    """The roofline, and the profiles that come along; one of a folder's own is named by its path."""
    about = "data-sheet rates and named efficiencies of any GPU; nothing measured"
    rows: list[Row] = [{"name": "roofline", "kind": "roofline", "gpu": "any", "date": "", "about": about}]
    for name in profile.names():
        meta = profile.find(name).meta
        rows.append({"name": name, "kind": meta.kind, "gpu": meta.gpu, "date": meta.date, "about": meta.device})
    return rows


def _traces() -> list[Row]:
    return [{"name": name, "bytes": path.stat().st_size} for name, path in traces.bundled().items()]


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "policies": lambda: _parts("sim.policies"),
    "allocators": lambda: _parts("sim.allocators"),
    "routers": lambda: _parts("sim.routers"),
    "models": catalog.model_rows,
    "gpus": catalog.gpu_rows,
    "profiles": _profiles,
    "traces": _traces,
    "formats": lambda: [{"name": name} for name in formats.names()],
}
