"""How far off a profile is: on points between those of its grid, by leaving points out, and on whole random steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.readings import Readings
from sim.catalog import load_model
from sim.cost.efficiency import Efficiency
from sim.cost.interpolation import Point, left_out
from sim.cost.lookup import Tables, forms_of, measured_kernels
from sim.cost.profile import Accuracy, Profile
from sim.cost.profiled import Profiled
from sim.cost.schema import NO_PREFILLS
from sim.cost.tables import Row, Table
from sim.engine.batch import Shape
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Checked:
    """One prediction of something that was measured and not fitted: `what` in words, of a table or a kind of step."""

    group: str
    what: str
    measured_us: float
    predicted_us: float
    source: str

    @property
    def error(self) -> float:
        return self.predicted_us / self.measured_us - 1.0


def between(profile: Profile, readings: Readings) -> list[Checked]:
    """Predictions of operations that were measured between the points of the grid."""
    gpu = profile.gpu()
    tables = Tables(profile, gpu, Efficiency.of(gpu))
    checked = []
    for key, us in readings.items():
        if key.table not in profile.tables:
            continue
        spec, row = profile.tables[key.table].spec, dict(key.row)
        kernel = tables.kernel(key.table, **{column.name: row[column.name] for column in spec.groups})
        if kernel is None:
            continue
        price = kernel.at(*(float(row[column.name]) for column in spec.axes))
        if price.source != "measured":
            what = ", ".join(f"{name} {value}" for name, value in key.row)
            checked.append(Checked(key.table, what, statistics.median(us), 1e6 * price.seconds, price.source))
    return checked


def leave_one_out(profile: Profile, name: str) -> list[Checked]:
    """Predictions of a table's points, each from its neighbours on both sides along one axis."""
    table, gpu, checked = profile.tables[name], profile.gpu(), []
    forms = forms_of(profile, name)
    for kernel in measured_kernels(table, gpu, Efficiency.of(gpu)):
        for axis, form in enumerate(forms):
            for point, error in left_out(kernel.points, kernel.guide, axis, form):
                us = 1e6 * kernel.points[point].seconds
                checked.append(Checked(name, placed(table, point), us, us * (1.0 + error), "interpolated"))
    return checked


def placed(table: Table, point: Point) -> str:
    return ", ".join(f"{column.name} {value:g}" for column, value in zip(table.spec.axes, point, strict=True))


def steps(profile: Profile, specs: Mapping[str, ModelSpec] | None = None) -> list[Checked]:
    """Predictions of the profile's whole steps, device and host together, models from the catalog where not given.

    Raises:
        InputError: a step is of a model that nobody knows.
    """
    table = profile.tables.get("steps")
    if table is None:
        return []
    costs: dict[tuple[str, ...], Profiled] = {}
    checked = []
    for row in table.rows():
        key = tuple(str(row[name]) for name in ("model", "dtype", "weight_dtype", "kv_dtype", "graph"))
        parallel = Parallel(int(row.get("tp", 1)))
        key = (*key, str(parallel.tp))
        if key not in costs:
            known = (specs or {}).get(key[0]) or model_named(key[0])
            weights = None if key[2] == key[1] else key[2]
            costs[key] = Profiled(
                known.with_dtypes(key[1], key[3], weights),
                profile.gpu(),
                profile,
                parallel=parallel,
                cuda_graphs=row["graph"] == 1,
            )
        shape = shape_of(row)
        (device_s,), host_s = costs[key].span_s(shape, 1)
        sources = {term.source for term in costs[key].explain(shape).values()}
        measured_us = float(row["device_us"]) + float(row["host_us"])
        what = (
            f"{row['model']}: prefill {row['prefills']}, decode {row['decodes']} rows, {row['decode_context_tokens']}"
        )
        source = next((one for one in ("roofline", "extrapolated", "derived") if one in sources), "interpolated")
        checked.append(Checked(kind_of(row), what, measured_us, 1e6 * (device_s + host_s), source))
    return checked


def model_named(name: str) -> ModelSpec:
    """A model of the catalog; "name@n" is its first n layers."""
    stem, _, layers = name.partition("@")
    spec = load_model(stem)
    return replace(spec, name=name, layers=int(layers), sliding_layers=0) if layers.isdigit() else spec


def shape_of(row: Row) -> Shape:
    """The step's shape, from its row.

    Raises:
        InputError: `prefills` are not new+past, joined by semicolons.
    """
    text = str(row["prefills"])
    try:
        slices = [] if text == NO_PREFILLS else [one.split("+") for one in text.split(";")]
        prefills = tuple((int(new), int(past)) for new, past in slices)
    except ValueError:
        raise InputError(f"steps.csv: prefills {text!r} must be new+past of each slice, joined by ';'") from None
    longest = int(row["max_context_tokens"])
    return Shape(prefills, int(row["decodes"]), int(row["decode_context_tokens"]), decode_longest=longest)


def kind_of(row: Row) -> str:
    """decode, uneven_decode, prefill or mixed; by CUDA graph or not."""
    graph = "_graph" if row["graph"] else ""
    if row["prefills"] != NO_PREFILLS:
        return ("mixed" if row["decodes"] else "prefill") + graph
    uneven = float(row["max_context_tokens"]) * float(row["decodes"]) > 1.25 * float(row["decode_context_tokens"])
    return ("uneven_decode" if uneven else "decode") + graph


def accuracy(
    checked: Sequence[Checked], *, form: str = "", how: str = "", repeat_mean: float | None = None
) -> Accuracy:
    errors = np.array([one.error for one in checked])
    sizes = np.abs(errors)
    return Accuracy(
        points=len(errors),
        mean=float(sizes.mean()),
        p90=float(np.quantile(sizes, 0.9)),
        max=float(sizes.max()),
        bias=float(errors.mean()),
        form=form,
        how=how,
        repeat_mean=repeat_mean,
    )


def by_group(checked: Iterable[Checked]) -> dict[str, list[Checked]]:
    groups: dict[str, list[Checked]] = {}
    for one in checked:
        groups.setdefault(one.group, []).append(one)
    return groups


def repeat_error(readings: Iterable[Sequence[float]]) -> float | None:
    """How far the last pass is from the first, on average; None where there was one pass."""
    pairs = [(us[0], us[-1]) for us in readings if len(us) > 1]
    return statistics.fmean(abs(last / first - 1.0) for first, last in pairs) if pairs else None
