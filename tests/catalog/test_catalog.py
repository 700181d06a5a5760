"""The catalog's files, names and aliases; the user's own files; Hugging Face configs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import catalog
from sim.catalog import from_hf_config, load_gpu, load_model, names
from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.families import FAMILIES
from sim.cost.efficiency import Efficiency
from sim.specs.model import AttentionWindow, GpuSpec, ModelSpec
from traces.schema import InputError

FOLDER = Path(catalog.__file__).parent
GPUS = ["a100-40", "a100-80", "a10g", "b200", "h100", "h200", "l4", "l40s", "mi300x", "rtx-4090", "t4", "v100"]
MODELS = [
    *("byte-draft", "byte-target"),
    *("deepseek-v2-lite", "deepseek-v3", "deepseek-v3.2", "gemma-2-27b", "gemma-2-2b", "gemma-2-9b"),
    *("gemma-3-12b", "gemma-3-1b", "gemma-3-27b", "gemma-3-4b", "glm-4.5", "glm-4.5-air", "glm-5"),
    *("gpt-oss-120b", "gpt-oss-20b", "kimi-k2"),
    *("llama-2-13b", "llama-2-70b", "llama-2-7b", "llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b", "llama-3.2-1b"),
    *("llama-4-maverick", "llama-4-scout", "minimax-m2"),
    *("mistral-7b", "mistral-7b-v0.1", "mistral-small-24b", "mixtral-8x7b", "nemotron-3-nano-30b-a3b"),
    *("nemotron-h-56b", "opt-13b", "opt-175b", "opt-66b", "phi-4", "phi-4-mini"),
    *("qwen3-0.6b", "qwen3-14b", "qwen3-235b-a22b", "qwen3-30b-a3b", "qwen3-32b", "qwen3-8b", "qwen3-next-80b-a3b"),
    *("qwen3.5-122b-a10b", "qwen3.5-35b-a3b", "qwen3.5-397b-a17b", "tiny-llama", "vicuna-13b"),
]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}

MORE: dict[str, Any] = {
    "ffn_dim": 100,
    "layer_types": None,
    "sliding_window": 64,
    "use_sliding_window": True,
    "max_window_layers": 3,
    "sliding_window_pattern": 6,
    "word_embed_proj_dim": 4096,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "quantization_config": None,
    "text_config": {},
}
"""What other architectures than Llama's ask for, valid all together."""
OTHERS: dict[str, Any] = {
    "linear_attn_config": {"full_attn_layers": [4], "num_heads": 4, "head_dim": 8},
    "sparse_attention_config": {
        **{"sparse_num_index_heads": 2, "sparse_index_dim": 16, "sparse_topk_blocks": 2, "sparse_block_size": 16},
        "sparse_attention_freq": [0] * 16 + [1] * 16,
    },
    "dense_intermediate_size": 128,
    "block_configs": [{"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 1.5}}] * 32,
    "hybrid_override_pattern": "M*-E" * 8,
    "moe_shared_expert_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "compress_ratios": [0, 4] + [128] * 30,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 64,
    "o_groups": 4,
    "o_lora_rank": 16,
    "hc_mult": 2,
    "head_dim": 128,
    "q_lora_rank": 32,
    "attention_chunk_size": 64,
    "hybrid_layer_pattern": [0, 1] * 16,
    "moe_layer_freq": 1,
    "layers_block_type": None,
    "per_layer_config": {"03": {"head_dim": 64}},
    "top_k_experts": 2,
    "enable_moe_block": True,
    "moe_num_experts": 8,
    "moe_topk": 2,
    "ffn_hidden_size": 256,
    "num_heads": 64,
    "share_q_dim": 64,
    "moe_layers_enum": "1,2",
    "moe_top_k": 2,
}
"""What families of layers of several kinds ask for."""
JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["full_attention", "sliding_attention", "fp8", "awq", "gptq"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["quant_method", "bits", "group_size"]), inner),
    max_leaves=8,
)


def write_config(folder: Path, **changes: Any) -> Path:
    table = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    path = folder / "config.json"
    path.write_text(json.dumps(table))
    return path


