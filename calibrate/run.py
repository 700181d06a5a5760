"""One calibration, from its settings to a profile: device, grid, measuring, fitting, errors. It prints nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from calibrate import device as devices
from calibrate.cases import Case, Density, Range, cases, chosen, describe
from calibrate.evaluate import (
    Checked,
    accuracy,
    between,
    by_group,
    kind_of,
    leave_one_out,
    model_named,
    repeat_error,
    steps,
)
from calibrate.fit import best_forms, ceilings, tables_of
from calibrate.journal import Journal
from calibrate.measure import SUSTAINED_S, CasePlan, CaseRunner, Progress, is_heavy, measure
from calibrate.readings import Readings, Sorted, Subject, sort
from sim.cost.efficiency import Efficiency
from sim.cost.profile import Accuracy, Meta, Profile
from sim.cost.roofline import Roofline
from sim.cost.speed import too_fast
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from sim.study.identity import product_digest
from traces.schema import InputError

JOURNAL = "journal.jsonl"
UNKNOWN = Accuracy(points=1, mean=0.0, p90=0.0, max=0.0, bias=0.0)
MakeRunner = Callable[[ModelSpec, Range], CaseRunner]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for. `limits` None are the device's usual ones; `layers` 0 takes models whole."""

    gpu: str = "auto"
    models: tuple[str, ...] = ()
    dtype: str = ""
    kv_dtypes: tuple[str, ...] = ()
    budget_s: float = 300.0
    tokens: int = 0
    rows: int = 0
    context: int = 0
    layers: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    target: devices.Target
    sheet: GpuSpec
    limits: Range
    density: Density
    subjects: Mapping[str, Subject]
    """By "model, KV type"."""
    expected_s: float
    settings: Settings

    def grid(self) -> dict[str, str]:
        first = next(iter(self.subjects.values()))
        return {
            "models": "; ".join(self.subjects),
            **describe(list(first.cases)),
            "passes": f"{self.density.passes}, the middle of {self.density.repeats} in each",
        }

    def header(self) -> dict[str, object]:
        """What a journal must be of to be gone on with."""
        header = {**asdict(self.settings), "device": self.target.name, **devices.software(self.target)}
        header.pop("budget_s")
        header["models_sha256"] = sha256(repr([one.spec for one in self.subjects.values()]).encode()).hexdigest()
        header["product_sha256"] = product_digest(("traces", "sim", "backend", "calibrate"))
        return {**header, "limits": asdict(self.limits), "density": asdict(self.density)}


@dataclass(frozen=True, slots=True)
class Calibration:
    profile: Profile
    operations: list[Checked]
    steps: list[Checked]


def prepare(settings: Settings, target: devices.Target) -> Job:
    """The job of the settings on a device.

    Raises:
        InputError: a model that cannot be measured, or a setting out of range.
    """
    sheet = devices.sheet(target)
    names = settings.models or (("tiny-llama",) if target.is_cpu else ("llama-3.1-8b",))
    specs = [spec for name in names for spec in _specs(name, settings)]
    limits = _limits(settings, target, specs)
    estimate = _estimate(specs[0], sheet, sustained=not target.is_cpu)
    density, expected_s = chosen(limits, settings.budget_s / len(specs), settings.seed, estimate)
    each = cases(limits, density, settings.seed)
    subjects = {f"{spec.name}, {spec.kv_dtype}": Subject(spec, each) for spec in specs}
    return Job(target, sheet, limits, density, subjects, expected_s * len(specs), settings)


def _specs(name: str, settings: Settings) -> list[ModelSpec]:
    spec = model_named(name)
    if spec.experts:
        raise InputError(f"model {spec.name!r} routes experts, which cannot be measured yet; name a dense model")
    if settings.layers:
        spec = replace(spec, name=f"{spec.name}@{settings.layers}", layers=settings.layers, sliding_layers=0)
    dtype = settings.dtype or None
    return [spec.with_dtypes(dtype, kv) for kv in (settings.kv_dtypes or (dtype or spec.kv_dtype,))]


