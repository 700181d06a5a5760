"""Low-rank adapters (LoRA) in bytes and seconds: what slots take, what a load takes, and what a step takes with some.

Two kernels stand beside each group of linear layers that are one product (vLLM 0.33, `punica_wrapper/punica_gpu.py`;
Punica, arXiv 2310.18547): `shrink` multiplies a token's input by the A matrices of its adapter, `expand` what came out
by the B matrices, and adds it to the layer's output. Both compute in the slots' rank, whatever an adapter's own is. Of
layers that GPUs share, each has its part of what goes in or out, and all of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sim.cost.errors import Error
from sim.cost.kernels import Kernels
from sim.cost.layers import Terms
from sim.cost.roofline import SOURCE, Roofline
from sim.cost.step import MEMO_SIZE, Constant, Term, device_seconds
from sim.engine.batch import AdapterWork, Shape
from sim.engine.lockstep import LengthsTold
from sim.specs.lora import ALL, LoraSettings
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

SHRINK, EXPAND, LOAD, GAPS = "adapter shrink", "adapter expand", "adapter load", "launch gaps"
_BUFFER_BYTES = 4
"""What `shrink` hands to `expand` is in fp32."""
_COPIES = 4
"""Operations that put one module's A and B into a slot: each is set to zero, and copied (vLLM, `set_lora`)."""


