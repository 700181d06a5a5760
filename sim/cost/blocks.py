"""Layers of several kinds (`sim.specs.blocks`) as seconds of roofline kernels: products, attention, constant states.

Linear attention and Mamba by a roofline of their own: a step reads and writes the state of each of its sequences once,
and a prompt's tokens cost the FLOPs of the chunked form (`State.token_flops`) at the rate of prefill attention. An
indexer (DSA) reads its keys of the whole context, in fp8 with a product for each head, and attends at most the tokens
that it chooses. None of this was compared with a measurement.
"""

from __future__ import annotations

from sim.cost.attend import Affine, Slices
from sim.cost.attention import attended_rows
from sim.cost.efficiency import Efficiency
from sim.cost.experts import Routing
from sim.cost.interpolation import ROOFLINE, Line, Price
from sim.cost.kernels import Kernels
from sim.cost.layers import Ranks, Terms, exchange_terms, exchanges
from sim.cost.placement import ExpertPlacement
from sim.engine.batch import Verifies
from sim.specs.blocks import INDEX_SCALE_BYTES, Block, Cache, Matrix, matrix_type
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel


def block_launches(model: ModelSpec, parallel: Parallel) -> int:
    """Kernels of all layers without attention: products, norms, rope, activations, KV write and what routes experts."""
    total = 0
    for block in model.blocks:
        routed = any(matrix.is_routed for matrix in block.matrices)
        activations = sum(matrix.activation > 0 for matrix in block.matrices)
        each = len(block.matrices) + activations + block.norms + (4 + exchanges(parallel) if routed else 0)
        each += (2 if block.cache else 0) + (2 if block.state else 0) + (block.reductions if parallel.tp > 1 else 0)
        total += block.layers * each
    return total


