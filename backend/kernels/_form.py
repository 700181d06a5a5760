"""What an attention kernel is compiled for, and what it refuses to be called with. It launches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as cached

import torch

from backend.cache.kvcache import LayerCache
from backend.kernels._common import INTERPRETED, TRITON_NAMES, Constant, KernelVariant, capability, check_device
from traces.schema import InputError

HEAD_DIMS = (16, 32, 64, 128, 256)
"""What a tile may be wide: powers of two. The small ones serve tests and toy models; wgmma tiles start at 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a kernel is compiled for: types by Triton's names, head shape, block size, and what scores go through."""

    q: str
    cache: str
    kv_heads: int
    group: int
    head_dim: int
    block_tokens: int
    windowed: bool = False
    capped: bool = False

    @property
    def operand(self) -> str:
        """Type of dot operands: fp8 and int8 go to fp16 (exact; fp8 to bf16 is a slow conversion), unless q is fp32."""
        if "fp32" in (self.q, self.cache):
            return "fp32"
        return "fp16" if self.narrow else self.cache

    @property
    def narrow(self) -> bool:
        return self.cache in ("fp8e4nv", "i8")

    @property
    def pairs(self) -> str:
        """The type of which decode reads two values at a time, as a 16-bit word; empty where it reads one.

        Each half of the head dim is an operand then, and a matrix instruction takes 16 values at least.
        """
        return self.cache if self.narrow and self.operand == "fp16" and self.head_dim >= 32 else ""

    @property
    def label(self) -> str:
        features = " windowed" * self.windowed + " capped" * self.capped
        return f"d{self.head_dim} {self.q}/{self.cache} block {self.block_tokens}{features}"

    def constexprs(self) -> dict[str, Constant]:
        """The compile-time arguments both kernels have."""
        return {
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "HEAD_DIM": self.head_dim,
            "BLOCK_TOKENS": self.block_tokens,
            "WINDOWED": self.windowed,
            "CAPPED": self.capped,
            "SCALAR_SCALES": self.cache == "fp8e4nv",
            "TOKEN_SCALES": self.cache == "i8",
            "DOT": self.operand,
            "UPCAST": INTERPRETED,
        }

    def signature(self) -> dict[str, str]:
        """Types of the run-time arguments both kernels have; absent scales are constants."""
        scale = {"fp8e4nv": "*fp32", "i8": "*fp16"}.get(self.cache, "constexpr")
        pointers = {"q": self.q, "k": self.cache, "v": self.cache, "out": self.q, "lse": "fp32"}
        indices = dict.fromkeys(("tables", "kv_lens"), "*i32")
        numbers = {"sequences": "i32", "table_stride": "i32", "scale": "fp32", "soft_cap": "fp32"}
        scales = {"k_scale": scale, "v_scale": scale}
        typed = {name: f"*{kind}" for name, kind in pointers.items()}
        return typed | scales | indices | numbers | {"window": "i32", "sinks": "i32"}


def form_of(q_dtype: torch.dtype, heads: int, cache: LayerCache, window: int, soft_cap: float) -> Form:
    return _form(q_dtype, heads, cache.k.dtype, *cache.k.shape[1:], window > 0, soft_cap > 0.0)


@cached
def _form(
    q: torch.dtype, heads: int, stored: torch.dtype, tokens: int, kv_heads: int, dim: int, windowed: bool, capped: bool
) -> Form:
    return Form(
        q=TRITON_NAMES[q],
        cache=TRITON_NAMES[stored],
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=dim,
        block_tokens=tokens,
        windowed=windowed,
        capped=capped,
    )


def forms() -> list[Form]:
    """What ahead-of-time compilation covers: head dims, cache types, small and large blocks, plain and full scores.

    fp32 is for checking, not for speed. At head dim 256 it runs too, but spills a few registers, so it is left out.
    """
    made = [
        Form(q="bf16", cache=cache, kv_heads=8, group=4, head_dim=dim, block_tokens=block, windowed=full, capped=full)
        for dim in (64, 128, 256)
        for cache in ("bf16", "fp8e4nv", "i8")
        for block in (16, 128)
        for full in (False, True)
    ]
    plain = [("fp16", 64), ("fp16", 128), ("fp16", 256), ("fp32", 64), ("fp32", 128)]
    return made + [Form(q=q, cache=q, kv_heads=8, group=4, head_dim=dim, block_tokens=16) for q, dim in plain]


def compiled(
    kernel: str,
    name: str,
    form: Form,
    signature: dict[str, str],
    constexprs: dict[str, Constant],
    warps: int,
    stages: int,
) -> KernelVariant:
    """The variant of an attention kernel for `form`, with what is its own besides; compiled, so nothing is upcast."""
    types = form.signature() | signature
    absent: dict[str, Constant] = {name: None for name in ("k_scale", "v_scale") if types[name] == "constexpr"}
    return KernelVariant(
        name=name,
        kernel=kernel,
        signature={name: kind for name, kind in types.items() if kind != "constexpr"},
        constexprs=form.constexprs() | absent | constexprs | {"UPCAST": False},
        aligned=("q_stride",),
        num_warps=warps,
        num_stages=stages,
    )


def lacks_fp8(capability: int) -> str:
    """The sentence that refuses fp8 on a GPU without it."""
    return f"fp8 caches need compute capability 8.9 or newer, this GPU has {capability // 10}.{capability % 10}"


def check_call(
    q: torch.Tensor, cache: LayerCache, tables: torch.Tensor, lengths: torch.Tensor, scale: float, sinks: int
) -> None:
    """Raises InputError, in one sentence, for what the kernels cannot read."""
    heads, head_dim = q.shape[-2:]
    kv_heads = cache.k.shape[2]
    check_device(q, cache.k, cache.v, tables, lengths)
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"attention takes queries in fp32, fp16 or bf16, not {q.dtype}")
    if cache.k.dtype not in TRITON_NAMES or cache.k.dtype in (torch.int32, torch.int64):
        raise InputError(f"attention reads caches in fp32, fp16, bf16, float8_e4m3fn or int8, not {cache.k.dtype}")
    if cache.k.dtype == torch.float8_e4m3fn and capability(q.device) < 89:
        raise InputError(lacks_fp8(capability(q.device)))
    if head_dim != cache.k.shape[3] or head_dim not in HEAD_DIMS:
        raise InputError(f"head dim {head_dim} (cache {cache.k.shape[3]}): known are {HEAD_DIMS}")
    if heads % kv_heads:
        raise InputError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
    if scale <= 0.0 or sinks < 0:
        raise InputError(f"attention needs scale > 0 and sinks >= 0, not {scale} and {sinks}")
    if not (cache.k.is_contiguous() and cache.v.is_contiguous() and tables.stride(-1) == 1):
        raise InputError("attention needs a contiguous cache and block tables with contiguous rows")
    if tables.dtype != torch.int32 or lengths.dtype != torch.int32:
        raise InputError(f"block tables and lengths are int32, not {tables.dtype} and {lengths.dtype}")
