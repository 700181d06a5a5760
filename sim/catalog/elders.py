"""Families with keys and layers of their own age: learned positions, ALiBi, fused projections, tables inside of tables.

Each counts what the class of transformers (5.x) has; chatglm, qwen and arctic what their own code has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sim.catalog.hf_config import Config, shown
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import Family, layers_of
from traces.schema import InputError


def _alike(
    config: Config,
    ffn: int,
    *,
    kv_heads: int | None = None,
    biases: tuple[bool, bool, bool] = (True, True, True),
    gated: bool = False,
    norms: int = 2,
    norm: str = "layer",
    tied: bool = True,
    beside: int = 0,
    windows: Sequence[int] = (),
    dim: int | None = None,
    vectors: int = 0,
    ffn_part: LayerPart | None = None,
) -> Anatomy:
    """Layers of one kind but for their windows; `biases` are those of queries, keys and values, of the output, of the
    MLP, `vectors` what else attention has."""
    hidden, heads, layers = config.count("hidden_size"), config.count("num_attention_heads"), layers_of(config)
    width = dim or _even(config, hidden, heads)
    part = ffn_part or mlp(hidden, ffn, gated=gated, bias=biases[2])
    mixers = {
        window: attention(
            hidden, heads, kv_heads or heads, width, window=window, bias=biases[0], output_bias=biases[1],
            vectors=vectors,
        )
        for window in {0, *windows}
    }  # fmt: skip
    weights = norms * hidden * (2 if norm == "layer" else 1)
    kinds = {window: layer(mixer, part, vectors=weights, norms=norms) for window, mixer in mixers.items()}
    return Anatomy(
        layers=[kinds[window] for window in windows or [0] * layers],
        tied=config.flag("tie_word_embeddings", tied),
        norm=norm,
        beside=beside,
    )


def _even(config: Config, hidden: int, heads: int) -> int:
    if heads < 1 or hidden % heads:
        raise InputError(
            f"{config.path}: {config.named('hidden_size')} {hidden} is not a multiple of "
            f"{config.named('num_attention_heads')} {heads}"
        )
    return hidden // heads


def _positions(config: Config) -> int:
    """Parameters of a learned table of positions."""
    return config.count("max_position_embeddings") * config.count("hidden_size")


def _gpt2(config: Config) -> Anatomy:
    config.demand("add_cross_attention", False, "a decoder alone")
    return _alike(config, config.optional("n_inner", 0) or 4 * config.count("hidden_size"), beside=_positions(config))


def _gpt_bigcode(config: Config) -> Anatomy:
    """StarCoder 1: GPT-2 with one KV head."""
    config.demand("add_cross_attention", False, "a decoder alone")
    ffn = config.optional("n_inner", 0) or 4 * config.count("hidden_size")
    shared = config.flag("multi_query", True)
    return _alike(config, ffn, kv_heads=1 if shared else None, beside=_positions(config))


def _gpt_neo(config: Config) -> Anatomy:
    """GPT-Neo: every other layer within a window."""
    layers, window = layers_of(config), config.count("window_size", 256)
    kinds = config.kinds("attention_layers", ("global", "local"), layers)
    windows = [window if kind == "local" else 0 for kind in kinds or ["global", "local"] * layers][:layers]
    ffn = config.optional("intermediate_size", 0) or 4 * config.count("hidden_size")
    return _alike(config, ffn, biases=(False, True, True), windows=windows, beside=_positions(config))


def _gptj(config: Config) -> Anatomy:
    """GPT-J and CodeGen: attention and MLP share a norm; the LM head has a bias."""
    ffn = config.optional("n_inner", 0) or 4 * config.count("hidden_size")
    beside = config.count("vocab_size")
    return _alike(config, ffn, biases=(False, False, True), norms=1, tied=False, beside=beside)


def _bloom(config: Config) -> Anatomy:
    """BLOOM: ALiBi, and a norm of the embeddings."""
    hidden = config.count("hidden_size")
    return _alike(config, 4 * hidden, beside=2 * hidden)


def _falcon(config: Config) -> Anatomy:
    """Falcon: one KV head, or with the new architecture some, and one norm or two."""
    heads, bias = config.count("num_attention_heads"), config.flag("bias", False)
    new = config.flag("new_decoder_architecture", False)
    kv_heads = 1 if config.flag("multi_query", True) and not new else config.count("num_kv_heads", heads)
    ffn = config.count("ffn_hidden_size", 4 * config.count("hidden_size"))
    parallel = config.flag("parallel_attn", True)
    norms = config.optional("num_ln_in_parallel_attn", 0) or (2 if new else 1)
    if not new:
        norms = 1 if parallel else 2
    return _alike(config, ffn, kv_heads=kv_heads, biases=(bias, bias, bias), norms=norms)


def _inner(config: Config, key: str) -> Config:
    return Config(config.path, config.section(key) if config.table.get(key) is not None else {}, f"{key}.")


def _mpt(config: Config) -> Anatomy:
    """MPT: ALiBi, no biases; some have KV heads of their own number (`attn_config.kv_n_heads`)."""
    inner, hidden = _inner(config, "attn_config"), config.count("hidden_size")
    for key in ("qk_ln", "prefix_lm"):
        inner.demand(key, False, "plain attention alone is modelled")
    config.demand("no_bias", True, "layers must have no biases")
    inner.demand("alibi", True, "positions must be ALiBi's")
    kinds = {"multihead_attention": None, "grouped_query_attention": inner.optional("kv_n_heads", 0)}
    kind = inner.table.get("attn_type") or "multihead_attention"
    if kind == "multiquery_attention":
        kv_heads: int | None = 1
    elif isinstance(kind, str) and kind in kinds:
        kv_heads = kinds[kind]
    else:
        known = ", ".join((*kinds, "multiquery_attention"))
        raise InputError(f"{config.path}: attn_config.attn_type = {shown(kind)} is none of {known}")
    return _alike(
        config,
        config.count("expansion_ratio", 4) * hidden,
        kv_heads=kv_heads,
        biases=(False, False, False),
        norm="rms",
    )


def _dbrx(config: Config) -> Anatomy:
    """DBRX: 16 experts, of which four are visited; norms without biases."""
    hidden = config.count("hidden_size")
    attends, feeds = _inner(config, "attn_config"), _inner(config, "ffn_config")
    part = experts(
        hidden,
        feeds.count("moe_num_experts", 4),
        feeds.count("moe_top_k", 1),
        feeds.count("ffn_hidden_size", 3584),
        module="ffn",
    )
    kv_heads = attends.count("kv_n_heads", 1)
    no = (False, False, False)
    return _alike(config, 0, kv_heads=kv_heads, biases=no, norm="rms", tied=False, ffn_part=part)


def _chatglm(config: Config) -> Anatomy:
    """ChatGLM 2 and 3, and GLM-4 9B in its first form."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("multi_query_group_num", 1) if config.flag("multi_query_attention", False) else heads
    bias = config.flag("add_bias_linear", False)
    config.demand("rmsnorm", True, "norms must be RMS norms")
    config.demand("post_layer_norm", True, "a last norm is expected")
    return _alike(
        config,
        config.count("ffn_hidden_size"),
        kv_heads=kv_heads,
        biases=(bias or config.flag("add_qkv_bias", False), bias, bias),
        gated=True,
        norm="rms",
        tied=False,
        dim=config.count("kv_channels", _even(config, hidden, heads)),
    )