def same_shape(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two models differ in their names and sources at most."""
    return replace(one, name="", source="") == replace(other, name="", source="")


def test_the_catalog_has_what_the_readme_promises() -> None:
    assert names("gpus") == GPUS
    assert names("models") == MODELS


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_loads_and_every_number_has_a_source(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    for item in fields(GpuSpec):
        assert len(gpu.source_of(item.name)) > 10
    assert gpu.node_gpus > 1
    assert {"node_gpus", "network_bytes_per_s"} <= dict(gpu.sources).keys()
    assert bool(gpu.link) == bool(gpu.link_bytes_per_s)
    assert gpu.network_bytes_per_s < gpu.peer_bytes_per_s
    assert Efficiency.of(gpu)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads_with_a_source(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert len(model.source) > 20


def test_data_sheets_are_dense_and_in_order() -> None:
    """fp8 is at most twice fp16, fp32 is below it, and no bandwidth is in the wrong unit."""
    for gpu in map(load_gpu, GPUS):
        assert gpu.fp32_flops_per_s < gpu.fp16_flops_per_s
        assert gpu.fp8_flops_per_s <= 2.1 * gpu.fp16_flops_per_s
        assert 1e11 < gpu.memory_bytes_per_s < 1e13
        assert 15 * 2**30 <= gpu.memory_bytes < 200 * 2**30
        # FLOPs per byte: data-centre and consumer cards lie between these.
        assert 50 < gpu.fp16_flops_per_s / gpu.memory_bytes_per_s < 500
    assert load_gpu("rtx-4090").fp16_flops_per_s == 165.2e12


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100", "h100"),
        ("h100_sxm", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("A100", "a100-80"),
        ("a100 40gb", "a100-40"),
        ("RTX4090", "rtx-4090"),
        ("Tesla T4", "t4"),
    ],
)
def test_gpu_aliases(spelling: str, name: str) -> None:
    assert load_gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("LLAMA_3_1_8B", "llama-3.1-8b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("someone/qwen3-8b", "qwen3-8b"),
    ],
)
def test_model_aliases(spelling: str, name: str) -> None:
    assert load_model(spelling).name == name


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown GPU 'h1000'; known are a100-40.*v100"):
        load_gpu("h1000")
    with pytest.raises(InputError, match=r"unknown model 'gpt-5'; known are byte-draft.*deepseek-v2.*config\.json"):
        load_model("gpt-5")
    with pytest.raises(InputError, match="unknown model ''"):
        load_model("")


def test_rows_for_listing() -> None:
    models, gpus = catalog.model_rows(), catalog.gpu_rows()
    assert [row["name"] for row in models] == MODELS
    assert [row["name"] for row in gpus] == GPUS
    assert all(row["source"] for row in (*models, *gpus))
    assert next(row for row in models if row["name"] == "llama-2-7b")["kv_bytes_per_token"] == 524288


class TestUserFiles:
    def gpu_text(self) -> str:
        return (FOLDER / "gpus" / "l4.toml").read_text()

    def test_a_gpu_in_one_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(
            'name = "mine"\ndescription = "x"\nsource = "its data sheet"\nmemory_bytes = 25_769_803_776\n'
            "memory_bytes_per_s = 1e12\nfp16_flops_per_s = 1e14\nbf16_flops_per_s = 1e14\nfp8_flops_per_s = 0\n"
            "fp32_flops_per_s = 5e13\nsms = 100\nl2_bytes = 0\npcie_bytes_per_s = 3.2e10\nlink_bytes_per_s = 0\n"
            "watts = 300\n"
        )
        gpu = load_gpu(str(path))
        assert gpu.memory_bytes_per_s == 1e12
        assert gpu.source_of("watts") == "its data sheet"
        assert (gpu.node_gpus, gpu.network_bytes_per_s) == (0, 0.0)

    def test_a_model_in_one_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text((FOLDER / "models" / "llama-3.1-8b.toml").read_text().replace("layers = 32", "layers = 16"))
        assert load_model(str(path)).layers == 16

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("sms = 58", "smx = 58", "unknown key 'smx'"),
            ("sms = 58", "", "key 'sms' is missing"),
            ("sms = 58", "sms = 58.5", "sms = 58.5 must be of type int"),
            ("sms = 58", "sms = true", "sms = True must be of type int"),
            ("sms = 58", 'sms = "58"', "must be of type int"),
            ("node_gpus = 8", "node_gpus = -1", "node_gpus = -1 must lie between 0 and"),
            ("node_gpus = 8", 'link = "NVLink"', "link = 'NVLink' names a fabric, and link_bytes_per_s = 0"),
            ("network_bytes_per_s = 1.5625e9", "network_bytes_per_s = 100", "network_bytes_per_s = 100.0 must be 0 or"),
            ("watts = 72", "watts = nan", "watts = nan must be 0 or lie between 0.001 and"),
            ("watts = 72", f"watts = {'9' * 400}", "watts is too large"),
            ("watts = 72", "watts = ", "is not TOML"),
            ("watts = 72", "watts = 72\nsources = 3", "sources must be a table|is not TOML"),
            ("[sources]", "[sources]\nspeed = 'fast'", "'speed' must be a text about one of"),
            ("[sources]", "[efficiency]\ngemm_compute = 0.5\n[sources]", "must hold a number `value`"),
            ('aliases = ["l4-24gb", "NVIDIA L4"]', "aliases = 4", "aliases must be a list of texts"),
        ],
    )
    def test_mistakes_name_file_and_key(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        path = tmp_path / "mine.toml"
        assert old in self.gpu_text()
        path.write_text(self.gpu_text().replace(old, new))
        with pytest.raises(InputError, match=message) as caught:
            load_gpu(str(path))
        assert str(caught.value).startswith(str(path))

    @pytest.mark.parametrize("name", ["absent.toml", "absent.json", "absent/absent.toml"])
    def test_missing_files(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match="does not exist"):
            load_model(str(tmp_path / name))

    def test_binary_rubbish(self, tmp_path: Path) -> None:
        for name in ("a.toml", "a.json"):
            (tmp_path / name).write_bytes(b"\xff\x00\xfe")
            with pytest.raises(InputError, match=r"is not (TOML|UTF-8)"):
                load_model(str(tmp_path / name))

    def test_efficiency_of_a_gpu(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(self.gpu_text() + '[efficiency.gemm_compute]\nvalue = 0.5\nsource = "measured by us"\n')
        efficiency = Efficiency.of(load_gpu(str(path)))
        constants = {constant.name: constant for constant in efficiency.describe()}
        assert constants["gemm_compute"][1:] == (0.5, "measured by us")

    def test_a_folder_named_like_a_catalog_model_needs_a_separator(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "opt-13b").mkdir()
        write_config(tmp_path / "opt-13b")
        monkeypatch.chdir(tmp_path)
        assert load_model("opt-13b").hidden == 5120
        assert load_model("./opt-13b").hidden == 4096


class TestHuggingFace:
    def test_llama(self, tmp_path: Path) -> None:
        (tmp_path / "my-llama").mkdir()
        model = from_hf_config(write_config(tmp_path / "my-llama"))
        assert model.parameters == 8_030_261_248
        assert model.name == "my-llama"
        assert (model.dtype, model.kv_dtype, model.max_context_tokens) == ("bf16", "bf16", 131072)
        assert load_model(str(tmp_path / "my-llama")) == model

    def test_transformers_5_spelling(self, tmp_path: Path) -> None:
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 8192}
        path = write_config(
            tmp_path, torch_dtype="absent", dtype="float16", rope_scaling="absent", rope_parameters=rope
        )
        model = from_hf_config(path)
        assert (model.dtype, model.max_context_tokens) == ("fp16", 131072)

    def test_no_kv_heads_means_multi_head_attention(self, tmp_path: Path) -> None:
        path = write_config(
            tmp_path, num_key_value_heads="absent", intermediate_size=11008, vocab_size=32000, rope_scaling=None
        )
        assert from_hf_config(path).parameters == 6_738_415_616

    @pytest.mark.parametrize(
        ("rope", "tokens"),
        [
            ({"type": "linear", "factor": 4.0}, 131072 * 4),
            ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
            ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32768}, 262144),
            ({"rope_type": "default"}, 131072),
            (None, 131072),
        ],
    )
    def test_rope_rules_that_stretch_the_context(self, tmp_path: Path, rope: object, tokens: int) -> None:
        assert from_hf_config(write_config(tmp_path, rope_scaling=rope)).max_context_tokens == tokens

    def test_mistral_window_and_mixtral(self, tmp_path: Path) -> None:
        base = {"vocab_size": 32000, "sliding_window": 4096}
        mistral = from_hf_config(write_config(tmp_path, model_type="mistral", **base))
        assert (mistral.parameters, mistral.sliding_window_tokens) == (7_241_732_096, 4096)
        mixtral = from_hf_config(
            write_config(
                tmp_path,
                model_type="mixtral",
                vocab_size=32000,
                sliding_window=None,
                num_local_experts=8,
                num_experts_per_tok=2,
            )
        )
        assert mixtral.parameters == 46_702_792_704

    def test_qwen(self, tmp_path: Path) -> None:
        shape = {"num_hidden_layers": 36, "intermediate_size": 12288, "vocab_size": 151936, "head_dim": 128}
        qwen3 = write_config(tmp_path, model_type="qwen3", sliding_window=4096, use_sliding_window=False, **shape)
        model = from_hf_config(qwen3)
        assert (model.parameters, model.sliding_window_tokens) == (8_190_735_360, 0)
        qwen2 = {  # Qwen2.5-7B: 7,615,616,512 parameters.
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        }
        assert from_hf_config(write_config(tmp_path, model_type="qwen2", **qwen2)).parameters == 7_615_616_512
        experts = {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        assert from_hf_config(write_config(tmp_path, model_type="qwen3_moe", **experts)).parameters == 30_532_122_624

    def test_windows_of_every_kind(self, tmp_path: Path) -> None:
        def window(**changes: Any) -> AttentionWindow | None:
            return from_hf_config(write_config(tmp_path, **changes)).attention_window

        assert window(model_type="mistral") == AttentionWindow(4096, 0, 32)  # the class's default
        assert window(model_type="mistral", sliding_window=None) is None
        assert window(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2) is None
        qwen = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1000}
        assert window(**qwen, max_window_layers=20) == AttentionWindow(1000, 0, 12)
        assert window(**qwen, max_window_layers=32) is None
        assert window(model_type="gemma2", num_hidden_layers=7) == AttentionWindow(4096, 0, 4)
        assert window(model_type="gemma3_text", sliding_window=512, num_hidden_layers=26) == AttentionWindow(512, 0, 22)
        types = ["sliding_attention"] * 31 + ["full_attention"]
        assert window(model_type="gemma2", sliding_window=64, layer_types=types) == AttentionWindow(64, 0, 31)
        assert window(model_type="gemma2", layer_types=["full_attention"] * 32) is None

    def test_gemma(self, tmp_path: Path) -> None:
        """The public files, as far as they are read."""
        second = {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 4096,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "rope_scaling": None,
            "tie_word_embeddings": "absent",
        }
        assert same_shape(from_hf_config(write_config(tmp_path, **second)), load_model("gemma-2-9b"))
        text = {
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "model_type": "gemma3_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": text}))
        assert same_shape(from_hf_config(path), load_model("gemma-3-27b"))

    def test_gpt_oss(self, tmp_path: Path) -> None:
        """20.91B and 116.83B parameters, 3.61B and 5.13B active (model card, arXiv 2508.10925, table 1)."""
        shape = {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "head_dim": 64,
            "vocab_size": 201_088,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
        }
        small = from_hf_config(write_config(tmp_path, **shape, num_hidden_layers=24, num_local_experts=32))
        large = from_hf_config(write_config(tmp_path, **shape, num_hidden_layers=36, num_local_experts=128))
        assert [round(model.parameters / 1e9, 2) for model in (small, large)] == [20.91, 116.83]
        # The card counts the embedding among the parameters but not among the active ones.
        active = [model.active_parameters - model.vocab * model.hidden for model in (small, large)]
        assert [round(count / 1e9, 2) for count in active] == [3.61, 5.13]
        assert small.attention_window == AttentionWindow(128, 0, 12)

    def test_deepseek(self, tmp_path: Path) -> None:
        """The public files, as far as they are read."""
        rope = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
        both = {
            "max_position_embeddings": 163_840,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "moe_layer_freq": 1,
            "rope_scaling": rope,
        }
        lite = {
            **both,
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 102_400,
            "q_lora_rank": None,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
        }
        assert same_shape(from_hf_config(write_config(tmp_path, **lite)), load_model("deepseek-v2-lite"))
        third = {
            **both,
            "model_type": "deepseek_v3",
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "head_dim": 64,
            "vocab_size": 129_280,
            "q_lora_rank": 1536,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        }
        assert same_shape(from_hf_config(write_config(tmp_path, **third)), load_model("deepseek-v3"))

    @pytest.mark.parametrize(
        ("table", "weights"),
        [
            ({"quant_method": "fp8"}, "fp8"),
            ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4"),
            ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8"),
        ],
    )
    def test_quantised_weights(self, tmp_path: Path, table: dict[str, Any], weights: str) -> None:
        assert from_hf_config(write_config(tmp_path, quantization_config=table)).weights == weights

    @pytest.mark.parametrize("kind", [*sorted(ARCHITECTURES), *sorted(FAMILIES), "gemma3"])
    def test_every_architecture_reads_the_table_that_has_all(self, tmp_path: Path, kind: str) -> None:
        assert from_hf_config(write_config(tmp_path, **MORE, **OTHERS, model_type=kind)).parameters > 0

    @pytest.mark.parametrize("kind", [*sorted(ARCHITECTURES), *sorted(FAMILIES)])
    @pytest.mark.parametrize("value", [10**9, -1, "32"])
    def test_a_hostile_number_of_layers(self, tmp_path: Path, kind: str, value: object) -> None:
        table = {**MORE, **OTHERS, "num_hidden_layers": value, "quantization_config": {"quant_method": "fp8"}}
        with pytest.raises(InputError) as caught:
            from_hf_config(write_config(tmp_path, **table, model_type=kind))
        assert len(str(caught.value)) < 700

    def test_opt(self, tmp_path: Path) -> None:
        table = {
            "model_type": "opt",
            "torch_dtype": "float16",
            "hidden_size": 5120,
            "ffn_dim": 20480,
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
            "max_position_embeddings": 2048,
            "vocab_size": 50272,
            "word_embed_proj_dim": 5120,
            "do_layer_norm_before": True,
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps(table))
        model = from_hf_config(path)
        assert model.parameters == 12_853_473_280
        path.write_text(json.dumps({**table, "word_embed_proj_dim": 512}))
        with pytest.raises(InputError, match="word_embed_proj_dim = 512 is not supported"):
            from_hf_config(path)

    @pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
    def test_a_missing_key_is_named(self, tmp_path: Path, key: str) -> None:
        with pytest.raises(InputError, match=rf"config\.json: key '{key}' is missing"):
            from_hf_config(write_config(tmp_path, **{key: "absent"}))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "mamba9"}, "model_type = 'mamba9' is not supported; supported are llama, mistral"),
            ({"model_type": "absent"}, "model_type = None is not supported"),
            ({"model_type": ["llama"]}, "is not supported"),
            ({"quantization_config": {"quant_method": "gptq"}}, r"key 'quantization_config\.bits' is missing"),
            ({"quantization_config": {"quant_method": "gptq", "bits": [4]}}, "must be a whole number"),
            (
                {"quantization_config": {"quant_method": "aqlm"}},
                "quantised by 'aqlm', whose bytes are not modelled; known",
            ),
            ({"quantization_config": 4}, "quantization_config must be an object"),
            ({"model_type": "gemma3"}, "key 'text_config' is missing"),
            ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
            ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
            ({"model_type": "gemma2", "layer_types": ["linear_attention"] * 32}, "layer_types must be a list of"),
            (
                {"model_type": "gemma2", "layer_types": ["sliding_attention"] * 32, "sliding_window": None},
                "there is no sliding_window",
            ),
            ({"model_type": "deepseek_v3"}, "qk_nope_head_dim"),
            ({"torch_dtype": "int8"}, "dtype = 'int8' is none of"),
            ({"hidden_size": "4096"}, "hidden_size = '4096' must be a whole number"),
            ({"hidden_size": 4097}, "not a multiple of num_attention_heads"),
            ({"num_attention_heads": 0}, "heads = 0 must lie"),
            ({"num_hidden_layers": -1}, "layers = -1 must lie"),
            ({"num_hidden_layers": 10**300}, "layers = "),
            ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1 must be true or false"),
            ({"rope_scaling": {"rope_type": "magic"}}, "rope_type = 'magic' is not supported"),
            ({"rope_scaling": {"type": "linear", "factor": "x"}}, "must be positive"),
            ({"rope_scaling": 3}, "rope_scaling must be an object"),
            ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported"),
        ],
    )
    def test_mistakes_name_the_key(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            from_hf_config(write_config(tmp_path, **changes))

    @given(
        kind=st.sampled_from([*sorted(ARCHITECTURES), *sorted(FAMILIES), "gemma3", "mamba"]),
        table=st.dictionaries(
            st.sampled_from([*sorted(LLAMA), *sorted(MORE), *sorted(OTHERS)]),
            st.none() | st.integers() | st.integers(0, 64) | st.text("a1\n") | st.booleans() | JSON,
        ),
    )
    def test_any_values_give_a_model_or_an_input_error(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, table: dict[str, Any]
    ) -> None:
        path = write_config(tmp_path_factory.mktemp("hf"), **{**MORE, **OTHERS, **table, "model_type": kind})
        with suppress(InputError):
            assert from_hf_config(path).parameters > 0

    @pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000])
    def test_not_an_object(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "config.json"
        path.write_text(text)
        with pytest.raises(InputError, match=r"config\.json: must hold|config\.json is not JSON"):
            from_hf_config(path)
