"""`python -m backend.bench`: how fast this backend is, beside what else is installed, on this device.

One process, the same tensors, contenders taking turns on cold caches. Cases are ordered by what they are worth: a run
that is short of time, or killed, has measured the most important ones, and its file holds them.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from backend.bench import attention as bench_attention
from backend.bench import cliff as bench_cliff
from backend.bench import kernels as bench_kernels
from backend.bench import model as bench_model
from backend.bench.clock import CpuClock, CudaClock
from backend.bench.record import ClockLog, Report, environment
from backend.bench.timing import Bench
from backend.bench.verdict import bars, show
from backend.cache.memory import check_device
from backend.names import names_of
from backend.ops import for_device
from sim.cli.guard import guarded
from traces.schema import InputError

GROUPS = (
    "copy", "decode", "prefill", "step", "cliff", "chunk", "standard", "gemm", "cache", "swap", "norms", "sampling",
    "generate",
)  # fmt: skip
"""What --only knows."""


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One entry of the list. It starts only where `least_s` are left: an estimate, not measured."""

    group: str
    name: str
    run: Callable[[Bench], None]
    least_s: float = 5.0


def cases(small: bool) -> list[BenchCase]:
    """All cases, the most valuable first: what the bars are about, then the grids around it, then the rest."""
    made: dict[str, list[BenchCase]] = {group: [] for group in GROUPS}

    def add(
        group: str, name: str, run: Callable[..., None], *arguments: Any, least_s: float = 5.0, **more: Any
    ) -> None:
        made[group].append(BenchCase(group, name, lambda bench: run(bench, *arguments, **more), least_s))

    _add_attention(add, small)
    _add_others(add, small)
    # The first of each group are those that the bars are about; `decode` has four such, `prefill` one.
    heads = {"copy": 1, "decode": 4, "prefill": 1, "step": 1, "chunk": 1, "cliff": len(made["cliff"])}
    first = [case for group, count in heads.items() for case in made[group][:count]]
    rest = [case for group in GROUPS for case in made[group][heads.get(group, 0) :]]
    return first + rest


def _add_attention(add: Callable[..., None], small: bool) -> None:
    """flex_attention compiles for tens of seconds: it takes part in the first case of each group."""
    shapes = bench_attention.shapes(small)
    for at, (cache, sequences, context) in enumerate(shapes.decode):
        name = bench_attention.decode_name(cache, sequences, context)
        add("decode", name, bench_attention.decode, shapes.heads, cache, sequences, context, compiled=not at)
    chunks = [(new, 0) for new in shapes.prefill] + list(shapes.chunks)
    for new, past in chunks:
        group, name = "chunk" if past else "prefill", bench_attention.prefill_name(new, past)
        compiled = (new, past) in (chunks[0], shapes.chunks[0])
        add(group, name, bench_attention.prefill, shapes.heads, shapes.dtype, new, past, compiled=compiled)
    for tokens in shapes.standard:
        add("standard", f"unfused {tokens}", bench_attention.standard, shapes.heads, shapes.dtype, tokens)
    for line in bench_cliff.lines(small):
        add("cliff", f"cliff, {line.name}", bench_cliff.check, shapes, line, least_s=1.0 if small else 15.0)


def _add_others(add: Callable[..., None], small: bool) -> None:
    shapes = bench_attention.shapes(small)
    heads, dtype = shapes.heads, shapes.dtype
    add("copy", "copy", bench_kernels.copy, least_s=0.0)
    batches, context = ((1, 2), 64) if small else ((1, 32, 128), 1024)
    add("step", "step", bench_model.step, batches, context, least_s=1.0 if small else 40.0)
    for cache in (dtype, "fp8", "int8"):
        for tokens in (16,) if small else (64, 4096):
            add("cache", f"cache write {cache} {tokens}", bench_kernels.cache_write, heads, dtype, cache, tokens)
        add("cache", f"block copy {cache}", bench_kernels.block_copy, heads, cache, 4 if small else 2048)
    for blocks in (4,) if small else (64, 4096):
        add("swap", f"swap {blocks}", bench_kernels.swap, heads, dtype, blocks)
    for tokens in (16,) if small else (1, 64, 4096):
        add("norms", f"norms {tokens}", bench_kernels.norms, dtype, tokens, 256 if small else 4096)
    for rows, vocab in ((2, 4096),) if small else ((1, 128256), (64, 128256), (256, 128256)):
        add("sampling", f"sampling {rows}", bench_kernels.sampling, rows, vocab)
    for shape in GEMMS_SMALL if small else GEMMS:
        add("gemm", "gemm {}x{}x{}".format(*shape), bench_kernels.gemm, dtype, *shape)
    for load in ((2, 16, 4),) if small else ((1, 512, 128), (32, 512, 128)):
        add("generate", "generate {}x{}+{}".format(*load), bench_model.generate, *load, least_s=1.0 if small else 75.0)


