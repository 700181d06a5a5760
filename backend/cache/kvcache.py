"""The tensors that an allocator's block ids address: one pair of keys and values per layer, and their twin on the host.

It knows no requests and hands out no blocks: that is the allocator's work (`sim.allocators`), whose ids are 1 to
`blocks`. Block 0 is the null block: tables are padded with it, and no request owns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.cache.memory import check_device, check_memory
from sim.specs.model import ModelSpec
from traces.schema import InputError

KV_DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
"""Storage types by the names of `sim.specs.model`."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's paged cache.

    `k` and `v` are [blocks + 1, block_tokens, kv_heads, head_dim] in the storage type. A value is what is stored times
    its scale: int8 has fp16 scales [blocks + 1, block_tokens, kv_heads], one per token and head (amax / 127); fp8 has
    one fp32 scalar [] for all (1.0 unless set); the others have none.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        blocks: int,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pinned: bool = False,
    ) -> LayerCache:
        """`blocks` usable blocks and the null block, all zeros; `pinned` for a host twin that CUDA copies to."""
        shape = (blocks + 1, block_tokens, kv_heads, head_dim)

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

        k, v = zeros(shape, dtype), zeros(shape, dtype)
        if dtype == torch.int8:
            return cls(k, v, zeros(shape[:3], torch.float16), zeros(shape[:3], torch.float16))
        if dtype == torch.float8_e4m3fn:
            return cls(k, v, torch.ones((), device=device), torch.ones((), device=device))
        return cls(k, v)

    @property
    def block_tokens(self) -> int:
        return int(self.k.shape[1])

    def tensors(self) -> Iterator[Tensor]:
        """Keys, values, and scales where the storage type has them."""
        yield from (tensor for tensor in (self.k, self.v, self.k_scale, self.v_scale) if tensor is not None)


@dataclass(frozen=True, slots=True)
class KvCache:
    layers: list[LayerCache]
    block_tokens: int

    @classmethod
    def allocate(
        cls,
        model: ModelSpec,
        blocks: int,
        block_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
    ) -> KvCache:
        """`blocks` usable blocks of zeros; `dtype` is a torch type or a name of `KV_DTYPES`, the model's where None.

        Raises InputError for a type or device that is not known, for no blocks, and where memory does not suffice
        (saying how many blocks would fit).
        """
        if blocks < 1 or block_tokens < 1:
            raise InputError(f"a KV cache needs at least 1 block of 1 token, not {blocks} blocks of {block_tokens}")
        place, kind = check_device(device), storage_dtype(dtype or model.kv_dtype)
        block = block_bytes(model, block_tokens, kind)
        check_memory(
            f"a KV cache of {blocks} blocks of {block_tokens} tokens of {model.name}",
            block * (blocks + 1),
            place,
            lambda there: f"at most {max(there // block - 1, 0)} blocks fit",
        )
        return cls._make(model.layers, (blocks, block_tokens, model.kv_heads, model.head_dim), place, kind, False)

    @classmethod
    def _make(
        cls, layers: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, pinned: bool
    ) -> KvCache:
        made = [LayerCache.allocate(*shape, device=device, dtype=dtype, pinned=pinned) for _ in range(layers)]
        return cls(made, shape[1])

    def host(self, blocks: int) -> KvCache:
        """A cache of `blocks` blocks in the host's memory to swap to, of the same layout; pinned where this is on CUDA.

        Raises InputError where the host has too little memory.
        """
        _, block_tokens, kv_heads, head_dim = self.layers[0].k.shape
        place = torch.device("cpu")
        needed = (blocks + 1) * self.bytes // (self.blocks + 1)
        check_memory(f"a host KV cache of {blocks} blocks", needed, place, lambda _: "ask for fewer blocks")
        shape = (blocks, int(block_tokens), int(kv_heads), int(head_dim))
        return self._make(len(self.layers), shape, place, self.dtype, self.device.type == "cuda")

    @property
    def blocks(self) -> int:
        """Usable blocks; their ids are 1 to `blocks`."""
        return int(self.layers[0].k.shape[0]) - 1

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].k.dtype

    @property
    def device(self) -> torch.device:
        return self.layers[0].k.device

    @property
    def bytes(self) -> int:
        """Bytes of all tensors: keys, values, scales, the null block."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors())


def storage_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch type of a cache, by the name that `sim.specs.model` uses or itself; InputError for any other."""
    storage = KV_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if storage not in KV_DTYPES.values() or storage is None:
        raise InputError(f"KV cache type {str(dtype)!r} is unknown; known are {', '.join(KV_DTYPES)}")
    return storage


def block_bytes(model: ModelSpec, block_tokens: int, dtype: torch.dtype | str | None = None) -> int:
    """Bytes of one block in all layers, int8's scales (2 bytes per token, head, and K or V) included."""
    kind = storage_dtype(dtype or model.kv_dtype)
    head = model.head_dim * kind.itemsize + (2 if kind == torch.int8 else 0)
    return 2 * model.layers * block_tokens * model.kv_heads * head
