"""The shipped pair as models, and their logits of a whole text by the backend's own forward."""

from __future__ import annotations

from functools import cache

import torch
from model_kit import step, story
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.model.loader import load_model
from backend.model.model import Model
from sim import catalog


@cache
def model(name: str) -> Model:
    """byte-target or byte-draft."""
    return load_model(name, catalog.load_model(name))


def logits_of(one: Model, tokens: list[int]) -> Tensor:
    """[T, vocab] of a whole text, by the backend's own forward."""
    blocks = len(tokens) // 4 + 2
    item = story(tokens, list(range(blocks, 0, -1)))
    step(one, KvCache.allocate(one.spec, blocks + 1, 4), [(item, len(tokens))])
    return torch.stack(item.logits).float()
