"""Packed weights: the same model, whatever a step's rows are; what is not packed stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.model.layers import DenseMlp, ExpertMlp
from backend.model.loader import random_model
from backend.model.model import DecodePart, ForwardBatch, Model, PrefillPart
from backend.model.packed import packed
from backend.model.weights import QuantWeight
from backend.torch_ops.linear import multiplies_bf16, packs
from sim.catalog import load_model

TINY = replace(load_model("tiny-llama"), layers=2, vocab=512)
needs_packing = pytest.mark.skipif(not packs(), reason="this torch has no oneDNN")


def logits(model: Model, sequences: int, prompt: int) -> Tensor:
    """Of every token of some prompts, and then of one more token of each."""
    cache = KvCache.allocate(model.spec, 4 * sequences, 16, "cpu")
    tables = (torch.arange(4 * sequences, dtype=torch.int32) + 1).view(sequences, 4)
    at = torch.arange(prompt + 1)
    slots = tables[:, at // 16] * 16 + at % 16
    tokens = torch.randint(512, slots.shape, generator=torch.Generator().manual_seed(1))
    starts, lens = torch.arange(sequences + 1).int() * prompt, torch.full((sequences,), prompt, dtype=torch.int32)

    def run(columns: slice, **parts: object) -> Tensor:
        positions = at.expand(slots.shape)[:, columns].flatten()
        batch = ForwardBatch(tokens[:, columns].flatten(), positions, slots[:, columns].flatten(), None, **parts)  # type: ignore[arg-type]
        return model.forward(batch, cache)

    first = run(slice(prompt), prefill=PrefillPart(starts, lens, tables, prompt), decode=None)
    return torch.cat([first, run(slice(prompt, None), prefill=None, decode=DecodePart(1, lens + 1, tables))])


@needs_packing
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-4), ("bf16", 0.06)])
@pytest.mark.parametrize(("sequences", "prompt"), [(1, 1), (3, 37)])
def test_a_packed_model_gives_the_same_logits(dtype: str, tolerance: float, sequences: int, prompt: int) -> None:
    spec = TINY.with_dtypes(dtype=dtype)
    wanted = logits(random_model(spec), sequences, prompt)
    model = packed(random_model(spec))
    assert model.weights.lm_head.is_mkldnn == (dtype == "fp32" or multiplies_bf16())
    assert not model.weights.embedding.is_mkldnn
    torch.testing.assert_close(logits(model, sequences, prompt), wanted, atol=tolerance, rtol=0.0)


@needs_packing
def test_every_matrix_of_a_layer_is_packed_once() -> None:
    model = packed(packed(random_model(TINY)))
    for layer in model.weights.layers:
        assert isinstance(layer.mlp, DenseMlp)
        for matrix in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down):
            assert isinstance(matrix, Tensor)
            assert matrix.is_mkldnn
        assert not layer.input_norm.is_mkldnn


def test_narrow_weights_and_experts_stay() -> None:
    model = packed(random_model(TINY.with_dtypes(dtype="bf16", weights="int8")))
    assert all(isinstance(layer.qkv, QuantWeight) for layer in model.weights.layers)
    spec = replace(load_model("mixtral-8x7b"), layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=96, vocab=512)
    mixture = packed(random_model(replace(spec, experts=4, experts_per_token=2).with_dtypes(dtype="fp32")))
    experts = mixture.weights.layers[0].mlp
    assert isinstance(experts, ExpertMlp)
    assert isinstance(experts.gate_up, Tensor)
    assert not experts.gate_up.is_mkldnn
    assert logits(mixture, 1, 3).isfinite().all()
