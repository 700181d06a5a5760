"""The price of a step on a GPU that was measured: from a profile's tables, and the roofline where they have nothing.

Every term says where it is from: `measured` (a point of the grid), `interpolated`, `derived` (scaled from another GPU),
`extrapolated` (outside of what was measured), or `roofline` (the profile has no table for it). A decode batch is priced
by its mean and its longest context, where uneven batches were measured and the shape tells its longest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from mypy_extensions import mypyc_attr

from sim.cost.attend import Slices
from sim.cost.contexts import ContextCost
from sim.cost.efficiency import Efficiency
from sim.cost.errors import Error, of_steps, stated
from sim.cost.experts import Routing
from sim.cost.interpolation import MEASURED, SOURCES, Price, price_of
from sim.cost.layers import Ranks, added, row_terms
from sim.cost.lookup import Tables
from sim.cost.offload import Offload
from sim.cost.operations import (
    Launches,
    MeasuredAttention,
    Operations,
    Overheads,
    Size,
    launched,
    launched_each,
    size_of,
    total,
)
from sim.cost.profile import Profile
from sim.cost.roofline import MAX_GRAPH_TOKENS, SIZES_TOGETHER, DecodeStep, Roofline, graph_tokens
from sim.cost.step import MEMO_SIZE, Constant, Term, advanced, each_course_s, shape_rows, shape_tokens
from sim.cost.tables import Floats, Ints
from sim.engine.batch import Courses, Shape
from sim.engine.lockstep import LengthsTold
from sim.specs.model import AttentionWindow, GpuSpec, ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

Terms = dict[str, Price]
Parts = dict[str, Sequence[Launches] | None]
_INCLUDABLE = ("embedding", "activation", "norms", "rope", "KV write", "query and key norms", "sampling", "router")
"""Terms that may be part of another table's measurements."""


