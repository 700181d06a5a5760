"""Further families against transformers' classes, with every switch that changes a count; bytes kept by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_classes import SMALL, count_of, read

from sim import api
from sim.catalog import load_gpu
from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.families import ALIASES, FAMILIES, REFUSED
from sim.catalog.spellings import NO_LENGTH
from sim.cost.capacity import MemorySettings, memory_plan
from traces.schema import InputError

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHARED = {**EXPERTS, "num_shared_experts": 2}
ROUTED = {
    **{"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    **{"n_group": 1, "topk_group": 1},
}
LATENT = {
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12},
    **{"num_key_value_heads": 8},
}
ONE_DENSE = {"mlp_layer_types": ["dense", *["sparse"] * 5]}
ERNIE = {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 48, "moe_layer_end_index": 4}
OLD = {
    **{"n_embd": 64, "n_layer": 6, "n_head": 8, "n_positions": 512, "num_key_value_heads": None},
    **{"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None, "max_position_embeddings": None},
    "intermediate_size": None,
}
MOSAIC = {**OLD, "n_embd": None, "n_layer": None, "n_head": None, "n_positions": None}
MPT = {**MOSAIC, "d_model": 64, "n_layers": 6, "n_heads": 8, "max_seq_len": 512}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 2}
STATES = {"state_size": 8, "expand": 2, "intermediate_size": None, "num_key_value_heads": None}
GRANITE = {**MAMBA2, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 40}
MIXED = ["mamba", "mamba", "attention", "mamba", "attention", "mamba"]
LFM2 = {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"], "head_dim": None}
GEMMA3N = {
    **{"head_dim": 16, "num_hidden_layers": 10, "num_kv_shared_layers": 3, "vocab_size_per_layer_input": 300},
    **{"hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 3, "intermediate_size": [96] * 10},
    "activation_sparsity_pattern": [0.0] * 10,
}
LONGCAT = {
    **LATENT,
    **{"num_layers": 3, "num_hidden_layers": None, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 48, "moe_topk": 3},
    **{"n_routed_experts": 8, "zero_expert_num": 4, "head_dim": 4, "intermediate_size": None},
}
CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("ernie4_5", {"head_dim": 16}),
    ("ernie4_5", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}),
    ("ernie4_5_moe", ERNIE),
    ("ernie4_5_moe", {**ERNIE, "moe_layer_interval": 2, "moe_num_shared_experts": 0}),
    ("hunyuan_v1_dense", {"head_dim": 16, "attention_bias": True}),
    ("hunyuan_v1_moe", {"head_dim": 16, "num_experts": 8, "moe_topk": 2}),
    ("hy_v3", {**SHARED, **ONE_DENSE, "head_dim": 16, "attention_bias": True}),
    ("solar_open", {**ROUTED, "head_dim": 16, "attention_bias": True}),
    ("exaone_moe", {**SHARED, **ONE_DENSE, "sliding_window": 32, "n_group": 1, "topk_group": 1}),
    ("afmoe", {**SHARED, "num_dense_layers": 2, "head_dim": 16, "sliding_window": 32}),
    ("laguna", {**EXPERTS, **ONE_DENSE, "head_dim": 16, "num_attention_heads_per_layer": [8] * 6}),
    ("mellum", {**EXPERTS, "head_dim": 16}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [0, 3]}),
    ("granite_swa", {"sliding_window": 32, "mlp_bias": True}),
    ("granitemoe_swa", {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 40}),
    ("cohere2_moe", {"num_experts": 8, "num_shared_experts": 2, "head_dim": 16}),
    ("gemma4_unified_text", {"head_dim": 16, "global_head_dim": 32}),
    ("olmo_hybrid", {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "attention_bias": True}),
    ("flex_olmo", {"num_experts": 8, "num_experts_per_tok": 2}),
    ("granitemoeshared", {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 40}),
    ("aria_text", {"moe_num_experts": 8, "moe_topk": 2}),
    ("hyperclovax", {"use_post_norm": True, "attention_bias": True, "mlp_bias": True}),
    ("hyperclovax", {"use_post_norm": False}),
    ("cwm", {"head_dim": 16, "sliding_window": 32}),
    ("jais2", {}),
    ("vaultgemma", {"head_dim": 16, "attention_bias": True}),
    ("persimmon", {"num_key_value_heads": None}),
    ("persimmon", {"num_key_value_heads": None, "qk_layernorm": False}),
    ("phi", {"qk_layernorm": True}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}),
    ("stablelm", {"qk_layernorm": True}),
    ("minicpm3", {**LATENT, "attention_bias": True}),
    ("youtu", LATENT),
    ("glm4_moe_lite", {**LATENT, **ROUTED, **ONE_DENSE, "attention_bias": True}),
    ("mistral4", {**LATENT, **ROUTED, "first_k_dense_replace": 2}),
    ("axk1", {**LATENT, **ROUTED, **ONE_DENSE}),
    ("gemma3n_text", GEMMA3N),
    ("gpt2", OLD),
    ("gpt2", {**OLD, "n_inner": 96}),
    ("gpt_bigcode", OLD),
    ("gpt_bigcode", {**OLD, "multi_query": False}),
    ("gptj", {**OLD, "rotary_dim": 4}),
    ("codegen", {**OLD, "rotary_dim": 4}),
    ("gpt_neo", {"num_layers": 6, "num_heads": 8, "attention_types": [[["global", "local"], 3]], "window_size": 32}),
    ("bloom", {"n_layer": 6, "n_head": 8}),
    ("falcon", {}),
    ("falcon", {"bias": True, "parallel_attn": False, "multi_query": False, "alibi": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("mpt", MPT),
    ("bamba", {**MAMBA2, "attn_layer_indices": [2, 5], "attention_bias": True, "mlp_bias": True}),
    ("bamba", {**MAMBA2, "mamba_proj_bias": True, "mamba_conv_bias": False}),
    ("granitemoehybrid", {**GRANITE, "layer_types": MIXED}),
    ("granitemoehybrid", {**GRANITE, "layer_types": ["mamba"] * 6, "num_local_experts": 0}),
    ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 128, "mamba_rms_norm": True, "head_dim": 16, "projectors_bias": True}),
    ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 128, "attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
    ("jamba", {"num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_hidden_layers": 8}),
    (
        "jamba",
        {
            "num_experts": 1,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "attn_layer_period": 3,
            "attn_layer_offset": 2,
        },
    ),
    ("mamba", STATES),
    ("mamba", {**STATES, "use_bias": True, "use_conv_bias": False, "time_step_rank": 6}),
    ("falcon_mamba", STATES),
    ("mamba2", {**STATES, "num_heads": 4, "head_dim": 32, "n_groups": 2, "use_bias": True}),
    ("lfm2", LFM2),
    ("lfm2", {**LFM2, "conv_bias": True, "block_auto_adjust_ff_dim": False, "conv_L_cache": 4}),
    ("lfm2", {**LFM2, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3}),
    ("lfm2_moe", {**LFM2, **EXPERTS}),
    ("lfm2_moe", {**LFM2, **EXPERTS, "use_expert_bias": False, "num_dense_layers": 0}),
    ("minimax", {"num_local_experts": 8, "num_experts_per_tok": 2}),
]


@pytest.mark.parametrize(("kind", "changes"), CLASSES)
def test_parameters_are_those_of_the_class(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    expected, table = count_of(kind, changes)
    model = read(tmp_path, table)
    assert model.parameters == expected


def test_every_family_is_compared() -> None:
    """With transformers' class, here or in `test_families`, or with published numbers."""
    from test_families import CLASSES as FIRST

    transformers = pytest.importorskip("transformers")
    compared = {kind for kind, _ in (*CLASSES, *FIRST)} | {
        # Below, in `test_families` and in `test_towers`.
        *{"longcat_flash", "mllama_text_model", "olmo", "minimax_m3", "deepseek_v4", "kimi_linear", "glm4v_text"},
        *{table["model_type"] for table, _, _, _ in PUBLISHED},
        *{"opt", "deepseek_ref", "nemotron_nas", "step3p7", "step3p7_text"},  # with a checkpoint's keys
    }
    assert {*ARCHITECTURES, *FAMILIES} - compared == set()
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    assert {kind for kind, _ in CLASSES} <= set(known)
    assert set(ALIASES.values()) <= {*ARCHITECTURES, *FAMILIES}
    assert not {*ARCHITECTURES, *FAMILIES, *ALIASES} & set(REFUSED)


