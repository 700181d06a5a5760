"""The price of layers of several kinds: against the same model as alike layers, and laws of states and indexers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model
from sim.catalog.assembly import typed, uniform
from sim.cost.capacity import MemorySettings, memory_plan
from sim.cost.footprint import footprint
from sim.cost.offload import Offload
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.scenario import build
from sim.serving.assemble import assemble
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

H200 = load_gpu("h200")
LATENT = {"kv_lora_rank": 0, "q_lora_rank": 0, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0, "v_head_dim": 0}
HYBRID, SPARSE, MIXED = map(load_model, ("qwen3-next-80b-a3b", "deepseek-v3.2", "gpt-oss-20b"))


def as_blocks(model: ModelSpec) -> ModelSpec:
    return replace(model, **LATENT, blocks=typed(uniform(model), None))


def seconds(cost: Roofline, shape: Shape) -> float:
    return cost.span_s(shape, 1)[0][0]


def priced(model: ModelSpec, **more: int) -> Roofline:
    return Roofline(model, H200, parallel=Parallel(8), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "mistral-7b-v0.1"])
@pytest.mark.parametrize("tp", [1, 2])
def test_alike_layers_cost_the_same_either_way(name: str, tp: int) -> None:
    """But for norms of heads and latents, which blocks leave out, and the way that launches are counted."""
    model = load_model(name)
    split = Parallel(tp)
    one, other = (Roofline(each, H200, parallel=split) for each in (model, as_blocks(model)))
    window = model.sliding_window_tokens
    for decodes, context in ((1, 100), (32, 40_000), (200, 400_000)):
        within = min(context, decodes * window)
        shape = Shape(decodes=decodes, decode_context=context, decode_window_context=within)
        assert seconds(other, shape) == pytest.approx(seconds(one, shape), rel=0.08)
    for slices in (((512, 0),), ((2048, 6000), (100, 0))):
        shape = Shape(prefills=slices)
        assert seconds(other, shape) == pytest.approx(seconds(one, shape), rel=0.08)


@pytest.mark.parametrize("model", [HYBRID, SPARSE, MIXED], ids=["hybrid", "sparse", "mixed"])
def test_terms_add_up_to_the_step(model: ModelSpec) -> None:
    cost = priced(model)
    window = model.attended_window
    within = min(64_000, 64 * window.span_tokens) if window else 0
    shape = Shape(prefills=((700, 300),), decodes=64, decode_context=64_000, decode_window_context=within)
    terms = cost.explain(shape)
    assert sum(term.seconds for term in terms.values() if not term.on_host) == pytest.approx(seconds(cost, shape))
    assert {term.source for term in terms.values()} == {"roofline"}
    assert {"expert up", "router", "KV write", "decode attention", "prefill attention"} <= terms.keys()


@given(decodes=st.integers(1, 256), context=st.integers(1, 100_000))
def test_a_state_costs_the_same_at_any_length(decodes: int, context: int) -> None:
    """12 of 48 layers attend; a row's state is read and written once, so that rows add to it and contexts do not."""
    cost = priced(HYBRID)
    state = [priced(replace(HYBRID, blocks=tuple(block for block in HYBRID.blocks if block.state), layers=36))][0]
    for rows in (decodes, decodes + 1):
        short, long = (seconds(state, Shape(decodes=rows, decode_context=tokens)) for tokens in (rows, rows + context))
        assert short == long
    assert seconds(cost, Shape(decodes=decodes, decode_context=decodes + context)) > seconds(
        cost, Shape(decodes=decodes, decode_context=decodes)
    )


