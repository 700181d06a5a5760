"""Families whose attention chooses what it attends: an indexer's tokens (DSA) or blocks, or a compressed context.

Each counts what the class of transformers (5.x) has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.catalog.hf_config import Config
from sim.catalog.latents import latent_part
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import WINDOWED, Family, deepseek_experts, layers_of, mtp_left_out, sparse_layers
from sim.specs.blocks import Cache, Matrix, Span, State, whole
from traces.schema import InputError


def _sparse_latent(config: Config) -> Anatomy:
    """DeepSeek-V3.2 and GLM-5: latent attention of the tokens that an indexer chooses (DSA)."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    kinds = config.kinds("indexer_types", ("full", "shared"), layers) or ["full"] * layers
    sparse = sparse_layers(config, layers)
    dense, routed = mlp(hidden, config.count("intermediate_size")), deepseek_experts(config, hidden)
    mixers = {kind: latent_part(config, kind == "shared", sparse=True) for kind in ("full", "shared")}
    parts = [
        (mixers[kind], routed if with_experts else dense) for kind, with_experts in zip(kinds, sparse, strict=True)
    ]
    return Anatomy(
        layers=[layer(*both, vectors=2 * hidden) for both in parts],
        tied=config.flag("tie_word_embeddings", False),
        counted=mtp_left_out(config),
    )


def _deepseek_v4(config: Config) -> Anatomy:
    """DeepSeek-V4: one shared key and value a token, compressed beside a window, and hyper-connections."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    heads, dim, ranks = config.count("num_attention_heads"), config.count("head_dim"), config.count("q_lora_rank")
    groups, output_rank = max(1, config.count("o_groups")), config.count("o_lora_rank")
    index_heads, index_dim = config.count("index_n_heads"), config.count("index_head_dim")
    ways, window = config.count("hc_mult", 4), config.count("sliding_window", 128)
    ratios = config.counts("compress_ratios") or _ratios(config, layers)
    if len(ratios) < layers or any(not 0 <= ratio <= 2**20 for ratio in ratios):
        raise InputError(f"{config.path}: compress_ratios must have a number from 0 for each of {layers} layers")
    connections = 2 * ((ways * ways + 2 * ways) * (ways * hidden + 1) + 3)
    routed = deepseek_experts(config, hidden, module="ffn")
    if config.table.get("expert_dtype") == "fp4":
        routed = routed._replace(matrices=tuple(_fp4(matrix) for matrix in routed.matrices))

    def mixer(ratio: int) -> LayerPart:
        matrices = [
            Matrix("query and key down", (whole(hidden),), (whole(ranks + dim),), ("attn.wq_a", "self_attn.q_a_proj")),
            Matrix("query up", (whole(ranks),), (Span(heads, dim),), ("attn.wq_b", "self_attn.q_b_proj")),
            Matrix(
                "output down",
                (whole(heads * dim // groups),),
                (whole(groups * output_rank),),
                ("attn.wo_a", "self_attn.o_a_proj"),
            ),
            Matrix(
                "attention output",
                (whole(groups * output_rank),),
                (whole(hidden),),
                ("attn.wo_b", "self_attn.o_b_proj"),
            ),
        ]
        vectors = heads + ranks + dim
        overlap = 2 if ratio == 4 else 1
        if ratio:
            compressed = overlap * dim
            matrices.append(Matrix("compressor", (whole(hidden),), (whole(2 * compressed),), weights="plain"))
            vectors += ratio * compressed + dim
        if ratio == 4:
            matrices += [
                Matrix("indexer key", (whole(hidden),), (whole(2 * overlap * index_dim),), weights="plain"),
                Matrix("indexer query", (whole(ranks),), (whole(index_heads * index_dim),)),
                Matrix("indexer weight", (whole(hidden),), (whole(index_heads),), weights="plain"),
            ]
            vectors += ratio * overlap * index_dim + index_dim
        indexed = ratio == 4
        cache = Cache(
            heads=heads,
            rank=dim,
            key_dim=dim,
            value_dim=dim,
            stride=max(1, ratio),
            index_heads=index_heads if indexed else 0,
            index_dim=index_dim if indexed else 0,
            top_tokens=config.count("index_topk") if indexed else 0,
        )
        # Beside it the newest tokens as they are: so many whatever the length, as a state.
        return LayerPart(
            tuple(matrices), vectors, cache if ratio else None, State(heads=1, key_dim=dim, value_dim=window)
        )

    mixers = {ratio: mixer(ratio) for ratio in set(ratios[:layers])}
    hashed = _hashed(config, layers)
    # Layers that route by a token's hash have nothing to correct.
    by_hash = routed._replace(vectors=0)
    return Anatomy(
        layers=[
            layer(mixers[ratio], by_hash if index < hashed else routed, vectors=2 * hidden + connections)
            for index, ratio in enumerate(ratios[:layers])
        ],
        tied=config.flag("tie_word_embeddings", False),
        beside=ways * ways * hidden + ways + 1,
        counted=mtp_left_out(config),
        unpriced="no kernel for its compressed attention and its hyper-connections is modelled",
    )


def _hashed(config: Config, layers: int) -> int:
    """Layers, the first ones, whose experts a token's id names."""
    kinds = config.kinds("mlp_layer_types", ("hash_moe", "moe"), layers)
    return config.count("num_hash_layers", 3) if kinds is None else kinds.count("hash_moe")


