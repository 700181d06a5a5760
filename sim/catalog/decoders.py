"""Families whose layers differ at most in their windows and their experts: one line each.

Key names and defaults are those of the configuration classes of transformers (5.x); each counts what the class has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.catalog.hf_config import Config
from sim.catalog.layers import Anatomy, LayerPart, attention, experts, layer, mlp
from sim.catalog.readings import (
    Family,
    deepseek_experts,
    head_dim,
    layers_of,
    mtp_left_out,
    sparse_layers,
    windows_of,
)  # fmt: skip

Flag = bool | str
"""A switch that a family always has on or off, or the key that says it, with `!` where its default is true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What a family has. `norms` of the hidden width in each layer, of `norm` "rms" or "layer" (with biases);
    `head_norms` of queries and keys: "" none, "head" one for all heads, "full" as wide as all; `pattern` every so
    many-th layer is full where a window is set, 0 all are windowed, 1 none is; `expert_part` is that of layers with
    experts, `parallel` says that attention and MLP share one norm."""

    norms: int = 2
    norm: str = "rms"
    head_norms: str = ""
    head_norms_key: str = ""
    qkv_bias: Flag = "attention_bias"
    output_bias: Flag = "attention_bias"
    mlp_bias: Flag = False
    gated: bool = True
    tied: bool = False
    pattern: int = 1
    window: int = 0
    sinks: bool = False
    extra: int = 0
    head_bias: str = ""
    expert_part: Callable[[Config, int], LayerPart] | None = None

    def __call__(self, config: Config) -> Anatomy:
        hidden, layers, dim = config.count("hidden_size"), layers_of(config), head_dim(config)
        heads = config.count("num_attention_heads")
        kv_heads = config.count("num_key_value_heads", heads)
        norm = hidden * (2 if self.norm == "layer" else 1)
        wanted = self.head_norms if not self.head_norms_key or config.flag(self.head_norms_key, False) else ""
        head_norms = {"": 0, "head": 2 * dim, "full": (heads + kv_heads) * dim}[wanted]
        biases = {name: self._flag(config, getattr(self, name)) for name in ("qkv_bias", "output_bias", "mlp_bias")}
        sinks = heads if self.sinks else 0
        mixers = {
            window: attention(
                hidden,
                heads,
                kv_heads,
                dim,
                window=window,
                bias=biases["qkv_bias"],
                output_bias=biases["output_bias"],
                vectors=head_norms + sinks,
            )
            for window in {0, config.optional("sliding_window", self.window)}
        }
        windows = windows_of(config, layers, self.pattern, self.window)
        sparse = sparse_layers(config, layers) if self.expert_part else [False] * layers
        dense = LayerPart() if all(sparse) else mlp(
            hidden, config.count("intermediate_size"), gated=self.gated, bias=biases["mlp_bias"]
        )  # fmt: skip
        routed = self.expert_part(config, hidden) if self.expert_part and any(sparse) else LayerPart()
        kinds = {
            (window, chosen): layer(
                mixers[window], routed if chosen else dense, vectors=self.norms * norm + self.extra, norms=self.norms
            )
            for window, chosen in set(zip(windows, sparse, strict=True))
        }
        return Anatomy(
            layers=[kinds[pair] for pair in zip(windows, sparse, strict=True)],
            tied=config.flag("tie_word_embeddings", self.tied),
            norm=self.norm,
            beside=config.count("vocab_size") if self.head_bias and self._flag(config, self.head_bias) else 0,
            counted=mtp_left_out(config),
        )

    @staticmethod
    def _flag(config: Config, flag: Flag) -> bool:
        if isinstance(flag, bool):
            return flag
        return config.flag(flag.removesuffix("!"), flag.endswith("!"))


def _own_experts(config: Config, hidden: int) -> LayerPart:
    """Experts without a shared one, as wide as the MLP is elsewhere."""
    count = config.either("num_local_experts", "num_experts")
    return experts(hidden, count, config.count("num_experts_per_tok"), config.count("intermediate_size"))


def _block_sparse(config: Config, hidden: int) -> LayerPart:
    """MiniMax-M2: Mixtral's experts with a bias that corrects the router."""
    count = config.count("num_local_experts")
    visited, width = config.count("num_experts_per_tok"), config.count("intermediate_size")
    return experts(hidden, count, visited, width, router_bias=count, module="block_sparse_moe")


def _qwen2_experts(config: Config, hidden: int) -> LayerPart:
    return experts(
        hidden,
        config.either("num_experts", "num_local_experts", default=60),
        config.count("num_experts_per_tok", 4),
        config.count("moe_intermediate_size", 1408),
        shared=config.count("shared_expert_intermediate_size", 5632),
        shared_gate=True,
        shared_module="shared_expert",
    )


DECODERS: Mapping[str, Family] = {
    "minimax_m2": Decoder(
        head_norms="full", qkv_bias=False, output_bias=False, expert_part=_block_sparse
    ),
    "phimoe": Decoder(
        norm="layer",
        head_bias="lm_head_bias",
        pattern=0,
        expert_part=_own_experts,
    ),
    "glm4_moe": Decoder(
        head_norms="head", head_norms_key="use_qk_norm", output_bias=False, expert_part=deepseek_experts
    ),
    "dots1": Decoder(head_norms="head", expert_part=deepseek_experts),
    "qwen2_moe": Decoder(qkv_bias="qkv_bias!", output_bias=False, expert_part=_qwen2_experts),
    "olmoe": Decoder(
        head_norms="full", expert_part=_own_experts
    ),
    "granitemoe": Decoder(
        expert_part=_own_experts
    ),
    "glm": Decoder(output_bias=False),
    "glm4": Decoder(norms=4, output_bias=False),
    "cohere": Decoder(norms=1, tied=True),
    "cohere2": Decoder(norms=1, tied=True, pattern=4, window=4096),
    "olmo2": Decoder(head_norms="full"),
    "olmo3": Decoder(head_norms="full", pattern=4, window=4096),
    "exaone4": Decoder(head_norms="head", qkv_bias=False, output_bias=False, pattern=4, window=4096),
    "seed_oss": Decoder(qkv_bias="attention_bias!", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "apertus": Decoder(head_norms="head", gated=False, extra=2),
    "arcee": Decoder(gated=False, mlp_bias="mlp_bias"),
    "starcoder2": Decoder(
        norm="layer", qkv_bias="use_bias!", output_bias="use_bias!", mlp_bias="use_bias!", gated=False, tied=True,
        pattern=0,
    ),
    "gpt_neox": Decoder(
        norm="layer", qkv_bias="attention_bias!", output_bias="attention_bias!", mlp_bias=True, gated=False
    ),
    "nemotron": Decoder(norm="layer", mlp_bias="mlp_bias", gated=False),
    "stablelm": Decoder(norm="layer", qkv_bias="use_qkv_bias", output_bias=False),
    "phi": Decoder(
        norms=1, norm="layer", qkv_bias=True, output_bias=True, mlp_bias=True, gated=False, head_bias="lm_head_bias!"
    ),
}  # fmt: skip
