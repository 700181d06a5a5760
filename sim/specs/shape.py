"""The numbers that a model is described by, checked; no arithmetic beyond one or two of them, no seconds, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sim.specs.blocks import Block, Cache
from sim.specs.checks import MAX_COUNT, check_choice, check_count
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, is_quantised, weight_type
from traces.schema import InputError

NORMS = ("rms", "layer")
LARGEST = {"layers": 10_000, "heads": 2**20, "kv_heads": 2**20, "head_dim": 2**20, "hidden": 2**24, "experts": 2**20}
"""A thousand times what the largest model has, of counts that something is made for each of."""


class Gemm(NamedTuple):
    """A weight matrix of one layer on one GPU: tokens x `k` times `k` x `n`."""

    name: str
    k: int
    n: int


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """In `layers` layers a token attends itself and the tokens before it, `recent_tokens` in all, and the first
    `sink_tokens` of its sequence (0: a plain sliding window; else StreamingLLM, arXiv 2309.17453)."""

    recent_tokens: int
    sink_tokens: int
    layers: int

    def __post_init__(self) -> None:
        for key, least in (("recent_tokens", 1), ("sink_tokens", 0), ("layers", 1)):
            check_count("attention window", key, getattr(self, key), least=least)

    @property
    def span_tokens(self) -> int:
        """The most tokens that one token attends."""
        return self.recent_tokens + self.sink_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The fields of a `ModelSpec`, which says what they mean, their checks, and what follows from one or two."""

    name: str
    source: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context_tokens: int
    gated_mlp: bool = True
    tied_embeddings: bool = False
    norm: str = "rms"
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    router_bias: bool = False
    head_sinks: bool = False
    learned_positions: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_expert_ffn: int = 0
    leading_dense_layers: int = 0
    sliding_window_tokens: int = 0
    sliding_layers: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    v_head_dim: int = 0
    dtype: str = "bf16"
    weights: str = "auto"
    kv_dtype: str = "bf16"
    blocks: tuple[Block, ...] = ()
    beside: int = 0
    checkpoint_bytes: int = 0
    counted: str = ""
    unpriced: str = ""

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_types()
        where = f"model {self.name!r}"
        if self.blocks and sum(block.layers for block in self.blocks) != self.layers:
            raise InputError(f"{where}: layers = {self.layers} is not the sum of its blocks' layers")
        if self.heads % self.kv_heads:
            raise InputError(f"{where}: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.experts and not (1 <= self.experts_per_token <= self.experts and self.expert_ffn):
            raise InputError(
                f"{where}: with {self.experts} experts, experts_per_token must lie between 1 and "
                f"{self.experts} and expert_ffn must be set"
            )
        if self.sliding_layers and not self.sliding_window_tokens:
            raise InputError(f"{where}: sliding_layers = {self.sliding_layers} without sliding_window_tokens")
        if self.sliding_window_tokens and not self.sliding_layers:
            object.__setattr__(self, "sliding_layers", self.layers)
        if self.is_latent and not (self.qk_rope_head_dim and self.v_head_dim):
            raise InputError(f"{where}: with kv_lora_rank, qk_rope_head_dim and v_head_dim must be set")
        if self.is_latent and self.head_dim != self.qk_nope_head_dim + self.qk_rope_head_dim:
            raise InputError(
                f"{where}: head_dim {self.head_dim} is not the sum of qk_nope_head_dim {self.qk_nope_head_dim} and "
                f"qk_rope_head_dim {self.qk_rope_head_dim}"
            )

    def _check_counts(self) -> None:
        where = f"model {self.name!r}"
        for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_context_tokens"):
            check_count(where, key, getattr(self, key), 1, LARGEST.get(key, MAX_COUNT))
        for key in ("learned_positions", "experts", "expert_ffn", "shared_expert_ffn", "sliding_window_tokens"):
            check_count(where, key, getattr(self, key), 0, LARGEST.get(key, MAX_COUNT))
        check_count(where, "sliding_layers", self.sliding_layers, least=0, most=self.layers)
        check_count(where, "leading_dense_layers", self.leading_dense_layers, 0, self.layers if self.experts else 0)
        check_count(where, "ffn", self.ffn, least=1 if self.dense_layers and not self.blocks else 0)
        for key in ("beside", "checkpoint_bytes"):
            check_count(where, key, getattr(self, key), 0, 10**15)
        latent = ("q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        check_count(where, "kv_lora_rank", self.kv_lora_rank, least=0)
        for key in latent:
            if not self.is_latent and getattr(self, key):
                raise InputError(f"{where}: {key} = {getattr(self, key)} without kv_lora_rank")
            check_count(where, key, getattr(self, key), least=0)

    def _check_types(self) -> None:
        where = f"model {self.name!r}"
        check_choice(where, "norm", self.norm, NORMS)
        check_choice(where, "dtype", self.dtype, tuple(DTYPE_BYTES))
        if self.weights != "auto":
            try:
                weight_type(self.weights)
            except InputError as error:
                raise InputError(f"{where}: weights = {self.weights!r} is none of auto, {error}") from None
        check_choice(where, "kv_dtype", self.kv_dtype, tuple(KV_TYPES))
        if self.weights != "auto" and is_quantised(self.weights) and self.dtype == "fp32":
            raise InputError(f"{where}: {self.weights} weights need fp16 or bf16 activations, and dtype is fp32")
        if self.kv_dtype == "int4" and self.head_dim % 2:
            raise InputError(f"{where}: an int4 KV cache needs an even head_dim, and it is {self.head_dim}")
        if (self.is_latent or any(each.rank for each in self.caches)) and KV_TYPES[self.kv_dtype].scale_bytes:
            raise InputError(
                f"{where}: an {self.kv_dtype} KV cache keeps scales per head, and latent attention has no heads in its "
                f"cache; known are {', '.join(name for name, kind in KV_TYPES.items() if not kind.scale_bytes)}"
            )

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The caches of its blocks that have one."""
        return tuple(block.cache for block in self.blocks if block.cache)

    @property
    def element_bytes(self) -> int:
        """Bytes of one activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def weight_dtype(self) -> str:
        """The type of the weight matrices."""
        return self.dtype if self.weights == "auto" else self.weights

    @property
    def is_latent(self) -> bool:
        """Whether the cache holds a latent instead of keys and values (MLA)."""
        return self.kv_lora_rank > 0

    @property
    def latent_width(self) -> int:
        """Elements of the latent and the rotary key together; 0 without latent attention."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.v_head_dim or self.head_dim

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def dense_layers(self) -> int:
        """Layers whose MLP has no experts."""
        return self.leading_dense_layers if self.experts else self.layers

    @property
    def expert_layers(self) -> int:
        """Layers whose MLP has experts."""
        return self.layers - self.dense_layers

    @property
    def attention_window(self) -> AttentionWindow | None:
        """The window of the layers that have one, beyond which their KV need not be kept."""
        if not self.sliding_window_tokens:
            return None
        return AttentionWindow(self.sliding_window_tokens, 0, self.sliding_layers)

    @property
    def attended_window(self) -> AttentionWindow | None:
        """The most tokens that some layers attend: those of a window, or those that an indexer chooses (DSA)."""
        chosen = [block for block in self.blocks if block.cache and block.cache.top_tokens]
        if self.sliding_window_tokens or not chosen:
            return self.attention_window
        tokens = max(block.cache.top_tokens for block in chosen if block.cache)
        return AttentionWindow(tokens, 0, sum(block.layers for block in chosen))
