"""Laws of the roofline, and published step times it must come near."""

from __future__ import annotations

import sys
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model, names
from sim.cost.attend import Affine
from sim.cost.efficiency import Efficiency
from sim.cost.gemm import Product, ProductRates
from sim.cost.kernels import Kernels
from sim.cost.offload import Offload
from sim.cost.roofline import NO_RANKS, Roofline, graph_tokens
from sim.cost.step import StepCost, advanced, device_seconds
from sim.cost.terms import PRODUCTS, kind_of
from sim.engine.batch import Shape
from sim.specs.model import AttentionWindow
from sim.specs.parallel import Parallel
from traces.schema import InputError

# One of each kind: GQA, MHA with biases, experts, split over GPUs, eager, so small that launches bind, windows in some
# and in all layers, a latent cache, quantised weights and cache, and layers in host memory.
COSTS: dict[str, Roofline] = {
    "llama": Roofline(load_model("llama-3.1-8b"), load_gpu("h100")),
    "opt": Roofline(load_model("opt-13b"), load_gpu("a100-40")),
    "experts": Roofline(load_model("qwen3-30b-a3b"), load_gpu("h200")),
    "split": Roofline(load_model("llama-3.1-70b"), load_gpu("l40s"), parallel=Parallel(4)),
    "eager": Roofline(load_model("llama-3.1-8b"), load_gpu("b200"), cuda_graphs=False),
    "tiny": Roofline(load_model("tiny-llama"), load_gpu("h100"), max_graph_tokens=100),
    "window": Roofline(load_model("gemma-2-9b"), load_gpu("h100")),
    "sinks": Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), window=AttentionWindow(1020, 4, 32)),
    "latent": Roofline(load_model("deepseek-v3"), load_gpu("h200"), parallel=Parallel(8)),
    "quantised": Roofline(load_model("llama-2-70b").with_dtypes(kv_dtype="int4", weights="int4"), load_gpu("a100-80")),
    "weights away": Roofline(load_model("llama-3.1-8b"), load_gpu("a10g"), offload=Offload(weight_layers=4)),
    "all away": Roofline(load_model("gemma-2-9b"), load_gpu("l4"), offload=Offload(9, 30)),
}
ANY_COST = st.sampled_from(sorted(COSTS))
COUNTS = st.integers(0, 4) | st.integers(0, 600)
SLICES = st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 50_000)), max_size=4).map(tuple)
BYTES = st.just(0) | st.integers(1, 10**10)
ROUNDING = 1e-12


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    decodes = draw(COUNTS)
    context = draw(st.integers(decodes, decodes * 20_000)) if decodes else 0
    within = draw(st.integers(decodes, context)) if decodes else 0
    return Shape(draw(SLICES), decodes, context, draw(BYTES), draw(BYTES), within, draw(st.integers(0, decodes)))


def device_s(cost: StepCost, shape: Shape) -> float:
    return cost.span_s(shape, 1)[0][0]


def joining_s(cost: Roofline) -> float:
    """Decode attention prices rows as if all were as long as their mean: a short row may spare a long one the pass that
    joins the parts of its context."""
    return cost.model.layers * cost.efficiency.decode_split_s


@pytest.mark.parametrize("name", sorted(COSTS))
def test_sizes_that_are_priced_together_cost_what_each_costs_alone(name: str) -> None:
    cost = COSTS[name]
    often = cost.beside(NO_RANKS)
    for tokens in (*range(2999, 500, -7), *range(540, 0, -3)):
        shape = Shape(((tokens, 0),))
        assert device_s(often, shape) == device_s(cost.beside(NO_RANKS), shape), f"{tokens} tokens"


@given(ANY_COST, shapes())
def test_positive_finite_and_the_sum_of_its_terms(name: str, shape: Shape) -> None:
    cost = COSTS[name]
    seconds, host_s = device_s(cost, shape), cost.span_s(shape, 1)[1]
    terms = cost.explain(shape)
    assert device_seconds(terms.values()) == pytest.approx(seconds, rel=ROUNDING, abs=0)
    assert terms["host"].on_host
    assert terms["host"].seconds == host_s
    if shape.prefills or shape.decodes:
        counted_s = cost.counted_s(shape)
        assert {name for name in terms if kind_of(name) == PRODUCTS} <= counted_s.keys()
        assert all(terms[name].seconds == counted_s[name] for name in counted_s.keys() & terms.keys())
    assert {term.source for term in terms.values()} <= {"roofline", "fitted"}
    if shape == Shape():
        assert (seconds, host_s) == (0.0, 0.0)
    else:
        assert 0.0 < seconds < 1e6
        assert host_s > 0.0


