"""From a card's kernel tables to a file of constants for its roofline. It prints nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from calibrate.check import outliers
from calibrate.forms import TABLE_OF, Floats, fit_all
from calibrate.importers.build import Imported, import_profile
from sim import catalog
from sim.cost.efficiency import Efficiency
from sim.cost.profile import Profile
from sim.cost.tables import Table, Value
from sim.specs.gpu import GpuSpec
from traces.schema import InputError

SLOWER = 2.0
"""A row that takes so many times what its neighbours make of it is left out of a fit."""
_FIGURES = 4


@dataclass(frozen=True, slots=True)
class Made:
    """The file's content, what was left out of the tables and why, and relative errors by operation."""

    document: dict[str, object]
    left_out: tuple[str, ...]
    errors: Mapping[str, Floats]

    @property
    def text(self) -> str:
        """The file."""
        return re.sub(r"\[\s+(\d+),\s+([\d.e+-]+),\s+\]", r"[\1, \2]", tomli_w.dumps(self.document))


def fit_roofline(sources: list[Path], gpu_name: str, date: str) -> Made:
    """Constants by operation and the collectives, from files and folders that `calibrate import` reads.

    Raises:
        InputError: as of `import_profile`; tables that hold nothing that the roofline has constants for.
    """
    gpu = catalog.load_gpu(gpu_name)
    imported = import_profile(sources, gpu_name, exchanges=True)
    tables, slow = _without_slow(imported.profile)
    operations: dict[str, object] = {}
    errors: dict[str, Floats] = {}
    for name, fitted in fit_all(tables, gpu, Efficiency()):
        errors[name] = fitted.errors
        kept = f", measured with about {fitted.cached_bytes / 1e6:.0f} MB in L2" if fitted.cached_bytes else ""
        operations[name] = {
            "tables": f"{TABLE_OF[name]} table{kept}",
            "rows": len(fitted.errors),
            "mean_error": round(float(np.abs(fitted.errors).mean()), _FIGURES),
            "p90_error": round(float(np.quantile(np.abs(fitted.errors), 0.9)), _FIGURES),
            "constants": fitted.constants,
        }
    measured = tables.get("all_reduce")
    links = {name: _links(measured, name, gpu) for name in ("all_reduce", "all_gather", "reduce_scatter")}
    links["all_to_all"] = _exchanges(measured, gpu)
    if not operations and not any(links.values()):
        raise InputError(
            f"{sources[0]}: no table of GEMMs, attention, experts or collectives in 16 bits or fp8, which are what the "
            "roofline has constants for"
        )
    document: dict[str, object] = {
        "gpu": gpu.name, "date": date, "source": _source(imported), "operations": operations,
        **{name: each for name, each in links.items() if each},
    }  # fmt: skip
    return Made(document, (*map(str, imported.left_out), *slow), errors)


def _without_slow(profile: Profile) -> tuple[dict[str, Table], list[str]]:
    """The tables without rows that are many times slower than their neighbours, and what is said of these."""
    gone: dict[str, list[dict[str, Value]]] = {}
    said = []
    for name, kernel, point, error in outliers(profile):
        if name in TABLE_OF.values() and 1.0 / (1.0 + error) > SLOWER:
            axes = profile.tables[name].spec.axes
            place: dict[str, Value] = dict(zip((axis.name for axis in axes), point, strict=True))
            gone.setdefault(name, []).append({**kernel.group, **place})
            where = ", ".join(
                f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in gone[name][-1].items()
            )
            said.append(f"{name}: a row left out, {1.0 / (1.0 + error):.1f} times slower than its neighbours ({where})")
    tables = dict(profile.tables)
    for name, places in gone.items():
        rows = [dict(row) for row in tables[name].rows()]
        kept = [
            row for row in rows if not any(all(row[key] == value for key, value in place.items()) for place in places)
        ]
        if kept:
            tables[name] = Table.of(name, kept)
    return tables, said


def _links(table: Table | None, op: str, gpu: GpuSpec) -> dict[str, object]:
    """One collective by number of GPUs; of a message that was faster than a smaller one, the smaller's seconds."""
    links: dict[str, object] = {}
    for gpus, curve in _measured(table, op):
        points, least = [], 0.0
        for size in sorted(curve):
            least = max(least, curve[size])
            points.append([int(size), float(f"{least:.4g}")])
        if len(points) > 1:
            links[f"gpus_{gpus}"] = points
    return {**_link(gpu), **links} if links else {}


def _exchanges(table: Table | None, gpu: GpuSpec) -> dict[str, object]:
    """All-to-alls by number of GPUs; of a message that was slower than a larger one, the larger's seconds.

    Single small messages of these tables take twice as long as those on both sides of them.
    """
    links: dict[str, object] = {}
    for gpus, curve in _measured(table, "all_to_all"):
        points: list[list[float]] = []
        most = math.inf
        for size in sorted(curve, reverse=True):
            most = min(most, curve[size])
            points.insert(0, [int(size), float(f"{most:.4g}")])
        if len(points) > 1:
            links[f"gpus_{gpus}"] = points
    return {**_link(gpu), **links} if links else {}


def _measured(table: Table | None, op: str) -> list[tuple[int, dict[float, float]]]:
    """(GPUs, seconds by bytes) of one collective, rising in GPUs."""
    curves: dict[int, dict[float, float]] = {}
    for row in table.rows() if table is not None else ():
        if row["op"] == op:
            curves.setdefault(int(row["gpus"]), {})[float(row["bytes"])] = float(row["us"]) * 1e-6
    return sorted(curves.items())


def _link(gpu: GpuSpec) -> dict[str, object]:
    return {"link": "PCIe" if not gpu.link_bytes_per_s else gpu.peer_link, "link_bytes_per_s": gpu.peer_bytes_per_s}


def _source(imported: Imported) -> str:
    meta = imported.profile.meta
    software = ", ".join(f"{name} {version}" for name, version in meta.software.items())
    read = meta.notes[0].removeprefix("Read from ").partition("; times")[0]
    return f"{meta.source.partition(';')[0]}{', ' + software if software else ''}: {read}"
