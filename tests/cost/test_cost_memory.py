"""Types of caches and weights, latent caches and layers in host memory: bytes against published sizes, and prices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import api
from sim.catalog import load_gpu, load_model, names
from sim.cost.capacity import kv_capacity
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import Kernels
from sim.cost.offload import Offload
from sim.cost.roofline import Roofline
from sim.cost.step import Term
from sim.engine.batch import Shape
from sim.scenario import build
from sim.serving.assemble import assemble
from sim.specs.dtypes import KV_TYPES, WEIGHT_TYPES
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

H100, A100 = load_gpu("h100"), load_gpu("a100-80")
LLAMA = load_model("llama-3.1-8b")
EFF = Efficiency.of(H100)
LAYER_PARAMETERS = 4096 * 6144 + 4096 * 4096 + 4096 * 28672 + 14336 * 4096
"""Matrices of one layer of Llama-3.1-8B."""
DECODE = Shape(decodes=64, decode_context=64 * 1000)
PROMPT = Shape(((8192, 0),))


def device_s(cost: Roofline, shape: Shape) -> float:
    return cost.span_s(shape, 1)[0][0]


def term(model: ModelSpec, name: str, shape: Shape, gpu: str = "h100", **settings: Any) -> float:
    return Roofline(model, load_gpu(gpu), **settings).explain(shape)[name].seconds


NO_LATENT = [
    name for name in names("models") if not load_model(name).is_latent and "latent" not in str(load_model(name).blocks)
]


class TestCacheTypes:
    @pytest.mark.parametrize(
        ("dtype", "vector_bytes"),
        [("fp32", 512), ("fp16", 256), ("bf16", 256), ("fp8", 128), ("int8", 128 + 2), ("int4", 64 + 2 + 2)],
    )
    def test_bytes_by_hand(self, dtype: str, vector_bytes: int) -> None:
        """8 KV heads of 128, keys and values, 32 layers; int8 adds an fp16 scale, int4 a zero point as well."""
        model = LLAMA.with_dtypes(kv_dtype=dtype)
        assert model.kv_bytes_per_token == 2 * 8 * 32 * vector_bytes
        assert model.gpu_kv_bytes_per_token(Parallel(8)) * 8 == model.kv_bytes_per_token

    @pytest.mark.parametrize("name", NO_LATENT)
    def test_a_smaller_type_makes_a_smaller_cache(self, name: str) -> None:
        sizes = [load_model(name).with_dtypes(kv_dtype=dtype).kv_bytes_per_token for dtype in KV_TYPES]
        assert sizes == [*sorted(sizes[:4], reverse=True), sizes[4], sizes[5]]
        assert sizes[3] < sizes[4] < sizes[2]
        assert sizes[5] < sizes[3]

    def test_attention_reads_fewer_bytes_at_a_lower_rate(self) -> None:
        price = {d: term(LLAMA.with_dtypes(kv_dtype=d), "decode attention", DECODE) for d in KV_TYPES}
        floor = term(LLAMA, "decode attention", Shape(decodes=64))
        token_s = {dtype: (seconds - floor) / 64_000 / 32 / 16 for dtype, seconds in price.items()}
        # Some of a row's own time hides behind reading, and a second pass joins parts of a context.
        assert token_s["bf16"] == pytest.approx(256 / (EFF.decode_attention_memory * 3.35e12), rel=0.2)
        assert token_s["fp8"] == pytest.approx(128 / (0.64 * 3.35e12), rel=0.2)
        assert token_s["int8"] == pytest.approx(130 / (0.64 * 3.35e12), rel=0.2)
        assert token_s["int4"] == pytest.approx(68 / (0.48 * 3.35e12), rel=0.2)
        assert token_s["int4"] < token_s["fp8"] < token_s["bf16"] == token_s["fp16"]

    def test_the_scenario_takes_them(self) -> None:
        capacity = {}
        for dtype in ("auto", "fp8", "int8", "int4"):
            parts = assemble(build({"kv": {"dtype": dtype}}))
            capacity[dtype] = parts.pool.tokens
            assert parts.pool.block_bytes == 16 * parts.model.kv_bytes_per_token
        assert capacity["fp8"] == pytest.approx(2 * capacity["auto"], rel=1e-4)
        assert capacity["int8"] == pytest.approx(2 * capacity["auto"] * 128 / 130, rel=1e-4)
        assert capacity["int4"] == pytest.approx(4 * capacity["auto"] * 64 / 68, rel=1e-4)

    def test_impossible_types_are_refused(self) -> None:
        with pytest.raises(InputError, match="kv_dtype = 'int3' is none of fp32, fp16, bf16, fp8, int8, int4"):
            assemble(build({"kv": {"dtype": "int3"}}))


class TestWeightTypes:
    @pytest.mark.parametrize(
        ("model", "weights", "published_gb"),
        [
            ("llama-3.1-8b", "bf16", 16.06),
            ("llama-2-7b", "int4", 3.89),
            ("llama-2-13b", "int4", 7.25),
            ("llama-2-70b", "int4", 36.61),
            ("mistral-7b", "int4", 4.15),
            ("llama-2-7b", "int8", 7.16),
            ("llama-3.1-8b", "fp8", 9.08),
        ],
    )
    def test_published_checkpoints(self, model: str, weights: str, published_gb: float) -> None:
        """TheBloke's AWQ and 8-bit GPTQ (groups of 128) checkpoints, as their cards list them. That of fp8 is no
        published number but an estimate: a byte a weight, embedding and LM head in bf16."""
        assert load_model(model).with_dtypes(weights=weights).weight_bytes / 1e9 == pytest.approx(
            published_gb, rel=2e-3
        )

    def test_bytes_by_hand(self) -> None:
        """Embedding, LM head and 65 norms stay in bf16; a group of 128 has 16 bits of scale and 4 of zero point."""
        plain = 2 * 128_256 * 4096 + 65 * 4096
        matrices = 32 * LAYER_PARAMETERS
        assert plain + matrices == LLAMA.parameters
        assert LLAMA.with_dtypes(weights="int4").weight_bytes == 2 * plain + matrices // 2 + matrices // 128 * 20 // 8
        assert LLAMA.with_dtypes(weights="int8").weight_bytes == 2 * plain + matrices + matrices // 128 * 3
        assert LLAMA.with_dtypes(weights="fp8").weight_bytes == 2 * plain + matrices + matrices // 128**2 * 4
        assert LLAMA.with_dtypes(weights="fp32").weight_bytes == 4 * LLAMA.parameters

    def test_odd_sizes_are_rounded_up_to_whole_groups_and_bytes(self) -> None:
        assert WEIGHT_TYPES["int4"].matrix_bytes(129, 3) == -(-(4 * 129 * 3 + 20 * 2 * 3) // 8)
        assert WEIGHT_TYPES["fp8"].matrix_bytes(129, 3) == 129 * 3 + 4 * 2

    @pytest.mark.parametrize("weights", ["fp8", "int8", "int4"])
    def test_less_weight_leaves_more_blocks(self, weights: str) -> None:
        light = LLAMA.with_dtypes(weights=weights)
        whole, left = kv_capacity(LLAMA, H100), kv_capacity(light, H100)
        assert left.weight_bytes == light.weight_bytes
        assert left.blocks - whole.blocks == pytest.approx((LLAMA.weight_bytes - light.weight_bytes) / 2**21, abs=1)
        assert assemble(build({"weights": weights, "engine.preset": "foretoken"})).pool.blocks == left.blocks

    def test_small_batches_are_as_fast_as_their_bytes(self) -> None:
        """One token: int4 reads 20.625 / 80 of bf16's bytes; the LM head stays."""
        floor_s = 32 * EFF.gemm_floor_s
        whole, light = (
            term(LLAMA.with_dtypes(weights=w), "mlp up", Shape(decodes=1, decode_context=1)) - floor_s
            for w in ("bf16", "int4")
        )
        assert (4 + 20 / 128) / 16 < light / whole < 0.5  # some arithmetic shows beside the bytes
        heads = {term(LLAMA.with_dtypes(weights=w), "LM head", DECODE) for w in WEIGHT_TYPES}
        assert len(heads) == 1

    @pytest.mark.parametrize("name", ["qkv", "attention output", "mlp up", "mlp down"])
    def test_every_matrix_of_a_layer_shrinks(self, name: str) -> None:
        assert term(LLAMA.with_dtypes(weights="int4"), name, DECODE) < 0.65 * term(LLAMA, name, DECODE)

    def test_fp8_gemm_by_hand(self) -> None:
        """A byte for each input and weight, two for an output; without fp8 units an input has two as well."""
        for gpu, input_bytes in ((H100, 1), (A100, 2)):
            given = {
                "gemm_floor_s": 3.9e-6, "gemm_floor_s_fp8": 3.9e-6, "gemm_memory": 0.88, "gemm_exposed": 0.0,
                "quantise_row_s": 1e-8, "stream_memory": 0.5,
            }  # fmt: skip
            kernels = Kernels(gpu, Efficiency.of(gpu, given), "bf16", "bf16", "fp8")
            moved_bytes = 4 * 4096 * input_bytes + 4096 * 65_536 + 32 * 512 * 4 + 4 * 65_536 * 2
            # A kernel of its own reads 16-bit inputs and writes them as fp8.
            narrowed_s = 4 * (1e-8 + 4096 * 3 / (0.5 * gpu.memory_bytes_per_s)) if input_bytes == 1 else 0.0
            assert kernels.linear_s(4, 4096, 65_536) == pytest.approx(
                3.9e-6 + moved_bytes / (0.88 * gpu.memory_bytes_per_s) + narrowed_s, rel=1e-12
            )

    def test_large_batches_gain_from_fp8_units_only(self) -> None:
        def gain(weights: str, gpu: str) -> float:
            light = term(LLAMA.with_dtypes(weights=weights), "mlp up", PROMPT, gpu)
            return term(LLAMA, "mlp up", PROMPT, gpu) / light

        assert 1.2 < gain("fp8", "h100") < 2.0
        assert gain("fp8", "a100-80") == pytest.approx(1.0, rel=0.05)
        assert gain("int4", "h100") == pytest.approx(1.0, rel=0.05)
        assert Kernels(H100, EFF, "bf16", "bf16", "fp8").computes_fp8
        assert not Kernels(A100, Efficiency.of(A100), "bf16", "bf16", "fp8").computes_fp8

    def test_experts_follow_and_routers_do_not(self) -> None:
        model = load_model("mixtral-8x7b")
        light = model.with_dtypes(weights="int4")
        routers = 32 * 8 * 4096
        plain = 2 * 32_000 * 4096 + 65 * 4096 + routers
        matrices = model.parameters - plain
        assert light.weight_bytes == 2 * plain + matrices // 2 + matrices // 128 * 20 // 8
        assert term(light, "router", DECODE) == term(model, "router", DECODE)
        assert term(light, "expert up", DECODE) < 0.3 * term(model, "expert up", DECODE)

    def test_16_bit_weights_are_what_they_were(self) -> None:
        for shape in (DECODE, PROMPT):
            assert device_s(Roofline(LLAMA.with_dtypes(weights="bf16"), H100), shape) == device_s(
                Roofline(LLAMA, H100), shape
            )

    def test_the_scenario_says_auto(self) -> None:
        assert assemble(build({})).model == LLAMA
        published = {"model": "deepseek-v3", "tp": 16, "gpu": "h200"}
        assert assemble(build(published)).model.weight_dtype == "fp8"
        assert assemble(build({**published, "weights": "int4"})).model.weight_dtype == "int4"
        with pytest.raises(InputError, match="weights = 'int2' is none of auto"):
            assemble(build({"weights": "int2"}))
        with pytest.raises(InputError, match="int8 weights need fp16 or bf16 activations"):
            assemble(build({"weights": "int8", "dtype": "fp32"}))


