"""Latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1) over a paged cache in plain torch, on any device.

The cache holds one vector a token: a latent of `rank` elements and behind it a rotary key that all heads share. Decode
rows attend the latents themselves (the absorbed form); prompts make keys and values of them. No live model here has
such layers yet: what calls it is `calibrate.latent`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor


def latents(cache: Tensor, block_tables: Tensor, tokens: int) -> Tensor:
    """The first `tokens` vectors [S, tokens, W] of each row of `block_tables` [S, M] in a cache [blocks, B, W]."""
    rows, blocks = block_tables.shape
    picked = cache.index_select(0, block_tables.flatten())
    return picked.view(rows, blocks * cache.shape[1], cache.shape[2])[:, :tokens]


def latent_decode(q: Tensor, cache: Tensor, block_tables: Tensor, context: int, *, rank: int, scale: float) -> Tensor:
    """Output [S, H, rank] of one new token of each of S sequences of `context` tokens, that one included.

    q [S, H, rank + rope]: each head's query multiplied into the latent's space beforehand, and its rotary part; the
    output is yet to be multiplied out of it. Heads are queries of one key and value head.
    """
    keys = latents(cache, block_tables, context)[:, None]
    return F.scaled_dot_product_attention(q[:, None], keys, keys[..., :rank], scale=scale)[:, 0]


def latent_prefill(
    q: Tensor, k: Tensor, v: Tensor, up: Tensor, cache: Tensor, block_tables: Tensor, past: int, *, scale: float
) -> Tensor:
    """Output [S, H, N, value] of N new tokens of each of S sequences on top of `past` ones in the cache.

    q and k [S, H, N, nope + rope], v [S, H, N, value] are the new tokens', made already; those of the past are made
    here: `up` [H * (nope + value), rank] times their latents, the rotary key the same for all heads.
    """
    new = q.shape[2]
    if not past:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    rows, heads, rank = q.shape[0], q.shape[1], up.shape[1]
    stored = latents(cache, block_tables, past)
    made = (stored[..., :rank] @ up.t()).view(rows, past, heads, -1).transpose(1, 2)
    nope = made.shape[3] - v.shape[3]
    rotary = stored[:, None, :, rank:].expand(-1, heads, -1, -1)
    keys = torch.cat([torch.cat([made[..., :nope], rotary], 3), k], 2)
    values = torch.cat([made[..., nope:], v], 2)
    seen = torch.ones((new, past + new), dtype=torch.bool, device=q.device).tril(past)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=scale)
