"""KV capacity against hand arithmetic, published capacities and its own laws."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model, names
from sim.cost.capacity import DRIVER_BYTES, MemorySettings, kv_capacity
from sim.cost.profile_run import activations
from sim.specs.accounting import PLAIN
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

GIB = 2**30


def test_llama_on_h100_by_hand() -> None:
    """16,060,522,496 B of weights; 26 B for each of 256 x 128,256 logits and 64 MiB of hidden states; 2 MiB a block."""
    found = kv_capacity(load_model("llama-3.1-8b"), load_gpu("h100"))
    assert found.usable_bytes == int((85_520_809_984 - DRIVER_BYTES) * 0.9)
    assert found.weight_bytes == 16_060_522_496
    assert found.activation_bytes == 26 * 256 * 128_256 + 8192 * 4096 * 2
    assert found.overhead_bytes == int(0.15 * GIB)
    assert found.block_bytes == 2 * 2**20
    free = found.usable_bytes - found.weight_bytes - found.activation_bytes - found.overhead_bytes
    assert found.blocks == free // (2 * 2**20)
    assert found.tokens == found.blocks * 16


def test_widest_layer_by_hand() -> None:
    """Llama-2-7B, 8,192 tokens: residual and input (2 x 4096), then gate, up and activation (3 x 11008), 2 B each."""
    found = activations(load_model("llama-2-7b"), SINGLE, 8192, 1, PLAIN)
    assert found.expected == 8192 * (2 * 4096 + 3 * 11008) * 2
    assert (found.least, found.most) == (8192 * (4096 + 3 * 11008) * 2, 8192 * (3 * 4096 + 3 * 11008) * 2)


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "slots"),
    [("opt-13b", "a100-40", 1, 15_700), ("opt-66b", "a100-40", 4, 9_700), ("opt-175b", "a100-80", 8, 60_100)],
)
def test_vllm_paper_table_1(model: str, gpu: str, tp: int, slots: int) -> None:
    """KV slots of the vLLM paper (arXiv 2309.06180, table 1), which leaves activations and overheads out.

    66B on four 40 GB cards is where they weigh most: 1.5 GiB of a GPU's 5.5 left beside the weights.
    """
    found = kv_capacity(
        load_model(model), load_gpu(gpu), MemorySettings(max_num_batched_tokens=2560), parallel=Parallel(tp)
    )
    assert 0.7 * slots < found.tokens < slots
    without = found.blocks + (found.activation_bytes + found.overhead_bytes + DRIVER_BYTES) // found.block_bytes
    assert without * 16 == pytest.approx(slots, rel=0.1)


@pytest.mark.parametrize("name", names("models"))
def test_every_model_fits_or_says_how(name: str) -> None:
    model, gpu = load_model(name), load_gpu("a100-80")
    try:
        assert kv_capacity(model, gpu).blocks >= 1
    except InputError as error:
        if re.search(r"no tp up to \d+ fits$", str(error)):
            return
        fits = int(str(error).rsplit(" ", 1)[1])
        assert kv_capacity(model, gpu, parallel=Parallel(fits)).blocks >= 1


def test_a_model_that_does_not_fit_says_how_much_and_what_would() -> None:
    with pytest.raises(InputError) as caught:
        kv_capacity(load_model("llama-3.1-70b"), load_gpu("h100"))
    assert "need 133.1 GiB of each GPU, 71.2 GiB are usable" in str(caught.value)
    assert str(caught.value).endswith("the smallest tp that fits is 2")
    with pytest.raises(InputError, match="no tp up to 64 fits"):
        kv_capacity(load_model("llama-3.1-405b"), load_gpu("t4"))
    with pytest.raises(InputError, match="no tp up to 8 fits"):  # where no network joins more
        kv_capacity(load_model("llama-3.1-405b"), load_gpu("rtx-4090"))


@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "opt-13b"]),
    st.floats(0.85, 1.0),
    st.integers(1, 16_384),
    st.integers(1, 1024),
)
def test_more_memory_and_less_work_leave_more_blocks(name: str, share: float, tokens: int, seqs: int) -> None:
    model, gpu = load_model(name), load_gpu("a100-80")

    def blocks(model: ModelSpec = model, share: float = share, tokens: int = tokens, seqs: int = seqs) -> int:
        return kv_capacity(model, gpu, MemorySettings(16, share, tokens, seqs)).blocks

    assert blocks() <= blocks(share=1.0)
    assert blocks() <= blocks(tokens=1)
    assert blocks() <= blocks(seqs=1)
    assert blocks(model.with_dtypes(kv_dtype="fp8")) // 2 == blocks()


@pytest.mark.parametrize(
    "settings",
    [
        {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 1.5},
        {"gpu_memory_utilization": float("nan")},
        {"block_tokens": 0},
        {"max_num_batched_tokens": 0},
        {"max_num_seqs": 0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        MemorySettings(**settings)


def test_an_impossible_split_is_refused() -> None:
    with pytest.raises(InputError, match="tp = 3"):
        kv_capacity(load_model("llama-3.1-8b"), load_gpu("h100"), parallel=Parallel(3))
