"""The cache's tensors: shapes and types as the kernels read them, bytes as the simulator counts them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")

import torch

from backend.cache import kvcache, memory
from backend.cache.kvcache import KV_DTYPES, KvCache, LayerCache, block_bytes
from sim.catalog import load_model
from traces.schema import InputError

TINY = load_model("tiny-llama")


@pytest.mark.parametrize("name", KV_DTYPES)
def test_bytes_are_those_that_the_simulator_counts(name: str) -> None:
    model = TINY.with_dtypes(kv_dtype=name)
    cache = KvCache.allocate(model, 5, 16)
    tensor_scales = 2 * 4 * model.layers if name == "fp8" else 0
    assert cache.bytes == (5 + 1) * 16 * model.kv_bytes_per_token + tensor_scales
    assert block_bytes(model, 16) == 16 * model.kv_bytes_per_token
    assert cache.blocks == 5
    assert cache.dtype == KV_DTYPES[name]


@pytest.mark.parametrize("name", KV_DTYPES)
def test_tensors_have_the_layout_of_the_contract_and_hold_zeros(name: str) -> None:
    cache = KvCache.allocate(TINY, 3, 8, dtype=name)
    assert cache.block_tokens == 8
    assert len(cache.layers) == TINY.layers
    for layer in cache.layers:
        assert layer.k.shape == layer.v.shape == (4, 8, TINY.kv_heads, TINY.head_dim)
        assert layer.k.is_contiguous()
        assert layer.block_tokens == 8
        assert not layer.k.float().any()
        assert not layer.v.float().any()
        for scale in (layer.k_scale, layer.v_scale):
            if name == "int8":
                assert scale is not None
                assert (scale.shape, scale.dtype) == ((4, 8, TINY.kv_heads), torch.float16)
            elif name == "fp8":
                assert scale is not None
                assert (scale.shape, scale.dtype, scale.item()) == ((), torch.float32, 1.0)
            else:
                assert scale is None
    storages = {tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors()}
    assert len(storages) == sum(1 for layer in cache.layers for _ in layer.tensors())


@pytest.mark.parametrize("name", KV_DTYPES)
def test_the_host_twin_has_the_same_layout_and_its_own_blocks(name: str) -> None:
    cache = KvCache.allocate(TINY, 3, 8, dtype=name)
    host = cache.host(7)
    assert host.blocks == 7
    assert (host.block_tokens, host.dtype, host.device.type) == (8, cache.dtype, "cpu")
    for here, there in zip(cache.layers, host.layers, strict=True):
        for ours, theirs in zip(here.tensors(), there.tensors(), strict=True):
            assert ours.shape[1:] == theirs.shape[1:]
            assert ours.dtype == theirs.dtype
            assert ours.data_ptr() != theirs.data_ptr()


def test_a_layer_alone_can_be_made_for_kernels() -> None:
    layer = LayerCache.allocate(2, 16, 1, 64, dtype=torch.int8)
    assert layer.k.shape == (3, 16, 1, 64)
    assert len(list(layer.tensors())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 0, "block_tokens": 16}, "at least 1 block of 1 token, not 0 blocks of 16"),
        ({"blocks": 4, "block_tokens": 0}, "at least 1 block of 1 token, not 4 blocks of 0"),
        (
            {"blocks": 4, "block_tokens": 16, "dtype": "int4"},
            "'int4' is unknown; known are fp32, fp16, bf16, fp8",
        ),
        ({"blocks": 4, "block_tokens": 16, "dtype": torch.int64}, "'torch.int64' is unknown"),
        ({"blocks": 4, "block_tokens": 16, "device": "gpu"}, "device 'gpu' is unknown; known are cpu and cuda"),
        ({"blocks": 4, "block_tokens": 16, "device": "mps"}, "device 'mps' is not supported"),
        ({"blocks": 4, "block_tokens": 16, "device": "cuda:99"}, "CUDA devices; use cpu"),
    ],
)
def test_a_cache_that_cannot_be_made_is_refused_in_one_sentence(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KvCache.allocate(TINY, **arguments)  # type: ignore[arg-type]


def test_too_little_memory_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there = 10 * block_bytes(TINY, 16)
    monkeypatch.setattr(memory, "device_bytes", lambda device: there)
    cache = KvCache.allocate(TINY, 9, 16)
    with pytest.raises(InputError, match=r"10 blocks of 16 tokens of tiny-llama needs .* but cpu has .* at most 9"):
        KvCache.allocate(TINY, 10, 16)
    with pytest.raises(InputError, match="a host KV cache of 100 blocks needs"):
        cache.host(100)


def test_memory_is_that_of_the_machine() -> None:
    assert 2**28 < memory.device_bytes(torch.device("cpu")) < 2**50
    memory.check_memory("nothing", 2**60, torch.device("meta"), str)
    assert kvcache.storage_dtype(torch.bfloat16) is torch.bfloat16
