"""A profile for another GPU, by data sheets: every row scaled by what the roofline says of both. It measures nothing.

The ratio is that of the regime a row is in: of memory rates where bytes bind, of FLOP rates where arithmetic does, one
where a launch does. Rows are marked `derived`, and prices from them are told as such.
"""

from __future__ import annotations

from dataclasses import replace

from calibrate.evaluate import Checked, accuracy, by_group
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import guide_of
from sim.cost.lookup import Tables
from sim.cost.profile import Accuracy, Meta, Profile
from sim.cost.schema import DERIVED, TABLES
from sim.cost.tables import Row, Table, Value
from sim.specs.gpu import GpuSpec
from traces.schema import InputError

HOST_TABLES = ("launch", "host")
"""What the host does has nothing to do with the GPU: taken over as it is."""


def derive(source: Profile, goal: GpuSpec, *, name: str, date: str, check: Profile | None = None) -> Profile:
    """`source` scaled to another GPU; its errors are told where `check`, measured there, has the same points.

    Raises:
        InputError: the profile is a CPU's, or of the same GPU; `check` is of another one.
    """
    origin = source.gpu()
    if source.device is not None:
        raise InputError(f"profile {source.meta.name!r} is of a {source.meta.gpu}, whose data sheet scales to no GPU")
    if origin.name == goal.name:
        raise InputError(f"profile {source.meta.name!r} is of {goal.name} already")
    if check is not None and check.meta.gpu != goal.name:
        raise InputError(f"profile {check.meta.name!r} is of {check.meta.gpu}, and cannot check one of {goal.name}")
    tables, left_out = {}, 0
    for table_name, table in source.tables.items():
        if table_name == "steps":
            continue  # they would be no measurements of this GPU
        rows = [made for row in table.rows() for made in [_scaled(table_name, row, origin, goal)] if made is not None]
        left_out += len(table) - len(rows)
        if rows:
            tables[table_name] = Table.of(table_name, rows)
    if not tables:
        raise InputError(f"no row of profile {source.meta.name!r} is of a type that {goal.name} computes")
    notes = [f"Scaled from {source.meta.name} ({source.meta.device}, {source.meta.kind}) by data-sheet ratios."]
    if left_out:
        notes.append(f"{left_out} rows of types that {goal.name} has no units for were left out.")
    meta = Meta(
        name=name,
        gpu=goal.name,
        device=goal.description,
        kind="derived",
        source=f"calibrate derive, from {source.meta.name}: {source.meta.source}",
        date=date,
        software=dict(source.meta.software),
        included=dict(source.meta.included),
        captured_tokens=source.meta.captured_tokens,
        notes=tuple(notes),
    )
    errors = _errors(Profile(meta, tables), check) if check else {}
    note = f"Checked against {check.meta.name}." if errors and check else "Not checked against any measurement."
    return Profile(replace(meta, accuracy=errors, notes=(*meta.notes, note)), tables)


def _scaled(name: str, row: Row, origin: GpuSpec, goal: GpuSpec) -> dict[str, Value] | None:
    """The row on the other GPU; None where that has no units for its type."""
    unscaled = {key: value for key, value in row.items() if key not in ("origin", "spread", "burst_us")}
    if name in HOST_TABLES:
        return {**unscaled, "origin": DERIVED}
    point = tuple(float(row[column.name]) for column in TABLES[name].axes)
    try:
        there = guide_of(name, row, goal, Efficiency.of(goal))(point)
    except InputError:
        return None
    ratio = there / guide_of(name, row, origin, Efficiency.of(origin))(point)
    return {**unscaled, "us": float(row["us"]) * ratio, "origin": DERIVED}


def _errors(profile: Profile, check: Profile) -> dict[str, Accuracy]:
    """By table, how far the scaled rows are from what was measured on the GPU itself."""
    gpu = profile.gpu()
    tables = Tables(profile, gpu, Efficiency.of(gpu))
    rows = []
    for name, table in check.tables.items():
        if name == "steps" or name in HOST_TABLES or name not in profile.tables:
            continue
        for row in table.rows():
            kernel = tables.kernel(name, **{column.name: row[column.name] for column in table.spec.groups})
            if kernel is not None and row.get("max_context_tokens") == row.get("mean_context_tokens"):
                price = kernel.at(*(float(row[column.name]) for column in table.spec.axes))
                rows.append(Checked(name, "", float(row["us"]), 1e6 * price.seconds, price.source))
    how = f"rows of {check.meta.name}, measured on this GPU"
    return {name: accuracy(checked, how=how) for name, checked in by_group(rows).items()}
