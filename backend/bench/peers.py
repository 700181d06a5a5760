"""Other people's attention, called as their documentation says: what ours is timed beside.

None of them is needed or declared: each is imported when asked for; one that is absent, or cannot do a case, says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from backend.bench.inputs import BenchSequences
from backend.bench.timing import AbsentError, Bench, Call, Offer

WORKSPACE_BYTES = 256 << 20
"""FlashInfer's room for parts of a context; it recommends 128 MB."""


def decode_peers(bench: Bench, inputs: BenchSequences, block_tokens: int, *, compiled: bool) -> list[Offer]:
    """Peers for decoding; `compiled`: flex_attention too, which takes tens of seconds to compile."""

    def contiguous(attend: Callable[..., Tensor]) -> Call:
        q = inputs.q.transpose(1, 2)
        views = [tuple(x.transpose(1, 2) for x in inputs.memory(turn)) for turn in range(inputs.sets)]
        return lambda turn: attend(q, *views[turn]).transpose(1, 2)

    offers = [
        Offer("torch SDPA flash", lambda: contiguous(_sdpa(inputs, SDPBackend.FLASH_ATTENTION, causal=False))),
        Offer("torch SDPA cuDNN", lambda: contiguous(_sdpa(inputs, SDPBackend.CUDNN_ATTENTION, causal=False))),
        Offer("fa3-fwd", lambda: _fa3_decode(bench, inputs)),
        Offer("FlashInfer paged", lambda: _flashinfer(bench, inputs, block_tokens, causal=False)),
    ]
    if compiled:
        offers.append(Offer("flex_attention", lambda: contiguous(_flex(bench, inputs, None))))
    return offers


def prefill_peers(bench: Bench, inputs: BenchSequences, block_tokens: int, *, compiled: bool) -> list[Offer]:
    """Peers for one sequence's new tokens on top of what is before them, causal."""

    def copies() -> list[tuple[Tensor, Tensor]]:
        if inputs.pool.dtype.itemsize == 1:
            raise AbsentError("takes no 8-bit cache with 16-bit queries")
        return [inputs.in_order(turn, block_tokens) for turn in range(inputs.sets)]

    def contiguous(attend: Callable[..., Tensor]) -> Call:
        q = inputs.q.transpose(1, 2)
        pairs = [tuple(x.transpose(1, 2) for x in pair) for pair in copies()]
        return lambda turn: attend(q, *pairs[turn]).transpose(1, 2)

    def fa3() -> Call:
        attend = _module(bench, "fa3_fwd_interface").flash_attn_func
        pairs = copies()

        def call(turn: int) -> Tensor:
            out = attend(inputs.q, *pairs[turn], softmax_scale=inputs.scale, causal=True)
            result: Tensor = out[0] if isinstance(out, tuple) else out
            return result

        return call

    offers = [
        Offer("torch SDPA flash", lambda: contiguous(_sdpa(inputs, SDPBackend.FLASH_ATTENTION, causal=True))),
        Offer("torch SDPA cuDNN", lambda: contiguous(_sdpa(inputs, SDPBackend.CUDNN_ATTENTION, causal=True))),
        Offer("fa3-fwd", fa3),
        Offer("FlashInfer paged", lambda: _flashinfer(bench, inputs, block_tokens, causal=True)),
    ]
    if compiled:
        offers.append(Offer("flex_attention", lambda: contiguous(_flex(bench, inputs, _causal_blocks(inputs)))))
    return offers


def _module(bench: Bench, name: str) -> Any:
    if not bench.cuda:
        raise AbsentError(f"{name} runs on CUDA only")
    return importlib.import_module(name)


