"""What a model, a batch and a catalog of GPUs have to do with one another, in bytes: the card of `sim memory`.

All numbers are those of the model's own arithmetic (`sim.specs.model`) and of the memory plan that runs derive their KV
blocks by (`sim.cost.capacity`); this file only asks them, and writes the formulas out. It knows no seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.catalog.presets import EnginePreset
from sim.cost.capacity import DEFAULTS, KvCapacity, MemorySettings, memory_plan, possible_splits
from sim.cost.profile_run import activations
from sim.engine.memory import KvPool
from sim.engine.pages import in_groups, mixed_layers
from sim.specs.accounting import PLAIN
from sim.specs.blocks import matrix_type
from sim.specs.bounds import Bound
from sim.specs.dtypes import KV_TYPES
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

BATCH = Bound(1, 10**6)
"""Sequences that one may ask about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A model on GPUs of one kind: where the memory of each goes, in bytes, and how many sequences fit at most.

    `tp` share each layer; there are `pp` stages of layers, `dp` ranks, and `ep` GPUs that experts are placed over.

    `kv_low_bytes`, `kv_high_bytes` and `sequences_low` are the ends of the band that the estimates of start-up leave.
    """

    tp: int
    pp: int
    dp: int
    ep: int
    nodes: int
    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    overhead_bytes: int
    kv_bytes: int
    kv_low_bytes: int
    kv_high_bytes: int
    sequences: int
    sequences_low: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one GPU of the catalog holds.

    `least` is the smallest `tp` that holds one sequence, `batch` the smallest that holds them all; with a `tp` that was
    asked for, both are that one or None. `why` says why one is None.
    """

    gpu: str
    memory_bytes: int
    least: Placement | None
    batch: Placement | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The card: bytes of a model and of `batch` sequences of `tokens` tokens, and where they fit.

    `kv_attended_bytes` is what of a sequence's KV is still attended after its last token: less than all of it where
    layers have a window. `state_bytes_per_sequence` is what linear attention and Mamba keep of a sequence, whatever its
    length; `counted` says what parameters leave out or include. `step_tokens` and `seats` are what activations were
    estimated for, and `accounting` is whose way of counting that is, "" for a plain estimate; `engine` has settings of
    its own for some GPUs, which count in `gpus`. Formulas are texts with the
    numbers filled in.
    """

    model: str
    dtype: str
    weights: str
    kv_dtype: str
    tokens: int
    batch: int
    parameters: int
    weight_bytes: int
    weight_formula: str
    kv_bytes_per_token: int
    kv_formula: str
    kv_bytes_per_sequence: int
    kv_attended_bytes: int
    kv_attended_formula: str
    kv_bytes: int
    state_bytes_per_sequence: int
    counted: str
    activation_bytes: int
    step_tokens: int
    seats: int
    block_tokens: int
    gpu_memory_utilization: float
    engine: str
    accounting: str
    gpus: tuple[Fit, ...]

    def document(self) -> dict[str, object]:
        """As plain values, for JSON."""
        return asdict(self)


def footprint(
    model: ModelSpec,
    gpus: Sequence[GpuSpec],
    *,
    tokens: int,
    batch: int = 1,
    tp: int | None = None,
    pp: int = 1,
    dp: int = 1,
    whole_experts: bool = False,
    engine: EnginePreset | None = None,
) -> Footprint:
    """The card of `batch` sequences of `tokens` tokens (prompt and answer) each, with default settings, or an engine's.

    A batch beyond the default `max_num_seqs` is given so many seats. Caches are those of the allocator `paged`: where
    layers keep different tokens or a state, a sequence counts what it holds at most at one time, windows with a step's
    tokens beside them (`sim.engine.pages`).

    Raises:
        InputError: more tokens than the model has positions for, no tokens, no batch, or an impossible split.
    """
    if not 1 <= tokens <= model.max_context_tokens:
        raise InputError(
            f"tokens is {tokens}; a sequence of {model.name} has at least 1 and at most "
            f"{model.max_context_tokens} tokens"
        )
    BATCH.check("batch", batch)
    split = Parallel(tp or 1, pp, dp, (tp or 1) * dp if whole_experts else 1)
    if tp is not None:
        model.check_parallel(split)
    elif whole_experts and not model.experts:
        raise InputError(f"model {model.name!r} has no experts to place")
    settings = _settings(engine.settings if engine else {}, engine, batch)
    seats = settings.max_num_seqs
    sequence_blocks = -(-tokens // settings.block_tokens)

    def held(planned: KvCapacity, split: Parallel, blocks: int) -> int:
        """Sequences that a pool of so many blocks holds at once."""
        if not planned.fits or not blocks:
            return 0
        layers, state_bytes = mixed_layers(model.kv_kinds(split))
        if not layers:
            return split.dp * (blocks // sequence_blocks)
        pool = KvPool(
            blocks,
            settings.block_tokens,
            block_bytes=planned.block_bytes,
            max_step_tokens=settings.max_num_batched_tokens,
            layers=layers,
            state_bytes=state_bytes,
        )
        layout = in_groups(pool)
        return split.dp * (layout.pool.blocks // layout.most_blocks(sequence_blocks))

    def place(gpu: GpuSpec, split: Parallel) -> Placement:
        own = _settings(engine.defaults(gpu), engine, batch) if engine else settings
        planned = memory_plan(model, gpu, own, parallel=model.together(split), pools_states=True)
        blocks = max(0, planned.blocks)
        return Placement(
            tp=split.tp,
            pp=split.pp,
            dp=split.dp,
            ep=split.ep,
            nodes=gpu.nodes(split.gpus),
            usable_bytes=planned.usable_bytes,
            weight_bytes=planned.weight_bytes,
            activation_bytes=planned.activation_bytes,
            overhead_bytes=planned.overhead_bytes,
            kv_bytes=blocks * planned.block_bytes,
            kv_low_bytes=planned.least_blocks * planned.block_bytes,
            kv_high_bytes=planned.most_blocks * planned.block_bytes,
            sequences=held(planned, split, blocks),
            sequences_low=held(planned, split, planned.least_blocks),
        )

    def fit(gpu: GpuSpec) -> Fit:
        splits = possible_splits(model, gpu, pp=pp, dp=(dp,), whole_experts=whole_experts)
        if tp is not None:
            splits = [split for split in splits if split.tp == tp]
        placed = [place(gpu, split) for split in splits] if gpu.computes(model.dtype) else []
        least = next((one for one in placed if one.sequences >= 1), None)
        whole = next((one for one in placed if one.sequences >= batch), None)
        if not gpu.computes(model.dtype):
            why = f"no {model.dtype} matrix units"
        elif not splits:
            needs = f"tp {tp} needs {gpu.nodes(split.gpus)}" if split.gpus == tp else f"{split} needs several"
            why = f"no network between nodes is known, and {needs}"
        elif whole is None:
            count = "1 sequence" if least is None else f"{batch:,} sequences"
            holds = f"no tp up to {splits[-1].tp} holds" if tp is None else f"tp {tp} does not hold"
            why = f"{holds} the weights and {count} of {tokens:,} tokens"
        else:
            why = ""
        return Fit(gpu=gpu.name, memory_bytes=gpu.memory_bytes, least=least, batch=whole, why=why)

    one = tokens * model.kv_bytes_per_token
    attended, attended_formula = _attended(model, tokens)
    return Footprint(
        model=model.name,
        dtype=model.dtype,
        weights=model.weight_dtype,
        kv_dtype=model.kv_dtype,
        tokens=tokens,
        batch=batch,
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        weight_formula=_weights(model),
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_formula=_kv(model),
        kv_bytes_per_sequence=one,
        kv_attended_bytes=attended,
        kv_attended_formula=attended_formula,
        kv_bytes=batch * one,
        state_bytes_per_sequence=model.state_bytes,
        counted=model.counted,
        activation_bytes=activations(
            model, split, settings.max_num_batched_tokens, seats, settings.accounting
        ).expected,
        step_tokens=settings.max_num_batched_tokens,
        seats=seats,
        block_tokens=settings.block_tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        engine=engine.name if engine else "",
        accounting=settings.accounting.name,
        gpus=tuple(map(fit, gpus)),
    )


def _settings(told: Mapping[str, Any], engine: EnginePreset | None, batch: int) -> MemorySettings:
    """What decides the KV memory, of an engine's settings by dotted key; the defaults where these say nothing."""
    plain = DEFAULTS
    return MemorySettings(
        told.get("kv.block_tokens", plain.block_tokens),
        told.get("kv.gpu_memory_utilization", plain.gpu_memory_utilization),
        told.get("engine.max_num_batched_tokens", plain.max_num_batched_tokens),
        max(told.get("engine.max_num_seqs", plain.max_num_seqs), batch),
        told.get("engine.cuda_graphs", plain.cuda_graphs),
        engine.accounting if engine else PLAIN,
    )


