"""Families whose full and windowed layers differ in more than the window: heads, widths, sinks, experts, embeddings.

Each counts what the class of transformers (5.x) has.
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.catalog.hf_config import Config
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import (
    FULL,
    WINDOWED,
    Family,
    deepseek_experts,
    layers_of,
    mtp_left_out,
    overridden,
    sparse_layers,
    windows_of,
)  # fmt: skip
from sim.specs.blocks import Block, Matrix, Span, whole
from traces.schema import InputError

CHUNKED = "chunked_attention"


def _mimo(config: Config) -> Anatomy:
    """MiMo-V2: windowed layers have sinks and KV heads of their own; values are narrower than keys."""
    hidden, layers, heads = config.count("hidden_size"), layers_of(config), config.count("num_attention_heads")
    pattern = config.counts("hybrid_layer_pattern")
    if pattern is None:
        kinds = config.kinds("layer_types", (FULL, WINDOWED), layers)
        pattern = [int(kind == WINDOWED) for kind in kinds or [FULL] * layers]
    if len(pattern) != layers:
        raise InputError(
            f"{config.path}: hybrid_layer_pattern has {len(pattern)} entries, and there are {layers} layers"
        )
    kv_heads, dim = config.count("num_key_value_heads"), config.count("head_dim")
    values = config.count("v_head_dim", dim)
    bias = config.flag("attention_bias", False)
    full = attention(
        hidden, heads, kv_heads, dim, value_dim=values, bias=bias,
        vectors=heads if config.flag("add_full_attention_sink_bias", False) else 0,
    )  # fmt: skip
    own_heads = config.count("swa_num_attention_heads", heads)
    near = attention(
        hidden,
        own_heads,
        config.count("swa_num_key_value_heads", 2 * kv_heads),
        config.count("swa_head_dim", dim),
        value_dim=config.count("swa_v_head_dim", values),
        window=config.count("sliding_window", 128),
        bias=bias,
        vectors=own_heads if config.flag("add_swa_attention_sink_bias", True) else 0,
    )
    dense, routed = mlp(hidden, config.count("intermediate_size")), deepseek_experts(config, hidden)
    chosen = zip(pattern, sparse_layers(config, layers), strict=True)
    return Anatomy(
        layers=[layer(near if local else full, routed if r else dense, vectors=2 * hidden) for local, r in chosen],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


def _step3(config: Config) -> Anatomy:
    """Step-3 (arXiv 2507.19427): queries through a low rank, one KV head for all (MFA), experts in listed layers."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    heads, dim, rank = config.count("num_attention_heads"), config.count("head_dim"), config.count("share_q_dim")
    groups = config.count("num_attention_groups", 1)
    whole_mixer = attention(hidden, heads, groups, dim, vectors=rank)
    inner = (
        Matrix("query down", (whole(hidden),), (whole(rank),), ("self_attn.q_proj",)),
        Matrix("query up", (whole(rank),), (Span(heads, dim),), ("self_attn.wq",)),
        Matrix("key and value", (whole(hidden),), (Span(groups, 2 * dim, "repeat"),), ("self_attn.k_proj",)),
    )
    mixer = whole_mixer._replace(matrices=(*inner, whole_mixer.matrices[-1]))
    listed = config.table.get("moe_layers_enum")
    if not isinstance(listed, str) or any(not each.strip().isdecimal() for each in listed.split(",") if listed):
        raise InputError(f"{config.path}: {config.named('moe_layers_enum')} must be a text of layers, as 4,5,6")
    routes = {int(each) for each in listed.split(",")[: layers + 1]} if listed else set()
    width = config.count("moe_intermediate_size")
    routed = experts(
        hidden,
        config.count("moe_num_experts"),
        config.count("moe_top_k"),
        width,
        shared=config.count("share_expert_dim", width),
        module="moe",
        shared_module="share_expert",
    )
    dense = mlp(hidden, config.count("intermediate_size"))
    return Anatomy(
        layers=[layer(mixer, routed if index in routes else dense, vectors=2 * hidden) for index in range(layers)],
        tied=config.flag("tie_word_embeddings", False),
    )