def test_longcat(tmp_path: Path) -> None:
    """The class holds the first matrix of experts that do nothing, which no checkpoint has and no engine loads."""
    expected, table = count_of("longcat_flash", LONGCAT)
    model = read(tmp_path, table)
    assert model.parameters == expected - 3 * 4 * 2 * 48 * 64
    assert model.kv_bytes_per_token == 3 * 2 * (16 + 4) * 2
    assert (model.layers, model.experts, model.experts_per_token) == (6, 8, 2)


def test_minimax_m3(tmp_path: Path) -> None:
    """The class spells in lists what the published file has in a section of its own."""
    sizes = {"num_local_experts": 8, "num_experts_per_tok": 2, "dense_intermediate_size": 80, "head_dim": 16}
    sizes |= {"shared_intermediate_size": 48, "intermediate_size": 48}
    sparse = [False, False, True, True, False, True]
    lists = {
        "mlp_layer_types": ["sparse" if each else "dense" for each in sparse],
        "layer_types": ["minimax_m3_sparse" if each else "full_attention" for each in sparse],
    }
    index = {"index_n_heads": 2, "index_head_dim": 8, "index_topk_blocks": 2, "index_block_size": 16}
    expected, _ = count_of("minimax_m3_vl_text", {**sizes, **lists, **index})
    section = {"sparse_num_index_heads": 2, "sparse_index_dim": 8, "sparse_topk_blocks": 2, "sparse_block_size": 16}
    published = {
        **{**SMALL, **sizes, "model_type": "minimax_m3", "torch_dtype": "bfloat16", "n_shared_experts": 1},
        "moe_layer_freq": [int(each) for each in sparse],
        "sparse_attention_config": {**section, "sparse_attention_freq": [int(each) for each in sparse]},
    }
    model = read(tmp_path, published)
    assert model.parameters == expected
    assert model.kv_bytes_per_token == 6 * 2 * 2 * 16 * 2 + 3 * (8 + 4)