def _weights(model: ModelSpec) -> str:
    """How the weights' bytes come about."""
    parameters = f"{model.parameters:,} parameters"
    if model.checkpoint_bytes:
        return f"{parameters}: what the checkpoint's safetensors files hold"
    if model.blocks:
        return f"{parameters}: {_types(model)}"
    if model.weight_dtype == model.dtype:
        return f"{parameters} x {model.element_bytes} B"
    return f"{parameters}: matrices in {model.weight_dtype} with their scales, the rest in {model.dtype}"


def _types(model: ModelSpec) -> str:
    """The types of the matrices of layers of several kinds, the one with most parameters first."""
    sizes: dict[str, int] = {}
    for block in model.blocks:
        for matrix in block.matrices:
            kind = matrix_type(matrix, model.weights, model.dtype)
            k, n = matrix.sides(SINGLE)
            sizes[kind] = sizes.get(kind, 0) + block.layers * matrix.count * k * n
    named = sorted((kind for kind in sizes if kind != model.dtype), key=lambda kind: -sizes[kind])
    if not named:
        return f"{model.element_bytes} B each"
    return ", ".join(f"{sizes[kind]:,} in {kind}" for kind in named) + f", the rest in {model.dtype}; scales included"


def _kv(model: ModelSpec) -> str:
    """How a token's KV comes about, without its sum."""
    if model.blocks:
        kept = [f"{each.layers} layers x {each.token_bytes:,} B" for each in model.kv_kinds() if each.token_bytes]
        return " + ".join(kept) or "no layer keeps any"
    kind = KV_TYPES[model.kv_dtype]
    width = model.latent_width if model.is_latent else model.head_dim
    elements = f"{width} / 2 B" if kind.bits == 4 else f"{width} x {kind.bits // 8} B"
    if model.is_latent:
        ranks = f"({model.kv_lora_rank} + {model.qk_rope_head_dim})"
        return f"{model.layers} layers x {ranks} x {kind.bits // 8} B"
    if kind.scale_bytes:
        elements = f"({elements} + {kind.scale_bytes} B)"
    heads = f"{model.kv_heads} KV head{'s' if model.kv_heads > 1 else ''}"
    return f"2 x {model.layers} layers x {heads} x {elements}"


