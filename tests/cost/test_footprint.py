"""The card of `sim memory`: bytes by hand, and fits that are those of the memory plan that runs use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model, names
from sim.catalog.presets import load
from sim.cost.capacity import KvCapacity, MemorySettings, kv_capacity, memory_plan
from sim.cost.footprint import Footprint, footprint
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

H100 = load_gpu("h100")


def card(model: str, tokens: int, **more: str | None) -> Footprint:
    return footprint(load_model(model).with_dtypes(**more), [], tokens=tokens)


@pytest.mark.parametrize(
    ("model", "more", "token_bytes", "formula"),
    [
        ("llama-2-13b", {}, 819_200, "2 x 40 layers x 40 KV heads x 128 x 2 B"),
        ("llama-2-13b", {"kv_dtype": "fp8"}, 409_600, "2 x 40 layers x 40 KV heads x 128 x 1 B"),
        ("llama-2-13b", {"kv_dtype": "int8"}, 2 * 40 * 40 * 130, "2 x 40 layers x 40 KV heads x (128 x 1 B + 2 B)"),
        ("llama-2-13b", {"kv_dtype": "int4"}, 2 * 40 * 40 * 68, "2 x 40 layers x 40 KV heads x (128 / 2 B + 4 B)"),
        ("llama-3.1-70b", {}, 327_680, "2 x 80 layers x 8 KV heads x 128 x 2 B"),
        ("deepseek-v3", {}, 70_272, "61 layers x (512 + 64) x 2 B"),
        ("deepseek-v3", {"kv_dtype": "fp8"}, 35_136, "61 layers x (512 + 64) x 1 B"),
    ],
)
def test_kv_of_a_token_by_hand(model: str, more: dict[str, str], token_bytes: int, formula: str) -> None:
    """MHA, GQA and MLA; Llama-2-13B in fp16 has 0.78 MiB a token."""
    found = card(model, 1000, **more)
    assert (found.kv_bytes_per_token, found.kv_formula) == (token_bytes, formula)
    assert found.kv_bytes_per_sequence == found.kv_attended_bytes == 1000 * token_bytes
    assert found.kv_attended_formula == ""


@pytest.mark.parametrize(
    ("model", "tokens", "layer_tokens", "formula"),
    [
        ("gemma-3-27b", 16_384, 10 * 16_384 + 52 * 1024, "(10 x 16,384 + 52 layers x 1,024 tokens) x 8,192 B"),
        ("mistral-7b-v0.1", 8192, 32 * 4096, "(32 layers x 4,096 tokens) x 4,096 B"),
        ("mistral-7b-v0.1", 4096, 32 * 4096, ""),
        ("gemma-2-9b", 4097, 21 * 4097 + 21 * 4096, "(21 x 4,097 + 21 layers x 4,096 tokens) x 8,192 B"),
    ],
)
def test_windows_by_hand(model: str, tokens: int, layer_tokens: int, formula: str) -> None:
    found = card(model, tokens)
    layer_bytes = 2 * load_model(model).kv_heads * load_model(model).head_dim * 2
    assert found.kv_bytes_per_sequence == load_model(model).layers * layer_bytes * tokens
    assert (found.kv_attended_bytes, found.kv_attended_formula) == (layer_tokens * layer_bytes, formula)


def test_weights_and_a_batch_by_hand() -> None:
    found = footprint(load_model("llama-2-13b"), [H100], tokens=2048, batch=32)
    assert (found.weight_bytes, found.weight_formula) == (26_031_728_640, "13,015,864,320 parameters x 2 B")
    assert found.kv_bytes == 32 * 2048 * 819_200
    fit = found.gpus[0]
    assert fit.least is not None
    assert fit.batch is not None
    # One H100 has 47 GiB beside the weights, of the 50 that 32 sequences need.
    assert (fit.least.tp, fit.least.sequences, fit.batch.tp, fit.batch.sequences) == (1, 29, 2, 74)
    assert fit.batch.kv_bytes >= found.kv_bytes // 2
    quantised = card("llama-2-13b", 1, weights="int4")
    assert quantised.weight_formula.endswith("parameters: matrices in int4 with their scales, the rest in fp16")
    assert quantised.weight_bytes == pytest.approx(7.25e9, rel=0.002)


UNIFORM = [one for one in names("models") if not load_model(one).blocks]
"""Others keep a state of each sequence besides, which a number of tokens does not tell."""


@given(
    st.sampled_from(UNIFORM), st.sampled_from(names("gpus")), st.integers(1, 2048), st.integers(1, 2000),
    st.sampled_from([None, 1, 2, 8, 16]),
)  # fmt: skip
def test_fits_are_those_that_a_run_would_have(name: str, gpu: str, tokens: int, batch: int, tp: int | None) -> None:
    """The least tp is the first whose own plan has the blocks, and the sequences are what these blocks hold."""
    model, sheet = load_model(name), load_gpu(gpu)
    if tp is not None and not model.divides(Parallel(tp)):
        with pytest.raises(InputError, match="cannot be split"):
            footprint(model, [sheet], tokens=tokens, batch=batch, tp=tp)
        return
    found = footprint(model, [sheet], tokens=tokens, batch=batch, tp=tp).gpus[0]
    holds: dict[int, int] = {}
    for split in map(Parallel, range(1, 65) if tp is None else [tp]):
        allowed = model.divides(split) and (split.tp <= 8 or sheet.network_bytes_per_s)
        if allowed and (model.dtype != "bf16" or sheet.bf16_flops_per_s):
            seats = MemorySettings(max_num_seqs=max(256, batch))
            plan = memory_plan(model, sheet, seats, parallel=split, pools_states=True)
            holds[split.tp] = sequences(model, split, plan, tokens)
    for placed, wanted in ((found.least, 1), (found.batch, batch)):
        first = next((tp for tp, sequences in holds.items() if sequences >= wanted), None)
        assert (placed.tp if placed else None) == first
        if placed:
            assert placed.sequences == holds[placed.tp]
            seats = MemorySettings(max_num_seqs=max(256, batch))
            room = kv_capacity(model, sheet, seats, parallel=Parallel(placed.tp))
            assert placed.sequences * tokens <= room.tokens or model.sliding_layers
            assert placed.nodes == -(-placed.tp // 8)
    assert bool(found.why) == (found.batch is None)


def sequences(model: ModelSpec, split: Parallel, plan: KvCapacity, tokens: int) -> int:
    """How many sequences fit, by counting the blocks of one in each group of layers of equal bytes."""
    rows = -(-tokens // 16)
    kept = {False: 0, True: 0}
    for kind in model.kv_kinds(split):
        kept[bool(kind.window_tokens)] += kind.layers * kind.token_bytes
    if not kept[True]:
        return max(0, plan.blocks) // rows
    sizes = [size for size in kept.values() if size]
    group = max(sizes) if max(sizes) < 1.25 * min(sizes) else min(sizes)
    within = min(rows, -(-(model.sliding_window_tokens + 8192) // 16) + 1)
    one = -(-kept[False] // group) * rows + -(-kept[True] // group) * within
    return max(0, plan.blocks * plan.block_bytes // (16 * group)) // one


def test_why_a_gpu_holds_nothing() -> None:
    def why(model: str, gpu: str, tp: int | None = None, batch: int = 1) -> str:
        return footprint(load_model(model), [load_gpu(gpu)], tokens=2048, tp=tp, batch=batch).gpus[0].why

    assert why("llama-3.1-8b", "v100") == "no bf16 matrix units"
    assert why("llama-3.1-405b", "rtx-4090") == "no tp up to 8 holds the weights and 1 sequence of 2,048 tokens"
    assert why("llama-3.1-70b", "rtx-4090", tp=16) == "no network between nodes is known, and tp 16 needs 2"
    assert why("llama-3.1-70b", "h100", tp=2, batch=900) == (
        "tp 2 does not hold the weights and 900 sequences of 2,048 tokens"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tokens": 4097}, "tokens is 4097; a sequence of llama-2-13b has at least 1 and at most 4096 tokens"),
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 1, "batch": 0}, "batch is 0; it must be at least 1"),
        ({"tokens": 1, "tp": 3}, "cannot be split over tp = 3"),
    ],
)
def test_impossible_questions_are_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        footprint(load_model("llama-2-13b"), [H100], **asked)


def test_the_defaults_are_those_of_no_engine() -> None:
    """What `sim memory` takes where no engine is named are a run's: tests/cli/test_memory.py."""
    told = load("foretoken").settings
    assert MemorySettings() == MemorySettings(
        block_tokens=told["kv.block_tokens"],
        gpu_memory_utilization=told["kv.gpu_memory_utilization"],
        max_num_batched_tokens=told["engine.max_num_batched_tokens"],
        max_num_seqs=told["engine.max_num_seqs"],
        accounting=load("foretoken").accounting,
    )


def test_a_larger_node_needs_no_network() -> None:
    fit = footprint(load_model("deepseek-v3"), [replace(H100, node_gpus=72)], tokens=4096).gpus[0]
    assert fit.least is not None
    assert (fit.least.tp, fit.least.nodes) == (16, 1)


def test_a_hybrid_counts_a_state_and_its_blocks() -> None:
    """Qwen3-Next on two H200: 24,576 B of KV and 37 MiB of state a sequence on each, in blocks of 16 x 12,288 B."""
    model, gpu = load_model("qwen3-next-80b-a3b"), load_gpu("h200")
    found = footprint(model, [gpu], tokens=1600, tp=2).gpus[0].batch
    plan = memory_plan(model, gpu, parallel=Parallel(2), pools_states=True)
    state = -(-model.gpu_state_bytes(Parallel(2)) // (16 * 12_288))
    assert plan.block_bytes == 16 * 12_288
    assert found is not None
    assert found.sequences == plan.blocks // (100 + state)