def test_the_bytes_of_a_state() -> None:
    """Beyond the launches: 2 x 37.7 MiB / 8 GPUs for each row, at the rate of streams."""
    states = replace(HYBRID, blocks=tuple(block for block in HYBRID.blocks if block.state), layers=36)
    cost = priced(states)
    terms = [cost.explain(Shape(decodes=rows, decode_context=rows))["decode attention"].seconds for rows in (100, 200)]
    moved = 2 * 36 * ((32 // 8) * 128 * 128 * 2 + 1024 * 3 * 2)
    rate = H200.memory_bytes_per_s * cost.efficiency.stream_memory
    flops = 36 * 4 * (6 * 128 * 128 + 2 * 64 * 256)
    peak = H200.bf16_flops_per_s * cost.efficiency.prefill_attention_compute
    assert terms[1] - terms[0] == pytest.approx(100 * (moved / rate + flops / peak))


def test_an_indexer_bounds_what_is_attended() -> None:
    """Beyond 2,048 tokens a context costs the index keys of each layer alone; the latents stay at 2,048."""
    cost = priced(SPARSE)

    def step(context: int) -> float:
        return seconds(cost, Shape(decodes=8, decode_context=8 * context, decode_window_context=8 * min(context, 2048)))

    near, far = step(2048) - step(1024), step(33_792) - step(32_768)
    assert 0 < far < near
    dense = priced(load_model("deepseek-v3"))
    assert step(100_000) < seconds(dense, Shape(decodes=8, decode_context=800_000))
    assert load_model("deepseek-v3").attended_window is None


def test_quantised_experts_read_fewer_bytes() -> None:
    plain = MIXED.with_dtypes(weights="bf16")
    shape = Shape(decodes=8, decode_context=800, decode_window_context=800)
    terms, wide = (Roofline(each, H200).explain(shape) for each in (MIXED, plain))
    floor = Roofline(MIXED, H200).efficiency.gemm_floor_s * 24
    ratio = (wide["expert up"].seconds - floor) / (terms["expert up"].seconds - floor)
    assert 3 < ratio < 16 / 4.25
    assert terms["qkv"].seconds == wide["qkv"].seconds
    assert plain.weight_bytes == 2 * plain.parameters


class TestMemory:
    def test_states_of_all_seats_are_set_aside(self) -> None:
        few, many = (
            memory_plan(HYBRID, H200, MemorySettings(max_num_seqs=seats), parallel=Parallel(2)) for seats in (16, 256)
        )
        assert many.state_bytes - few.state_bytes == 240 * HYBRID.gpu_state_bytes(Parallel(2))
        assert few.blocks > many.blocks
        assert few.block_bytes == 16 * HYBRID.gpu_kv_bytes_per_token(Parallel(2))
        assert memory_plan(load_model("llama-3.1-8b"), H200).state_bytes == 0
        pooled = memory_plan(HYBRID, H200, parallel=Parallel(2), pools_states=True)
        assert (pooled.state_bytes, pooled.pooled_state_bytes) == (0, HYBRID.gpu_state_bytes(Parallel(2)))
        assert pooled.blocks > many.blocks

    def test_the_card(self) -> None:
        card = footprint(HYBRID, [H200], tokens=1000, tp=2)
        assert card.state_bytes_per_sequence == HYBRID.state_bytes
        assert card.kv_formula == "12 layers x 2,048 B"
        least = card.gpus[0].least
        assert least is not None
        # A sequence takes 63 blocks of 16 tokens, and those that its state fills.
        block_bytes = 16 * HYBRID.gpu_kv_bytes_per_token(Parallel(2))
        state_blocks = -(-HYBRID.gpu_state_bytes(Parallel(2)) // block_bytes)
        assert least.sequences == least.kv_bytes // (block_bytes * (63 + state_blocks))
        windowed = footprint(MIXED, [H200], tokens=1000)
        assert windowed.kv_attended_bytes == 12 * 2048 * 128 + 12 * 2048 * 1000
        assert windowed.weight_formula.startswith(
            "20,914,757,184 parameters: 19,110,297,600 in mxfp4, the rest in bf16"
        )


class TestRefusals:
    def test_what_has_no_price(self) -> None:
        with pytest.raises(InputError, match="has no price, so that it cannot be run: no kernel"):
            priced(replace(MIXED, unpriced="no kernel"))

    def test_offload(self) -> None:
        with pytest.raises(InputError, match="offload moves layers that are alike, and those of gpt-oss-20b are of 2"):
            Offload(weight_layers=2).check(MIXED)
        Offload().check(MIXED)

    @pytest.mark.parametrize("drafter", ["eagle", "medusa"])
    def test_heads_of_the_target(self, drafter: str) -> None:
        settings = {"model": "gpt-oss-20b", "policy": "speculative", "speculation": {"drafter": drafter}}
        with pytest.raises(
            InputError, match="is one more layer of the target's, and those of 'gpt-oss-20b' are of several"
        ):
            assemble(build(settings))

    def test_a_window_of_the_allocator(self) -> None:
        own = {"model": "gpt-oss-20b", "gpu": "h200"}
        assert assemble(build({**own, "allocator": "windowed"})).window == MIXED.attention_window
        with pytest.raises(InputError, match="has layers of several kinds, whose own windows cannot be exchanged"):
            assemble(build({**own, "allocator": {"name": "windowed", "window_tokens": 64}}))