@given(ANY_COST, SLICES.filter(bool))
def test_the_attention_of_prompts_costs_what_is_explained(name: str, prefills: tuple[tuple[int, int], ...]) -> None:
    term = COSTS[name].explain(Shape(prefills)).get("prefill attention")
    assert COSTS[name].prefill_attention_s(prefills) == (term.seconds if term else 0.0)


@given(ANY_COST, shapes(), st.integers(1, 300))
def test_a_span_is_its_steps_to_the_bit(name: str, shape: Shape, repeats: int) -> None:
    cost = COSTS[name]
    seconds, host_s = cost.span_s(shape, repeats)
    assert len(seconds) == repeats
    assert {type(step_s) for step_s in seconds} == {float}
    for i in {0, 1, repeats // 2, repeats - 1} & set(range(repeats)):
        assert cost.span_s(advanced(shape, i), 1) == ([seconds[i]], host_s)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_lists_and_vectors_give_the_same_bits(name: str) -> None:
    """Both sides of the length from which numpy takes over, step by step."""
    for repeats in (63, 64, 65, 200):
        shape = Shape(decodes=7, decode_context=7 * 311, decode_window_context=2000, decode_window_growth=3)
        singles = [device_s(COSTS[name], advanced(shape, i)) for i in range(repeats)]
        assert COSTS[name].span_s(shape, repeats)[0] == singles


@given(ANY_COST, shapes(), st.data())
def test_more_work_never_costs_less(name: str, shape: Shape, data: st.DataObject) -> None:
    """Monotone in tokens, past, context, rows, slices and bytes, one at a time."""
    cost = COSTS[name]
    more = data.draw(st.integers(1, 3000))
    larger = [
        shape._replace(
            decodes=shape.decodes + more,
            decode_context=shape.decode_context + more,
            decode_window_context=shape.decode_window_context + more,
        ),
        shape._replace(copied_bytes=shape.copied_bytes + more),
        shape._replace(swapped_bytes=shape.swapped_bytes + more),
        shape._replace(prefills=((more, 0), *shape.prefills)),
    ]
    if shape.decodes:
        larger.append(shape._replace(decode_context=shape.decode_context + more))
        larger.append(shape._replace(decode_window_context=shape.decode_window_context + more))
    if shape.prefills:
        (new, past), *rest = shape.prefills
        larger.append(shape._replace(prefills=((new + more, past), *rest)))
        larger.append(shape._replace(prefills=((new, past + more), *rest)))
    here, host_s = cost.span_s(shape, 1)
    for at, other in enumerate(larger):
        there, there_host_s = cost.span_s(other, 1)
        assert there[0] >= here[0] * (1 - ROUNDING) - (0.0 if at else joining_s(cost))
        assert there_host_s >= host_s


@given(ANY_COST, shapes(), shapes())
def test_a_merged_batch_costs_at_least_each_part_and_at_most_both(name: str, one: Shape, other: Shape) -> None:
    cost = COSTS[name]
    merged = Shape(*(a + b for a, b in zip(one, other, strict=True)))  # type: ignore[operator]
    parts = [device_s(cost, part) for part in (one, other)]
    assert device_s(cost, merged) >= max(parts) * (1 - ROUNDING) - joining_s(COSTS[name])
    if name in {"llama", "eager"} and min(len(one.prefills), len(other.prefills)) > 0:
        assert device_s(cost, merged) <= sum(parts) * (1 + ROUNDING) / cost.efficiency.sustained_compute


@given(st.sampled_from(["llama-3.1-70b", "qwen3-30b-a3b", "opt-66b", "qwen3-32b"]), shapes())
def test_tensor_parallelism_shrinks_every_term_but_its_own(name: str, shape: Shape) -> None:
    assume(shape.prefills or shape.decodes)
    model, gpu = load_model(name), load_gpu("h100")
    whole, split = (Roofline(model, gpu, parallel=Parallel(tp)).explain(shape) for tp in (1, 2))
    assert {"all-reduce", "logits gather"} <= set(split) - set(whole)
    for term in set(whole) - {"launch gaps"}:
        assert split[term].seconds <= whole[term].seconds * (1 + ROUNDING)
    assert split["mlp up" if name != "qwen3-30b-a3b" else "expert up"].seconds > 0


def test_a_large_gemm_halves_with_tp() -> None:
    model, gpu = load_model("llama-3.1-70b"), load_gpu("h100")
    prompt = Shape(prefills=((8192, 0),))
    for term in ("mlp up", "prefill attention"):
        whole, split = (Roofline(model, gpu, parallel=Parallel(tp)).explain(prompt)[term].seconds for tp in (1, 4))
        assert split == pytest.approx(whole / 4, rel=0.05)


@given(shapes())
def test_what_was_asked_before_changes_nothing(shape: Shape) -> None:
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h100")
    assert Roofline(model, gpu).span_s(shape, 3) == COSTS["llama"].span_s(shape, 3)


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.cost.roofline.MEMO_SIZE", 10)
    cost = Roofline(load_model("tiny-llama"), load_gpu("h100"))
    for n in range(1, 100):
        cost.span_s(Shape(decodes=n, decode_context=n), 1)
        cost.span_s(Shape(prefills=((n, 0),) * n), 1)
    assert len(cost._token_memo) == len(cost._row_memo) == len(cost._decode_memo) == 10


class TestPublished:
    def test_llama_on_h100_batch_1(self) -> None:
        """6.44 ms + 4.37e-5 ms per token of context, vLLM bf16 (vLLM blog, 2026-04-22, fp8 KV cache)."""
        empty, full = (device_s(COSTS["llama"], Shape(decodes=1, decode_context=c)) for c in (1, 10_001))
        sys.stdout.write(f"\nLlama-3.1-8B on H100, one request: {1e3 * empty:.2f} ms a token, published 6.44 ms")
        assert empty == pytest.approx(6.44e-3, rel=0.05)
        assert (full - empty) / 10_000 == pytest.approx(4.37e-8, rel=0.25)

    def test_llama_on_h200_batch_1(self) -> None:
        """4.7 to 4.8 ms: 15.0 GB at 4.24 TB/s and about 1.2 ms of floors."""
        cost = Roofline(load_model("llama-3.1-8b"), load_gpu("h200"))
        assert device_s(cost, Shape(decodes=1, decode_context=1)) == pytest.approx(4.75e-3, rel=0.05)

    def test_eager_decode_step(self) -> None:
        """8.23 (FlashInfer) to 9.28 ms (Triton) without CUDA graphs, 7.06 to 7.35 with (sglang PR 1401)."""
        cost = Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), cuda_graphs=False)
        assert 7.5e-3 < device_s(cost, Shape(decodes=1, decode_context=1)) < 9.5e-3

    @pytest.mark.parametrize(("gpu", "least", "most"), [("h100", 600, 790), ("h200", 600, 790), ("a100-80", 220, 300)])
    def test_large_gemm(self, gpu: str, least: float, most: float) -> None:
        spec = load_gpu(gpu)
        seconds = Kernels(spec, Efficiency.of(spec), "bf16", "bf16").gemm_s(8192, 8192, 8192)
        assert least < 2 * 8192**3 / seconds / 1e12 < most

    def test_prefill_attention_at_8k(self) -> None:
        """557 (batch 1) to 680 (batch 4) TFLOP/s of causal FLOPs on H200, vLLM 0.22 FA3; 512 tokens: 132."""
        spec = load_gpu("h200")
        kernels = Kernels(spec, Efficiency.of(spec), "bf16", "bf16")
        attention = kernels.prefill_attention(32, 8, 128)
        floor_s = kernels.eff.prefill_attention_floor_s
        rates = {n: 2 * 32 * n * n * 128 / (floor_s + attention.launch_s(((n, 0),))) / 1e12 for n in (512, 2048, 8192)}
        assert 95 < rates[512] < 160
        assert 390 < rates[2048] < 500
        assert 540 < rates[8192] < 690