def _sdpa(inputs: BenchSequences, backend: SDPBackend, *, causal: bool) -> Callable[..., Tensor]:
    """torch's attention, one backend alone: it raises where that one does not take the tensors."""
    if inputs.pool.dtype.itemsize == 1:
        raise AbsentError("takes no 8-bit cache with 16-bit queries")
    if backend == SDPBackend.CUDNN_ATTENTION and inputs.q.device.type != "cuda":
        raise AbsentError("runs on CUDA only")
    aligned: Any = None
    if causal and inputs.new != inputs.context:
        if backend == SDPBackend.CUDNN_ATTENTION:
            raise AbsentError("torch's cuDNN backend aligns a causal mask to the first key only")
        if inputs.q.device.type == "cuda":
            bias = importlib.import_module("torch.nn.attention.bias")
            aligned = bias.causal_lower_right(inputs.new, inputs.context)
        else:
            aligned = torch.ones(inputs.new, inputs.context, dtype=torch.bool).tril(inputs.context - inputs.new)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=aligned, is_causal=causal and aligned is None, scale=inputs.scale, enable_gqa=True
            )

    return attend


def _causal_blocks(inputs: BenchSequences) -> Callable[[], Any]:
    def made() -> Any:
        flex = importlib.import_module("torch.nn.attention.flex_attention")
        past = inputs.context - inputs.new

        def causal(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
            return row + past >= key

        return flex.create_block_mask(causal, None, None, inputs.new, inputs.context, device=inputs.pool.device)

    return made


def _flex(bench: Bench, inputs: BenchSequences, blocks: Callable[[], Any] | None) -> Callable[..., Tensor]:
    if not bench.cuda:
        raise AbsentError("compiling it for a CPU takes half a minute")
    if inputs.pool.dtype.itemsize == 1:
        raise AbsentError("takes no 8-bit cache with 16-bit queries")
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    torch._dynamo.reset()  # each case compiles for its own shape, and the number of shapes is limited
    compiled: Any = torch.compile(flex.flex_attention, dynamic=False)
    mask = None if blocks is None else blocks()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = compiled(q, k, v, block_mask=mask, scale=inputs.scale, enable_gqa=True)
        return result

    return attend


def _fa3_decode(bench: Bench, inputs: BenchSequences) -> Call:
    """FlashAttention-3 with splits of its own choosing, on contiguous keys and values (this build has no pages)."""
    if inputs.pool.dtype.itemsize == 1:
        raise AbsentError("takes no 8-bit cache with 16-bit queries")
    attend = _module(bench, "fa3_fwd_interface").flash_attn_with_kvcache
    views = [inputs.memory(turn) for turn in range(inputs.sets)]

    def call(turn: int) -> Tensor:
        k, v = views[turn]
        result: Tensor = attend(inputs.q, k, v, cache_seqlens=inputs.kv_lens, softmax_scale=inputs.scale, causal=True)
        return result

    return call


def _pages(inputs: BenchSequences, block_tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """FlashInfer's description of each set's tables: starts, blocks, tokens in each last block."""
    last = (inputs.context - 1) % block_tokens + 1
    for table in inputs.tables(block_tokens):
        starts = torch.arange(inputs.count + 1, dtype=torch.int32, device=table.device) * table.shape[1]
        yield starts, table.reshape(-1), torch.full((inputs.count,), last, dtype=torch.int32, device=table.device)


def _flashinfer(bench: Bench, inputs: BenchSequences, block_tokens: int, *, causal: bool) -> Call:
    """Planned beforehand, as an engine does once for all layers of a step; causal: several queries a sequence.

    Decoding, group 4 and more goes to tensor cores.
    """
    module, heads, kind = _module(bench, "flashinfer"), inputs.pool.heads, inputs.pool.dtype
    if kind == torch.int8:
        raise AbsentError("takes no int8 cache")
    types = {"q_data_type": inputs.q.dtype, "kv_data_type": kind, "sm_scale": inputs.scale}
    room = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=bench.device)
    cache, queries, wrappers = inputs.pool.cache(block_tokens), inputs.q.flatten(0, 1), []
    for pages in _pages(inputs, block_tokens):
        sizes = (*pages, heads.query, heads.kv, heads.dim, block_tokens)
        if causal:
            wrapper = module.BatchPrefillWithPagedKVCacheWrapper(room, "NHD")
            wrapper.plan(inputs.q_starts, *sizes, causal=True, **types)
        else:
            wrapper = module.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=True)
            wrapper.plan(*sizes, **types)
        wrappers.append(wrapper)
    return lambda turn: wrappers[turn].run(queries, (cache.k, cache.v)).view(inputs.q.shape)
