"""Families of latent attention (MLA) beyond DeepSeek's own: dense, with experts, or two of a layer (LongCat).

Each counts what the class of transformers (5.x) has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.catalog.hf_config import Config
from sim.catalog.layers import Anatomy, LayerPart, experts, latent, layer, mlp
from sim.catalog.readings import Family, deepseek_experts, layers_of, mtp_left_out, sparse_layers
from sim.catalog.routed import unbiased_experts
from traces.schema import InputError


def latent_part(config: Config, shares_index: bool = False, sparse: bool = False) -> LayerPart:
    """DeepSeek's latent attention, with its indexer if it is sparse."""
    index = None
    if sparse:
        index = (
            config.count("index_n_heads", 64),
            config.count("index_head_dim", 128),
            config.count("index_topk", 2048),
        )
    rank = config.optional("q_lora_rank", 1536)
    if index and not rank:
        raise InputError(f"{config.path}: an indexer (index_n_heads) needs q_lora_rank, and it is null or 0")
    return latent(
        config.count("hidden_size"),
        config.count("num_attention_heads"),
        rank=config.count("kv_lora_rank", 512),
        query_rank=rank,
        nope=config.count("qk_nope_head_dim", 128),
        rope=config.count("qk_rope_head_dim", 64),
        value_dim=config.count("v_head_dim", 128),
        bias=config.flag("attention_bias", False),
        index=index,
        shares_index=shares_index,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDecoder:
    """Latent attention in every layer. `expert_part` is that of layers with experts, in which `more_norms` norms of the
    hidden width stand beside the two of every layer."""

    expert_part: Callable[[Config, int], LayerPart] | None = None
    more_norms: int = 0
    tied: bool = False
    mlp_bias: str = ""

    def __call__(self, config: Config) -> Anatomy:
        hidden, layers = config.count("hidden_size"), layers_of(config)
        sparse = sparse_layers(config, layers) if self.expert_part else [False] * layers
        bias = config.flag(self.mlp_bias, False) if self.mlp_bias else False
        mixer = latent_part(config)
        dense = LayerPart() if all(sparse) else mlp(hidden, config.count("intermediate_size"), bias=bias)
        chosen = self.expert_part(config, hidden) if self.expert_part and any(sparse) else LayerPart()
        norms = 2 + self.more_norms
        kinds = {
            False: layer(mixer, dense, vectors=2 * hidden),
            True: layer(mixer, chosen, vectors=norms * hidden, norms=norms),
        }
        return Anatomy(
            layers=[kinds[each] for each in sparse],
            tied=config.flag("tie_word_embeddings", self.tied),
            counted=mtp_left_out(config),
        )


def _longcat(config: Config) -> Anatomy:
    """LongCat-Flash: a layer is two of latent attention with an MLP each, and experts across them; some of the experts
    that the router chooses among do nothing and hold nothing."""
    hidden, layers = config.count("hidden_size"), layers_of(config)
    count, idle = config.count("n_routed_experts", 512), config.count("zero_expert_num", 256)
    chosen, width = config.count("moe_topk", 12), config.count("expert_ffn_hidden_size", 2048)
    if count < 1 or idle < 0 or not 1 <= chosen <= count:
        raise InputError(
            f"{config.path}: n_routed_experts {count} and moe_topk {chosen} must be at least 1, zero_expert_num {idle} "
            "at least 0, and moe_topk at most n_routed_experts"
        )
    visited = max(1, round(chosen * count / (count + idle)))
    choices = count + idle
    routed = experts(hidden, count, visited, width, router_bias=choices + idle * hidden)
    mixer, dense = latent_part(config), mlp(hidden, config.count("ffn_hidden_size", 12288), module="mlps.0")
    both = [layer(mixer, dense, routed, vectors=2 * hidden), layer(mixer, dense, vectors=2 * hidden)]
    return Anatomy(
        layers=[each for _ in range(layers) for each in both],
        tied=config.flag("tie_word_embeddings", False),
        counted=f"two layers of attention for each of the file's; {visited} experts a token, the mean of {chosen} of "
        f"{choices} of which {idle} do nothing",
    )


LATENTS: Mapping[str, Family] = {
    "minicpm3": LatentDecoder(tied=True, mlp_bias="mlp_bias"),
    "youtu": LatentDecoder(tied=True),
    "glm4_moe_lite": LatentDecoder(expert_part=deepseek_experts),
    "mistral4": LatentDecoder(expert_part=unbiased_experts),
    "axk1": LatentDecoder(expert_part=deepseek_experts, more_norms=1),
    "longcat_flash": _longcat,
}
