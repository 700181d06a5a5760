"""Families whose layers differ at most in their windows and their experts: one line each.

Key names and defaults are those of the configuration classes of transformers (5.x); each counts what the class has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.catalog import routed
from sim.catalog.hf_config import Config
from sim.catalog.layers import Anatomy, LayerPart, attention, layer, mlp
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
    """What a family has. `norms` of the hidden width in each layer, of `norm` "rms" or "layer" (with biases), and
    `more_norms` where a key says so; `head_norms` of queries and keys: "" none, "head" one for all heads, "biased" the
    same with biases, "full" as wide as all; `pattern` every so many-th layer is full where a window is set, 0 all are
    windowed, 1 none is; `gate` is that of the heads' outputs: "" none, "head" one for each, "full" as wide as they are;
    `dim` is the width of a head where it is not the even share; `expert_part` is that of layers with experts, which
    `sparse` says, `parallel` the key that lets attention and MLP share one norm; `note` is added to what is counted."""

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
    head_bias: Flag = False
    gate: str = ""
    dim: int | None = None
    more_norms: int = 0
    more_norms_key: str = ""
    parallel: Flag = False
    expert_part: Callable[[Config, int], LayerPart] | None = None
    sparse: Callable[[Config, int], list[bool]] = sparse_layers
    note: str = ""

    def __call__(self, config: Config) -> Anatomy:
        hidden, layers, dim = config.count("hidden_size"), layers_of(config), head_dim(config, self.dim)
        heads = config.count("num_attention_heads")
        kv_heads = config.count("num_key_value_heads", heads)
        norm = hidden * (2 if self.norm == "layer" else 1)
        wanted = self.head_norms if not self.head_norms_key or self._flag(config, self.head_norms_key) else ""
        head_norms = {"": 0, "head": 2 * dim, "biased": 4 * dim, "full": (heads + kv_heads) * dim}[wanted]
        biases = {name: self._flag(config, getattr(self, name)) for name in ("qkv_bias", "output_bias", "mlp_bias")}
        sinks = heads if self.sinks else 0
        norms = 1 if self._flag(config, self.parallel) else self.norms
        norms += self.more_norms if self.more_norms_key and config.flag(self.more_norms_key, False) else 0
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
                gate={"": 0, "head": 1, "full": dim}[self.gate],
            )
            for window in {0, config.optional("sliding_window", self.window)}
        }
        windows = windows_of(config, layers, self.pattern, self.window)
        sparse = self.sparse(config, layers) if self.expert_part else [False] * layers
        dense = LayerPart() if all(sparse) else mlp(
            hidden, config.count("intermediate_size"), gated=self.gated, bias=biases["mlp_bias"]
        )  # fmt: skip
        chosen = self.expert_part(config, hidden) if self.expert_part and any(sparse) else LayerPart()
        kinds = {
            (window, with_experts): layer(
                mixers[window],
                chosen if with_experts else dense,
                vectors=norms * norm + self.extra,
                norms=norms,
            )
            for window, with_experts in set(zip(windows, sparse, strict=True))
        }
        return Anatomy(
            layers=[kinds[pair] for pair in zip(windows, sparse, strict=True)],
            tied=config.flag("tie_word_embeddings", self.tied),
            norm=self.norm,
            beside=config.count("vocab_size") if self._flag(config, self.head_bias) else 0,
            counted="; ".join(filter(None, (self.note, mtp_left_out(config)))),
        )

    @staticmethod
    def _flag(config: Config, flag: Flag) -> bool:
        if isinstance(flag, bool):
            return flag
        return config.flag(flag.removesuffix("!"), flag.endswith("!"))


DECODERS: Mapping[str, Family] = {
    "minimax_m2": Decoder(
        head_norms="full", qkv_bias=False, output_bias=False, expert_part=routed.block_sparse
    ),
    "phimoe": Decoder(
        norm="layer",
        head_bias="lm_head_bias",
        pattern=0,
        expert_part=routed.own_experts,
    ),
    "glm4_moe": Decoder(
        head_norms="head", head_norms_key="use_qk_norm", output_bias=False, expert_part=deepseek_experts
    ),
    "dots1": Decoder(head_norms="head", expert_part=deepseek_experts),
    "qwen2_moe": Decoder(
        qkv_bias="qkv_bias!", output_bias=False, expert_part=routed.qwen2_experts, sparse=routed.qwen2_sparse
    ),
    "olmoe": Decoder(
        head_norms="full", expert_part=routed.own_experts
    ),
    "granitemoe": Decoder(
        expert_part=routed.own_experts
    ),
    "glm": Decoder(output_bias=False),
    "glm4": Decoder(norms=4, output_bias=False),
    "glm4v_text": Decoder(norms=4, qkv_bias=True, output_bias=False),
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
    "stablelm": Decoder(
        norm="layer", head_norms="full", head_norms_key="qk_layernorm", qkv_bias="use_qkv_bias", output_bias=False,
        parallel="use_parallel_residual",
    ),
    "phi": Decoder(
        norms=1, norm="layer", head_norms="biased", head_norms_key="qk_layernorm", qkv_bias=True, output_bias=True,
        mlp_bias=True, gated=False, head_bias=True,
    ),
    "persimmon": Decoder(
        norm="layer", head_norms="biased", head_norms_key="qk_layernorm!", qkv_bias=True, output_bias=True,
        mlp_bias=True, gated=False,
    ),
    "jais2": Decoder(
        norm="layer", qkv_bias="attention_bias!", output_bias="attention_bias!", mlp_bias="mlp_bias!", gated=False
    ),
    "orion": Decoder(norm="layer"),
    "olmo": Decoder(norms=0, note="weights of a last norm included, which OLMo lacks"),
    "vaultgemma": Decoder(tied=True, pattern=2, window=4096, dim=256),
    "cwm": Decoder(qkv_bias=False, output_bias=False, mlp_bias="mlp_bias"),
    "hyperclovax": Decoder(mlp_bias="mlp_bias", more_norms=2, more_norms_key="use_post_norm"),
    "ernie4_5": Decoder(qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", tied=True, dim=128),
    "ernie4_5_moe": Decoder(
        qkv_bias="use_bias", output_bias="use_bias", tied=True, expert_part=routed.ernie_experts,
        sparse=routed.ernie_sparse,
    ),
    "hunyuan_v1_dense": Decoder(head_norms="head"),
    "hunyuan_v1_moe": Decoder(head_norms="head", expert_part=routed.hunyuan_experts),
    "hy_v3": Decoder(head_norms="head", mlp_bias="mlp_bias", expert_part=deepseek_experts),
    "solar_open": Decoder(output_bias=False, dim=128, expert_part=deepseek_experts),
    "exaone_moe": Decoder(
        head_norms="head", qkv_bias=False, output_bias=False, pattern=4, window=4096, expert_part=deepseek_experts
    ),
    "afmoe": Decoder(
        norms=4, head_norms="head", gate="full", pattern=4, window=1024, dim=128, expert_part=deepseek_experts
    ),
    "laguna": Decoder(head_norms="head", gate="head", dim=128, expert_part=routed.laguna_experts),
    "mellum": Decoder(head_norms="head", dim=128, expert_part=routed.narrow_experts),
    "flex_olmo": Decoder(head_norms="full", expert_part=routed.own_experts),
    "granite_swa": Decoder(mlp_bias="mlp_bias", sinks=True, tied=True, window=128),
    "granitemoe_swa": Decoder(sinks=True, window=128, expert_part=routed.granite_experts),
    "cohere2_moe": Decoder(norms=1, tied=True, pattern=4, window=4096, expert_part=routed.cohere_experts),
    "granitemoeshared": Decoder(expert_part=routed.granite_experts),
    "aria_text": Decoder(mlp_bias="mlp_bias", expert_part=routed.aria_experts),
    "deepseek": Decoder(expert_part=routed.unbiased_experts),
    "bailing_moe": Decoder(
        head_norms="head", head_norms_key="use_qk_norm", qkv_bias="use_qkv_bias", output_bias="use_bias",
        expert_part=routed.bailing_experts,
    ),
    "grok-1": Decoder(norms=4, qkv_bias=False, output_bias=False, tied=True, expert_part=routed.own_experts),
    "internlm": Decoder(qkv_bias="bias!", output_bias="bias!"),
}  # fmt: skip