class TestLatentAttention:
    V3 = load_model("deepseek-v3")
    LITE = load_model("deepseek-v2-lite")

    def test_cache_bytes(self) -> None:
        """61 layers of 512 + 64 elements: 70,272 B (DeepSeek-V3 in bf16); the same on every GPU."""
        assert self.V3.kv_bytes_per_token == 61 * 576 * 2 == 70_272
        assert self.LITE.kv_bytes_per_token == 27 * 576 * 2
        assert self.V3.gpu_kv_bytes_per_token(Parallel(16)) == 70_272
        assert self.V3.with_dtypes(kv_dtype="fp8").kv_bytes_per_token == 70_272 // 2

    @pytest.mark.parametrize("dtype", ["int8", "int4"])
    def test_scales_per_head_have_no_place(self, dtype: str) -> None:
        with pytest.raises(InputError, match=f"an {dtype} KV cache keeps scales per head.*fp32, fp16, bf16, fp8$"):
            self.LITE.with_dtypes(kv_dtype=dtype)

    def test_decode_reads_the_latent_once_for_few_heads(self) -> None:
        """16 heads: 1,152 B bind, at the rate of decode attention."""
        more = Shape(decodes=1, decode_context=1 + 10_000)
        name = "decode attention"
        seconds = term(self.LITE, name, more) - term(self.LITE, name, Shape(decodes=1, decode_context=1))
        assert seconds == pytest.approx(10_000 * 27 * 1152 / (EFF.decode_attention_memory * 3.35e12))

    def test_decode_computes_for_many_heads(self) -> None:
        """128 heads: 2 x 128 x (2 x 512 + 64) FLOPs a token of context bind."""
        more = Shape(decodes=1, decode_context=1 + 10_000)
        name = "decode attention"
        seconds = term(self.V3, name, more) - term(self.V3, name, Shape(decodes=1, decode_context=1))
        assert seconds == pytest.approx(10_000 * 61 * 2 * 128 * 1088 / (0.66 * 989.4e12))

    def test_prefill_expands_keys_and_values(self) -> None:
        """Pairs cost 2 x (192 + 128) FLOPs a head; a chunk expands the latents of its past again."""
        name = "prefill attention"
        first, later = (term(self.LITE, name, Shape(((4096, past),))) for past in (0, 4096))
        pairs_s = 4096 * 4096 * 16 * 2 * 320 / (EFF.prefill_attention_compute * 989.4e12)
        expand_s = 4096 * 2 * 512 * 16 * 256 / (EFF.gemm_compute * EFF.sustained_compute * 989.4e12)
        read_s = 4096 * (2 * 16 * 320 * 2 + 1152) / (0.89 * 3.35e12)
        assert later - first == pytest.approx(27 * (pairs_s + expand_s + read_s))

    def test_layers_with_and_without_experts(self) -> None:
        """3 dense layers of 18,432 and 58 with a shared expert of 2,048."""
        terms = Roofline(self.V3, H100).explain(PROMPT)
        assert {"mlp up", "shared expert up", "expert up", "latent up", "latent norms"} <= set(terms)
        shared = terms["shared expert up"].seconds / 58
        assert terms["mlp up"].seconds / 3 > 5 * shared
        every = Roofline(replace(self.V3, leading_dense_layers=0), H100).explain(PROMPT)
        for name in ("expert up", "router", "shared expert up", "expert combine"):
            assert terms[name].seconds / every[name].seconds == pytest.approx(58 / 61)
        assert "mlp up" not in every

    def test_a_run(self) -> None:
        result = api.run(trace="chatbot_arena.jsonl", limit=20, model="deepseek-v2-lite", rate=20.0)
        assert result.summary["requests"]["completed"] == 20


