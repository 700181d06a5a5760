"""Root-mean-square norms and the gated activation in plain torch. It knows no layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of x + residual [T, C] times weight [C], x + residual), in x's type; the sum is rounded before the norm."""
    total = x if residual is None else x + residual
    return _normed(total, weight, eps), total


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each head of x [T, H, D] normed by itself, times weight [D] (Qwen3's q_norm and k_norm)."""
    return _normed(x, weight, eps)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2F] = (gate, up), as [T, F]; computed in fp32."""
    gate, up = x.float().chunk(2, dim=-1)
    return functional.silu(gate).mul_(up).to(x.dtype)