def block_token_terms(
    model: ModelSpec,
    kernels: Kernels,
    by_type: ByType,
    parallel: Parallel,
    tokens: int,
    routing: Routing,
    ranks: Ranks | None = None,
) -> Terms:
    """As `sim.cost.layers.token_terms`: seconds that depend on the number of tokens computed only."""
    every = ranks or Ranks(tokens, tokens)
    hidden_bytes = tokens * model.hidden * model.element_bytes
    terms = {"embedding": kernels.small_s(2.0 * hidden_bytes)}

    def add(name: str, seconds: float) -> None:
        terms[name] = terms.get(name, 0.0) + seconds

    norms, reductions = 1, 0
    for block in model.blocks:
        norms += block.layers * block.norms
        reductions += block.layers * block.reductions
        for matrix in block.matrices:
            _add_matrix(add, model, by_type.of(matrix), block, matrix, parallel, tokens, routing, every)
        if block.cache is not None:
            kv_bytes = tokens * block.token_bytes(model.kv_dtype, parallel)
            rotated = tokens * _rotated(block.cache, parallel) * model.element_bytes
            add("rope", block.layers * kernels.small_s(2.0 * rotated))
            if kv_bytes:
                add("KV write", block.layers * kernels.small_s(2.0 * kv_bytes))
        if block.state is not None:
            width = -(-block.state.conv_channels // parallel.tp)
            add("short convolution", block.layers * kernels.small_s(2.0 * tokens * width * model.element_bytes))
    terms["norms"] = norms * kernels.small_s(4.0 * hidden_bytes)
    if parallel.tp > 1:
        terms["all-reduce"] = reductions * kernels.all_reduce_s(hidden_bytes, parallel.tp)
    return terms


class ByType:
    """The kernels of matrices, by the type that these are kept in."""

    def __init__(self, model: ModelSpec, gpu: GpuSpec, efficiency: Efficiency) -> None:
        self._model = model
        types = {self._type(matrix) for block in model.blocks for matrix in block.matrices}
        self._kernels = {kind: Kernels(gpu, efficiency, model.dtype, model.kv_dtype, kind) for kind in types}

    def _type(self, matrix: Matrix) -> str:
        return matrix_type(matrix, self._model.weights, self._model.dtype)

    def of(self, matrix: Matrix) -> Kernels:
        """Those that read this matrix."""
        return self._kernels[self._type(matrix)]


def _add_matrix(
    add: object, model: ModelSpec, kernels: Kernels, block: Block, matrix: Matrix, parallel: Parallel, tokens: int,
    routing: Routing, ranks: Ranks,
) -> None:  # fmt: skip
    assert callable(add)
    k, n = matrix.sides(parallel)
    rows: float = tokens
    if matrix.is_routed:
        placement = ExpertPlacement(matrix.count, matrix.visited, parallel)
        load = placement.load(routing, ranks.all)
        rows = load.rows
        add(matrix.name, block.layers * kernels.expert_gemm_s(load, k, n))
        if matrix.activation:  # the second of an expert's products: routing before, combining after
            scored = 4.0 * tokens * matrix.count
            combined = (rows + tokens) * n * model.element_bytes
            add("expert routing", 2 * block.layers * kernels.small_s(scored))
            add("expert combine", block.layers * kernels.small_s(combined))
            for name, seconds in exchange_terms(n, block.layers, kernels, placement, routing, ranks).items():
                add(name, seconds)
    else:
        add(matrix.name, block.layers * kernels.linear_s(tokens, k, n))
    if matrix.activation:
        moved = rows * (matrix.activation + 1) * k * model.element_bytes
        add("expert activation" if matrix.is_routed else "activation", block.layers * kernels.small_s(moved))


def _rotated(cache: Cache, parallel: Parallel) -> int:
    """Elements of queries and keys that are rotated for a token."""
    heads = cache.heads // parallel.tp
    if cache.rank:
        return (heads + 1) * cache.rope_dim
    return (heads + (max(1, cache.kv_heads // parallel.tp) if cache.kept else 0)) * cache.key_dim


class _Kind:
    """Attention in alike layers: prices of a slice, a decode row and a token of a row's context, in one layer."""

    def __init__(self, block: Block, cache: Cache, kernels: Kernels, parallel: Parallel) -> None:
        self.layers = block.layers
        self.span_tokens = cache.window_tokens or cache.top_tokens
        heads = max(1, cache.heads // parallel.tp)
        if cache.rank:
            width, rank = cache.rank + cache.rope_dim, cache.rank
            self.slice = kernels.latent_prefill_attention(heads, cache.key_dim, cache.value_dim, rank, width)
            decode = kernels.latent_decode_attention(heads, rank, width)
        else:
            kv_heads = max(1, cache.kv_heads // parallel.tp)
            self.slice = kernels.attention_of(heads, kv_heads, cache.key_dim, cache.value_dim)
            decode = kernels.decode_of(kv_heads, cache.key_dim, cache.value_dim)
        self.row_s, self.context_s = decode.row_s, decode.token_s
        self.index: Affine | None = None
        self.index_s = 0.0
        if cache.index_dim:
            read = cache.index_dim + INDEX_SCALE_BYTES * -(-cache.index_dim // 128)
            self.index, self.index_s = kernels.index_of(cache.index_heads, cache.index_dim, read)

    def slice_s(self, new: int, past: int) -> float:
        attend = self.slice.window_s(new, past, self.span_tokens) if self.span_tokens else self.slice.slice_s(new, past)
        return attend + (self.index.slice_s(new, past) if self.index else 0.0)


class BlockAttention:
    """As `sim.cost.attention.Attention`, of a model with layers of several kinds; states are part of it.

    `context_s` and `window_s` are seconds of all layers for a token of the whole context, and of what lies within the
    window (or is chosen by an indexer) of a decode row. A `span_tokens` of the allocator's own narrows no layer here.
    """

    def __init__(self, model: ModelSpec, kernels: Kernels, parallel: Parallel) -> None:
        kinds = [_Kind(block, block.cache, kernels, parallel) for block in model.blocks if block.cache]
        self._kinds = kinds
        window = model.attended_window
        self._span_tokens = window.span_tokens if window else 0
        layers = sum(kind.layers for kind in kinds)
        self._row_s = sum(kind.layers * kind.row_s for kind in kinds)
        self._prefill_floor_s = layers * kernels.eff.prefill_attention_floor_s
        self._decode_floor_s = layers * kernels.eff.decode_attention_floor_s
        self.full_layers = sum(kind.layers for kind in kinds if not kind.span_tokens)
        full = sum(kind.layers * kind.context_s for kind in kinds if not kind.span_tokens)
        self.context_s = full + sum(kind.layers * kind.index_s for kind in kinds)
        self.window_s = sum(kind.layers * kind.context_s for kind in kinds if kind.span_tokens)
        states = [(block.layers, block.state) for block in model.blocks if block.state]
        moved = sum(layers * 2 * state.sequence_bytes(model.dtype, parallel) for layers, state in states)
        flops = sum(layers * state.token_flops(parallel) for layers, state in states)
        self._state_row_s = kernels.moved_s(moved)
        self._state_token_s = kernels.attention_flops_s(flops)
        self._state_floor_s = sum(layers for layers, _ in states) * kernels.eff.small_kernel_floor_s

    def prefill_s(self, slices: Slices) -> float:
        """Seconds of all slices, which are one launch a layer."""
        if not slices:
            return 0.0
        seconds = self._prefill_floor_s + self._state_floor_s
        for new, past in slices:
            seconds += sum(kind.layers * kind.slice_s(new, past) for kind in self._kinds)
            seconds += self._state_row_s + new * self._state_token_s
        return seconds

    def _rows_s(self, decodes: int) -> float:
        """Seconds of `decodes` rows before the first token of their contexts, their states included."""
        state_s = self._state_floor_s + decodes * (self._state_row_s + self._state_token_s)
        return self._decode_floor_s + self._row_s * decodes + state_s

    def lines(self, decodes: int) -> tuple[Line | None, Line | None]:
        """As `sim.cost.attention.Attention.lines`, indexers' reading of the whole context in the first."""
        full = Line([(0.0, Price(self._rows_s(decodes), ROOFLINE))], self.context_s)
        return full, Line([(0.0, Price(0.0, ROOFLINE))], self.window_s) if self._span_tokens else None

    def decode_s(self, decodes: int, context: int, within: int) -> float:
        """As `sim.cost.attention.Attention.decode_s`."""
        return self._rows_s(decodes) + self.context_s * context + self.window_s * within if decodes else 0.0

    def verify_s(self, verifies: Verifies) -> float:
        """Seconds of rows that verify drafts: several queries a row, whose KV is read once."""
        if not verifies:
            return 0.0
        tokens_s = sum((tokens - 1) * rows for tokens, rows, _, _ in verifies) * self._state_token_s
        return self.decode_s(*attended_rows(verifies, self._span_tokens)) + tokens_s
