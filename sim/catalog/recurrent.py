"""Parts of layers that keep a constant state of a sequence: gated delta nets, Mamba. It reads no file."""

from __future__ import annotations

from sim.catalog.layers import LayerPart
from sim.specs.blocks import Matrix, Span, State, whole


def gated_delta(
    hidden: int, *, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int, dtype: str
) -> LayerPart:
    """Gated DeltaNet (arXiv 2412.06464) as Qwen3-Next has it: a matrix for each value head, and a short convolution."""
    queries = key_heads * key_dim
    channels = 2 * queries + value_heads * value_dim
    name = "linear_attn."
    matrices = (
        Matrix(
            "linear attention in",
            (whole(hidden),),
            (Span(key_heads, 2 * key_dim), Span(value_heads, 2 * value_dim)),
            (f"{name}in_proj_qkvz", f"{name}in_proj_qkv", f"{name}in_proj_z"),
        ),
        Matrix(
            "linear attention gates",
            (whole(hidden),),
            (Span(value_heads, 2),),
            (f"{name}in_proj_ba", f"{name}in_proj_b"),
            weights="plain",
        ),
        Matrix("linear attention out", (Span(value_heads, value_dim),), (whole(hidden),), (f"{name}out_proj",)),
    )
    state = State(
        heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_channels=channels,
        conv_tokens=kernel - 1,
        dtype=dtype,
    )
    return LayerPart(matrices, channels * kernel + 2 * value_heads + value_dim, None, state)


def mamba2(
    hidden: int,
    *,
    heads: int,
    dim: int,
    groups: int,
    state_size: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    dtype: str,
    norm: bool = True,
    module: str = "mixer",
) -> LayerPart:
    """Mamba-2 (arXiv 2405.21060): inputs, gate, B, C and time steps from one projection."""
    inner = heads * dim
    channels = inner + 2 * groups * state_size
    shared = Span(groups, 2 * state_size, "repeat") if groups else whole(0)
    matrices = (
        Matrix("mamba in", (whole(hidden),), (Span(heads, 2 * dim + 1), shared), (f"{module}.in_proj",), bias=bias),
        Matrix("mamba out", (Span(heads, dim),), (whole(hidden),), (f"{module}.out_proj",), bias=bias),
    )
    vectors = channels * (kernel + (1 if conv_bias else 0)) + 3 * heads + (inner if norm else 0)
    state = State(
        heads=heads, key_dim=state_size, value_dim=dim, conv_channels=channels, conv_tokens=kernel - 1, dtype=dtype
    )
    return LayerPart(matrices, vectors, None, state)