class TestOffload:
    LAYER_BYTES = 2 * (LAYER_PARAMETERS + 2 * 4096)
    RATE = 64e9 * 0.85

    def wait(self, shape: Shape, offload: Offload, model: ModelSpec = LLAMA) -> dict[str, Term]:
        return Roofline(model, H100, offload=offload).explain(shape)

    def test_a_small_step_waits_for_its_weights(self) -> None:
        """32 layers of 436 MB at 54.4 GB/s are 0.26 s, however little is computed."""
        cost = Roofline(LLAMA, H100, offload=Offload(weight_layers=32))
        assert device_s(cost, DECODE) == pytest.approx(32 * self.LAYER_BYTES / self.RATE)
        whole_s = device_s(Roofline(LLAMA, H100), DECODE)
        assert cost.explain(DECODE)["offload wait"].seconds == pytest.approx(device_s(cost, DECODE) - whole_s)

    def test_a_large_step_hides_its_weights(self) -> None:
        shape = Shape(((8192, 0),) * 2)
        assert "offload wait" not in self.wait(shape, Offload(weight_layers=8))
        assert device_s(Roofline(LLAMA, H100, offload=Offload(weight_layers=8)), shape) == device_s(
            Roofline(LLAMA, H100), shape
        )

    def test_attended_kv_moves_in_and_new_kv_out(self) -> None:
        """A row moves its context; a slice its past and its own tokens: 4 KiB a token and layer."""
        shape = Shape(((100, 2000), (7, 0)), 10, 50_000)
        cost = Roofline(LLAMA, H100, offload=Offload(kv_layers=32))
        assert device_s(cost, shape) == pytest.approx(32 * 4096 * (2107 + 50_000) / self.RATE)

    def test_full_layers_are_moved_before_those_with_a_window(self) -> None:
        gemma = load_model("gemma-2-9b")
        shape = Shape(((50, 9000),), 10, 500_000, 0, 0, 40_960, 0)
        cost = Roofline(gemma, H100, offload=Offload(kv_layers=30))
        tokens = 21 * (9050 + 500_000) + 9 * (4096 + 50 + 40_960)
        assert device_s(cost, shape) == pytest.approx(tokens * 2 * 8 * 256 * 2 / self.RATE)

    def test_swaps_share_the_link(self) -> None:
        shape = DECODE._replace(swapped_bytes=10**9)
        cost = Roofline(LLAMA, H100, offload=Offload(weight_layers=32))
        floor_s = Efficiency().small_kernel_floor_s
        assert device_s(cost, shape) == pytest.approx(device_s(cost, DECODE) + 1e9 / self.RATE + floor_s)

    def test_a_step_that_computes_nothing_streams_nothing(self) -> None:
        cost = Roofline(LLAMA, H100, offload=Offload(32, 32))
        for shape in (Shape(), Shape(copied_bytes=10**6), Shape(swapped_bytes=10**6)):
            assert cost.span_s(shape, 2) == Roofline(LLAMA, H100).span_s(shape, 2)

    @given(st.integers(0, 32), st.integers(0, 32), st.integers(0, 32), st.integers(0, 32))
    def test_more_layers_away_take_longer_and_leave_more_room(self, w: int, kv: int, more_w: int, more_kv: int) -> None:
        less, more = Offload(min(w, more_w), min(kv, more_kv)), Offload(max(w, more_w), max(kv, more_kv))
        for shape in (DECODE, PROMPT):
            shorter, longer = (device_s(Roofline(LLAMA, H100, offload=one), shape) for one in (less, more))
            assert device_s(Roofline(LLAMA, H100), shape) <= shorter <= longer
        blocks = [kv_capacity(LLAMA, H100, offload=one).blocks for one in (None, less, more)]
        assert blocks == sorted(blocks)

    def test_memory_by_hand(self) -> None:
        """All but the buffers of two layers leaves the GPU: weights of 20, KV of 30 layers."""
        found = kv_capacity(LLAMA, H100, offload=Offload(22, 32))
        assert found.weight_bytes == LLAMA.weight_bytes - 20 * self.LAYER_BYTES
        assert found.block_bytes == 16 * 2 * 4096
        assert Offload(22, 32).host_bytes(LLAMA, SINGLE, 1000) == 22 * self.LAYER_BYTES + 1000 * 32 * 4096
        assert Offload(22, 32).host_bytes(LLAMA, Parallel(4), 1000) * 4 == pytest.approx(
            Offload(22, 32).host_bytes(LLAMA, SINGLE, 1000), rel=1e-3
        )

    def test_the_first_two_layers_save_nothing(self) -> None:
        for away in (Offload(1, 1), Offload(2, 2)):
            assert kv_capacity(LLAMA, H100, offload=away) == kv_capacity(LLAMA, H100)

    def test_a_model_that_does_not_fit_comes_to_fit(self) -> None:
        model = load_model("llama-3.1-70b")
        with pytest.raises(InputError, match="does not fit"):
            kv_capacity(model, H100)
        assert kv_capacity(model, H100, offload=Offload(weight_layers=60)).blocks > 1000

    def test_the_last_layers_go_first(self) -> None:
        """Of DeepSeek-V3 the first three, dense and small, stay longest."""
        model = load_model("deepseek-v3")
        one, all_but_dense, all_layers = (Offload(n).host_weight_bytes(model, SINGLE) for n in (1, 58, 61))
        assert all_but_dense == 58 * one
        assert all_layers - all_but_dense < one
        assert all_layers < model.weight_bytes

    def test_host_memory_bounds_the_cache(self) -> None:
        away = {"kv_layers": 32, "host_gib": 10.0}
        parts = assemble(build({"offload": away, "kv": {"allow_short": True}}))
        assert parts.pool.blocks == int(10 * 2**30 / (16 * 32 * 4096))
        assert parts.offloaded_bytes == parts.pool.tokens * LLAMA.kv_bytes_per_token
        parts = assemble(build({"offload": {**away, "host_gib": 0.0}}))
        assert parts.offloaded_bytes > 100 * 2**30
        assert assemble(build({})).offloaded_bytes == 0

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ({"offload": {"weight_layers": 33}}, "offload.weight_layers is 33; llama-3.1-8b has 32 layers"),
            ({"offload": {"kv_layers": 33}}, "offload.kv_layers is 33"),
            ({"offload": {"kv_layers": -1}}, "offload.kv_layers is -1; it must be at least 0"),
            ({"offload": {"host_gib": -3.0, "kv_layers": 1}}, "offload.host_gib is -3.0"),
            ({"offload": {"weight_layers": 30, "host_gib": 1.0}}, r"1.0 GiB of host memory.* need 12.2 GiB"),
            (
                {"offload": {"kv_layers": 32, "host_gib": 1.0}, "kv": {"blocks": 1000}},
                "KV of 16000 tokens need 2.0 GiB",
            ),
            ({"offload": {"kv_layers": 3}, "kv": {"swap_gib": 1.0}}, "exclude one another"),
        ],
    )
    def test_impossible_settings_are_refused(self, tables: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            assemble(build(tables))

    def test_a_run(self) -> None:
        settings: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 20, "rate": 20.0}
        here, away = (api.run(**{**settings, "offload.weight_layers": layers}) for layers in (0, 32))
        assert away.summary["tpot_s"]["mean"] > 0.25 > here.summary["tpot_s"]["mean"]


def test_multi_query_and_grouped_heads_against_the_whole() -> None:
    whole = load_model("llama-2-7b")
    assert whole.heads == whole.kv_heads == 32
    per_token = {heads: replace(whole, kv_heads=heads).kv_bytes_per_token for heads in (32, 8, 1)}
    assert per_token[32] == 32 * per_token[1] == 4 * per_token[8]