def _step(config: Config) -> Anatomy:
    """Step-3.7: a gate for each head, windows, and experts with a shared one."""
    hidden, layers = config.count("hidden_size", 4096), layers_of(config)
    heads, dim = config.count("num_attention_heads", 64), config.count("head_dim", 128)
    kv_heads = config.count("num_key_value_heads", config.count("num_attention_groups", 8))
    listed = config.table.get("layer_types")
    further = config.optional("num_nextn_predict_layers", 0)
    if isinstance(listed, list) and len(listed) == layers + further:  # those of the MTP layers stand behind
        config = Config(config.path, {**config.table, "layer_types": listed[:layers]}, config.prefix)
    windows = windows_of(config, layers, 1, 0)
    near = config.optional("num_sliding_attention_heads", 0) or heads
    if isinstance(config.table.get("attention_other_setting"), dict):
        other = Config(config.path, config.section("attention_other_setting"), "attention_other_setting.")
        near = other.count("num_attention_heads", near)

    def mixer(index: int, window: int) -> LayerPart:
        own = overridden(config, index).get("num_attention_heads", near if window else heads)
        return attention(hidden, own, kv_heads, dim, window=window, vectors=2 * dim, gate=1)

    first = config.count("first_k_dense_replace", 3)
    routed = experts(
        hidden,
        config.count("n_routed_experts", config.count("moe_num_experts", config.count("num_experts", 288))),
        config.count("num_experts_per_tok", config.count("moe_top_k", 8)),
        config.count("moe_intermediate_size", 1280),
        shared=config.count("share_expert_dim", 1280),
    )
    dense = mlp(hidden, config.count("intermediate_size", 11264))
    return Anatomy(
        layers=[
            layer(mixer(index, window), dense if index < first else routed, vectors=2 * hidden)
            for index, window in enumerate(windows)
        ],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


def _llama4(config: Config) -> Anatomy:
    """Llama 4: three of four layers attend within a chunk, some have experts and one that all tokens visit."""
    hidden, layers, heads = (
        config.count("hidden_size", 5120),
        layers_of(config),
        config.count("num_attention_heads", 40),
    )
    chunk, every = config.optional("attention_chunk_size", 8192), config.count("no_rope_layer_interval", 4)
    step = config.count("interleave_moe_layer_step", 1)
    if every < 1 or step < 1 or chunk < 0:
        raise InputError(
            f"{config.path}: no_rope_layer_interval {every} and interleave_moe_layer_step {step} must be at least 1, "
            f"attention_chunk_size {chunk} at least 0"
        )
    kinds = config.kinds("layer_types", (FULL, CHUNKED), layers)
    rotated = config.counts("no_rope_layers") or [int((index + 1) % every != 0) for index in range(layers)]
    if len(rotated) != layers:
        raise InputError(f"{config.path}: no_rope_layers has {len(rotated)} entries, and there are {layers} layers")
    local = [kind == CHUNKED for kind in kinds] if kinds else [bool(each) for each in rotated]
    chosen = config.counts("moe_layers")
    routed = set(range(step - 1, layers, step)) if chosen is None else set(chosen)
    bias = config.flag("attention_bias", False)

    def of(index: int) -> Block:
        mixer = attention(
            hidden,
            heads,
            config.count("num_key_value_heads", 8),
            config.count("head_dim", 128),
            window=chunk if local[index] else 0,
            bias=bias,
            output_bias=bias,
        )
        if index in routed:
            width = config.count("intermediate_size", 8192)
            part = experts(
                hidden,
                config.count("num_local_experts", 16),
                config.count("num_experts_per_tok", 1),
                width,
                shared=width,
                module="feed_forward",
                shared_module="shared_expert",
            )
        else:
            part = mlp(hidden, config.count("intermediate_size_mlp", 16384), module="feed_forward")
        return layer(mixer, part, vectors=2 * hidden)

    return Anatomy(
        layers=[of(index) for index in range(layers)],
        tied=config.flag("tie_word_embeddings", False),
        counted="a chunk of local attention counts as a window of its size",
    )


MIXED: Mapping[str, Family] = {
    "mimo_v2_flash": _mimo,
    "step3_text": _step3,
    "step3p7": _step,
    "step3p7_text": _step,
    "llama4_text": _llama4,
}
