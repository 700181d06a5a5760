"""From readings to a profile: the rows of its tables, and of each axis the form that predicts left-out points best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.readings import Readings, Sorted
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import FORMS, left_out
from sim.cost.lookup import MeasuredKernel, measured_kernels
from sim.cost.schema import TABLES
from sim.cost.tables import Table, Value
from sim.specs.gpu import GpuSpec

ALWAYS_LINEAR: Mapping[str, tuple[str, ...]] = {
    "launch": ("layers", "rows", "prefill_tokens"),
    "host": ("rows", "prefill_tokens"),
    "decode_attention": ("mean_context_tokens",),
    "latent_decode_attention": ("mean_context_tokens",),
}
"""Axes whose form is given: a span of decode steps is straight along its contexts, and the host counts rows."""


def tables_of(readings: Sorted) -> dict[str, Table]:
    """The tables, each row the median of its passes, in the order of what they measure."""
    by_table: dict[str, list[dict[str, Value]]] = {}
    for key, us in readings.rows.items():
        row: dict[str, Value] = {**dict(key.row), "us": statistics.median(us), "spread": spread(us)}
        if readings.bursts:
            row["burst_us"] = statistics.median(readings.bursts.get(key, us))
        by_table.setdefault(key.table, []).append(row)
    made = {}
    for name in TABLES:
        if name in by_table:
            columns = [*TABLES[name].identity, "us", "spread", *(["burst_us"] if readings.bursts else [])]
            rows = sorted(by_table[name], key=lambda row: [row[column] for column in TABLES[name].identity])
            made[name] = Table.of(name, [{column: row[column] for column in columns} for row in rows])
    if readings.steps:
        rows = [step.row() for step in readings.steps]
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


def best_forms(table: Table, gpu: GpuSpec, efficiency: Efficiency) -> list[str]:
    """Of each axis the form with the least mean leave-one-out error over all kernels; linear where none is better."""
    kernels = list(measured_kernels(table, gpu, efficiency))
    chosen = []
    for axis, column in enumerate(table.spec.axes):
        if column.name in ALWAYS_LINEAR.get(table.spec.name, ()):
            chosen.append("linear")
            continue
        errors = form_errors(kernels, axis)
        # Another form must be clearly better: noise should not choose.
        best = min(FORMS, key=errors.__getitem__)
        chosen.append(best if errors[best] < 0.97 * errors["linear"] else "linear")
    return chosen


def form_errors(kernels: Sequence[MeasuredKernel], axis: int) -> dict[str, float]:
    """The mean leave-one-out error along an axis, by form."""
    errors = {
        form: [abs(error) for one in kernels for _, error in left_out(one.points, one.guide, axis, form)]
        for form in FORMS
    }
    return {form: statistics.fmean(shares) if shares else 0.0 for form, shares in errors.items()}


def ceilings(rows: Readings) -> tuple[float, float]:
    """(FLOP/s of the fastest matrix product, bytes/s of the fastest read of a cache or copy) among the rows; 0
    of what was not measured.

    Of a device without a data sheet. Rates of matrices and caches in fp32, as a CPU has them here.
    """
    flops, moved = [0.0], [0.0]
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
