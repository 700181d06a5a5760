"""Rotary positions: a checkpoint's rope rule as numbers, its frequencies, and the angles of a step's tokens.

The rules and their arithmetic, in fp32 and in this order, are those of transformers' `modeling_rope_utils.py`, so
that angles agree bit for bit with what a checkpoint is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions rotate queries and keys; `factor` and below matter only to the kinds that use them.

    "default": inverse frequencies theta^(-2i/D). "linear": all divided by `factor` (arXiv 2306.15595). "llama3": only
    long wavelengths are, between `low_freq_factor` and `high_freq_factor` smoothly (Llama 3.1). "yarn": those that turn
    less than `beta_slow` times within `original_tokens` are, those beyond `beta_fast` are not (arXiv 2309.00071), and
    cosines and sines are multiplied by `attention_factor`.
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_tokens: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def frequencies(self, head_dim: int, device: torch.device) -> Tensor:
        """Radians per position of each pair of dimensions, fp32 [head_dim / 2]."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        turns: Tensor = 1.0 / (self.theta**exponents)
        if self.kind == "linear":
            turns = turns / self.factor
        elif self.kind == "llama3":
            turns = self._llama3(turns)
        elif self.kind == "yarn":
            turns = self._yarn(self.theta**exponents, head_dim)
        return turns.to(device)

    def _llama3(self, turns: Tensor) -> Tensor:
        """`_compute_llama3_parameters`."""
        wavelengths = 2 * math.pi / turns
        long, short = self.original_tokens / self.low_freq_factor, self.original_tokens / self.high_freq_factor
        slowed = torch.where(wavelengths > long, turns / self.factor, turns)
        share = (self.original_tokens / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = ~(wavelengths < short) & ~(wavelengths > long)
        return torch.where(between, (1 - share) * slowed / self.factor + share * slowed, slowed)

    def _yarn(self, spacing: Tensor, head_dim: int) -> Tensor:
        """`_compute_yarn_parameters`, from theta^(2i/D)."""

        def dimension(rotations: float) -> float:
            length = self.original_tokens / (rotations * 2 * math.pi)
            return head_dim * math.log(length) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        unstretched = 1 - ramp
        return 1.0 / (self.factor * spacing) * (1 - unstretched) + 1.0 / spacing * unstretched


def angles(positions: Tensor, frequencies: Tensor, attention_factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, D/2] fp32 at `positions` [T], from `frequencies` [D/2]."""
    turns = positions[:, None].float() * frequencies
    return turns.cos() * attention_factor, turns.sin() * attention_factor


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """What yarn multiplies cosines and sines by where the checkpoint does not say (paper, section 3.4)."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
