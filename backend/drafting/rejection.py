"""Whether a model's drafts may stay, so that what is drawn has the target's distribution. It knows no requests.

Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2): a draft x that was drawn from
q stays with probability min(1, p(x) / q(x)); in the place of the first that does not, a token is drawn from the rest
max(p - q, 0). p and q are what temperature, top-k and top-p leave of the target's and of the drafter's logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from backend.live.sampling import Sampling


def distribution(logits: Tensor, how: Sampling) -> Tensor:
    """Probabilities fp32 [R, V] by which `backend.ops` draws from logits [R, V]: by `how`, at a temperature above 0.

    Tokens are kept as `backend.kernels.sample` keeps them: ordered by logit, ties by the lower index; top-k the first
    k, top-p of those the fewest whose mass reaches p.
    """
    shares = torch.softmax(logits.float() / how.temperature, -1)
    if how.top_k or how.top_p < 1:
        order = logits.sort(dim=-1, descending=True, stable=True).indices[:, : how.top_k or None]
        masses = shares.gather(-1, order)
        if how.top_p < 1:
            running = masses.cumsum(-1)
            before = F.pad(running[:, :-1], (1, 0))
            masses = masses.masked_fill(before >= how.top_p * running[:, -1:], 0.0)
        shares = torch.zeros_like(shares).scatter(-1, order, masses)
    return shares / shares.sum(-1, keepdim=True)


def drawn(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens int64 [R]: of masses [R, V] the first at which their running sum exceeds uniforms [R] of the whole."""
    running = shares.cumsum(-1)
    crossed = (running <= uniforms[:, None] * running[:, -1:]).sum(-1)
    # Rounding may leave the goal beyond the end: then the last with any mass is meant.
    places = torch.arange(shares.shape[-1], device=shares.device)
    last = torch.where(shares > 0, places, 0).amax(-1)
    return torch.minimum(crossed, last)


def accepts(p: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> Tensor:
    """Which of `drafts` [R], drawn from q [R, V], stay where p [R, V] is meant; uniforms are [R]."""
    at = drafts[:, None]
    return uniforms * q.gather(-1, at)[:, 0] < p.gather(-1, at)[:, 0]


def rest(p: Tensor, q: Tensor) -> Tensor:
    """Masses [R, V] from which the token in the place of a draft that may not stay is drawn."""
    left = (p - q).clamp(min=0.0)
    # Where p and q are alike every draft stays, but for rounding.
    return torch.where(left.sum(-1, keepdim=True) > 0, left, p)
