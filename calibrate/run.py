"""One calibration, from its settings to a profile: device, grid, measuring, fitting, errors. It prints nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from calibrate import collectives
from calibrate import device as devices
from calibrate.cases import Case, Density, Range, alike, cases, chosen, describe
from calibrate.evaluate import model_named
from calibrate.header import Header
from calibrate.journal import Journal, Trouble
from calibrate.measure import SUSTAINED_S, CasePlan, CaseRunner, ClockWatch, Progress, is_heavy, measure
from calibrate.readings import Subject
from calibrate.result import Calibration, fitted
from calibrate.sheet import sheet
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from sim.study.identity import product_digest
from traces.schema import InputError

JOURNAL = "journal.jsonl"
FIT_S, FIT_SHARE = 3.0, 0.05
"""What of the budget is kept for fitting: so many seconds, or this share of a small one."""
START_S = 20.0
"""A guess at what a GPU takes to make weights and cache, capture graphs and compile kernels."""
LAUNCH_S, HOLD_S, OPERATIONS = 60e-6, 150e-6, 9
"""Guesses for estimates: what launching an operation takes, what a GPU is held busy for before a timed one, how many
operations a layer has."""
MakeRunner = Callable[[ModelSpec, Range], CaseRunner]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for. Limits of 0 are the device's usual ones; `layers` 0 takes models whole; `collectives` as of
    `collectives.groups`."""

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
    collectives: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    target: devices.Target
    limits: Range
    density: Density
    subjects: Mapping[str, Subject]
    """By "model, KV type"."""
    expected_s: float
    settings: Settings
    groups: tuple[int, ...] = ()
    """Of GPUs whose collectives are measured."""

    def grid(self) -> dict[str, str]:
        return describe(self.subjects, next(iter(self.subjects.values())).cases, self.density, self.groups)

    def header(self, date: str) -> Header:
        """What a journal must be of to be gone on with, and to be fitted."""
        asked = asdict(self.settings)
        for told in ("gpu", "seed", "budget_s"):  # elsewhere, or free to change
            del asked[told]
        return Header(
            gpu=self.target.gpu,
            device=self.target.name,
            memory_bytes=devices.memory_bytes(self.target),
            date=date,
            limits=self.limits,
            density=self.density,
            specs={name: one.spec for name, one in self.subjects.items()},
            seed=self.settings.seed,
            asked=asked,
            software=devices.software(self.target),
            product_sha256=product_digest(("traces", "sim", "backend", "calibrate")),
            groups=self.groups,
        )


def prepare(settings: Settings, target: devices.Target) -> Job:
    """The job of the settings on a device.

    Raises:
        InputError: a model that cannot be measured, or a setting out of range.
    """
    chip = sheet(target.gpu, target.name)
    groups = collectives.groups(settings.collectives, devices.count(target), on_cpu=target.is_cpu)
    names = settings.models or (("tiny-llama",) if target.is_cpu else ("llama-3.1-8b",))
    specs = [spec for name in names for spec in _specs(name, settings)]
    limits = _limits(settings, target, specs)
    first = next((spec for spec in specs if not spec.is_latent), specs[0])
    estimate = _estimate(first, chip, cuda=not target.is_cpu)
    start_s = 0.0 if target.is_cpu else START_S
    shared_s = collectives.reserved_s(settings.budget_s, groups)
    budget_s = max((settings.budget_s - shared_s) / len(specs) - start_s, 0.0)
    density, expected_s = chosen(limits, budget_s, settings.seed, estimate)
    each = cases(limits, density, settings.seed)
    subjects = {
        f"{spec.name}, {spec.kv_dtype}": Subject(spec, alike(each) if spec.is_latent else each) for spec in specs
    }
    expected_s = (start_s + expected_s) * len(specs) + shared_s
    return Job(target, limits, density, subjects, expected_s, settings, groups)


def _specs(name: str, settings: Settings) -> list[ModelSpec]:
    from backend.model.checkpoint import check_supported  # noqa: PLC0415  (fitting a journal does without torch)
    from calibrate.latent import check_measured  # noqa: PLC0415

    spec = model_named(name)
    latent = spec.is_latent and not spec.blocks
    if not latent:
        check_supported(spec)
    if settings.layers:
        spec = replace(spec, name=f"{spec.name}@{settings.layers}", layers=settings.layers, sliding_layers=0)
    dtype = settings.dtype or None
    made = [spec.with_dtypes(dtype, kv) for kv in (settings.kv_dtypes or (dtype or spec.kv_dtype,))]
    for each in made if latent else ():
        check_measured(each)
    return made


