"""Rows that cannot be true: faster than the chip, absurdly slow, at odds with their own repeats. It knows no format.

What the data sheet's bandwidths and peaks allow is `sim.cost.speed`'s; what becomes of such rows is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median, median_low
from typing import NamedTuple

from calibrate.importers.draft import Draft, ImportedRow
from sim.cost.schema import TABLES
from sim.cost.speed import too_fast
from sim.cost.tables import Table, Value
from sim.specs.gpu import GpuSpec
from traces.schema import InputError

AGREE = 1.25
"""Repeats of one measurement may be so many times the median, or a part of it: single samples of large GEMMs swing by
15 to 25 % (LLMServingSim, docs/docs/profiler/running.md)."""
SLOW = 1000.0
"""A kernel that takes so many times what the chip needs is in another unit: microseconds read as milliseconds. Real
ones come up to 720 times: 2,048 sequences of two tokens."""
_SIZED_BYTES = 2**20
"""Of copies and collectives only those of at least so many bytes are judged as slow; smaller ones are all latency."""


class _Judged(NamedTuple):
    """(entry, why) of those that are bad for a reason, and how many were judged."""

    bad: list[tuple[ImportedRow, str]]
    judged: int
    reason: str


def clean(draft: Draft, gpu: GpuSpec) -> dict[str, Table]:
    """The draft's rows as checked tables, each measurement once; what goes is left out of the draft, with its reason.

    Raises:
        InputError: most rows of a table are impossible (another unit or device), or nothing is left.
    """
    made = {}
    for name in TABLES:
        entries = draft.entries.get(name, [])
        if not entries:
            continue
        entries = _without(draft, name, entries, _fast(name, entries, gpu), gpu)
        entries = _without(draft, name, entries, _slow(name, entries, gpu), gpu)
        if rows := _once(draft, name, entries):
            made[name] = Table.of(name, rows)
    if not made:
        raise InputError(f"nothing to import: {'; '.join(map(str, draft.left_out())) or 'no rows'}")
    return made


def _without(draft: Draft, name: str, entries: list[ImportedRow], judged: _Judged, gpu: GpuSpec) -> list[ImportedRow]:
    """The entries that are not bad; InputError where most of those that were judged are."""
    if len(judged.bad) * 2 > judged.judged:
        entry, why = judged.bad[0]
        raise InputError(
            f"{entry.place.path}: {len(judged.bad)} of {len(entries)} rows of {name} are {judged.reason} (line "
            f"{entry.place.number}: {why}); times were read as {draft.unit}: is that their unit, and are they of "
            f"{gpu.name}?"
        )
    for entry, _ in judged.bad:
        draft.leave_out(name, entry.place, f"{judged.reason} ({gpu.name})")
    gone = {id(entry) for entry, _ in judged.bad}
    return [entry for entry in entries if id(entry) not in gone]


def _fast(name: str, entries: list[ImportedRow], gpu: GpuSpec) -> _Judged:
    if name == "steps":
        bad = [(entry, _least(entry)) for entry in entries if float(entry.row["device_us"]) < entry.least_us]
    else:
        bad = [
            (layer[number], why)
            for layer in _layers(name, entries)
            for number, why in too_fast(Table.of(name, [entry.row for entry in layer]), gpu)
        ]
    return _Judged(bad, len(entries), "faster than the chip can be")


def _slow(name: str, entries: list[ImportedRow], gpu: GpuSpec) -> _Judged:
    """Rows that the chip could do `SLOW` times faster."""
    if name == "steps":
        bad = [(one, _least(one)) for one in entries if float(one.row["device_us"]) > SLOW * one.least_us]
        return _Judged(bad, len(entries), "absurdly slow")
    if name in ("launch", "host"):
        return _Judged([], 0, "absurdly slow")
    judged = [entry for entry in entries if float(entry.row.get("bytes", _SIZED_BYTES)) >= _SIZED_BYTES]
    bad = []
    for layer in _layers(name, judged):
        faster = [{**entry.row, "us": float(entry.row["us"]) / SLOW} for entry in layer]
        impossible = {number for number, _ in too_fast(Table.of(name, faster), gpu)}
        bad += [(one, f"us {one.row['us']:.6g}") for at, one in enumerate(layer) if at not in impossible]
    return _Judged(bad, len(judged), "absurdly slow")


def _least(entry: ImportedRow) -> str:
    return f"device_us {entry.row['device_us']:.6g}, and weights, cache and FLOPs alone take {entry.least_us:.4g} us"


def _layers(name: str, entries: list[ImportedRow]) -> Iterator[list[ImportedRow]]:
    """The entries in as few lists as hold no measurement twice."""
    layers: list[list[ImportedRow]] = []
    depths: dict[tuple[Value, ...], int] = {}
    for entry in entries:
        key = _identity(name, entry)
        depth = depths[key] = depths.get(key, -1) + 1
        if depth == len(layers):
            layers.append([])
        layers[depth].append(entry)
    yield from layers


def _once(draft: Draft, name: str, entries: list[ImportedRow]) -> list[dict[str, Value]]:
    """One row for each measurement: the median of repeats that agree; none where most of them do not."""
    same: dict[tuple[Value, ...], list[ImportedRow]] = {}
    for entry in entries:
        same.setdefault(_identity(name, entry), []).append(entry)
    values = [column.name for column in TABLES[name].values]
    rows, merged = [], 0
    for repeats in same.values():
        agreeing = _agreeing(repeats, values)
        if len(agreeing) * 2 <= len(repeats):
            agreeing = []
        ids = {id(entry) for entry in agreeing}
        for entry in repeats:
            if id(entry) not in ids:
                draft.leave_out(name, entry.place, "disagrees with a repeat of the same measurement")
        if agreeing:
            medians = {value: median(float(entry.row[value]) for entry in agreeing) for value in values}
            row = {**agreeing[0].row, **medians}
            columns = (*TABLES[name].required, *TABLES[name].optional_keys)
            rows.append({column.name: row[column.name] for column in columns if column.name in row})
            merged += len(agreeing) - 1
    if merged:
        draft.note(f"{name}: {merged} rows repeat another's measurement within {AGREE:g} times; the median is kept.")
    return rows


def _agreeing(repeats: list[ImportedRow], values: list[str]) -> list[ImportedRow]:
    if len(repeats) == 1:
        return repeats
    agreeing = repeats
    for value in values:
        middle = median_low(float(entry.row[value]) for entry in repeats)
        agreeing = [entry for entry in agreeing if middle / AGREE <= float(entry.row[value]) <= middle * AGREE]
    return agreeing


def _identity(name: str, entry: ImportedRow) -> tuple[Value, ...]:
    spec = TABLES[name]
    return tuple(entry.row.get(key, "") for key in (*spec.identity, *(column.name for column in spec.optional_keys)))
