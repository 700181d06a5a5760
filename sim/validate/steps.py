"""Steps predicted against steps measured: by kind, by size, the worst of them. It knows no request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.cost.step import StepCost, shape_tokens
from sim.engine.batch import Shape
from sim.validate.record import Record
from sim.validate.terms import TERMS, by_term
from traces.late import pd

Floats = npt.NDArray[np.float64]
KINDS = ("prefill", "mixed", "decode", "verify")
WORST = 5
COLUMNS = ("live", "step", "kind", "tokens", "start_s", "device_s", "host_s", "predicted_device_s", "predicted_host_s")


def kind_of(shape: Shape) -> str:
    """prefill, decode, mixed, or verify (drafts are checked, whatever else the step does)."""
    if shape.verifies:
        return "verify"
    if not shape.prefills:
        return "decode"
    return "mixed" if shape.decodes else "prefill"


def step_rows(records: Sequence[Record], cost: StepCost | None) -> pd.DataFrame:
    """One row for each live step of each record: what it took and what the model says, if one is given.

    Columns: `COLUMNS`, and where operations were timed `TERM_s` and `predicted_TERM_s` of each of `TERMS`.
    """
    timed = all(record.terms for record in records)
    parts = []
    for number, record in enumerate(records):
        columns: dict[str, Any] = {
            "live": number,
            "step": np.arange(len(record.shapes)),
            "kind": [kind_of(shape) for shape in record.shapes],
            "tokens": [shape_tokens(shape) for shape in record.shapes],
            "start_s": record.steps["start_s"].to_numpy(),
            "device_s": [outcome.device_s[0] for outcome in record.results],
            "host_s": [outcome.host_s for outcome in record.results],
        }
        if timed:
            columns |= {f"{term}_s": [terms.get(term, 0.0) for terms in record.terms] for term in TERMS}
        if cost is not None:
            columns["predicted_device_s"], columns["predicted_host_s"] = priced(record.shapes, cost)
        if cost is not None and timed:
            known = {shape: by_term(cost, shape) for shape in set(record.shapes)}
            columns |= {f"predicted_{term}_s": [known[shape][term] for shape in record.shapes] for term in TERMS}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def timed_terms(rows: pd.DataFrame) -> list[str]:
    return [term for term in TERMS if f"{term}_s" in rows]


def priced(shapes: Sequence[Shape], cost: StepCost) -> tuple[Floats, Floats]:
    """([steps] device seconds, [steps] host seconds) by the model; equal shapes are priced once."""
    known: dict[Shape, tuple[float, float]] = {}
    for shape in shapes:
        if shape not in known:
            device, host_s = cost.span_s(shape, 1)
            known[shape] = device[0], host_s
    pairs = np.array([known[shape] for shape in shapes], np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def errors(measured_s: Floats, predicted_s: Floats) -> dict[str, float | int | None]:
    """Bias (of the sums), mean and 90th percentile of the absolute relative error; None where nothing was measured."""
    if not len(measured_s) or not (measured_s > 0).all():
        return {"steps": len(measured_s), "bias": None, "mape": None, "p90": None}
    relative = np.abs(predicted_s / measured_s - 1)
    return {
        "steps": len(measured_s),
        "bias": float(predicted_s.sum() / measured_s.sum() - 1),
        "mape": float(relative.mean()),
        "p90": float(np.percentile(relative, 90)),
    }


def step_report(rows: pd.DataFrame) -> dict[str, Any]:
    """The errors of whole steps (device and host together), of each part, by kind, by tokens, and the worst steps.

    A part also tells by how many seconds all its predictions together are off (`off_s`); of one that takes next to
    nothing in some steps the relative errors of single steps are not told.
    """
    measured_s, predicted_s = totals(rows)
    by_kind = {kind: errors(*totals(rows[rows["kind"] == kind])) for kind in KINDS if (rows["kind"] == kind).any()}
    size = np.floor(np.log2(np.maximum(rows["tokens"].to_numpy(), 1))).astype(int)
    by_size = {_range(power): errors(*totals(rows[size == power])) for power in np.unique(size).tolist()}
    parts = {name: _part(rows, name) for name in ("device", *timed_terms(rows), "host")}
    return {"all": errors(measured_s, predicted_s), "by_kind": by_kind, "by_tokens": by_size, "by_part": parts,
            "worst": _worst(rows, measured_s, predicted_s)}  # fmt: skip


def _part(rows: pd.DataFrame, name: str) -> dict[str, float | int | None]:
    measured_s, predicted_s = (rows[f"{prefix}{name}_s"].to_numpy(np.float64) for prefix in ("", "predicted_"))
    bias = float(predicted_s.sum() / measured_s.sum() - 1) if measured_s.sum() > 0 else None
    return errors(measured_s, predicted_s) | {"bias": bias, "off_s": float((predicted_s - measured_s).sum())}


def totals(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """(measured, predicted) seconds of whole steps."""
    measured = rows["device_s"].to_numpy(np.float64) + rows["host_s"].to_numpy(np.float64)
    return measured, rows["predicted_device_s"].to_numpy(np.float64) + rows["predicted_host_s"].to_numpy(np.float64)


def _range(power: int) -> str:
    low, high = 1 << power, (1 << power + 1) - 1
    return str(low) if low == high else f"{low}-{high}"


def _worst(rows: pd.DataFrame, measured_s: Floats, predicted_s: Floats) -> list[dict[str, Any]]:
    """The steps whose seconds are furthest off, in seconds: a step that hardly matters is not the worst."""
    order = np.argsort(-np.abs(predicted_s - measured_s), kind="stable")[:WORST]
    facts = rows.iloc[order][["live", "step", "kind", "tokens"]].to_dict("records")
    return [
        {**{str(key): value for key, value in row.items()}, "measured_s": measured, "predicted_s": predicted}
        for row, measured, predicted in zip(facts, measured_s[order].tolist(), predicted_s[order].tolist(), strict=True)
    ]