def _qwen(config: Config) -> Anatomy:
    """Qwen 1: `intermediate_size` is that of gate and up together."""
    bias = not config.flag("no_bias", True)
    width = config.count("intermediate_size")
    dim = config.count("kv_channels", 128)
    return _alike(
        config, width // 2, biases=(True, bias, bias), gated=True, norm="rms", tied=False, dim=dim
    )  # fmt: skip


def _arctic(config: Config) -> Anatomy:
    """Snowflake Arctic: an MLP as wide as the stream beside the experts of each layer."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    config.demand("moe_layer_frequency", 1, "every layer must have experts")
    residual = config.flag("parallel_attn_mlp_res", True)
    count, width = config.count("num_local_experts"), config.count("intermediate_size")
    part = experts(hidden, count, config.count("num_experts_per_tok"), width, module="block_sparse_moe")
    if residual:
        beside = mlp(hidden, hidden, module="residual_mlp", name="residual MLP")
        part = part._replace(matrices=(*part.matrices, *beside.matrices))
    kv_heads = config.count("num_key_value_heads", heads)
    norms, no = 3 if residual else 2, (False, False, False)
    return _alike(
        config, 0, kv_heads=kv_heads, biases=no, norm="rms", norms=norms, tied=False, ffn_part=part
    )  # fmt: skip


def _mllama(config: Config) -> Anatomy:
    """Llama 3.2 Vision's text: Llama's layers, and between them such as attend an image."""
    hidden, layers, heads = config.count("hidden_size"), layers_of(config), config.count("num_attention_heads")
    kv_heads, dim = config.count("num_key_value_heads", 8), _even(config, hidden, heads)
    part = mlp(hidden, config.count("intermediate_size"))
    own = layer(attention(hidden, heads, kv_heads, dim), part, vectors=2 * hidden)
    crossing = attention(hidden, heads, kv_heads, dim, vectors=2 * dim + 2, module="cross_attn")
    image = replace(layer(crossing._replace(cache=None), part, vectors=2 * hidden))
    where = set(config.counts("cross_attention_layers") or ())
    if not where <= set(range(layers)):
        raise InputError(f"{config.path}: cross_attention_layers must lie between 0 and {layers - 1}")
    return Anatomy(
        layers=[image if index in where else own for index in range(layers)],
        tied=config.flag("tie_word_embeddings", False),
        beside=8 * hidden,
        counted="layers that attend an image are computed for every token and keep nothing of text" if where else "",
    )


ELDERS: Mapping[str, Family] = {
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "bloom": _bloom,
    "falcon": _falcon,
    "mpt": _mpt,
    "dbrx": _dbrx,
    "chatglm": _chatglm,
    "qwen": _qwen,
    "arctic": _arctic,
    "mllama_text_model": _mllama,
}
