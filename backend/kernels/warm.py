"""`python -m backend.kernels.warm --sm 90 --out DIR`: compiles, without a GPU, what a session on one launches.

The launches are the launchers' own, those of the benchmark's cases, of `backend.prove.smoke` and of steps of models, on
tensors that have shapes alone (torch's device `meta`), and compiled within Triton's own launch: so a kernel has here
the key in Triton's cache that it has there. Nothing runs. What `backend.kernels.carried` says of the result.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from backend.bench import run as bench_run
from backend.bench.record import BenchRow, Report
from backend.bench.timing import Bench, BenchTask, Offer
from backend.cache.kvcache import KV_DTYPES, KvCache, LayerCache
from backend.kernels import _common, carried
from backend.kernels._form import lacks_fp8
from backend.kernels.aot import SHARED_LIMIT_BYTES
from backend.live.sampling import Sampler, Sampling
from backend.model.checkpoint import without_checkpoint
from backend.model.loader import DTYPES
from backend.model.model import DecodePart, ForwardBatch, Model, PrefillPart
from backend.model.parameters import assemble, parameters
from backend.model.weights import QUANT_DTYPES, Weight, quantised
from backend.names import names_of
from backend.ops import kernel_ops
from backend.prove.smoke import attention, cache, live, rows
from backend.prove.smoke.case import SmokeGround
from backend.prove.stages import LLAMA
from sim import catalog
from sim.cli.guard import guarded
from sim.specs.model import ModelSpec
from traces.schema import InputError

PROCESSORS = {80: 108, 90: 132, 100: 148}
"""Multiprocessors by compute capability: A100, H100 SXM and H200, B200 (NVIDIA's data sheets). Of cards with fewer,
chunks of prompts may be cut into other numbers of parts."""
META = torch.device("meta")
BLOCK_TOKENS = 16
MOST_TOKENS, MOST_CONTEXT = 8192, 32768
"""Of the steps that are launched."""
BENCHED = ("decode", "prefill", "chunk", "standard", "gemm", "cache", "norms", "sampling")
"""Groups of `backend.bench` whose cases are launched: what the others launch is among these, and among steps."""


class NoLauncher:
    """Triton's launcher of a card that is not here."""

    def __init__(self, _source: Any, _metadata: Any) -> None:
        """Nothing is built for it."""

    def __call__(self, *_: Any) -> None:
        """Nothing is launched."""


class NoDriver:
    """Triton's driver of a card that is not here: kernels are compiled for it, and loaded nowhere."""

    launcher_cls = NoLauncher

    def __init__(self, card: _common.AbsentCard) -> None:
        self._card = card
        self.utils = SimpleNamespace(get_device_properties=self._properties, load_binary=self._load)

    def _properties(self, _device: int) -> dict[str, int]:
        shared = SHARED_LIMIT_BYTES[self._card.capability]
        return {"max_shared_mem": shared, "multiprocessor_count": self._card.processors, "warpSize": 32}

    def _load(self, *_: Any) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, most threads)."""
        return 1, 1, 0, 0, 1024

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._card.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class WarmBench(Bench):
    """Launches ours of each case once, and times nothing."""

    def sets(self, set_bytes: int, most: int = 2) -> int:
        return 2

    def compare(self, task: BenchTask, offers: Sequence[Offer]) -> list[BenchRow]:
        for offer in offers:
            if offer.ours:
                offer.build()(0)
        return []


@dataclass(frozen=True, slots=True)
class LiveForm:
    """A model of a live run, by name, with its types; `window` of its layers, `widths` of its rows' new tokens, and the
    most `sequences` of a step."""

    model: str
    dtype: str = "bf16"
    cache: str = "auto"
    weights: str = "auto"
    window: int = 0
    widths: tuple[int, ...] = (1,)
    sequences: int = 16

    @property
    def spec(self) -> ModelSpec:
        """Of one layer: the others launch what the first does."""
        types = (None if kind == "auto" else kind for kind in (self.dtype, self.cache, self.weights))
        return replace(catalog.load_model(self.model).with_dtypes(*types), layers=1)


SMOKED = live.MODEL
LIVE = (
    LiveForm(LLAMA, sequences=1024),
    LiveForm(SMOKED, widths=tuple(range(1, 9))),
    *(LiveForm(SMOKED, cache=kind) for kind in ("fp8", "int8")),
    *(LiveForm(SMOKED, weights=kind) for kind in ("fp8", "int8")),
    LiveForm(SMOKED, window=32),
)
"""What calibrating, validating and `smoke` run live."""


def steps(form: LiveForm) -> Iterator[Callable[[], object]]:
    """Steps of prompts, of chunks, of rows and of both, by size."""
    spec = form.spec
    model, kv = _model(form, spec), _cache(spec)
    sample = Sampler(model.ops, Sampling(), form.sequences, META)

    def step(new: int, past: int, sequences: int, width: int, columns: int) -> None:
        prompts, tokens = int(new > 0), new + sequences * width
        prefill = PrefillPart(_ints(prompts + 1), _ints(prompts), _ints(prompts, _blocks(new + past)), new)
        decode = DecodePart(width, _ints(sequences), _ints(sequences, columns))
        part = decode if sequences else None
        alone = width == 1
        batch = ForwardBatch(
            _ints(tokens), _ints(tokens), _ints(tokens), _ints(max(prompts, 1)) if new else None,
            prefill if new else None, part if alone else None, None if alone else part,
        )  # fmt: skip
        logits = model.forward(batch, kv)
        if len(logits) <= form.sequences:
            sample(logits, torch.empty(len(logits), dtype=torch.int64, device=META), _ints(len(logits)))

    most = min(MOST_CONTEXT, spec.max_context_tokens)
    for new, past in itertools.product(_doublings(MOST_TOKENS), (0, *_doublings(most))):
        yield lambda new=new, past=past: step(new, past, 0, 1, 1)  # type: ignore[misc]
    for count, width in itertools.product(_doublings(form.sequences), form.widths):
        yield lambda count=count, width=width: step(0, 0, count, width, 64)  # type: ignore[misc]
    yield lambda: step(2, 0, form.sequences, 1, 64)
    yield lambda: step(2, 0, 3, 1, 64)
    pairs = _ints(2)
    yield lambda: model.ops.copy_blocks(kv.layers[0], pairs, pairs)


def _model(form: LiveForm, spec: ModelSpec) -> Model:
    config = without_checkpoint(spec)
    values: dict[str, Weight] = {}
    for item in parameters(spec, config):
        weight = torch.empty(item.shape, dtype=DTYPES[spec.dtype], device=META)
        narrow = item.matrix and spec.weights in QUANT_DTYPES
        values[item.name] = quantised(weight, spec.weights) if narrow else weight
    windows = (form.window,) if form.window else None
    sinks = 4 if form.window else 0
    return Model(spec, config, assemble(spec, config, values), kernel_ops(), windows=windows, sinks=sinks)


def _cache(spec: ModelSpec) -> KvCache:
    kind = KV_DTYPES[spec.kv_dtype]
    shape = (64, BLOCK_TOKENS, spec.kv_heads, spec.head_dim)
    return KvCache([LayerCache.allocate(*shape, device=META, dtype=kind)], BLOCK_TOKENS)


def _ints(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=META)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _doublings(most: int) -> list[int]:
    return [1 << at for at in range(most.bit_length())]


def benched(group: str) -> Iterator[Callable[[], object]]:
    """The cases of a group of the benchmark."""
    bench = WarmBench(META, kernel_ops(), False, float("inf"), Report({}))
    for case in bench_run.chosen(group, small=False):
        yield lambda case=case: case.run(bench)  # type: ignore[misc]


def smoked() -> Iterator[Callable[[], object]]:
    """Operations that are launched once beside their definitions; what they give cannot be read, and the case ends."""
    ground = SmokeGround.of(META, kernel_ops(), small=False)

    def launched(run: Callable[[SmokeGround], object]) -> None:
        with suppress(NotImplementedError):  # torch's, for reading a tensor of no memory
            run(ground)

    for case in [*attention.cases(), *cache.cases(), *rows.cases()]:
        if not case.name.startswith("swap"):  # copies as `copy blocks` does, to memory that only a GPU can pin
            yield lambda case=case: launched(case.run)  # type: ignore[misc]


def launches(only: Sequence[str]) -> Iterator[Callable[[], object]]:
    """What the groups launch: `live`, `smoke`, and those of BENCHED."""
    for group in only:
        if group == "live":
            for form in LIVE:
                yield from steps(form)
        elif group == "smoke":
            yield from smoked()
        else:
            yield from benched(group)


GROUPS = ("live", "smoke", *BENCHED)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--sm", type=int, default=90, show_default=True, help=f"Of {', '.join(map(str, PROCESSORS))}.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to carry; it must not exist.")
@click.option("--only", default="", metavar="GROUP,...", help=f"Of {', '.join(GROUPS)}.")
def cli(sm: int, out: Path, only: str) -> None:
    """Compile for a GPU that is not here what a session on it launches, to be carried there."""
    if sm not in PROCESSORS:
        raise InputError(f"--sm is {sm}; known are {', '.join(map(str, PROCESSORS))}")
    wanted = names_of("--only", only, GROUPS)
    if out.exists():
        raise InputError(f"{out} exists already; give another --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror or error}") from None
    began_s = time.monotonic()
    try:
        _compile(part, _common.AbsentCard(sm, PROCESSORS[sm]), wanted)
        manifest = carried.seal(part, sm)
        part.chmod(0o755)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size, took_s = manifest["bytes"] / 1e6, time.monotonic() - began_s
    click.echo(f"{manifest['kernels']} kernels for sm_{sm}, {size:.1f} MB, {took_s:.0f} s: {out}")


def _compile(folder: Path, card: _common.AbsentCard, wanted: Sequence[str]) -> None:
    knobs: Any = triton.knobs
    # Machine code and what Triton says of it are all that a launch reads.
    knobs.cache.dir, knobs.compilation.store_binary_only = str(folder), True
    _common.absent = card
    triton.runtime.driver.set_active(NoDriver(card))
    made = 0

    def told(*, src: Any, cache_hit: bool, **_: Any) -> None:
        nonlocal made
        made += not cache_hit
        click.echo(f"{made} {src.name}", err=True)

    knobs.compilation.listener = told
    with torch.inference_mode():
        for launch in launches(wanted):
            try:
                launch()
            except InputError as refusal:
                if str(refusal) != lacks_fp8(card.capability):  # which is said there, too
                    raise


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    if not _common.INTERPRETED:
        guarded(lambda: cli(standalone_mode=False))
        return
    # A process interprets or compiles, as is decided when the kernels are imported.
    command = [sys.executable, "-m", "backend.kernels.warm", *sys.argv[1:]]
    paths = os.pathsep.join(path for path in sys.path if path)
    sys.exit(
        subprocess.run(
            command, check=False, env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": paths}
        ).returncode
    )


if __name__ == "__main__":
    main()