GEMMS_SMALL = ((16, 128, 64),)
GEMMS = (
    (8192, 8192, 8192), (1, 28672, 4096), (16, 28672, 4096), (64, 28672, 4096), (256, 28672, 4096),
    (4096, 28672, 4096), (1, 6144, 4096), (1, 4096, 4096), (1, 4096, 14336), (1, 128256, 4096),
)  # fmt: skip
"""(rows, outputs, inputs): the device's ceiling, then Llama-3.1-8B's matrices."""


def run(bench: Bench, listed: Sequence[BenchCase], out: Path | None, say: Callable[[str], None]) -> None:
    """Runs the cases one after another while time is left; writes the report after each, and before the first.

    A case that fails is told and the next one starts; one that leaves the device unusable ends the run. Raises
    InputError where the report cannot be written.
    """
    started, clocks = time.monotonic(), ClockLog()
    _save(bench.report, started, out)
    if bench.cuda:
        clocks.start()
    try:
        for number, case in enumerate(listed):
            begun = time.monotonic()
            if bench.left_s < case.least_s:
                bench.report.unfinished[case.name] = (
                    f"{max(bench.left_s, 0.0):.0f} s left, it wants {case.least_s:.0f} s"
                )
                continue
            lost = _run(bench, case)
            bench.report.clocks[case.name] = clocks.since(begun)
            say(f"{number + 1}/{len(listed)} {case.name}: {time.monotonic() - begun:.1f} s")
            _save(bench.report, started, out)
            if lost:
                bench.report.unfinished |= {other.name: lost for other in listed[number + 1 :]}
                break
    finally:
        clocks.stop()
    bench.report.finished = not bench.report.unfinished
    _save(bench.report, started, out)


def _run(bench: Bench, case: BenchCase) -> str:
    """Why the device is of no use any more, or nothing."""
    try:
        case.run(bench)
    except Exception as error:  # a kernel that no GPU has run yet may fail in any way; the others are worth measuring
        bench.report.unfinished[case.name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    if not bench.cuda:
        return ""
    gc.collect()
    try:
        bench.clock.wait()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return f"the device was lost in {case.name!r}: {str(error).strip().splitlines()[0]}"
    return ""


def _save(report: Report, started: float, out: Path | None) -> None:
    report.seconds = time.monotonic() - started
    report.bars = [bar.as_dict() for bar in bars(report)]
    if out is not None:
        report.write(out)


def chosen(only: str, small: bool) -> list[BenchCase]:
    """The cases of the groups named in `only`, separated by commas; all where it is empty. Raises InputError."""
    wanted = names_of("--only", only, GROUPS)
    return [case for case in cases(small) if case.group in wanted]


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu (with --small: does everything run?).")
@click.option("--only", default="", metavar="GROUP,...", help=f"Of {', '.join(GROUPS)}.")
@click.option("--small", is_flag=True, help="Small shapes; they meet and miss no bar.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON, rewritten after each case.")
@click.option("--budget-s", type=click.FloatRange(min=0), default=540.0, show_default=True, help="Start nothing after.")
@click.option(
    "--ready-s", type=click.FloatRange(min=1), default=90.0, show_default=True, help="A contender's compile time."
)
@click.option(
    "--vllm-step-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="What a decode step of vLLM's own takes here, at batch 1, of the same model and context: for its bar.",
)
def main(
    device: str,
    only: str,
    small: bool,
    out: Path | None,
    budget_s: float,
    ready_s: float,
    vllm_step_ms: float | None,
) -> None:
    """How fast this backend is, beside what else is installed, on this device."""
    deadline_s = time.monotonic() + budget_s
    try:
        place = check_device(device)
        listed = chosen(only, small)
        if place.type == "cpu":
            # Two threads under contention run 5 to 20 times slower than one (OpenMP barriers).
            torch.set_num_threads(1)
        about = environment(place, small, sys.argv)
        report = Report(about if vllm_step_ms is None else about | {"vllm_step_s": vllm_step_ms / 1e3})
        target_s = 0.02 if small else 1.0
        clock = CudaClock(place) if place.type == "cuda" else CpuClock()
        ops = for_device(place)
        bench = Bench(place, ops, small, deadline_s, report, ready_s, target_s, clock)
        run(bench, listed, out, lambda line: click.echo(line, err=True))
    except InputError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    show(report, Console(width=None if sys.stdout.isatty() else 150))


if __name__ == "__main__":
    guarded(lambda: main(standalone_mode=False))