def _attended(model: ModelSpec, tokens: int) -> tuple[int, str]:
    """Bytes of a sequence's KV that lie in the windows of its layers, and how they come about ("" without a window)."""
    if model.blocks:
        return _attended_blocks(model, tokens)
    window = model.attention_window
    layer_bytes = model.layer_kv_bytes_per_token(SINGLE)
    if window is None or tokens <= window.span_tokens:
        return tokens * model.kv_bytes_per_token, ""
    held = model.full_layers * tokens + window.layers * window.span_tokens
    full = f"{model.full_layers} x {tokens:,} + " if model.full_layers else ""
    return held * layer_bytes, f"({full}{window.layers} layers x {window.span_tokens:,} tokens) x {layer_bytes:,} B"


def _attended_blocks(model: ModelSpec, tokens: int) -> tuple[int, str]:
    """The same of layers of several kinds."""
    spans = [
        (kind, min(tokens, kind.window_tokens) if kind.window_tokens else tokens)
        for kind in model.kv_kinds()
        if kind.token_bytes
    ]
    held = sum(kind.layers * kind.token_bytes * span for kind, span in spans)
    if all(span == tokens for _, span in spans):
        return held, ""
    return held, " + ".join(f"{kind.layers} x {span:,} tokens x {kind.token_bytes:,} B" for kind, span in spans)