class Pair(NamedTuple):
    """Linear layers of one product, in `layers` layers: `inputs` elements go into each, `outputs` come out."""

    layers: int
    inputs: int
    outputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Elements of A and B of all of them in one layer, for each rank."""
        return len(self.outputs) * self.inputs + sum(self.outputs)


class AdapterShape:
    """What slots for adapters of a model hold, by its shape.

    Raises:
        InputError: the model has a kind of layers for which adapters are not modelled, or has not a module named.
    """

    def __init__(self, settings: LoraSettings, model: ModelSpec) -> None:
        if model.blocks or model.is_latent:
            what = "latent attention" if model.is_latent else "layers of several kinds"
            raise InputError(
                f"lora.max_loras is set, and adapters of a model with {what} ({model.name}) are not modelled"
            )
        self.settings, self._model = settings, model
        known = {name for pair in self._named(SINGLE) for name, _ in pair[2]}
        if settings.modules != ALL and (absent := [name for name in settings.named if name not in known]):
            experts = "; its routed experts' are not modelled" if model.experts else ""
            has = ", ".join(sorted(known))
            raise InputError(f"lora.modules names {absent[0]}, which {model.name} has not; it has {has}{experts}")

    def _named(self, parallel: Parallel) -> list[tuple[int, int, list[tuple[str, int]]]]:
        """(layers, inputs, [(module, outputs)]) of each product on one of `tp` GPUs."""
        model, tp = self._model, parallel.tp
        heads, kv = model.query_width // tp, model.gpu_kv_heads(parallel) * model.head_dim
        up = [("gate_proj", model.ffn // tp)] if model.gated_mlp else []
        return [
            (model.layers, model.hidden, [("q_proj", heads), ("k_proj", kv), ("v_proj", kv)]),
            (model.layers, heads, [("o_proj", model.hidden)]),
            (model.dense_layers, model.hidden, [*up, ("up_proj", model.ffn // tp)] if model.dense_layers else []),
            (model.dense_layers, model.ffn // tp, [("down_proj", model.hidden)] if model.dense_layers else []),
        ]

    def pairs(self, parallel: Parallel) -> list[Pair]:
        """The products that have adapters beside them, on one of `tp` GPUs."""
        chosen = self.settings.named
        cut = [
            Pair(layers, inputs, tuple(width for name, width in modules if name in chosen))
            for layers, inputs, modules in self._named(parallel)
        ]
        return [pair for pair in cut if pair.outputs]

    def rank_bytes(self, parallel: Parallel) -> int:
        """Bytes of one rank of an adapter on one of `tp` GPUs."""
        return self._model.element_bytes * sum(pair.layers * pair.width for pair in self.pairs(parallel))

    def slot_bytes(self, parallel: Parallel) -> int:
        """Bytes of all slots on one of `tp` GPUs; for all modules there are some for embedding and LM head too, which
        GPUs do not share (vLLM, `embedding_modules`)."""
        settings, model = self.settings, self._model
        ends = 2 * (model.vocab + model.hidden) * model.element_bytes if settings.modules == ALL else 0
        return settings.max_loras * settings.max_lora_rank * (self.rank_bytes(parallel) + ends)

    @property
    def modules(self) -> int:
        """Linear layers that an adapter changes, in all layers."""
        return sum(pair.layers * len(pair.outputs) for pair in self.pairs(SINGLE))


class Adapted:
    """The price of a step some of whose tokens have an adapter: the model's, and on top the adapters' own kernels and
    the loads that it waits for. None of it was compared with a measurement.

    Not priced: the embedding's and the LM head's slots, and what the host does to tell tokens by their adapters.
    """

    def __init__(self, plain: Roofline, shape: AdapterShape) -> None:
        self._plain = plain
        self._shape = shape
        self._pairs = shape.pairs(plain.parallel)
        self._launches = 2 * sum(pair.layers for pair in self._pairs)
        self._memo: dict[tuple[int, int], tuple[float, float]] = {}

    @property
    def needs_longest(self) -> bool:
        """As of the model's price."""
        return bool(getattr(self._plain, "needs_longest", False))

    @property
    def needs_lengths(self) -> LengthsTold:
        """As of the model's price."""
        told: LengthsTold = getattr(self._plain, "needs_lengths", "always")
        return told

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        device, host_s = self._plain.span_s(shape, repeats)
        work = shape.adapters
        if not (work.tokens or work.loads):
            return device, host_s
        kernels_s, load_s = sum(self._kernels_s(work)), self._loads_s(work)
        launching_s = self._plain.launching_s(shape)
        bound_s = (
            0.0
            if launching_s is None
            else launching_s + (self._launches * self._plain.efficiency.launch_s if work.tokens else 0.0)
        )
        return [max(step_s + kernels_s, bound_s) + load_s for step_s in device], host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        terms = self._plain.explain(shape)
        work = shape.adapters
        if not (work.tokens or work.loads):
            return terms
        added: Terms = dict(zip((SHRINK, EXPAND), self._kernels_s(work), strict=True)) | {LOAD: self._loads_s(work)}
        own = {name: Term(seconds, SOURCE) for name, seconds in added.items() if seconds > 0.0}
        whole_s = self.span_s(shape, 1)[0][0]
        gap_s = whole_s - device_seconds([*terms.values(), *own.values()])
        if gap_s > 1e-12 * whole_s:  # what is left beside rounding is launching
            known = terms.get(GAPS, Term(0.0, SOURCE))
            own[GAPS] = known._replace(seconds=known.seconds + gap_s)
        return {**terms, **own}

    def error_of(self, term: str, source: str) -> Error | None:
        """As `Roofline.error_of`; of an adapter's terms nothing is known but their class."""
        return None if term in (SHRINK, EXPAND, LOAD) else self._plain.error_of(term, source)

    def step_error(self, kind: str) -> Error | None:
        """As of the model's price, where it has one."""
        known = getattr(self._plain, "step_error", None)
        error: Error | None = None if known is None else known(kind)
        return error

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        settings, parallel = self._shape.settings, self._plain.parallel
        return [
            *self._plain.describe(),
            Constant("adapter_rank_bytes", self._shape.rank_bytes(parallel), "of each GPU, for a rank of an adapter"),
            Constant("adapter_disk_bytes_per_s", settings.disk_gb_per_s * 1e9, "lora.disk_gb_per_s"),
        ]

    def load_s(self, rank: int, disk: bool) -> float:
        """Seconds that a step waits for an adapter: read from a disk, where host memory has it not, and copied to the
        GPU module by module, as fast as the host asks for the copies or the link moves them."""
        shape, settings = self._shape, self._shape.settings
        copies_s = _COPIES * shape.modules * self._plain.efficiency.launch_s
        link_s = self._plain.kernels.stream_s(rank * shape.rank_bytes(self._plain.parallel))
        read_s = rank * shape.rank_bytes(SINGLE) / (settings.disk_gb_per_s * 1e9) + settings.disk_latency_s
        return max(copies_s, link_s) + (read_s if disk else 0.0)

    def _loads_s(self, work: AdapterWork) -> float:
        """Of all loads of a step, one after the other (vLLM, `LRUCacheWorkerLoRAManager._apply_adapters`)."""
        return sum(self.load_s(rank, disk) for rank, disk in work.loads)

    def _kernels_s(self, work: AdapterWork) -> tuple[float, float]:
        """(shrink, expand) seconds of all layers."""
        if not work.tokens:
            return 0.0, 0.0
        key = (work.tokens, work.adapters)
        priced = self._memo.get(key)
        if priced is None:
            priced = _kernels_s(self._plain.kernels, self._pairs, self._shape.settings.max_lora_rank, *key)
            if len(self._memo) < MEMO_SIZE:
                self._memo[key] = priced
        return priced


def _kernels_s(kernels: Kernels, pairs: Sequence[Pair], rank: int, tokens: int, adapters: int) -> tuple[float, float]:
    """(shrink, expand) seconds of all layers, for so many tokens of so many adapters.

    The matrices of each adapter are read once a layer, and once each what the tokens' products read and write.
    """
    shrink_s = expand_s = 0.0
    element = kernels.element_bytes
    for layers, inputs, outputs in pairs:
        narrow, wide = rank * len(outputs), sum(outputs)
        buffer_bytes = _BUFFER_BYTES * tokens * narrow
        read = element * (adapters * narrow * inputs + tokens * inputs)
        written = element * (adapters * rank * wide + 2 * tokens * wide)
        shrink_s += layers * kernels.low_rank_s(2.0 * tokens * narrow * inputs, read + buffer_bytes)
        expand_s += layers * kernels.low_rank_s(2.0 * tokens * rank * wide, written + buffer_bytes)
    return shrink_s, expand_s
