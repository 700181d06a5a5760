"""Parameter counts, KV bytes and tensor parallelism against published numbers and hand arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model, names
from sim.specs.model import AttentionWindow, ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

GIB = 2**30

PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "opt-13b": 12_853_473_280,
    "vicuna-13b": 13_015_864_320,
    "mistral-7b-v0.1": 7_241_732_096,
    "gemma-2-9b": 9_241_705_984,
    "deepseek-v2-lite": 15_706_484_224,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    assert load_model(name).parameters == parameters


def test_opt_sizes_are_those_of_its_names() -> None:
    """No exact count is published for these; the paper rounds to billions."""
    assert load_model("opt-66b").parameters == pytest.approx(66e9, rel=0.01)
    assert load_model("opt-175b").parameters == pytest.approx(175e9, rel=0.01)


def test_gemma_as_its_reports_count() -> None:
    """Non-embedding parameters of arXiv 2408.00118, table 2; of 2503.19786, table 1, in millions, without images."""
    for name, parameters in (("gemma-2-9b", 8_324_201_984), ("gemma-2-27b", 26_047_480_320)):
        model = load_model(name)
        assert model.parameters - model.vocab * model.hidden == parameters
    third = load_model("gemma-3-27b")
    assert (third.parameters - third.vocab * third.hidden) // 10**6 == 25_599
    # The whole checkpoint has 27,432,406,640; SigLIP has 416,866,032 of them and what joins it 1152 x (5376 + 1).
    assert third.parameters == 27_432_406_640 - 416_866_032 - 1152 * 5377


def test_deepseek_by_hand() -> None:
    """V3: 671B, 37B active (arXiv 2412.19437); the sums below follow its table of sizes, matrix by matrix."""
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    norms = 1536 + 512 + 2 * 7168
    dense, expert, router = 3 * 7168 * 18432, 3 * 7168 * 2048, 256 * 7168 + 256
    model = load_model("deepseek-v3")
    layers = 61 * (attention + norms) + 3 * dense + 58 * (257 * expert + router)
    assert model.parameters == layers + 2 * 129_280 * 7168 + 7168
    assert model.parameters == pytest.approx(671e9, rel=1e-4)
    assert model.active_parameters == pytest.approx(37e9, rel=0.02)
    assert load_model("deepseek-v2-lite").active_parameters == pytest.approx(2.4e9 + 0.2e9, rel=0.05)


def test_active_parameters_of_experts() -> None:
    assert load_model("mixtral-8x7b").active_parameters == pytest.approx(12.9e9, rel=0.002)
    assert load_model("qwen3-30b-a3b").active_parameters == pytest.approx(3.3e9, rel=0.02)
    dense = load_model("llama-3.1-8b")
    assert dense.active_parameters == dense.parameters


def test_kv_bytes_by_hand() -> None:
    assert load_model("llama-2-7b").kv_bytes_per_token * 1024 == GIB // 2
    assert load_model("llama-2-13b").kv_bytes_per_token * 2048 == pytest.approx(1.5625 * GIB)
    grouped = load_model("llama-2-70b")
    assert grouped.kv_bytes_per_token * 2048 == 0.625 * GIB
    assert replace(grouped, kv_heads=64).kv_bytes_per_token * 2048 == 5 * GIB


def test_one_kv_head_divides_the_cache_by_the_heads_and_fp8_halves_it() -> None:
    model = load_model("llama-2-7b")
    assert replace(model, kv_heads=1).kv_bytes_per_token * 32 == model.kv_bytes_per_token
    assert replace(model, kv_heads=8).kv_bytes_per_token * 4 == model.kv_bytes_per_token
    assert model.with_dtypes(kv_dtype="fp8").kv_bytes_per_token * 2 == model.kv_bytes_per_token


def test_the_cache_follows_the_weights_unless_told() -> None:
    model = load_model("llama-3.1-8b")
    assert model.with_dtypes(dtype="fp16").kv_dtype == "fp16"
    assert model.with_dtypes(dtype="fp32", kv_dtype="fp8").kv_bytes_per_token * 2 == model.kv_bytes_per_token
    assert model.with_dtypes() == model
    assert model.with_dtypes(weights="int4").with_dtypes(dtype="fp16").weight_dtype == "int4"
    assert model.with_dtypes(dtype="fp16").weight_dtype == "fp16"


def test_flops_are_two_for_each_weight_in_a_matrix() -> None:
    model = load_model("llama-3.1-8b")
    embeddings = 2 * model.vocab * model.hidden
    norms = (2 * model.layers + 1) * model.hidden
    assert model.flops_per_token == 2 * (model.parameters - embeddings - norms)
    experts = load_model("mixtral-8x7b")
    vectors = 2 * experts.vocab * experts.hidden + (2 * experts.layers + 1) * experts.hidden
    assert experts.flops_per_token == 2 * (experts.active_parameters - vectors)


@given(st.sampled_from(names("models")), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_gpus_hold_the_model_together(name: str, tp: int) -> None:
    """What is split adds up to the model, and what is repeated never makes a share larger than the whole."""
    model = load_model(name)
    if not model.divides(Parallel(tp)):
        return
    share = model.gpu_parameters(Parallel(tp))
    assert model.parameters <= share * tp
    assert share <= model.parameters
    assert model.kv_bytes_per_token <= model.gpu_kv_bytes_per_token(Parallel(tp)) * tp
    first, *_, output = model.attention_gemms(Parallel(tp))
    assert (first.k, output.n) == (model.hidden, model.hidden)
    assert output.k * tp == model.heads * model.value_dim
    assert model.weight_bytes <= model.gpu_weight_bytes(Parallel(tp)) * tp
    assert model.gpu_weight_bytes(Parallel(tp)) <= model.weight_bytes


def test_kv_heads_are_repeated_beyond_their_number() -> None:
    model = load_model("llama-3.1-70b")
    assert model.gpu_kv_heads(Parallel(8)) == 1
    assert model.gpu_kv_heads(Parallel(16)) == 1
    assert model.gpu_kv_bytes_per_token(Parallel(16)) == model.gpu_kv_bytes_per_token(Parallel(8))


@pytest.mark.parametrize(("name", "tp"), [("llama-2-13b", 3), ("llama-3.1-8b", 3), ("opt-66b", 7), ("llama-2-7b", 0)])
def test_a_tp_that_does_not_divide_is_refused(name: str, tp: int) -> None:
    with pytest.raises(InputError, match="tp"):
        load_model(name).check_parallel(Parallel(tp))


def test_kinds_of_parallelism_multiply_and_experts_are_on_all_gpus_of_a_stage() -> None:
    split = Parallel(2, 3, 4, 8)
    assert (split.gpus, split.rank_gpus, split.expert_gpus, split.expert_cut) == (24, 6, 8, 1)
    assert Parallel(2, 3, 4).expert_cut == 8
    assert split.alone == Parallel(2, 3)
    assert str(split) == "tp = 2, pp = 3, dp = 4, ep = 8"
    with pytest.raises(InputError, match=r"^ep is 4; it is 1 .* or tp x dp = 8"):
        Parallel(2, 1, 4, 4)
    with pytest.raises(InputError, match=r"^redundant_experts is 1, and with ep = 1"):
        Parallel(8, redundant=1)
    with pytest.raises(InputError, match="parallel: pp = 0 must lie between 1"):
        Parallel(pp=0)


def test_the_refusal_lists_what_is_possible() -> None:
    with pytest.raises(InputError, match=r"tp = 3 GPUs; possible are 1, 2, 4, 8, 16, 32$"):
        load_model("llama-3.1-8b").check_parallel(Parallel(3))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"layers": 0}, "layers"),
        ({"hidden": -1}, "hidden"),
        ({"vocab": 10**12}, "vocab"),
        ({"kv_heads": 5}, "kv_heads"),
        ({"norm": "batch"}, "rms, layer"),
        ({"dtype": "int3"}, "fp32, fp16, bf16"),
        ({"experts": 4}, "experts_per_token"),
        ({"experts": 4, "experts_per_token": 5, "expert_ffn": 8}, "experts_per_token"),
        ({"ffn": 0}, "ffn"),
        ({"weights": "int3"}, "auto, fp32, fp16, bf16, fp8, int8, int4"),
        ({"kv_dtype": "int2"}, "fp32, fp16, bf16, fp8, int8, int4"),
        ({"weights": "int4", "dtype": "fp32"}, "int4 weights need fp16 or bf16"),
        ({"kv_dtype": "int4", "head_dim": 127}, "even head_dim"),
        ({"sliding_layers": 3}, "without sliding_window_tokens"),
        ({"sliding_window_tokens": 64, "sliding_layers": 33}, "sliding_layers"),
        ({"sliding_window_tokens": -1}, "sliding_window_tokens"),
        ({"leading_dense_layers": 1}, "leading_dense_layers"),
        ({"q_lora_rank": 8}, "without kv_lora_rank"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim and v_head_dim"),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}, "is not the sum"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=key):
        replace(load_model("llama-3.1-8b"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"memory_bytes": 80}, "memory_bytes"),
        ({"memory_bytes_per_s": 0.0}, "memory_bytes_per_s"),
        ({"fp16_flops_per_s": float("nan")}, "fp16_flops_per_s"),
        ({"link_bytes_per_s": -1.0}, "link_bytes_per_s"),
        ({"watts": float("inf")}, "watts"),
        ({"sms": 0}, "sms"),
    ],
)
def test_impossible_gpus_are_refused(changes: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=key):
        replace(load_gpu("h100"), **changes)  # type: ignore[arg-type]


def test_a_dtype_that_the_gpu_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="'v100' has no bf16"):
        load_gpu("v100").flops_per_s("bf16")
    assert load_gpu("v100").flops_per_s("fp16") == 125e12


def test_peers_talk_over_pcie_without_a_fabric() -> None:
    assert load_gpu("l4").peer_bytes_per_s == load_gpu("l4").pcie_bytes_per_s
    assert load_gpu("h100").peer_bytes_per_s == 450e9


def test_window_layers() -> None:
    assert load_model("llama-3.1-8b").attention_window is None
    assert load_model("mistral-7b-v0.1").attention_window == AttentionWindow(4096, 0, 32)
    mixed = load_model("gemma-3-27b")
    assert (mixed.full_layers, mixed.attention_window) == (10, AttentionWindow(1024, 0, 52))
    assert replace(load_model("llama-3.1-8b"), sliding_window_tokens=64).full_layers == 0
    assert AttentionWindow(1020, 4, 32).span_tokens == 1024


@pytest.mark.parametrize("wrong", [(0, 4, 1), (1, -1, 1), (1, 0, 0)])
def test_impossible_windows_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="attention window"):
        AttentionWindow(*wrong)


def test_specs_are_frozen() -> None:
    model: ModelSpec = load_model("opt-13b")
    with pytest.raises(AttributeError):
        model.layers = 1  # type: ignore[misc]
