"""Gemma 3n and Gemma 4: inputs of every layer, layers that use earlier ones' keys and values, heads of two widths.

Each counts what the class of transformers (5.x) has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.catalog.hf_config import Config
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import FULL, WINDOWED, Family, layers_of, overridden, windows_of
from sim.specs.blocks import Block, Matrix, whole
from traces.schema import InputError


def _gemma4(config: Config) -> Anatomy:
    """Gemma 4: full layers have wider heads, of which keys may be values; experts beside an MLP, inputs per layer."""
    hidden, layers, heads = config.count("hidden_size", 2304), layers_of(config), config.count("num_attention_heads", 8)
    dims = {WINDOWED: config.count("head_dim", 256), FULL: config.count("global_head_dim", 512)}
    same = config.flag("attention_k_eq_v", False)
    kv_heads = {WINDOWED: config.count("num_key_value_heads", 4)}
    kv_heads[FULL] = (config.count("num_global_key_value_heads", kv_heads[WINDOWED]) if same else 0) or kv_heads[
        WINDOWED
    ]
    windows = windows_of(config, layers, 6, 512)
    if config.table.get("layer_types") is None:
        windows[-1] = 0
    reused = config.count("num_kv_shared_layers", 0)
    if not 0 <= reused < layers:
        raise InputError(f"{config.path}: num_kv_shared_layers = {reused} must lie between 0 and {layers - 1}")
    per_layer = config.optional("hidden_size_per_layer_input", 256)
    routed = config.flag("enable_moe_block", False)
    bias, ffn = config.flag("attention_bias", False), config.count("intermediate_size", 9216)
    wide = config.flag("use_double_wide_mlp", False)

    def of(index: int, window: int) -> Block:
        kind, kept = (WINDOWED if window else FULL), index < layers - reused
        own = overridden(config, index)
        dim = own.get("head_dim", dims[kind])
        mixer = attention(
            hidden,
            heads,
            own.get("num_key_value_heads", kv_heads[kind]),
            dim,
            window=window,
            bias=bias,
            output_bias=bias,
            vectors=(2 if kept else 1) * dim,
            keys_are_values=same and kind == FULL,
            kept=kept,
        )
        parts = [mixer, mlp(hidden, ffn * (2 if wide and not kept else 1))]
        vectors = 4 * hidden
        if routed:
            count = config.count("num_experts")
            parts.append(
                experts(
                    hidden,
                    count,
                    config.count("top_k_experts"),
                    config.count("moe_intermediate_size"),
                    router_bias=count + hidden,
                    module="",
                )
            )
            vectors += 3 * hidden
        if per_layer:
            parts.append(_projected(hidden, per_layer))
            vectors += hidden
        return layer(*parts, vectors=vectors, norms=7 if routed else 4)

    table = config.count("vocab_size_per_layer_input", config.count("vocab_size", 262_144)) if per_layer else 0
    beside = per_layer * (table * layers + hidden * layers + 1)
    return Anatomy(
        layers=[of(index, window) for index, window in enumerate(windows)],
        tied=config.flag("tie_word_embeddings", True),
        beside=beside,
        counted="embeddings of every layer included" if per_layer else "",
    )


def _projected(hidden: int, width: int) -> LayerPart:
    """Gemma's input of each layer: down to its width and up again."""
    part = mlp(hidden, width, gated=False, module="per_layer", name="layer input")
    return LayerPart(tuple(each for each in part.matrices))


def _gemma3n(config: Config) -> Anatomy:
    """Gemma 3n: four streams of which one is computed (AltUp), a low-rank path beside attention (LAuReL)."""
    hidden, layers = config.count("hidden_size", 2048), layers_of(config)
    heads, kv_heads = config.count("num_attention_heads", 8), config.count("num_key_value_heads", 2)
    dim, rank, streams = (
        config.count("head_dim", 256),
        config.count("laurel_rank", 64),
        config.count("altup_num_inputs", 4),
    )
    width, reused = config.count("hidden_size_per_layer_input", 256), config.count("num_kv_shared_layers", 15)
    if not 0 <= reused < layers:
        raise InputError(f"{config.path}: num_kv_shared_layers = {reused} must lie between 0 and {layers - 1}")
    if not 1 <= streams <= 64:
        raise InputError(f"{config.path}: altup_num_inputs = {streams} must lie between 1 and 64")
    widths = config.table.get("intermediate_size", 16_384)
    widths = config.counts("intermediate_size") if isinstance(widths, list) else None
    if widths is not None and len(widths) != layers:
        raise InputError(f"{config.path}: intermediate_size has {len(widths)} entries, and there are {layers} layers")
    bias = config.flag("attention_bias", False)
    beside = LayerPart(
        (
            Matrix("low-rank path down", (whole(hidden),), (whole(rank),), ("laurel.linear_left",)),
            Matrix("low-rank path up", (whole(rank),), (whole(hidden),), ("laurel.linear_right",)),
            Matrix("stream router", (whole(hidden),), (whole(streams),), ("altup.modality_router",), weights="plain"),
        ),
        streams**2 + streams**3,
    )

    def of(index: int, window: int) -> Block:
        kept = index < layers - reused
        mixer = attention(
            hidden, heads, kv_heads, dim, window=window, bias=bias, output_bias=bias,
            vectors=(2 if kept else 1) * dim, kept=kept,
        )  # fmt: skip
        ffn = mlp(hidden, widths[index] if widths is not None else config.count("intermediate_size", 16_384))
        parts = (mixer, ffn, beside, _projected(hidden, width))
        own = layer(*parts, vectors=8 * hidden, norms=7)
        return replace(own, reductions=2)

    table = config.count("vocab_size_per_layer_input", 262_144)
    outside = width * (table * layers + hidden * layers + 1) + 2 * (streams - 1) * hidden * hidden
    return Anatomy(
        layers=[of(index, window) for index, window in enumerate(windows_of(config, layers, 5, 512))],
        tied=config.flag("tie_word_embeddings", True),
        beside=outside,
        counted="embeddings of every layer included; the steps of all streams are counted as norms",
    )


GEMMAS: Mapping[str, Family] = {"gemma4_text": _gemma4, "gemma3n_text": _gemma3n}