# As `Roofline`, for `beside`.
@mypyc_attr(allow_interpreted_subclasses=True, serializable=True)
class Profiled(Roofline):
    """`StepCost` of a model on `tp` GPUs from what was measured; arguments as of `Roofline`, and the profile.

    On a synchronous device (a CPU) launching adds to a step, and there are no CUDA graphs. Constructing raises
    InputError also where the profile is another GPU's, or is wrong about itself.
    """

    __slots__ = (
        "_by_rows",
        "_by_tokens",
        "_costs",
        "_counted",
        "_operations",
        "_overheads",
        "_priced",
        "_roof_ranks",
        "_row_parts",
        "_synchronous",
        "_together",
        "_together_measured",
        "_token_parts",
        "profile",
    )

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        profile: Profile,
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
        meta = profile.meta
        if meta.gpu != gpu.name:
            raise InputError(
                f"profile {meta.name!r} was measured on {meta.gpu}, and the GPU is {gpu.name}; choose "
                f"--gpu {meta.gpu}, or scale it with `calibrate derive --from {meta.name} --to {gpu.name}`"
            )
        for name in meta.included:
            if name not in _INCLUDABLE:
                raise InputError(f"profile {meta.name!r}: included {name!r} is none of {', '.join(_INCLUDABLE)}")
        self._synchronous = meta.synchronous
        if meta.captured_tokens:
            max_graph_tokens = meta.captured_tokens[-1]
        super().__init__(
            model,
            gpu,
            parallel=parallel,
            efficiency=efficiency,
            cuda_graphs=cuda_graphs and not meta.synchronous,
            max_graph_tokens=max_graph_tokens,
            window=window,
            offload=offload,
            routing=routing,
            verify_tokens=verify_tokens,
        )
        self.profile = profile
        tables = Tables(profile, gpu, self.efficiency)
        self._operations = Operations(model, parallel, tables, self.routing)
        self._priced = MeasuredAttention(model, parallel, tables, self.window, gpu.sms if meta.decode_splits else 0)
        self._together_measured = self._priced.measures_mixed
        self._overheads = Overheads(model.layers, tables)
        self._token_parts = self._parts(self._roof_terms(1), self._operations.by_tokens)
        self._row_parts = self._parts(self._roof_rows(1), self._operations.by_rows)
        self._by_tokens: dict[int, Terms] = {}
        self._by_rows: dict[int, Terms] = {}
        self._together: dict[int, tuple[int, Floats, Ints]] = {}
        """Of stretches of sizes: the first, and seconds and ranks by term and size."""
        self._counted: dict[tuple[int, int, int], tuple[float, float, float]] = {}
        self._roof_ranks: dict[str, int] = {}
        self._costs: dict[tuple[int, bool], tuple[ContextCost | None, ContextCost | None]] = {}

    def beside(self, ranks: Ranks) -> Profiled:
        """As `Roofline.beside`."""
        other = super().beside(ranks)
        assert isinstance(other, Profiled)
        other._by_tokens, other._together, other._counted = {}, {}, {}
        return other

    @property
    def needs_longest(self) -> bool:
        """Whether shapes should tell their longest decode context, which costs the engine to count."""
        return self._priced.uneven

    @property
    def needs_lengths(self) -> LengthsTold:
        """Of which steps they should tell the others too: one launch with prompts is priced by the longest alone."""
        if not self._priced.cuts_rows:
            return "never"
        return "alone" if self._together_measured else "always"

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        prefills, decodes, context, copied_bytes, swapped_bytes, _, _, verifies = shape[:8]
        plain = not (prefills or copied_bytes or swapped_bytes or verifies)
        if prefills and self._in_one_launch(shape):
            first_s, host_s = self._single_s(shape)
            return [first_s, *(self._single_s(advanced(shape, i))[0] for i in range(1, repeats))], host_s
        if plain and decodes:
            fixed_s, launch_s, host_s, _ = self._decode_memo.get(decodes) or self._decode(decodes)
        else:
            fixed_s, launch_s, host_s = self._mixed(shape)
        if not decodes:
            link_s, _, _ = self._link(shape)
            return [max(fixed_s, launch_s, link_s)] * repeats, host_s
        if not self._plain or swapped_bytes:
            return self._bent_span_s(shape, repeats, fixed_s, launch_s), host_s
        costs = self._costs.get((decodes, plain)) or self._context_costs(shape, plain=plain)
        cost = costs[0]
        assert cost is not None, "without a window all layers are full ones"
        if repeats == 1 and cost.tail is None:
            step_s = fixed_s + cost.at(context, shape.decode_longest * decodes)
            return [step_s if step_s > launch_s else launch_s], host_s
        return cost.span_s(shape, repeats, fixed_s, launch_s), host_s

    def course_s(self, courses: Courses) -> tuple[list[float], float]:
        """As `sim.cost.step.course_s`."""
        return each_course_s(self, courses)

    def _bent_span_s(self, shape: Shape, repeats: int, fixed_s: float, launch_s: float) -> list[float]:
        """Device seconds with a window or with layers in host memory."""
        prefills, decodes, context, copied_bytes, swapped_bytes, within, growth = shape[:7]
        if self.window is not None and not within:
            raise ValueError(f"{decodes} decode rows attend {within} tokens within the window of {self.window}")
        steps = np.arange(repeats)
        contexts, withins = context + decodes * steps, within + growth * steps
        longest = (shape.decode_longest + steps) * decodes if shape.decode_longest else 0 * steps
        span = self.window.span_tokens * decodes if self.window else 0
        seconds = np.full(repeats, fixed_s)
        sums = ((contexts, longest), (withins, np.minimum(longest, span)))
        plain = not (prefills or copied_bytes or swapped_bytes or shape.verifies)
        for cost, (tokens, most) in zip(self._context_costs(shape, plain=plain), sums, strict=True):
            if cost is not None:
                floats = tokens.astype(np.float64), most.astype(np.float64)
                seconds = seconds + cost.along(*floats, cost.lengths(shape), steps)
        link_s, link_slope_s, link_window_s = self._link(shape)
        busy_s = link_s + link_slope_s * contexts + link_window_s * withins
        times_s: list[float] = np.maximum(np.maximum(seconds, launch_s), busy_s).tolist()
        return times_s

    def _single_s(self, shape: Shape) -> tuple[float, float]:
        """(device, host) seconds of a step whose prefill and decode attention are one launch."""
        seconds, launch_s, host_s = self._mixed(shape, together=True)
        if self._stream is None:
            return seconds if seconds > launch_s else launch_s, host_s
        link_s, link_slope_s, link_window_s = self._link(shape)
        busy_s = link_s + link_slope_s * shape.decode_context + link_window_s * shape.decode_window_context
        return max(seconds, launch_s, busy_s), host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`; a term that is zero for this shape is left out."""
        tokens = shape_tokens(shape)
        size = self._size(shape, tokens)
        launch = self._launch_price(shape, tokens, size)
        terms = self._device_terms(shape, size, launch)
        if not self._synchronous:
            gap_s = launch.seconds - sum([price.seconds for price in terms.values()])
            terms["launch gaps"] = Price(max(0.0, gap_s), launch.rank)
        link_s, link_slope_s, link_window_s = self._link(shape)
        busy_s = link_s + link_slope_s * shape.decode_context + link_window_s * shape.decode_window_context
        wait_s = busy_s - sum([price.seconds for price in terms.values()])
        terms["offload wait"] = self._roof("offload wait", max(0.0, wait_s))
        named = {name: Term(price.seconds, price.source) for name, price in terms.items() if price.seconds > 0.0}
        host = self._host_price(shape, size)
        return {**named, "host": Term(host.seconds, host.source, on_host=True)}

    def prefill_attention_s(self, prefills: Slices) -> float:
        """As of the roofline."""
        return self._prefill_price(prefills).seconds

    def counted_s(self, shape: Shape) -> dict[str, float]:
        """As `Roofline.counted_s`."""
        tokens = shape_tokens(shape)
        size = self._size(shape, tokens)
        terms = self._tokens(self._computed(tokens, size.graph)) | self._rows(size.rows)
        return {name: price.seconds for name, price in terms.items()}

    def error_of(self, term: str, source: str) -> Error | None:
        """As `Roofline.error_of`; of what the profile's tables give, the error that it states for them."""
        return stated(self.profile.meta, term, source, latent=self.model.is_latent) or super().error_of(term, source)

    def step_error(self, kind: str) -> Error | None:
        """What the profile states of whole steps of a kind (`sim.cost.errors.STEP_KINDS`) beside their parts."""
        return of_steps(self.profile.meta, kind, graph=self.cuda_graphs)

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`: the profile's tables with their errors, then the roofline that fills its holes."""
        return self.profile.describe() + super().describe()

    def launching_s(self, shape: Shape) -> float | None:
        """As `Roofline.launching_s`."""
        tokens = shape_tokens(shape)
        size = self._size(shape, tokens)
        return None if size.graph else self._launch_price(shape, tokens, size).seconds

    def _device_terms(self, shape: Shape, size: Size, launch: Price) -> Terms:
        """The operations of a step and, where launching adds to them, launching."""
        tokens = shape_tokens(shape)
        terms = self._tokens(self._computed(tokens, size.graph)) | self._rows(size.rows) if tokens else {}
        if self._in_one_launch(shape):
            terms["mixed attention"] = self._one_launch(shape)
        else:
            if shape.prefills:
                terms["prefill attention"] = self._prefill_price(shape.prefills)
            if shape.decodes:
                terms["decode attention"] = self._decode_price(shape)
        if shape.verifies:
            terms["verify attention"] = self._verify_price(shape)
        terms |= self._move_terms(shape)
        if self._synchronous:
            terms["launches"] = launch
        return terms

    def _prefill_price(self, prefills: Slices) -> Price:
        return self._priced.prefill(prefills) or self._roof("prefill attention", self._attention.prefill_s(prefills))

    def _verify_price(self, shape: Shape) -> Price:
        return self._priced.verify(shape.verifies) or self._roof(
            "verify attention", self._attention.verify_s(shape.verifies)
        )

    def _one_launch(self, shape: Shape) -> Price:
        price = self._priced.mixed(shape.prefills, shape.decodes, shape.decode_context, shape.decode_longest)
        assert price is not None, "asked only where it was measured"
        return price

    def _in_one_launch(self, shape: Shape) -> bool:
        """Whether the profile's engine attends prompts and decode rows together, and that was measured."""
        return bool(shape.prefills and shape.decodes and not shape.verifies) and self._together_measured

    def _move_terms(self, shape: Shape) -> Terms:
        terms: Terms = {}
        if shape.copied_bytes:
            copies = self._overheads.copies(shape.copied_bytes)
            terms["block copies"] = copies or self._roof("block copies", self.kernels.copy_s(shape.copied_bytes))
        if shape.swapped_bytes:
            swaps = self._overheads.swaps(shape.swapped_bytes)
            terms["swap"] = swaps or self._roof("swap", self.kernels.swap_s(shape.swapped_bytes))
        return terms

    def _decode_price(self, shape: Shape) -> Price:
        longest = shape.decode_longest * shape.decodes
        span = self.window.span_tokens * shape.decodes if self.window else 0
        sums = ((shape.decode_context, longest), (shape.decode_window_context, min(longest, span)))
        plain = not (shape.prefills or shape.copied_bytes or shape.swapped_bytes or shape.verifies)
        costs = zip(self._context_costs(shape, plain=plain), sums, strict=True)
        return total([cost.price(*tokens, cost.lengths(shape)) for cost, tokens in costs if cost is not None])

    def _context_costs(self, shape: Shape, *, plain: bool) -> tuple[ContextCost | None, ContextCost | None]:
        """Decode attention by the sum of contexts, of full layers and of those with a window.

        A `plain` step of decode rows alone may be a CUDA graph, whose kernel is cut as it was when it was captured.
        """
        decodes = shape.decodes
        costs = self._costs.get((decodes, plain))
        if costs is None:
            captured = self._computed(decodes, 1) if plain and self._in_graph(decodes) else 0
            costs = self._priced.context_costs(decodes, captured) or self._roof_costs(decodes)
            if len(self._costs) < MEMO_SIZE:
                self._costs[decodes, plain] = costs
        return costs

    def _roof_costs(self, decodes: int) -> tuple[ContextCost | None, ContextCost | None]:
        full, within = self._attention.lines(decodes)
        return ContextCost(full) if full else None, ContextCost(within) if within else None

    def _decode(self, decodes: int) -> DecodeStep:
        """A pure decode step of so many rows, at least one; attention is priced by the tables."""
        entry = DecodeStep(*self._mixed(Shape(decodes=decodes)))
        if len(self._decode_memo) < MEMO_SIZE:
            self._decode_memo[decodes] = entry
        return entry

    def _mixed(self, shape: Shape, *, together: bool = False) -> tuple[float, float, float]:
        """The same of any step: everything but decode attention that is a launch of its own; `together` with that of
        the prompts it is none."""
        prefills, decodes, _, copied_bytes, swapped_bytes, _, _, verifies = shape[:8]
        tokens = shape_tokens(shape)
        counts = tokens, decodes, len(prefills)
        known = self._counted.get(counts) if tokens and not verifies else None
        fixed_s, launch_s, host_s = known or self._count(shape, counts)
        if prefills:
            fixed_s += (self._one_launch(shape) if together else self._prefill_price(prefills)).seconds
        if verifies:
            fixed_s += self._verify_price(shape).seconds
        if copied_bytes or swapped_bytes:
            fixed_s += sum([price.seconds for price in self._move_terms(shape).values()])
        if self._synchronous:
            fixed_s, launch_s = fixed_s + launch_s, 0.0
        return fixed_s, launch_s, host_s

    def _count(self, shape: Shape, counts: tuple[int, int, int]) -> tuple[float, float, float]:
        """(device, launching, host) seconds of all that goes by numbers alone: of tokens, and where none verify drafts
        of decode rows and prompts."""
        tokens = counts[0]
        size = self._size(shape, tokens)
        fixed_s = self._work_s(self._computed(tokens, size.graph), size.rows) if tokens else 0.0
        launch_s = self._launch_price(shape, tokens, size).seconds
        entry = fixed_s, launch_s, self._host_price(shape, size).seconds
        if tokens and not shape.verifies and len(self._counted) < MEMO_SIZE:
            self._counted[counts] = entry
        return entry

    def _work_s(self, computed: int, rows: int) -> float:
        """All that depends on counts of tokens and of logits rows only."""
        seconds = self._token_memo.get(computed)
        if seconds is None:
            seconds = self._size_s(computed)
        row_s = self._row_memo.get(rows)
        if row_s is None:
            row_s = self._row_memo[rows] = sum([price.seconds for price in self._rows(rows).values()])
        return seconds + row_s

    def _one_size_s(self, tokens: int) -> float:
        seconds: float = added([price.seconds for price in self._tokens(tokens).values()])
        self._token_memo[tokens] = seconds
        return seconds

    def _sizes_s(self, sizes: Ints) -> Floats:
        parts, wanted = self._token_parts
        roofs = self._roof_terms(sizes, self._operations.by_tokens) if wanted else {}
        each_s = np.zeros(len(sizes))
        seconds, ranks = np.empty((len(parts), len(sizes))), np.empty((len(parts), len(sizes)), np.intp)
        for at, (name, launches) in enumerate(parts.items()):
            if launches is None:
                seconds[at], ranks[at] = roofs[name], self._roof(name, 0.0).rank
            else:
                seconds[at], ranks[at] = launched_each(launches, sizes)
            each_s = each_s + seconds[at]
        self._together[int(sizes[0]) // SIZES_TOGETHER] = int(sizes[0]), seconds, ranks
        return each_s

    def _computed(self, tokens: int, graph: int) -> int:
        """Tokens that are computed for so many real ones: a CUDA graph's are the size that it was captured for."""
        if not graph:
            return tokens
        sizes = self.profile.meta.captured_tokens
        captured = sizes[bisect_left(sizes, tokens)] if sizes else graph_tokens(tokens)
        return min(captured, self.max_graph_tokens)

    def _tokens(self, computed: int) -> Terms:
        terms = self._by_tokens.get(computed)
        if terms is None:
            parts, wanted = self._token_parts
            together = self._together.get(computed // SIZES_TOGETHER)
            if together is not None and computed >= together[0]:
                first, seconds, ranks = together
                each = zip(seconds[:, computed - first].tolist(), ranks[:, computed - first].tolist(), strict=True)
                terms = dict(zip(parts, map(price_of, each), strict=True))
            else:
                roofs = self._roof_terms(computed, self._operations.by_tokens) if wanted else {}
                terms = self._best(parts, roofs, computed)
            if len(self._by_tokens) < MEMO_SIZE:
                self._by_tokens[computed] = terms
        return terms

    def _rows(self, rows: int) -> Terms:
        terms = self._by_rows.get(rows)
        if terms is None:
            parts, wanted = self._row_parts
            terms = self._best(parts, self._roof_rows(rows) if wanted else {}, rows)
            if len(self._by_rows) < MEMO_SIZE:
                self._by_rows[rows] = terms
        return terms

    def _roof_rows(self, rows: int) -> dict[str, float]:
        return row_terms(self.model, self.kernels, self.parallel, rows, self._operations.by_rows)

    def _parts(self, roofs: Mapping[str, float], measured: Mapping[str, Sequence[Launches]]) -> tuple[Parts, bool]:
        """What each term is made of, None where the roofline is to say, nothing where another table includes it; and
        whether the roofline is to be asked at all."""
        included: Parts = {name: () for name in self.profile.meta.included if name in roofs}
        parts: Parts = {**dict.fromkeys(roofs), **measured, **included}
        return parts, None in parts.values()

    def _best(self, parts: Parts, roofs: Mapping[str, float], size: int) -> Terms:
        """The terms that were measured, and the roofline's where none were."""
        return {
            name: self._roof(name, roofs[name]) if launches is None else launched(launches, size)
            for name, launches in parts.items()
        }

    def _launch_price(self, shape: Shape, tokens: int, size: Size) -> Price:
        """What the host needs to launch the step's kernels; all there is beside them where the host computes."""
        if not tokens:
            return Price(0.0, MEASURED)
        # The roofline's launches are those of a GPU: on a CPU there are none.
        return self._overheads.launch(size) or self._roof(
            "launch gaps", 0.0 if self._synchronous else self._launch_s(tokens, shape)
        )

    def _host_price(self, shape: Shape, size: Size) -> Price:
        """Packing, and handling outputs; the roofline's estimate where nothing was measured."""
        return (self._overheads.host(size) if size.rows else None) or self._roof("host", self._host_s(size.rows, shape))

    def _size(self, shape: Shape, tokens: int) -> Size:
        prefills, decodes, verifies = shape.prefills, shape.decodes, shape.verifies
        parts = ("mixed" if decodes or verifies else "prefill") if prefills else "decode"
        if verifies and self._overheads.measures("mixed") and self.in_pieces(shape):
            parts = "mixed"
        prefill_tokens = tokens - decodes
        if verifies:
            prefill_tokens -= sum([tokens * rows for tokens, rows, _, _ in verifies])
        graph = self._in_graph(tokens) and (not prefills or self._overheads.captures(parts))
        return size_of((parts, int(graph), shape_rows(shape), prefill_tokens))

    def _roof(self, term: str, seconds: float) -> Price:
        """What no table of the profile has."""
        rank = self._roof_ranks.get(term)
        if rank is None:
            rank = self._roof_ranks[term] = SOURCES.index(self._sources.of(term))
        return price_of((seconds, rank))
