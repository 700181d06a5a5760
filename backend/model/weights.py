"""A weight matrix as it is kept: a tensor, or 8-bit elements with one scale per output. It multiplies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from traces.schema import InputError

FP8_MAX = 448.0
"""The largest finite value of float8_e4m3fn."""

QUANT_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""Element types of quantised weights, by the names of `sim.specs.dtypes`."""


@dataclass(frozen=True, slots=True)
class QuantWeight:
    """A weight of 8 bits an element: value = data * scale, one scale per output (row).

    `data` is [N, K] (or [E, N, K], of E experts) in float8_e4m3fn or int8, `scale` [N] (or [E, N]) fp32.
    """

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """Outputs and inputs, [N, K], experts before them."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes

    def __getitem__(self, expert: int) -> QuantWeight:
        """One expert's weight, a view."""
        return QuantWeight(self.data[expert], self.scale[expert])

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The matrix that this stands for, in `dtype`."""
        return (self.data.float() * self.scale[..., None]).to(dtype)


Weight: TypeAlias = Tensor | QuantWeight


def quantised(weight: Tensor, kind: str) -> QuantWeight:
    """The weight [..., N, K] in 8 bits, symmetric, scaled so that each row's largest magnitude is the type's largest.

    int8 rounds to nearest (even), fp8 casts to nearest; a row of zeros has scale 1. Raises InputError for a `kind`
    other than "fp8" and "int8".
    """
    if kind not in QUANT_DTYPES:
        raise InputError(f"weight type {kind!r} cannot be quantised to; known are {', '.join(QUANT_DTYPES)}")
    most = FP8_MAX if kind == "fp8" else 127.0
    amax = weight.abs().amax(dim=-1).float()
    scale = torch.where(amax > 0, amax / most, torch.ones_like(amax))
    data = weight.float() / scale[..., None]
    data = data.round() if kind == "int8" else data
    return QuantWeight(data.clamp(-most, most).to(QUANT_DTYPES[kind]), scale)
