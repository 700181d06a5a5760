"""What a profile run finds held: laws over models, GPUs and engines, and a few sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model
from sim.catalog.presets import accounting_of, accountings, load
from sim.cost.capacity import KvCapacity, MemorySettings, memory_plan
from sim.cost.profile_run import activations, capture_sizes, overheads
from sim.specs.accounting import PLAIN, Amount, total
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

MIB = 2**20
EVERY = {"plain": PLAIN, **accountings()}
LLAMA, H100 = load_model("llama-3.1-8b"), load_gpu("h100")


def planned(
    name: str, tokens: int, seqs: int, model: str = "llama-3.1-8b", gpu: str = "h100", tp: int = 1
) -> KvCapacity:
    settings = MemorySettings(16, 0.9, tokens, seqs, accounting=EVERY[name])
    return memory_plan(load_model(model), load_gpu(gpu), settings, parallel=Parallel(tp))


@given(
    st.sampled_from(sorted(EVERY)),
    st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "opt-13b", "gemma-3-27b"]),
    st.sampled_from(["h100", "rtx-4090", "mi300x", "b200"]),
    st.sampled_from([1, 2]),
    st.integers(1, 16_384),
    st.integers(1, 1024),
)
def test_bands_hold_what_is_expected_and_more_work_leaves_no_more_blocks(
    name: str, model: str, gpu: str, tp: int, tokens: int, seqs: int
) -> None:
    room = planned(name, tokens, seqs, model, gpu, tp)
    assert room.least_blocks <= max(0, room.blocks) <= room.most_blocks
    assert room.less_bytes >= 0 <= room.more_bytes
    for more in (planned(name, 2 * tokens, seqs, model, gpu, tp), planned(name, tokens, seqs + 1, model, gpu, tp)):
        assert more.blocks <= room.blocks
        assert more.least_blocks <= room.least_blocks
        assert more.most_blocks <= room.most_blocks


@pytest.mark.parametrize(("seqs", "each"), [(127, 50), (128, 38), (1024, 38)])
def test_a_sort_of_all_logits_before_0_16(seqs: int, each: int) -> None:
    """Logits, sorted rows, indices and CUB's second buffers; the step's states, the sampled rows' and their copy."""
    found = activations(LLAMA, SINGLE, 2048, seqs, EVERY["vllm-0.11"])
    assert found == Amount.exact(each * seqs * 128_256 + (2048 + 2 * seqs) * 4096 * 2)


def test_triton_and_flashinfer_sample_with_fourteen_bytes_a_logit() -> None:
    old, new = (activations(LLAMA, SINGLE, 2048, 1024, EVERY[name]).expected for name in ("vllm-0.19", "vllm-0.33"))
    assert old == 14 * 1024 * 128_256 + (2048 + 2 * 1024) * 4096 * 2
    assert old - new == 1024 * 4096 * 2
    outside = overheads(LLAMA, H100, SINGLE, 2048, 1024, EVERY["vllm-0.19"])
    assert outside["sampling buffers"] == Amount.exact(4 * 132 * 128_256)
    assert outside["kernel stacks"].expected == 1040 * 2048 * 132
    kept = overheads(LLAMA, H100, SINGLE, 2048, 1024, EVERY["vllm-0.33"])["sampling buffers"]
    assert kept == Amount.exact(1024 * (4 * 128_256 + 128_256 / 8))


def test_a_step_of_tokens_counts_where_it_is_larger_than_sampling() -> None:
    """Llama-3.1-8B, 16,384 tokens: residual and input, gate, up and activation; a compiler may save the input."""
    found = activations(LLAMA, SINGLE, 16_384, 8, EVERY["vllm-0.33"])
    assert found.expected == 16_384 * (2 * 4096 + 3 * 14_336) * 2
    assert (found.expected - found.least, found.most - found.expected) == (16_384 * 4096 * 2,) * 2


@pytest.mark.parametrize(
    ("tokens", "seqs", "most", "sizes", "largest"),
    [(8192, 1024, 512, 51, 512), (2048, 256, 512, 51, 512), (8192, 128, 512, 35, 256), (100, 256, 512, 15, 96),
     (8192, 1024, 1024, 83, 1024), (8192, 1, 512, 2, 2)],
)  # fmt: skip
def test_captured_sizes(tokens: int, seqs: int, most: int, sizes: int, largest: int) -> None:
    """Of the 51 sizes of 512 an RTX 4090's server lists each (../shared/measured, meta.json)."""
    found = capture_sizes(tokens, seqs, most)
    assert (len(found), found[-1]) == (sizes, largest)
    assert found == sorted(set(found))


def test_graphs_count_in_0_33_alone_and_not_without_them() -> None:
    settings = (8192, 1024)
    graphs = overheads(LLAMA, H100, SINGLE, *settings, EVERY["vllm-0.33"])["CUDA graphs"]
    pool = 512 * (2 * 4096 + 3 * 14_336) * 2
    assert graphs.expected == 51 * 32 * MIB // 4 + 51 * 2 * MIB + pool
    assert "CUDA graphs" not in overheads(LLAMA, H100, SINGLE, *settings, EVERY["vllm-0.33"], graphs=False)
    assert "CUDA graphs" not in overheads(LLAMA, H100, SINGLE, *settings, EVERY["vllm-0.19"])
    with_, without = (
        memory_plan(LLAMA, H100, MemorySettings(cuda_graphs=on, accounting=EVERY["vllm-0.33"])).blocks
        for on in (True, False)
    )
    assert with_ < without


def test_an_unknown_gpu_has_any_stack_up_to_the_largest() -> None:
    mine = replace(H100, name="mine")
    known, unknown = (
        overheads(LLAMA, gpu, SINGLE, 2048, 256, EVERY["vllm-0.19"])["kernel stacks"] for gpu in (H100, mine)
    )
    assert unknown.least == 0 < known.least
    assert unknown.most > known.most


def test_an_engine_of_no_known_accounting_has_the_plain_one_and_a_wider_band() -> None:
    assert load("orca").accounting is PLAIN
    assert accounting_of("auto", "") is PLAIN
    assert accounting_of("auto", "vllm") == load("vllm-0.33").accounting
    assert accounting_of("vllm-0.11", "vllm-0.33").name == "vllm-0.11"
    with pytest.raises(
        InputError, match=r"kv.accounting is 'vllm'; known are auto, plain, sglang-0.5, vllm-0.19, vllm-0.11, vllm-0.33"
    ):
        accounting_of("vllm", "")
    plain, own = planned("plain", 2048, 256), planned("vllm-0.11", 2048, 256)
    assert plain.less_bytes + plain.more_bytes > own.less_bytes + own.more_bytes


def test_ends_add_up() -> None:
    assert total((Amount(3, 1, 5), Amount(10, 10, 20))) == Amount(13, 11, 25)
    assert Amount(3, 1, 5).larger(Amount(2, 2, 9)) == Amount(3, 2, 9)
