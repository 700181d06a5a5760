"""What a model and a GPU are, as numbers, and the arithmetic on them. It knows no seconds and no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from traces.schema import InputError

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
KV_DTYPE_BYTES: Mapping[str, int] = {**DTYPE_BYTES, "fp8": 1}
NORMS = ("rms", "layer")
MAX_TP = 64
# A typing error of a few digits is caught here rather than as an endless run; the largest model known is far below.
MAX_COUNT = 10**9


class Gemm(NamedTuple):
    """A weight matrix of one layer on one GPU: tokens x `k` times `k` x `n`."""

    name: str
    k: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. MHA, GQA and MQA follow from `heads` and `kv_heads`; zero experts means a dense MLP.

    `norm` is "rms" (weights) or "layer" (weights and biases); `learned_positions` is the number of rows of a position
    table (OPT), 0 with rotary embeddings. `expert_ffn` and `shared_expert_ffn` are the widths of one routed expert and
    of the expert that every token visits. `sliding_window_tokens` 0 means full attention.
    Raises InputError, in one sentence, when the numbers cannot be a model.
    """

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
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    learned_positions: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_expert_ffn: int = 0
    sliding_window_tokens: int = 0
    dtype: str = "bf16"
    kv_dtype: str = "bf16"

    def __post_init__(self) -> None:
        for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_context_tokens"):
            _check_count(f"model {self.name!r}", key, getattr(self, key), least=1)
        for key in (
            "learned_positions",
            "experts",
            "expert_ffn",
            "shared_expert_ffn",
            "sliding_window_tokens",
        ):
            _check_count(f"model {self.name!r}", key, getattr(self, key), least=0)
        _check_count(f"model {self.name!r}", "ffn", self.ffn, least=0 if self.experts else 1)
        _check_choice(f"model {self.name!r}", "norm", self.norm, NORMS)
        _check_choice(f"model {self.name!r}", "dtype", self.dtype, tuple(DTYPE_BYTES))
        _check_choice(f"model {self.name!r}", "kv_dtype", self.kv_dtype, tuple(KV_DTYPE_BYTES))
        if self.heads % self.kv_heads:
            raise InputError(f"model {self.name!r}: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.experts and not (1 <= self.experts_per_token <= self.experts and self.expert_ffn):
            raise InputError(
                f"model {self.name!r}: with {self.experts} experts, experts_per_token must lie between 1 and "
                f"{self.experts} and expert_ffn must be set"
            )

    def with_dtypes(self, dtype: str | None = None, kv_dtype: str | None = None) -> ModelSpec:
        """The same model with weights (and activations) or KV cache in another type; the cache follows the weights."""
        weights = dtype or self.dtype
        return replace(self, dtype=weights, kv_dtype=kv_dtype or (weights if dtype else self.kv_dtype))

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, which is also that of the value heads."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Exact number of parameters, a tied LM head counted once."""
        return self.gpu_parameters(1)

    @property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not visit."""
        idle_experts = self.experts - self.experts_per_token if self.experts else 0
        return self.parameters - self.layers * idle_experts * self._mlp_parameters(self.expert_ffn, 1)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_width * KV_DTYPE_BYTES[self.kv_dtype]

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the layers' matrix products for one token: no attention scores, no LM head (2 per weight)."""
        mlp = sum(gemm.k * gemm.n for gemm in self.mlp_gemms(1))
        expert = self.experts_per_token * sum(gemm.k * gemm.n for gemm in self.expert_gemms(1))
        attention = sum(gemm.k * gemm.n for gemm in self.attention_gemms(1))
        return 2 * self.layers * (attention + mlp + expert + self.hidden * self.experts)

    def check_tp(self, tp: int) -> None:
        """Raise InputError unless `tp` GPUs can share every layer evenly (KV heads may be repeated, as vLLM does)."""
        _check_count(f"model {self.name!r}", "tp", tp, least=1)
        if not self.divides(tp):
            choices = ", ".join(str(n) for n in range(1, MAX_TP + 1) if self.divides(n))
            raise InputError(
                f"model {self.name!r} ({self.heads} heads, {self.kv_heads} KV heads) cannot be split over "
                f"tp = {tp} GPUs; possible are {choices}"
            )

    def divides(self, tp: int) -> bool:
        """Whether `tp` GPUs can share every layer evenly."""
        widths = (self.heads, self.ffn, self.expert_ffn, self.shared_expert_ffn)
        kv_fits = self.kv_heads % tp == 0 or tp % self.kv_heads == 0
        return tp <= MAX_TP and kv_fits and all(width % tp == 0 for width in widths)

    def gpu_kv_heads(self, tp: int) -> int:
        """KV heads on one of `tp` GPUs; at least one, so beyond `kv_heads` GPUs they are repeated."""
        return max(1, self.kv_heads // tp)

    def gpu_kv_bytes_per_token(self, tp: int) -> int:
        """Bytes that one token's KV takes on one of `tp` GPUs."""
        return 2 * self.layers * self.gpu_kv_heads(tp) * self.head_dim * KV_DTYPE_BYTES[self.kv_dtype]

    def attention_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """The two projections around attention, on one of `tp` GPUs."""
        queries = self.query_width // tp
        return (
            Gemm("qkv", self.hidden, queries + 2 * self.gpu_kv_heads(tp) * self.head_dim),
            Gemm("attention output", queries, self.hidden),
        )

    def mlp_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """The MLP that every token visits (dense, or the shared expert) on one of `tp` GPUs; may be none."""
        width = self.shared_expert_ffn if self.experts else self.ffn
        return self._pair("mlp", width // tp)

    def expert_gemms(self, tp: int) -> tuple[Gemm, ...]:
        """One routed expert, on one of `tp` GPUs; empty for a dense model."""
        return self._pair("expert", self.expert_ffn // tp) if self.experts else ()

    def _pair(self, name: str, width: int) -> tuple[Gemm, ...]:
        if width == 0:
            return ()
        up = 2 * width if self.gated_mlp else width
        return (Gemm(f"{name} up", self.hidden, up), Gemm(f"{name} down", width, self.hidden))

    def gpu_parameters(self, tp: int) -> int:
        """Exact number of parameters on one of `tp` GPUs: matrices are split, norms, positions and routers repeated."""
        norm = self.hidden * (2 if self.norm == "layer" else 1)
        layer = self._attention_parameters(tp) + 2 * norm
        if self.experts:
            layer += self.experts * (self._mlp_parameters(self.expert_ffn, tp) + self.hidden)
            layer += self._mlp_parameters(self.shared_expert_ffn, tp)
        else:
            layer += self._mlp_parameters(self.ffn, tp)
        tables = (1 if self.tied_embeddings else 2) * -(-self.vocab // tp) * self.hidden
        return self.layers * layer + norm + tables + self.learned_positions * self.hidden

    def _attention_parameters(self, tp: int) -> int:
        qkv, output = self.attention_gemms(tp)
        biases = (qkv.n if self.qkv_bias else 0) + (self.hidden if self.attention_output_bias else 0)
        return qkv.k * qkv.n + output.k * output.n + biases + (2 * self.head_dim if self.qk_norm else 0)

    def _mlp_parameters(self, width: int, tp: int) -> int:
        gemms = self._pair("mlp", width // tp)
        return sum(gemm.k * gemm.n + (gemm.n if self.mlp_bias else 0) for gemm in gemms)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU, from its data sheet: dense FLOP/s (no structured sparsity) with fp32 accumulation, 0 where it has none.

    Link rates are for one direction; `link_bytes_per_s` is the GPU-to-GPU fabric (NVLink, Infinity Fabric), 0 where
    GPUs talk over PCIe. `sources` says for a field where its number is from, `source` for all others;
    `efficiency` holds (name, value, source) of the constants of `sim.cost.efficiency` known to differ on this GPU.
    Raises InputError, in one sentence, when a number cannot be right.
    """

    name: str
    description: str
    source: str
    memory_bytes: int
    memory_bytes_per_s: float
    fp16_flops_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float
    fp32_flops_per_s: float
    sms: int
    l2_bytes: int
    pcie_bytes_per_s: float
    link_bytes_per_s: float
    watts: float
    sources: tuple[tuple[str, str], ...] = ()
    efficiency: tuple[tuple[str, float, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"GPU {self.name!r}"
        _check_count(where, "memory_bytes", self.memory_bytes, least=2**20, most=2**50)
        _check_count(where, "sms", self.sms, least=1)
        _check_count(where, "l2_bytes", self.l2_bytes, least=0, most=2**40)
        for key in (
            "memory_bytes_per_s",
            "fp16_flops_per_s",
            "fp32_flops_per_s",
            "pcie_bytes_per_s",
            "watts",
        ):
            if not 0 < getattr(self, key) < 1e21:
                raise InputError(f"{where}: {key} = {getattr(self, key)} must be positive and finite")
        for key in ("bf16_flops_per_s", "fp8_flops_per_s", "link_bytes_per_s"):
            if not 0 <= getattr(self, key) < 1e21:
                raise InputError(f"{where}: {key} = {getattr(self, key)} must be finite and not negative")

    def flops_per_s(self, dtype: str) -> float:
        """Dense FLOP/s of matrix products in `dtype`; InputError where the GPU has no units for it."""
        rate: float = getattr(self, f"{dtype}_flops_per_s")
        if rate == 0:
            raise InputError(
                f"GPU {self.name!r} has no {dtype} matrix units; choose another type, such as --set dtype=fp16"
            )
        return rate

    @property
    def peer_bytes_per_s(self) -> float:
        """One-way rate to another GPU of the same machine: the fabric where there is one, else PCIe."""
        return self.link_bytes_per_s or self.pcie_bytes_per_s

    def source_of(self, key: str) -> str:
        """Where the number `key` is from."""
        return dict(self.sources).get(key, self.source)


SPEC_FIELDS: Mapping[type, tuple[str, ...]] = {
    spec: tuple(item.name for item in fields(spec)) for spec in (ModelSpec, GpuSpec)
}


def _check_count(where: str, key: str, value: int, least: int, most: int = MAX_COUNT) -> None:
    if not least <= value <= most:
        raise InputError(f"{where}: {key} = {value} must lie between {least} and {most}")


def _check_choice(where: str, key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{where}: {key} = {value!r} is none of {', '.join(choices)}")
