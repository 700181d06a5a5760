"""Families with a constant state in some layers (linear attention, Mamba), or with layers searched one by one.

Each counts what transformers' class (5.x) has; the two that it lacks, what vLLM's has.
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.catalog.hf_config import Config, shown
from sim.catalog.latents import latent_part
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import FULL, LINEAR, MAX_LAYERS, Family, head_dim, layers_of, mtp_left_out, state_type
from sim.catalog.recurrent import gated_delta, mamba2
from sim.specs.blocks import Block, Matrix, Span, State, whole
from traces.schema import InputError


def _intervals(config: Config, layers: int, known: tuple[str, ...]) -> list[str]:
    """The layers' kinds, as listed, else each `full_attention_interval`-th a full one."""
    listed = config.kinds("layer_types", known, layers)
    every = config.count("full_attention_interval", 4)
    if every < 1:
        raise InputError(f"{config.path}: {config.prefix}full_attention_interval = {every} must be at least 1")
    return listed or [LINEAR if (index + 1) % every else FULL for index in range(layers)]


def _qwen3_hybrid(config: Config) -> Anatomy:
    """Qwen3-Next and Qwen3.5: gated delta nets, every fourth layer gated attention; experts, or an MLP without them."""
    hidden, layers, heads = config.count("hidden_size"), layers_of(config), config.count("num_attention_heads")
    dim = head_dim(config, 256)
    count = config.either("num_experts", "num_local_experts", default=0)
    own_mlp = set(config.counts("mlp_only_layers") or ())
    step = max(1, config.count("decoder_sparse_step", 1))
    mixers = {
        LINEAR: gated_delta(
            hidden,
            key_heads=config.count("linear_num_key_heads", 16),
            value_heads=config.count("linear_num_value_heads", 32),
            key_dim=config.count("linear_key_head_dim", 128),
            value_dim=config.count("linear_value_head_dim", 128),
            kernel=config.count("linear_conv_kernel_dim", 4),
            dtype=state_type(config, "mamba_ssm_dtype"),
        ),
        FULL: attention(
            hidden,
            heads,
            config.count("num_key_value_heads", 2),
            dim,
            bias=config.flag("attention_bias", False),
            output_bias=config.flag("attention_bias", False),
            vectors=2 * dim,
            gate=dim if config.flag("attn_output_gate", True) else 0,
        ),
    }

    def of(index: int, kind: str) -> Block:
        if count and index not in own_mlp and (index + 1) % step == 0:
            part = experts(
                hidden,
                count,
                config.count("num_experts_per_tok", 8),
                config.count("moe_intermediate_size"),
                shared=config.count("shared_expert_intermediate_size"),
                shared_gate=True,
                shared_module="shared_expert",
            )
        else:
            part = mlp(hidden, config.count("intermediate_size"))
        return layer(mixers[kind], part, vectors=2 * hidden)

    kinds = _intervals(config, layers, (LINEAR, FULL))
    return Anatomy(
        layers=[of(index, kind) for index, kind in enumerate(kinds)],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


def _olmo_hybrid(config: Config) -> Anatomy:
    """OLMo Hybrid: gated delta nets, every fourth layer full attention with norms as wide as all heads."""
    hidden, layers, heads = config.count("hidden_size"), layers_of(config), config.count("num_attention_heads")
    kv_heads, dim = config.count("num_key_value_heads", heads), head_dim(config)
    bias = config.flag("attention_bias", False)
    mixers = {
        LINEAR: gated_delta(
            hidden,
            key_heads=config.count("linear_num_key_heads", heads),
            value_heads=config.count("linear_num_value_heads", heads),
            key_dim=config.count("linear_key_head_dim", dim * 3 // 4),
            value_dim=config.count("linear_value_head_dim", 2 * (dim * 3 // 4)),
            kernel=config.count("linear_conv_kernel_dim", 4),
            dtype=state_type(config, "mamba_ssm_dtype"),
        ),
        FULL: attention(
            hidden, heads, kv_heads, dim, bias=bias, output_bias=bias, vectors=(heads + kv_heads) * dim
        ),
    }  # fmt: skip
    ffn = mlp(hidden, config.count("intermediate_size"))
    made = {kind: layer(mixer, ffn, vectors=2 * hidden) for kind, mixer in mixers.items()}
    kinds = _intervals(config, layers, (LINEAR, FULL))
    return Anatomy(layers=[made[kind] for kind in kinds], tied=config.flag("tie_word_embeddings", False))


def _nemotron_h(config: Config) -> Anatomy:
    """Nemotron-H: each layer is one of Mamba-2, attention, an MLP, or experts (some of a projected width)."""
    hidden = config.count("hidden_size")
    letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    names = {"linear_attention": "mamba", FULL: "attention", **{name: name for name in letters.values()}}
    pattern, listed = config.table.get("hybrid_override_pattern"), config.table.get("layers_block_type")
    if (
        isinstance(listed, list)
        and len(listed) <= MAX_LAYERS
        and all(isinstance(k, str) and k in names for k in listed)
    ):
        kinds = [names[kind] for kind in listed]
    elif listed is None and isinstance(pattern, str) and len(pattern) <= MAX_LAYERS and set(pattern) <= set(letters):
        kinds = [letters[letter] for letter in pattern]
    else:
        raise InputError(
            f"{config.path}: layers_block_type must be a list of {', '.join(names)}, or hybrid_override_pattern a text "
            f"of {' '.join(letters)}, for at most {MAX_LAYERS} layers"
        )
    listed_layers = config.table.get("num_hidden_layers")
    if not kinds or (isinstance(listed_layers, int) and listed_layers != len(kinds)):
        raise InputError(f"{config.path}: the layers' kinds are {len(kinds)}, and num_hidden_layers is {listed_layers}")
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    dim = config.count("head_dim", config.count("attention_head_dim", 128))

    def part(kind: str) -> LayerPart:
        if kind == "mamba":
            return mamba2(
                hidden,
                heads=config.count("mamba_num_heads", 128),
                dim=config.count("mamba_head_dim", 64),
                groups=config.count("n_groups", 8),
                state_size=config.count("ssm_state_size", 128),
                kernel=config.count("conv_kernel", 4),
                bias=config.flag("use_bias", False),
                conv_bias=config.flag("use_conv_bias", True),
                dtype=state_type(config, "mamba_ssm_cache_dtype"),
            )
        if kind == "attention":
            heads, kv_heads = config.count("num_attention_heads", 32), config.count("num_key_value_heads", 8)
            return attention(hidden, heads, kv_heads, dim, bias=bias, output_bias=bias, module="mixer")
        if kind == "mlp":
            return mlp(hidden, config.count("intermediate_size"), gated=False, bias=mlp_bias, module="mixer")
        return experts(
            hidden,
            config.count("n_routed_experts", 8),
            config.count("num_experts_per_tok", 2),
            config.count("moe_intermediate_size"),
            shared=config.count("moe_shared_expert_intermediate_size"),
            gated=False,
            bias=mlp_bias,
            router_bias=config.count("n_routed_experts", 8),
            width=config.optional("moe_latent_size", 0),
            module="mixer",
        )

    parts = {kind: part(kind) for kind in dict.fromkeys(kinds)}
    return Anatomy(
        layers=[layer(parts[kind], vectors=hidden, norms=1) for kind in kinds],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


def _nemotron_nas(config: Config) -> Anatomy:
    """Llama-Nemotron of neural architecture search: each layer has its own KV heads and MLP, or lacks one."""
    hidden, heads, layers = config.count("hidden_size"), config.count("num_attention_heads"), layers_of(config)
    blocks, dim = config.table.get("block_configs"), head_dim(config)
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise InputError(f"{config.path}: block_configs must be a list of an object for each of {layers} layers")

    def part(index: int, name: str) -> Config:
        block = blocks[index]
        inner = Config(config.path, block if isinstance(block, dict) else {}, f"block_configs[{index}].")
        return Config(config.path, inner.section(name), f"{inner.prefix}{name}.")

    def of(index: int) -> Block:
        mixer, ffn = part(index, "attention"), part(index, "ffn")
        parts: list[LayerPart] = []
        vectors = 0
        for each in (mixer, ffn):
            if each.flag("replace_with_linear", False):
                matrix = Matrix("linear", (whole(hidden),), (whole(hidden),), ("linear",))
                parts.append(LayerPart((matrix,), hidden))
            elif each is mixer and not each.flag("no_op", False):
                group = max(1, each.count("n_heads_in_group"))
                parts.append(attention(hidden, heads, heads // group, dim, window=each.optional("window_length", 0)))
                vectors += hidden
            elif each is ffn and not each.flag("no_op", False):
                factor = each.table.get("ffn_mult")
                if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
                    raise InputError(
                        f"{config.path}: {each.prefix}ffn_mult = {shown(factor)} must lie between 0 and 1000"
                    )
                parts.append(mlp(hidden, -(-int(2 * factor * hidden / 3) // 256) * 256))
                vectors += hidden
        return layer(*parts, vectors=vectors, norms=len(parts))

    return Anatomy(layers=[of(index) for index in range(layers)], tied=config.flag("tie_word_embeddings", False))


def _kimi_linear(config: Config) -> Anatomy:
    """Kimi Linear: Kimi Delta Attention (arXiv 2510.26692), and latent attention in the layers that are listed."""
    for key in ("routed_expert_hidden_size", "attn_res_block_size"):
        if config.table.get(key) is not None:
            raise InputError(f"{config.path}: {config.prefix}{key} is that of Kimi-K3, whose layers are not known")
    hidden, layers = config.count("hidden_size"), layers_of(config)
    linear = Config(config.path, config.section("linear_attn_config"), "linear_attn_config.")
    full = {index - 1 for index in linear.counts("full_attn_layers") or ()}
    if not full <= set(range(layers)):
        raise InputError(f"{config.path}: {linear.prefix}full_attn_layers must lie between 1 and {layers}")
    heads, dim = linear.count("num_heads"), linear.count("head_dim")
    kernel = linear.count("short_conv_kernel_size", 4)
    name, wide = "self_attn.", Span(heads, dim)
    delta = LayerPart(
        (
            Matrix(
                "linear attention in", (whole(hidden),), (Span(heads, 3 * dim),), (f"{name}q_proj", f"{name}k_proj")
            ),
            Matrix("linear attention gates", (whole(hidden),), (Span(heads, 1), whole(2 * dim)), (f"{name}f_a_proj",)),
            Matrix("linear attention gates up", (whole(dim),), (wide, wide), (f"{name}f_b_proj", f"{name}g_b_proj")),
            Matrix("linear attention out", (wide,), (whole(hidden),), (f"{name}o_proj",)),
        ),
        3 * heads * dim * kernel + heads + heads * dim + dim,
        None,
        State(
            heads=heads, key_dim=dim, value_dim=dim, conv_channels=3 * heads * dim, conv_tokens=kernel - 1, dtype="fp32"
        ),
    )
    mla = latent_part(config)
    count = config.either("num_experts", "num_local_experts", default=256)
    width, shared = (
        config.count("moe_intermediate_size"),
        config.either("num_shared_experts", "n_shared_experts", default=1),
    )
    visited = config.either("num_experts_per_token", "num_experts_per_tok", default=8)
    routed = experts(
        hidden, count, visited, width, shared=shared * width, router_bias=count, module="block_sparse_moe"
    )  # fmt: skip
    dense = mlp(hidden, config.count("intermediate_size"))
    first = config.count("first_k_dense_replace", 1)
    return Anatomy(
        layers=[
            layer(mla if index in full else delta, dense if index < first else routed, vectors=2 * hidden)
            for index in range(layers)
        ],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


HYBRIDS: Mapping[str, Family] = {
    "qwen3_next": _qwen3_hybrid,
    "qwen3_5_text": _qwen3_hybrid,
    "qwen3_5_moe_text": _qwen3_hybrid,
    "olmo_hybrid": _olmo_hybrid,
    "nemotron_h": _nemotron_h,
    "nemotron_nas": _nemotron_nas,
    "kimi_linear": _kimi_linear,
}
