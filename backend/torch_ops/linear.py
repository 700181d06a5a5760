"""Multiplication by a weight matrix in torch; 8-bit weights are dequantised for it. It knows no layers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from backend.model.weights import QuantWeight, Weight


@cache
def packs() -> bool:
    """Whether this torch can pack weights for this CPU (it was built with oneDNN)."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has products of bf16 (AVX-512 BF16, AMX); elsewhere torch emulates them, slower than fp32's."""
    return packs() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] times weight [N, K] transposed, [T, N] in x's type.

    A QuantWeight is dequantised at each call: right, and slow. Activations stay as they are, where CUDA's fp8 path
    quantises them too. A weight that `backend.model.packed` packed is multiplied as it lies.
    """
    if isinstance(weight, Tensor) and weight.is_mkldnn:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    matrix = weight.dequantised(x.dtype) if isinstance(weight, QuantWeight) else weight
    return functional.linear(x, matrix)
