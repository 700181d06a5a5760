"""The price of a step on a GPU whose steps nobody measured: a formula per operation.

What is priced by constants that were fitted to kernel tables of the very card is marked `fitted`, all else `roofline`.
Not modelled: uneven contexts in a decode batch, overlap of communication with compute.
"""

from __future__ import annotations

from collections.abc import Container
from copy import copy
from typing import Any, Literal, NamedTuple

import numpy as np
from mypy_extensions import mypyc_attr

from sim.cost.attend import Slices
from sim.cost.attention import Attention
from sim.cost.blocks import BlockAttention, ByType, block_launches, block_token_terms
from sim.cost.contexts import ContextCost
from sim.cost.efficiency import Efficiency
from sim.cost.errors import Error
from sim.cost.experts import Routing
from sim.cost.interpolation import FITTED, SOURCES, Line
from sim.cost.kernels import Kernels
from sim.cost.layers import Ranks, Terms, added, launches, row_terms, token_terms
from sim.cost.offload import Offload, Stream
from sim.cost.sources import Sources
from sim.cost.step import MEMO_SIZE, Constant, Term, at_least, each_course_s, shape_rows, shape_tokens
from sim.cost.tables import Floats, Ints
from sim.engine.batch import Courses, Shape
from sim.specs.model import AttentionWindow, GpuSpec, ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

SOURCE = "roofline"
NO_RANKS = Ranks(0, 0)
MAX_GRAPH_TOKENS = 512
# From this length on, numpy beats a list comprehension; both give the same bits.
_VECTOR_SPAN = 64
_HEAD_LAUNCHES = 5
_PIECEWISE_LAUNCHES_PER_LAYER = 3
# So many sizes that follow one another are priced at once when so many of them were asked for: a short run has few.
SIZES_TOGETHER = 512
_SIZES_ASKED = 8