@pytest.mark.parametrize("name", names("models"))
def test_every_model_has_a_price_on_every_gpu(name: str) -> None:
    model = load_model(name)
    for gpu in map(load_gpu, names("gpus")):
        usable = model if getattr(gpu, f"{model.dtype}_flops_per_s") else model.with_dtypes("fp16")
        cost = Roofline(usable, gpu)
        assert 0 < device_s(cost, Shape(((100, 0),), 3, 300, 0, 0, 300, 3)) < 60


def test_graph_sizes_are_those_that_vllm_captures() -> None:
    captured = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    for tokens in range(1, 513):
        assert graph_tokens(tokens) == next(size for size in captured if size >= tokens)


def test_graph_padding_and_its_end() -> None:
    cost = COSTS["llama"]
    padded, full = (cost.explain(Shape(decodes=n, decode_context=n)) for n in (505, 512))
    assert padded["mlp up"] == full["mlp up"]
    assert padded["decode attention"] < full["decode attention"]
    beyond = cost.explain(Shape(decodes=513, decode_context=513))
    assert beyond["mlp up"] > full["mlp up"]
    assert "launch gaps" not in full


def test_small_steps_wait_for_launches() -> None:
    shape = Shape(decodes=1, decode_context=1)
    gaps = COSTS["eager"].explain(shape)["launch gaps"].seconds
    assert gaps > 0.3 * device_s(COSTS["eager"], shape)
    assert "launch gaps" in COSTS["tiny"].explain(Shape(prefills=((16, 0),)))
    assert "launch gaps" not in COSTS["eager"].explain(Shape(prefills=((8192, 0),)))


