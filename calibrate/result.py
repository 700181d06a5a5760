"""From a journal to a profile that says how far off it is, what was left out, and what it lacks. It measures nothing.

It needs neither the device nor torch, so that a journal can be fitted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from calibrate import collectives
from calibrate.cases import describe
from calibrate.evaluate import (
    Checked,
    accuracy,
    between,
    by_group,
    kind_of,
    leave_one_out,
    repeat_error,
    steps,
)
from calibrate.fit import best_forms, ceilings, tables_of
from calibrate.header import Header
from calibrate.journal import JournalEntry, MessageTime, Trouble
from calibrate.lacks import dropped_notes, lacks, planned
from calibrate.readings import REASONS_THROTTLED, TOO_FAST, Dropped, Readings, Sorted, sort, told
from calibrate.sheet import cpu_text, sheet
from sim.cost.efficiency import Efficiency
from sim.cost.profile import Accuracy, Meta, Profile
from sim.cost.speed import too_fast
from sim.cost.tables import Table
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from traces.schema import InputError

UNKNOWN = Accuracy(points=1, mean=0.0, p90=0.0, max=0.0, bias=0.0)


@dataclass(frozen=True, slots=True)
class Calibration:
    profile: Profile
    operations: list[Checked]
    steps: list[Checked]


def fitted(
    header: Header,
    entries: Sequence[JournalEntry],
    troubles: Sequence[Trouble] = (),
    messages: Sequence[MessageTime] = (),
    *,
    name: str,
    keep: Collection[str] = (),
) -> Calibration:
    """The profile of what was measured. Reasons in `keep` (of `readings.WHY`) leave nothing out.

    Raises:
        InputError: nothing was measured that could be fitted; says why.
    """
    readings = sort(entries, header.specs, synchronous=header.synchronous, keep=keep, messages=messages)
    dropped = list(readings.dropped)
    tables, text, chip = tables_of(readings), "", sheet(header.gpu, header.device)
    guessed: list[str] = []
    if header.synchronous:
        rates = ceilings(readings.rows)
        flops, moved = rates[0] or chip.fp32_flops_per_s, rates[1] or chip.memory_bytes_per_s
        guessed = [what for rate, what in zip(rates, ("products", "memory"), strict=True) if not rate]
        text = cpu_text(header.device, header.memory_bytes, flops, moved)
        chip = replace(chip, memory_bytes_per_s=moved, **dict.fromkeys(_RATES, flops))  # type: ignore[arg-type]
    else:
        tables = dict(_possible(tables, chip, dropped))
    if not set(tables) - {"steps", "host", "launch"}:
        raise InputError(f"nothing was measured that a profile could be made of: {_nothing(dropped, troubles)}")
    efficiency = Efficiency.of(chip)
    forms = {one: best_forms(table, chip, efficiency) for one, table in tables.items() if one != "steps"}
    meta = Meta(
        name=name,
        gpu=header.gpu,
        device=header.device,
        kind="measured",
        source=f"calibrate, on this device, {_what(header)}",
        date=header.date,
        notes=(
            *lacks(header, entries),
            *collectives.lacks(header, messages),
            *(f"the rate of {what} in device.toml is a guess" for what in guessed),
            *dropped_notes(dropped),
            *map(str, troubles),
        ),
        software=header.software,
        clocks=_clock_range([entry.clocks for entry in entries if entry.clocks]),
        included={"embedding": "launch"} if header.synchronous else {},
        synchronous=header.synchronous,
        grid=describe(header.specs, planned(header, next(iter(header.specs))), header.density, header.groups),
        accuracy={one: replace(UNKNOWN, form=", ".join(chosen)) for one, chosen in forms.items()},
    )
    profile = Profile(meta, tables, chip if header.synchronous else None, text)
    return evaluated(profile, readings, {spec.name: spec for spec in header.specs.values()})


def _what(header: Header) -> str:
    if all(spec.is_latent for spec in header.specs.values()):
        return "attention by itself"
    return "the backend's own kernels in whole steps"


def _possible(tables: Mapping[str, Table], chip: GpuSpec, dropped: list[Dropped]) -> Iterator[tuple[str, Table]]:
    """The tables without the rows that no such device could have; those are added to `dropped`."""
    for name, table in tables.items():
        bad = {row for row, _ in too_fast(table, chip)}
        rows = list(table.rows())
        for at in sorted(bad):
            dropped.append(Dropped(TOO_FAST, name, told({key: rows[at][key] for key in table.spec.identity})))
        left = [row for at, row in enumerate(rows) if at not in bad]
        if left:
            yield name, Table.of(name, left) if bad else table


def _nothing(dropped: Sequence[Dropped], troubles: Sequence[Trouble]) -> str:
    told_of = [*dropped_notes(dropped), *map(str, troubles)]
    more = f" (and {len(told_of) - 1} more)" if len(told_of) > 1 else ""
    return f"{told_of[0]}{more}" if told_of else "the journal has no measurements"


def _clock_range(clocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = sorted({key for logged in clocks for key in logged} - set(REASONS_THROTTLED))
    ends: dict[str, Callable[[Sequence[float]], float]] = {"least": min, "most": max}
    return {
        f"{key}_{end}": pick([logged[key] for logged in clocks if key in logged])
        for key in keys
        for end, pick in ends.items()
    }


_RATES = ("fp16_flops_per_s", "bf16_flops_per_s", "fp32_flops_per_s")


def evaluated(profile: Profile, readings: Sorted, specs: Mapping[str, ModelSpec]) -> Calibration:
    """The profile with its errors, told from what was not fitted."""
    groups = by_group(between(profile, readings.between))
    errors: dict[str, Accuracy] = {}
    operations: list[Checked] = []
    for name, known in profile.meta.accuracy.items():
        how = "points measured between those of the grid"
        checked = groups.get(name, [])
        if not checked:
            how, checked = "points of the grid left out one at a time", leave_one_out(profile, name)
        repeats = repeat_error(_of(readings.rows, name))
        operations += checked
        if checked:
            errors[name] = accuracy(checked, form=known.form, how=how, repeat_mean=repeats)
    whole = steps(profile, specs)
    again: dict[str, list[list[float]]] = {}
    for step in readings.steps:
        for kind in (kind_of(step.row()), "all"):
            again.setdefault(kind, []).append([device_s + host_s for device_s, host_s in step.seconds])
    kinds = {
        kind: accuracy(checked, how="random steps", repeat_mean=repeat_error(again.get(kind, ())))
        for kind, checked in {**by_group(whole), **({"all": whole} if whole else {})}.items()
    }
    meta = replace(profile.meta, accuracy=errors, step_accuracy=kinds)
    return Calibration(replace(profile, meta=meta), operations, whole)


def _of(readings: Readings, table: str) -> list[list[float]]:
    return [us for key, us in readings.items() if key.table == table]
