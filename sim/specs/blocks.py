"""Layers that are not all alike: what each kind of layer holds, as matrices, a cache and a state, and their bytes.

A model whose layers are alike needs none of this (`sim.specs.model`). It knows no seconds and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sim.specs.checks import check_count
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, weight_type
from sim.specs.parallel import SINGLE, Parallel

INDEX_SCALE_BYTES = 4
"""Beside an fp8 index key of 128: vLLM (v1/attention/backends/mla/indexer.py) keeps 132 bytes a token and layer."""
_FIXED = ("auto", "plain")
_CHUNK = 64
"""Tokens that chunked kernels of linear attention take together (flash-linear-attention, ops/gated_delta_rule)."""


class Span(NamedTuple):
    """`pieces` of `width` elements along one side of a matrix.

    GPUs share them evenly, or beyond their number have one each ("repeat", as KV heads), or all have all ("whole").
    """

    pieces: int
    width: int = 1
    share: Literal["even", "repeat", "whole"] = "even"

    def on(self, tp: int) -> int:
        """Elements on one of `tp` GPUs."""
        if self.share == "whole":
            return self.pieces * self.width
        return max(1, self.pieces // tp) * self.width if self.pieces else 0

    def divides(self, tp: int) -> bool:
        """Can `tp` GPUs share it?"""
        if self.share == "whole" or self.pieces % tp == 0:
            return True
        return self.share == "repeat" and tp % self.pieces == 0


def whole(width: int) -> Span:
    """A side that every GPU has in full."""
    return Span(width, 1, "whole")


@dataclass(frozen=True, slots=True)
class Matrix:
    """`count` matrices of one layer, of which a token visits `visited`.

    `modules` are its names in a checkpoint, within the layer. `weights` is "auto" (the model's), "plain" (never
    quantised) or a type of its own. `activation`: its inputs are made out of so many values each (2: a gated MLP).
    """

    name: str
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]
    modules: tuple[str, ...] = ()
    count: int = 1
    visited: int = 1
    bias: bool = False
    weights: str = "auto"
    activation: int = 0

    def sides(self, parallel: Parallel) -> tuple[int, int]:
        """(inputs, outputs) of what one GPU has of it."""
        cut = parallel.expert_cut if self.is_routed else parallel.tp
        return sum(span.on(cut) for span in self.inputs), sum(span.on(cut) for span in self.outputs)

    def held(self, parallel: Parallel) -> int:
        """How many of them are on the GPU with the most."""
        return parallel.held(self.count) if self.is_routed else self.count

    def divides(self, gpus: int) -> bool:
        """Can so many GPUs share each?"""
        return all(span.divides(gpus) for span in (*self.inputs, *self.outputs))

    def parameters(self, parallel: Parallel) -> int:
        """Of all of them, on the GPU with the most."""
        k, n = self.sides(parallel)
        return self.held(parallel) * (k * n + (n if self.bias else 0))

    @property
    def is_routed(self) -> bool:
        """Does a token visit some of them only?"""
        return self.count > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What one layer keeps of each token, and how it attends it.

    Keys and values of `kv_heads` heads, or with `rank` one latent and a rotary key of `rope_dim` (MLA). `window_tokens`
    0 attends the whole context. With `index_dim` an indexer keeps a key of its own and chooses `top_tokens` (DSA,
    arXiv 2512.02556). `stride` tokens share one entry (compressed attention); `kept` is False where an
    earlier layer's keys and values are used again.
    """

    heads: int
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window_tokens: int = 0
    rank: int = 0
    rope_dim: int = 0
    index_heads: int = 0
    index_dim: int = 0
    top_tokens: int = 0
    stride: int = 1
    kept: bool = True

    def token_bytes(self, kv_dtype: str, parallel: Parallel = SINGLE) -> int:
        """Bytes of one token on one of `tp` GPUs, scales included."""
        if not self.kept:
            return 0
        kind = KV_TYPES[kv_dtype]
        index = self.index_dim + INDEX_SCALE_BYTES * -(-self.index_dim // 128)
        if self.rank:
            return -(-(kind.vector_bytes(self.rank + self.rope_dim) + index) // self.stride)
        heads = max(1, self.kv_heads // parallel.tp)
        vectors = heads * (kind.vector_bytes(self.key_dim) + kind.vector_bytes(self.value_dim))
        return -(-(vectors + index) // self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one layer keeps of a whole sequence, whatever its length: linear attention, Mamba.

    `heads` matrices of `key_dim` x `value_dim` in `dtype` ("auto": the activations'), and of the short convolution the
    last `conv_tokens` inputs of `conv_channels` channels.
    """

    heads: int
    key_dim: int
    value_dim: int
    conv_channels: int = 0
    conv_tokens: int = 0
    dtype: str = "auto"

    def sequence_bytes(self, dtype: str, parallel: Parallel = SINGLE) -> int:
        """Bytes of one sequence on one of `tp` GPUs; `dtype` is that of the activations."""
        matrix = self.key_dim * self.value_dim * DTYPE_BYTES[dtype if self.dtype == "auto" else self.dtype]
        conv = -(-self.conv_channels // parallel.tp) * self.conv_tokens * DTYPE_BYTES[dtype]
        return -(-self.heads // parallel.tp) * matrix + conv

    def token_flops(self, parallel: Parallel = SINGLE) -> int:
        """FLOPs for one token of a prompt: read, correct and update the state, and attend within a chunk."""
        heads = -(-self.heads // parallel.tp)
        return heads * (6 * self.key_dim * self.value_dim + 2 * _CHUNK * (self.key_dim + self.value_dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`layers` layers that are alike. `vectors` are parameters in no matrix, the same on every GPU; `norms` passes over
    the residual stream and `reductions` sums over the GPUs that a layer takes."""

    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0
    cache: Cache | None = None
    state: State | None = None
    norms: int = 2
    reductions: int = 2
    layers: int = 1

    def __post_init__(self) -> None:
        check_count("block", "layers", self.layers, 1, 10_000)
        check_count("block", "vectors", self.vectors, 0)
        for matrix in self.matrices:
            for side in (matrix.inputs, matrix.outputs):
                size = sum(span.pieces * span.width for span in side)
                check_count("block", f"width of {matrix.name}", size, 1)
            check_count("block", f"number of {matrix.name}", matrix.count, 1, 2**20)
            check_count("block", f"visited of {matrix.name}", matrix.visited, 1, matrix.count)

    def parameters(self, parallel: Parallel = SINGLE) -> int:
        """Of one layer on one of `tp` GPUs."""
        return self.vectors + sum(matrix.parameters(parallel) for matrix in self.matrices)

    def weight_bytes(self, weights: str, dtype: str, parallel: Parallel = SINGLE) -> int:
        """Of one layer on one of `tp` GPUs, scales included."""
        plain = DTYPE_BYTES[dtype]
        total = self.vectors * plain
        for matrix in self.matrices:
            k, n = matrix.sides(parallel)
            kind = weight_type(matrix_type(matrix, weights, dtype))
            total += matrix.held(parallel) * (kind.matrix_bytes(k, n) + (n * plain if matrix.bias else 0))
        return total

    def token_bytes(self, kv_dtype: str, parallel: Parallel = SINGLE) -> int:
        """Cache of one token in one layer."""
        return self.cache.token_bytes(kv_dtype, parallel) if self.cache else 0

    @property
    def window_tokens(self) -> int:
        """Tokens beyond which nothing need be kept; 0 without a window."""
        return self.cache.window_tokens if self.cache else 0

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""
        return max((matrix.count for matrix in self.matrices if matrix.is_routed), default=0)

    @property
    def visited(self) -> int:
        """Routed experts that a token visits."""
        return max((matrix.visited for matrix in self.matrices if matrix.is_routed), default=0)

    def activation_width(self, parallel: Parallel) -> int:
        """Values that the wider of mixing tokens and of the MLP makes of one token, on one of `tp` GPUs."""
        mixed = made = 0
        for matrix in self.matrices:
            k, n = matrix.sides(parallel)
            if matrix.activation:  # down again: what it reads, and of an expert what it writes
                made += parallel.expert_rows(matrix.visited) * (k + n) if matrix.is_routed else k
            elif matrix.name.endswith(" up"):
                made += parallel.expert_rows(matrix.visited) * n if matrix.is_routed else n
            else:
                mixed += n
        return max(mixed, made)

    def unified(self) -> Block:
        """The same with matrices of a type of their own in the model's."""
        free = (replace(each, weights="auto") if each.weights not in _FIXED else each for each in self.matrices)
        return replace(self, matrices=tuple(free))

    @property
    def visited_parameters(self) -> int:
        """Of the matrices that one token visits, in one layer, without biases."""
        sides = ((matrix, matrix.sides(SINGLE)) for matrix in self.matrices)
        return sum(matrix.visited * k * n for matrix, (k, n) in sides)

    def divides(self, tp: int) -> bool:
        """Can `tp` GPUs share the layer, its routed experts aside?"""
        return all(matrix.divides(tp) for matrix in self.matrices if not matrix.is_routed)

    def cuts(self, gpus: int) -> bool:
        """Can so many GPUs share each of its routed experts?"""
        return all(matrix.divides(gpus) for matrix in self.matrices if matrix.is_routed)


def matrix_type(matrix: Matrix, weights: str, dtype: str) -> str:
    """The type that a matrix is kept in, in a model with `weights` and activations of `dtype`."""
    if matrix.weights == "plain":
        return dtype
    if matrix.weights != "auto":
        return matrix.weights
    return dtype if weights == "auto" else weights


def grouped(layers: Sequence[Block]) -> tuple[Block, ...]:
    """Single layers, in order, as kinds: those that are alike become one block, in the order of their first."""
    same: dict[int, int] = {}
    objects = {id(layer): layer for layer in layers}
    for layer in layers:  # by identity first: hashing a block takes longer than counting it
        same[id(layer)] = same.get(id(layer), 0) + layer.layers
    counts: dict[Block, int] = {}
    for key, count in same.items():
        counts[objects[key]] = counts.get(objects[key], 0) + count
    return tuple(replace(layer, layers=count) for layer, count in counts.items())


class KvKind(NamedTuple):
    """Layers whose cache is alike, as a memory manager needs it: `token_bytes` in one layer and for one token, kept for
    the newest `window_tokens` (0: for all); `sequence_bytes` of constant state in one layer."""

    layers: int
    token_bytes: int
    window_tokens: int
    sequence_bytes: int


def kv_kinds(blocks: Iterable[Block], kv_dtype: str, dtype: str, parallel: Parallel) -> tuple[KvKind, ...]:
    """What the layers keep, alike ones together; layers that keep nothing are left out."""
    kinds: dict[tuple[int, int, int], int] = {}
    for block in blocks:
        state = block.state.sequence_bytes(dtype, parallel) if block.state else 0
        key = (block.token_bytes(kv_dtype, parallel), block.window_tokens, state)
        if key[0] or key[2]:
            kinds[key] = kinds.get(key, 0) + block.layers
    return tuple(KvKind(layers, *key) for key, layers in kinds.items())