def test_few_tokens_touch_few_experts() -> None:
    cost = COSTS["experts"]
    seconds = [cost.explain(Shape(decodes=n, decode_context=n))["expert up"].seconds for n in (1, 4, 16, 64, 512)]
    assert seconds == sorted(seconds)
    floors = 48 * Efficiency.of(load_gpu("h200")).expert_floor_s
    # One token visits 8 of 128 experts; 512 tokens visit all.
    assert (seconds[4] - floors) / (seconds[0] - floors) == pytest.approx(16, rel=0.3)


class TestEfficiency:
    def test_every_constant_has_a_source_and_can_be_overridden(self) -> None:
        gpu = load_gpu("h100")
        for constant in Efficiency.of(gpu).describe():
            assert len(constant.source) > 15
            changed = Efficiency.of(gpu, {constant.name: constant.value / 2})
            described = {item.name: item for item in changed.describe()}
            assert described[constant.name] == (constant.name, constant.value / 2, "given in the scenario")

    @pytest.mark.parametrize("key", [item.name for item in fields(Efficiency) if item.metadata])
    def test_every_constant_matters(self, key: str) -> None:
        """Changed by a third or a half, it changes the price of some step: no constant is accepted and ignored."""
        if key.startswith("host_gap_"):
            pytest.skip("between steps: tests/serving/test_host_gap.py")
        kv_dtype = key.rsplit("_", 1)[1]
        network = key.startswith("network_")
        model = load_model("deepseek-v3" if network or key == "decode_attention_compute" else "qwen3-30b-a3b")
        if kv_dtype == "64":
            model = load_model("llama-3.2-1b")
        narrow = key == "quantise_row_s" or (key.endswith("_fp8") and not key.startswith("decode"))
        weights = "fp8" if narrow else None
        if weights is None and kv_dtype in {"fp8", "int8", "int4"}:
            model = model.with_dtypes(kv_dtype=kv_dtype)
        model = model.with_dtypes(weights=weights)
        gpu = load_gpu("mi300x" if key == "decode_attention_compute" else "h100")
        value = getattr(Efficiency(), key)
        worse = value * (1.5 if key.endswith("_s") else 0.66)
        shapes = [
            Shape(decodes=200, decode_context=200_000),
            Shape(((8000, 0),), swapped_bytes=10**9, copied_bytes=10**9),
            Shape(((40_000, 0),)),
            Shape(((16, 16_000),)),
            Shape(decodes=1, decode_context=1),
        ]
        split = Parallel(16 if network else 2)
        if key == "gemm_split_s":  # few columns on each GPU leave SMs idle
            model, split = load_model("llama-3.1-8b"), Parallel(8)
        for graphs in (True, False):
            usual, other = (
                Roofline(model, gpu, parallel=split, cuda_graphs=graphs, efficiency=Efficiency.of(gpu, values))
                for values in ({}, {key: worse})
            )
            for shape in shapes:
                if usual.span_s(shape, 1) != other.span_s(shape, 1):
                    return
        pytest.fail(f"{key} changes no price")

    def test_a_gpu_knows_better_and_the_scenario_best(self) -> None:
        gpu = load_gpu("mi300x")
        assert Efficiency.of(gpu).gemm_compute == 0.47
        assert Efficiency.of(gpu, {"gemm_compute": 0.6}).gemm_compute == 0.6
        assert dict(Efficiency.of(gpu).origins)["gemm_compute"].startswith("SemiAnalysis")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"gemm": 0.5}, "unknown efficiency 'gemm'; known are gemm_compute"),
            ({"origins": 0.5}, "unknown efficiency 'origins'"),
            ({"gemm_compute": 0.0}, "gemm_compute = 0.0 must be above 0, at most 1"),
            ({"gemm_compute": 1.01}, "at most 1"),
            ({"gemm_floor_s": -1.0}, "at least 0"),
            ({"gemm_floor_s": float("nan")}, "finite"),
            ({"gemm_floor_s": "fast"}, "finite"),
            ({"gemm_floor_s": True}, "finite"),
        ],
    )
    def test_impossible_values_are_refused(self, values: dict[str, float], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Efficiency.of(load_gpu("h100"), values)


def test_provenance_names_the_data_sheet_and_what_is_left_out() -> None:
    described = {item.name: item for item in COSTS["split"].describe()}
    assert described["memory_bytes_per_s"].value == 864e9
    assert "L40S data sheet" in described["memory_bytes_per_s"].source
    assert described["peer_bytes_per_s"].value == load_gpu("l40s").pcie_bytes_per_s
    described = {item.name: item for item in COSTS["all away"].describe()}
    assert described["window_tokens"][1:] == (4096, "attended at most in 21 of 42 layers")
    assert (described["offload_weight_layers"].value, described["offload_kv_layers"].value) == (9, 30)
    named = {item.name for item in Roofline(load_model("deepseek-v3"), load_gpu("h100")).describe()}
    assert "fp8_flops_per_s" in named
    assert "fp8_flops_per_s" not in {item.name for item in COSTS["llama"].describe()}


def test_impossible_settings_are_refused() -> None:
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h100")
    with pytest.raises(InputError, match="tp = 3"):
        Roofline(model, gpu, parallel=Parallel(3))
    with pytest.raises(InputError, match="max_graph_tokens"):
        Roofline(model, gpu, max_graph_tokens=0)
    with pytest.raises(InputError, match="no bf16"):
        Roofline(model, load_gpu("v100"))


@given(st.integers(1, 500), st.integers(0, 500))
def test_causal_pairs_are_counted_one_by_one(new: int, past: int) -> None:
    pairs = sum(past + i for i in range(1, new + 1))
    assert Affine(1.0, 0.0, 0.0).slice_s(new, past) == pairs


@given(st.floats(1, 20_000) | st.integers(1, 20_000), st.integers(1, 20_000), st.integers(64, 20_000))
def test_the_best_way_of_a_gemm_is_the_least_of_all(m: float, k: int, n: int) -> None:
    rates = ProductRates(9e14, 3e12, 2e13, 132, 2e-6, 1.3e-6, 3e-6, 0.3, 0.8, 1e-3)
    product = Product(rates, k, n, 2 * k * n, 2, 2)
    assert product.arithmetic_s(m) == product.arithmetic_s(m) == rates.sustain_s(min(product.ways_s(m)))


def test_gemm_by_hand() -> None:
    """One token: the weights' bytes bind. 8,192: 128 x 64 tiles of 64 x 64 are 82 waves on 100 SMs, which beat 11 waves
    of 1,024 tiles eight times as large."""
    rates = ProductRates(1e15, 1e12, 1e16, 100, 1e-6, 0.0, 1.0, 0.0, 1.0, 1.0)
    product = Product(rates, 4096, 4096, 2 * 4096 * 4096, 2, 2)
    assert product.seconds(1) == pytest.approx(1e-6 + 2 * (4096 * 4096 + 2 * 4096) / 1e12)
    assert product.seconds(8192) == pytest.approx(1e-6 + 82 * 2 * 64 * 64 * 4096 * 100 / 1e15)
    # Half of the shorter of both shows, and long products run at half of the rate.
    slow = Product(replace(rates, exposed=0.5, sustained=0.5, sustained_after_s=0.0), 4096, 4096, 2 * 4096**2, 2, 2)
    arithmetic_s, memory_s = 2 * 82 * 2 * 64 * 64 * 4096 * 100 / 1e15, 2 * (4096 * 4096 + 2 * 8192 * 4096) / 1e12
    assert slow.seconds(8192) == pytest.approx(1e-6 + arithmetic_s + 0.5 * memory_s)
