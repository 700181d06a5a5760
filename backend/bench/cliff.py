"""Looks for cliffs of decode attention: more work that takes less time, or a step where the cut of contexts changes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from backend.bench.attention import BLOCKS, Shapes, ours_decode
from backend.bench.inputs import CHUNK_TOKENS, BenchPool, BenchSequences
from backend.bench.record import MEASURED, SKIPPED, BenchRow
from backend.bench.timing import Bench, BenchTask, Offer
from backend.cache.kvcache import KV_DTYPES

STEP = 1.05
"""What a step's time may grow by beyond what its bytes grow by."""
NOISE = 0.02
"""What more work may seem to take less: measuring again differs by as much."""
MOST_SWITCHES = 6
"""Changes of the cut that are measured on both sides, of each number of sequences."""
SCAN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class CliffLine:
    """Measured points along one axis: sequences at a fixed context, or contexts of so many sequences."""

    name: str
    points: tuple[tuple[int, int], ...]
    """(sequences, context)."""


@dataclass(frozen=True, slots=True)
class CliffPoint:
    """One measured point: work in bytes, seconds, and parts that a context is cut into (0: not known)."""

    sequences: int
    context: int
    bytes: int
    seconds: float
    parts: int

    @property
    def place(self) -> str:
        return f"{self.sequences} sequences of {self.context}"


@dataclass(frozen=True, slots=True)
class CliffVerdict:
    """Of a line: the largest fall of time with more work, and the largest growth of time beyond that of bytes."""

    fall: float
    jump: float
    switch_jump: float
    findings: tuple[str, ...]

    def as_dict(self, points: int) -> dict[str, Any]:
        return {**asdict(self), "points": points}


def lines(small: bool) -> list[CliffLine]:
    """What is measured: every batch to 40 and some to 256 at 4k, contexts to 32k of 1, 8 and 17 sequences."""
    if small:
        return [
            CliffLine("batch at 64", tuple((rows, 64) for rows in (1, 2, 4))),
            CliffLine("context of 2", tuple((2, context) for context in (64, 128, 256))),
        ]
    rows = [*range(1, 41), 48, 56, 64, 65, 80, 96, 112, 128, 129, 160, 192, 224, 256]
    contexts = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768]
    return [
        CliffLine("batch at 4096", tuple((count, 4096) for count in rows)),
        *(CliffLine(f"context of {count}", tuple((count, context) for context in contexts)) for count in (1, 8, 17)),
    ]


def check(bench: Bench, shapes: Shapes, line: CliffLine) -> None:
    """Measures a line, and adds its points as rows and what is wrong with it as findings."""
    heads, kind = shapes.heads, KV_DTYPES[shapes.dtype]
    most = max(BenchSequences.room(rows, context, 2) for rows, context in line.points)
    pool = BenchPool(heads, most, kind, bench.device)
    places = list(line.points)
    if bench.cuda:
        places = sorted({*places, *_beside_switches(bench, pool, line)})
    points: list[CliffPoint] = []
    for sequences, context in places:
        if bench.left_s <= 0:
            bench.report.unfinished[f"cliff, {line.name}"] = f"no time left after {len(points)} of {len(places)} points"
            break
        row = _measure(bench, pool, sequences, context, line.name)
        if row.time is not None and row.state == MEASURED:
            parts = int(row.notes["parts"])
            points.append(CliffPoint(sequences, context, row.bytes, row.time.median_s, parts))
        elif row.state != SKIPPED:
            break  # it would fail at every point
    bench.report.cliffs[line.name] = judge(points).as_dict(len(points))


def judge(points: Sequence[CliffPoint]) -> CliffVerdict:
    """Neighbours compared: a fall is 1 - later / earlier; a jump is time's growth over that of bytes, minus 1.

    Findings name falls beyond `NOISE` and jumps beyond `STEP`, and say where the cut changes between the two.
    """
    fall = jump = switch_jump = 0.0
    findings = []
    for before, after in pairwise(points):
        ratio = after.seconds / before.seconds
        excess = ratio / (after.bytes / before.bytes) - 1
        switched = before.parts != after.parts
        where = f"from {before.place} to {after.place}"
        cut = f", where the cut changes from {before.parts} to {after.parts} parts" if switched else ""
        fall, jump = max(fall, 1 - ratio), max(jump, excess)
        if switched:
            switch_jump = max(switch_jump, excess)
        if 1 - ratio > NOISE:
            findings.append(f"time falls by {1 - ratio:.1%} {where}{cut}")
        if excess > STEP - 1:
            findings.append(f"time grows by {excess:.1%} beyond its bytes {where}{cut}")
    return CliffVerdict(fall, jump, switch_jump, tuple(findings))


def _measure(bench: Bench, pool: BenchPool, sequences: int, context: int, line: str) -> BenchRow:
    room = pool.k.shape[0] - CHUNK_TOKENS
    sets = min(room // BenchSequences.room(sequences, context, 1), bench.sets(sequences * context * pool.token_bytes))
    inputs = BenchSequences(pool, sequences, context, 1, sets)
    task = BenchTask(
        group="cliff",
        case=f"cliff, {line}",
        sizes={"sequences": sequences, "context": context, "line": line},
        sets=sets,
        set_bytes=inputs.set_bytes,
        bytes=inputs.set_bytes + 2 * inputs.q.nbytes,
        rounds=20,
        notes={"parts": cuts(pool, inputs.q, inputs.kv_lens) if bench.cuda else 0},
    )

    (row,) = bench.compare(task, [Offer("ours, block 16", partial(ours_decode, bench, inputs, BLOCKS[0]), ours=True)])
    return row


def cuts(pool: BenchPool, q: torch.Tensor, kv_lens: torch.Tensor) -> int:
    """Parts that the device cuts each of these equal contexts into."""
    kernel = importlib.import_module("backend.kernels.decode_attention")
    plan = kernel.plan_decode(kv_lens, queries=1, heads=pool.heads.query, cache=pool.cache(BLOCKS[0]), q_dtype=q.dtype)
    return int(plan.spans[0, 1])


def _beside_switches(bench: Bench, pool: BenchPool, line: CliffLine) -> list[tuple[int, int]]:
    """Contexts on both sides of changes of the cut, between the first and the last point of a line along contexts."""
    counts = {rows for rows, _ in line.points}
    if len(counts) > 1:
        return []
    count, last = counts.pop(), line.points[-1][1]
    q = torch.empty((1, 1, pool.heads.query, pool.heads.dim), dtype=pool.dtype, device=bench.device)
    switches: list[tuple[int, int]] = []
    before = 0
    for context in range(SCAN_TOKENS, last + 1, SCAN_TOKENS):
        lens = torch.full((count,), context, dtype=torch.int32, device=bench.device)
        parts = cuts(pool, q, lens)
        if before and parts != before:
            switches += [(count, context - SCAN_TOKENS), (count, context)]
        before = parts
    # Evenly from all of them: early ones change a few tiles' work, late ones much.
    pairs = [switches[at : at + 2] for at in range(0, len(switches), 2)]
    step = max(1, -(-len(pairs) // MOST_SWITCHES))
    return [place for pair in pairs[::step] for place in pair]