def _limits(settings: Settings, target: devices.Target, specs: Sequence[ModelSpec]) -> Range:
    usual = (1024, 32, 2048) if target.is_cpu else (8192, 256, 32_768)
    given = (settings.tokens, settings.rows, settings.context)
    tokens, rows, context = (mine or common for mine, common in zip(given, usual, strict=True))
    longest = min(spec.max_context_tokens for spec in specs)
    context = min(context, longest)
    if min(tokens, rows) < 1 or context < 64:
        raise InputError("--max-tokens and --max-rows must be at least 1, and --max-context at least 64")
    heaviest = max(specs, key=lambda spec: spec.kv_bytes_per_token)
    room = (
        2**30 if target.is_cpu else int(devices.sheet(target).memory_bytes * 0.85) - heaviest.weight_bytes - 4 * 2**30
    )
    cached = min(room // heaviest.kv_bytes_per_token, rows * context)
    if cached < context:
        raise InputError(
            f"{target.name} has room for {max(cached, 0)} tokens of {heaviest.name} beside its weights, and "
            f"--max-context is {context}; name a smaller model, or fewer --layers"
        )
    return Range(min(tokens, context), rows, context, cached)


def _estimate(spec: ModelSpec, sheet: GpuSpec, *, sustained: bool) -> Callable[[list[Case], Density], float]:
    cost = Roofline(spec, sheet, cuda_graphs=False, window=None)

    def seconds(measured: list[Case], density: Density) -> float:
        once_s = sum(sum(device_s) + host_s for case in measured for device_s, host_s in [cost.span_s(case.shape, 1)])
        heavy = sum(map(is_heavy, measured)) if sustained else 0
        # Once to warm up; then each repeat once timed by operation and once as a whole.
        return density.passes * ((1 + 2 * density.repeats) * once_s + heavy * SUSTAINED_S)

    return seconds


def calibrate(
    job: Job, make_runner: MakeRunner, out: Path, *, name: str, date: str, resume: bool, progress: Progress
) -> Calibration:
    """Measure, fit and evaluate. The journal stays in `out`'s sibling until the caller has written the profile.

    Raises:
        InputError: the journal there is of another calibration; the device throttled or gave impossible times.
    """
    journal = Journal(journal_path(out), job.header(), resume=resume)
    deadline_s = time.monotonic() + job.settings.budget_s
    clocks: list[Mapping[str, float]] = []

    def telemetry() -> Mapping[str, float]:
        logged = devices.telemetry(job.target)
        clocks.append(logged)
        return logged

    for model, subject in job.subjects.items():
        bench = make_runner(subject.spec, job.limits)
        plan = CasePlan(model, subject.cases, job.density, deadline_s, sustained=not job.target.is_cpu)
        measure(bench, plan, journal, telemetry, progress)
        del bench  # its memory is the next one's
        gc.collect()
    sorted_ = sort(journal.entries, job.subjects, synchronous=job.target.is_cpu)
    return fitted(job, sorted_, name=name, date=date, clocks=_clock_range(clocks))


def journal_path(out: Path) -> Path:
    return out.parent / f"{out.name}.{JOURNAL}"


def _clock_range(clocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = sorted({key for logged in clocks for key in logged})
    ends: dict[str, Callable[[Sequence[float]], float]] = {"least": min, "most": max}
    return {
        f"{key}_{end}": pick([logged[key] for logged in clocks if key in logged])
        for key in keys
        for end, pick in ends.items()
    }


def fitted(job: Job, readings: Sorted, *, name: str, date: str, clocks: Mapping[str, float]) -> Calibration:
    tables = tables_of(readings)
    target = job.target
    text, sheet = "", job.sheet
    if target.is_cpu:
        flops, moved = ceilings(readings.rows)
        text = devices.cpu_sheet(target, flops, moved)
        sheet = replace(sheet, memory_bytes_per_s=moved, **dict.fromkeys(_RATES, flops))  # type: ignore[arg-type]
    else:
        for table in tables.values():
            for row, why in too_fast(table, sheet):
                raise InputError(
                    f"{table.spec.name}, row {row + 1}: {why}; the measurement is wrong, so nothing is written"
                )
    efficiency = Efficiency.of(sheet)
    forms = {one: best_forms(table, sheet, efficiency) for one, table in tables.items() if one != "steps"}
    meta = Meta(
        name=name,
        gpu=target.gpu,
        device=target.name,
        kind="measured",
        source="calibrate, on this device, the backend's own kernels in whole steps",
        date=date,
        software=devices.software(target),
        clocks=dict(clocks),
        included={"embedding": "launch"} if target.is_cpu else {},
        synchronous=target.is_cpu,
        grid=job.grid(),
        accuracy={one: replace(UNKNOWN, form=", ".join(chosen)) for one, chosen in forms.items()},
    )
    profile = Profile(meta, tables, sheet if target.is_cpu else None, text)
    return evaluated(profile, readings, {subject.spec.name: subject.spec for subject in job.subjects.values()})


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