def _limits(settings: Settings, target: devices.Target, specs: Sequence[ModelSpec]) -> Range:
    usual = (1024, 32, 2048) if target.is_cpu else (8192, 256, 32_768)
    given = (settings.tokens, settings.rows, settings.context)
    tokens, rows, context = (mine or common for mine, common in zip(given, usual, strict=True))
    longest = min(spec.max_context_tokens for spec in specs)
    context = min(context, longest)
    if min(tokens, rows) < 1 or context < 64:
        raise InputError("--max-tokens and --max-rows must be at least 1, and --max-context at least 64")
    heaviest = max(specs, key=_held_bytes_per_token)
    room = 2**30
    if not target.is_cpu:
        usable = int(sheet(target.gpu, target.name).memory_bytes * 0.85)
        # Where others have some of the memory, a smaller cache is better than none.
        usable = min(usable, devices.memory_bytes(target, free=True) - 2 * 2**30)
        room = usable - max(0 if spec.is_latent else spec.weight_bytes for spec in specs) - 4 * 2**30
    cached = min(room // _held_bytes_per_token(heaviest), rows * context)
    if cached < context:
        raise InputError(
            f"{target.name} has room for {max(cached, 0)} tokens of {heaviest.name} beside its weights, and "
            f"--max-context is {context}; name a smaller model, or fewer --layers"
        )
    return Range(min(tokens, context), rows, context, cached)


def _held_bytes_per_token(spec: ModelSpec) -> int:
    from calibrate.latent import cache_bytes  # noqa: PLC0415

    return cache_bytes(spec) if spec.is_latent else spec.kv_bytes_per_token


def _estimate(spec: ModelSpec, chip: GpuSpec, *, cuda: bool) -> Callable[[list[Case], Density], float]:
    cost = Roofline(spec, chip, cuda_graphs=False, window=None)
    if spec.is_latent:
        return lambda measured, density: sum(
            density.passes * (1 + density.repeats) * _attention_s(cost, case.shape) / spec.layers
            for case in alike(measured)
        )
    launch_s, hold_s = (OPERATIONS * spec.layers * each_s if cuda else 0.0 for each_s in (LAUNCH_S, HOLD_S))

    def seconds(measured: list[Case], density: Density) -> float:
        spans = [cost.span_s(case.shape, 1) for case in measured]
        once_s = sum(max(sum(device_s) + host_s, launch_s) for device_s, host_s in spans)
        heavy = sum(map(is_heavy, measured)) if cuda else 0
        # Once to warm up; then each repeat once timed by operation and once as a whole.
        held_s = density.repeats * len(measured) * hold_s
        return density.passes * ((1 + 2 * density.repeats) * once_s + held_s + heavy * SUSTAINED_S)

    return seconds


def _attention_s(cost: Roofline, shape: Shape) -> float:
    return sum(term.seconds for name, term in cost.explain(shape).items() if name.endswith("attention"))


def calibrate(
    job: Job, make_runner: MakeRunner, out: Path, *, name: str, date: str, resume: bool, progress: Progress
) -> Calibration:
    """Measure until all is measured or the budget is spent, then fit and evaluate what is there.

    What fails on the way is told in the profile. The journal stays in `out`'s sibling until the caller has written it.

    Raises:
        InputError: the journal there is of another calibration; nothing could be measured.
    """
    budget_s = job.settings.budget_s
    began_s, measuring_s = time.monotonic(), budget_s - min(FIT_S, FIT_SHARE * budget_s)
    reserved_s = collectives.reserved_s(measuring_s, job.groups)
    header = job.header(date)
    journal = Journal(journal_path(out), header, resume=resume)
    other = devices.others(job.target)
    if other:
        journal.tell(Trouble("", "", f"nvidia-smi tells of a process on the GPU ({other}), perhaps of another's"))
    for number, (model, subject) in enumerate(job.subjects.items(), 1):
        # Each has its share of the time, and what those before it left.
        deadline_s = began_s + (measuring_s - reserved_s) * number / len(job.subjects)
        plan = CasePlan(model, subject.cases, job.density, deadline_s, sustained=not job.target.is_cpu)
        try:
            bench = make_runner(subject.spec, job.limits)
        except (InputError, RuntimeError) as error:
            if len(job.subjects) == 1:
                raise
            journal.tell(Trouble(model, "", f"could not be set up: {error}"))
            continue
        measure(bench, plan, journal, lambda: devices.telemetry(job.target), progress)
        del bench  # its memory is the next one's
        gc.collect()
    watch = ClockWatch(lambda: devices.telemetry(job.target))
    collectives.measure(header, journal, collectives.Gang(), began_s + measuring_s, watch, progress)
    return fitted(journal.header, journal.entries, journal.troubles, journal.messages, name=name)


def journal_path(out: Path) -> Path:
    return out.parent / f"{out.name}.{JOURNAL}"
