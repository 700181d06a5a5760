"""Parts of layers that keep a constant state of a sequence: delta nets, Mamba, convolutions. It reads no file."""

from __future__ import annotations

from math import gcd

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
    output_bias: bool | None = None,
    module: str = "mixer",
) -> LayerPart:
    """Mamba-2 (arXiv 2405.21060): inputs, gate, B, C and time steps from one projection. `output_bias` None: `bias`."""
    last = bias if output_bias is None else output_bias
    inner = heads * dim
    channels = inner + 2 * groups * state_size
    shared = Span(groups, 2 * state_size, "repeat") if groups else whole(0)
    matrices = (
        Matrix("mamba in", (whole(hidden),), (Span(heads, 2 * dim + 1), shared), (f"{module}.in_proj",), bias=bias),
        Matrix("mamba out", (Span(heads, dim),), (whole(hidden),), (f"{module}.out_proj",), bias=last),
    )
    vectors = channels * (kernel + (1 if conv_bias else 0)) + 3 * heads + (inner if norm else 0)
    state = State(
        heads=heads, key_dim=state_size, value_dim=dim, conv_channels=channels, conv_tokens=kernel - 1, dtype=dtype
    )
    return LayerPart(matrices, vectors, None, state)


def mamba1(
    hidden: int,
    *,
    inner: int,
    state_size: int,
    rank: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    dtype: str,
    vectors: int = 0,
    module: str = "mixer",
) -> LayerPart:
    """Mamba (arXiv 2312.00752): a state of `state_size` for each of `inner` channels; time steps, B and C from them."""
    lanes = gcd(inner, 64)  # channels are independent: GPUs share them in any portions
    matrices = (
        Matrix("mamba in", (whole(hidden),), (Span(inner, 2),), (f"{module}.in_proj",), bias=bias),
        Matrix("mamba time and state", (Span(inner),), (whole(rank + 2 * state_size),), (f"{module}.x_proj",)),
        Matrix("mamba time", (whole(rank),), (Span(inner),), (f"{module}.dt_proj",), bias=True),
        Matrix("mamba out", (Span(inner),), (whole(hidden),), (f"{module}.out_proj",), bias=bias),
    )
    own = inner * (state_size + 1 + kernel + (1 if conv_bias else 0))
    state = State(
        heads=lanes,
        key_dim=state_size,
        value_dim=inner // lanes,
        conv_channels=inner,
        conv_tokens=kernel - 1,
        dtype=dtype,
    )
    return LayerPart(matrices, own + vectors, None, state)


def short_convolution(hidden: int, *, kernel: int, bias: bool, module: str) -> LayerPart:
    """LFM2's gated convolution over the last `kernel` tokens: its only state is their inputs."""
    matrices = (
        Matrix("convolution in", (whole(hidden),), (Span(hidden, 3),), (f"{module}.in_proj",), bias=bias),
        Matrix("convolution out", (Span(hidden),), (whole(hidden),), (f"{module}.out_proj",), bias=bias),
    )
    state = State(heads=0, key_dim=0, value_dim=0, conv_channels=hidden, conv_tokens=kernel - 1)
    return LayerPart(matrices, hidden * (kernel + (1 if bias else 0)), None, state)


def lightning(hidden: int, *, heads: int, dim: int, module: str = "self_attn") -> LayerPart:
    """Lightning attention (arXiv 2401.04658) as MiniMax-Text-01 has it: a matrix for each head, and a gate."""
    name = f"{module}."
    matrices = (
        Matrix("linear attention in", (whole(hidden),), (Span(heads, 3 * dim),), (f"{name}qkv_proj",)),
        Matrix("linear attention gates", (whole(hidden),), (Span(heads, dim),), (f"{name}output_gate",)),
        Matrix("linear attention out", (Span(heads, dim),), (whole(hidden),), (f"{name}out_proj",)),
    )
    return LayerPart(matrices, heads * dim, None, State(heads=heads, key_dim=dim, value_dim=dim))