def graph_tokens(tokens: int) -> int:
    """Tokens that a captured CUDA graph computes for `tokens` real ones.

    vLLM captures 1, 2, 4, every 8 up to 256, every 16 up to 512 (`CompilationConfig.cudagraph_capture_sizes`).
    """
    if tokens <= 2:
        return tokens
    if tokens <= 4:
        return 4
    step = 8 if tokens <= 256 else 16
    return -(-tokens // step) * step


class DecodeStep(NamedTuple):
    """A pure decode step: device seconds without attention, launch bound, host seconds, and attention along the sum of
    contexts, where that is one line."""

    fixed_s: float
    launch_s: float
    host_s: float
    line: Line | None = None


# Serializable, so that `beside` can copy it.
@mypyc_attr(allow_interpreted_subclasses=True, serializable=True)
class Roofline:
    """`StepCost` of a model on `tp` GPUs: the terms add up, since prefill and decode attention are separate kernels.

    With `cuda_graphs`, steps of up to `max_graph_tokens` tokens are padded to the captured sizes; pure decode steps
    are then one launch, and so are rows of `verify_tokens` tokens each alone (0: of any number; it is that of a row
    with the most drafts); mixed ones, and rows that differ, launch attention between pieces (vLLM FULL_AND_PIECEWISE).
    Other steps launch every kernel, and the device waits where launching is slower than computing ("launch gaps").
    `window` is the attention window, "model" the model's own; shapes then must say what decode rows attend within it.
    With `offload` a step lasts at least as long as the host link is busy ("offload wait").
    Constructing raises InputError when the model cannot be split `tp` ways, has fewer layers than are offloaded, or
    the GPU lacks its dtype or, with a `tp` beyond a node, a network.
    """

    __slots__ = (
        "_asked", "_attention", "_by_type", "_decode_memo", "_eager_s", "_graph_memo", "_kernel_s", "_piecewise_s",
        "_plain", "_ranks", "_row_memo", "_sources", "_stream", "_token_memo", "cuda_graphs", "efficiency", "kernels",
        "max_graph_tokens", "model", "parallel", "routing", "verify_tokens", "window",
    )  # fmt: skip

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        *,
        parallel: Parallel = SINGLE,
        efficiency: Efficiency | None = None,
        cuda_graphs: bool = True,
        max_graph_tokens: int = MAX_GRAPH_TOKENS,
        window: AttentionWindow | Literal["model"] | None = "model",
        offload: Offload | None = None,
        routing: Routing | None = None,
        verify_tokens: int = 0,
    ) -> None:
        model.check_parallel(parallel)
        gpu.check_group(parallel)
        if model.unpriced:
            raise InputError(f"model {model.name!r} has no price, so that it cannot be run: {model.unpriced}")
        if max_graph_tokens < 1:
            raise InputError(f"max_graph_tokens = {max_graph_tokens} must be at least 1")
        self.model, self.parallel = model, parallel
        self.cuda_graphs, self.max_graph_tokens, self.verify_tokens = cuda_graphs, max_graph_tokens, verify_tokens
        self.efficiency = efficiency or Efficiency.of(gpu)
        self.kernels = Kernels(gpu, self.efficiency, model.dtype, model.kv_dtype, model.weight_dtype)
        self.window = model.attended_window if window == "model" else window
        self._sources = Sources(model, self.kernels, parallel)
        rank = SOURCES.index(self._sources.of("decode attention"))
        self._attention = _attention(model, self.kernels, parallel, self.window, rank)
        self._by_type = ByType(model, gpu, self.efficiency) if model.blocks else None
        self.routing = routing or Routing()
        if model.experts:
            self.routing.check(model.experts)
        self._stream = None
        if offload is not None and not isinstance(self._attention, BlockAttention):
            self._stream = Stream(model, self.kernels, parallel, self._attention, offload)
        self._plain = self.window is None and (self._stream is None or self._stream.idle)
        launch_s = self.efficiency.launch_s
        self._kernel_s = model.layers * launch_s
        self._piecewise_s = self._kernel_s * _PIECEWISE_LAUNCHES_PER_LAYER
        self._eager_s = launch_s * (_launches(model, parallel) + (_HEAD_LAUNCHES if model.has_head else 0))
        self._ranks = NO_RANKS
        self._token_memo: dict[int, float] = {}
        self._asked: dict[int, int] = {}
        self._row_memo: dict[int, float] = {}
        self._decode_memo: dict[int, DecodeStep] = {}
        self._graph_memo: dict[int, Terms] = {}

    def beside(self, ranks: Ranks) -> Roofline:
        """The same prices in a step in which the data-parallel ranks compute so many tokens; nothing remembered."""
        other = copy(self)
        other._ranks = ranks
        other._token_memo, other._asked, other._row_memo = {}, {}, {}
        other._decode_memo, other._graph_memo = {}, {}
        return other

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        prefills, decodes, context, copied_bytes, swapped_bytes, _, _, verifies = shape[:8]
        if prefills or copied_bytes or swapped_bytes or verifies or not decodes:
            fixed_s, launch_s, host_s = self._mixed(shape)
            if self._plain and not decodes:
                return [fixed_s if fixed_s > launch_s else launch_s] * repeats, host_s
            line = self._full_line(decodes) if self._plain else None
        else:
            fixed_s, launch_s, host_s, line = self._decode_memo.get(decodes) or self._decode(decodes)
        if not self._plain or line is None:
            return self._bent_span_s(shape, repeats, fixed_s, launch_s), host_s
        start, value_s, slope_s, end = line.piece(context)
        if context + decodes * (repeats - 1) >= end:
            return ContextCost(line).span_s(shape, repeats, fixed_s, launch_s), host_s
        first_s = fixed_s + (value_s + slope_s * (context - start))
        if repeats == 1:
            times_s = [first_s if first_s > launch_s else launch_s]
        elif repeats < _VECTOR_SPAN:
            times_s, tokens, growth = [], float(context), float(decodes)
            for _ in range(repeats):
                times_s.append(fixed_s + (value_s + slope_s * (tokens - start)))
                tokens += growth
            if first_s < launch_s:
                times_s = at_least(times_s, launch_s)
        else:
            grown = np.arange(context, context + decodes * repeats, decodes)
            times_s = np.maximum(fixed_s + (value_s + slope_s * (grown - start)), launch_s).tolist()
        return times_s, host_s

    def course_s(self, courses: Courses) -> tuple[list[float], float]:
        """As `sim.cost.step.course_s`: only attention differs between the steps."""
        if not self._plain or isinstance(self._attention, BlockAttention):
            return each_course_s(self, courses)
        first, tokens = courses.first, courses.tokens
        work_s, launch_s = self._work_s(tokens, tokens), self._launch_s(tokens, first)
        line = self._full_line(first.verifies[0][1])
        device = line.each([past + tokens for past in courses.pasts], work_s)
        return at_least(device, launch_s), self._host_s(tokens, first)

    def decode_steps_s(self, decodes: int, contexts: list[int]) -> list[float]:
        """Device seconds of steps of so many decode rows each, by the tokens that these attend, the first fewest and
        the last most; without a window."""
        fixed_s, launch_s, *_ = self._decode_memo.get(decodes) or self._decode(decodes)
        line = self._full_line(decodes)
        return at_least(line.each(contexts, fixed_s), launch_s)

    def launching_s(self, shape: Shape) -> float | None:
        """Seconds that the host needs to launch the step's kernels one by one; None where a CUDA graph has most."""
        tokens = shape_tokens(shape)
        return None if self._in_graph(tokens) else self._launch_s(tokens, shape)

    def _full_line(self, decodes: int) -> Line:
        line = self._attention.lines(decodes)[0]
        assert line is not None, "without a window all layers are full ones"
        return line

    def _bent_span_s(self, shape: Shape, repeats: int, fixed_s: float, launch_s: float) -> list[float]:
        """Device seconds with a window or with layers in host memory: the greater of lines in both contexts."""
        _, decodes, context, _, _, within, growth = shape[:7]
        if self.window is not None and bool(within) != bool(decodes):
            raise ValueError(f"{decodes} decode rows attend {within} tokens within the window of {self.window}")
        steps = np.arange(repeats, dtype=np.float64)
        contexts, withins = context + decodes * steps, within + growth * steps
        seconds = np.full(repeats, fixed_s)
        if decodes:
            for line, tokens in zip(self._attention.lines(decodes), (contexts, withins), strict=True):
                if line is not None:
                    seconds = seconds + line.along(tokens)
        link_s, link_slope_s, link_window_s = self._link(shape)
        link_busy_s = link_s + link_slope_s * contexts + link_window_s * withins
        times_s: list[float] = np.maximum(np.maximum(seconds, launch_s), link_busy_s).tolist()
        return times_s

    def _link(self, shape: Shape) -> tuple[float, float, float]:
        """Seconds that the host link is busy: fixed, per token of context, and per token within the window."""
        stream = self._stream
        if stream is None or not (shape.prefills or shape.decodes or shape.verifies):
            return 0.0, 0.0, 0.0
        swap_s = self.kernels.swap_s(shape.swapped_bytes) if shape.swapped_bytes else 0.0
        return stream.fixed_s(shape.prefills, shape.verifies) + swap_s, stream.context_s, stream.window_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`; a term that is zero for this shape is left out."""
        tokens, rows = shape_tokens(shape), shape_rows(shape)
        context, within, attention = shape.decode_context, shape.decode_window_context, self._attention
        terms: Terms = {}
        if tokens:
            terms |= self._token_terms(tokens) | row_terms(self.model, self.kernels, self.parallel, rows)
            terms["prefill attention"] = attention.prefill_s(shape.prefills)
            terms["decode attention"] = attention.decode_s(shape.decodes, context, within)
            terms["verify attention"] = attention.verify_s(shape.verifies)
        terms["block copies"] = self.kernels.copy_s(shape.copied_bytes) if shape.copied_bytes else 0.0
        terms["swap"] = self.kernels.swap_s(shape.swapped_bytes) if shape.swapped_bytes else 0.0
        terms["launch gaps"] = max(0.0, self._launch_s(tokens, shape) - sum(terms.values()))
        link_s, link_slope_s, link_window_s = self._link(shape)
        busy_s = link_s + link_slope_s * context + link_window_s * within
        terms["offload wait"] = max(0.0, busy_s - sum(terms.values()))
        of = self._sources.of
        named = {name: Term(seconds, of(name)) for name, seconds in terms.items() if seconds > 0.0}
        return {**named, "host": Term(self._host_s(rows, shape), SOURCE, on_host=True)}

    def prefill_attention_s(self, prefills: Slices) -> float:
        """What `explain` tells of the attention of prompts, where nothing else is asked for."""
        return self._attention.prefill_s(prefills)

    def counted_s(self, shape: Shape) -> dict[str, float]:
        """Seconds of the terms of `explain` that go by numbers of tokens and of logits rows, some of them 0."""
        rows = shape_rows(shape)
        return self._token_terms(shape_tokens(shape)) | row_terms(self.model, self.kernels, self.parallel, rows)

    def error_of(self, term: str, source: str) -> Error | None:
        """What is known of a term's error from the very tables that its constants were fitted to; None where nothing is
        (`sim.cost.errors.error_of` then goes by its class)."""
        return self._sources.error_of(term) if source == SOURCES[FITTED] else None

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        gpu = self.kernels.gpu
        keys = [f"{self.model.dtype}_flops_per_s", "memory_bytes_per_s", "sms", "pcie_bytes_per_s"]
        if self.kernels.computes_fp8:
            keys.insert(1, "fp8_flops_per_s")
        sheet = [Constant(key, getattr(gpu, key), gpu.source_of(key)) for key in keys]
        group = self.parallel.expert_gpus if self.model.experts else self.parallel.tp
        if self.parallel.gpus > 1:
            key = "link_bytes_per_s" if gpu.link_bytes_per_s else "pcie_bytes_per_s"
            sheet.append(Constant("peer_bytes_per_s", gpu.peer_bytes_per_s, gpu.source_of(key)))
            sheet.extend(self.kernels.collectives.describe(self.parallel.tp))
        if (nodes := gpu.nodes(group)) > 1:
            sheet.append(Constant("nodes", nodes, f"a node's GPUs: {gpu.source_of('node_gpus')}"))
            key = "network_bytes_per_s"
            sheet.append(Constant(key, gpu.network_bytes_per_s, gpu.source_of(key)))
        if self.window:
            text = f"attended at most in {self.window.layers} of {self.model.layers} layers"
            sheet.append(Constant("window_tokens", self.window.span_tokens, text))
        if self._stream:
            sheet.extend(self._stream.describe())
        return sheet + self.efficiency.describe()

    def _decode(self, decodes: int) -> DecodeStep:
        """A pure decode step of so many rows, at least one."""
        shape = Shape(decodes=decodes)
        fixed_s, launch_s = self._work_s(decodes, decodes), self._launch_s(decodes, shape)
        entry = DecodeStep(fixed_s, launch_s, self._host_s(decodes, shape), self._attention.lines(decodes)[0])
        if len(self._decode_memo) < MEMO_SIZE:
            self._decode_memo[decodes] = entry
        return entry

    def _mixed(self, shape: Shape) -> tuple[float, float, float]:
        """(device seconds without decode attention, launch bound, host seconds) of any step."""
        prefills, decodes, _, copied_bytes, swapped_bytes, _, _, verifies = shape[:8]
        tokens = rows = decodes
        for new, _ in prefills:
            tokens += new
            rows += 1
        for new, several, _, _ in verifies:
            tokens += new * several
            rows += new * several
        fixed_s = self._work_s(tokens, rows) if tokens else 0.0
        if prefills:
            fixed_s += self._attention.prefill_s(prefills)
        if verifies:
            fixed_s += self._attention.verify_s(verifies)
        if copied_bytes:
            fixed_s += self.kernels.copy_s(copied_bytes)
        if swapped_bytes:
            fixed_s += self.kernels.swap_s(swapped_bytes)
        return fixed_s, self._launch_s(tokens, shape), self._host_s(rows, shape)

    def _work_s(self, tokens: int, rows: int) -> float:
        """All that depends on counts of tokens and of logits rows only."""
        if self._ranks.most and self._in_graph(tokens):
            tokens = self._ranks.most  # padded to as many: priced once for all ranks
        token_s = self._token_memo.get(tokens)
        if token_s is None:
            token_s = self._size_s(tokens)
        row_s = self._row_memo.get(rows)
        if row_s is None:
            row_s = _total_s(self._row_memo, rows, row_terms(self.model, self.kernels, self.parallel, rows))
        return token_s + row_s

    def _size_s(self, tokens: int) -> float:
        """The same of tokens only, priced for the first time; of all about as many, where many such are asked for."""
        memo = self._token_memo
        if self.model.experts or self._by_type is not None or self._ranks.most or self._in_graph(tokens):
            return self._one_size_s(tokens)
        stretch = tokens // SIZES_TOGETHER
        self._asked[stretch] = asked = self._asked.get(stretch, 0) + 1
        if asked != _SIZES_ASKED or len(memo) > MEMO_SIZE - SIZES_TOGETHER:
            return self._one_size_s(tokens)
        first, least = stretch * SIZES_TOGETHER, self.max_graph_tokens + 1 if self.cuda_graphs else 1
        sizes = np.arange(max(first, least), first + SIZES_TOGETHER)
        memo.update(zip(sizes.tolist(), self._sizes_s(sizes).tolist(), strict=True))
        return memo[tokens]

    def _one_size_s(self, tokens: int) -> float:
        return _total_s(self._token_memo, tokens, self._token_terms(tokens))

    def _sizes_s(self, sizes: Ints) -> Floats:
        """Of each of these sizes, none of which is in a graph, what `_one_size_s` tells, to the bit."""
        each_s: Floats = added(self._roof_terms(sizes).values())
        return each_s

    def _token_terms(self, tokens: int) -> Terms:
        """The same of tokens only, by name; a CUDA graph computes the size that it was captured for."""
        if not self._in_graph(tokens):
            return self._roof_terms(tokens)
        size = min(graph_tokens(self._ranks.most or tokens), self.max_graph_tokens)
        terms = self._graph_memo.get(size)
        if terms is None:
            terms = self._graph_memo[size] = self._roof_terms(size)
        return terms

    def _roof_terms(self, computed: Any, known: Container[str] = ()) -> dict[str, Any]:
        """The same of so many tokens computed, padding included; products among those `known` are left at 0. Of an
        array each one's, where no rank has other tokens than this and no layer experts."""
        model, kernels, parallel, routing = self.model, self.kernels, self.parallel, self.routing
        ranks = None if isinstance(computed, np.ndarray) else self._all_ranks(computed)
        if self._by_type is not None:
            return block_token_terms(model, kernels, self._by_type, parallel, computed, routing, ranks)
        return token_terms(model, kernels, parallel, computed, routing, known, ranks)

    def _all_ranks(self, computed: int) -> Ranks:
        """What all ranks compute beside so many tokens of this one: in a CUDA graph as many, padded to the fullest."""
        most, total = self._ranks
        if not most or self._in_graph(most):
            return Ranks(computed, computed * self.parallel.dp)
        return Ranks(most, total)

    def _host_s(self, rows: int, shape: Shape) -> float:
        """Scheduling, preparing inputs and handling outputs; launching kernels is counted on the device."""
        if not rows and not shape.copied_bytes and not shape.swapped_bytes:
            return 0.0
        return self.efficiency.host_step_s + self.efficiency.host_row_s * rows

    def _in_graph(self, tokens: int) -> bool:
        return self.cuda_graphs and tokens <= self.max_graph_tokens and self._ranks.most <= self.max_graph_tokens

    def in_pieces(self, shape: Shape) -> bool:
        """Whether a CUDA graph of the step is cut at each layer's attention: whole ones are of equal rows alone."""
        prefills, decodes, _, _, _, _, _, verifies = shape[:8]
        if not verifies:
            return bool(prefills)
        width = verifies[0][0]
        return bool(prefills or decodes) or len(verifies) > 1 or width != (self.verify_tokens or width)

    def _launch_s(self, tokens: int, shape: Shape) -> float:
        """Seconds that the host needs to launch the step's kernels, which the device cannot undercut."""
        if tokens == 0:
            return 0.0
        if self._in_graph(tokens):
            return self._piecewise_s if self.in_pieces(shape) else 0.0
        prefills, decodes, _, _, _, _, _, verifies = shape[:8]
        kinds = (1 if prefills else 0) + (1 if decodes else 0) + (1 if verifies else 0)
        return self._eager_s + self._kernel_s * kinds


def _launches(model: ModelSpec, parallel: Parallel) -> int:
    return block_launches(model, parallel) if model.blocks else launches(model, parallel)


def _attention(
    model: ModelSpec, kernels: Kernels, parallel: Parallel, window: AttentionWindow | None, rank: int
) -> Attention | BlockAttention:
    """Attention of all layers.

    Raises InputError for a window other than the model's on layers of several kinds.
    """
    if not model.blocks:
        return Attention(model, kernels, parallel, window, rank)
    if window != model.attended_window:
        raise InputError(
            f"model {model.name!r} has layers of several kinds, whose own windows cannot be exchanged for one of "
            f"{window.span_tokens if window else 0} tokens; choose an allocator that drops no tokens"
        )
    return BlockAttention(model, kernels, parallel)


def _total_s(memo: dict[int, float], size: int, terms: Terms) -> float:
    total_s: float = added(terms.values())
    if len(memo) < MEMO_SIZE:
        memo[size] = total_s
    return total_s
