"""Times ways to compile prefill attention on a GPU: `python -m tests.benchmarks.prefill_variants --out FILE`.

All variants are compiled first, each in a process of its own and side by side; then one process checks and times them,
most promising first, and a new one goes on after a variant that ends it. FILE (JSON) is rewritten after each variant,
one table is printed last, and nothing begins after `--budget-s`. Without a GPU, `--compile` compiles every variant for
sm_90 and prints what came of it, and `--small` goes through the whole of it with tiny inputs that numpy interprets:
its times say nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._common import DEVICE, INTERPRETED
from backend.kernels._form import Form
from backend.kernels.aot import build, table
from backend.kernels.prefill_attention import Tile, prefill_attention, tile_for, variant_of

HOPPER_SHAPE = 32, 8, 128
HEADS, KV_HEADS, HEAD_DIM = (4, 2, 16) if INTERPRETED else HOPPER_SHAPE
TOLERANCE = 1.2e-2
"""Of the output, as a norm relative to the reference's: what the kernel's tests allow bf16."""
REFERENCE_ROWS = 96
COMPILE_S = 90.0
COMPILED = "compiled"
"""What a compiling process prints when a variant has run once."""


@dataclass(frozen=True)
class Case:
    """One sequence: `new` tokens after `past` cached ones."""

    name: str
    new: int
    past: int

    @property
    def flops(self) -> float:
        """Two products of every query with each of its keys."""
        return 4.0 * HEADS * HEAD_DIM * (self.new * self.past + self.new * (self.new + 1) / 2)


CASES = (
    Case("prefill 8192", 8192, 0),
    Case("chunk 512 on 8192", 512, 8192),
    Case("prefill 2048", 2048, 0),
    Case("chunk 128 on 8192", 128, 8192),
)
SMALL_CASES = (Case("prefill 40", 40, 0), Case("chunk 8 on 64", 8, 64))


@dataclass(frozen=True)
class Choice:
    """A tile over blocks of `block_tokens`; `gathered` copies blocks of 16 into blocks of 128 first, each time."""

    tile: Tile
    block_tokens: int = 128
    gathered: bool = False

    @property
    def name(self) -> str:
        t = self.tile
        parts = ["gathered from 16" if self.gathered else f"block {self.block_tokens}"]
        parts += [f"{t.rows}x{t.keys} w{t.warps} s{t.stages}", "tma" * t.tma]
        return " ".join(part for part in [*parts, f"in {t.splits}" * (t.splits > 1)] if part)

    def serves(self, case: Case) -> bool:
        """Parts are for chunks too short to fill the processors."""
        return self.tile.splits == 1 or case.new <= 512


PLAIN = Tile(128, 128, 8, 3, True)
SHARED = Tile(128, 64, 4, 2, True)
"""Two programs of one warpgroup share a multiprocessor: one's softmax beside the other's products."""
GATHERING = Tile(128, 64, 8, 3)

CHOICES = (
    Choice(PLAIN),
    Choice(SHARED),
    Choice(GATHERING, 16),
    Choice(PLAIN, gathered=True),
    Choice(replace(PLAIN, splits=4)),
    Choice(replace(SHARED, splits=8)),
    Choice(Tile(64, 64, 4, 3, True)),
    Choice(replace(SHARED, splits=2)),
    Choice(replace(SHARED, tma=False), 16),
    Choice(replace(PLAIN, stages=2)),
    Choice(Tile(128, 64, 8, 3, True)),
    Choice(Tile(64, 64, 4, 3, True, splits=4)),
    Choice(replace(GATHERING, splits=4), 16),
)
"""Most promising first, after the one that is the default where this was written."""
SMALL_CHOICES = (
    Choice(Tile(16, 16, 4, tma=True), 32),
    Choice(Tile(16, 16, 4, splits=3), 4),
    Choice(Tile(16, 16, 4, tma=True), 32, gathered=True),
    Choice(Tile(16, 16, 4, tma=True), 24),  # no block of whole tiles: the check has to tell it
)


@dataclass
class Data:
    """One set of inputs: the new tokens' queries, all keys and values, and the same in shuffled blocks."""

    q: Tensor
    k: Tensor
    v: Tensor
    caches: dict[int, tuple[LayerCache, Tensor]]

    def paged(self, block_tokens: int) -> tuple[LayerCache, Tensor]:
        if block_tokens not in self.caches:
            blocks = -(-self.k.shape[0] // block_tokens)
            held = torch.randperm(blocks, device=DEVICE) + 1
            cache = LayerCache.allocate(blocks, block_tokens, *self.k.shape[1:], device=DEVICE, dtype=self.k.dtype)
            for target, source in ((cache.k, self.k), (cache.v, self.v)):
                whole = source.new_full((blocks * block_tokens, *source.shape[1:]), float("nan"))
                whole[: len(source)] = source
                target[held] = whole.view(blocks, *target.shape[1:])
            self.caches[block_tokens] = (cache, held.int()[None])
        return self.caches[block_tokens]


def data_of(case: Case, seed: int) -> Data:
    torch.manual_seed(seed)
    length = case.new + case.past
    shapes = ((case.new, HEADS, HEAD_DIM), (length, KV_HEADS, HEAD_DIM), (length, KV_HEADS, HEAD_DIM))
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for shape in shapes)
    return Data(q, k, v, {})


