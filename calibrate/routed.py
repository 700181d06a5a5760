"""Routed experts within a measured step: who visits whom is drawn beforehand, and each part is timed by itself.

A router of random weights sends related tokens to the same experts, which no trained one is meant to do. So its product
and choice are computed and timed, and then tokens visit experts drawn evenly at random, `uniform` as `cost.routing` has
it by default. How many experts the first T tokens visit is therefore known. It fits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from backend.cache.kvcache import KV_DTYPES
from backend.model import layers
from backend.model.layers import DenseMlp, ExpertMlp
from backend.model.weights import QuantWeight
from backend.ops import Ops
from sim.cost.experts import UNIFORM
from sim.cost.schema import NO_CACHE
from sim.cost.tables import Value
from sim.specs.model import ModelSpec

T = TypeVar("T")
NAMES = {dtype: name for name, dtype in KV_DTYPES.items()}


class Timing(Protocol):
    """What times a call as a row of a table: `calibrate.timed.TimedOps`, or nobody."""

    def timed(self, table: str, row: dict[str, Value], call: Callable[[], T]) -> T: ...


class Untimed:
    def timed(self, table: str, row: dict[str, Value], call: Callable[[], T]) -> T:
        return call()


class DrawnExperts:
    """Takes the place of a model's MLPs: dense ones as they are, experts by visits drawn for up to `most` tokens."""

    def __init__(self, spec: ModelSpec, most: int, device: torch.device, seed: int) -> None:
        rng = np.random.default_rng([seed, 13])
        visits = rng.random((most, spec.experts)).argsort(axis=1)[:, : spec.experts_per_token]
        first = np.full(spec.experts, most)
        np.minimum.at(first, visits.ravel(), np.repeat(np.arange(most), spec.experts_per_token))
        self._touched = np.searchsorted(np.sort(first), np.arange(most), side="right")
        self._ids = torch.from_numpy(np.ascontiguousarray(visits)).to(device)

    def touched(self, tokens: int) -> int:
        """How many experts the first so many tokens visit."""
        return int(self._touched[tokens - 1])

    def mlp(self, timing: Timing, plain: Ops, ops: Ops, hidden: Tensor, weights: DenseMlp | ExpertMlp) -> Tensor:
        """As `layers.mlp` with `ops`; of experts router, choice and the rest are timed, the rest as a whole: its own
        products are `plain` operations."""
        assert isinstance(weights, ExpertMlp), "of a model with experts all layers have them"
        tokens, width = hidden.shape
        kind, count = NAMES[hidden.dtype], len(weights.router)
        gate_up = weights.gate_up.data if isinstance(weights.gate_up, QuantWeight) else weights.gate_up
        size: dict[str, Value] = {"tokens": tokens}
        matrix: dict[str, Value] = {"dtype": kind, "weight_dtype": kind, "k": width, "n": count}
        logits = timing.timed("gemm", matrix | size, lambda: F.linear(hidden, weights.router))
        small: dict[str, Value] = {"op": "route", "dtype": kind, "kv_dtype": NO_CACHE, "width": count}
        _, shares = timing.timed("elementwise", small | size, lambda: layers.choose(logits, weights))
        whole: dict[str, Value] = {
            "dtype": kind, "weight_dtype": NAMES[gate_up.dtype], "hidden": width, "ffn": gate_up.shape[1] // 2,
            "experts": count, "experts_per_token": weights.top_k, "routing": UNIFORM,
        }  # fmt: skip
        where = size | {"touched": self.touched(tokens)}
        ids = self._ids[:tokens]
        return timing.timed("expert_layer", whole | where, lambda: layers.experts(plain, hidden, weights, ids, shares))
