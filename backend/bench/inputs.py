"""Random queries, keys and values for attention, as a paged cache and as contiguous tensors of the same memory.

It times nothing. Blocks of a sequence lie scattered, as an allocator leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from backend.cache.kvcache import LayerCache

CHUNK_TOKENS = 128
"""Tokens that lie together at least, and the null block's room: every block size here divides it."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, KV heads, head dim."""

    query: int
    kv: int
    dim: int


def _seeded(device: torch.device, seed: int) -> torch.Generator:
    """Tensors of shapes alone (`meta`) have no numbers, and take the host's."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


class BenchPool:
    """Random keys and values [tokens, G, D] of one layer, which caches of any block size see as theirs."""

    def __init__(self, heads: Heads, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.dtype, self.device = heads, dtype, device
        self._generator = _seeded(device, 0)
        shape = (CHUNK_TOKENS + tokens, heads.kv, heads.dim)
        self.k, self.v = self._random(shape), self._random(shape)
        self.k_scale, self.v_scale = self._scales(shape), self._scales(shape)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=dtype)

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        if self.dtype == torch.int8:
            return torch.randint(-127, 128, shape, generator=self._generator, device=self.device, dtype=self.dtype)
        if self.dtype.itemsize > 1:
            return self.normal(shape, self.dtype)
        made = torch.empty(shape, dtype=self.dtype, device=self.device)
        for start in range(0, shape[0], 1 << 20):
            rows = made[start : start + (1 << 20)]
            rows.copy_(self.normal((*rows.shape,), torch.float16))
        return made

    def _scales(self, shape: tuple[int, ...]) -> Tensor | None:
        if self.dtype == torch.int8:
            scales = torch.rand(shape[:2], generator=self._generator, device=self.device)
            return (0.005 + 0.02 * scales).to(torch.float16)
        return torch.ones((), device=self.device) if self.dtype == torch.float8_e4m3fn else None

    @property
    def token_bytes(self) -> int:
        each = self.heads.dim * self.dtype.itemsize + (2 if self.dtype == torch.int8 else 0)
        return 2 * self.heads.kv * each

    def cache(self, block_tokens: int) -> LayerCache:
        """The pool as a paged cache; its first CHUNK_TOKENS hold the null block and are nobody's."""
        paged = (-1, block_tokens, self.heads.kv)
        scales = [
            None if scale is None else scale.view(paged) if scale.ndim else scale
            for scale in (self.k_scale, self.v_scale)
        ]
        return LayerCache(self.k.view(*paged, self.heads.dim), self.v.view(*paged, self.heads.dim), *scales)

    def exact(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots in float64, times their scales."""

        def picked(stored: Tensor, scale: Tensor | None) -> Tensor:
            values = stored.view(torch.uint8)[slots].view(stored.dtype) if stored.dtype.itemsize == 1 else stored[slots]
            if scale is None:
                return values.double()
            return values.double() * (scale[slots][..., None].double() if scale.ndim else scale.double())

        return picked(self.k, self.k_scale), picked(self.v, self.v_scale)


class BenchSequences:
    """`sets` sets of sequences of `context` tokens each in a pool, and the queries of their last `new` tokens.

    A sequence owns `span` tokens' room of its own (a multiple of CHUNK_TOKENS), within which its pieces of `grain`
    tokens are shuffled; with None each block size is shuffled by itself, which only decoding allows (its result does
    not depend on the order of keys).
    """

    def __init__(
        self, pool: BenchPool, sequences: int, context: int, new: int, sets: int, grain: int | None = None
    ) -> None:
        self.pool, self.count, self.context, self.new, self.sets = pool, sequences, context, new, sets
        self.span = -(-context // CHUNK_TOKENS) * CHUNK_TOKENS
        self._grain = grain
        q_dtype = pool.dtype if pool.dtype.itemsize > 1 else torch.bfloat16
        self.q = pool.normal((sequences, new, pool.heads.query, pool.heads.dim), q_dtype)
        self.kv_lens = torch.full((sequences,), context, dtype=torch.int32, device=pool.device)
        self.scale = pool.heads.dim**-0.5
        self._tables: dict[int, list[Tensor]] = {}

    @staticmethod
    def room(sequences: int, context: int, sets: int) -> int:
        """Tokens that the pool must have for them."""
        return sequences * -(-context // CHUNK_TOKENS) * CHUNK_TOKENS * sets

    @property
    def set_bytes(self) -> int:
        return self.count * self.context * self.pool.token_bytes

    @cached_property
    def q_starts(self) -> Tensor:
        """Offsets of the sequences' queries, packed."""
        return torch.arange(self.count + 1, dtype=torch.int32, device=self.pool.device) * self.new

    def tables(self, block_tokens: int) -> list[Tensor]:
        """Block tables [S, M] int32 of each set."""
        if block_tokens not in self._tables:
            self._tables[block_tokens] = [self._table(turn, block_tokens) for turn in range(self.sets)]
        return self._tables[block_tokens]

    def _table(self, turn: int, block_tokens: int) -> Tensor:
        grain = self._grain or block_tokens
        device, whole = self.pool.device, self.context // grain
        blocks, within = -(-self.context // block_tokens), grain // block_tokens
        generator = _seeded(device, turn)
        # What does not fill a piece stays where it is: a sequence's last tokens are the last in its table.
        order = torch.rand((self.count, whole), generator=generator, device=device).argsort(1)
        pieces = order[..., None] * within + torch.arange(within, device=device)
        rest = torch.arange(whole * within, blocks, device=device).expand(self.count, -1)
        own = torch.cat([pieces.view(self.count, -1), rest], 1)
        first = (CHUNK_TOKENS + (turn * self.count + torch.arange(self.count, device=device)) * self.span)[:, None]
        return (own + first // block_tokens).to(torch.int32)

    def memory(self, turn: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, context, G, D] of a set as they lie in memory: views of the pool, not copies."""
        start = CHUNK_TOKENS + turn * self.count * self.span

        def seen(stored: Tensor) -> Tensor:
            own = stored[start : start + self.count * self.span]
            return own.view(self.count, self.span, *stored.shape[1:])[:, : self.context]

        return seen(self.pool.k), seen(self.pool.v)

    def slots(self, turn: int, sequence: int, block_tokens: int) -> Tensor:
        """Where the tokens of a sequence lie, in token order."""
        at = torch.arange(self.context, device=self.pool.device)
        blocks = self.tables(block_tokens)[turn][sequence].long()
        return blocks[at // block_tokens] * block_tokens + at % block_tokens

    def in_order(self, turn: int, block_tokens: int) -> tuple[Tensor, Tensor]:
        """Contiguous copies [S, context, G, D] of a set's keys and values in token order."""
        rows = torch.stack([self.slots(turn, sequence, block_tokens) for sequence in range(self.count)])
        return self.pool.k[rows], self.pool.v[rows]

    def expected(self, queries: int, block_tokens: int) -> Tensor:
        """Attention in float64 of the last `queries` queries of the first set's first sequence, [queries, H, D]."""
        k, v = self.pool.exact(self.slots(0, 0, block_tokens))
        heads = self.pool.heads
        q = self.q[0, -queries:].double().view(queries, heads.kv, heads.query // heads.kv, heads.dim)
        scores = torch.einsum("qghd,kgd->ghqk", q, k) * self.scale
        last = self.context - queries + torch.arange(queries, device=q.device)
        future = torch.arange(self.context, device=q.device)[None, :] > last[:, None]
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return torch.einsum("ghqk,kgd->qghd", weights, v).reshape(queries, heads.query, heads.dim)
