"""From readings to a profile: the rows of its tables, and of each axis the form that predicts left-out points best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.readings import Key, Readings, Sorted
from sim.cost.efficiency import Efficiency
from sim.cost.guides import guide_of
from sim.cost.interpolate import FORMS, Guide, Point, left_out
from sim.cost.lookup import points_of
from sim.cost.schema import TABLES
from sim.cost.tables import Row, Table, Value
from sim.specs.gpu import GpuSpec

ALWAYS_LINEAR: Mapping[str, tuple[str, ...]] = {
    "launch": ("layers", "rows", "prefill_tokens"),
    "host": ("rows", "prefill_tokens"),
    "decode_attention": ("mean_context_tokens",),
}
"""Axes whose form is given: a span of decode steps is straight along its contexts, and the host counts rows."""


def tables_of(found: Sorted) -> dict[str, Table]:
    """The tables, each row the median of its passes, in the order of what they measure."""
    by_table: dict[str, list[dict[str, Value]]] = {}
    for key, us in found.rows.items():
        row: dict[str, Value] = {**dict(key.row), "us": statistics.median(us), "spread": spread(us)}
        if found.bursts:
            row["burst_us"] = statistics.median(found.bursts.get(key, us))
        by_table.setdefault(key.table, []).append(row)
    made = {}
    for name in TABLES:
        if name in by_table:
            columns = [*TABLES[name].identity, "us", "spread", *(["burst_us"] if found.bursts else [])]
            rows = sorted(by_table[name], key=lambda row: [row[column] for column in TABLES[name].identity])
            made[name] = Table.of(name, [{column: row[column] for column in columns} for row in rows])
    if found.steps:
        rows = [step.row() for step in found.steps]
        repeated = all("repeat_device_us" in row for row in rows)
        for row in rows:
            if not repeated:
                row.pop("repeat_device_us", None)
        made["steps"] = Table.of("steps", rows)
    return made


def spread(us: Sequence[float]) -> float:
    """How far passes are apart: the quartiles' distance over the median; 0 of a single one."""
    low, middle, high = np.quantile(us, (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def kernels_of(table: Table, gpu: GpuSpec, efficiency: Efficiency) -> list[tuple[Guide, dict[Point, float]]]:
    """Of each kernel of a table its guide and its seconds by the axes."""
    found = []
    for group, picked in table.grouped().items():
        points = points_of(table, picked)
        if points:
            named: Row = {column.name: value for column, value in zip(table.spec.groups, group, strict=True)}
            guide = guide_of(table.spec.name, named, gpu, efficiency)
            found.append((guide, {point: price.seconds for point, price in points.items()}))
    return found


def best_forms(table: Table, gpu: GpuSpec, efficiency: Efficiency) -> list[str]:
    """Of each axis the form with the least mean leave-one-out error over all kernels; linear where none is better."""
    kernels = kernels_of(table, gpu, efficiency)
    chosen = []
    for axis, column in enumerate(table.spec.axes):
        if column.name in ALWAYS_LINEAR.get(table.spec.name, ()):
            chosen.append("linear")
            continue
        errors = {form: _leave_one_out(kernels, axis, form) for form in FORMS}
        # Another form must be clearly better: noise should not choose.
        best = min(FORMS, key=lambda form: errors[form])
        chosen.append(best if errors[best] < 0.97 * errors["linear"] else "linear")
    return chosen


def _leave_one_out(kernels: Sequence[tuple[Guide, Mapping[Point, float]]], axis: int, form: str) -> float:
    errors = [abs(error) for guide, points in kernels for _, error in left_out(points, guide, axis, form)]
    return statistics.fmean(errors) if errors else 0.0


def ceilings(rows: Readings) -> tuple[float, float]:
    """(FLOP/s of the fastest matrix product, bytes/s of the fastest read of a cache or copy) among the rows.

    Of a device without a data sheet. Rates of matrices and caches in fp32, as a CPU has them here.
    """
    flops, moved = [1.0], [1.0]
    for key, us in rows.items():
        row, seconds = dict(key.row), statistics.median(us) * 1e-6
        if key.table == "gemm":
            flops.append(2.0 * _n(row, "tokens") * _n(row, "k") * _n(row, "n") / seconds)
        elif key.table == "decode_attention":
            tokens = _n(row, "sequences") * _n(row, "mean_context_tokens")
            moved.append(8.0 * tokens * _n(row, "kv_heads") * _n(row, "head_dim") / seconds)
        elif key.table == "copy":
            moved.append(2.0 * _n(row, "bytes") / seconds)
    return max(flops), max(moved)


def _n(row: Mapping[str, Value], name: str) -> float:
    return float(row[name])


__all__ = ["Key", "best_forms", "ceilings", "kernels_of", "spread", "tables_of"]
