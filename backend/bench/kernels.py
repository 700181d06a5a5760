"""Cases of everything but attention: copy bandwidth, the cache's operations, norms, sampling, matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from backend.bench.inputs import CHUNK_TOKENS, BenchPool, Heads
from backend.bench.timing import Bench, BenchTask, Call, Check, Offer
from backend.cache.kvcache import KV_DTYPES, LayerCache
from backend.model.weights import QuantWeight, quantised

BLOCK_TOKENS = 16
COPY_BYTES = 4 << 30
NORM_TOLERANCE = 1e-2
QUANTISED_TOLERANCE = 6e-2
"""8-bit weights and activations against the unquantised product."""


def _ready(call: Call) -> Callable[[], Call]:
    return lambda: call


def copy(bench: Bench) -> None:
    """The ceiling of everything that moves bytes: a large copy within the device, bytes read and written counted."""
    size = (16 << 20 if bench.small else COPY_BYTES) // 4
    pairs = [(torch.empty(size, device=bench.device), torch.randn(size, device=bench.device)) for _ in range(2)]

    def copied(turn: int) -> Tensor:
        target, source = pairs[turn]
        return target.copy_(source)

    task = BenchTask(group="copy", case="copy", sizes={"bytes": 4 * size}, sets=2, set_bytes=8 * size, bytes=8 * size)
    bench.compare(task, [Offer("torch copy_", _ready(copied))])


def cache_write(bench: Bench, heads: Heads, dtype: str, cache: str, tokens: int) -> None:
    """New tokens' keys and values into scattered slots, alone and with rotation of queries and keys."""
    kind = KV_DTYPES[dtype]
    sets = bench.sets(tokens * heads.kv * heads.dim * 4, most=16)
    pool = BenchPool(heads, -(-tokens // CHUNK_TOKENS) * CHUNK_TOKENS * sets, KV_DTYPES[cache], bench.device)
    paged = pool.cache(BLOCK_TOKENS)

    def new() -> Tensor:
        return pool.normal((tokens, heads.kv, heads.dim), kind)

    news = [(new(), new()) for _ in range(sets)]
    order = torch.randperm(pool.k.shape[0] - CHUNK_TOKENS, device=bench.device).int() + CHUNK_TOKENS
    slots = order[: tokens * sets].view(sets, tokens)
    q = pool.normal((tokens, heads.query, heads.dim), kind)
    angles = torch.rand((tokens, heads.dim // 2), device=bench.device)
    cos, sin = angles.cos(), angles.sin()
    written = tokens * (2 * heads.kv * heads.dim * kind.itemsize + pool.token_bytes)

    def scattered() -> Call:
        flat = [stored.view(torch.uint8) if stored.dtype.itemsize == 1 else stored for stored in (pool.k, pool.v)]
        rows = slots.long()

        def call(turn: int) -> None:
            for stored, fresh in zip(flat, news[turn], strict=True):
                cast = fresh.to(pool.dtype)
                stored[rows[turn]] = cast.view(torch.uint8) if cast.dtype.itemsize == 1 else cast

        return call

    shared: dict[str, Any] = {"sizes": {"tokens": tokens, "cache": cache}, "sets": sets, "set_bytes": written}
    write, rotate = bench.ops.cache_write, bench.ops.rope_cache_write
    offers = [Offer("ours", _ready(lambda turn: write(*news[turn], paged, slots[turn])), ours=True)]
    if cache != "int8":  # a cast is no quantisation with scales
        offers.append(Offer("torch index assignment", scattered))
    bench.compare(BenchTask(group="cache", case=f"cache write {cache} {tokens}", bytes=written, **shared), offers)
    fused = Offer("ours", _ready(lambda turn: rotate(q, *news[turn], cos, sin, paged, slots[turn])), ours=True)
    rotated = written + 2 * q.nbytes + cos.nbytes + sin.nbytes
    bench.compare(
        BenchTask(group="cache", case=f"rope and cache write {cache} {tokens}", bytes=rotated, **shared), [fused]
    )


def block_copy(bench: Bench, heads: Heads, cache: str, blocks: int) -> None:
    """Copy on write: scattered blocks to other blocks, and the same bytes with torch's indexing."""
    sets = bench.sets(2 * blocks * BLOCK_TOKENS * heads.kv * heads.dim * 4, most=16)
    pool = BenchPool(heads, 2 * blocks * BLOCK_TOKENS * sets, KV_DTYPES[cache], bench.device)
    paged = pool.cache(BLOCK_TOKENS)
    order = torch.randperm(2 * blocks * sets, device=bench.device).int() + CHUNK_TOKENS // BLOCK_TOKENS
    lists = order.view(sets, 2, blocks)

    def indexed() -> Call:
        rows = lists.long()

        def call(turn: int) -> None:
            for tensor in paged.tensors():
                raw = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
                if tensor.ndim:
                    raw[rows[turn, 1]] = raw[rows[turn, 0]]

        return call

    moved = 2 * blocks * BLOCK_TOKENS * pool.token_bytes
    task = BenchTask(
        group="cache", case=f"block copy {cache} {blocks}", sizes={"blocks": blocks, "cache": cache}, sets=sets,
        set_bytes=moved, bytes=moved,
    )  # fmt: skip
    ours = Offer("ours", _ready(lambda turn: bench.ops.copy_blocks(paged, lists[turn, 0], lists[turn, 1])), ours=True)
    bench.compare(task, [ours, Offer("torch indexing", indexed)])


def swap(bench: Bench, heads: Heads, cache: str, blocks: int) -> None:
    """Scattered blocks to pinned host memory and back, beside one contiguous copy of as many bytes."""
    kind = KV_DTYPES[cache]
    pool = BenchPool(heads, blocks * BLOCK_TOKENS, kind, bench.device)
    paged = pool.cache(BLOCK_TOKENS)
    host = LayerCache.allocate(blocks, BLOCK_TOKENS, heads.kv, heads.dim, dtype=kind, pinned=bench.cuda)
    own = torch.randperm(blocks, device=bench.device).int() + CHUNK_TOKENS // BLOCK_TOKENS
    theirs = torch.randperm(blocks, device=bench.device).int() + 1
    moved = blocks * BLOCK_TOKENS * pool.token_bytes
    flat = pool.k[CHUNK_TOKENS:], pool.v[CHUNK_TOKENS:]
    twins = tuple(stored[1:].view(flat[0].shape) for stored in (host.k, host.v))

    def contiguous(out: bool) -> Call:
        def call(turn: int) -> None:
            for near, far in zip(flat, twins, strict=True):
                goal, origin = (far, near) if out else (near, far)
                goal.copy_(origin, non_blocking=True)

        return call

    for name, operation in (("out", bench.ops.swap_out), ("in", bench.ops.swap_in)):
        task = BenchTask(
            group="swap", case=f"swap {name} {blocks}", sizes={"blocks": blocks, "cache": cache}, sets=1,
            set_bytes=moved, bytes=moved, rounds=10,
        )  # fmt: skip
        ours = Offer("ours", _ready(lambda turn, move=operation: move(paged, host, own, theirs)), ours=True)  # type: ignore[misc]
        bench.compare(task, [ours, Offer("torch contiguous copy_", _ready(contiguous(name == "out")))])


def norms(bench: Bench, dtype: str, tokens: int, width: int) -> None:
    """RMSNorm with the residual added, and the gated activation, beside torch's operations one after another."""
    kind = KV_DTYPES[dtype]
    set_bytes = 4 * tokens * width * kind.itemsize
    sets = bench.sets(set_bytes)

    def random(*shape: int) -> list[Tensor]:
        return [torch.randn(shape, device=bench.device, dtype=kind) for _ in range(sets)]

    x, residual, weight = random(tokens, width), random(tokens, width), random(width)[0]
    summed = (x[0] + residual[0]).double()
    expected = summed * (summed.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()

    def plain(turn: int) -> tuple[Tensor, Tensor]:
        total = x[turn] + residual[turn]
        return F.rms_norm(total, (width,), weight, 1e-5), total

    shared: dict[str, Any] = {"group": "norms", "sizes": {"tokens": tokens, "width": width}, "sets": sets}
    task = BenchTask(
        case=f"add and rms_norm {tokens}x{width}", set_bytes=set_bytes, bytes=set_bytes,
        check=Check(lambda out: out, expected, NORM_TOLERANCE), **shared,
    )  # fmt: skip
    ours = Offer("ours", _ready(lambda turn: bench.ops.rms_norm(x[turn], weight, 1e-5, residual[turn])), ours=True)
    bench.compare(task, [ours, Offer("torch rms_norm(x + residual)", _ready(plain))])

    wide = random(tokens, 2 * width)
    gate, up = wide[0].double().chunk(2, -1)
    task = BenchTask(
        case=f"silu_and_mul {tokens}x{width}", set_bytes=3 * set_bytes // 4, bytes=3 * set_bytes // 4,
        check=Check(lambda out: out, gate * gate.sigmoid() * up, NORM_TOLERANCE), **shared,
    )  # fmt: skip

    def gated(turn: int) -> Tensor:
        first, second = wide[turn].chunk(2, -1)
        return F.silu(first) * second

    ours = Offer("ours", _ready(lambda turn: bench.ops.silu_and_mul(wide[turn])), ours=True)
    bench.compare(task, [ours, Offer("torch silu(gate) * up", _ready(gated))])


def sampling(bench: Bench, rows: int, vocab: int) -> None:
    """Greedy, and with temperature, top-k and top-p, beside torch's sort and multinomial."""
    sets = bench.sets(rows * vocab * 4)
    logits = [3 * torch.randn((rows, vocab), device=bench.device) for _ in range(sets)]
    seeds = torch.arange(rows, device=bench.device)
    positions = torch.full((rows,), 7, dtype=torch.int32, device=bench.device)

    def settings(heat: float, top_k: int, top_p: float) -> dict[str, Tensor]:
        made = {"temperature": torch.full((rows,), heat, device=bench.device), "seeds": seeds, "positions": positions}
        made["top_k"] = torch.full((rows,), top_k, dtype=torch.int32, device=bench.device)
        return made | {"top_p": torch.full((rows,), top_p, device=bench.device)}

    def sorted_draw(turn: int) -> Tensor:
        values, order = (logits[turn] / 0.8).sort(-1, descending=True)
        masses = values.softmax(-1)
        masses = masses.masked_fill(masses.cumsum(-1) - masses > 0.95, 0.0)
        masses[:, 50:] = 0.0
        return order.gather(1, masses.multinomial(1))[:, 0]

    kinds: dict[str, tuple[dict[str, Tensor], Call]] = {
        "greedy": (settings(0.0, 0, 1.0), lambda turn: logits[turn].argmax(-1)),
        "temperature": (settings(0.8, 0, 1.0), lambda turn: (logits[turn] / 0.8).softmax(-1).multinomial(1)[:, 0]),
        "top-k and top-p": (settings(0.8, 50, 0.95), sorted_draw),
    }
    for name, (how, theirs) in kinds.items():
        task = BenchTask(
            group="sampling", case=f"sample {name} {rows}x{vocab}", sizes={"rows": rows, "vocab": vocab}, sets=sets,
            set_bytes=logits[0].nbytes, bytes=logits[0].nbytes, tokens=rows,
        )  # fmt: skip
        ours = Offer("ours", _ready(lambda turn, how=how: bench.ops.sample(logits[turn], **how)), ours=True)  # type: ignore[misc]
        bench.compare(task, [ours, Offer("torch", _ready(theirs))])


def gemm(bench: Bench, dtype: str, rows: int, outputs: int, inputs: int) -> None:
    """x [rows, inputs] times a weight [outputs, inputs] transposed: torch's own, and ours with 8-bit weights."""
    kind = KV_DTYPES[dtype]
    size = outputs * inputs * kind.itemsize
    sets = bench.sets(size, most=8)
    weights = [torch.randn((outputs, inputs), device=bench.device, dtype=kind) for _ in range(sets)]
    x = torch.randn((rows, inputs), device=bench.device, dtype=kind)
    expected = x[:1].double() @ weights[0].double().T

    def eight_bit(name: str) -> Callable[[], Call]:
        def build() -> Call:
            packed: list[QuantWeight] = [quantised(weight, name) for weight in weights]
            return lambda turn: bench.ops.linear(x, packed[turn])

        return build

    sizes = {"rows": rows, "outputs": outputs, "inputs": inputs}
    task = BenchTask(
        group="gemm", case=f"gemm {rows}x{outputs}x{inputs}", sizes=sizes, sets=sets, set_bytes=size,
        bytes=size + x.nbytes + rows * outputs * kind.itemsize, flops=2 * rows * outputs * inputs,
        check=Check(lambda out: out[:1], expected, QUANTISED_TOLERANCE),
    )  # fmt: skip
    offers = [
        Offer(f"torch linear {dtype}", _ready(lambda turn: F.linear(x, weights[turn]))),
        Offer("ours, fp8 weights", eight_bit("fp8"), ours=True),
        Offer("ours, int8 weights", eight_bit("int8"), ours=True),
    ]
    bench.compare(task, offers)
