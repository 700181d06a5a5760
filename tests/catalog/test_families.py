"""Every family's parameters against transformers' class on the meta device; KV and state bytes by hand arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_classes import count_of, read

from sim.catalog import load_model, names
from sim.specs.blocks import KvKind
from sim.specs.model import AttentionWindow
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    **{"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2},
}
LATENT = {
    **ROUTED,
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12},
    **{"num_key_value_heads": 8},
}
INDEX = {**LATENT, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 32}
DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12},
    **{"head_dim": 16, "shared_expert_intermediate_size": 40},
}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
MAMBA = {
    **{"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16, "head_dim": 16, "n_group": 1},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "topk_group": 1},
    **{"moe_shared_expert_intermediate_size": 40, "num_hidden_layers": None},
}
MIMO = {
    **{"head_dim": 24, "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    **{"n_group": 1, "topk_group": 1, "sliding_window": 32, "n_shared_experts": None},
    **{"layer_types": ["full_attention", *["sliding_attention"] * 4, "full_attention"]},
    **{"mlp_layer_types": ["dense", *["sparse"] * 5]},
}
CLASSES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in ("llama", "granite", "mistral", "qwen2", "phi3", "glm", "olmo2", "smollm3", "starcoder2")),
    *((kind, {"head_dim": 16}) for kind in ("qwen3", "gemma", "gemma2", "gemma3_text", "arcee", "ministral")),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    ("mixtral", LOCAL),
    ("phimoe", {**LOCAL, "attention_bias": True, "lm_head_bias": True}),
    ("granitemoe", LOCAL),
    ("olmoe", {"num_experts": 8, "num_experts_per_tok": 2}),
    ("gpt_oss", {**LOCAL, "head_dim": 16, "sliding_window": 32}),
    ("minimax_m2", {**LOCAL, "head_dim": 16}),
    ("deepseek_v2", {**LATENT, "num_experts_per_tok": 2}),
    ("deepseek_v3", LATENT),
    ("deepseek_v32", INDEX),
    ("glm_moe_dsa", {**INDEX, "indexer_types": ["full", "full", "shared", "shared", "full", "shared"]}),
    ("glm4", {"head_dim": 16, "attention_bias": True}),
    ("glm4_moe", {**ROUTED, "head_dim": 16, "attention_bias": True, "use_qk_norm": True}),
    ("dots1", {**ROUTED, "head_dim": 16}),
    ("cohere", {}),
    ("cohere2", {"head_dim": 16}),
    ("olmo3", {"sliding_window": 32}),
    ("exaone4", {"sliding_window": 32, "sliding_window_pattern": 3}),
    ("seed_oss", {"head_dim": 16}),
    ("apertus", {}),
    ("gpt_neox", {"num_key_value_heads": None}),
    ("nemotron", {}),
    ("stablelm", {"use_qkv_bias": True}),
    ("phi", {"num_key_value_heads": 8}),
    ("qwen3_next", {**EXPERTS, **DELTA}),
    ("qwen3_next", {**EXPERTS, **DELTA, "mlp_only_layers": [1, 4]}),
    ("qwen3_5_text", DELTA),
    ("qwen3_5_moe_text", {**EXPERTS, **DELTA}),
    ("nemotron_h", {**MAMBA, "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "moe"]}),
    ("nemotron_h", {**MAMBA, "moe_latent_size": 24, "layers_block_type": ["mamba", "moe", "attention", "mamba"]}),
    ("gemma4_text", {"hidden_size_per_layer_input": 0, "head_dim": 16, "global_head_dim": 32}),
    (
        "gemma4_text",
        {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "head_dim": 16, "global_head_dim": 32}
        | {"num_hidden_layers": 12, "num_kv_shared_layers": 4, "use_double_wide_mlp": True},
    ),
    (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 48, "head_dim": 16}
        | {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    ("llama4_text", {**LOCAL, "head_dim": 16, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}),
    ("mimo_v2_flash", MIMO),
]


@pytest.mark.parametrize(("kind", "changes"), CLASSES)
def test_parameters_are_those_of_the_class(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    expected, table = count_of(kind, changes)
    model = read(tmp_path, table)
    assert model.parameters == expected
    assert sum(kind.layers for kind in model.kv_kinds()) <= model.layers


def test_deepseek_v4_and_kimi_linear(tmp_path: Path) -> None:
    """Classes whose configs a checkpoint writes differently; their buffers of hashes are no parameters."""
    v4 = {
        **{"head_dim": 32, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 12, "qk_rope_head_dim": 8, "hc_mult": 2},
        **{"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "num_hash_layers": 1, "sliding_window": 16},
        **{"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
        **{"compress_ratios": [0, 0, 4, 128, 4, 128], "num_key_value_heads": 1, "intermediate_size": None},
    }
    expected, table = count_of("deepseek_v4", v4)
    model = read(tmp_path, {**table, **v4, "rope_parameters": None})
    assert model.parameters == expected
    assert read(tmp_path, {**table, "rope_parameters": None}) == model
    # Two layers compress 4 to 1 (with an index key of 16 in fp8 and its scale), two 128 to 1; all keep 16 tokens.
    assert model.kv_bytes_per_token == 2 * (-(-(32 * 2 + 16 + 4) // 4)) + 2 * (-(-64 // 128))
    assert model.state_bytes == 6 * 16 * 32 * 2
    assert "hyper-connections" in model.unpriced
    kimi = {
        **{"kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12},
        **{"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 1},
        **{"first_k_dense_replace": 1, "num_key_value_heads": 8, "num_expert_group": 1, "topk_group": 1},
        "linear_attn_config": {
            **{"full_attn_layers": [4], "kda_layers": [1, 2, 3, 5, 6], "num_heads": 4, "head_dim": 8},
            **{"short_conv_kernel_size": 4},
        },
    }
    expected, table = count_of("kimi_linear", kimi)
    model = read(tmp_path, {**table, **kimi})
    assert model.parameters == expected
    assert model.kv_bytes_per_token == (16 + 4) * 2
    assert model.state_bytes == 5 * (4 * 8 * 8 * 4 + 3 * 32 * 3 * 2)


class TestKept:
    """KV and state bytes by hand."""

    def test_gated_delta_nets(self) -> None:
        """Qwen3-Next: 12 layers of 2 KV heads of 256; 36 of 32 matrices of 128 x 128 and 8,192 channels, 3 tokens."""
        model = load_model("qwen3-next-80b-a3b")
        assert model.kv_bytes_per_token == 12 * 2 * 2 * 256 * 2 == 24_576
        assert model.state_bytes == 36 * (32 * 128 * 128 * 2 + 8192 * 3 * 2)
        assert model.kv_kinds() == (KvKind(36, 0, 0, 1_097_728), KvKind(12, 2048, 0, 0))
        assert (model.full_layers, model.attention_window) == (12, None)

    def test_mamba(self) -> None:
        """Nemotron-3 Nano: 6 layers of 2 KV heads of 128; 23 of 64 heads of 64 x 128 in fp32, 6,144 channels."""
        model = load_model("nemotron-3-nano-30b-a3b")
        assert model.kv_bytes_per_token == 6 * 2 * 2 * 128 * 2
        assert model.state_bytes == 23 * (64 * 64 * 128 * 4 + (64 * 64 + 2 * 8 * 128) * 3 * 2)

    def test_an_indexer(self) -> None:
        """DeepSeek-V3.2: a latent of 576 in bf16, and an index key of 128 in fp8 with an fp32 scale, in 61 layers."""
        model = load_model("deepseek-v3.2")
        assert model.kv_bytes_per_token == 61 * (576 * 2 + 132)
        assert model.with_dtypes(kv_dtype="fp8").kv_bytes_per_token == 61 * (576 + 132)
        assert (model.attention_window, model.attended_window) == (None, AttentionWindow(2048, 0, 61))

    def test_windows(self) -> None:
        model = load_model("gpt-oss-20b")
        assert model.kv_kinds() == (KvKind(12, 2048, 128, 0), KvKind(12, 2048, 0, 0))
        assert (model.full_layers, model.attention_window) == (12, AttentionWindow(128, 0, 12))
        assert load_model("llama-4-scout").kv_bytes_per_token == 48 * 2 * 8 * 128 * 2
        assert load_model("llama-3.1-8b").kv_kinds() == (KvKind(32, 4096, 0, 0),)

    def test_on_several_gpus(self) -> None:
        """States and KV heads are shared, heads beyond their number repeated, latents held in full."""
        hybrid = load_model("qwen3-next-80b-a3b")
        assert hybrid.gpu_state_bytes(Parallel(4)) == 36 * (8 * 128 * 128 * 2 + 2048 * 3 * 2)
        assert hybrid.gpu_kv_bytes_per_token(Parallel(4)) == 12 * 2 * 256 * 2  # one of two heads
        assert load_model("deepseek-v3.2").gpu_kv_bytes_per_token(Parallel(8)) == 61 * (576 * 2 + 132)


@pytest.mark.parametrize("name", [name for name in names("models") if load_model(name).blocks])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_gpus_share_what_there_is(name: str, tp: int) -> None:
    model, split = load_model(name), Parallel(tp)
    if not model.divides(split):
        with pytest.raises(InputError, match=f"cannot be split over tp = {tp}"):
            model.check_parallel(split)
        return
    assert model.gpu_parameters(SINGLE) == model.parameters
    assert model.parameters <= tp * model.gpu_parameters(split) <= 1.35 * model.parameters
    assert model.weight_bytes <= tp * model.gpu_weight_bytes(split) <= 1.35 * model.weight_bytes
    assert model.kv_bytes_per_token <= tp * model.gpu_kv_bytes_per_token(split)
    assert model.state_bytes <= tp * model.gpu_state_bytes(split)
    assert model.active_parameters <= model.parameters


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-2-9b", "deepseek-v3", "deepseek-v2-lite", "opt-13b"]
)
def test_alike_layers_as_blocks_have_the_same_numbers(name: str) -> None:
    """Two ways to count one model: by the fields of ModelSpec, and as blocks of one layer after another."""
    from dataclasses import replace

    from sim.catalog.assembly import typed, uniform

    model = load_model(name)
    latent = {"kv_lora_rank": 0, "q_lora_rank": 0, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0, "v_head_dim": 0}
    same = replace(model, **latent, blocks=typed(uniform(model), None))
    for tp in (1, 2, 4):
        split = Parallel(tp)
        assert same.gpu_kv_bytes_per_token(split) == model.gpu_kv_bytes_per_token(split)
        if tp == 1:
            assert same.parameters == model.parameters
            assert same.active_parameters == model.active_parameters
            assert same.weight_bytes == pytest.approx(model.weight_bytes, rel=1e-5)
    assert (same.attention_window, same.full_layers) == (model.attention_window, model.full_layers)
