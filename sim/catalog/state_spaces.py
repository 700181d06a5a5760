"""Families with Mamba, short convolutions or lightning attention: alone, between attention, or beside it.

Each counts what the class of transformers (5.x) has. States are kept in the type that the file names, else in that of
the activations (vLLM 0.19, `mamba_ssm_cache_dtype` "auto").
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.catalog.hf_config import Config, shown
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import FULL, LINEAR, Family, head_dim, layers_of, state_type
from sim.catalog.recurrent import lightning, mamba1, mamba2, short_convolution
from sim.catalog.routed import granite_experts
from sim.specs.blocks import Block
from traces.schema import InputError

ENDLESS = "no limit of the context: 1,048,576 tokens are set"


def _attention(config: Config, *, bias: bool = False, vectors: int = 0, module: str = "self_attn") -> LayerPart:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, dim = config.count("num_key_value_heads", heads), head_dim(config)
    return attention(hidden, heads, kv_heads, dim, bias=bias, output_bias=bias, vectors=vectors, module=module)


def _mamba2(config: Config, *, norm: bool = True, output_bias: bool | None = None) -> LayerPart:
    """Mamba-2 by the keys that begin with `mamba_`: Bamba, Granite 4 and Falcon-H1."""
    hidden = config.count("hidden_size")
    heads = config.count("mamba_n_heads", 128)
    inner = config.optional("mamba_d_ssm", 0) or config.count("mamba_expand", 2) * hidden
    value = config.table.get("mamba_d_head") or "auto"
    dim = inner // max(1, heads) if value == "auto" else config.count("mamba_d_head")
    if heads * dim != inner:
        raise InputError(
            f"{config.path}: mamba_n_heads {heads} times mamba_d_head {dim} is not the inner width {inner}"
        )
    return mamba2(
        hidden,
        heads=heads,
        dim=dim,
        groups=config.count("mamba_n_groups", 1),
        state_size=config.count("mamba_d_state", 256),
        kernel=config.count("mamba_d_conv", 4),
        bias=config.flag("mamba_proj_bias", False),
        output_bias=output_bias,
        conv_bias=config.flag("mamba_conv_bias", True),
        dtype=state_type(config, "mamba_ssm_cache_dtype"),
        norm=norm,
        module="mamba",
    )


def _bamba(config: Config) -> Anatomy:
    """Bamba: Mamba-2 with attention in the layers that are listed."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    where = set(config.counts("attn_layer_indices") or ())
    if not where <= set(range(layers)):
        raise InputError(f"{config.path}: attn_layer_indices must lie between 0 and {layers - 1}")
    ffn = mlp(hidden, config.count("intermediate_size"), bias=config.flag("mlp_bias", False), module="feed_forward")
    full = layer(_attention(config, bias=config.flag("attention_bias", False)), ffn, vectors=2 * hidden)
    state = layer(_mamba2(config), ffn, vectors=2 * hidden)
    return Anatomy(
        layers=[full if index in where else state for index in range(layers)],
        tied=config.flag("tie_word_embeddings", False),
    )


