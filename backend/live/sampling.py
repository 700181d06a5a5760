"""How a live run draws tokens: the run's settings as tensors that every step's rows share. It knows no requests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.ops import Ops


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: greedy at temperature 0, else by (seed, sequence, position) alone."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Sampler:
    """Draws the tokens of a step's rows. Its tensors are made once and stay where they are, as a CUDA graph needs it.

    Args:
        most: rows that one call draws for at most.
    """

    def __init__(self, ops: Ops, how: Sampling, most: int, device: torch.device) -> None:
        self._ops = ops
        self._temperature = torch.full((most,), how.temperature, device=device)
        self._top_k = torch.full((most,), how.top_k, dtype=torch.int32, device=device)
        self._top_p = torch.full((most,), how.top_p, device=device)

    def __call__(self, logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """Tokens int64 [R] of logits [R, V], drawn with `seeds` int64 [R] for `positions` int32 [R]; -1 where a
        row's logits are not finite."""
        rows = len(logits)
        return self._ops.sample(
            logits,
            temperature=self._temperature[:rows],
            top_k=self._top_k[:rows],
            top_p=self._top_p[:rows],
            seeds=seeds,
            positions=positions,
        )
