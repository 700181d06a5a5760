"""What a step does, priced from a profile's tables: which kernels a model's operations launch and how often, attention,
launching, the host's work, moved blocks.

What the tables lack is None here, and for the roofline to price. It knows no batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from sim.cost.attend import Slices
from sim.cost.contexts import ContextCost
from sim.cost.experts import BALANCED, Routing
from sim.cost.interpolation import INTERPOLATED, MEASURED, Price, Prices, price_of
from sim.cost.layers import added
from sim.cost.lookup import Kernel, Tables
from sim.cost.schema import NO_CACHE
from sim.cost.splits import Cut, Tail, keys_of
from sim.cost.step import MEMO_SIZE
from sim.cost.tables import Ints, Value
from sim.engine.batch import Verifies
from sim.specs.model import AttentionWindow, Gemm, ModelSpec
from sim.specs.parallel import Parallel

_PARTS = ("prefill", "decode", "mixed")


class RoutedLayer(NamedTuple):
    """The measured experts of a layer, by tokens: how many experts these touch the routing says."""

    kernel: Kernel
    routing: Routing
    experts: int
    visited: int

    def at(self, tokens: float) -> Price:
        """Seconds of one layer."""
        return self.kernel.at(tokens, self.routing.load(tokens, self.experts, self.visited).touched)


class Launches(NamedTuple):
    """`times` launches of a kernel with `scale` times the tokens of the step."""

    times: int
    kernel: Kernel | RoutedLayer
    scale: int = 1


def total(prices: Sequence[Price]) -> Price:
    """Their sum, as good as the worst of them."""
    return Price(added([price.seconds for price in prices]), max((price.rank for price in prices), default=MEASURED))


def launched(parts: Sequence[Launches], size: int) -> Price:
    """Seconds of a term with `size` tokens or rows."""
    if len(parts) == 1:
        times, kernel, scale = parts[0]
        seconds, rank = kernel.at(scale * size)
        return price_of((times * seconds, rank))
    prices = ((times, kernel.at(scale * size)) for times, kernel, scale in parts)
    return total([Price(times * price.seconds, price.rank) for times, price in prices])


def launched_each(parts: Sequence[Launches], sizes: Ints) -> Prices:
    """`launched` of each of these sizes, to the bit, of kernels that know numbers of tokens alone."""
    seconds, ranks = np.zeros(len(sizes)), np.full(len(sizes), MEASURED)
    for times, kernel, scale in parts:
        assert isinstance(kernel, Kernel), "experts are priced one by one"
        each_s, each_ranks = kernel.each(scale * sizes)
        seconds, ranks = seconds + times * each_s, np.maximum(ranks, each_ranks)
    return seconds, ranks


class Operations:
    """By the names of the roofline's terms, what a step launches for its tokens and for its rows of logits."""

    def __init__(self, model: ModelSpec, parallel: Parallel, tables: Tables, routing: Routing) -> None:
        self._model, self._parallel, self._tables, self._routing = model, parallel, tables, routing
        self.by_tokens: dict[str, list[Launches]] = {}
        self.by_rows: dict[str, list[Launches]] = {}
        if not model.blocks:  # layers of several kinds are the roofline's
            self._matrices()
            self._small()
            if model.experts:
                self._experts()
        self._rows()
        if parallel.tp > 1 and not model.blocks:
            message = model.hidden * model.element_bytes
            kernel = tables.kernel("all_reduce", op="all_reduce", gpus=parallel.tp)
            self._add("all-reduce", [(2 * model.layers, kernel, message)])

    def _add(self, name: str, parts: Sequence[tuple[int, Kernel | None, int]], *, rows: bool = False) -> None:
        """Keep the term if all of its kernels are known."""
        launches = [Launches(times, kernel, scale) for times, kernel, scale in parts if kernel is not None and times]
        if launches and len(launches) == len(parts):
            (self.by_rows if rows else self.by_tokens)[name] = launches

    def _gemm(self, gemm: Gemm, layers: int, weights: str) -> tuple[int, Kernel | None, int]:
        kernel = self._tables.kernel("gemm", dtype=self._model.dtype, weight_dtype=weights, k=gemm.k, n=gemm.n)
        return layers, kernel, 1

    def _elementwise(self, op: str, width: int, kv_dtype: str = NO_CACHE) -> Kernel | None:
        return self._tables.kernel("elementwise", op=op, dtype=self._model.dtype, kv_dtype=kv_dtype, width=width)

    def _matrices(self) -> None:
        model, parallel = self._model, self._parallel
        groups = (
            (model.attention_gemms(parallel), model.layers, ""),
            (model.mlp_gemms(parallel), model.dense_layers, "activation"),
            (model.shared_gemms(parallel), model.expert_layers, "shared expert activation"),
        )
        for gemms, layers, activation in groups:
            for gemm in gemms:
                self._add(gemm.name, [self._gemm(gemm, layers, model.weight_dtype)])
            if gemms and activation:
                self._add(activation, [(layers, self._elementwise("activation", gemms[-1].k), 1)])

    def _small(self) -> None:
        model, layers, heads = self._model, self._model.layers, self._model.heads // self._parallel.tp
        kv_heads, dim, kv_dtype = model.gpu_kv_heads(self._parallel), model.head_dim, model.kv_dtype
        norms = (4 if model.post_norms else 2) * layers
        self._add("embedding", [(1, self._elementwise("embedding", model.hidden), 1)])
        self._add("norms", [(norms, self._elementwise("norm", model.hidden), 1)])
        if "norms" in self.by_tokens:  # the last one is of the rows whose logits are wanted
            self._add("final norm", [(1, self._elementwise("norm", model.hidden), 1)], rows=True)
        if model.is_latent:
            return
        if model.qk_norm:
            widths = (heads * dim, kv_heads * dim)
            self._add("query and key norms", [(layers, self._elementwise("head_norm", width), 1) for width in widths])
        if not model.learned_positions:
            fused = self._elementwise("rope_kv_write", (heads + 2 * kv_heads) * dim, kv_dtype)
            if fused is not None:
                self._add("rope", [(layers, fused, 1)])
                self.by_tokens["KV write"] = []
                return
            self._add("rope", [(layers, self._elementwise("rope", (heads + kv_heads) * dim), 1)])
        self._add("KV write", [(layers, self._elementwise("kv_write", 2 * kv_heads * dim, kv_dtype), 1)])

    def _experts(self) -> None:
        model, layers, visited = self._model, self._model.expert_layers, self._model.experts_per_token
        router = Gemm("router", model.hidden, model.experts)
        route = self._elementwise("route", model.experts)
        self._add("router", [self._gemm(router, layers, model.dtype), (layers, route, 1)])
        up, down = model.expert_gemms(self._parallel)
        whole = self._expert_layer(down.k)
        if whole is not None:
            self.by_tokens[up.name] = [Launches(layers, whole)]
            for name in ("expert activation", down.name, "expert combine"):
                self.by_tokens[name] = []
            return
        for gemm in (up, down):
            kernel = self._tables.kernel(
                "expert_gemm",
                dtype=model.dtype,
                weight_dtype=model.weight_dtype,
                experts=model.experts,
                experts_per_token=visited,
                k=gemm.k,
                n=gemm.n,
            )
            self._add(gemm.name, [(layers, kernel, 1)])
        self._add("expert activation", [(layers, self._elementwise("activation", down.k), visited)])
        self._add("expert combine", [(layers, self._elementwise("combine", model.hidden * visited), 1)])

    def _expert_layer(self, ffn: int) -> RoutedLayer | None:
        """The whole layer where it was measured: by the run's own routing, else by even loads, else by any."""
        model, table = self._model, self._tables.table("expert_layer")
        if table is None:
            return None
        known = list(dict.fromkeys(table.texts("routing")))
        wanted = [self._routing.text, BALANCED, *known]
        for routing in (text for text in wanted if text in known):
            kernel = self._tables.kernel(
                "expert_layer", dtype=model.dtype, weight_dtype=model.weight_dtype, hidden=model.hidden, ffn=ffn,
                experts=model.experts, experts_per_token=model.experts_per_token, routing=routing,
            )  # fmt: skip
            if kernel is not None:
                return RoutedLayer(kernel, self._routing, model.experts, model.experts_per_token)
        return None

    def _rows(self) -> None:
        model, parallel = self._model, self._parallel
        head = Gemm("LM head", model.hidden, -(-model.vocab // parallel.tp))
        self._add(head.name, [self._gemm(head, 1, model.dtype)], rows=True)
        self._add("sampling", [(1, self._tables.kernel("sampling", vocab=model.vocab), 1)], rows=True)
        if parallel.tp > 1:
            gather = self._tables.kernel("all_reduce", op="all_gather", gpus=parallel.tp)
            self._add("logits gather", [(1, gather, model.vocab * model.element_bytes)], rows=True)


class MeasuredAttention:
    """Attention of all layers; what is None is in no table.

    `processors` are those that decode rows are cut for by FlashAttention-2's rule; 0 where a kernel has another.
    """

    def __init__(
        self,
        model: ModelSpec,
        parallel: Parallel,
        tables: Tables,
        window: AttentionWindow | None,
        processors: int = 0,
    ) -> None:
        self._tables = tables
        self._processors = processors
        self._longest = model.max_context_tokens
        self._heads = _heads(model, parallel)
        windowed = window.layers if window else 0
        # A window with sinks attends as many tokens as a plain one of the same span.
        spans = [(0, model.layers - windowed), (window.span_tokens if window else 0, windowed)]
        self._windows = {span: layers for span, layers in spans if layers}
        self._plain = not model.is_latent and not model.blocks
        self._prefill: list[tuple[int, Kernel]] | None = None
        self._decode: list[tuple[int, Kernel]] | None = None
        self._mixed: list[tuple[int, Kernel]] | None = None
        if self._plain:
            self._prefill = self._kernels("prefill_attention")
            self._decode = self._kernels("decode_attention", width=1)
            self._mixed = self._kernels("mixed_attention")
        elif not model.blocks and not windowed:
            made = {"nope_dim": model.qk_nope_head_dim, "value_dim": model.v_head_dim}
            self._prefill = self._whole("latent_prefill_attention", **made)
            self._decode = self._whole("latent_decode_attention")
            self._processors = 0  # whose rule is of another kernel
        self._mixed_shares = [
            kernel.uneven if kernel.uneven.rows or not self._decode else self._decode[at][1].uneven
            for at, (_, kernel) in enumerate(self._mixed or ())
        ]
        self._widths: dict[int, list[tuple[int, Kernel]] | None] = {}
        self._slices: dict[tuple[int, int, int], Price] = {}

    @property
    def measures_mixed(self) -> bool:
        """Whether prefill and decode attention in one launch were measured."""
        return self._mixed is not None

    def _kernels(self, table: str, **more: Value) -> list[tuple[int, Kernel]] | None:
        """(layers, kernel) of the full layers and of those with a window; None where a kernel is missing."""
        kernels = []
        for span, layers in self._windows.items():
            kernel = self._tables.kernel(table, **self._heads, window=span, **more)
            if kernel is None:
                return None
            kernels.append((layers, kernel))
        return kernels

    def _whole(self, table: str, **more: Value) -> list[tuple[int, Kernel]] | None:
        """The same of a table that knows no windows."""
        kernel = self._tables.kernel(table, **self._heads, **more)
        return None if kernel is None else [(self._windows[0], kernel)]

    def prefill(self, slices: Slices) -> Price | None:
        """Seconds of all slices: one launch a layer, priced as the mean of launches of so many slices alike."""
        if self._prefill is None:
            return None
        return self._mean(self._slices, self._prefill, [(len(slices), past, new) for new, past in slices])

    def verify(self, verifies: Verifies) -> Price | None:
        """Seconds of rows that verify drafts: decode attention with as many queries as a row has tokens, priced as the
        mean, by row, of launches of so many rows of the mean context of those with equally many tokens.

        Of latent attention such rows are in no table.
        """
        if not self._plain:
            return None
        launched = sum(rows for _, rows, _, _ in verifies)
        prices = []
        for tokens, rows, past, _ in verifies:
            if tokens not in self._widths:
                self._widths[tokens] = self._kernels("decode_attention", width=tokens)
            kernels = self._widths[tokens]
            if kernels is None:
                return None
            price = _launch(kernels, (launched, past / rows + tokens))
            prices.append(Price(rows * price.seconds, price.rank))
        added = total(prices)
        return Price(added.seconds / launched, added.rank)

    @property
    def cuts_rows(self) -> bool:
        """Whether all rows' contexts count, since the kernel cuts them by a rule that is known."""
        return bool(self._processors and self._decode)

    @property
    def uneven(self) -> bool:
        """Whether decode rows cost more when their contexts differ."""
        return self.cuts_rows or any(
            max(kernel.uneven.shares, default=0.0) > 0.0 for _, kernel in (*(self._decode or ()), *(self._mixed or ()))
        )

    def mixed(self, slices: Slices, decodes: int, context: int, longest: int) -> Price | None:
        """Seconds of slices and decode rows in one launch, where the profile's engine does that.

        Several slices are priced as one of as many new tokens and as many (query, key) pairs. Contexts that differ
        cost a share of the way to the `longest`, that of decode attention where no other was measured; 0: unknown.
        """
        if self._mixed is None:
            return None
        new, pairs = 0, 0.0
        for tokens, before in slices:
            new += tokens
            pairs += tokens * (before + 0.5 * tokens)
        past = max(0.0, pairs / new - 0.5 * new)
        mean = context / decodes
        prices = []
        for at, (layers, kernel) in enumerate(self._mixed):
            share = self._mixed_shares[at].at(decodes) if longest > mean else 0.0
            if share:
                seconds, rank, most_s, most_rank = kernel.both((decodes, mean, past, new), longest)
                if most_s > seconds:
                    seconds += share * (most_s - seconds)
                rank = max(rank, most_rank, INTERPOLATED)
            else:
                seconds, rank = kernel.at(decodes, mean, past, new)
            prices.append(price_of((layers * seconds, rank)))
        return prices[0] if len(prices) == 1 else total(prices)

    def context_costs(self, decodes: int, captured: int = 0) -> tuple[ContextCost | None, ContextCost | None] | None:
        """Decode attention by the sum of contexts, of full layers and of those with a window.

        `captured` are the rows that a CUDA graph was captured for; 0 where the kernel is launched by itself.
        """
        if self._decode is None:
            return None
        costs = {}
        for span, (layers, kernel) in zip(self._windows, self._decode, strict=True):
            line = kernel.context_line(decodes, layers)
            if not self._processors:
                costs[bool(span)] = ContextCost(line, kernel.uneven.at(decodes))
                continue
            # Rows that fill their window are alike.
            tail = None if span else Tail(layers * kernel.at(1, 0.0).seconds, line.rate, self._cut(decodes, captured))
            costs[bool(span)] = ContextCost(line, tail=tail)
        return costs.get(False), costs.get(True)

    def _cut(self, decodes: int, captured: int) -> Cut:
        keys = keys_of(int(self._heads["head_dim"]))
        most_blocks = -(-self._longest // keys) if captured else 0
        return Cut(captured or decodes, int(self._heads["kv_heads"]), self._processors, keys, most_blocks)

    def _mean(
        self,
        memo: dict[tuple[int, int, int], Price],
        kernels: Sequence[tuple[int, Kernel]],
        points: Sequence[tuple[int, int, int]],
    ) -> Price:
        seconds, rank = 0.0, MEASURED
        for point in points:
            price = memo.get(point)
            if price is None:
                price = _launch(kernels, point)
                if len(memo) < MEMO_SIZE:
                    memo[point] = price
            if len(points) == 1:
                return price
            seconds += price.seconds
            rank = max(rank, price.rank)
        return Price(seconds / len(points), rank)


def _heads(model: ModelSpec, parallel: Parallel) -> dict[str, Value]:
    """What tells apart the attention kernels of one GPU, by columns of the tables."""
    types: dict[str, Value] = {"dtype": model.dtype, "kv_dtype": model.kv_dtype, "heads": model.heads // parallel.tp}
    if model.is_latent:
        return types | {"rank": model.kv_lora_rank, "rope_dim": model.qk_rope_head_dim}
    return types | {"kv_heads": model.gpu_kv_heads(parallel), "head_dim": model.head_dim}


def _launch(kernels: Sequence[tuple[int, Kernel]], point: tuple[float, ...]) -> Price:
    prices = ((layers, kernel.at(*point)) for layers, kernel in kernels)
    return total([Price(layers * price.seconds, price.rank) for layers, price in prices])


class Size(NamedTuple):
    """What launching and the host's work depend on: `parts` as in the tables, by CUDA graph (1) or not, rows of logits,
    new tokens of prompts."""

    parts: str
    graph: int
    rows: int
    prefill_tokens: int


size_of = partial(tuple.__new__, Size)
"""A size from all of its fields, in their order; without the Python frame of a NamedTuple's own constructor."""


class Overheads:
    """Prices of everything that is no operation of the model: launching, the host's work, moved blocks."""

    def __init__(self, layers: int, tables: Tables) -> None:
        self._layers = layers
        kinds = [(parts, graph) for parts in _PARTS for graph in (0, 1)]
        self._launches = {(parts, graph): tables.kernel("launch", parts=parts, graph=graph) for parts, graph in kinds}
        self._hosts = {(parts, graph): tables.kernel("host", parts=parts, graph=graph) for parts, graph in kinds}
        self._copy = tables.kernel("copy")
        self._swaps = [tables.kernel("swap", direction=way) for way in ("out", "in")]

    def launch(self, size: Size) -> Price | None:
        """The host's time to launch the step; on a synchronous device all that it does beside its operations."""
        kernel = self._launches[size[:2]]
        return None if kernel is None else kernel.at(self._layers, *size[2:])

    def captures(self, parts: str) -> bool:
        """Whether steps with such parts may be CUDA graphs: not where only launching each kernel was measured.

        An engine that captures decode steps alone launches all others eagerly; of an engine whose launches nobody
        measured it is not known. Graphs that wait for no launch have the host's times alone.
        """
        return self.measures(parts) or self._launches[parts, 0] is None

    def measures(self, parts: str) -> bool:
        """Whether steps with such parts were measured as CUDA graphs."""
        return self._launches[parts, 1] is not None or self._hosts[parts, 1] is not None

    def host(self, size: Size) -> Price | None:
        """Packing the step and handling what it sampled."""
        kernel = self._hosts[size[:2]]
        return None if kernel is None else kernel.at(*size[2:])

    def copies(self, copied_bytes: int) -> Price | None:
        """Copies from block to block: one launch a layer."""
        return self._moved([self._copy], copied_bytes)

    def swaps(self, swapped_bytes: int) -> Price | None:
        """Swaps, one launch a layer; which way is not known, so that both count half."""
        return self._moved(self._swaps, swapped_bytes)

    def _moved(self, kernels: list[Kernel | None], moved_bytes: int) -> Price | None:
        known = [kernel.at(moved_bytes / self._layers) for kernel in kernels if kernel is not None]
        if len(known) < len(kernels):
            return None
        added = total(known)
        return Price(self._layers * added.seconds / len(known), added.rank)
