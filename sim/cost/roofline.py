"""The price of a step on a GPU nobody measured: a roofline per operation. All it yields is marked `roofline`.

Not modelled: tile and wave quantisation of GEMMs, uneven contexts in a decode batch, clocks under load, overlap of
communication with compute, sliding windows (every token counts as attended).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sim.batch import Shape
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import Kernels
from sim.cost.step import Constant, Term, shape_tokens
from sim.specs import GpuSpec, ModelSpec
from traces.schema import InputError

SOURCE = "roofline"
MAX_GRAPH_TOKENS = 512
# From this length on, numpy beats a list comprehension; both give the same bits.
_VECTOR_SPAN = 64
# Prices are kept for so many different sizes; beyond, they are computed anew.
_MEMO_SIZE = 65_536
_HEAD_LAUNCHES = 5
_PIECEWISE_LAUNCHES_PER_LAYER = 3

Terms = dict[str, float]


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


class Roofline:
    """`StepCost` of a model on `tp` GPUs: the terms add up, since prefill and decode attention are separate kernels.

    With `cuda_graphs`, steps of up to `max_graph_tokens` tokens are padded to the captured sizes; pure decode steps
    are then one launch, mixed ones launch attention between pieces (vLLM FULL_AND_PIECEWISE). Other steps launch
    every kernel, and the device waits where launching is slower than computing ("launch gaps").
    Constructing raises InputError when the model cannot be split `tp` ways or the GPU lacks its dtype.
    """

    __slots__ = (
        "_attention",
        "_context_s",
        "_decode_memo",
        "_eager_s",
        "_kernel_s",
        "_piecewise_s",
        "_row_memo",
        "_row_s",
        "_token_memo",
        "cuda_graphs",
        "efficiency",
        "kernels",
        "max_graph_tokens",
        "model",
        "tp",
    )

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        *,
        tp: int = 1,
        efficiency: Efficiency | None = None,
        cuda_graphs: bool = True,
        max_graph_tokens: int = MAX_GRAPH_TOKENS,
    ) -> None:
        model.check_tp(tp)
        if max_graph_tokens < 1:
            raise InputError(f"max_graph_tokens = {max_graph_tokens} must be at least 1")
        self.model, self.tp = model, tp
        self.cuda_graphs, self.max_graph_tokens = cuda_graphs, max_graph_tokens
        self.efficiency = efficiency or Efficiency.of(gpu)
        self.kernels = Kernels(gpu, self.efficiency, model.dtype, model.kv_dtype)
        kv_heads = model.gpu_kv_heads(tp)
        self._attention = self.kernels.prefill_attention(model.heads // tp, kv_heads, model.head_dim)
        row_s, context_s = self.kernels.decode_attention(kv_heads, model.head_dim)
        self._row_s, self._context_s = model.layers * row_s, model.layers * context_s
        self._kernel_s = model.layers * self.efficiency.launch_s
        self._piecewise_s = self._kernel_s * _PIECEWISE_LAUNCHES_PER_LAYER
        self._eager_s = self._kernel_s * self._layer_launches() + self.efficiency.launch_s * _HEAD_LAUNCHES
        self._token_memo: dict[int, float] = {}
        self._row_memo: dict[int, float] = {}
        self._decode_memo: dict[int, tuple[float, float, float]] = {}

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        prefills, decodes, context, copied_bytes, swapped_bytes = shape[:5]
        if prefills or copied_bytes or swapped_bytes:
            fixed_s, launch_s, host_s = self._mixed(shape)
        else:
            fixed_s, launch_s, host_s = self._decode_memo.get(decodes) or self._decode(decodes)
        slope_s = self._context_s
        if repeats == 1:
            step_s = fixed_s + slope_s * context
            return [step_s if step_s > launch_s else launch_s], host_s
        if decodes == 0:
            step_s = fixed_s + slope_s * context
            return [step_s if step_s > launch_s else launch_s] * repeats, host_s
        if repeats < _VECTOR_SPAN:
            contexts = range(context, context + decodes * repeats, decodes)
            if fixed_s + slope_s * context > launch_s:
                return [fixed_s + slope_s * tokens for tokens in contexts], host_s
            return [max(fixed_s + slope_s * tokens, launch_s) for tokens in contexts], host_s
        steps_s = fixed_s + slope_s * np.arange(context, context + decodes * repeats, decodes)
        times_s: list[float] = np.maximum(steps_s, launch_s).tolist()
        return times_s, host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`; a term that is zero for this shape is left out."""
        tokens, rows = shape_tokens(shape), len(shape.prefills) + shape.decodes
        terms: Terms = {}
        if tokens:
            terms |= self._token_terms(self._computed(tokens)) | self._row_terms(rows)
            terms["prefill attention"] = self._prefill_attention_s(shape.prefills)
            terms["decode attention"] = self._decode_rows_s(shape.decodes) + self._context_s * shape.decode_context
        terms["block copies"] = self.kernels.copy_s(shape.copied_bytes) if shape.copied_bytes else 0.0
        terms["swap"] = self.kernels.swap_s(shape.swapped_bytes) if shape.swapped_bytes else 0.0
        terms["launch gaps"] = max(0.0, self._launch_s(tokens, shape) - sum(terms.values()))
        named = {name: Term(seconds, SOURCE) for name, seconds in terms.items() if seconds > 0.0}
        return {**named, "host": Term(self._host_s(rows, shape), SOURCE, on_host=True)}

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        gpu = self.kernels.gpu
        keys = (f"{self.model.dtype}_flops_per_s", "memory_bytes_per_s", "sms", "pcie_bytes_per_s")
        sheet = [Constant(key, getattr(gpu, key), gpu.source_of(key)) for key in keys]
        if self.tp > 1:
            key = "link_bytes_per_s" if gpu.link_bytes_per_s else "pcie_bytes_per_s"
            sheet.append(Constant("peer_bytes_per_s", gpu.peer_bytes_per_s, gpu.source_of(key)))
        window = self.model.sliding_window_tokens
        if window:
            text = "not applied: every token counts as attended, an upper bound"
            sheet.append(Constant("sliding_window_tokens", window, text))
        return sheet + self.efficiency.describe()

    def _decode(self, decodes: int) -> tuple[float, float, float]:
        """(device seconds without context, launch bound, host seconds) of a pure decode step."""
        if decodes == 0:
            return 0.0, 0.0, 0.0
        shape = Shape(decodes=decodes)
        fixed_s = self._work_s(decodes, decodes) + self._decode_rows_s(decodes)
        entry = (fixed_s, self._launch_s(decodes, shape), self._host_s(decodes, shape))
        if len(self._decode_memo) < _MEMO_SIZE:
            self._decode_memo[decodes] = entry
        return entry

    def _mixed(self, shape: Shape) -> tuple[float, float, float]:
        """The same of any step: everything but what grows with the decode rows' context."""
        prefills, decodes, _, copied_bytes, swapped_bytes = shape[:5]
        tokens, rows = decodes, decodes + len(prefills)
        for new, _ in prefills:
            tokens += new
        fixed_s = self._work_s(tokens, rows) if tokens else 0.0
        if prefills:
            fixed_s += self._prefill_attention_s(prefills)
        if decodes:
            fixed_s += self._decode_rows_s(decodes)
        if copied_bytes:
            fixed_s += self.kernels.copy_s(copied_bytes)
        if swapped_bytes:
            fixed_s += self.kernels.swap_s(swapped_bytes)
        return fixed_s, self._launch_s(tokens, shape), self._host_s(rows, shape)

    def _work_s(self, tokens: int, rows: int) -> float:
        """All that depends on counts of tokens and of logits rows only."""
        token_s = self._token_memo.get(tokens)
        if token_s is None:
            token_s = _kept(self._token_memo, tokens, lambda: self._token_terms(self._computed(tokens)))
        row_s = self._row_memo.get(rows)
        if row_s is None:
            row_s = _kept(self._row_memo, rows, lambda: self._row_terms(rows))
        return token_s + row_s

    def _prefill_attention_s(self, prefills: tuple[tuple[int, int], ...]) -> float:
        if not prefills:
            return 0.0
        one_layer_s = self.efficiency.prefill_attention_floor_s
        for new, past in prefills:
            one_layer_s += self._attention.slice_s(new, past)
        return self.model.layers * one_layer_s

    def _decode_rows_s(self, decodes: int) -> float:
        if not decodes:
            return 0.0
        return self.model.layers * self.efficiency.decode_attention_floor_s + self._row_s * decodes

    def _host_s(self, rows: int, shape: Shape) -> float:
        """Scheduling, preparing inputs and handling outputs; launching kernels is counted on the device."""
        if not rows and not shape.copied_bytes and not shape.swapped_bytes:
            return 0.0
        return self.efficiency.host_step_s + self.efficiency.host_row_s * rows

    def _in_graph(self, tokens: int) -> bool:
        return self.cuda_graphs and tokens <= self.max_graph_tokens

    def _computed(self, tokens: int) -> int:
        return min(graph_tokens(tokens), self.max_graph_tokens) if self._in_graph(tokens) else tokens

    def _launch_s(self, tokens: int, shape: Shape) -> float:
        """Seconds that the host needs to launch the step's kernels, which the device cannot undercut."""
        if tokens == 0:
            return 0.0
        if self._in_graph(tokens):
            return self._piecewise_s if shape.prefills else 0.0
        return self._eager_s + self._kernel_s * (bool(shape.prefills) + bool(shape.decodes))

    def _layer_launches(self) -> int:
        """Kernels of a layer without attention: GEMMs, two norms, rope, activation, KV write and what comes on top."""
        model = self.model
        gemms = len(model.attention_gemms(1)) + len(model.mlp_gemms(1)) + len(model.expert_gemms(1))
        elementwise = 4 + (0 if model.learned_positions else 1) + (2 if model.qk_norm else 0)
        experts = 4 if model.experts else 0
        return gemms + elementwise + experts + (2 if self.tp > 1 else 0)

    def _token_terms(self, tokens: int) -> Terms:
        """Seconds that depend on the number of tokens computed only, all layers together."""
        model, kernels, tp = self.model, self.kernels, self.tp
        layers, element_bytes = model.layers, model.element_bytes
        hidden_bytes = tokens * model.hidden * element_bytes
        heads_bytes = tokens * (model.query_width // tp + model.gpu_kv_heads(tp) * model.head_dim) * element_bytes
        kv_bytes = tokens * model.gpu_kv_bytes_per_token(tp) / layers
        terms = {"embedding": kernels.small_s(2.0 * hidden_bytes)}
        for gemm in (*model.attention_gemms(tp), *model.mlp_gemms(tp)):
            terms[gemm.name] = layers * kernels.gemm_s(tokens, gemm.k, gemm.n)
        if model.mlp_gemms(tp):
            terms["activation"] = layers * self._activation_s(tokens, model.mlp_gemms(tp)[-1].k)
        if model.experts:
            terms |= self._expert_terms(tokens)
        terms["norms"] = (2 * layers + 1) * kernels.small_s(4.0 * hidden_bytes)
        if model.qk_norm:
            terms["query and key norms"] = 2 * layers * kernels.small_s(2.0 * heads_bytes)
        if not model.learned_positions:
            terms["rope"] = layers * kernels.small_s(2.0 * heads_bytes)
        terms["KV write"] = layers * kernels.small_s(2.0 * kv_bytes)
        if tp > 1:
            terms["all-reduce"] = 2 * layers * kernels.all_reduce_s(hidden_bytes, tp)
        return terms

    def _activation_s(self, tokens: float, width: int) -> float:
        inputs = 2 if self.model.gated_mlp else 1
        return self.kernels.small_s(tokens * (inputs + 1) * width * self.model.element_bytes)

    def _expert_terms(self, tokens: int) -> Terms:
        """Routed experts; with routing at random a step touches E (1 - (1 - k/E)^tokens) of the E experts."""
        model, kernels = self.model, self.kernels
        share = model.experts_per_token / model.experts
        touched = model.experts * (1.0 - (1.0 - share) ** tokens)
        assigned = tokens * model.experts_per_token
        up, down = model.expert_gemms(self.tp)
        routing_s = kernels.gemm_s(tokens, model.hidden, model.experts) + 2 * kernels.small_s(
            4.0 * tokens * model.experts
        )
        combine_s = kernels.small_s((assigned + tokens) * model.hidden * model.element_bytes)
        return {
            "router": model.layers * routing_s,
            up.name: model.layers * kernels.expert_gemm_s(assigned, touched, up.k, up.n),
            "expert activation": model.layers * self._activation_s(assigned, down.k),
            down.name: model.layers * kernels.expert_gemm_s(assigned, touched, down.k, down.n),
            "expert combine": model.layers * combine_s,
        }

    def _row_terms(self, rows: int) -> Terms:
        """Seconds that depend on the number of logits rows only."""
        model, kernels, tp = self.model, self.kernels, self.tp
        terms = {
            "LM head": kernels.gemm_s(rows, model.hidden, -(-model.vocab // tp)),
            "sampling": kernels.sampling_s(rows, model.vocab),
        }
        if tp > 1:
            terms["logits gather"] = kernels.gather_s(rows * model.vocab * model.element_bytes, tp)
        return terms


def _kept(memo: dict[int, float], size: int, price: Callable[[], Any]) -> float:
    seconds: float = sum(price().values())
    if len(memo) < _MEMO_SIZE:
        memo[size] = seconds
    return seconds
