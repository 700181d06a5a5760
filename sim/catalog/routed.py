"""The experts of families: how each spells their number, their width, those that all tokens visit and their biases."""

from __future__ import annotations

from sim.catalog.hf_config import Config
from sim.catalog.layers import LayerPart, experts
from traces.schema import InputError


def own_experts(config: Config, hidden: int) -> LayerPart:
    """Experts without a shared one, as wide as the MLP is elsewhere."""
    count = config.either("num_local_experts", "num_experts")
    return experts(hidden, count, config.count("num_experts_per_tok"), config.count("intermediate_size"))


def narrow_experts(config: Config, hidden: int) -> LayerPart:
    """Experts without a shared one, of a width of their own."""
    count = config.either("num_local_experts", "num_experts")
    return experts(hidden, count, config.count("num_experts_per_tok"), config.count("moe_intermediate_size"))


def block_sparse(config: Config, hidden: int) -> LayerPart:
    """MiniMax-M2: Mixtral's experts with a bias that corrects the router."""
    count = config.count("num_local_experts")
    visited, width = config.count("num_experts_per_tok"), config.count("intermediate_size")
    return experts(hidden, count, visited, width, router_bias=count, module="block_sparse_moe")


def qwen2_experts(config: Config, hidden: int) -> LayerPart:
    """Qwen2-MoE: a shared expert with a gate."""
    return experts(
        hidden,
        config.either("num_experts", "num_local_experts", default=60),
        config.count("num_experts_per_tok", 4),
        config.count("moe_intermediate_size", 1408),
        shared=config.count("shared_expert_intermediate_size", 5632),
        shared_gate=True,
        shared_module="shared_expert",
    )


def qwen2_sparse(config: Config, layers: int) -> list[bool]:
    """Qwen2-MoE: each so many-th layer has experts, but those that are listed."""
    own, step = set(config.counts("mlp_only_layers") or ()), config.count("decoder_sparse_step", 1)
    if step < 1:
        raise InputError(f"{config.path}: {config.named('decoder_sparse_step')} = {step} must be at least 1")
    return [index not in own and (index + 1) % step == 0 for index in range(layers)]


def laguna_experts(config: Config, hidden: int) -> LayerPart:
    """Laguna: a shared expert without a gate, and a correcting bias."""
    count = config.count("num_experts", 256)
    return experts(
        hidden,
        count,
        config.count("num_experts_per_tok", 8),
        config.count("moe_intermediate_size", 512),
        shared=config.optional("shared_expert_intermediate_size", 512),
        router_bias=count,
    )


def cohere_experts(config: Config, hidden: int) -> LayerPart:
    """Command's experts: shared ones as one MLP, all as wide as the MLP elsewhere."""
    config.demand("prefix_dense_intermediate_size", None, "layers without experts must be as wide as an expert")
    width, count = config.count("intermediate_size"), config.count("num_experts", 8)
    shared = config.optional("num_shared_experts", 0) * width
    return experts(hidden, count, config.count("num_experts_per_tok", 2), width, shared=shared)


def ernie_experts(config: Config, hidden: int) -> LayerPart:
    """ERNIE 4.5: the shared ones are one MLP that many times as wide."""
    config.demand("use_bias", False, "experts must have no biases")
    count, width = config.count("moe_num_experts", 64), config.count("moe_intermediate_size", 1536)
    shared = config.optional("moe_num_shared_experts", 2) * width
    return experts(hidden, count, config.count("moe_k", 6), width, shared=shared, router_bias=count)


def ernie_sparse(config: Config, layers: int) -> list[bool]:
    """ERNIE 4.5: each so many-th layer between two has experts."""
    if config.table.get("mlp_layer_types") is not None:
        return [kind == "sparse" for kind in config.kinds("mlp_layer_types", ("sparse", "dense"), layers) or []]
    first, last = config.count("moe_layer_start_index", 1), config.count("moe_layer_end_index", -1)
    every = max(1, config.count("moe_layer_interval", 1))
    end = layers - 1 if last == -1 else last
    return [(index + 1) % every == 0 and first <= index <= end for index in range(layers)]


def hunyuan_experts(config: Config, hidden: int) -> LayerPart:
    """Hunyuan: counts that may be lists, one for each layer, all alike; a shared MLP."""
    count, visited = _alike(config, "num_experts", 1), _alike(config, "moe_topk", 1)
    width = config.count("intermediate_size")
    own = _alike(config, "moe_intermediate_size", width)
    shared = _alike(config, "num_shared_expert", 1) * width
    return experts(hidden, count, visited, own, shared=shared, shared_module="shared_mlp")


def _alike(config: Config, key: str, default: int) -> int:
    """A number, or a list of one for each layer that are all the same."""
    value = config.table.get(key)
    if not isinstance(value, list):
        return config.count(key, default)
    counts = config.counts(key) or []
    if len(set(counts)) != 1:
        raise InputError(f"{config.path}: {config.named(key)} must be one number for all layers, or a list of the same")
    return counts[0]


def granite_experts(config: Config, hidden: int) -> LayerPart:
    """Granite with a shared MLP; without routed ones it is the only one."""
    shared = config.optional("shared_intermediate_size", 0)
    count = config.optional("num_local_experts", 8)
    if not count:
        raise InputError(f"{config.path}: {config.named('num_local_experts')} = 0 must be at least 1")
    return experts(
        hidden,
        count,
        config.count("num_experts_per_tok", 2),
        config.count("intermediate_size"),
        shared=shared,
        module="block_sparse_moe",
        shared_module="shared_mlp",
    )


def bailing_experts(config: Config, hidden: int) -> LayerPart:
    """Ling (bailing_moe): shared ones as one MLP; from 2.0 on a correcting bias."""
    count, width = config.count("num_experts"), config.count("moe_intermediate_size")
    shared = config.optional("num_shared_experts", 0) * config.count("moe_shared_expert_intermediate_size", width)
    bias = count if config.flag("moe_router_enable_expert_bias", False) else 0
    return experts(hidden, count, config.count("num_experts_per_tok"), width, shared=shared, router_bias=bias)


def unbiased_experts(config: Config, hidden: int) -> LayerPart:
    """DeepSeek's first experts (16B): without a correcting bias."""
    width = config.count("moe_intermediate_size")
    count = config.either("n_routed_experts", "num_experts", "num_local_experts")
    shared = config.either("n_shared_experts", "num_shared_experts", default=0) * width
    return experts(hidden, count, config.count("num_experts_per_tok"), width, shared=shared)


def aria_experts(config: Config, hidden: int) -> LayerPart:
    """Aria: shared experts as one MLP, all as wide as the config's MLP."""
    width = config.count("intermediate_size")
    shared = config.optional("moe_num_shared_experts", 2) * width
    return experts(hidden, config.count("moe_num_experts"), config.count("moe_topk"), width, shared=shared)
