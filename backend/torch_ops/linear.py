"""Multiplication by a weight matrix in plain torch; 8-bit weights are dequantised for it. It knows no layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from backend.model.weights import QuantWeight, Weight


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] times weight [N, K] transposed, [T, N] in x's type.

    A QuantWeight is dequantised at each call: right, and slow. Activations stay as they are, where CUDA's fp8 path
    quantises them too.
    """
    matrix = weight.dequantised(x.dtype) if isinstance(weight, QuantWeight) else weight
    return functional.linear(x, matrix)