def call_of(choice: Choice, case: Case, data: Data) -> Callable[[], Tensor]:
    """What is timed, with all it reads in place."""
    cache, blocks = data.paged(16 if choice.gathered else choice.block_tokens)
    starts = torch.tensor([0, case.new], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([case.new + case.past], dtype=torch.int32, device=DEVICE)
    whole = torch.arange(-(-(case.new + case.past) // choice.block_tokens), dtype=torch.int32, device=DEVICE)[None]
    held = blocks[0].long()
    missing = -len(held) % (choice.block_tokens // cache.k.shape[1])
    held = torch.cat([held, held.new_zeros(missing)])  # the null block fills the last large one

    def run() -> Tensor:
        read, tables = cache, blocks
        if choice.gathered:
            copies = (x.index_select(0, held).view(-1, choice.block_tokens, *x.shape[2:]) for x in (cache.k, cache.v))
            read, tables = LayerCache(*copies), whole
        out, _ = prefill_attention(
            data.q, read, tables, starts, lengths, max_q=case.new, scale=HEAD_DIM**-0.5, tile=choice.tile
        )
        return out

    return run


def reference(case: Case, data: Data) -> tuple[Tensor, Tensor]:
    """(some rows, the first and last among them, what attention gives there in float32)."""
    rows = torch.randint(0, case.new, (REFERENCE_ROWS,), device=DEVICE)
    rows[:2] = torch.tensor([0, case.new - 1], device=DEVICE)
    q = data.q[rows].float().view(len(rows), KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    scores = torch.einsum("rghd,kgd->ghrk", q, data.k.float()) * HEAD_DIM**-0.5
    hidden = torch.arange(len(data.k), device=DEVICE)[None, :] > (case.past + rows)[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return rows, torch.einsum("ghrk,kgd->rghd", weights, data.v.float()).reshape(len(rows), HEADS, HEAD_DIM)


def times_s(calls: list[Callable[[], Tensor]], most_s: float = 0.08) -> list[float]:
    """Seconds of single calls in turns over the sets of inputs; the device is held until the host has launched all."""
    for call in calls:
        call()
    if INTERPRETED:
        begin_s = time.perf_counter()
        calls[0]()
        return [time.perf_counter() - begin_s]
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    calls[0]()
    launch_s = time.perf_counter() - begin_s
    torch.cuda.synchronize()
    once_s = time.perf_counter() - begin_s
    repeats = max(10, min(60, int(most_s / once_s)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    hold_s = min(0.05, 2.0 * launch_s * repeats + 1e-3)
    torch.cuda._sleep(int(hold_s * 2e9))  # type: ignore[no-untyped-call]
    marks[0].record()
    for i in range(repeats):
        calls[i % len(calls)]()
        marks[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def off_by(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def row_of(choice: Choice, case: Case, sets: list[Data], wanted: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Checks the first set's output at the reference's rows, and that all of it is finite; times all sets."""
    row: dict[str, Any] = {"variant": choice.name, "case": case.name, "error": ""}
    try:
        calls = [call_of(choice, case, data) for data in sets]
        out = calls[0]()
        row["off_by"] = off_by(out[wanted[0]], wanted[1])
        if not (torch.isfinite(out).all() and row["off_by"] < TOLERANCE):
            return row | {"error": f"wrong: off by {row['off_by']:.2e}"}
        taken = times_s(calls)
        row |= {"median_us": statistics.median(taken) * 1e6, "least_us": min(taken) * 1e6, "calls": len(taken)}
        row["tflops"] = case.flops / statistics.median(taken) / 1e12
    except Exception as failure:  # whatever a variant raises is its result
        row["error"] = (str(failure).strip().splitlines() or [type(failure).__name__])[-1][:200]
    return row


def time_all(first: int, small: bool) -> None:
    """The timing process: variants by number on standard input, a line of JSON rows for each."""
    choices, cases = listed(small)
    sets = {case: [data_of(case, seed) for seed in (1, 2)] for case in cases}
    wanted = {case: reference(case, sets[case][0]) for case in cases}
    say({"ready": first})
    for line in sys.stdin:
        choice = choices[int(line)]
        say({"rows": [row_of(choice, case, sets[case], wanted[case]) for case in cases if choice.serves(case)]})


def compile_one(number: int, small: bool) -> None:
    """The compiling process: one launch, of a case small enough not to matter."""
    choice = listed(small)[0][number]
    case = Case("once", 8, 24 if INTERPRETED else 120)
    call_of(choice, case, data_of(case, 0))()
    if not INTERPRETED:
        torch.cuda.synchronize()
    print(COMPILED, flush=True)


def listed(small: bool) -> tuple[tuple[Choice, ...], tuple[Case, ...]]:
    return (SMALL_CHOICES, SMALL_CASES) if small else (CHOICES, CASES)


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def own(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.prefill_variants", *arguments]


class Timer:
    """The timing process, started anew after it has ended; `ask` gives None where it ended or took too long."""

    def __init__(self, small: list[str]) -> None:
        self._small = small
        self._process: subprocess.Popen[str] | None = None

    def ask(self, number: int, limit_s: float) -> dict[str, Any] | None:
        deadline_s = time.monotonic() + limit_s
        if self._process is None:
            # A process that ended because of one variant has cost its time; the next variant gets a new one.
            command = own("--time", str(number), *self._small)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self._line(deadline_s) is None:
                return None
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()
        except OSError:  # it ended after its last answer
            self.end()
            return None
        return self._line(deadline_s)

    def _line(self, deadline_s: float) -> dict[str, Any] | None:
        assert self._process
        assert self._process.stdout
        killer = threading.Timer(max(deadline_s - time.monotonic(), 0.1), self._process.kill)
        killer.start()
        text = self._process.stdout.readline()
        killer.cancel()
        if text:
            return dict(json.loads(text))
        self.end()
        return None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def compiled_all(count: int, small: list[str], limit_s: float) -> Iterator[str]:
    """For each variant "" or why it did not run once, compiled side by side."""

    def one(number: int) -> str:
        left_s = end_s - time.monotonic()
        if left_s <= 0.0:
            return "not compiled in time"
        try:
            done = subprocess.run(
                own("--once", str(number), *small), capture_output=True, text=True, check=False, timeout=left_s
            )
        except subprocess.TimeoutExpired:
            return "not compiled in time"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return "" if COMPILED in done.stdout else f"status {done.returncode}: {last}"[:200]

    end_s = time.monotonic() + limit_s
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, range(count))


def printed(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'case':18} {'us':>9} {'least':>9} {'TFLOP/s':>8} {'off by':>8}  variant"]
    for row in sorted(rows, key=lambda row: (str(row["case"]), -row.get("tflops", 0.0))):
        if row["error"]:
            lines.append(f"{row['case']:18} {row['variant']}: {row['error']}")
        else:
            numbers = f"{row['median_us']:9.1f} {row['least_us']:9.1f} {row['tflops']:8.1f} {row['off_by']:8.1e}"
            lines.append(f"{row['case']:18} {numbers}  {row['variant']}")
    return "\n".join(lines)


def save(path: Path, document: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)


def measure(path: Path, budget_s: float, small: bool) -> None:
    begin_s = time.monotonic()
    choices, _ = listed(small)
    flag = ["--small"] if small else []
    document: dict[str, Any] = {
        "device": "cpu" if INTERPRETED else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "variants": [{"name": choice.name, **asdict(choice)} for choice in choices],
        "rows": [],
    }
    errors = list(compiled_all(len(choices), flag, min(COMPILE_S, 0.6 * budget_s)))
    document["compiled_s"] = time.monotonic() - begin_s
    timer = Timer(flag)
    for number, (choice, error) in enumerate(zip(choices, errors, strict=True)):
        left_s = budget_s - (time.monotonic() - begin_s)
        reason = error or ("no time left" if left_s < 1.0 else "")
        answer = None if reason else timer.ask(number, left_s)
        failed = {"variant": choice.name, "case": "", "error": reason or "its process ended, or was out of time"}
        rows = answer["rows"] if answer else [failed]
        document["rows"] += rows
        if any(row["error"] and not row["error"].startswith("wrong") for row in rows):
            timer.end()  # a fault on the device leaves its process none to go on with
        document["seconds"] = time.monotonic() - begin_s
        save(path, document)
    timer.end()
    print(printed(document["rows"]))


def compile_for_hopper() -> int:
    """The rehearsal: every variant compiled for sm_90; 1 where one is refused."""
    heads, kv_heads, head_dim = HOPPER_SHAPE
    form = Form(q="bf16", cache="bf16", kv_heads=kv_heads, group=heads // kv_heads, head_dim=head_dim, block_tokens=16)
    variants = [variant_of(replace(form, block_tokens=one.block_tokens), one.tile) for one in CHOICES]
    names = {one.name: number for number, one in enumerate(CHOICES)}
    found = []
    for v, name in zip(variants, names, strict=True):
        found += build([(replace(v, name=name), 90)])
        print(table(found[-1:]).splitlines()[-1], flush=True)
    print(table([]))
    today = [tile_for(replace(form, block_tokens=tokens), 90, 8192) for tokens in (16, 128)]
    print(f"default tiles: {today}")
    return int(any(one.error or not one.wgmma for one in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("prefill-variants.json"))
    parser.add_argument("--budget-s", type=float, default=55.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--time", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.compile:
        return compile_for_hopper()
    if INTERPRETED and not chosen.small:
        parser.error("no GPU here: --compile compiles every variant, --small goes through all with tiny inputs")
    if chosen.once is not None:
        compile_one(chosen.once, chosen.small)
    elif chosen.time is not None:
        time_all(chosen.time, chosen.small)
    else:
        measure(chosen.out, chosen.budget_s, chosen.small)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
