"""What the tests of operations share: the implementations to run, caches full of poison, bits to compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend import ops
from backend.cache.kvcache import LayerCache
from backend.kernels._common import INTERPRETED
from backend.ops import Ops

STORAGE = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8)
IMPLEMENTATIONS = ("cpu", "interpret", pytest.param("cuda", marks=pytest.mark.gpu))


def implementation(name: str) -> Ops:
    """The operations of one implementation; skips the test where this process cannot run it."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if name != "cpu" and (name == "interpret") != INTERPRETED:
        pytest.skip("this process compiles its kernels" if name == "interpret" else "this process interprets kernels")
    return ops.for_device(name)


def place(name: str) -> torch.device:
    """Where an implementation wants its tensors."""
    return torch.device("cuda" if name == "cuda" else "cpu")


def ints(*values: int, device: torch.device | str = "cpu") -> Tensor:
    """int32 [N]."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, some rows a thousand times larger or smaller than others."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10.0 ** (torch.rand(shape[:-1], generator=generator) * 6 - 3)
    return (torch.randn(shape, generator=generator) * spread[..., None]).to(dtype)


def poisoned(
    dtype: torch.dtype, blocks: int = 4, block_tokens: int = 3, heads: int = 2, dim: int = 8, scale: float = 0.5
) -> LayerCache:
    """A cache of random bits: NaNs, infinities and subnormals among them."""
    cache = LayerCache.allocate(blocks, block_tokens, heads, dim, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    for tensor in cache.tensors():
        if tensor.ndim:
            raw = bits(tensor)
            raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=generator))
        else:
            tensor.fill_(scale)
    return cache


def moved(cache: LayerCache, device: torch.device, pinned: bool = False) -> LayerCache:
    """A copy of a cache, elsewhere or pinned."""
    copies = [None if tensor is None else tensor.clone().to(device) for tensor in fields(cache)]
    k, v, *scales = [copy if copy is None or not pinned else copy.pin_memory() for copy in copies]
    assert k is not None
    assert v is not None
    return LayerCache(k, v, *scales)


def fields(cache: LayerCache) -> tuple[Tensor | None, ...]:
    """Keys, values and their scales."""
    return cache.k, cache.v, cache.k_scale, cache.v_scale


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, a view where it has dimensions."""
    return (tensor if tensor.ndim else tensor[None]).view(torch.uint8)


def same_bits(left: LayerCache, right: LayerCache) -> bool:
    """Are two caches equal bit for bit, wherever they are?"""
    pairs = zip(left.tensors(), right.tensors(), strict=True)
    return all(torch.equal(bits(one.cpu()), bits(other.cpu())) for one, other in pairs)