def test_olmo_and_llama_vision(tmp_path: Path) -> None:
    expected, table = count_of("olmo", {})
    assert read(tmp_path, table).parameters == expected + 64
    expected, table = count_of(
        "mllama", {"text_config": {**SMALL, "cross_attention_layers": [1, 4], "num_hidden_layers": 6}}
    )
    model = read(tmp_path, table)
    assert model.parameters == expected  # its class for text has no image encoder
    assert model.kv_bytes_per_token == 4 * 2 * 2 * 8 * 2


PUBLISHED: list[tuple[dict[str, Any], float, int, int]] = [
    # Table; parameters (whole: exact); KV bytes a token; active billions where published, else 0.
    (
        {"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696, "kv_channels": 128}
        | {"num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}
        | {"padded_vocab_size": 65024, "seq_length": 8192},
        6_243_584_000,
        28 * 2 * 2 * 128 * 2,
        0,
    ),
    (
        {"model_type": "qwen", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"intermediate_size": 22016, "vocab_size": 151_936, "seq_length": 8192, "kv_channels": 128},
        7_721_324_544,
        32 * 2 * 32 * 128 * 2,
        0,
    ),
    (
        {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100_352}
        | {"max_seq_len": 32768, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8}}
        | {"ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}},
        131_596_523_520,
        40 * 2 * 8 * 128 * 2,
        36,
    ),
    (
        {"model_type": "deepseek", "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16}
        | {"intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2}
        | {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1, "vocab_size": 102_400}
        | {"num_key_value_heads": 16, "max_position_embeddings": 4096},
        16_375_728_128,
        28 * 2 * 16 * 128 * 2,
        3,
    ),
    (
        {"model_type": "step3_text", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 64}
        | {"num_attention_groups": 1, "head_dim": 256, "share_q_dim": 2048, "intermediate_size": 18432}
        | {"moe_layers_enum": ",".join(map(str, range(4, 60))), "moe_num_experts": 48, "moe_top_k": 3}
        | {"moe_intermediate_size": 5120, "share_expert_dim": 5120, "vocab_size": 128_815}
        | {"max_position_embeddings": 65536},
        316e9,
        61 * 2 * 256 * 2,
        38,
    ),
    (
        {"model_type": "grok-1", "hidden_size": 6144, "num_hidden_layers": 64, "num_attention_heads": 48}
        | {"num_key_value_heads": 8, "intermediate_size": 32768, "num_experts": 8, "num_experts_per_tok": 2}
        | {"vocab_size": 131_072, "max_position_embeddings": 8192},
        314e9,
        64 * 2 * 8 * 128 * 2,
        0,
    ),
    (
        {"model_type": "arctic", "hidden_size": 7168, "num_hidden_layers": 35, "num_attention_heads": 56}
        | {"num_key_value_heads": 8, "intermediate_size": 4864, "num_local_experts": 128, "num_experts_per_tok": 2}
        | {"vocab_size": 32000, "max_position_embeddings": 4096},
        480e9,
        35 * 2 * 8 * 128 * 2,
        17,
    ),
    (
        {"model_type": "bailing_moe", "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16}
        | {"num_key_value_heads": 4, "intermediate_size": 5632, "moe_intermediate_size": 1408, "num_experts": 64}
        | {"num_shared_experts": 2, "num_experts_per_tok": 6, "vocab_size": 126_464, "max_position_embeddings": 16384},
        16.8e9,
        28 * 2 * 4 * 128 * 2,
        0,
    ),
    (
        {"model_type": "internlm", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"intermediate_size": 11008, "vocab_size": 103_168, "max_position_embeddings": 2048, "bias": True},
        6_738_415_616 + 2 * (103_168 - 32_000) * 4096 + 32 * 4 * 4096,
        32 * 2 * 32 * 128 * 2,
        0,
    ),
    (
        {"model_type": "orion", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}
        | {"intermediate_size": 15360, "vocab_size": 84_608, "max_position_embeddings": 4096},
        14.5e9,
        40 * 2 * 40 * 128 * 2,
        0,
    ),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: str(row[0]["model_type"]))
def test_types_of_own_code_have_their_published_size(
    tmp_path: Path, row: tuple[dict[str, Any], float, int, int]
) -> None:
    table, parameters, kept, active = row
    model = read(tmp_path, {**table, "torch_dtype": "bfloat16"})
    assert model.parameters == (parameters if isinstance(parameters, int) else pytest.approx(parameters, rel=0.01))
    assert model.kv_bytes_per_token == kept
    assert not active or model.active_parameters == pytest.approx(active * 1e9, rel=0.07)


KEPT: list[tuple[dict[str, Any], int, int]] = [
    # Jamba 1.5 Mini: 4 of 32 layers attend; 28 with 8,192 channels of 16, and 3 tokens of each.
    (
        {"model_type": "jamba", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 65536, "max_position_embeddings": 2**18},
        4 * 2 * 8 * 128 * 2,
        28 * (8192 * 16 * 2 + 8192 * 3 * 2),
    ),
    # Falcon-H1 34B: both in each of 72 layers; 32 heads of 128 x 256, 4,096 + 2 x 2 x 256 channels.
    (
        {"model_type": "falcon_h1", "hidden_size": 5120, "num_hidden_layers": 72, "num_attention_heads": 20}
        | {"num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 21504, "vocab_size": 261_120}
        | {"mamba_d_ssm": 4096, "mamba_n_heads": 32, "mamba_d_head": 128, "mamba_n_groups": 2, "mamba_d_state": 256}
        | {"max_position_embeddings": 2**18},
        72 * 2 * 4 * 128 * 2,
        72 * (32 * 128 * 256 * 2 + (4096 + 2 * 2 * 256) * 3 * 2),
    ),
    # LFM2 1.2B: 6 of 16 layers attend with 8 heads of 64; 10 keep two tokens of 2,048 channels.
    (
        {"model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "block_ff_dim": 12288, "vocab_size": 65536, "max_position_embeddings": 128_000}
        | {"full_attn_idxs": [2, 5, 8, 10, 12, 14]},
        6 * 2 * 8 * 64 * 2,
        10 * 2 * 2048 * 2,
    ),
    # MiniMax-Text-01: 10 of 80 layers attend; 70 keep a matrix of 128 x 128 for each of 64 heads.
    (
        {"model_type": "minimax_text_01", "hidden_size": 6144, "num_hidden_layers": 80, "num_attention_heads": 64}
        | {"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9216, "num_local_experts": 32}
        | {"num_experts_per_tok": 2, "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10, "vocab_size": 200_064}
        | {"max_position_embeddings": 10_240_000},
        10 * 2 * 8 * 128 * 2,
        70 * 64 * 128 * 128 * 2,
    ),
    # Mamba-2 2.7B's shape: states alone, in fp32 where the file says so.
    (
        {"model_type": "mamba2", "hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80, "head_dim": 64}
        | {"n_groups": 1, "state_size": 128, "vocab_size": 50288, "mamba_ssm_cache_dtype": "float32"},
        0,
        64 * (80 * 64 * 128 * 4 + (5120 + 2 * 128) * 3 * 2),
    ),
    # Gemma 3n: 20 of 35 layers keep 2 heads of 256, of which 16 within a window of 512.
    (
        {"model_type": "gemma3n_text", "hidden_size": 2048, "num_hidden_layers": 35, "num_attention_heads": 8}
        | {"vocab_size": 262_400, "max_position_embeddings": 32768},
        20 * 2 * 2 * 256 * 2,
        0,
    ),
]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: str(row[0]["model_type"]))
def test_what_sequences_keep(tmp_path: Path, row: tuple[dict[str, Any], int, int]) -> None:
    table, token, state = row
    model = read(tmp_path, {**table, "torch_dtype": "bfloat16"})
    assert (model.kv_bytes_per_token, model.state_bytes) == (token, state)


class TestStatesAlone:
    """A model that keeps nothing of a token: seats bound it, blocks hold nothing."""

    TABLE = KEPT[4][0] | {"torch_dtype": "bfloat16"}

    def test_memory(self, tmp_path: Path) -> None:
        model, gpu = read(tmp_path, self.TABLE), load_gpu("h100")
        planned = memory_plan(model, gpu, MemorySettings(max_num_seqs=64))
        assert (planned.block_bytes, planned.state_bytes) == (0, 64 * model.state_bytes)
        assert planned.blocks == 64 * NO_LENGTH // 16
        assert memory_plan(model, gpu, MemorySettings(max_num_seqs=10_000)).blocks == 0  # their states do not fit
        assert "no limit of the context" in model.counted

    def test_a_run(self, tmp_path: Path) -> None:
        read(tmp_path, self.TABLE)
        settings = {"trace": "chatbot_arena.jsonl", "limit": 20, "rate": 5.0, "model": str(tmp_path / "config.json")}
        settings["engine.max_num_seqs"] = 256  # the states of 1,024 seats, vLLM's own, need two GPUs more
        result = api.run(**settings, gpu="h100")
        assert result.summary["requests"]["completed"] == 20
        with pytest.raises(InputError, match=r"kv\.swap_gib = 4 is for a KV cache, and the model keeps none"):
            api.run(**settings, gpu="h100", **{"kv.swap_gib": 4.0})