def _granite_hybrid(config: Config) -> Anatomy:
    """Granite 4: Mamba-2 and attention; experts with a shared MLP, or that alone."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    key = "layer_types" if config.table.get("layer_types") is not None else "layers_block_type"
    kinds = config.kinds(key, ("mamba", "attention", LINEAR, FULL), layers) or ["mamba"] * layers
    if config.optional("num_local_experts", 8):
        ffn = granite_experts(config, hidden)
    else:
        ffn = mlp(hidden, config.count("shared_intermediate_size", 1024), module="shared_mlp")
    full = layer(_attention(config, bias=config.flag("attention_bias", False)), ffn, vectors=2 * hidden)
    state = layer(_mamba2(config), ffn, vectors=2 * hidden) if {"mamba", LINEAR} & set(kinds) else full
    return Anatomy(
        layers=[full if kind in ("attention", FULL) else state for kind in kinds],
        tied=config.flag("tie_word_embeddings", False),
    )


def _falcon_h1(config: Config) -> Anatomy:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    hidden = config.count("hidden_size")
    norm, bias = config.flag("mamba_rms_norm", False), config.flag("projectors_bias", False)
    both = (
        _attention(config, bias=config.flag("attention_bias", False)),
        _mamba2(config, norm=norm, output_bias=bias),
        mlp(hidden, config.count("intermediate_size"), bias=config.flag("mlp_bias", False), module="feed_forward"),
    )
    one = layer(*both, vectors=2 * hidden)
    return Anatomy(layers=[one] * layers_of(config), tied=config.flag("tie_word_embeddings", False))


def _jamba(config: Config) -> Anatomy:
    """Jamba: of each period one layer attends and the others are Mamba; of each other period one has experts."""
    hidden, layers, ffn = config.count("hidden_size"), layers_of(config), config.count("intermediate_size")
    periods = {
        name: (config.count(f"{name}_layer_period", every), config.count(f"{name}_layer_offset", at))
        for name, every, at in (("attn", 8, 4), ("expert", 2, 1))
    }
    if any(every < 1 for every, _ in periods.values()):
        raise InputError(f"{config.path}: attn_layer_period and expert_layer_period must be at least 1")
    states, rank = config.count("mamba_d_state", 16), _time_rank(config, "mamba_dt_rank", hidden)
    state = mamba1(
        hidden,
        inner=config.count("mamba_expand", 2) * hidden,
        state_size=states,
        rank=rank,
        kernel=config.count("mamba_d_conv", 4),
        bias=config.flag("mamba_proj_bias", False),
        conv_bias=config.flag("mamba_conv_bias", True),
        dtype=state_type(config, "mamba_ssm_cache_dtype"),
        vectors=rank + 2 * states,
        module="mamba",
    )
    count = config.count("num_experts", 16)
    dense = mlp(hidden, ffn, module="feed_forward")
    visited = config.count("num_experts_per_tok", 2)
    routed = experts(hidden, count, visited, ffn, module="feed_forward") if count > 1 else dense
    full = _attention(config)

    def of(index: int) -> Block:
        attends, routes = (index % every == at for every, at in (periods["attn"], periods["expert"]))
        return layer(full if attends else state, routed if routes else dense, vectors=2 * hidden)

    return Anatomy(layers=[of(index) for index in range(layers)], tied=config.flag("tie_word_embeddings", False))


def _time_rank(config: Config, key: str, hidden: int) -> int:
    """The rank of Mamba's time steps: a number, or "auto", a sixteenth of the width."""
    return -(-hidden // 16) if config.table.get(key) in ("auto", None) else config.count(key)


def _mamba(config: Config) -> Anatomy:
    """Mamba and Falcon-Mamba: states alone, no cache that grows."""
    hidden = config.count("hidden_size")
    part = mamba1(
        hidden,
        inner=config.count("intermediate_size", config.count("expand", 2) * hidden),
        state_size=config.count("state_size", 16),
        rank=_time_rank(config, "time_step_rank", hidden),
        kernel=config.count("conv_kernel", 4),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
        dtype=state_type(config, "mamba_ssm_cache_dtype"),
    )
    one = layer(part, vectors=hidden, norms=1)
    tied = config.flag("tie_word_embeddings", True)
    return Anatomy(layers=[one] * layers_of(config), tied=tied, counted=ENDLESS)


def _pure_mamba2(config: Config) -> Anatomy:
    hidden = config.count("hidden_size")
    heads, dim = config.count("num_heads", 128), config.count("head_dim", 64)
    if heads * dim != config.count("expand", 2) * hidden:
        raise InputError(f"{config.path}: num_heads {heads} times head_dim {dim} is not expand times hidden_size")
    part = mamba2(
        hidden,
        heads=heads,
        dim=dim,
        groups=config.count("n_groups", 8),
        state_size=config.count("state_size", 128),
        kernel=config.count("conv_kernel", 4),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
        dtype=state_type(config, "mamba_ssm_cache_dtype"),
    )
    one = layer(part, vectors=hidden, norms=1)
    tied = config.flag("tie_word_embeddings", False)
    return Anatomy(layers=[one] * layers_of(config), tied=tied, counted=ENDLESS)


def _lfm2(config: Config) -> Anatomy:
    """LFM2: short convolutions between attention; an MLP, or experts after the first layers."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    listed = config.kinds("layer_types", ("conv", FULL), layers)
    where = config.counts("full_attn_idxs")
    kinds = listed or ["conv" if where is not None and index not in where else FULL for index in range(layers)]
    full = _attention(config, vectors=2 * head_dim(config))
    short = short_convolution(
        hidden, kernel=config.count("conv_L_cache", 3), bias=config.flag("conv_bias", False), module="conv"
    )
    dense = mlp(hidden, _lfm2_width(config), module="feed_forward")
    routed, first = dense, layers
    if config.table["model_type"] == "lfm2_moe":
        count, first = config.count("num_experts", 32), config.count("num_dense_layers", 2)
        routed = experts(
            hidden,
            count,
            config.count("num_experts_per_tok", 4),
            config.count("moe_intermediate_size", 1792),
            router_bias=count if config.flag("use_expert_bias", True) else 0,
            module="feed_forward",
        )
    parts = [(short if kind == "conv" else full, dense if at < first else routed) for at, kind in enumerate(kinds)]
    tied = config.flag("tie_embedding", config.flag("tie_word_embeddings", True))
    return Anatomy(layers=[layer(*both, vectors=2 * hidden) for both in parts], tied=tied)


def _lfm2_width(config: Config) -> int:
    """The MLP's width: with `block_auto_adjust_ff_dim` two thirds of what the file says, rounded up."""
    width = config.either("block_ff_dim", "intermediate_size")
    if config.table["model_type"] == "lfm2_moe" or not config.flag("block_auto_adjust_ff_dim", True):
        return width
    factor, unit = config.table.get("block_ffn_dim_multiplier"), max(1, config.count("block_multiple_of", 256))
    width = int(2 * width / 3)
    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
            raise InputError(f"{config.path}: block_ffn_dim_multiplier = {shown(factor)} must lie between 0 and 1000")
        width = int(factor * width)
    return unit * -(-width // unit)


def _minimax(config: Config) -> Anatomy:
    """MiniMax-Text-01 and M1: lightning attention (arXiv 2501.08313), some layers full; experts."""
    hidden, heads, layers = config.count("hidden_size"), config.count("num_attention_heads"), layers_of(config)
    numbers = config.counts("attn_type_list")
    if numbers is not None and (len(numbers) != layers or not set(numbers) <= {0, 1}):
        raise InputError(f"{config.path}: attn_type_list must have 0 or 1 for each of {layers} layers")
    kinds = config.kinds("layer_types", (FULL, LINEAR), layers)
    if kinds is None:
        kinds = [FULL if (index + 1) % 2 else LINEAR for index in range(layers)]
        if numbers is not None:
            kinds = [FULL if number else LINEAR for number in numbers]
    config.demand("shared_intermediate_size", 0, "no shared expert is modelled")
    window = config.optional("sliding_window", 0)
    kv_heads, dim = config.count("num_key_value_heads", 8), head_dim(config)
    full = attention(hidden, heads, kv_heads, dim, window=window)
    mixers = {FULL: full, LINEAR: lightning(hidden, heads=heads, dim=dim)}
    count, visited = config.count("num_local_experts", 8), config.count("num_experts_per_tok", 2)
    routed = experts(hidden, count, visited, config.count("intermediate_size"), module="block_sparse_moe")
    return Anatomy(
        layers=[layer(mixers[kind], routed, vectors=2 * hidden) for kind in kinds],
        tied=config.flag("tie_word_embeddings", False),
    )


STATE_SPACES: Mapping[str, Family] = {
    "bamba": _bamba,
    "granitemoehybrid": _granite_hybrid,
    "falcon_h1": _falcon_h1,
    "jamba": _jamba,
    "mamba": _mamba,
    "falcon_mamba": _mamba,
    "mamba2": _pure_mamba2,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "minimax": _minimax,
}