def _ratios(config: Config, layers: int) -> list[int]:
    """How many tokens each layer compresses to one, as transformers writes it: by the layers' kinds."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    if config.table.get("compress_rates") is not None:
        table = Config(config.path, config.section("compress_rates"), "compress_rates.")
        rates = {kind: table.count(kind, rate) for kind, rate in rates.items()}
    kinds = config.kinds("layer_types", (WINDOWED, *rates), layers)
    return [rates.get(kind, 0) for kind in kinds or []]


def _fp4(matrix: Matrix) -> Matrix:
    return replace(matrix, weights="mxfp4") if matrix.is_routed else matrix


def _minimax_m3(config: Config) -> Anatomy:
    """MiniMax-M3: full layers, and such whose indexer chooses blocks of tokens; an MLP or experts."""
    hidden, heads, layers = config.count("hidden_size"), config.count("num_attention_heads"), layers_of(config)
    kv_heads, dim = config.count("num_key_value_heads"), config.count("head_dim", 128)
    settings = Config(config.path, config.section("sparse_attention_config"), "sparse_attention_config.")
    index_heads, width = settings.count("sparse_num_index_heads"), settings.count("sparse_index_dim")
    chosen = settings.count("sparse_topk_blocks") * settings.count("sparse_block_size")
    where = settings.counts("sparse_attention_freq") or []
    if len(where) != layers:
        raise InputError(f"{config.path}: {settings.prefix}sparse_attention_freq must have a number for each layer")
    full = attention(hidden, heads, kv_heads, dim, vectors=2 * dim)
    assert full.cache is not None
    indexer = (
        Matrix("indexer query", (whole(hidden),), (whole(index_heads * width),), ("self_attn.indexer.q_proj",)),
        Matrix("indexer key", (whole(hidden),), (whole(width),), ("self_attn.indexer.k_proj",)),
    )
    cache = replace(full.cache, index_heads=index_heads, index_dim=width, top_tokens=chosen)
    sparse = LayerPart((*full.matrices, *indexer), full.vectors + 2 * width, cache)
    count, ffn = config.count("num_local_experts"), config.either("moe_intermediate_size", "intermediate_size")
    shared = config.optional("n_shared_experts", 0) * config.count("shared_intermediate_size", ffn)
    visited = config.count("num_experts_per_tok")
    routed = experts(hidden, count, visited, ffn, shared=shared, router_bias=count, module="block_sparse_moe")
    dense = mlp(hidden, config.count("dense_intermediate_size"))
    kinds = zip(where, sparse_layers(config, layers), strict=True)
    note = "index keys are counted in fp8, as those of DeepSeek-V3.2"
    return Anatomy(
        layers=[layer(sparse if s else full, routed if r else dense, vectors=2 * hidden) for s, r in kinds],
        tied=config.flag("tie_word_embeddings", False),
        counted="; ".join(filter(None, (note, mtp_left_out(config)))),
    )


SPARSE: Mapping[str, Family] = {
    "deepseek_v32": _sparse_latent,
    "glm_moe_dsa": _sparse_latent,
    "deepseek_v4": _deepseek_v4,
    "deepseek_ref": _deepseek_v4,
    "minimax_m3": _minimax_m3,
}
